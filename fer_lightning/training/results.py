"""What a finished run reports: the dictionary of ``metrics.json``, its files, its last lines on the terminal."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from fer_lightning.data.splits import Split
from fer_lightning.evaluation import scorecard
from fer_lightning.evaluation.artifacts import write_figures, write_tables
from fer_lightning.evaluation.checkpoint_split import FOLDER
from fer_lightning.evaluation.reference import to_card
from fer_lightning.evaluation.score import Evaluation, headline, print_table
from fer_lightning.loading.datamodule import FERDataModule
from fer_lightning.metrics.predictions import reported
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.training import tracking


def reported_set(cfg: DictConfig) -> str:
    """The set that a run is scored on: ``test``, or ``val`` where the test images are left alone."""
    return "test" if cfg.test else "val"


def reported_split(cfg: DictConfig, split: Split) -> Split:
    """The split whose test sets a run is scored on; see ``reported_set``."""
    return split if cfg.test else replace(split, tests={"val": split.val})


def collect_metrics(
    cfg: DictConfig,
    evaluation: Evaluation,
    tested: StoredModel,
    trainer: L.Trainer,
    datamodule: FERDataModule,
    seconds: float,
    provenance: dict[str, Any],
    first_stage: dict[str, Any],
) -> dict[str, Any]:
    """The content of ``metrics.json``: scores, how the training went, and what identifies the run.

    Args:
        cfg: the composed run.
        evaluation: scores of the tested checkpoint.
        tested: the model of these scores.
        trainer: of the finished training.
        datamodule: its images.
        seconds: spent in training steps.
        provenance: ``data_hash``, ``weights_hash``, ``first_stage_hash`` with another run's first stage,
            ``git_commit`` and ``versions``.
        first_stage: see ``first_stage_metrics``; with the views kept of each training image (``feature_cache``).
    """
    content = tested.content
    images = trainer.global_step * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
    return {
        **evaluation.metrics,
        "train/seconds": seconds,
        "train/images_per_second": images / seconds if seconds else None,
        "train/steps": trainer.global_step,
        **first_stage,
        "train/class_counts": dict(zip(datamodule.faces.classes, datamodule.class_counts, strict=True)),
        "epoch": int(content["epoch"]),
        "seed": cfg.seed,
        "imbalance": cfg.imbalance.name,
        "model": cfg.model.name,
        "split": cfg.split.name,
        "data": cfg.data.name,
        **({"data_folder": Path(cfg.data.path).name} if cfg.data.name == FOLDER else {}),
        "labels": cfg.labels.name,
        "drop_duplicates": cfg.data.drop_duplicates,
        "budget": cfg.budget,
        "monitor": cfg.monitor,
        "tau": (content["hyper_parameters"]["adjusted"] or {}).get("tau"),
        "synthetic": datamodule.faces.synthetic,
        "images": str(datamodule.faces.form),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        **provenance,
    }


def write_results(
    cfg: DictConfig,
    folder: Path,
    tested: StoredModel,
    metrics: dict[str, Any],
    evaluation: Evaluation,
    datamodule: FERDataModule,
    drawn: list[int],
    loggers: Sequence[Logger],
) -> None:
    """Write the scorecard into the checkpoint and the files of the run folder, and show them on the dashboards.

    Args:
        cfg: the composed run.
        folder: the run folder.
        tested: the model of these scores.
        metrics: from ``collect_metrics``.
        evaluation: scores of the tested checkpoint.
        datamodule: the run's images.
        drawn: images per class that the first epoch showed.
        loggers: from ``tracking.build_loggers``.
    """
    reference = to_card(evaluation.reference, datamodule.faces.classes)
    scorecard.store(tested, {**scorecard.make_scorecard(metrics), **reference})
    name, faces, split = reported_set(cfg), datamodule.faces, reported_split(cfg, datamodule.split)
    sets = {"train": split.train, "val": split.val, name: split.tests[name]}
    counts = {key: faces.count(rows) for key, rows in sets.items() if len(rows)}
    if drawn != counts["train"]:
        counts = {"train": counts["train"], "drawn in an epoch": drawn, **counts}
    write_tables(folder, metrics, evaluation)
    if cfg.figures:
        write_figures(folder, metrics, evaluation, faces, split, counts, metrics["imbalance"], name, trained=True)
    predictions = reported(evaluation.predictions, name)
    tracking.log_results(loggers, metrics, predictions, faces.images[split.tests[name]], folder, name)


def print_results(cfg: DictConfig, folder: Path, metrics: dict[str, Any]) -> None:
    """Print the table of scores, and as the last line the headline as JSON, for programs."""
    name = reported_set(cfg)
    print_table(metrics, list(metrics["train/class_counts"]), name)
    run = {"run": str(folder), "imbalance": cfg.imbalance.name, "seed": cfg.seed}
    print(json.dumps({**run, **headline(metrics, name)}), flush=True)
