"""Two callbacks that Lightning does not have."""

import logging
import time
from typing import Any

import lightning as L
import torch

from fer_lightning.errors import UserError

log = logging.getLogger(__name__)


class StopOnNonFinite(L.Callback):
    """End the run when the loss becomes NaN or infinite, before a checkpoint of broken weights is written.

    The flag is kept on the device and read every ``log_every_n_steps`` and before each validation, so that no step
    waits for the device.
    """

    def __init__(self) -> None:
        self.finite: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finite = torch.isfinite(outputs["loss"].detach())
        self.finite = finite if self.finite is None else self.finite & finite
        steps: int = getattr(trainer, "log_every_n_steps", 1)
        if trainer.is_last_batch or (batch_idx + 1) % max(1, steps) == 0:
            self._check(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The last step may break the weights although its own loss was finite.
        parameters = torch.stack([parameter.detach().sum() for parameter in pl_module.parameters()])
        self.finite = torch.isfinite(parameters).all()
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if self.finite is not None and not bool(self.finite):
            raise UserError(
                f"the loss became NaN or infinite in epoch {trainer.current_epoch + 1} by step {trainer.global_step}; "
                "the last good checkpoint is kept; try a smaller optim.lr, more optim.warmup_fraction or "
                "trainer.precision=32-true"
            )
        self.finite = None


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
