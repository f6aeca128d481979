"""Exact scores of a model: predictions, then metrics, on one device.

Always one process and float32, however the model was trained: every image counts once, and the same checkpoint gives
the same numbers again.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fer_lightning.data.faces import Faces, class_noun
from fer_lightning.data.splits import Split
from fer_lightning.evaluation import tta
from fer_lightning.evaluation.probabilities import PooledFeatures, predict, predict_pooled
from fer_lightning.evaluation.reference import Reference, fit_reference, score_sets
from fer_lightning.metrics.calibration import COLDEST, apply_temperature, calibration_error, fit_temperature, nll
from fer_lightning.metrics.classification import classification_metrics, grouped_recall
from fer_lightning.metrics.names import ALL_SCORES, FURTHER, GROUPS, HEADLINES, SCORES
from fer_lightning.metrics.predictions import probability_columns
from fer_lightning.model.checkpoint import PRIOR
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.words import percent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split.

    Attributes:
        metrics: flat, ``<test set>/<metric>`` and ``val/<metric>``; ``temperature`` (None without one), and
            ``nll_calibrated`` and ``ece_calibrated`` of the test sets with it; with a reference ``set_level`` and
            ``<test set>/set_coverage`` and the like; ``<test set>_<augmentation>/<metric>``.
        predictions: one row per image of any test set: id, usage, label, prediction, ``p_<class>``, twin_group, and
            a column per test set, 1 where the image belongs to it and else 0. Not calibrated.
        augmented: the same table for each test-time augmentation.
        shared: the classes that ``<test set>_shared/<metric>`` is restricted to; empty without these.
        reference: what the validation images say about other images; None without validation images.
    """

    metrics: dict[str, Any]
    predictions: pd.DataFrame
    augmented: dict[str, pd.DataFrame] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    reference: Reference | None = None


def evaluate(  # noqa: PLR0913 - what is scored, and three things that may be known before
    model: EmotionClassifier,
    faces: Faces,
    split: Split,
    device: torch.device,
    temperature: float | None = None,
    augmentations: Sequence[str] = (),
    shared: tuple[str, ...] = (),
    reference: Reference | None = None,
    pooled: PooledFeatures | None = None,
) -> Evaluation:
    """Score every test set of a split, and its validation set when it has one.

    Args:
        model: the model to score.
        faces: the data.
        split: which of them are validation and test images.
        device: where to compute.
        temperature: calibrates the model's probabilities; None fits it on the validation images.
        augmentations: names in ``tta.VIEWS``; each scores the test sets once more, beside the plain images.
        shared: classes that other data share with the model; the test sets are scored once more, with the most
            probable of these as the answer. Empty for all classes.
        reference: for sets of classes; None fits it on the validation images.
        pooled: inputs of the model's head for the images of all sets, where they are known.
    """
    sets = {**split.tests, **({"val": split.val} if len(split.val) else {})}
    union = np.unique(np.concatenate(list(sets.values())))
    probabilities = _predicted(model, faces, union, device, pooled)
    metrics: dict[str, Any] = {}
    for name, indices in sets.items():
        rows = np.searchsorted(union, indices)
        metrics |= classification_metrics(probabilities[rows], faces.labels[indices], faces.classes, f"{name}/")
        recalls = [metrics[f"{name}/recall/{each}"] for each in faces.classes]
        metrics |= grouped_recall(recalls, model.hparams["class_counts"], f"{name}/")
    validation = probabilities[np.searchsorted(union, split.val)]
    if temperature is None and len(split.val):
        temperature = _fitted(validation, faces.labels[split.val])
    if reference is None and temperature is not None and len(split.val):
        reference = fit_reference(apply_temperature(validation, temperature), faces.labels[split.val])
    metrics["temperature"] = temperature
    if temperature is not None:
        for name, indices in split.tests.items():
            rows = np.searchsorted(union, indices)
            metrics |= _calibrated(probabilities[rows], faces.labels[indices], temperature, f"{name}/")
    if shared:
        for name, indices in split.tests.items():
            rows = np.searchsorted(union, indices)
            metrics |= _restricted(probabilities[rows], faces.labels[indices], faces.classes, shared, f"{name}_shared/")
    test, augmented = np.unique(np.concatenate(list(split.tests.values()))), {}
    for augmentation in augmentations:
        averaged = predict(model, faces.images[test], device, tta.VIEWS[augmentation])
        augmented[augmentation] = _table(faces, split, test, averaged)
        for name, indices in split.tests.items():
            own = averaged[np.searchsorted(test, indices)], faces.labels[indices]
            metrics |= classification_metrics(*own, faces.classes, f"{name}_{augmentation}/")
    predictions = _table(faces, split, test, probabilities[np.searchsorted(union, test)])
    if reference is not None and temperature is not None:
        unseen = [name for name in split.tests if name != "val"]  # where the test images are left alone, val is scored
        metrics |= score_sets(predictions, unseen, faces.classes, temperature, reference)
    return Evaluation(metrics, predictions, augmented, shared, reference)


def _fitted(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature of the validation images; None where the coldest is best, which only says that all are right."""
    temperature = fit_temperature(probabilities, labels)
    if temperature > 1.01 * COLDEST:
        return temperature
    log.warning(
        "not calibrated: the model is right about all %d validation images, so no temperature fits them best",
        len(labels),
    )
    return None


def _predicted(
    model: EmotionClassifier, faces: Faces, rows: np.ndarray, device: torch.device, pooled: PooledFeatures | None
) -> np.ndarray:
    """Probabilities (n, C) of some images, from the inputs of the head where they are known."""
    if pooled is not None:
        return predict_pooled(model, pooled.at(rows), device)
    return predict(model, faces.images[rows], device)


def _calibrated(
    probabilities: np.ndarray, labels: np.ndarray, temperature: float, prefix: str
) -> dict[str, float | None]:
    """Scores of the calibrated probabilities; None without images."""
    calibrated = apply_temperature(probabilities, temperature)
    return {
        f"{prefix}nll_calibrated": nll(calibrated, labels) if len(labels) else None,
        f"{prefix}ece_calibrated": calibration_error(calibrated, labels) if len(labels) else None,
    }


def _restricted(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], shared: Sequence[str], prefix: str
) -> dict[str, float | None]:
    """Scores among some classes, which all labels are of: the probabilities of the others are left out."""
    columns = [classes.index(name) for name in shared]
    chosen = np.maximum(probabilities[:, columns], np.finfo(np.float64).tiny)
    places = np.searchsorted(columns, labels)
    return classification_metrics(chosen / chosen.sum(axis=1, keepdims=True), places, shared, prefix)


def _table(faces: Faces, split: Split, test: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    names = np.array(faces.classes)
    return pd.DataFrame(
        {
            "id": faces.ids[test],
            "usage": np.array(faces.parts)[faces.usage[test]],
            "label": names[faces.labels[test]],
            "prediction": names[probabilities.argmax(axis=1)],
            **dict(zip(probability_columns(faces.classes), probabilities.T, strict=True)),
            "twin_group": faces.twins[test],
            **{name: np.isin(test, indices).astype(int) for name, indices in split.tests.items()},
        }
    )


def headline(metrics: Mapping[str, Any], name: str = "test") -> dict[str, Any]:
    """Size and main scores of one set."""
    return {f"{name}/{key}": metrics[f"{name}/{key}"] for key in ("n", *HEADLINES)}


def print_table(metrics: Mapping[str, Any], classes: Sequence[str], name: str = "test") -> None:
    """Print scores by set, then recall, precision and F1 by class in the set ``name``."""
    title = "drawn (synthetic) faces: these numbers say nothing about FER-2013" if metrics["synthetic"] else None
    parts = (key.partition("/") for key in metrics if not key.startswith(PRIOR))  # a class may be called n
    sets = [name for name, _, score in parts if score == "n"]
    headings = (SCORES[key].heading for key in HEADLINES)
    table = Table(Column("set", no_wrap=True), "n", *headings, title=title)
    for row in sets:
        values = (metrics[f"{row}/{key}"] for key in HEADLINES)
        table.add_row(row, str(metrics[f"{row}/n"]), *(percent(value, digits=2) for value in values))
    further = [key for key in (*FURTHER, *GROUPS) if f"{name}/{key}" in metrics]
    other = Table(Column("set", no_wrap=True), *(ALL_SCORES[key].heading for key in further))
    for row in sets:
        other.add_row(row, *(ALL_SCORES[key].words(metrics.get(f"{row}/{key}")) for key in further))
    by_class = Table(class_noun(classes), "recall", "precision", "F1")
    for each in classes:
        scores = (percent(metrics[f"{name}/{key}/{each}"], digits=2) for key in ("recall", "precision", "f1"))
        by_class.add_row(Text(each), *scores)
    console = Console()
    console.print(table)
    console.print(other)
    console.print(by_class)
    if metrics.get(f"{name}/nll_calibrated") is not None:
        before, after = (percent(metrics[f"{name}/{key}"], digits=2) for key in ("ece", "ece_calibrated"))
        console.print(
            f"temperature {metrics['temperature']:.2f}: NLL {metrics[f'{name}/nll']:z.3f} -> "
            f"{metrics[f'{name}/nll_calibrated']:z.3f}, calibration error {before} -> {after}",
            highlight=False,
        )
    if metrics.get(f"{name}/set_coverage") is not None:
        held = percent(metrics[f"{name}/set_coverage"])
        console.print(
            f"sets for {percent(metrics['set_level'], digits=0)} of each {class_noun(classes)}: hold the label of "
            f"{held} of the images, {metrics[f'{name}/set_size']:.2f} of {len(classes)} classes on average",
            highlight=False,
        )
