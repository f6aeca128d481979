"""Level of the sets of classes and prior of the images in use, as users give them; read without importing torch."""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from fer_lightning.config.messages import did_you_mean
from fer_lightning.metrics import prior
from fer_lightning.presentation.printable import shortened
from fer_lightning.presentation.words import percent
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import as_path, check_characters, read_bytes

UNIFORM, TRAINING, ESTIMATED = "uniform", "training", "estimated"

MAX_FILE = 2**20
"""Maximum bytes of a file of shares."""

MAX_SHARE = 1e15
"""Of a class, or the count of its images; larger numbers lose ones when they are added."""

GivenPrior = str | Path | Mapping[str, float]
"""``uniform``, ``training``, ``estimated``, a file of class and share, or shares by class."""


@dataclass(frozen=True)
class PriorOptions:
    """What a user asks for.

    Attributes:
        level: the share of images of each class whose set of classes is to hold the true class; None: not given.
        prior: see ``GivenPrior``; None leaves the probabilities as they are.
        written: how errors name ``level`` and ``prior`` with their values.
    """

    level: float | None = None
    prior: GivenPrior | None = None
    written: tuple[str, str] = field(default=("--set {}", "--prior {}"), compare=False)

    @property
    def level_given(self) -> str:
        """The level as the user wrote it."""
        return self.written[0].format(self.level)

    @property
    def prior_given(self) -> str:
        """The prior as the user wrote it."""
        return shortened(self.written[1].format(self.prior), 200)

    def check(self) -> None:
        """Check what can be checked without a model.

        Raises:
            UserError: an invalid level or prior, or a file that is missing.
        """
        if self.level is not None and not (isinstance(self.level, Real) and 0 < self.level < 1):
            raise UserError(f"{self.level_given}: must lie between 0 and 1, such as 0.9")
        if self.prior is None or isinstance(self.prior, Mapping):
            return
        if not isinstance(self.prior, str | Path):
            raise UserError(
                f"{self.prior_given}: is not a prior; give uniform, training, estimated, a JSON or CSV file of class "
                "and share, or a mapping of class to share"
            )
        if self.prior not in (UNIFORM, TRAINING, ESTIMATED) and not as_path(self.prior, "prior").is_file():
            raise UserError(
                f"{self.prior_given}: no such file; give uniform, training, estimated, or a JSON or CSV file of "
                "class and share"
            )


@dataclass(frozen=True, kw_only=True)
class PriorRequest:
    """The options ``--set`` and ``--prior`` of a command.

    Attributes:
        level: see ``PriorOptions``.
        prior: see ``PriorOptions``, as text.
    """

    level: float | None = None
    prior: str | None = None

    @property
    def prior_options(self) -> PriorOptions:
        """The options of sets and prior."""
        return PriorOptions(self.level, self.prior)


def given_prior(options: PriorOptions, classes: Sequence[str], class_counts: Sequence[int]) -> np.ndarray | None:
    """The shares of classes that ``options.prior`` names, float64, shape (C,), summing to 1; None for ``estimated``.

    Args:
        options: with a prior; shares may be counts. A file is a JSON object, or CSV lines of class and number with or
            without a header.
        classes: names of the C classes; shares are of all of them, and of no other.
        class_counts: training images of each class.

    Raises:
        UserError: in one line, what cannot be read as shares of the model's classes.
    """
    if options.prior == ESTIMATED:
        return None
    if options.prior == UNIFORM:
        return np.full(len(classes), 1 / len(classes))
    if options.prior == TRAINING:
        counts = np.array(class_counts, dtype=np.float64)
        if not counts.any():
            raise UserError(f"{options.prior_given}: the checkpoint does not know its training images; give a file")
        return np.asarray(counts / counts.sum())
    try:
        if isinstance(options.prior, Mapping):
            return _shares(list(options.prior.items()), classes)
        return _shares(_entries(Path(str(options.prior))), classes)
    except FileNotFoundError:
        raise UserError(f"{options.prior_given}: no such file; give a JSON or CSV file of class and share") from None
    except RecursionError:
        raise UserError(f"{options.prior_given}: is nested too deeply for shares; give class and share") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{options.prior_given}: {shortened(one_line(error), 200)}") from None


def _share(name: str, given: Any) -> float:
    # float() takes 1_000, digits of any script and True too.
    is_plain = not isinstance(given, bool) and (not isinstance(given, str) or (given.isascii() and "_" not in given))
    try:
        share = float(given) if is_plain else math.nan
    except (ValueError, TypeError, OverflowError):  # OverflowError: a whole number of 400 digits
        share = math.nan
    if not 0 <= share < MAX_SHARE:
        raise ValueError(
            f"{name}: {shortened(str(given), 50)!r}; a share or count is a number from 0 to {MAX_SHARE:.0e}"
        )
    return share


def _shares(entries: Sequence[tuple[str, Any]], classes: Sequence[str]) -> np.ndarray:
    names = Counter(name for name, _ in entries)
    if twice := next((name for name, number in names.items() if number > 1), None):
        raise ValueError(f"{twice!r} is given twice; give each class once")
    unknown = next((name for name in names if name not in classes), None)
    if unknown is not None:
        hint = did_you_mean(str(unknown), list(classes))
        raise ValueError(
            f"{unknown!r} is not a class of the model{hint}; give a share for each of {', '.join(classes)}"
        )
    if missing := [name for name in classes if name not in names]:
        raise ValueError(f"lacks {', '.join(missing)}; give 0 for a class that does not occur")
    numbers = dict(entries)
    shares = np.array([_share(name, numbers[name]) for name in classes])
    if not shares.any():
        raise ValueError("the shares or counts are all 0")
    return np.asarray(shares / shares.sum())


def _entries(path: Path) -> list[tuple[str, Any]]:
    text = read_bytes(path, MAX_FILE).decode("utf-8-sig")
    return _json_entries(text) if path.suffix.lower() == ".json" else _csv_entries(text)


def _json_entries(text: str) -> list[tuple[str, Any]]:
    entries = json.loads(text, object_pairs_hook=list)
    check_characters(text, entries)
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


def describe_prior(
    option: GivenPrior, shares: np.ndarray, classes: Sequence[str], estimate: prior.Estimate | None
) -> str:
    """One line: the prior that was used, the largest shares first, and whether an estimate is unsteady."""
    order = np.argsort(-shares, kind="stable")[:10]
    listed = ", ".join(f"{classes[k]} {percent(float(shares[k]), digits=0)}" for k in order)
    line = f"prior {option}: {listed}{', ...' if len(classes) > len(order) else ''}"
    if estimate is None:
        return line
    line += f" (from {estimate.images:,} images"
    needed = prior.IMAGES_PER_CLASS * len(classes)
    return line + (f"; too few for a steady estimate, which takes {needed:,})" if estimate.few else ")")
