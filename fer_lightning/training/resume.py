"""Resuming from a checkpoint: which one, how far the training had come, and whether it fits the run."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fer_lightning.config.safety import recorded
from fer_lightning.config.same_training import check_same_training
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path, replace_file
from fer_lightning.runtime.processes import is_first_process
from fer_lightning.training.saved_state import check_training_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes.

    Attributes:
        path: the checkpoint.
        epoch: the next one, from 0.
        batches: of that epoch that are done already.
        weights_hash: of the file of initial weights that the training began with, if any.
        first_stage_hash: digest of the weights of the first stage that it began with, if any.
    """

    path: Path
    epoch: int
    batches: int
    weights_hash: str | None
    first_stage_hash: str | None


def find_resume_point(cfg: DictConfig, folder: Path, data_hash: str, processes: int) -> ResumePoint | None:
    """The checkpoint that ``cfg.resume`` selects, or None to start a new training.

    A damaged ``last.ckpt`` of a run folder is reported, and the previous one is used. When another run's folder is
    resumed, its best checkpoint so far is copied into this one.

    Args:
        cfg: the composed run; ``resume`` is null, ``auto`` (the last checkpoint of ``folder``, if it has one), a run
            folder or a checkpoint.
        folder: the run folder.
        data_hash: of the images of this run.
        processes: of this run, on all devices and nodes.

    Raises:
        UserError: not a safe checkpoint of this project; one of a run with other settings (``check_same_training``);
            one trained on other images, whose training set may hold this run's test images; one trained for longer than
            this run, or another run's that has nothing left to train; or one beside the best checkpoint of another
            training.
    """
    if cfg.resume is None:
        return None
    given = folder if cfg.resume == "auto" else Path(cfg.resume)
    path, checkpoint = _read(given)
    if checkpoint is None:
        if cfg.resume != "auto":
            raise UserError(f"resume={cfg.resume}: no such checkpoint {path}; give a run folder or a run's last.ckpt")
        return None
    if "position" not in checkpoint:  # saved by another program's Trainer
        raise UserError(f"resume={cfg.resume}: {path} has no position in the training; give a run's last.ckpt")
    check_training_state(checkpoint, path)
    provenance = checkpoint["hyper_parameters"]["provenance"]
    begun = {key: provenance.get(key) for key in ("weights_hash", "first_stage_hash")}
    point = ResumePoint(path, **checkpoint["position"], **begun)
    _check_same_experiment(cfg, checkpoint, data_hash)
    if point.batches and len(checkpoint["processes"]) != processes:
        raise UserError(
            f"resume={cfg.resume}: it stopped within an epoch of {len(checkpoint['processes'])} processes; "
            f"resume with as many devices, not {processes}"
        )
    _check_length(cfg, point, checkpoint["global_step"])
    best, own = path.parent / "best.ckpt", folder / "checkpoints"
    if best.exists():
        is_others = real_path(best.parent) != real_path(own)
        _check_best(best, checkpoint, damaged_is_refused=is_others)
        if is_others and is_first_process():
            own.mkdir(parents=True, exist_ok=True)
            replace_file(own / "best.ckpt", best.read_bytes())
    return point


def _check_length(cfg: DictConfig, point: ResumePoint, steps: int) -> None:
    """Check that a run asks for no less training than the checkpoint has, and another run's for more.

    Raises:
        UserError: naming the setting to raise.
    """
    trainer = cfg.trainer
    if point.epoch >= trainer.max_epochs and cfg.resume != "auto":
        raise UserError(
            f"resume={cfg.resume}: it has all {point.epoch} epochs; "
            f"raise trainer.max_epochs={trainer.max_epochs} to continue"
        )
    begun = point.epoch + bool(point.batches)
    for key, limit, trained in (("max_epochs", trainer.max_epochs, begun), ("max_steps", trainer.max_steps, steps)):
        if 0 <= limit < trained:
            raise UserError(
                f"resume={cfg.resume}: was trained for more than trainer.{key}={limit}; give at least {trained}, or "
                "train anew in another hydra.run.dir"
            )


def _check_best(best: Path, checkpoint: dict[str, Any], damaged_is_refused: bool) -> None:
    """Check that the best checkpoint so far is of the training that ``checkpoint`` resumes.

    Raises:
        UserError: it is another's, or damaged; the next better epoch may replace a damaged one of the run itself.
    """
    try:
        kept = read_checkpoint(best)
    except UserError:
        if damaged_is_refused:
            raise
        return
    try:
        rows = list(kept["callbacks"]["Curves"]["rows"])
    except (LookupError, RuntimeError, TypeError, ValueError):  # it may be anything that holds a model
        rows = [None]
    if any(
        repr(one) != repr(other) for one, other in zip(rows, checkpoint["callbacks"]["Curves"]["rows"], strict=False)
    ):
        raise UserError(
            f"{best}: is of another training than last.ckpt; remove it, and the later epochs choose the best"
        )


def saved_step(folder: Path) -> int:
    """Optimizer steps in the last checkpoint of a run folder; 0 without one."""
    checkpoint = _read(folder)[1]
    return int(checkpoint.get("global_step", 0)) if checkpoint else 0


def _read(given: Path) -> tuple[Path, dict[str, Any] | None]:
    """The checkpoint at or in ``given`` and its content, None where there is none."""
    if not given.is_dir():
        return given, read_checkpoint(given)
    last, previous = (given / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    if last.exists():
        try:
            return last, read_checkpoint(last)
        except UserError as error:
            if not previous.exists():
                raise
            before = read_checkpoint(previous)
            log.warning("%s; resuming from the previous one, %s", error, previous)
            with suppress(FileNotFoundError):  # moved aside: the next save would keep it as the previous one
                last.replace(last.with_name("torn.ckpt"))
            return previous, before
    return (previous, read_checkpoint(previous)) if previous.exists() else (last, None)


def _check_same_experiment(cfg: DictConfig, checkpoint: dict[str, Any], data_hash: str) -> None:
    hyper = checkpoint["hyper_parameters"]
    stored = {**hyper["config"], "model": hyper["model"], "optim": hyper["optim"]}
    check_same_training(cfg, recorded(stored, f"resume={cfg.resume}"))
    if hyper["provenance"]["data_hash"] != data_hash:
        raise UserError(f"resume={cfg.resume}: it was trained on other images; give the same data.path and data.source")
