"""The dashboards of a run: Weights & Biases or TensorBoard.

A dashboard is a copy: when it fails the run only warns, and the run folder is complete. Only the first process of a
distributed run has any.
"""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from fer_lightning.data.faces import class_noun
from fer_lightning.data.images import as_picture
from fer_lightning.metrics.predictions import classes_of, confident_mistakes, probability_columns
from fer_lightning.presentation.escapes import change_texts, to_csv, without_tags
from fer_lightning.runtime import wandb_run
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.processes import is_first_process
from fer_lightning.runtime.provenance import environment, git_commit

log = logging.getLogger(__name__)

FIGURES = ("confusion_matrix", "class_distribution", "curves", "mistakes")
"""Pictures of the run folder that the dashboards show, where they exist."""


def build_loggers(cfg: Mapping[str, Any], run_dir: Path) -> list[Logger]:
    """Open the dashboards of a run.

    Args:
        cfg: the whole configuration, plain Python, interpolations resolved. A run that ``cfg["resume"]`` resumes in
            its own folder also resumes its W&B run.
        run_dir: the run folder.

    Returns:
        The logger that ``cfg["logger"]["name"]`` selects: ``wandb`` (offline without a key), ``tensorboard``, or
        ``auto`` for W&B where the user is logged in; none for ``csv``, and in further processes of a run.

    Raises:
        UserError: TensorBoard is selected and not installed.
    """
    if not is_first_process():
        return []
    kind = cfg["logger"]["name"]
    if kind == "wandb" or (kind == "auto" and wandb_run.has_login()):
        return [_wandb_logger(cfg, run_dir)]
    if kind == "tensorboard":
        try:
            return [TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard")]
        except ModuleNotFoundError:
            raise UserError(
                "logger=tensorboard: TensorBoard is not installed; "
                "pip install 'fer_lightning[tensorboard]', or use logger=csv"
            ) from None
    return []


def _earlier_wandb_id(resume: str | None, run_dir: Path) -> str | None:
    """The id of the W&B run that this run folder holds already, if the run is resumed in it."""
    if resume is None or (resume != "auto" and not Path(resume).resolve().is_relative_to(run_dir.resolve())):
        return None
    parts = sorted(run_dir.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return parts[-1].stem.removeprefix("run-") if parts else None


class _RowPerStep(WandbLogger):
    """Numbers W&B's rows by optimizer step.

    So the rows of a resumed run follow those of its earlier parts, and no row is logged twice.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        run = self.experiment
        if step is None or step >= run.starting_step:
            with wandb_run.only_warn("this epoch's numbers are missing there"):
                run.log({**metrics, "trainer/global_step": step}, step=step)


def _wandb_logger(cfg: Mapping[str, Any], run_dir: Path) -> WandbLogger:
    names = [cfg[group]["name"] for group in ("imbalance", "model", "split", "data")]
    tags = list(dict.fromkeys(str(tag)[:64] for tag in (*names, *cfg["tags"]) if str(tag)))
    mode = wandb_run.mode()
    earlier = _earlier_wandb_id(cfg["resume"], run_dir)
    # Chosen here, so that a failed start online and the offline run after it share the id.
    run_id = earlier or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)

    run = wandb_run.start(
        mode,
        project=cfg["logger"]["project"],
        entity=cfg["logger"]["entity"],
        group=os.environ.get("WANDB_RUN_GROUP"),
        name=f"{cfg['imbalance']['name']}-{cfg['model']['name']}-seed{cfg['seed']}",
        tags=tags,
        config={**cfg, "git_commit": git_commit(), "environment": environment()},
        dir=run_dir,
        id=run_id,
        resume="allow" if earlier and mode != "offline" else None,
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if run.offline:
        # Only this part: syncing all parts stops at one that was killed before W&B wrote anything.
        log.info("W&B runs offline; upload later with: %s", wandb_run.upload_command(run))
    return _RowPerStep(experiment=run, project=cfg["logger"]["project"], save_dir=run_dir)


def log_results(
    loggers: Sequence[Logger],
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    images: np.ndarray,
    run_dir: Path,
    name: str = "test",
) -> None:
    """Log a finished run to the dashboards.

    W&B gets ``metrics.json`` as summary, the run folder's pictures, a table with one row per class, and a table
    of the most confident mistakes with their faces. TensorBoard gets the pictures.

    Args:
        loggers: from ``build_loggers``. A failing one is reported as a warning.
        metrics: the content of ``metrics.json``.
        predictions: the rows of ``predictions.csv`` of the reported set.
        images: uint8, (n, 48, 48), one per row.
        run_dir: the run folder with its pictures already written.
        name: the reported set.
    """
    pictures = [picture for picture in FIGURES if (run_dir / f"{picture}.png").exists()]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for picture in pictures:
                with Image.open(run_dir / f"{picture}.png") as opened:
                    pixels = np.asarray(opened.convert("RGB"))
                logger.experiment.add_image(picture, pixels, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            with wandb_run.only_warn("tables or results are missing there"), wandb_run.files_kept_in(run_dir / "wandb"):
                facts = {"class_counts": metrics["train/class_counts"], "data_hash": metrics["data_hash"]}
                run.config.update(facts, allow_val_change=True)
                run.summary.update(dict(metrics))
                run.log({name: wandb.Image(str(run_dir / f"{name}.png")) for name in pictures}, commit=False)
                # Last, because only tables need the server.
                mistakes = _mistake_table(predictions, images)
                per_class = wandb.Table(dataframe=_class_table(metrics, predictions, name))
                run.log({"per_class": per_class, "confident_mistakes": mistakes})


def _class_table(metrics: Mapping[str, Any], predictions: pd.DataFrame, name: str) -> pd.DataFrame:
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


def _mistake_table(predictions: pd.DataFrame, images: np.ndarray) -> Any:
    import wandb

    rows = confident_mistakes(predictions)
    columns = ["id", "label", "prediction", "confidence", *probability_columns(classes_of(predictions))]
    # Three times the size: 48 pixels are hard to see in a table.
    faces = [wandb.Image(as_picture(images[place]).repeat(3, axis=0).repeat(3, axis=1)) for place in rows.index]
    shown = change_texts(rows[columns], lambda text: to_csv(without_tags(text)))
    data: list[Any] = [[face, *values] for face, values in zip(faces, shown.to_numpy().tolist(), strict=True)]
    return wandb.Table(columns=["face", *columns], data=data)


def finish(loggers: Sequence[Logger], failed: bool) -> None:
    """Close the run on every dashboard, marked as failed where it failed. Safe to call twice.

    Everything is written on return, which takes little more than ``WANDB_FINISH_SECONDS``, or than the environment
    variable ``WANDB_FINISH_TIMEOUT``.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            with wandb_run.only_warn(f"the run is kept on disk; upload it with: {wandb_run.upload_command(run)}"):
                try:
                    run.finish(exit_code=int(failed))
                finally:
                    wandb.teardown()  # an offline run's finish() returns before its file is complete
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
