"""What a finished run hands to the dashboards, for tests of the loggers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.data.faces import EMOTIONS, Faces
from fer_lightning.evaluation import figures
from fer_lightning.metrics.classification import classification_metrics, confusion_matrix
from fer_lightning.metrics.predictions import confident_mistakes

CFG: dict[str, Any] = {
    "name": "try",
    "seed": 3,
    "tags": ["pilot", "focal"],
    "resume": None,
    "data": {"name": "fer2013", "path": None, "batch_size": 32},
    "split": {"name": "official", "val_fraction": None},
    "imbalance": {"name": "focal", "loss": {"_target_": "FocalLoss", "gamma": 2.0}},
    "model": {"name": "efficientnet_b0", "weights": "none"},
    "augment": {"name": "light"},
    "optim": {"name": "adamw", "lr": 0.001},
    "trainer": {"max_epochs": 2, "devices": 1},
    "logger": {"name": "wandb", "project": "fer_lightning", "entity": None},
}


def config(**changes: Any) -> dict[str, Any]:
    return {**CFG, **changes}


def logger(name: str) -> dict[str, Any]:
    return config(logger={**CFG["logger"], "name": name})


def finished_run(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, np.ndarray]:
    """The numbers and pictures that a run has at its end; 120 images, the first 50 are for training."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 7
    images = rng.integers(0, 256, (120, 48, 48), dtype=np.uint8)
    ids = np.array([f"image_{k}" for k in range(120)])
    faces = Faces.from_arrays(images, labels, np.zeros(120), ids, "drawn here")
    test = np.arange(50, 120)
    probabilities = rng.dirichlet(np.ones(7), size=70)
    named = np.array(EMOTIONS)
    predictions = pd.DataFrame(
        {
            "id": ids[test],
            "usage": "PrivateTest",
            "label": named[labels[test]],
            "prediction": named[probabilities.argmax(1)],
            **{f"p_{emotion}": probabilities[:, k] for k, emotion in enumerate(EMOTIONS)},
        }
    )
    metrics = {
        **classification_metrics(probabilities, labels[test], EMOTIONS),
        "test_dedup/recall/disgust": None,
        "train/class_counts": dict(zip(EMOTIONS, np.bincount(labels[:50]).tolist(), strict=True)),
        "data_hash": faces.data_hash,
        "imbalance": "focal",
        "versions": {"torch": "x"},
    }
    matrix = confusion_matrix(labels[test], probabilities.argmax(1), 7)
    figures.confusion_matrix(matrix, EMOTIONS, "focal").savefig(folder / "confusion_matrix.png")
    figures.class_distribution({"test": matrix.sum(1)}, EMOTIONS, "focal").savefig(folder / "class_distribution.png")
    curve = pd.DataFrame({"epoch": [0, 1], "step": [2, 4], "lr": [0.1, 0.1], "train/loss": [2.0, 1.9]})
    figures.curves(curve, "focal").savefig(folder / "curves.png")
    worst = confident_mistakes(predictions)
    figures.mistakes(faces.images[test][worst.index], worst, "focal").savefig(folder / "mistakes.png")
    return metrics, predictions, faces.images[test]
