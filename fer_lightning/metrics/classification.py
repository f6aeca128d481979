"""Scores of a classifier: of each class and averaged over them; ``classification_metrics`` adds those of probabilities.

Numpy only, so that reading finished runs needs no torch; ``model.step_metrics`` has those of training. Conventions are
those of scikit-learn and torchmetrics: balanced accuracy averages recall over the classes that have images,
macro F1 averages over the classes that have images or predictions, and the precision of a class that is never
predicted is 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fer_lightning.metrics.calibration import calibration_error, nll
from fer_lightning.metrics.discrimination import macro_areas
from fer_lightning.metrics.names import FURTHER, GROUPS, SCORES
from fer_lightning.metrics.selective import aurc

FEW_CLASSES = 20
"""Number of classes up to which each one is reported alone, without groups."""

MANY, FEW = 100, 20
"""Training images above which a class has many, and below which it has few (Liu et al. 2019, "Large-scale long-tailed
recognition in an open world", section 5)."""


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
    return class_scores(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2))


def class_scores(
    hits: np.ndarray, images: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``precision_recall_f1`` of the diagonal, the row sums and the column sums of matrices, each of shape (..., C)."""
    hits = hits.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = hits / images
        precision = np.where((predicted == 0) & (images > 0), 0.0, hits / predicted)
        f1 = 2 * hits / (images + predicted)
    return precision, recall, f1


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Macro F1 of confusion matrices, shape (..., C, C) -> (...); NaN where a matrix is empty."""
    return mean_f1(precision_recall_f1(matrix)[2])


def mean_f1(f1: np.ndarray) -> np.ndarray:
    """Mean over the classes whose F1 is not NaN, shape (..., C) -> (...); NaN without any."""
    defined = ~np.isnan(f1)
    count = defined.sum(axis=-1)
    return np.where(count > 0, np.where(defined, f1, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def g_mean(recall: np.ndarray) -> float:
    """Geometric mean of the recalls of the classes that have images (Kubat and Matwin 1997); 0 where one is 0.

    Args:
        recall: shape (C,), NaN for a class without images.
    """
    defined = recall[~np.isnan(recall)]
    if not len(defined):
        return np.nan
    return float(np.exp(np.log(defined).mean())) if defined.all() else 0.0


def matthews_correlation(matrix: np.ndarray) -> float:
    """Matthews correlation coefficient for several classes (Gorodkin 2004, R_K), from -1 to 1.

    0 where all images are of one class, or all predictions are, as in scikit-learn.

    Args:
        matrix: counts, shape (C, C), rows true, columns predicted.
    """
    n, hits = float(matrix.sum()), float(np.trace(matrix))
    images, predicted = matrix.sum(axis=1).astype(np.float64), matrix.sum(axis=0).astype(np.float64)
    spread = (n**2 - predicted @ predicted) * (n**2 - images @ images)
    return float((hits * n - images @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def grouped_recall(
    recall: Sequence[float | None], training_images: Sequence[int], prefix: str = "test/"
) -> dict[str, float | None]:
    """Mean recall of the classes with many, medium and few training images; empty for up to ``FEW_CLASSES`` classes.

    The groups of Liu et al. (2019): more than 100, 20 to 100, and fewer than 20 training images.

    Args:
        recall: of the C classes, None for a class without test images, which is left out.
        training_images: of the C classes.
        prefix: put before every key.

    Returns:
        ``recall_many``, ``recall_medium`` and ``recall_few``; None for a group without classes.
    """
    if len(recall) <= FEW_CLASSES:
        return {}
    grouped: dict[str, list[float]] = {key: [] for key in GROUPS}
    for value, n in zip(recall, training_images, strict=True):
        if value is not None:
            grouped["recall_many" if n > MANY else "recall_medium" if n >= FEW else "recall_few"].append(value)
    return {prefix + key: float(np.mean(values)) if values else None for key, values in grouped.items()}


def further_scores(probabilities: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> dict[str, float | None]:
    """The scores of ``names.FURTHER``; None where one is undefined.

    Args:
        probabilities: float64, shape (n, C), n > 0.
        labels: int in 0..C-1, shape (n,).
        matrix: their confusion matrix.
    """
    recall = precision_recall_f1(matrix)[1]
    values = (g_mean(recall), matthews_correlation(matrix), *macro_areas(probabilities, labels))
    scores = dict(zip(FURTHER, (*values, aurc(probabilities, labels)), strict=True))
    return {key: None if np.isnan(value) else value for key, value in scores.items()}


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
        log-likelihood in nats), ``ece``, ``g_mean``, ``mcc``, ``auroc_macro`` and ``average_precision_macro`` (over
        the classes that have images, one against the rest), ``aurc``, and ``recall/``, ``precision/``, ``f1/`` + class.
        What is undefined is None (a class without images; everything when n = 0), so that the result is valid JSON.

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
    scores: dict[str, float | None] = dict.fromkeys((*SCORES, *FURTHER))
    if n:
        scores = {
            "accuracy": float(np.trace(matrix) / n),
            "balanced_accuracy": float(np.nanmean(recall)),
            "f1_macro": float(macro_f1(matrix)),
            "worst_recall": float(np.nanmin(recall)),
            "nll": nll(probabilities, labels),
            "ece": calibration_error(probabilities, labels),
            **further_scores(probabilities, labels, matrix),
        }
    per_class = {
        f"{name}/{class_name}": None if np.isnan(value) else float(value)
        for name, values in (("recall", recall), ("precision", precision), ("f1", f1))
        for class_name, value in zip(classes, values, strict=True)
    }
    return {prefix + key: value for key, value in {"n": n, **scores, **per_class}.items()}
