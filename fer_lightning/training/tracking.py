"""The dashboards of a run: Weights & Biases, TensorBoard or MLflow.

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

from fer_lightning.config.secrets import check_variables
from fer_lightning.runtime import wandb_run
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path
from fer_lightning.runtime.processes import is_first_process
from fer_lightning.runtime.provenance import environment, git_commit
from fer_lightning.training import mlflow_logger
from fer_lightning.training.dashboard_tables import class_table, mistake_table, picture_column
from fer_lightning.training.mlflow_logger import SafeMlflowLogger

log = logging.getLogger(__name__)

FIGURES = ("confusion_matrix", "class_distribution", "curves", "mistakes")
"""Pictures of the run folder that the dashboards show, where they exist."""


def build_loggers(cfg: Mapping[str, Any], run_dir: Path) -> list[Logger]:
    """Open the dashboards of a run.

    Args:
        cfg: the whole configuration, plain Python, interpolations resolved. A run that ``cfg["resume"]`` resumes in
            its own folder also resumes its W&B or MLflow run.
        run_dir: the run folder.

    Returns:
        The logger that ``cfg["logger"]["name"]`` selects: ``wandb`` (offline without a key), ``tensorboard``,
        ``mlflow``, or ``auto`` for W&B where the user is logged in; none for ``csv``, in further processes of a run,
        and where MLflow cannot write.

    Raises:
        UserError: TensorBoard or MLflow is selected and not installed, or a variable of the dashboard holds a secret,
            or a value that it does not accept.
    """
    if not is_first_process():
        return []
    kind = cfg["logger"]["name"]
    if kind == "wandb" or (kind == "auto" and wandb_run.has_login()):
        check_variables("WANDB_")
        return [_wandb_logger(cfg, run_dir)]
    if kind == "tensorboard":
        try:
            return [TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard")]
        except ModuleNotFoundError as error:
            raise _not_installed("tensorboard", "TensorBoard", error) from None
    if kind == "mlflow":
        check_variables("MLFLOW_")
        try:
            opened = mlflow_logger.open_logger(cfg, run_dir, _resumes_in(run_dir, cfg["resume"]))
        except ModuleNotFoundError as error:
            raise _not_installed("mlflow", "MLflow", error) from None
        return [] if opened is None else [opened]
    return []


def _not_installed(extra: str, name: str, error: ModuleNotFoundError) -> UserError:
    if error.name and error.name.partition(".")[0] != extra:  # such as the driver of a database
        return UserError(
            f"logger={extra}: {name} needs {error.name}, which is not installed; install it, or use logger=csv"
        )
    return UserError(
        f"logger={extra}: {name} is not installed; pip install 'fer_lightning[{extra}]', or use logger=csv"
    )


def _resumes_in(run_dir: Path, resume: str | None) -> bool:
    """Whether ``resume`` continues the run of this folder, rather than another's."""
    return resume is not None and (resume == "auto" or real_path(resume).is_relative_to(real_path(run_dir)))


def _earlier_wandb_id(resume: str | None, run_dir: Path) -> str | None:
    """The id of the W&B run that this run folder holds already, if the run is resumed in it."""
    if not _resumes_in(run_dir, resume):
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
    of the most confident mistakes with their faces; MLflow gets the same. TensorBoard gets the pictures.

    Args:
        loggers: from ``build_loggers``. A failing one is reported as a warning.
        metrics: the content of ``metrics.json``.
        predictions: the rows of ``predictions.csv`` of the reported set.
        images: uint8, (n, H, H) or (n, 3, H, H), one per row.
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
        elif isinstance(logger, SafeMlflowLogger):
            files = [run_dir / f"{picture}.png" for picture in pictures]
            mlflow_logger.log_results(logger, metrics, predictions, images, files, name)
        elif isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            with wandb_run.only_warn("tables or results are missing there"), wandb_run.files_kept_in(run_dir / "wandb"):
                facts = {"class_counts": metrics["train/class_counts"], "data_hash": metrics["data_hash"]}
                run.config.update(facts, allow_val_change=True)
                run.summary.update(dict(metrics))
                run.log({name: wandb.Image(str(run_dir / f"{name}.png")) for name in pictures}, commit=False)
                # Last, because only tables need the server.
                faces, mistakes = mistake_table(predictions, images)
                pairs = zip(faces, mistakes.to_numpy().tolist(), strict=True)
                data: list[Any] = [[wandb.Image(face), *values] for face, values in pairs]
                per_class = wandb.Table(dataframe=class_table(metrics, predictions, name))
                shown = wandb.Table(columns=[picture_column(predictions), *mistakes], data=data)
                run.log({"per_class": per_class, "confident_mistakes": shown})


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
        elif isinstance(logger, SafeMlflowLogger):
            mlflow_logger.finish(logger, failed)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
