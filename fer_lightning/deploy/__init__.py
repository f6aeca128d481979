"""A trained model for other programs: graph, formats, int8, parity."""
