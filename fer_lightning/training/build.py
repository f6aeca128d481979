"""Every object of a run, each built from the validated configuration: data module, loss, model, trainer.

The loss, the sampler and the mixer of an imbalance method are built here and nowhere else.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichProgressBar
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from fer_lightning.config.augment import Strengths
from fer_lightning.config.settings import to_plain
from fer_lightning.config.targets import target
from fer_lightning.data.faces import Faces, ImageForm
from fer_lightning.data.splits import Split
from fer_lightning.imbalance.samplers import EpochSampler
from fer_lightning.imbalance.second_stage import SecondStage
from fer_lightning.imbalance.sharpness import ClassSharpness
from fer_lightning.imbalance.weights import weights_by_class
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.datamodule import FERDataModule, Loading
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.model.classifier import EmotionClassifier, input_size
from fer_lightning.runtime import slurm_task
from fer_lightning.runtime.errors import UserError, first_line, require
from fer_lightning.runtime.processes import device_count
from fer_lightning.training.callbacks import CountsOnHost, Curves, EpochLine, StopOnNonFinite
from fer_lightning.training.checkpoints import AtomicCheckpoints, ExactResume, LastCheckpoint, MovableCheckpoint
from fer_lightning.training.first_stage import load_first_stage


def for_images(cfg: DictConfig, form: ImageForm) -> DictConfig:
    """The run for images of this form: colour needs a network of three channels."""
    return OmegaConf.merge(cfg, {"model": {"in_channels": 3}}) if form.color else cfg  # type: ignore[return-value]


def build_datamodule(cfg: DictConfig, faces: Faces, split: Split) -> FERDataModule:
    """The data module with the method's sampler and mixer, and the augmentation."""
    model, mix = cfg.model, cfg.imbalance.get("mix")
    return FERDataModule(
        faces,
        split,
        target(cfg.imbalance.sampler, "imbalance.sampler", kind=EpochSampler),
        build_augmentation(cfg.augment, faces.form.size),
        Loading(
            cfg.data.batch_size,
            cfg.data.num_workers,
            cfg.data.device,
            partial(input_size, epochs=cfg.trainer.max_epochs, first=model.first_image_size, last=model.image_size),
        ),
        cfg.seed,
        target(mix, "imbalance.mix") if mix else None,
    )


def build_augmentation(cfg: DictConfig, side: int) -> Any:
    """The augmentation of an ``augment`` group, by the backend that it names, for images of ``side`` pixels."""
    strengths = Strengths(**{str(key): value for key, value in cfg.items() if key not in ("name", "backend")})
    if cfg.backend == "batched":
        return BatchedAugmentation(strengths, side)
    from fer_lightning.loading.augment_images import Augmentation  # albumentations takes seconds to import

    return Augmentation(strengths)


def build_loss(cfg: DictConfig, class_counts: list[int], classes: Sequence[str]) -> nn.Module:
    """The method's loss for ``class_counts`` training images of the named classes.

    Raises:
        UserError: it cannot be built so, or gives no loss of each image.
    """
    node = cfg.imbalance.loss
    by_name = node.get("weights")
    weights = {} if by_name is None else {"weights": weights_by_class(by_name, classes)}
    loss: nn.Module = target(node, "imbalance.loss", kind=nn.Module)(class_counts=class_counts, **weights)
    _try_loss(loss, node["_target_"], len(classes))
    return loss


def _try_loss(loss: nn.Module, name: str, classes: int) -> None:
    """Check that a loss, which may be the user's own, gives one value per image; it is left as it is."""
    images = classes + 1
    tried: Any = copy.deepcopy(loss)
    if hasattr(tried, "set_epoch"):
        tried.set_epoch(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        losses = tried(torch.zeros(images, classes), torch.arange(images) % classes)
    shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
    accepted = f"gives {shape} for {images} images; it must return the loss of each image, {(images,)}, not their mean"
    require(shape == (images,), "imbalance.loss._target_", name, accepted)


def build_second_stage(cfg: DictConfig) -> SecondStage | None:
    """The second stage of a decoupled method; None for methods of one stage."""
    node = cfg.imbalance.get("second_stage")
    return target(node, "imbalance.second_stage")(seed=cfg.seed) if node else None


def build_model(
    cfg: DictConfig,
    class_counts: dict[str, int],
    form: ImageForm,
    provenance: dict[str, Any],
    loss: nn.Module,
    second_stage: SecondStage | None,
    first_stage: StoredModel | None,
    resumed: bool,
) -> EmotionClassifier:
    """The model with its initial weights, or those of the first stage that another run trained.

    Args:
        cfg: the composed run.
        class_counts: class -> training images.
        form: of the images.
        provenance: see ``EmotionClassifier``.
        loss: from ``build_loss``.
        second_stage: from ``build_second_stage``.
        first_stage: the model to begin with, from ``read_first_stage``.
        resumed: a checkpoint will be loaded, so no initial weights are read.

    Raises:
        UserError: weights or a first stage that do not fit.
    """
    # The checkpoint has the weights; the file or hub of the initial ones may not exist any more.
    architecture = to_plain(cfg.model) | ({"weights": "none"} if resumed or first_stage else {})
    config = to_plain(cfg, resolve=False)
    model = EmotionClassifier(
        architecture,
        to_plain(cfg.optim),
        list(class_counts.values()),
        config,
        provenance,
        loss,
        second_stage,
        classes=list(class_counts),
        form=asdict(form),
    )
    bias, start = getattr(model.head[-1], "bias", None), getattr(loss, "initial_bias", None)
    if bias is not None and start is not None:
        nn.init.constant_(bias, start)
    if first_stage is not None and not resumed:
        load_first_stage(model, cfg, first_stage, provenance["data_hash"])
    if cfg.model.compile:
        mode = None if cfg.model.compile is True else cfg.model.compile
        if isinstance(loss, ClassSharpness):  # two backward passes over one graph must both find its buffers
            from torch._functorch import config as functorch

            functorch.donated_buffer = False
        # In place: torch.compile(module) would rename the checkpoint's keys.
        model.network.compile(mode=mode, dynamic=False)
    return model


def build_trainer(
    cfg: DictConfig, folder: Path, loggers: list[Any], callbacks: list[Callback], has_validation: bool
) -> L.Trainer:
    """Lightning's Trainer from the ``trainer`` group, with the checkpoints and progress of every run.

    Args:
        cfg: the composed run.
        folder: the run folder.
        loggers: from ``tracking.build_loggers``.
        callbacks: further ones of this run.
        has_validation: whether the split has validation images.

    Raises:
        UserError: for devices or callbacks that cannot be built.
    """
    arguments = to_plain(cfg.trainer)
    max_steps = arguments.pop("max_steps")  # see ExactResume
    arguments["precision"] = resolve_precision(arguments["precision"], arguments["accelerator"])
    devices = device_count(arguments["devices"])
    processes = devices and devices * arguments["num_nodes"]
    if arguments["strategy"] == "auto" and (processes or arguments["num_nodes"]) > 1:
        # Plain DDP waits for the gradients of frozen parameters, which have none.
        freezes = cfg.model.freeze_epochs or cfg.imbalance.get("second_stage")
        arguments["strategy"] = "ddp_find_unused_parameters_true" if freezes else "ddp"
    with_bar = arguments.pop("enable_progress_bar") and Console().is_terminal
    if not has_validation:
        arguments["limit_val_batches"] = 0
    return L.Trainer(
        **arguments,
        logger=loggers,
        callbacks=[
            *_checkpoint_callbacks(cfg, folder / "checkpoints", max_steps, has_validation),
            *([LearningRateMonitor("epoch")] if loggers else []),
            StopOnNonFinite(),
            CountsOnHost(),
            Curves(folder / "metrics.csv"),
            RichProgressBar() if with_bar else EpochLine(),
            *(_configured_callback(str(name), node) for name, node in cfg.callbacks.items()),
            *callbacks,
        ],
        default_root_dir=folder,
        plugins=[AtomicCheckpoints(), *slurm_task.cluster_environment(processes)],
        use_distributed_sampler=False,  # the samplers know their rank
        enable_progress_bar=with_bar,
        enable_model_summary=False,
    )


def _checkpoint_callbacks(cfg: DictConfig, folder: Path, max_steps: int, has_validation: bool) -> list[Callback]:
    best = MovableCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=cfg.monitor if has_validation else None,
        mode="max",
        save_on_train_epoch_end=True,  # after the epoch's row of metrics.csv, whatever trainer.check_val_every_n_epoch
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    exact = ExactResume(max_steps)
    last = LastCheckpoint(folder / "last.ckpt", cfg.save_every_n_steps, cfg.pause_after_epochs, exact)
    return [best, last, exact]


def _configured_callback(name: str, node: DictConfig) -> Callback:
    try:
        return target(node, f"callbacks.{name}")()
    except (TypeError, ValueError) as error:
        raise UserError(f"callbacks.{name}: {first_line(error)}") from error


def resolve_precision(precision: Any, accelerator: str) -> str:
    """``auto``: bf16-mixed where the GPU has it, 16-mixed on older ones, 32-true elsewhere."""
    if str(precision) != "auto":
        return str(precision)
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
