"""Sets of classes that hold the true class at a chosen rate, in each class: label-conditional conformal prediction.

Vovk (2012), "Conditional validity of inductive conformal predictors", section 4; Sadinle, Lei and Wasserman (2019),
"Least ambiguous set-valued classifiers with bounded error levels". A class is in the set of an image if its probability
is at least as high as that of all but a few validation images of this class. For images that are exchangeable with the
validation images of their class, the set holds the true class at the chosen rate, in every class and whatever the
shares of the classes are. The price is the size of the sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9
"""The share of images of each class whose set holds the true class, unless another one is asked for."""

MOST_KEPT = 256
"""Order statistics kept per class."""

MOST_KEPT_IN_ALL = 16_384
"""Order statistics kept of all classes together; of each class at least ``LEAST_KEPT``."""

LEAST_KEPT = 20

DIGITS = 6
"""Decimals of a kept score, rounded up: a rounded set is never smaller than the exact one."""


@dataclass(frozen=True)
class ClassScores:
    """The nonconformity scores (1 - probability of the true class) of the validation images of each class.

    Attributes:
        kept: of each class, ascending scores: all of them, or equally spaced ones where there are many.
        counts: validation images of each class.
    """

    kept: Sequence[Sequence[float]]
    counts: Sequence[int]

    def thresholds(self, level: float) -> np.ndarray:
        """The score up to which a class is in a set, float64, shape (C,).

        It is the ceil((n + 1) level)-th smallest of the class's n scores, or the next larger that is kept. Where n is
        too small for the level, it is infinite: the class is in every set.
        """
        limits = np.full(len(self.counts), np.inf)
        for k, (scores, n) in enumerate(zip(self.kept, self.counts, strict=True)):
            rank = rank_needed(n, level)
            if rank <= n:
                limits[k] = scores[int(np.searchsorted(_ranks(n, len(scores)), rank))]
        return limits


def rank_needed(n: int, level: float) -> int:
    """Which of n ascending scores is the threshold; n + 1 or more where n images are too few."""
    return int(np.ceil((n + 1) * level - 1e-9))  # 0.9 * 10 is not above 9


def images_needed(level: float) -> int:
    """The fewest validation images of a class with which it can be left out of a set."""
    n = int(np.ceil(level / (1 - level) - 1e-9))
    return n if rank_needed(n, level) <= n else n + 1


def _ranks(n: int, kept: int) -> np.ndarray:
    """Ranks, from 1, of the kept ones of n scores; equally spaced, the last one always."""
    return np.ceil(np.arange(1, kept + 1) * n / kept - 1e-9).astype(np.int64)


def fit(probabilities: np.ndarray, labels: np.ndarray) -> ClassScores:
    """Take the scores of validation images.

    Args:
        probabilities: shape (n, C), calibrated; the same kind as in ``prediction_sets``.
        labels: int in 0..C-1, shape (n,).
    """
    classes = probabilities.shape[1]
    most = min(MOST_KEPT, max(LEAST_KEPT, MOST_KEPT_IN_ALL // classes))
    kept, counts = [], []
    for k in range(classes):
        scores = np.sort(1 - probabilities[labels == k, k])
        chosen = scores[_ranks(len(scores), min(len(scores), most)) - 1]
        rounded = np.minimum(np.ceil(chosen * 10**DIGITS) / 10**DIGITS, 1.0)
        kept.append([round(float(score), DIGITS) for score in rounded])
        counts.append(len(scores))
    return ClassScores(kept, counts)


def prediction_sets(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which classes are in the set of each image; bool, shape (n, C).

    A set that would be empty holds the most probable class, which can only raise the rate.

    Args:
        probabilities: shape (n, C).
        thresholds: shape (C,), from ``ClassScores.thresholds``.
    """
    sets = 1 - probabilities <= thresholds + 10.0**-DIGITS / 2
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] |= ~sets.any(axis=1)
    return np.asarray(sets)


def named_sets(probabilities: np.ndarray, thresholds: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """The names of the classes in the set of each image, the most probable first; arguments as ``prediction_sets``."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sets = prediction_sets(probabilities, thresholds)
    return [[classes[k] for k in ranked if held[k]] for ranked, held in zip(order, sets, strict=True)]


def coverage(sets: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, float]:
    """How often sets hold the true class, and how large they are.

    Args:
        sets: bool, shape (n, C).
        labels: int in 0..C-1, shape (n,).

    Returns:
        The share of images whose set holds the true class; the same for each class, shape (C,), NaN without images; the
        mean number of classes in a set. NaN without images.
    """
    if not len(labels):
        return np.nan, np.full(sets.shape[1], np.nan), np.nan
    held = sets[np.arange(len(labels)), labels]
    images = np.bincount(labels, minlength=sets.shape[1])
    with np.errstate(invalid="ignore"):
        by_class = np.bincount(labels, weights=held, minlength=sets.shape[1]) / images
    return float(held.mean()), by_class, float(sets.sum(axis=1).mean())
