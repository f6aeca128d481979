"""How numbers are shown: the style of plots, and words."""
