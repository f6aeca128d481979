"""Selective prediction: how the error falls where a model leaves its least confident answers to somebody else.

El-Yaniv and Wiener (2010), "On the foundations of noise-free selective classification"; Geifman and El-Yaniv (2017),
"Selective classification for deep neural networks".
"""

import numpy as np

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)
"""Shares of answered images at which the report shows the error."""


def selective_risks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Error rate among the k most confident answers, for k = 1..n; float64, shape (n,).

    Confidence is the largest probability. Images of equal confidence are answered in random order: each counts with
    the mean error of all of them, so that the result does not depend on the order of the images.

    Args:
        probabilities: shape (n, C).
        labels: int in 0..C-1, shape (n,).
    """
    wrong = (probabilities.argmax(axis=1) != labels).astype(np.float64)
    _, tied = np.unique(-probabilities.max(axis=1), return_inverse=True)
    expected = np.bincount(tied, weights=wrong) / np.bincount(tied) if len(labels) else wrong
    return np.asarray(np.cumsum(expected[np.sort(tied)]) / np.arange(1, len(labels) + 1))


def aurc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean of ``selective_risks``; NaN without images."""
    return float(selective_risks(probabilities, labels).mean()) if len(labels) else np.nan


def risk_at(risks: np.ndarray, coverage: float) -> float:
    """Error rate when a share of the images is answered, from ``selective_risks``; at least one image is."""
    return float(risks[max(1, round(coverage * len(risks))) - 1])
