"""One run from a validated configuration: build, fit, test the best checkpoint, write the run folder."""

import errno
import json
import logging
import subprocess
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fer_lightning.config.augment import Strengths
from fer_lightning.data.faces import EMOTIONS, Faces, count_classes
from fer_lightning.data.from_config import load_faces, split_faces
from fer_lightning.data.splits import Split
from fer_lightning.evaluation import figures, scorecard
from fer_lightning.evaluation.score import Evaluation, evaluate, headline, print_table
from fer_lightning.imbalance.second_stage import SecondStage
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.datamodule import FERDataModule
from fer_lightning.metrics.predictions import reported
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier, input_size
from fer_lightning.presentation import words
from fer_lightning.runtime import signals, slurm_task
from fer_lightning.runtime.errors import Interrupted, UserError
from fer_lightning.runtime.files import write_json
from fer_lightning.runtime.processes import device_count, is_first_process
from fer_lightning.runtime.provenance import environment, git_commit
from fer_lightning.runtime.run_folder import lock_for_run, write_status
from fer_lightning.training import adjust, tracking
from fer_lightning.training.callbacks import CountsOnHost, Curves, EpochLine, StopOnNonFinite, TrainClock
from fer_lightning.training.checkpoints import AtomicCheckpoints, ExactResume, LastCheckpoint, MovableCheckpoint
from fer_lightning.training.resume import Resume, resume_from, saved_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a finished run leaves in memory: the content of ``metrics.json`` and the objects, for notebooks."""

    metrics: dict[str, Any]
    trainer: L.Trainer
    model: EmotionClassifier
    datamodule: FERDataModule


def run(cfg: DictConfig, folder: Path) -> Run | None:
    """Train, test once, and fill ``folder``.

    Args:
        cfg: a composed configuration that passed ``config.validate``.
        folder: the run folder; exists.

    Returns:
        The run, or None on the processes of a distributed run other than the first.

    Raises:
        UserError: for everything the user can mend; the reason is also in ``status.json``.
        Interrupted: a signal stopped the run; ``resume=auto`` goes on.
    """
    first = is_first_process()
    lock = lock_for_run(folder, cfg.resume) if first else None
    loggers: list[Any] = []
    signals.forget()
    try:
        if first:
            write_status(folder, "running")
        result = _run(cfg, folder, loggers)
        tracking.finish(loggers, failed=False)
        if first:
            write_status(folder, "done")
    except BaseException as error:
        mended = _as_user_error(error, cfg, folder)
        if first:
            _record(error, mended, folder)
        tracking.finish(loggers, failed=True)
        if isinstance(error, SystemExit):
            raise KeyboardInterrupt from error  # which Lightning turns into exit(1)
        if mended is not None and mended is not error:
            raise mended from error
        raise
    finally:
        if lock is not None:
            lock.release()
    if result is not None:
        # After the loggers have had their say: the last line belongs to programs.
        scored = _reported_set(cfg)
        print_table(result.metrics, scored)
        numbers = headline(result.metrics, scored)
        line = {"run": str(folder), "imbalance": cfg.imbalance.name, "seed": cfg.seed, **numbers}
        print(json.dumps(line), flush=True)
    return result


def _record(error: BaseException, mended: UserError | None, folder: Path) -> None:
    try:
        if isinstance(error, Interrupted):
            write_status(folder, "interrupted", str(error), step=saved_step(folder))
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            write_status(folder, "interrupted", "stopped by Ctrl-C", step=saved_step(folder))
        else:
            reason = str(mended or error).strip() or type(error).__name__
            write_status(folder, "failed", reason.splitlines()[0])
    except OSError as trouble:  # a full disk must not hide the first error
        log.warning("%s: status.json could not be written (%s)", folder, trouble)


def _run(cfg: DictConfig, folder: Path, loggers: list[Any]) -> Run | None:
    _quiet()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    faces = load_faces(cfg)
    split = split_faces(cfg, faces)
    if faces.synthetic:
        log.info("NOTE: these faces are drawn (synthetic); no number of this run says anything about FER-2013")
    datamodule = _datamodule(cfg, faces, split)
    drawn = datamodule.drawn_counts  # of the first epoch, and of all processes: asked before training
    provenance = {
        "data_hash": faces.data_hash,
        "git_commit": git_commit(),
        "versions": environment(),
    }
    loss = instantiate(cfg.imbalance.loss, _partial_=True)(class_counts=datamodule.class_counts)
    loggers += tracking.build_loggers(_plain(cfg), folder)
    clock = TrainClock()
    stage = _second_stage(cfg)
    stages = [stage] if stage is not None else []
    trainer = build_trainer(cfg, folder, loggers, [*stages, clock], has_validation=len(split.val) > 0)
    start = resume_from(cfg, folder, faces.data_hash, trainer.world_size)
    model = _model(cfg, datamodule.class_counts, provenance, loss, stage, goes_on=start is not None)
    log.info(
        "train %d  val %d  test %d images; %s",
        len(split.train),
        len(split.val),
        len(split.tests["test"]),
        folder,
    )
    adjusts, first_stage = cfg.imbalance.get("adjust") is not None, cfg.imbalance.get("first_stage")
    _fit(trainer, model, datamodule, start, trained=bool(adjusts and first_stage))
    if cfg.trainer.fast_dev_run:
        log.info("trainer.fast_dev_run: a rehearsal, nothing was saved and nothing tested")
    if cfg.trainer.fast_dev_run or not trainer.is_global_zero:
        return None

    device = trainer.strategy.root_device
    best = Path(first_stage) if adjusts and first_stage else _best_checkpoint(trainer, folder)
    if adjusts:
        best = adjust.adjust(cfg, best, folder, faces, split, device)
    tested = EmotionClassifier.load(best)
    scored = split if cfg.test else replace(split, tests={"val": split.val})
    evaluation = evaluate(tested, faces, scored, device)
    images = trainer.global_step * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
    metrics = {
        **evaluation.metrics,
        "train/seconds": clock.seconds,
        "train/images_per_second": images / clock.seconds if clock.seconds else None,
        "train/steps": trainer.global_step,
        **_first_stage(first_stage),
        "train/class_counts": dict(zip(EMOTIONS, datamodule.class_counts, strict=True)),
        "epoch": int(read_checkpoint(best)["epoch"]),
        "seed": cfg.seed,
        "imbalance": cfg.imbalance.name,
        "model": cfg.model.name,
        "split": cfg.split.name,
        "data": cfg.data.name,
        "labels": cfg.labels.name,
        "drop_duplicates": cfg.data.drop_duplicates,
        "budget": cfg.budget,
        "monitor": cfg.monitor,
        "tau": (tested.hparams["adjusted"] or {}).get("tau"),
        "synthetic": faces.synthetic,
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        **provenance,
    }
    scorecard.store(best, scorecard.make_scorecard(metrics))
    name = _reported_set(cfg)
    shown = faces.images[scored.tests[name]]
    sets = {"train": split.train, "val": split.val, name: scored.tests[name]}
    labels = {key: faces.labels[rows] for key, rows in sets.items()}
    _write_artefacts(folder, metrics, evaluation, shown, labels, drawn, name)
    tracking.log_results(loggers, metrics, reported(evaluation.predictions, name), shown, folder, name)
    return Run(metrics, trainer, tested, datamodule)


def _datamodule(cfg: DictConfig, faces: Faces, split: Split) -> FERDataModule:
    return FERDataModule(
        faces,
        split,
        instantiate(cfg.imbalance.sampler, _partial_=True),
        _augmentation(cfg.augment),
        cfg.data.batch_size,
        cfg.data.num_workers,
        cfg.seed,
        instantiate(cfg.imbalance.mix, _partial_=True) if cfg.imbalance.get("mix") else None,
        cfg.data.device,
        partial(input_size, epochs=cfg.trainer.max_epochs, first=cfg.model.first_image_size, last=cfg.model.image_size),
    )


def _model(
    cfg: DictConfig,
    class_counts: list[int],
    provenance: dict[str, Any],
    loss: Any,
    stage: SecondStage | None,
    goes_on: bool,
) -> EmotionClassifier:
    first_stage = cfg.imbalance.get("first_stage")
    # The checkpoint has the weights; the file or the hub that they began with may be gone.
    architecture = _plain(cfg.model) | ({"weights": "none"} if goes_on or first_stage else {})
    model = EmotionClassifier(
        architecture, _plain(cfg.optim), class_counts, _plain(cfg, resolve=False), provenance, loss, stage
    )
    if first_stage and not goes_on:
        adjust.load_first_stage(model, cfg, provenance["data_hash"])
    if cfg.model.compile:
        mode = None if cfg.model.compile is True else cfg.model.compile
        # In place: torch.compile(module) would rename the checkpoint's keys.
        model.network.compile(mode=mode, dynamic=False)
    return model


def _fit(
    trainer: L.Trainer, model: EmotionClassifier, datamodule: FERDataModule, start: Resume | None, trained: bool
) -> None:
    """Train from ``start``, unless there is nothing left to train; afterwards every process is on its own again."""
    threads = torch.get_num_threads()
    if start is not None:
        log.info("going on from %s: epoch %d, batch %d", start.path, start.epoch + 1, start.batches + 1)
        datamodule.go_on(start.epoch, start.batches)
    if not trained:
        try:
            trainer.fit(model, datamodule, ckpt_path=start.path if start else None, weights_only=True)
        except Interrupted:
            _await_other_processes(trainer)
            raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # The test counts every image once and must equal `evaluate`: the first process alone does it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _augmentation(cfg: DictConfig) -> Any:
    strengths = Strengths(**{str(key): value for key, value in cfg.items() if key not in ("name", "backend")})
    if cfg.backend == "batched":
        return BatchedAugmentation(strengths)
    from fer_lightning.loading.augment_images import Augmentation  # albumentations takes seconds to import

    return Augmentation(strengths)


def _first_stage(checkpoint: str | None) -> dict[str, Any]:
    """Method and optimizer steps of a first stage that another run trained."""
    if checkpoint is None:
        return {}
    content = read_checkpoint(Path(checkpoint))
    name = content["hyper_parameters"]["config"]["imbalance"]["name"]
    return {"first_stage/imbalance": name, "first_stage/steps": int(content["global_step"])}


def _second_stage(cfg: DictConfig) -> SecondStage | None:
    node = cfg.imbalance.get("second_stage")
    return instantiate(node, _partial_=True)(seed=cfg.seed) if node else None


def build_trainer(
    cfg: DictConfig, folder: Path, loggers: list[Any], callbacks: list[Callback], has_validation: bool
) -> L.Trainer:
    """Lightning's Trainer from the ``trainer`` group, with the checkpoints and progress of every run."""
    arguments = _plain(cfg.trainer)
    max_steps = arguments.pop("max_steps")  # see ExactResume
    arguments["precision"] = resolve_precision(arguments["precision"], arguments["accelerator"])
    devices = device_count(arguments["devices"])
    processes = devices and devices * arguments["num_nodes"]
    if arguments["strategy"] == "auto" and (processes or arguments["num_nodes"]) > 1:
        # Frozen parameters take no part in the backward pass, which plain DDP waits for.
        freezes = cfg.model.freeze_epochs or cfg.imbalance.get("second_stage")
        arguments["strategy"] = "ddp_find_unused_parameters_true" if freezes else "ddp"
    best = MovableCheckpoint(
        dirpath=folder / "checkpoints",
        filename="best",
        monitor=cfg.monitor if has_validation else None,
        mode="max",
        save_on_train_epoch_end=True,  # after the epoch's row of metrics.csv, whatever trainer.check_val_every_n_epoch
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    exact = ExactResume(max_steps)
    last = LastCheckpoint(folder / "checkpoints" / "last.ckpt", cfg.save_every_n_steps, exact)
    with_bar = arguments.pop("enable_progress_bar") and Console().is_terminal
    progress = RichProgressBar() if with_bar else EpochLine()
    chosen = [_callback(str(name), node) for name, node in cfg.callbacks.items()]
    if not has_validation:
        arguments["limit_val_batches"] = 0
    rates = [LearningRateMonitor("epoch")] if loggers else []
    curves = Curves(folder / "metrics.csv")
    return L.Trainer(
        **arguments,
        logger=loggers,
        callbacks=[best, last, exact, *rates, StopOnNonFinite(), CountsOnHost(), curves, progress, *chosen, *callbacks],
        default_root_dir=folder,
        plugins=[AtomicCheckpoints(), *slurm_task.cluster_environment(processes)],
        use_distributed_sampler=False,  # the samplers know their rank
        enable_progress_bar=with_bar,
        enable_model_summary=False,
    )


def _await_other_processes(trainer: L.Trainer) -> None:
    """Let the further processes of a stopped run end first: whoever waits for the run may start the next one then."""
    for process in getattr(trainer.strategy.launcher, "procs", []):
        with suppress(subprocess.TimeoutExpired):  # then it ends with this one, see stop.end_with_parent
            process.wait(signals.SECONDS_TO_END)


def resolve_precision(precision: Any, accelerator: str) -> str:
    """``auto``: bf16-mixed where the GPU has it, 16-mixed on older ones, 32-true elsewhere."""
    if str(precision) != "auto":
        return str(precision)
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def _callback(name: str, node: DictConfig) -> Callback:
    try:
        return instantiate(node, _partial_=True)()
    except (TypeError, ValueError) as error:
        raise UserError(f"callbacks.{name}: {str(error).splitlines()[0]}") from error


def _best_checkpoint(trainer: L.Trainer, folder: Path) -> Path:
    callback = trainer.checkpoint_callback
    best = Path(getattr(callback, "best_model_path", "") or folder / "checkpoints" / "best.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    if not best.exists() and last.exists():
        log.info("no validation has chosen a checkpoint: the last epoch is tested")
        return last
    if not best.exists():
        raise UserError(f"{folder}: no checkpoint was written")
    return best


def _reported_set(cfg: DictConfig) -> str:
    return "test" if cfg.test else "val"


def _write_artefacts(
    folder: Path,
    metrics: dict[str, Any],
    evaluation: Evaluation,
    images: np.ndarray,
    sets: dict[str, np.ndarray],
    drawn: list[int],
    name: str,
) -> None:
    write_json(folder / "metrics.json", metrics)
    evaluation.predictions.to_csv(folder / "predictions.csv", index=False)
    predictions = reported(evaluation.predictions, name)
    title, subtitle = metrics["imbalance"], words.caption(metrics)
    counts = {name: count_classes(labels) for name, labels in sets.items() if len(labels)}
    if drawn != counts["train"]:
        counts = {"train": counts["train"], "drawn in an epoch": drawn, **counts}
    pictures = {
        **figures.of_test(predictions, images, title, subtitle),
        "class_distribution": figures.class_distribution(counts, "Images per class", subtitle),
    }
    if (folder / "metrics.csv").exists():  # not where a model trained elsewhere was only adjusted
        pictures["curves"] = figures.curves(pd.read_csv(folder / "metrics.csv"), title, subtitle)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png")


def _as_user_error(error: BaseException, cfg: DictConfig, folder: Path) -> UserError | None:
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return UserError(_out_of_memory(cfg))
    lost = isinstance(error, torch.distributed.DistBackendError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("closed by peer", "gloo/"))
    )
    if lost:
        return UserError(
            f"another process of this run ended (see its message above); go on with resume=auto hydra.run.dir={folder}"
        )
    if isinstance(error, MisconfigurationException) or "Early stopping conditioned on metric" in str(error):
        return UserError(str(error).strip().splitlines()[0])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"disk full while writing to {folder}; the last complete checkpoint is kept; "
            "free space or choose another disk with hydra.run.dir=FOLDER"
        )
    return None


def _out_of_memory(cfg: DictConfig) -> str:
    ranks = (device_count(cfg.trainer.devices) or 1) * cfg.trainer.num_nodes
    half = cfg.data.batch_size // 2 // ranks * ranks
    if half == 0:
        return f"out of memory at data.batch_size={cfg.data.batch_size}; use a smaller model.image_size or model"
    sums = cfg.trainer.accumulate_grad_batches * 2
    return (
        f"out of memory at data.batch_size={cfg.data.batch_size}, model.image_size={cfg.model.image_size}; try "
        f"data.batch_size={half} (with trainer.accumulate_grad_batches={sums} for the same steps)"
    )


def _plain(node: DictConfig, resolve: bool = True) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=resolve)  # type: ignore[return-value]


def _quiet() -> None:
    """Silence what Lightning and timm say about choices that are made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "timm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Without a network it logs a line per retry; the one error that follows says all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*logger.*metrics.csv.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15
        ".*your dataloader is not resumable.*",  # its sampler is
        ".*srun. command is available.*",
    ):
        warnings.filterwarnings("ignore", message=message)
