"""FER-2013 as arrays: sources, archives, cache, labels, splits and drawn faces."""
