"""The table of predictions (``predictions.csv``): columns, classes, mistakes."""

import csv
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

PREFIX = "p_"
"""Of the columns of ``predictions.csv`` that hold a class's probability."""

MAX_COLUMNS = 5_000
"""Of ``predictions.csv``, which has one for each of at most 1,000 classes; pandas takes minutes for 300,000."""

MISTAKES = 24
"""Most wrong predictions that are shown."""


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Columns of ``predictions.csv`` that hold the probabilities, in class order."""
    return [PREFIX + name for name in classes]


def read_predictions_csv(content: bytes) -> pd.DataFrame:
    """Read ``predictions.csv``; ids and classes stay texts, also those called 7, NA or null.

    Raises:
        ValueError: more than ``MAX_COLUMNS`` columns, one twice, or others in the first row of values than in the
            header.
    """
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8", "replace", newline=""))
    first = list(itertools.islice((row for row in rows if "".join(row).strip()), 2))
    lengths = [len(row) for row in first]
    if max(lengths, default=0) > MAX_COLUMNS:
        raise ValueError(f"has {max(lengths):,} columns, and at most {MAX_COLUMNS:,} are read")
    if first and (twice := [name for name, count in Counter(first[0]).items() if count > 1]):
        raise ValueError(f"has column {twice[0][:40]!r} twice")
    if len(set(lengths)) > 1:  # pandas would take the first of them as the row's name
        raise ValueError(f"has {lengths[0]} columns, and its first row {lengths[1]} values")
    texts = dict.fromkeys(("id", "usage", "label", "prediction"), str)
    return pd.read_csv(io.BytesIO(content), dtype=texts, keep_default_na=False, na_values=[""])


def ids_hash(predictions: pd.DataFrame) -> str:
    """Hex digest of the ids of the images, whatever their order: a damaged id is not another image."""
    ids = "\n".join(sorted(predictions["id"]))
    return hashlib.blake2b(ids.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def classes_of(predictions: pd.DataFrame) -> tuple[str, ...]:
    """The classes of a table of predictions, in order."""
    return tuple(str(name).removeprefix(PREFIX) for name in predictions if str(name).startswith(PREFIX))


def class_indices(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Turn class names, as in ``predictions.csv``, into class indices; int64.

    Raises:
        ValueError: a name that is not one of ``classes``.
    """
    indices = pd.Index(classes).get_indexer(pd.Index(names))
    if (indices < 0).any():
        raise ValueError(f"'{names[int(np.argmin(indices))]}' is not one of {', '.join(classes)}")
    return indices.astype(np.int64)


def confident_mistakes(predictions: pd.DataFrame) -> pd.DataFrame:
    """Select the ``MISTAKES`` wrong predictions with the highest confidence, in descending order.

    Args:
        predictions: the rows of ``predictions.csv``.

    Returns:
        Rows of ``predictions`` with a column ``confidence`` added; the index is the row number in ``predictions``, for
        finding the images.
    """
    rows = predictions.reset_index(drop=True)
    rows["confidence"] = rows[probability_columns(classes_of(rows))].max(axis=1)
    wrong = rows[rows["label"] != rows["prediction"]]
    return wrong.sort_values("confidence", ascending=False, kind="stable").head(MISTAKES)


def reported(predictions: pd.DataFrame, name: str = "test") -> pd.DataFrame:
    """The rows of the reported set; a protocol may test on further images."""
    return predictions[predictions[name] == 1].reset_index(drop=True)
