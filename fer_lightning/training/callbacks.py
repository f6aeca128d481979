"""Callbacks that Lightning lacks: stop on NaN, step timer, log line per epoch, resume-safe ``metrics.csv``."""

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file

log = logging.getLogger(__name__)


class StopOnNonFinite(L.Callback):
    """Stops the run when the loss becomes NaN or infinite, before a checkpoint of broken weights is written.

    The flag is kept on the device and read every ``log_every_n_steps`` and at the end of an epoch, so that no step
    blocks on the device.
    """

    def __init__(self) -> None:
        self.finite: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finite = torch.isfinite(outputs["loss"].detach())
        self.finite = finite if self.finite is None else self.finite & finite
        steps: int = getattr(trainer, "log_every_n_steps", 1)  # set by Lightning without declaring it
        if trainer.is_last_batch or (batch_idx + 1) % max(1, steps) == 0:
            self._check(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The last step may break the weights although its own loss was finite.
        if "val/loss" in trainer.callback_metrics:
            self.finite = torch.isfinite(trainer.callback_metrics["val/loss"])
            self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Squares, as batch normalisation takes: finite weights beyond 1e19 give NaN too.
        squares = torch.stack([parameter.detach().float().square().sum() for parameter in pl_module.parameters()])
        self.finite = torch.isfinite(squares).all()
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        # All processes decide together: one that stopped alone would leave the others waiting for its gradients.
        if self.finite is not None and not trainer.strategy.reduce_boolean_decision(bool(self.finite), all=True):
            last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            kept = "the last good checkpoint is kept" if last.exists() else "there is no good checkpoint yet"
            raise UserError(
                f"the loss became NaN or infinite in epoch {trainer.current_epoch + 1} by step {trainer.global_step}; "
                f"{kept}; try a smaller optim.lr, a larger optim.warmup_fraction or trainer.precision=32-true"
            )
        self.finite = None


class CountsOnHost(L.Callback):
    """Keeps weight averaging's count of updates on the CPU: it is read twice a step, which would block on a GPU."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = callback._average_model if isinstance(callback, WeightAveraging) else None
            if average is not None:
                average.n_averaged = average.n_averaged.cpu()


class TrainClock(L.Callback):
    """Seconds spent in training steps; Lightning's Timer counts validation and checkpoints too."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds + (time.perf_counter() - self.since if self.since is not None else 0.0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
        self.since = None


class EpochLine(L.Callback):
    """Logs one line per epoch, where output goes to a file or a pipe and a progress bar would fill it."""

    def __init__(self) -> None:
        self.started = 0.0
        self.first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()
        self.first = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shown = ("train/loss", "val/loss", "val/accuracy", "val/f1_macro")
        values = trainer.callback_metrics  # computed by all processes together
        if not trainer.is_global_zero:
            return
        text = "  ".join(f"{key} {float(values[key]):.4f}" for key in shown if key in values)
        per_epoch = (time.monotonic() - self.started) / (trainer.current_epoch + 1 - self.first)
        left = per_epoch * ((trainer.max_epochs or 0) - trainer.current_epoch - 1)
        log.info(
            "epoch %d/%s  %s  (%.1f s an epoch, about %.0f s left)",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            text,
            per_epoch,
            left,
        )


class Curves(L.Callback):
    """Writes ``metrics.csv``: one row per finished epoch, saved in the checkpoints too.

    So a resumed run has every row once, wherever it was interrupted. A logger that appends to a file would repeat
    some rows and miss others, logged between the last save and the interruption.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.validated = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning keeps the scores of the last validation among the metrics until the next one.
        prefixes = ("train/", "val/") if self.validated else ("train/",)
        scores = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(prefixes)}
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate, **scores})
        self.validated = False
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        text = io.StringIO()
        columns = dict.fromkeys(["epoch", "step", "lr", *sorted({key for row in self.rows for key in row})])
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        replace_file(self.path, text.getvalue().encode())
