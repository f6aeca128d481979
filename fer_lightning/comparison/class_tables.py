"""Tables of the single classes: confusion, recall, precision and F1, and the agreement of raters with the labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fer_lightning.comparison import statistics
from fer_lightning.comparison.rows import Rows
from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.metrics.classification import confusion_matrix, precision_recall_f1
from fer_lightning.runtime.errors import UserError


def confusion_matrices(rows: Rows, test_set: str) -> dict[str, np.ndarray]:
    """Row name -> int64 (C, C), rows true, all seeds together."""
    return {name: np.sum([_confusion(run, test_set) for run in members], axis=0) for name, members in rows.items()}


def _confusion(run: FinishedRun, test_set: str) -> np.ndarray:
    member = run.members[test_set]
    return confusion_matrix(run.labels[member], run.predictions[member], len(run.classes))


def per_class_table(rows: Rows, test_set: str) -> pd.DataFrame:
    """Recall, precision and F1 of each class, mean and deviation over seeds, as in ``Comparison.per_class``."""
    records = []
    for name, members in rows.items():
        matrices = np.stack([_confusion(run, test_set) for run in members])
        precision, recall, f1 = precision_recall_f1(matrices)
        for k, class_name in enumerate(members[0].classes):
            scores = (statistics.t_interval(each[:, k])[:2] for each in (recall, precision, f1))
            n = int(np.round(matrices[:, k].sum(axis=1).mean()))
            records.append((name, class_name, n, *(number for pair in scores for number in pair)))
    columns = ["method", "class", "n", "recall", "recall_sd", "precision", "precision_sd", "f1", "f1_sd"]
    return pd.DataFrame(records, columns=columns)


def ceiling_table(runs: Sequence[FinishedRun], test_set: str, votes: str | Path) -> pd.DataFrame:
    """How far the raters of FER+ agree with the labels of each class, as in ``Comparison.ceiling``.

    Raises:
        UserError: the labels are the votes' own, or the votes cannot be read.
    """
    if runs[0].protocol["labels"] != "fer":
        raise UserError(f"votes: these runs have labels={runs[0].protocol['labels']}, the votes' own; leave it out")
    from fer_lightning.data.ferplus import ceiling

    labels: dict[str, str] = {}
    for run in runs:
        member = run.members[test_set]
        labels |= dict(zip(run.ids[member].tolist(), np.array(run.classes)[run.labels[member]].tolist(), strict=True))
    return ceiling(list(labels), list(labels.values()), str(votes))
