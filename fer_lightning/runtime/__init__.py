"""The process and its folder: errors, files, locks, signals, ranks, provenance."""
