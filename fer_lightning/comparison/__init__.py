"""Many finished runs: which may be compared, and the numbers of their comparison."""
