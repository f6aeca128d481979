"""Many finished runs: which may be compared, what the differences are, and the report that says so."""
