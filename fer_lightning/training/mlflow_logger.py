"""A run on MLflow: curves while it trains, then its scores, pictures and tables."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from fer_lightning.config.settings import flatten
from fer_lightning.runtime import mlflow_run
from fer_lightning.runtime.files import replace_file
from fer_lightning.runtime.mlflow_run import OpenRun
from fer_lightning.runtime.provenance import environment, git_commit
from fer_lightning.training.dashboard_tables import class_table, mistake_table, picture_column

PAUSE = 60
"""Seconds without a request after one that failed; meanwhile the numbers are kept."""

MAX_METRICS = 1000
"""MLflow's limit of metrics in a request."""


class SafeMlflowLogger(MLFlowLogger):
    """Lightning's logger, writing to an open run: what cannot be sent is kept and sent later.

    So an outage costs the training at most a request's time limit per ``PAUSE``. The rows of a resumed run follow those
    of its earlier parts.

    Args:
        run: the open run.
    """

    def __init__(self, run: OpenRun) -> None:
        super().__init__(tracking_uri=run.uri, run_id=run.run_id)
        self.run = run
        self._unsent: list[Any] = []
        self._next_try = 0.0

    @property
    def experiment(self) -> Any:
        """The client. Lightning's own would set this server in the environment, also for later runs of the process."""
        return self.run.client

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.run.last_step:
            self.add(metrics, step or 0)

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at a step, now or later."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._unsent += [Metric(mlflow_run.key(name), float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() >= self._next_try:
            self.send()

    def send(self) -> bool:
        """Send what was kept; whether that succeeded."""
        with mlflow_run.only_warn(f"{len(self._unsent)} numbers are kept and sent later"):
            while self._unsent:
                self.run.client.log_batch(self.run.run_id, metrics=self._unsent[:MAX_METRICS])
                del self._unsent[:MAX_METRICS]
            return True
        self._next_try = time.monotonic() + PAUSE
        return False

    def finalize(self, status: str = "success") -> None:
        """Leave the run open after the training: its test follows."""


def open_logger(cfg: Mapping[str, Any], run_dir: Path, resumed: bool) -> SafeMlflowLogger | None:
    """Open the MLflow run of a run folder, a new one or that of its earlier part.

    Args:
        cfg: the whole configuration, plain Python, interpolations resolved.
        run_dir: the run folder, which keeps the id.
        resumed: whether the run is resumed in this folder.

    Returns:
        The logger; None, and a warning, where neither the server nor a file in the run folder can be written.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
    """
    groups = {"method": "imbalance", "model": "model", "split": "split", "data": "data"}
    tags = {name: str(cfg[group]["name"]) for name, group in groups.items()}
    tags |= {"seed": str(cfg["seed"]), "git_commit": git_commit() or "unknown"}
    tags |= {"tags": ", ".join(map(str, cfg["tags"]))} if cfg["tags"] else {}
    tags |= {"sweep": group} if (group := os.environ.get("WANDB_RUN_GROUP")) else {}
    id_file = run_dir / mlflow_run.RUN_ID_FILE
    run = mlflow_run.start(
        experiment=cfg["logger"]["project"],
        name=f"{cfg['imbalance']['name']}-{cfg['model']['name']}-seed{cfg['seed']}",
        tags=tags,
        params=flatten({**cfg, "environment": environment()}),
        folder=run_dir,
        earlier=id_file.read_text().strip() if resumed and id_file.is_file() else None,
    )
    if run is None:
        return None
    replace_file(id_file, f"{run.run_id}\n".encode())
    return SafeMlflowLogger(run)


def log_results(
    logger: SafeMlflowLogger,
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    images: np.ndarray,
    pictures: Sequence[Path],
    name: str,
) -> None:
    """Log scores, ``metrics.json``, pictures, and the tables of classes and of the most confident mistakes.

    Args:
        logger: of the run.
        metrics: the content of ``metrics.json``.
        predictions: the rows of ``predictions.csv`` of the reported set.
        images: uint8, (n, H, H) or (n, 3, H, H), one per row.
        pictures: files of the run folder.
        name: the reported set.
    """
    by_class = class_table(metrics, predictions, name)
    faces, mistakes = mistake_table(predictions, images)
    is_score = {key: "/" in key and isinstance(value, int | float) for key, value in metrics.items()}
    logger.add({key: value for key, value in metrics.items() if is_score[key]}, metrics.get("train/steps") or 0)
    client, run_id = logger.run.client, logger.run.run_id
    with mlflow_run.only_warn("tables or results are missing there"):
        client.set_tag(run_id, "data_hash", metrics["data_hash"])
        client.log_dict(run_id, dict(metrics), "metrics.json")
        for picture in pictures:
            client.log_artifact(run_id, str(picture))
        mlflow_run.log_table(logger.run, "per_class", by_class)
        pictured: list[Any] = [Image.fromarray(face) for face in faces]
        column = picture_column(predictions)
        shown = mistakes.assign(**{column: pictured})[[column, *mistakes]]
        mlflow_run.log_table(logger.run, "confident_mistakes", shown)


def finish(logger: SafeMlflowLogger, failed: bool) -> None:
    """Send what is left and close the run."""
    if logger.send():
        with mlflow_run.only_warn("the run stays open there"):
            logger.run.client.set_terminated(logger.run.run_id, "FAILED" if failed else "FINISHED")
