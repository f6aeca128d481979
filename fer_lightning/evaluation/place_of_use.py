"""The options ``--set`` and ``--prior`` of ``predict`` and ``evaluate``, read without importing torch."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_lightning.config.messages import did_you_mean
from fer_lightning.metrics import prior
from fer_lightning.presentation.printable import shortened
from fer_lightning.presentation.words import percent
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import read_bytes

UNIFORM, TRAINING, ESTIMATED = "uniform", "training", "estimated"

MAX_FILE = 2**20
"""Maximum bytes of a file of shares."""


@dataclass(frozen=True)
class PlaceOfUse:
    """The options.

    Attributes:
        level: the share of images of each class whose set of classes is to hold the true class; None for no sets.
        prior: ``uniform``, ``training``, ``estimated`` or a file of shares; None leaves the probabilities as they are.
    """

    level: float | None = None
    prior: str | None = None

    def check(self) -> None:
        """Check what can be checked without a model.

        Raises:
            UserError: a level that is none, or a file that is missing.
        """
        if self.level is not None and not 0 < self.level < 1:
            raise UserError(f"--set {self.level}: must lie between 0 and 1, such as 0.9")
        named = self.prior in (None, UNIFORM, TRAINING, ESTIMATED)
        if not named and not Path(str(self.prior)).is_file():
            raise UserError(
                f"--prior {self.prior}: no such file; give uniform, training, estimated, or a JSON or CSV file of "
                "class and share"
            )


def given_prior(option: str, classes: Sequence[str], class_counts: Sequence[int]) -> np.ndarray | None:
    """The shares of classes that ``--prior`` names, float64, shape (C,); None for ``estimated``.

    Args:
        option: its value.
        classes: names of the C classes.
        class_counts: training images of each class.

    Raises:
        UserError: a file that cannot be read as shares of the model's classes.
    """
    if option == ESTIMATED:
        return None
    if option == UNIFORM:
        return np.full(len(classes), 1 / len(classes))
    if option == TRAINING:
        counts = np.array(class_counts, dtype=np.float64)
        if not counts.any():
            raise UserError("--prior training: the checkpoint does not know its training images; give a file")
        return np.asarray(counts / counts.sum())
    return read_shares(Path(option), classes)


def read_shares(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Read shares or counts of classes: a JSON object, or CSV lines of class and number with or without a header.

    Args:
        path: the file.
        classes: all of them must be in the file, and no other.

    Returns:
        float64, shape (C,), summing to 1.

    Raises:
        UserError: in one line, with what is wrong.
    """
    try:
        text = read_bytes(path, MAX_FILE).decode("utf-8-sig")
        entries = _json_entries(text) if path.suffix.lower() == ".json" else _csv_entries(text)
        names = [name for name, _ in entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} stands there twice")
        unknown = next((name for name in names if name not in classes), None)
        if unknown is not None:
            raise ValueError(f"{unknown!r} is no class of the model{did_you_mean(unknown, list(classes))}")
        if missing := [name for name in classes if name not in names]:
            raise ValueError(f"lacks {', '.join(missing)}; give 0 for a class that does not occur")
        numbers = dict(entries)
        shares = np.array([float(numbers[name]) for name in classes])
        if not ((shares >= 0) & (shares < 1e300 / len(shares))).all() or not shares.any():
            raise ValueError("shares or counts must be 0 or more, and not all 0")
    except FileNotFoundError:
        raise UserError(f"--prior {path}: no such file; give a JSON or CSV file of class and share") from None
    except (ValueError, TypeError, OverflowError, RecursionError, csv.Error) as error:
        raise UserError(f"--prior {path}: {shortened(one_line(error), 200)}") from None
    return np.asarray(shares / shares.sum())


def _json_entries(text: str) -> list[tuple[str, Any]]:
    entries = json.loads(text, object_pairs_hook=list)
    is_object = isinstance(entries, list) and all(isinstance(entry, tuple) for entry in entries)
    if not is_object or any(isinstance(value, bool) for _, value in entries):
        raise ValueError('must be a JSON object such as {"happy": 0.5, ...}')
    return entries


def _csv_entries(text: str) -> list[tuple[str, Any]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError("must hold lines of two columns, class and share")
    entries = [(name.strip(), value) for name, value in rows]
    try:
        float(entries[0][1] if entries else 0)
    except ValueError:
        entries = entries[1:]  # a header
    return entries


def describe_prior(option: str, shares: np.ndarray, classes: Sequence[str], estimate: prior.Estimate | None) -> str:
    """One line: the prior that was used, the largest shares first, and whether an estimate is unsteady."""
    order = np.argsort(-shares, kind="stable")[:10]
    listed = ", ".join(f"{classes[k]} {percent(float(shares[k]), digits=0)}" for k in order)
    line = f"prior {option}: {listed}{', ...' if len(classes) > len(order) else ''}"
    if estimate is None:
        return line
    line += f" (from {estimate.images:,} images"
    needed = prior.IMAGES_PER_CLASS * len(classes)
    return line + (f"; too few for a steady estimate, which takes {needed:,})" if estimate.few else ")")
