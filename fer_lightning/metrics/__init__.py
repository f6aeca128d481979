"""Scores of a classifier: per class, macro-averaged, and calibration; numpy only."""
