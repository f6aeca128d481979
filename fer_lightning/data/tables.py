"""Columns of tables of unknown origin."""

import numpy as np
import pandas as pd

LONGEST_NUMBER = 40
"""Maximum characters of a number; pandas raises for a whole number of hundreds."""


def to_numbers(column: pd.Series) -> pd.Series:
    """A column as float64, NaN for what is not a number."""
    short = column if column.dtype.kind in "biuf" else column.where(column.astype(str).str.len() <= LONGEST_NUMBER)
    return pd.to_numeric(short, errors="coerce").astype(np.float64)
