"""Export a trained model for other programs: graph, formats, int8, check against PyTorch."""
