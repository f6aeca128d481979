"""Calibration: negative log-likelihood, calibration errors, temperature scaling."""

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special
import scipy.stats

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the expected calibration error (Guo et al. 2017 use 15)."""


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of the top label (Guo et al. 2017, eq. 3).

    Bins are (0, 1/bins], ..., (1 - 1/bins, 1], so a confidence of exactly 1 is in the last one.

    Args:
        probabilities: shape (n, C), rows summing to 1.
        labels: int, shape (n,).
        bins: number of equal-width bins.
    """
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    # |sum of confidence - sum of hits| / n per bin is |mean confidence - accuracy| times the bin's share.
    gaps = np.bincount(index, weights=confidence - hit, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature: models without a mistake and without any skill reach them."""

_TINY = np.finfo(np.float32).tiny


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T): what the softmax of the logits / T would have been; shape (n, C)."""
    logits = np.log(np.maximum(probabilities, _TINY)) / temperature
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def is_temperature(value: float) -> bool:
    """Whether a number can be one of ``fit_temperature``, rounding aside; others may divide by nothing."""
    return COLDEST / 1.01 <= value <= HOTTEST * 1.01


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; NaN without images."""
    # A float32 softmax can round a probability to 0; the smallest float32 keeps the log finite.
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], _TINY)
    return float(-np.log(likelihood).mean()) if len(labels) else np.nan


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the NLL of softmax(log p / T) (Guo et al. 2017, section 4.2).

    Fit it on validation images: on test images it would be optimistic. The NLL is convex in 1/T, so there is one
    minimum; it is searched between ``COLDEST`` and ``HOTTEST``.

    Args:
        probabilities: shape (n, C), rows summing to 1.
        labels: int in 0..C-1, shape (n,).

    Raises:
        ValueError: no images, or probabilities that are not finite.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if not len(labels) or len(labels) != len(probabilities):
        raise ValueError(f"{len(probabilities)} probabilities and {len(labels)} labels; give both for each image")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities contain values that are not finite")
    logs = np.log(np.maximum(probabilities, _TINY))
    chosen = logs[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((scipy.special.logsumexp(inverse * logs, axis=1) - inverse * chosen).mean())

    optimum = scipy.optimize.minimize_scalar(
        loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(optimum.x))


def classwise_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Calibration error of each class's probability, not only of the top label, averaged over classes.

    Kull et al. (2019), "Beyond temperature scaling", eq. 4: equal-width bins (0, 1/bins], ...; NaN without images.
    """
    n, classes = probabilities.shape
    if not n:
        return np.nan
    bins = CALIBRATION_BINS
    index = np.clip(np.ceil(probabilities * bins).astype(np.int64) - 1, 0, bins - 1) + bins * np.arange(classes)
    gaps = probabilities - (labels[:, None] == np.arange(classes))
    sums = np.bincount(index.ravel(), weights=gaps.ravel(), minlength=bins * classes)
    return float(np.abs(sums).sum() / (n * classes))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy (NaN in empty bins) and count of each of the ECE's bins; three arrays (bins,)."""
    bins = CALIBRATION_BINS
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, weights=each, minlength=bins) / count for each in (confidence, correct)]
    return means[0], means[1], count
