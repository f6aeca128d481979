"""The files that an evaluation leaves in a folder: numbers, predictions, pictures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split
from fer_lightning.evaluation import figures
from fer_lightning.evaluation.score import Evaluation
from fer_lightning.metrics.predictions import ids_hash, read_predictions_csv, reported
from fer_lightning.presentation import words
from fer_lightning.presentation.escapes import table_from_csv, table_to_csv
from fer_lightning.presentation.plotting import write_figure
from fer_lightning.runtime.files import write_json

log = logging.getLogger(__name__)


def write_tables(folder: Path, metrics: dict[str, Any], evaluation: Evaluation) -> None:
    """Write ``metrics.json`` and ``predictions.csv``, and the predictions of each augmentation.

    Args:
        folder: created where it is missing.
        metrics: the content of ``metrics.json``, which gets a digest of the images' ids besides.
        evaluation: whose predictions are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"": evaluation.predictions, **{f"_{key}": table for key, table in evaluation.augmented.items()}}
    texts = {suffix: table_to_csv(table).encode() for suffix, table in tables.items()}
    # Of the ids as they will be read: control characters are not written.
    read = table_from_csv(read_predictions_csv(texts[""]))
    write_json(folder / "metrics.json", {**metrics, "ids_hash": ids_hash(read)})
    for suffix, text in texts.items():
        (folder / f"predictions{suffix}.csv").write_bytes(text)
    files = ["metrics.json", *(f"predictions{suffix}.csv" for suffix in tables)]
    log.info("wrote %s to %s", words.listed(files), folder)


def write_figures(  # noqa: PLR0913 - what is drawn, and two things about its folder
    folder: Path,
    metrics: Mapping[str, Any],
    evaluation: Evaluation,
    faces: Faces,
    split: Split,
    counts: Mapping[str, Sequence[int]],
    title: str,
    name: str = "test",
    trained: bool = False,
) -> None:
    """Write the pictures of an evaluation, of each augmentation too.

    Args:
        folder: to write to.
        metrics: the content of ``metrics.json``.
        evaluation: whose predictions are drawn.
        faces: the data.
        split: whose test sets were scored.
        counts: images per class by name of a set, for the picture of the class distribution.
        title: of the confusion matrix and the curves.
        name: the reported set, which the pictures show.
        trained: whether this is a run's own folder: the curves of its ``metrics.csv``, if it has one, are drawn too.
    """
    images, subtitle = faces.images[split.tests[name]], words.caption(metrics)
    pictures = figures.of_test(reported(evaluation.predictions, name), images, title, subtitle)
    pictures["class_distribution"] = figures.class_distribution(counts, faces.classes, "Images per class", subtitle)
    for key, table in evaluation.augmented.items():
        augmented = figures.of_test(reported(table, name), images, f"{title}, {key}", subtitle)
        pictures |= {f"{picture}_{key}": figure for picture, figure in augmented.items()}
    if trained and (folder / "metrics.csv").exists():  # not where a model trained elsewhere was only adjusted
        pictures["curves"] = figures.curves(pd.read_csv(folder / "metrics.csv"), title, subtitle)
    for key, figure in pictures.items():
        write_figure(figure, folder / f"{key}.png")
    log.info("wrote %d pictures to %s", len(pictures), folder)
