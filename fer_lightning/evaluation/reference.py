"""What the validation images of a model say about other images: scores for sets of classes, and the model's prior.

It is kept in the checkpoint's scorecard beside the temperature, so that every tool can answer with sets at any level,
and for any shares of the classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.metrics import conformal, prior
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.metrics.conformal import ClassScores
from fer_lightning.metrics.predictions import class_indices, probability_columns, reported
from fer_lightning.model.checkpoint import PRIOR, SCORES, SCORES_OF
from fer_lightning.model.classifier import EmotionClassifier


@dataclass(frozen=True)
class Reference:
    """Fitted on the validation probabilities of the best checkpoint, calibrated by its temperature.

    Attributes:
        scores: nonconformity scores of each class.
        prior: the shares of classes that the probabilities assume, float64, shape (C,); see ``prior.model_prior``.
    """

    scores: ClassScores
    prior: np.ndarray


def fit_reference(probabilities: np.ndarray, labels: np.ndarray) -> Reference:
    """Fit both parts.

    Args:
        probabilities: of the validation images, shape (n, C), n > 0, calibrated.
        labels: int in 0..C-1, shape (n,).
    """
    return Reference(conformal.fit(probabilities, labels), prior.model_prior(probabilities, labels))


def to_card(reference: Reference | None, classes: Sequence[str]) -> dict[str, Any]:
    """The entries of a scorecard that hold a reference; empty without one."""
    if reference is None:
        return {}
    entries: dict[str, Any] = {}
    parts = zip(classes, reference.scores.kept, reference.scores.counts, reference.prior, strict=True)
    for name, kept, count, share in parts:
        entries |= {SCORES + name: list(kept), SCORES_OF + name: count, PRIOR + name: float(share)}
    return entries


def from_card(card: Mapping[str, Any] | None, classes: Sequence[str]) -> Reference | None:
    """The reference of a scorecard; None for one without validation scores, as of a run without validation images."""
    if not card or any(PRIOR + name not in card for name in classes):
        return None
    scores = ClassScores([card[SCORES + name] for name in classes], [card[SCORES_OF + name] for name in classes])
    return Reference(scores, np.array([card[PRIOR + name] for name in classes]))


def stored_calibration(model: EmotionClassifier) -> tuple[float | None, Reference | None]:
    """Temperature and reference in the scorecard of a model's checkpoint, None where it has none."""
    card = model.hparams["scorecard"] or {}
    return card.get("temperature"), from_card(card, model.classes)


def score_sets(
    predictions: pd.DataFrame,
    tests: Sequence[str],
    classes: Sequence[str],
    temperature: float,
    reference: Reference,
    level: float = conformal.LEVEL,
) -> dict[str, Any]:
    """Coverage and size of the sets of classes on test images.

    Args:
        predictions: the rows of ``predictions.csv``.
        tests: names of the test sets.
        classes: names of the C classes.
        temperature: calibrates the probabilities.
        reference: of the model.
        level: the share of images of each class whose set is to hold the true class.

    Returns:
        ``set_level``, and for each test set ``set_coverage``, ``set_size`` (mean number of classes) and
        ``set_coverage/`` + class; None where there are no images.
    """
    thresholds = reference.scores.thresholds(level)
    metrics: dict[str, Any] = {"set_level": level}
    for name in tests:
        rows = reported(predictions, name)
        labels = class_indices(rows["label"].tolist(), classes)
        calibrated = apply_temperature(rows[probability_columns(classes)].to_numpy(), temperature)
        share, by_class, size = conformal.coverage(conformal.prediction_sets(calibrated, thresholds), labels)
        values = {"set_coverage": share, "set_size": size}
        values |= {f"set_coverage/{each}": held for each, held in zip(classes, by_class, strict=True)}
        metrics |= {f"{name}/{key}": None if np.isnan(value) else float(value) for key, value in values.items()}
    return metrics
