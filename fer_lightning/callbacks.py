"""What Lightning does not have: a stop on NaN, a line per epoch, checkpoints that survive a full disk and a move."""

import io
import logging
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from fer_lightning.errors import UserError

log = logging.getLogger(__name__)


class StopOnNonFinite(L.Callback):
    """End the run when the loss becomes NaN or infinite, before a checkpoint of broken weights is written.

    The flag is kept on the device and read every ``log_every_n_steps`` and at the end of an epoch, so that no step
    waits for the device.
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

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Squares, as batch normalisation takes: finite weights beyond 1e19 give NaN too.
        squares = torch.stack([parameter.detach().float().square().sum() for parameter in pl_module.parameters()])
        self.finite = torch.isfinite(squares).all()
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        # Together: a process that stopped alone would leave the others waiting for its gradients.
        if self.finite is not None and not trainer.strategy.reduce_boolean_decision(bool(self.finite), all=True):
            last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            kept = "the last good checkpoint is kept" if last.exists() else "there is no good checkpoint yet"
            raise UserError(
                f"the loss became NaN or infinite in epoch {trainer.current_epoch + 1} by step {trainer.global_step}; "
                f"{kept}; try a smaller optim.lr, more optim.warmup_fraction or "
                "trainer.precision=32-true"
            )
        self.finite = None


class TrainClock(L.Callback):
    """Seconds spent in training steps; Lightning's Timer counts validation and checkpoints too."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.since: float | None = None

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
    """One printed line per epoch, for logs and pipes where a progress bar would only leave garbage."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()
        self.first = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        shown = ("train/loss", "val/loss", "val/accuracy", "val/f1_macro")
        values = trainer.callback_metrics
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


class MovableCheckpoint(ModelCheckpoint):
    """Remembers its best checkpoint in a run that goes on in another folder, or in one that was moved.

    Lightning forgets it when the folder's path has changed, and would take the next epoch for the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath})


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it, so that the previous one is there until then.

    Lightning moves it from the system's temporary folder instead. From another file system that is a copy, and when
    the disk fills up in the middle of it, both the old and the new checkpoint are lost.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        # torch.save to a file would raise a RuntimeError on a full disk, without the reason.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            temporary.write_bytes(buffer.getbuffer())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
