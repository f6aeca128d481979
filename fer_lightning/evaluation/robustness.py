"""How much a model loses on corrupted test images: a table by kind and strength, and its means."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Column, Table

from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import apportion
from fer_lightning.evaluation.corruptions import KINDS, STRENGTHS, corrupt
from fer_lightning.evaluation.probabilities import BATCH_SIZE, predict
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.metrics.names import SCORES as NAMES
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.words import percent

CLEAN = "unchanged"
"""The kind of the row of unchanged images, whose strength is 0."""

SCORES = ("accuracy", "f1_macro")

CHUNK = 4 * BATCH_SIZE
"""Images corrupted at once: a multiple of the batch size, so that batches are those of the unchanged images."""


@dataclass(frozen=True)
class Robustness:
    """Scores on corrupted images.

    Attributes:
        table: columns ``kind``, ``strength``, ``n``, ``accuracy``, ``f1_macro``, ``accuracy_drop`` and
            ``f1_macro_drop`` (from unchanged images); the first row is unchanged images, then a row per kind and
            strength.
        rows: (n,), the scored images.
    """

    table: pd.DataFrame
    rows: np.ndarray

    def drops(self, score: str = "accuracy") -> dict[str, float]:
        """Mean loss of a score over the strengths, by kind, as shares of 1."""
        corrupted = self.table[self.table["kind"] != CLEAN]
        means = corrupted.groupby("kind", sort=False)[f"{score}_drop"].mean()
        return {str(kind): float(drop) for kind, drop in means.items()}

    @property
    def summary(self) -> dict[str, Any]:
        """For ``metrics.json``: mean drops over kinds and strengths, by kind, and each score."""
        rows = self.table[self.table["kind"] != CLEAN].to_dict("records")
        return {
            "corruptions/images": len(self.rows),
            **{f"corruptions/{key}_drop": float(np.mean(list(self.drops(key).values()))) for key in SCORES},
            **{f"corruptions/{key}_drop/{kind}": drop for key in SCORES for kind, drop in self.drops(key).items()},
            **{f"corruptions/{key}/{row['kind']}/{row['strength']}": row[key] for row in rows for key in SCORES},
        }


def subset(faces: Faces, rows: np.ndarray, limit: int | None, seed: int = 0) -> np.ndarray:
    """At most ``limit`` of the ``rows``, sorted: the same share of every class, at least one image of each."""
    counts = faces.count(rows)
    present = sum(count > 0 for count in counts)
    if limit is None or limit >= len(rows):
        return rows
    shares, rng = apportion(max(limit, present), counts, least=1), np.random.default_rng(seed)
    labels = faces.labels[rows]
    return np.sort(np.concatenate([rng.permutation(rows[labels == k])[:share] for k, share in enumerate(shares)]))


def score_corruptions(model: EmotionClassifier, faces: Faces, rows: np.ndarray, device: torch.device) -> Robustness:
    """Score a model on images corrupted in every way, at their stored size, before its own resize and normalisation.

    Args:
        model: the model to score.
        faces: the data.
        rows: (n,), the images, n >= 1.
        device: where to compute.
    """
    records: list[dict[str, Any]] = []
    for kind, strength in [(CLEAN, 0), *((kind, strength) for kind in KINDS for strength in STRENGTHS)]:
        parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        probabilities = np.concatenate(
            [
                predict(
                    model,
                    corrupt(faces.images, part, kind, strength) if strength else faces.images[part],
                    device,
                )
                for part in parts
            ]
        )
        scores = classification_metrics(probabilities, faces.labels[rows], faces.classes, "")
        records.append({"kind": kind, "strength": strength, "n": len(rows), **{key: scores[key] for key in SCORES}})
    table = pd.DataFrame(records)
    drops = {f"{key}_drop": table[key].iloc[0] - table[key] for key in SCORES}
    return Robustness(table.assign(**drops), rows)


def print_robustness(robustness: Robustness) -> None:
    """Print accuracy and macro F1 by kind and strength, and their mean drops in percentage points."""
    console, drops = Console(), robustness.summary
    by_place = robustness.table.set_index(["kind", "strength"])
    for score in SCORES:
        values, name = by_place[score].to_dict(), NAMES[score].heading
        table = Table(
            Column("corruption", no_wrap=True),
            *(Column(f"{strength}", justify="right") for strength in STRENGTHS),
            Column("points lost", justify="right"),
            title=f"{name} by strength; unchanged: {percent(values[CLEAN, 0])}; {len(robustness.rows):,} test images",
        )
        for kind, drop in robustness.drops(score).items():
            cells = (percent(values[kind, strength]) for strength in STRENGTHS)
            table.add_row(kind.replace("_", " "), *cells, f"{100 * drop:.1f}")
        table.add_section()
        table.add_row("mean", *[""] * len(STRENGTHS), f"{100 * drops[f'corruptions/{score}_drop']:.1f}")
        console.print(table)
