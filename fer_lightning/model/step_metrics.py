"""Scores that are updated batch by batch while training, without blocking on the device."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall


class _CountedByComparison:
    """Counts without ``torch.bincount``, which copies its result's size from the device in every step."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and labels (B,)."""
        classes = torch.arange(preds.shape[1], device=preds.device)
        predicted, labelled = (part[:, None] == classes for part in (preds.argmax(dim=1), target))
        hits = (predicted & labelled).sum(dim=0)
        missed, wrong = labelled.sum(dim=0) - hits, predicted.sum(dim=0) - hits
        self._update_state(hits, wrong, len(target) - hits - missed - wrong, missed)  # type: ignore[attr-defined]


class BalancedAccuracy(_CountedByComparison, MulticlassRecall):
    """Recall averaged over the classes that have images."""


class MacroF1(_CountedByComparison, MulticlassF1Score):
    """F1 averaged over the classes that have images or predictions."""


def training_metrics(num_classes: int) -> MetricCollection:
    """Accuracy, balanced accuracy and macro F1 to update batch by batch.

    Use ``.clone(prefix="val/")`` for each split. States are summed over processes: uneven shards are exact. Each
    metric keeps its own counts: shared ones may be out of date where a metric is read alone.
    """
    return MetricCollection(
        {
            # Validating arguments would block every step too.
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "balanced_accuracy": BalancedAccuracy(num_classes, average="macro", validate_args=False),
            "f1_macro": MacroF1(num_classes, average="macro", validate_args=False),
        },
        compute_groups=False,
    )
