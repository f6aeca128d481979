"""A model's test scores, stored in its own checkpoint; every tool reports them with the model's predictions."""

from collections.abc import Mapping
from typing import Any

from fer_lightning.metrics import names
from fer_lightning.model.checkpoint import StoredModel, write_checkpoint

SCORES = ("n", *names.ALL_SCORES, "nll_calibrated", "ece_calibrated", "set_coverage", "set_size")
PER_CLASS = ("recall", "precision", "f1", "set_coverage")
FACTS = (
    *(
        "temperature",
        "set_level",
        "data",
        "data_folder",
        "split",
        "labels",
        "synthetic",
        "imbalance",
        "model",
        "seed",
        "data_hash",
    ),
    "git_commit",
)


def make_scorecard(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Select the part of a run's ``metrics.json`` that is stored in its checkpoint.

    Returns:
        ``test/<score>`` and ``test_dedup/<score>`` with everything in ``SCORES``, and in ``PER_CLASS`` for each class,
        and ``FACTS``. ``temperature`` calibrates the probabilities (None without validation images). Plain Python.
    """
    by_class = [f"{score}/{name}" for score in PER_CLASS for name in metrics["train/class_counts"]]
    keys = [f"{name}/{key}" for name in ("test", "test_dedup") for key in (*SCORES, *by_class)]
    return {key: metrics[key] for key in (*keys, *FACTS) if key in metrics}


def store(model: StoredModel, card: Mapping[str, Any]) -> None:
    """Write a scorecard into a checkpoint, atomically."""
    hyper = {**model.content["hyper_parameters"], "scorecard": dict(card)}
    write_checkpoint(model.path, {**model.content, "hyper_parameters": hyper})


def scorecard_line(card: Mapping[str, Any] | None, class_name: str | None = None) -> str:
    """One line with a model's test scores, and its recall of one class where it is given.

    For example: ``test accuracy 66.1 %, macro F1 63.0 % (fer2013, 3,589 images); recall of disgust 41 %``.
    """
    if not card or card.get("test/accuracy") is None:
        why = "its run had test=false" if card else "its checkpoint has no scorecard"
        return f"test scores unknown: the model was never tested ({why})"
    source = "drawn faces" if card.get("synthetic") else str(card.get("data_folder") or card.get("data"))
    line = (
        f"test accuracy {100 * card['test/accuracy']:.1f} %, macro F1 {100 * card['test/f1_macro']:.1f} % "
        f"({source}, {card['test/n']:,} images)"
    )
    recall = card.get(f"test/recall/{class_name}") if class_name else None
    return line if recall is None else f"{line}; recall of {class_name} {100 * recall:.0f} %"
