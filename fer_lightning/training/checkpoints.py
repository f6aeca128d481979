"""What a checkpoint holds, when and how it is written, so that a run resumed from it ends with the same bits."""

import math
import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import distributed

from fer_lightning.loading.datamodule import FERDataModule
from fer_lightning.model.checkpoint import write_checkpoint
from fer_lightning.runtime import signals
from fer_lightning.runtime.errors import check
from fer_lightning.training.saved_state import check_fits


class ExactResume(L.Callback):
    """Adds to a checkpoint what Lightning does not save, so that a resumed run ends with the same bits.

    ``position``: the epoch and the batches of it that are done. ``processes``: of each process, its random states
    and, within an epoch, the sums of its training metrics. Order and augmentation need no state: they are functions
    of seed, epoch and position.

    Args:
        max_steps: optimizer steps after which training ends; -1 for no limit. As the Trainer's own argument, a run
            resumed from a checkpoint after an epoch would repeat the end of that epoch.
    """

    def __init__(self, max_steps: int = -1) -> None:
        self.max_steps = max_steps
        self.state: dict[str, Any] | None = None
        self.restored: dict[str, Any] | None = None
        self.batches = 0  # of the epoch, that are done
        self.patience: list[int] = []
        self.trained = False  # a step was made, so that all that was restored fits
        self.group: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            # For small messages on the CPU, which do not wait for the GPUs.
            self.group = distributed.new_group(backend="gloo")

    def any_process(self, condition: bool) -> bool:
        """Whether ``condition`` is true in any process; a collective call, which all of them must make."""
        if self.group is None:
            return condition
        flag = torch.tensor(int(condition))
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.group)
        return bool(flag)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        epoch: Any = trainer.fit_loop.epoch_progress.current
        in_epoch = epoch.started > epoch.processed
        mid_epoch = in_epoch and not trainer.is_last_batch
        checkpoint["position"] = {
            "epoch": epoch.processed + (in_epoch and not mid_epoch),
            "batches": trainer.fit_loop.epoch_loop.batch_progress.current.ready if mid_epoch else 0,
        }
        own: dict[str, Any] = {"random": _random_state(pl_module.device)}
        if mid_epoch:
            own["metrics"] = {
                name: {key: value.cpu() for key, value in metric.metric_state.items()}
                for name, metric in _training_metrics(pl_module)
            }
        states: list[Any] = [own] * trainer.world_size
        if self.group is not None:
            distributed.all_gather_object(states, own, group=self.group)
        checkpoint["processes"] = states

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["processes"]
        self.state = states[trainer.global_rank] if trainer.global_rank < len(states) else None
        self.restored = {key: checkpoint[key] for key in ("optimizer_states", "lr_schedulers")}
        self.batches = checkpoint["position"]["batches"]
        self.patience = [stopper.patience for stopper in _stoppers(trainer)]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Optimizer and schedule are built by now and not restored yet.
        if self.restored is not None:
            check_fits(self.restored, trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler)
            for stopper, patience in zip(_stoppers(trainer), self.patience, strict=True):
                stopper.patience = patience  # the setting of this run, not the checkpoint's
        self.restored = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        length = trainer.num_training_batches
        check(self.batches < length or self.batches == 0, f"it stopped at batch {self.batches} of {length} of an epoch")
        # Lightning does not save that it had stopped early.
        trainer.should_stop = any(stopper.wait_count >= stopper.patience for stopper in _stoppers(trainer))
        self._stop_after_max_steps(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained = True
        self._stop_after_max_steps(trainer)

    def _stop_after_max_steps(self, trainer: L.Trainer) -> None:
        if 0 <= self.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # As late as possible: building loaders and models uses random numbers too.
        if self.state is None:
            return
        _set_random_state(self.state["random"], pl_module.device)
        for name, metric in _training_metrics(pl_module):
            for key, value in self.state.get("metrics", {}).get(name, {}).items():
                fits = key in metric.metric_state and value.shape == metric.metric_state[key].shape
                check(fits, f"its sums of {name} are not those of this run")
                setattr(metric, key, value.to(pl_module.device))
        self.state = None


def _on_features(trainer: L.Trainer) -> bool:
    datamodule: FERDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return datamodule.features is not None


def _stoppers(trainer: L.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]


def _training_metrics(module: L.LightningModule) -> list[tuple[str, Any]]:
    metrics: Any = module.train_metrics
    return [*metrics.items(keep_base=True), ("loss", module.train_loss)]


def _random_state(device: torch.device) -> dict[str, Any]:
    """The global generators' states as tensors and plain Python, which load with ``weights_only=True``."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *(float(part) for part in rest)),
        "torch": torch.get_rng_state(),
    }
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after every epoch, every ``every_n_steps``, and when a signal or a pause stops the run.

    Nothing can be saved between an epoch's last step and the end of its validation. So where the next validation may
    take long, the checkpoint is also written before that step: a resumed run then repeats one step, not the epoch.
    Training on kept features takes about as long as writing the checkpoint: it is written once, after the last epoch.

    Args:
        path: of the checkpoint.
        every_n_steps: optimizer steps between saves within an epoch; None for none.
        pause_after: epochs after which the run stops, to be resumed later; None to train to the end.
        exact: lets the processes agree on whether to save.
    """

    PATIENCE_SECONDS = 20.0
    """How long a stopped run continues a validation so that the finished epoch can be saved."""

    def __init__(self, path: Path, every_n_steps: int | None, pause_after: int | None, exact: ExactResume) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.pause_after = pause_after
        self.exact = exact
        self.validation_seconds = math.inf  # of the last one; the first could take any time
        self.validating_since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.listen()  # Lightning has just installed handlers of its own, which hang in a collective operation

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        signals.defer(True)
        if trainer.is_last_batch or trainer.should_stop or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # saved at the end of the epoch; gradients that are being accumulated cannot be saved
        stopped = self.exact.any_process(signals.requested())
        due = bool(self.every_n_steps and trainer.global_step % self.every_n_steps == 0)
        if self._one_step_before_validation(trainer, batch_idx):
            due |= self.exact.any_process(self.validation_seconds > self.PATIENCE_SECONDS / 2)
        if stopped or due:
            self._save(trainer)
        if stopped:
            signals.raise_interrupted()

    def _one_step_before_validation(self, trainer: L.Trainer, batch_idx: int) -> bool:
        every = trainer.check_val_every_n_epoch or 1
        if not trainer.enable_validation or _on_features(trainer) or (trainer.current_epoch + 1) % every:
            return False
        steps_of_many = trainer.accumulate_grad_batches
        last_but_one = (trainer.num_training_batches - 1) // steps_of_many * steps_of_many
        return batch_idx + 1 == last_but_one or trainer.global_step + 1 == self.exact.max_steps

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validating_since = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation_seconds = time.monotonic() - self.validating_since

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # The other processes end with the first one.
        if trainer.is_global_zero and signals.seconds_since() > self.PATIENCE_SECONDS:
            signals.raise_interrupted(" in a long validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stopped = self.exact.any_process(signals.requested())
        epochs = trainer.current_epoch + 1
        paused = self.pause_after is not None and epochs >= self.pause_after
        if stopped or paused or trainer.should_stop or epochs == trainer.max_epochs or not _on_features(trainer):
            self._save(trainer)
        if stopped:
            signals.raise_interrupted()
        if paused:
            signals.raise_paused(epochs)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.defer(False)
        if signals.requested():
            signals.raise_interrupted()
        if self.pause_after is not None:  # stopped early: the search that asked for the pause decides whether to test
            signals.raise_paused(self.pause_after)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)


class MovableCheckpoint(ModelCheckpoint):
    """Keeps its best checkpoint in a run that is resumed in another folder, or in one that was moved.

    Lightning discards it when the folder's path has changed, and would take the next epoch for the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Not the state's own path, which Lightning deletes at the next better epoch.
        best = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        if not state_dict["best_model_path"] or not Path(best).exists():
            return  # the best of the remaining epochs is kept
        self.best_model_path = best
        score = state_dict["best_model_score"]
        if score is not None:
            self.best_model_score = self.kth_value = score
            self.kth_best_model_path, self.best_k_models = best, {best: score}


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its final path and renames it, so that the previous one exists until then.

    Lightning moves it from the system's temporary folder instead. From another file system that is a copy, and when
    the disk fills up in the middle of it, both the old and the new checkpoint are lost. The previous ``last.ckpt`` is
    kept as ``previous.ckpt``, in case the write was not durable.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        final = Path(path)
        write_checkpoint(final, checkpoint, keep=final.with_name("previous.ckpt") if final.stem == "last" else None)
