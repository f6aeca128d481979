"""The scores of a run: their keys in ``metrics.json``, and how they are named and printed everywhere."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

NOTHING = "-"
"""Printed where there is no number."""


class MetricFormat(NamedTuple):
    """How a metric is printed: heading, factor, decimals, and whether lower is better."""

    heading: str
    factor: float = 100
    digits: int = 1
    lower: bool = False

    def words(self, value: Any, sign: str = "") -> str:
        """Format a value; ``sign="+"`` for a difference. ``NOTHING`` for None and NaN."""
        return NOTHING if pd.isna(value) else f"{value * self.factor:{sign}z.{self.digits}f}"

    def interval(self, low: float, high: float, sign: str = "") -> str:
        """Format an interval; empty when there is none."""
        return "" if pd.isna(low) or pd.isna(high) else f"{self.words(low, sign)} to {self.words(high, sign)}"


SCORES = {
    "accuracy": MetricFormat("accuracy"),
    "balanced_accuracy": MetricFormat("balanced accuracy"),
    "f1_macro": MetricFormat("macro F1"),
    "worst_recall": MetricFormat("worst-class recall"),
    "nll": MetricFormat("NLL", factor=1, digits=3, lower=True),
    "ece": MetricFormat("ECE", lower=True),
}
"""Key -> format; shares in percent, NLL in nats."""

FURTHER = {
    "g_mean": MetricFormat("G-mean"),
    "mcc": MetricFormat("MCC", factor=1, digits=3),
    "auroc_macro": MetricFormat("macro AUROC"),
    "average_precision_macro": MetricFormat("macro AP"),
    "aurc": MetricFormat("AURC", lower=True),
}
"""Scores shown in a table of their own; ``metrics.json`` may lack them, as the predictions give them."""

GROUPS = {
    "recall_many": MetricFormat("recall, many"),
    "recall_medium": MetricFormat("recall, medium"),
    "recall_few": MetricFormat("recall, few"),
}
"""Recall by training images of a class, with more than ``classification.FEW_CLASSES`` classes only."""

TRIAL = ("val/accuracy", "val/balanced_accuracy", "val/f1_macro", "val/nll")
"""Scores in ``metrics.json`` that settings are ranked and shown by (``test=false``)."""

ALL_SCORES = {**SCORES, **FURTHER, **GROUPS}

SHARES = (
    *("accuracy", "balanced_accuracy", "f1_macro", "worst_recall", "ece", "recall", "precision", "f1"),
    *("g_mean", "auroc_macro", "average_precision_macro", "aurc", *GROUPS, "ece_calibrated", "set_coverage"),
)
"""Scores from 0 to 1."""

HEADLINES = ("accuracy", "balanced_accuracy", "f1_macro", "worst_recall")
"""The scores that are shown first."""

SHARE = MetricFormat("")
"""A share in percent that has no heading of its own."""


def contradiction(scores: Mapping[str, Any], prefix: str, classes: Sequence[str]) -> str | None:
    """What a score of all classes and those of each class say against each other; None where they agree.

    Args:
        scores: keys as in ``metrics.json``; what is missing is not checked.
        prefix: of the keys, such as ``test/``.
        classes: names of the classes.
    """

    def of_classes(score: str) -> list[float]:
        values = [scores.get(f"{prefix}{score}/{name}", math.nan) for name in classes]
        defined = [value for value in values if value is not None]
        return defined if all(isinstance(value, int | float) and math.isfinite(value) for value in defined) else []

    recall, f1 = of_classes("recall"), of_classes("f1")
    limits = {
        "balanced_accuracy": (statistics.fmean(recall),) * 2 if recall else None,
        "worst_recall": (min(recall),) * 2 if recall else None,
        "accuracy": (min(recall), max(recall)) if recall else None,
        "f1_macro": (statistics.fmean(f1),) * 2 if f1 else None,
    }
    for score, limit in limits.items():
        given = scores.get(f"{prefix}{score}")
        if given is not None and limit is not None and not limit[0] - 1e-3 <= given <= limit[1] + 1e-3:
            return f"{prefix}{score} is {given:.4f}, which the scores of its classes rule out"
    return None


def limits(key: str, classes: int) -> tuple[float, float]:
    """The lowest and the highest value that a score can have.

    Args:
        key: such as ``test/recall/happy``.
        classes: their number, which is the size of the largest set of classes.
    """
    score = key.partition("/")[2].partition("/")[0]
    if score in SHARES or key == "set_level":
        return 0.0, 1.0
    return {
        "mcc": (-1.0, 1.0),
        "nll": (0.0, math.inf),
        "nll_calibrated": (0.0, math.inf),
        "set_size": (0.0, float(classes)),
    }.get(score, (-math.inf, math.inf))
