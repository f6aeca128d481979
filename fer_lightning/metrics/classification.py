"""Scores of a classifier: per class, macro-averaged, and calibration.

Numpy only, so that reading finished runs needs no torch; ``model.step_metrics`` has those of training. Conventions are
those of scikit-learn and torchmetrics: balanced accuracy averages recall over the classes that have images,
macro F1 averages over the classes that have images or predictions, and the precision of a class that is never
predicted is 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fer_lightning.metrics.calibration import calibration_error, nll
from fer_lightning.metrics.names import SCORES


def confusion_matrix(labels: npt.ArrayLike, predictions: npt.ArrayLike, classes: int) -> np.ndarray:
    """Count images by true class (row) and predicted class (column); int64, shape (C, C)."""
    labels, predictions = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be equally long")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if len(values) and (values.min() < 0 or values.max() >= classes):
            raise ValueError(f"{name} must be in 0..{classes - 1}, got {values.min()}..{values.max()}")
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per-class precision, recall and F1 of confusion matrices.

    Args:
        matrix: counts, shape (..., C, C), rows true, columns predicted.

    Returns:
        Three float64 arrays, shape (..., C). Recall is NaN for a class without images; precision and F1 are
        NaN for a class with neither images nor predictions.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    images, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = hits / images
        precision = np.where((predicted == 0) & (images > 0), 0.0, hits / predicted)
        f1 = 2 * hits / (images + predicted)
    return precision, recall, f1


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Macro F1 of confusion matrices, shape (..., C, C) -> (...); NaN where a matrix is empty."""
    _, _, f1 = precision_recall_f1(matrix)
    defined = ~np.isnan(f1)
    count = defined.sum(axis=-1)
    return np.where(count > 0, np.where(defined, f1, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def classification_metrics(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[str], prefix: str = "test/"
) -> dict[str, float | None]:
    """All scores of one set of images, under the keys of ``metrics.json``.

    Args:
        probabilities: shape (n, C), rows summing to 1.
        labels: int in 0..C-1, shape (n,).
        classes: names of the C classes.
        prefix: put before every key.

    Returns:
        ``n``, ``accuracy``, ``balanced_accuracy``, ``f1_macro``, ``worst_recall``, ``nll`` (mean negative
        log-likelihood in nats), ``ece``, and ``recall/``, ``precision/``, ``f1/`` + class. What is
        undefined is None (a class without images; everything when n = 0), so that the result is valid JSON.

    Raises:
        ValueError: wrong shapes, labels out of range, or probabilities that are not finite numbers.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    expected = (len(labels), len(classes))
    if probabilities.shape != expected:
        raise ValueError(f"probabilities must have shape {expected}, got {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities contain values that are not finite")
    matrix = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    precision, recall, f1 = precision_recall_f1(matrix)
    n = len(labels)
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    if n:
        scores = {
            "accuracy": float(np.trace(matrix) / n),
            "balanced_accuracy": float(np.nanmean(recall)),
            "f1_macro": float(macro_f1(matrix)),
            "worst_recall": float(np.nanmin(recall)),
            "nll": nll(probabilities, labels),
            "ece": calibration_error(probabilities, labels),
        }
    per_class = {
        f"{name}/{class_name}": None if np.isnan(value) else float(value)
        for name, values in (("recall", recall), ("precision", precision), ("f1", f1))
        for class_name, value in zip(classes, values, strict=True)
    }
    return {prefix + key: value for key, value in {"n": n, **scores, **per_class}.items()}
