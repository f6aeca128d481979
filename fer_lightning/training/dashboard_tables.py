"""The tables of a finished run that dashboards show: scores of each class, and the most confident mistakes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.data.faces import class_noun
from fer_lightning.data.images import as_picture
from fer_lightning.metrics.predictions import classes_of, confident_mistakes, probability_columns
from fer_lightning.presentation.escapes import change_texts, to_csv, without_tags

ENLARGED = 3
"""Times the size that faces are shown in: 48 pixels are hard to see in a table."""


def class_table(metrics: Mapping[str, Any], predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Images and scores of each class.

    Args:
        metrics: the content of ``metrics.json``.
        predictions: the rows of ``predictions.csv`` of the reported set.
        name: the reported set.
    """
    images, trained = predictions["label"].value_counts(), metrics["train/class_counts"]
    return pd.DataFrame(
        {
            class_noun(list(trained)): list(trained),
            "training images": list(trained.values()),
            f"{name} images": [int(images.get(each, 0)) for each in trained],
            **{
                score: [metrics[f"{name}/{score}/{each}"] for each in trained]
                for score in ("recall", "precision", "f1")
            },
        }
    )


def picture_column(predictions: pd.DataFrame) -> str:
    """What the column of pictures is called: ``face`` where the classes are emotions, else ``image``."""
    return "face" if class_noun(classes_of(predictions)) == "emotion" else "image"


def mistake_table(predictions: pd.DataFrame, images: np.ndarray) -> tuple[list[np.ndarray], pd.DataFrame]:
    """The most confident mistakes, their texts safe for a page and for a CSV file that is made of it.

    Args:
        predictions: the rows of ``predictions.csv`` of the reported set.
        images: uint8, (n, H, H) or (n, 3, H, H), one per row.

    Returns:
        Their faces, enlarged, each uint8 (H', H') or (H', H', 3), and the columns id, label, prediction, confidence
        and the probabilities.
    """
    rows = confident_mistakes(predictions)
    columns = ["id", "label", "prediction", "confidence", *probability_columns(classes_of(predictions))]
    faces = [as_picture(images[place]).repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1) for place in rows.index]
    return faces, change_texts(rows[columns], lambda text: to_csv(without_tags(text)))
