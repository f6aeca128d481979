"""FER-2013 and other labelled images as arrays: sources, archives, cache, labels, splits and drawn faces."""
