"""Differences of paired methods: estimates, tests, intervals, and what could have been found.

Two methods trained with the same seeds and tested on the same images differ by two random effects that cross: the
seeds, whose number is small, and the test images. This is the design of multi-reader multi-case studies in radiology
(seeds correspond to readers, images to cases). The variance of the mean difference of k pairs is S2/k + c (Obuchowski
and Rockette 1995, for two methods). S2 is the sample variance of the k differences; S2/k is the part due to training
and to the images' effect on single pairs, with k - 1 degrees of freedom. c is the mean covariance between the image
resamples of two pairs, 0 if negative: the part due to the choice of test images, common to all pairs, with as many
degrees of freedom as images. The critical value for such a sum is that of Cochran and Cox (1957, "Experimental
Designs"): (t S2/k + z c) / (S2/k + c), with Student's t for the degrees of freedom of S2 and the normal z.

S2 of few pairs is noisy. From three comparisons on it is moderated (``moderate``), which shortens the intervals of
three seeds by about a third and keeps their coverage (docs/comparison.md; tests/support/simulation.py). Resampling the
seeds with replacement, or estimated degrees of freedom (Hillis 2007), give intervals that are too short.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.special

from fer_lightning.comparison.statistics import LEVEL, holm

POWER = 0.8
"""The power of the smallest difference that is reported as detectable."""

FEWEST_MODERATED = 3
"""Comparisons with a variance over pairs, from which on their variances are moderated."""

_LEAST_P = 1e-15


class PairedDifference(NamedTuple):
    """One comparison, before its family is known.

    Attributes:
        value: the mean of the differences; NaN where one of them is.
        variance: S2, the sample variance of the differences; NaN for fewer than two pairs.
        images: c, the variance of the mean that the choice of test images causes; NaN where it is unknown.
        pairs: k.
    """

    value: float
    variance: float
    images: float
    pairs: int


@dataclass(frozen=True)
class Variances:
    """The variance of mean differences in parts, arrays of one shape.

    Attributes:
        training: S2/k; 0 for one pair.
        freedom: degrees of freedom of S2; without meaning where ``training`` is 0.
        images: c.
    """

    training: np.ndarray
    freedom: np.ndarray
    images: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """S2/k + c."""
        return self.training + self.images

    def half_widths(self, p: np.ndarray | float) -> np.ndarray:
        """The difference whose two-sided p-value is ``p``: half the width of the interval of confidence 1 - p."""
        # Quantiles from scipy.special: a hundred times faster than through scipy.stats.
        normal = scipy.special.ndtri(np.asarray(p) / 2)
        finite = np.isfinite(self.freedom)
        student = np.where(finite, scipy.special.stdtrit(np.where(finite, self.freedom, 1), np.asarray(p) / 2), normal)
        weighted = student * self.training + normal * self.images
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.total > 0, -weighted / np.sqrt(self.total), np.nan)


def paired_difference(differences: np.ndarray, resampled: np.ndarray) -> PairedDifference:
    """Summarise the differences of k pairs of runs, each pair with a seed of its own.

    One pair has no variance over trainings: its c is the whole variance over images.

    Args:
        differences: shape (k,).
        resampled: the same differences on resampled images, shape (R, k); rows with NaN are left out.
    """
    pairs = len(differences)
    value = float(np.mean(differences)) if pairs else np.nan
    variance = float(np.var(differences, ddof=1)) if pairs > 1 else np.nan
    resampled = resampled[~np.isnan(resampled).any(axis=1)]
    if np.isnan(value) or len(resampled) < 2:
        return PairedDifference(value, variance, np.nan, pairs)
    covariance = np.atleast_2d(np.cov(resampled, rowvar=False))
    if pairs == 1:
        return PairedDifference(value, variance, float(covariance[0, 0]), pairs)
    images = float(covariance.sum() - np.trace(covariance)) / (pairs * (pairs - 1))
    return PairedDifference(value, variance, max(0.0, images), pairs)


def moderate(variances: np.ndarray, freedom: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Moderate sample variances by what they have in common (Smyth 2004, sections 3 and 6.2).

    The true variances are taken to follow a scaled inverse chi-squared distribution with d0 degrees of freedom around
    s0^2. Both are estimated from the mean and the variance of log S2 (method of moments with the inverse trigamma
    function). The moderated variance is (d0 s0^2 + d S2) / (d0 + d), with d0 + d degrees of freedom. d0 is infinite
    where the S2 vary no more than by chance; s0^2 is then the limit of its estimate, as in the paper, not the mean of
    S2, as in today's limma: comparisons with one baseline share its variance, and the mean is too small for them
    (family errors of 6 to 8 % in tests/support/simulation.py).

    Args:
        variances: S2 of the comparisons, shape (..., J), J >= 2. Zeros count as 1e-5 of the median when d0 and s0^2 are
            estimated; where the median is 0, nothing is moderated.
        freedom: d of each, shape (J,), all at least 1.
        most: the maximum of the moderated degrees of freedom: those that the comparisons have together.

    Returns:
        Moderated variances and their degrees of freedom, shape (..., J).
    """
    variances, freedom = np.broadcast_arrays(np.asarray(variances, np.float64), np.asarray(freedom, np.float64))
    median = np.median(variances, axis=-1, keepdims=True)
    estimable = median > 0
    positive = np.where(estimable, np.maximum(variances, 1e-5 * median), 1.0)
    logs = np.log(positive) - scipy.special.digamma(freedom / 2) + np.log(freedom / 2)
    centre = logs.mean(axis=-1, keepdims=True)
    spread = logs.var(axis=-1, ddof=1, keepdims=True)
    spread = spread - scipy.special.polygamma(1, freedom / 2).mean(axis=-1, keepdims=True)
    varies = spread > 0
    prior = 2 * inverse_trigamma(np.where(varies, spread, 1.0))
    scale = np.exp(centre + np.where(varies, scipy.special.digamma(prior / 2) - np.log(prior / 2), 0))
    moderated = np.where(varies, (prior * scale + freedom * variances) / (prior + freedom), scale)
    together = np.minimum(np.where(varies, prior + freedom, np.inf), most)
    return np.where(estimable, moderated, variances), np.where(estimable, together, freedom)


def inverse_trigamma(values: np.ndarray) -> np.ndarray:
    """Solve trigamma(x) = value > 0 by Newton's method on 1/trigamma, which is convex (Smyth 2004, appendix)."""
    x = 0.5 + 1 / values
    for _ in range(8):  # quadratic convergence; limma needs at most 6 steps
        trigamma = scipy.special.polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / scipy.special.polygamma(2, x)
    return np.where(values > 1e7, 1 / np.sqrt(values), np.where(values < 1e-6, 1 / values, x))


def p_values(values: np.ndarray, variances: Variances) -> np.ndarray:
    """Two-sided p-values of mean differences, of which ``variances.half_widths`` is the inverse.

    NaN where a value or its variance is unknown, or a value is not 0 and its variance is; 1 where both are 0.
    """
    values = np.abs(np.asarray(values, np.float64))
    # Bisection of log p for all values at once, from the least p that is reported to 1: 50 halvings give 13 digits.
    low, high = np.full(values.shape, np.log(_LEAST_P)), np.zeros(values.shape)
    for _ in range(50):
        middle = (low + high) / 2
        larger = variances.half_widths(np.exp(middle)) > values
        low, high = np.where(larger, middle, low), np.where(larger, high, middle)
    p = np.where(np.isnan(values) | np.isnan(variances.total), np.nan, np.exp((low + high) / 2))
    return np.where(variances.total == 0, np.where(values == 0, 1.0, np.nan), p)


def estimate(gaps: Sequence[PairedDifference], independent: int | None = None) -> pd.DataFrame:
    """Estimates of a family of J comparisons, which are corrected and moderated together.

    Args:
        gaps: the comparisons.
        independent: how many of them are independent of one another (rows less 1, where all pairs of rows are
            compared); default: all.

    Returns:
        One row per comparison, in points of 1. ``difference``; ``low`` and ``high``, its 95 % interval alone; ``p``,
        below 0.05 exactly where that interval excludes 0; ``p_holm`` (Holm 1979); ``low_all`` and ``high_all``,
        simultaneous 95 % intervals of the family (Bonferroni; Dunn 1961); ``detectable``, the true difference that is
        found at 5 % with ``POWER`` when it is tested alone, and ``detectable_all``, at 5 %/J, where Holm's correction
        begins. NaN where a comparison is unknown; those do not count in J.
    """
    values = np.array([gap.value for gap in gaps], np.float64)
    variances = family_variances(gaps, independent)
    p = p_values(values, variances)
    known = max(1, int(np.count_nonzero(~np.isnan(p))))
    alone, family, missed = (
        np.where(variances.total == 0, np.where(values == 0, 0.0, np.nan), variances.half_widths(level))
        for level in (1 - LEVEL, (1 - LEVEL) / known, 2 * (1 - POWER))
    )
    columns = {
        "difference": values,
        "low": values - alone,
        "high": values + alone,
        "p": p,
        "p_holm": holm(p),
        "low_all": values - family,
        "high_all": values + family,
        "detectable": alone + missed,
        "detectable_all": family + missed,
        "pairs": np.array([gap.pairs for gap in gaps], np.int64),
    }
    return pd.DataFrame(columns)


def family_variances(gaps: Sequence[PairedDifference], independent: int | None = None) -> Variances:
    """The variance of each comparison's mean, moderated where enough of them have one over pairs; as ``estimate``."""
    pairs = np.array([gap.pairs for gap in gaps], np.float64)
    variance = np.array([gap.variance for gap in gaps], np.float64)
    images = np.array([gap.images for gap in gaps], np.float64)
    freedom = np.maximum(pairs - 1, 1)
    repeated = (pairs > 1) & ~np.isnan(variance)
    if (count := np.count_nonzero(repeated)) >= FEWEST_MODERATED:
        together = freedom[repeated].mean() * min(count, independent or count)
        variance[repeated], freedom[repeated] = moderate(variance[repeated], freedom[repeated], together)
    training = np.where(repeated, variance / np.maximum(pairs, 1), np.where(pairs > 1, np.nan, 0.0))
    return Variances(training, freedom, images)
