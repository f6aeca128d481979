"""One run from a validated configuration: build, fit, test the best checkpoint, write the run folder."""

import logging
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from fer_lightning.config.settings import to_plain
from fer_lightning.data.faces import Faces, class_noun
from fer_lightning.data.from_config import load_faces, split_faces
from fer_lightning.data.splits import Split, count_parts
from fer_lightning.evaluation.score import evaluate
from fer_lightning.imbalance.weights import weights_in_words
from fer_lightning.loading.datamodule import FERDataModule
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime import signals
from fer_lightning.runtime.errors import Interrupted, UserError, one_line
from fer_lightning.runtime.folder_lock import lock_for_run
from fer_lightning.runtime.processes import is_first_process, keep_freed_memory
from fer_lightning.runtime.provenance import environment, file_hash, git_commit
from fer_lightning.runtime.run_folder import holds_training, read_status, settle_record, write_status
from fer_lightning.training import build, results, tracking
from fer_lightning.training.adjust import adjust, fold_margins
from fer_lightning.training.callbacks import TrainClock
from fer_lightning.training.checkpoints import ExactResume
from fer_lightning.training.failures import as_user_error, record_failure
from fer_lightning.training.feature_cache import KeptFeatures, keep_features
from fer_lightning.training.first_stage import (
    first_stage_hash,
    first_stage_metrics,
    read_first_stage,
    with_split_of_first_stage,
)
from fer_lightning.training.resume import ResumePoint, find_resume_point

log = logging.getLogger(__name__)

QUIET = (
    ".*does not have many workers.*",
    ".*number of training batches.*",
    ".*logger.*metrics.csv.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15
    ".*your dataloader is not resumable.*",  # its sampler is
    ".*srun. command is available.*",
)
"""Warnings of Lightning about choices that are made here on purpose."""


@dataclass(frozen=True)
class TrainedRun:
    """What a finished run leaves in memory: the content of ``metrics.json`` and the objects, for notebooks."""

    metrics: dict[str, Any]
    trainer: L.Trainer
    model: EmotionClassifier
    datamodule: FERDataModule


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide messages of Lightning, timm and the Hub about choices that are made here on purpose; restored on exit."""
    # Without a network the Hub's client logs a line per retry; the error that follows is enough.
    levels = dict.fromkeys(("lightning.pytorch", "lightning.fabric", "timm"), logging.WARNING)
    levels["huggingface_hub"] = logging.ERROR
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@quiet_libraries()
def run(cfg: DictConfig, folder: Path) -> TrainedRun | None:
    """Train, test once, and fill ``folder``, which is locked until the run ends.

    Args:
        cfg: a composed configuration that passed ``config.rules``.
        folder: the run folder; exists.

    Returns:
        The run, or None on the processes of a distributed run other than the first, and after a ``fast_dev_run``.

    Raises:
        UserError: for everything the user can correct; the reason is also in ``status.json``.
        Interrupted: a signal or ``pause_after_epochs`` stopped the run; ``resume=auto`` resumes it.
    """
    first = is_first_process()
    lock = lock_for_run(folder, cfg.resume) if first else None
    former = read_status(folder) if first and holds_training(folder) else {"status": "missing"}
    loggers: list[Any] = []
    signals.reset()
    try:
        if first:
            write_status(folder, "running")
        trained = _train_and_test(cfg, folder, loggers)
        tracking.finish(loggers, failed=False)
        if first:
            write_status(folder, "done")
    except BaseException as error:
        user_error = as_user_error(error, cfg, folder)
        if first:
            settle_record(folder, started=False)
            if isinstance(error, _NotStartedError) and former["status"] not in ("missing", "running"):
                write_status(folder, **former)  # a training that cannot be resumed stays as it was
            else:
                record_failure(user_error or error, folder)
        tracking.finish(loggers, failed=True)
        if isinstance(error, SystemExit):
            raise KeyboardInterrupt from error  # which Lightning turns into exit(1)
        if user_error is not None and user_error is not error:
            raise user_error from error
        raise
    finally:
        if lock is not None:
            lock.release()
    return trained


class _NotStartedError(UserError):
    """A mistake that was found before the run changed anything."""


@dataclass(frozen=True)
class _Data:
    """What a run trains on: its images, their split, and the model that it starts from.

    ``cfg`` is the run's configuration, completed by what the images and the first stage decide.
    """

    cfg: DictConfig
    faces: Faces
    split: Split
    first_stage: StoredModel | None
    provenance: dict[str, Any]


@dataclass(frozen=True)
class _Training:
    """What ``fit`` needs; ``drawn`` are the class counts of the first epoch's batches, of all processes."""

    trainer: L.Trainer
    model: EmotionClassifier
    datamodule: FERDataModule
    start: ResumePoint | None
    clock: TrainClock
    drawn: list[int]


def _train_and_test(cfg: DictConfig, folder: Path, loggers: list[Any]) -> TrainedRun | None:
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    try:
        data = _read_data(cfg, folder)
        training = _build(data, folder, loggers)
        features = _keep_features(data, training)
    except UserError as error:
        raise _NotStartedError(*error.args) from error
    if is_first_process():
        settle_record(folder, started=True)
    if not _only_adjusts(cfg):
        with _named_checkpoint(training, data.cfg, folder):
            _fit(training)
    if cfg.trainer.fast_dev_run:
        log.info("trainer.fast_dev_run: nothing was saved and nothing tested")
    if cfg.trainer.fast_dev_run or not training.trainer.is_global_zero:
        return None
    best = _finished_model(data, training, features, folder)
    return _test(data, training, features, best, folder, loggers)


def _read_data(cfg: DictConfig, folder: Path) -> _Data:
    faces = load_faces(cfg)
    first_stage = read_first_stage(cfg)
    cfg = with_split_of_first_stage(build.for_images(cfg, faces.form), first_stage)
    split = split_faces(cfg, faces)
    _log_images(faces, split, folder)
    provenance = {"data_hash": faces.data_hash, "git_commit": git_commit(), "versions": environment()}
    return _Data(cfg, faces, split, first_stage, provenance)


def _build(data: _Data, folder: Path, loggers: list[Any]) -> _Training:
    """Build what is trained and what trains it; ``loggers`` is filled, so that a failure can close them."""
    cfg, faces = data.cfg, data.faces
    datamodule = build.build_datamodule(cfg, faces, data.split)
    drawn = datamodule.drawn_counts
    loss = build.build_loss(cfg, datamodule.class_counts, datamodule.faces.classes)
    if weights := weights_in_words(loss, faces.classes):
        log.info("Class weights in the loss: %s", weights)
    second_stage = build.build_second_stage(cfg)
    loggers += tracking.build_loggers(to_plain(cfg), folder)
    clock = TrainClock()
    callbacks: list[Callback] = [clock] if second_stage is None else [second_stage, clock]
    trainer = build.build_trainer(cfg, folder, loggers, callbacks, has_validation=len(data.split.val) > 0)
    start = find_resume_point(cfg, folder, faces.data_hash, trainer.world_size)
    if start is not None and cfg.pause_after_epochs is not None and start.epoch >= cfg.pause_after_epochs:
        signals.raise_paused(cfg.pause_after_epochs)  # it was stopped between the save and the pause
    # The file of the initial weights may be another one when the run resumes.
    begun = file_hash(cfg.model.weights) if start is None else start.weights_hash
    data.provenance["weights_hash"] = None if data.first_stage is not None else begun
    if data.first_stage is not None:
        begun = None if start is None else start.first_stage_hash
        data.provenance["first_stage_hash"] = first_stage_hash(data.first_stage, begun)
    counts, resumed = dict(zip(faces.classes, datamodule.class_counts, strict=True)), start is not None
    parts = (data.provenance, loss, second_stage, data.first_stage)
    model = build.build_model(cfg, counts, faces.form, *parts, resumed)
    return _Training(trainer, model, datamodule, start, clock, drawn)


def _keep_features(data: _Data, training: _Training) -> KeptFeatures | None:
    """The features of a frozen backbone, which then take the place of the images."""
    source = training.model if training.start is None else EmotionClassifier.load(training.start.path)
    reported = results.reported_split(data.cfg, data.split)
    device = training.trainer.strategy.root_device
    features = keep_features(data.cfg, source, training.datamodule, reported, device)
    if features is not None and features.train is not None:
        training.datamodule.use_features(features.train, features.scored.at(data.split.val).numpy())
    return features


def _finished_model(data: _Data, training: _Training, features: KeptFeatures | None, folder: Path) -> StoredModel:
    """The best checkpoint, its last layer adjusted as the method asks."""
    cfg = data.cfg
    best = data.first_stage if _only_adjusts(cfg) else None
    if best is None:
        best = _best_checkpoint(training.trainer, folder)
    if cfg.imbalance.get("adjust") is not None:
        device = training.trainer.strategy.root_device
        pooled = None if features is None else features.scored
        best = adjust(cfg, best, folder, data.faces, data.split, device, pooled)
    return fold_margins(best) if cfg.model.head.class_margin else best


def _test(
    data: _Data,
    training: _Training,
    features: KeptFeatures | None,
    best: StoredModel,
    folder: Path,
    loggers: list[Any],
) -> TrainedRun:
    """Score the finished model once, and write the run's files."""
    cfg, trainer, datamodule = data.cfg, training.trainer, training.datamodule
    tested = EmotionClassifier.of(best)
    pooled = None if features is None else features.of(tested)
    reported = results.reported_split(cfg, data.split)
    evaluation = evaluate(tested, data.faces, reported, trainer.strategy.root_device, pooled=pooled)
    about_first_stage = first_stage_metrics(data.first_stage)
    if about_first_stage:
        trained_on = None if features is None else features.train
        about_first_stage["first_stage/feature_views"] = None if trained_on is None else len(trained_on)
    about = (data.provenance, about_first_stage)
    metrics = results.collect_metrics(cfg, evaluation, best, trainer, datamodule, training.clock.seconds, *about)
    results.write_results(cfg, folder, best, metrics, evaluation, datamodule, training.drawn, loggers)
    return TrainedRun(metrics, trainer, tested, datamodule)


def _log_images(faces: Faces, split: Split, folder: Path) -> None:
    if faces.synthetic:
        log.info("NOTE: these faces are drawn (synthetic); no number of this run says anything about FER-2013")
    sizes = len(split.train), len(split.val), len(split.tests["test"])
    log.info("Images of each %s, train + val + test: %s", class_noun(faces.classes), count_parts(faces, split))
    log.info("train %d  val %d  test %d images; %s", *sizes, folder)


def _only_adjusts(cfg: DictConfig) -> bool:
    """Whether the run takes a model that another run trained and changes its last layer, without a step."""
    return bool(cfg.imbalance.get("adjust") is not None and cfg.imbalance.get("first_stage"))


@contextmanager
def _named_checkpoint(training: _Training, cfg: DictConfig, folder: Path) -> Iterator[None]:
    """Report an error before the first step of a resumed run as one of its checkpoint.

    Raises:
        UserError: the state in the checkpoint does not fit the run.
    """
    try:
        yield
    except Exception as error:
        start, callbacks = training.start, training.trainer.callbacks  # type: ignore[attr-defined]
        exact = next(each for each in callbacks if isinstance(each, ExactResume))
        if start is None or exact.trained or as_user_error(error, cfg, folder) is not None:
            raise
        reason = shortened(one_line(error), 200)
        raise UserError(
            f"{start.path}: its training state does not fit this run ({reason}); give another checkpoint, or train "
            "anew in another hydra.run.dir"
        ) from error


def _fit(training: _Training) -> None:
    """Train, from a checkpoint where there is one; afterwards no process waits for another."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    trainer, datamodule, start = training.trainer, training.datamodule, training.start
    if start is not None:
        log.info("resuming from %s: epoch %d, batch %d", start.path, start.epoch + 1, start.batches + 1)
        datamodule.resume_at(start.epoch, start.batches)
    try:
        path = start.path if start else None
        trainer.fit(training.model, datamodule, ckpt_path=path, weights_only=True)
    except Interrupted:
        _await_other_processes(trainer)
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # The test counts every image once and must equal `evaluate`: the first process alone does it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _await_other_processes(trainer: L.Trainer) -> None:
    """Wait until the further processes of a stopped run have ended, so that the next run can start after this one."""
    for process in getattr(trainer.strategy.launcher, "procs", []):
        with suppress(subprocess.TimeoutExpired):  # then it ends with this one, see signals.end_with_parent
            process.wait(signals.SECONDS_TO_END)


def _best_checkpoint(trainer: L.Trainer, folder: Path) -> StoredModel:
    callback = trainer.checkpoint_callback
    best = Path(getattr(callback, "best_model_path", "") or folder / "checkpoints" / "best.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    if not best.exists() and last.exists():
        log.info("no validation has chosen a checkpoint: the last epoch is tested")
        return StoredModel.read(last)
    if not best.exists():
        raise UserError(f"{folder}: no checkpoint was written, so nothing can be tested; train again")
    try:
        return StoredModel.read(best)
    except UserError as error:
        way_out = "remove it, and resume=auto tests the last epoch; or train anew in another hydra.run.dir"
        raise UserError(f"{best}: is empty or damaged, so that nothing can be tested; {way_out}") from error
