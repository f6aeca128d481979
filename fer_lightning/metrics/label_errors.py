"""Labels that are probably wrong, found from probabilities of models that were not trained on the images.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 70. Its terms: an image's *self-confidence* is the probability of its own label; its *normalized margin* is that
minus the largest other probability.
"""

from dataclasses import dataclass

import numpy as np


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean self-confidence of the images with each label (eq. 2): float64, (C,); infinite for a label without images.

    A threshold of its own for every class: a class on which the model is rarely sure, such as a rare one, needs a
    lower probability to be believed than one on which it is sure.

    Args:
        probabilities: (n, C), out of fold.
        labels: (n,), indices of classes.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=self_confidence(probabilities, labels), minlength=probabilities.shape[1])
    return np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)


def confident_classes(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The most probable of the classes that reach their threshold (eq. 1): int64, (n,); -1 where none does."""
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where((probabilities >= thresholds).any(axis=1), reached.argmax(axis=1), -1)


def self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the given label: (n,)."""
    return probabilities[np.arange(len(labels)), labels]


def normalized_margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the given label minus the largest of the others: (n,), from -1 (surely wrong) to 1."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return self_confidence(probabilities, labels) - others.max(axis=1)


@dataclass(frozen=True)
class LabelErrors:
    """What confident learning says of n labels.

    Attributes:
        suggested: int64, (n,), the confident class of each image; -1 where there is none.
        wrong: bool, (n,), whether the label is probably wrong: there is a confident class, and it is another one.
        margin: (n,), the normalized margin.
        confidence: (n,), the self-confidence.
        joint: (C, C), estimated number of images by given label (rows) and true one (columns); sums to n (eq. 3).
    """

    suggested: np.ndarray
    wrong: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray
    joint: np.ndarray

    @property
    def ranked(self) -> np.ndarray:
        """Positions of the probably wrong labels, the lowest margin first."""
        rows = np.flatnonzero(self.wrong)
        return rows[np.argsort(self.margin[rows], kind="stable")]

    @property
    def estimated(self) -> float:
        """Estimated number of wrong labels, those among images without a confident class included."""
        return float(self.joint.sum() - np.trace(self.joint))


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Find the labels that are probably wrong: those off the diagonal of the confident joint.

    Args:
        probabilities: float, (n, C), of models that were not trained on the image.
        labels: int64, (n,), indices of classes.
    """
    suggested = confident_classes(probabilities, class_thresholds(probabilities, labels))
    wrong = (suggested >= 0) & (suggested != labels)
    classes = probabilities.shape[1]
    confident = suggested >= 0
    counted = np.bincount(labels[confident] * classes + suggested[confident], minlength=classes * classes)
    counted = counted.reshape(classes, classes).astype(np.float64)
    given = np.bincount(labels, minlength=classes)
    sums = counted.sum(axis=1, keepdims=True)
    shares = np.divide(counted, sums, out=np.eye(classes), where=sums > 0)  # no confident image: labels are believed
    margin, confidence = normalized_margin(probabilities, labels), self_confidence(probabilities, labels)
    return LabelErrors(suggested, wrong, margin, confidence, shares * given[:, None])


def precision_recall(order: np.ndarray, truly_wrong: np.ndarray, decided: np.ndarray) -> tuple[float, float]:
    """Precision and recall of a list of images as the set of wrong labels.

    Args:
        order: positions of the listed images.
        truly_wrong: bool, (n,), whether the label is wrong.
        decided: bool, (n,), whether that is known; other images count for neither.

    Returns:
        Share of the listed images that are wrong, and share of the wrong images that are listed; NaN without any.
    """
    listed = order[decided[order]]
    hits, wrong = int(truly_wrong[listed].sum()), int((truly_wrong & decided).sum())
    return (hits / len(listed) if len(listed) else np.nan, hits / wrong if wrong else np.nan)
