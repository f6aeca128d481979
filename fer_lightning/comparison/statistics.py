"""The statistics of a comparison that need no pairs: pure functions on arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.special
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar

from fer_lightning.metrics.classification import class_scores, mean_f1

RESAMPLES = 10_000
"""Bootstrap resamples of the test images."""

LEVEL = 0.95
"""Confidence of every interval."""

_BLOCK = 500


def t_interval(values: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, sample deviation, and Student's t interval of independent values, shape (k,).

    A NaN among the values makes all four NaN; one value has a mean only.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < 2 or np.isnan(mean):
        return mean, np.nan, np.nan, np.nan
    deviation = float(values.std(ddof=1))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / np.sqrt(len(values))
    return mean, deviation, mean - half, mean + half


def image_interval(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """The interval of one model's score over test images: normal, with the deviation of the resampled scores (R,).

    NaN without resamples, and where all are the same.
    """
    known = resampled[~np.isnan(resampled)]
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    half = float(scipy.special.ndtri((1 + LEVEL) / 2)) * deviation if deviation else np.nan
    return value - half, value + half


def scores(matrices: np.ndarray) -> np.ndarray:
    """Accuracy, balanced accuracy and macro F1 of confusion matrices, (..., C, C) -> (..., 3); NaN for empty ones.

    As in ``metrics``: classes without images do not count in balanced accuracy.
    """
    return _scores_of_sums(np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1), matrices.sum(axis=-2))


def _scores_of_sums(hits: np.ndarray, images: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """``scores`` of the diagonal, the row sums and the column sums of matrices, each of shape (..., C)."""
    _, recall, f1 = class_scores(hits, images, predicted)
    present = ~np.isnan(recall)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = hits.sum(axis=-1) / images.sum(axis=-1)
        balanced = np.where(present, recall, 0).sum(axis=-1) / present.sum(axis=-1)
    return np.stack([accuracy, balanced, mean_f1(f1)], axis=-1)


def bootstrap_scores(
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    clusters: Sequence[np.ndarray],
    classes: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Scores of runs on resampled test images, the same resample for all runs.

    Clusters are drawn with replacement, whole (Davison and Hinkley 1997, section 3.8), from those of all runs. An image
    has the same weight in every run that was tested on it, so runs with one test set are paired, runs with disjoint
    test sets are independent, and runs with overlapping ones (seeds of the paper's split) correlate by the overlap.

    Args:
        labels: of each run, int in 0..classes-1, shape (n of the run,).
        predictions: of each run, likewise.
        clusters: of each run, likewise; images with the same number, in whatever run, are drawn together.
        classes: C.
        resamples: R.
        seed: of the resampling.

    Returns:
        float64 (R, runs, 3): accuracy, balanced accuracy, macro F1.
    """
    numbers, together = np.unique(np.concatenate(clusters), return_inverse=True)
    groups = len(numbers)
    starts = np.cumsum([0, *(len(part) for part in clusters)])
    counts = [
        _Cells.of(truth, answer, together[start:end], classes, groups)
        for truth, answer, start, end in zip(labels, predictions, starts[:-1], starts[1:], strict=True)
    ]
    rng = np.random.default_rng(seed)
    resampled = np.empty((resamples, len(labels), 3))
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        drawn = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).T.astype(np.float32)
        for run, count in enumerate(counts):
            resampled[start : start + size, run] = _scores_of_sums(*count.sums(weights))
    return resampled


class _Cells(NamedTuple):
    """The cells of a run's confusion matrix that are not 0: of a thousand classes, most are.

    Attributes:
        counts: how often each cluster hits each cell, shape (cells, clusters).
        margins: 1 where a cell adds to the diagonal, the row sum or the column sum of a class, shape (3 C, cells).
    """

    counts: scipy.sparse.csr_array
    margins: scipy.sparse.csr_array

    @classmethod
    def of(
        cls, labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray, classes: int, groups: int
    ) -> "_Cells":
        cells, place = np.unique(labels * classes + predictions, return_inverse=True)
        ones = np.ones(len(place), np.float32)
        counts = scipy.sparse.coo_array((ones, (place, clusters)), shape=(len(cells), groups))  # sums duplicates
        truth, answer = np.divmod(cells, classes)
        right = np.flatnonzero(truth == answer)
        rows = np.concatenate([truth[right], classes + truth, 2 * classes + answer])
        columns = np.concatenate([right, np.arange(len(cells)), np.arange(len(cells))])
        ones = np.ones(len(rows), np.float32)
        margins = scipy.sparse.coo_array((ones, (rows, columns)), shape=(3 * classes, len(cells)))
        return cls(counts.tocsr(), margins.tocsr())

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Diagonal, row sums and column sums with the clusters weighted, shape (clusters, R) -> (3, R, C)."""
        sums = self.margins @ (self.counts @ weights)
        return np.asarray(sums).reshape(3, -1, weights.shape[1]).transpose(0, 2, 1)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values, which control the family-wise error; NaN stays NaN and is not counted."""
    # Not statsmodels' multipletests: it collects garbage at every call, which takes seconds once torch is loaded.
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, axis=None)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def majority_vote(predictions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The class that most models predict; of tied classes the one with the highest mean probability.

    Args:
        predictions: int, shape (models, n).
        probabilities: shape (models, n, C).

    Returns:
        int64, shape (n,).
    """
    votes = (predictions[:, :, None] == np.arange(probabilities.shape[-1])).sum(axis=0)
    return (votes + probabilities.mean(axis=0) / 2).argmax(axis=1)  # a mean probability never outweighs a vote


def exact_mcnemar(right: np.ndarray, baseline_right: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test on the same images, bool (n,): only the first right, only the second right, p."""
    table = np.array(
        [
            [np.sum(right & baseline_right), np.sum(right & ~baseline_right)],
            [np.sum(~right & baseline_right), np.sum(~right & ~baseline_right)],
        ]
    )
    only, baseline_only = int(table[0, 1]), int(table[1, 0])
    p = float(mcnemar(table, exact=True).pvalue) if only + baseline_only else 1.0
    return only, baseline_only, p


def mean_ranks(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Ranks of methods within blocks (Demsar 2006): 1 is the highest value, ties share.

    Args:
        values: shape (blocks, methods), blocks >= 2, methods >= 2, without NaN.

    Returns:
        Mean ranks (methods,), Friedman's p (NaN for two methods, where scipy has none), and Nemenyi's critical
        difference: mean ranks further apart differ at 5 %.
    """
    blocks, methods = values.shape
    ranks = scipy.stats.rankdata(-values, axis=1).mean(axis=0)
    same = bool((values == values[:, :1]).all())
    p = float(scipy.stats.friedmanchisquare(*values.T).pvalue) if methods > 2 and not same else np.nan
    quantile = scipy.stats.studentized_range.ppf(LEVEL, methods, np.inf) / np.sqrt(2)
    return ranks, p, float(quantile * np.sqrt(methods * (methods + 1) / (6 * blocks)))
