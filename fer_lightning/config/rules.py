"""Rules of a run beyond types: ranges and contradictions; those of ``imbalance`` are in ``imbalance_rules``."""

import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.augment import Strengths
from fer_lightning.config.imbalance_rules import imbalance_rules
from fer_lightning.runtime.errors import UserError, require
from fer_lightning.runtime.files import expanded
from fer_lightning.runtime.processes import device_count, visible_gpus

MONITORS = ("val/f1_macro", "val/balanced_accuracy", "val/accuracy")
VOTES = "fer2013new.csv of https://github.com/microsoft/FERPlus, or a csv with the columns path and the ten votes"
MAX_WEIGHTS = 2**32
"""Maximum bytes of a file of initial weights; the largest image classifiers have 1e9 numbers."""

_TIME = re.compile(r"\d+(:\d{1,2}){3}")
"""Of Lightning's Timer."""
NEED_A_PATH = ("fer_lightning.data.folder.", "fer_lightning.data.layouts.")
"""Modules of data sets that are not downloaded."""

PRECISIONS = (
    "auto",
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "32",
    "16",
    "bf16",
)


AT_LEAST = (
    ("save_every_n_steps", 1, "must be at least 1, or null"),
    ("trainer.max_steps", -1, "must be a number of steps, or -1 for no limit"),
    ("trainer.accumulate_grad_batches", 1, "must be at least 1"),
    ("trainer.check_val_every_n_epoch", 1, "must be at least 1"),
    ("trainer.log_every_n_steps", 0, "must be 0 (never) or more"),
    ("trainer.gradient_clip_val", 0, "must be 0 (no clipping) or more, or null"),
    ("trainer.num_sanity_val_steps", -1, "must be -1 (all), 0 (none) or more"),
)
"""Keys, their smallest value, and how an error says so; Lightning divides by some of them, or ignores others."""


def check_rules(cfg: DictConfig) -> None:
    """Refuse values out of range, and contradictions.

    Args:
        cfg: a composed run whose keys and types are right.

    Raises:
        UserError: with the key, the value given and what is accepted.
    """
    for key in ("imbalance.loss", "imbalance.sampler", "data.source", "split"):
        node = OmegaConf.select(cfg, key)
        named = isinstance(node, DictConfig) and isinstance(node.get("_target_"), str)
        require(
            named, key, node, f"must say what makes it, with {key}._target_; see the files of conf/{key.split('.')[0]}"
        )
    rules = (_run_rules, _data_rules, _augment_rules, model_rules, _optim_rules, imbalance_rules, _trainer_rules)
    for rule in (*rules, _callback_rules):
        rule(cfg)
    for key, lowest, accepted in AT_LEAST:
        value = OmegaConf.select(cfg, key)
        require(value is None or value >= lowest, key, value, accepted)


def _run_rules(cfg: DictConfig) -> None:
    if cfg.resume not in (None, "auto") and not Path(cfg.resume).exists():
        raise UserError(f"resume={cfg.resume}: no such run folder or checkpoint; give one, or auto, or null")
    rehearsal = cfg.trainer.fast_dev_run
    accepted = f"a rehearsal trains from the start, not from resume={cfg.resume}; leave one of them out"
    require(not rehearsal or cfg.resume in (None, "auto"), "trainer.fast_dev_run", rehearsal, accepted)
    require(cfg.monitor in MONITORS, "monitor", cfg.monitor, f"must be one of {', '.join(MONITORS)}")
    require(cfg.jobs_per_device >= 1, "jobs_per_device", cfg.jobs_per_device, "must be at least 1")
    pause, last = cfg.pause_after_epochs, cfg.trainer.max_epochs - 1
    accepted = f"must be from 1 to {last}, below trainer.max_epochs, or null" if last else "one epoch cannot be paused"
    require(pause is None or 1 <= pause <= last, "pause_after_epochs", pause, accepted)
    project = cfg.logger.project
    fits = re.fullmatch(r"[^/\\#?%:]{1,128}", str(project)) is not None
    accepted = "W&B accepts 1 to 128 characters without / \\ # ? % :"
    require(fits or cfg.logger.name not in ("wandb", "auto"), "logger.project", project, accepted)
    require(0 <= cfg.seed < 2**32, "seed", cfg.seed, "must be between 0 and 4294967295")
    require(cfg.budget in ("steps", "epochs"), "budget", cfg.budget, "must be steps or epochs")
    if cfg.split.name == "paper" and cfg.split.get("val_fraction") is None:
        needs_validation = "callbacks=early_stopping" if "early_stopping" in cfg.callbacks else "test=false"
        if "early_stopping" in cfg.callbacks or not cfg.test:
            raise UserError(f"{needs_validation}: split=paper has no validation set; set split.val_fraction=0.1")


def _data_rules(cfg: DictConfig) -> None:
    data = cfg.data
    require(data.batch_size >= 1, "data.batch_size", data.batch_size, "must be at least 1")
    most = max(64, 16 * (os.cpu_count() or 1))  # each is a process that has imported torch
    require(0 <= data.num_workers <= most, "data.num_workers", data.num_workers, f"must be from 0 to {most}")
    if "path" not in data.source and data.path is not None:
        raise UserError(f"data.path={data.path}: data={data.name} reads no files; use data=fer2013 for real faces")
    if data.source.get("_target_", "").startswith(NEED_A_PATH) and not str(data.source.get("path") or "").strip():
        raise UserError("data.path is missing; give data.path=DIR, or another form listed in docs/data.md")
    image_rules(data)
    if (
        cfg.labels.name != "fer"
        and (data.classes is not None or data.only is not None)
        and cfg.labels.targets == "soft"
    ):
        raise UserError("labels.targets=soft: has the votes for seven emotions; leave data.classes and data.only out")
    require(data.device in ("auto", "cpu"), "data.device", data.device, "must be auto (where the model is) or cpu")
    accepted = "must be train (remove training images that have an exact twin in a test set), or null"
    require(data.drop_duplicates in (None, "train"), "data.drop_duplicates", data.drop_duplicates, accepted)
    label_rules(cfg.labels, data)
    votes = cfg.labels.votes
    exists = votes is None or expanded(votes).is_file()
    require(exists, "labels.votes", votes, f"no such file; give {VOTES}")
    split_rules(cfg.split)


def image_rules(data: DictConfig) -> None:
    """Check the size that images are stored with.

    Raises:
        UserError: ``image_size`` is out of range.
    """
    side = data.get("image_size")
    fits = side is None or 16 <= side <= 1024
    require(fits, "data.image_size", side, "must be from 16 to 1024 pixels, or null for what fits the images")


def _augment_rules(cfg: DictConfig) -> None:
    backend = cfg.augment.backend
    accepted = "must be batched (whole batches, on the trainer's device) or albumentations (one by one, in workers)"
    require(backend in ("batched", "albumentations"), "augment.backend", backend, accepted)
    Strengths(**{str(key): value for key, value in cfg.augment.items() if key not in ("name", "backend")})


def label_rules(labels: DictConfig, data: DictConfig) -> None:
    """Check that votes are given exactly where they are used.

    Raises:
        UserError: ``votes`` is missing or not used, ``targets`` is unknown, or the data select their classes while they
            are read, so that images whose class the votes would change are missing.
    """
    votes, targets = labels.votes, labels.targets
    if labels.name == "fer":
        for key, value in (("votes", votes), ("targets", targets)):
            require(value is None, f"labels.{key}", value, "labels=fer has no votes; use labels=ferplus")
        return
    accepted = f"has FER+'s votes for FER-2013's images, and data={data.name} its own labels; use data=fer2013"
    require("classes" not in data.source, "labels", labels.name, accepted)
    require(votes is not None, "labels.votes", votes, f"labels={labels.name} needs the votes; give {VOTES}")
    require(targets in ("majority", "soft"), "labels.targets", targets, "must be majority or soft")


def split_rules(split: DictConfig) -> None:
    """Check the optional keys of a split, whose type the files do not show (``null``).

    Raises:
        UserError: ``val_fraction`` is not a fraction, ``train_size`` not a positive whole number, or ``seed`` no seed.
    """
    fraction, size = split.get("val_fraction"), split.get("train_size")
    is_fraction = isinstance(fraction, int | float) and 0 < fraction < 1
    require(fraction is None or is_fraction, "split.val_fraction", fraction, "must lie between 0 and 1, or be null")
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    require(size is None or is_size, "split.train_size", size, "must be a number of images, or null")
    seed = split.get("seed")
    require(seed is None or is_seed(seed), "split.seed", seed, "must be between 0 and 4294967295, or null")
    _profile_rules(split)


def is_seed(value: object) -> bool:
    """Whether a value is a seed: a whole number that NumPy takes too."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _profile_rules(split: DictConfig) -> None:
    profile, ratio, total, order = (split.get(key) for key in ("profile", "ratio", "total", "order"))
    accepted = "must be natural, exp (exponential) or step, or null"
    require(profile in (None, "natural", "exp", "step"), "split.profile", profile, accepted)
    is_ratio = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 1 <= ratio < float("inf")
    accepted = "must be 1 or more: the largest class to the smallest, or null"
    require(ratio is None or is_ratio, "split.ratio", ratio, accepted)
    is_total = isinstance(total, int) and not isinstance(total, bool) and total >= 2
    require(total is None or is_total, "split.total", total, "must be a number of training images, or null")
    thins = profile in ("exp", "step") or (profile is None and ratio is not None)
    if profile in ("exp", "step") and ratio is None:
        raise UserError(f"split.profile={profile}: needs split.ratio, the largest class to the smallest")
    for key, value in (("ratio", ratio), ("total", total), ("order", order)):
        if value is not None and not thins:
            needs = "split.profile=exp or step" + (", and split.ratio" if ratio is None else "")
            raise UserError(f"split.{key}={value}: needs {needs}")
    if thins and split.get("train_size") is not None:
        raise UserError(f"split.train_size={split.train_size}: split.ratio chooses the images; use split.total")


def model_rules(cfg: DictConfig) -> None:
    """The part of ``check_rules`` that concerns ``cfg.model``."""
    model = cfg.model
    require(model.in_channels in (1, 3), "model.in_channels", model.in_channels, "must be 1 or 3")
    require(model.stem_stride in (None, 1, 2), "model.stem_stride", model.stem_stride, "must be 1 or 2, or null")
    require(model.image_size >= 32, "model.image_size", model.image_size, "must be at least 32 pixels")
    first = model.first_image_size
    grows = first is None or 32 <= first <= model.image_size
    require(grows, "model.first_image_size", first, "must be from 32 to model.image_size pixels, or null")
    modes = (False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    accepted = f"must be false, true or a mode of torch.compile: {', '.join(map(str, modes[2:]))}"
    require(model.compile in modes, "model.compile", model.compile, accepted)
    require(0 <= model.drop_path < 1, "model.drop_path", model.drop_path, "must be in [0, 1)")
    require(0 <= model.head.dropout < 1, "model.head.dropout", model.head.dropout, "must be in [0, 1)")
    require(
        all(width >= 1 for width in model.head.hidden),
        "model.head.hidden",
        model.head.hidden,
        "widths must be positive",
    )
    require(
        model.freeze_epochs >= -1,
        "model.freeze_epochs",
        model.freeze_epochs,
        "must be -1 (always), 0 (never) or more",
    )
    if model.weights not in ("none", "imagenet"):
        path = Path(model.weights)
        if not path.is_file():
            raise UserError(f"model.weights={model.weights}: no such file; give none, imagenet or a weights file")
        if (size := path.stat().st_size) > MAX_WEIGHTS:  # before it is hashed
            what = f"has {size:,} bytes, more than the {MAX_WEIGHTS:,} of any weights that are read"
            raise UserError(f"model.weights={model.weights}: {what}; give another file")


def _optim_rules(cfg: DictConfig) -> None:
    optim = cfg.optim
    require(optim.lr > 0, "optim.lr", optim.lr, "must be positive")
    fits = optim.momentum is None or 0 <= optim.momentum < 1
    require(fits, "optim.momentum", optim.momentum, "must be in [0, 1), or null")
    require(optim.weight_decay >= 0, "optim.weight_decay", optim.weight_decay, "must be 0 or more")
    require(0 <= optim.warmup_fraction < 1, "optim.warmup_fraction", optim.warmup_fraction, "must be in [0, 1)")
    require(
        optim.schedule in ("cosine", "constant", "one_cycle"),
        "optim.schedule",
        optim.schedule,
        "must be cosine, constant or one_cycle",
    )
    require(optim.backbone_lr_scale >= 0, "optim.backbone_lr_scale", optim.backbone_lr_scale, "must be 0 or more")
    rho = optim.sam_rho
    require(rho is None or rho > 0, "optim.sam_rho", rho, "must be positive, usually 0.05, or null for no SAM")
    one_batch = rho is None or cfg.trainer.accumulate_grad_batches == 1
    remedy = "SAM makes two passes over each batch; use trainer.accumulate_grad_batches=1"
    require(one_batch, "optim.sam_rho", rho, remedy)
    decay = optim.layer_decay
    require(decay is None or 0 < decay <= 1, "optim.layer_decay", decay, "must be in (0, 1], or null")


def _trainer_rules(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    require(trainer.max_epochs >= 1, "trainer.max_epochs", trainer.max_epochs, "must be at least 1")
    require(trainer.num_nodes >= 1, "trainer.num_nodes", trainer.num_nodes, "must be at least 1")
    accelerators = ("auto", "cpu", "gpu", "cuda", "mps")
    require(
        trainer.accelerator in accelerators,
        "trainer.accelerator",
        trainer.accelerator,
        f"must be one of {', '.join(accelerators)}",
    )
    for key in ("deterministic", "fast_dev_run", "limit_train_batches", "limit_val_batches"):
        value = trainer[key]  # Lightning takes any text for true
        known = not isinstance(value, str) or (key, value) == ("deterministic", "warn")
        require(known, f"trainer.{key}", value, "is text; give true, false or a number, without quotes")
    batches = trainer.limit_train_batches
    require(batches is None or batches > 0, "trainer.limit_train_batches", batches, "trains on nothing; give 1 or more")
    limit = trainer.max_time  # YAML reads 1:00:00:00 as a number
    is_text = (
        limit is None or isinstance(limit, DictConfig) or (isinstance(limit, str) and bool(_TIME.fullmatch(limit)))
    )
    require(is_text, "trainer.max_time", limit, "must be text of the form DD:HH:MM:SS, in quotes, or null")
    precision = str(trainer.precision)
    require(precision in PRECISIONS, "trainer.precision", precision, f"must be one of {', '.join(PRECISIONS)}")
    gpus = visible_gpus()
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and gpus == 0)
    if trainer.accelerator in ("gpu", "cuda") and gpus == 0:
        raise UserError(
            f"trainer.accelerator={trainer.accelerator}: this machine has no GPU; use trainer.accelerator=cpu"
        )
    if on_cpu and precision.startswith("16"):
        raise UserError(
            f"trainer.precision={precision}: 16-bit floats need a GPU; use trainer.precision=32-true or auto"
        )
    strategies = ("auto", "ddp", "ddp_find_unused_parameters_true")
    accepted = f"must be one of {', '.join(strategies)}"
    require(trainer.strategy in strategies, "trainer.strategy", trainer.strategy, accepted)
    wanted = device_count(trainer.devices)
    if on_cpu and (OmegaConf.is_list(trainer.devices) or str(trainer.devices) == "-1"):
        raise UserError(f"trainer.devices={trainer.devices}: chooses among GPUs; on a CPU give a number of processes")
    existing = max(2, os.cpu_count() or 1) if on_cpu else gpus
    if wanted is not None:
        what = "CPU processes fit" if on_cpu else "GPUs exist"
        fits = existing is None or wanted <= existing
        require(
            wanted >= 1 and fits,
            "trainer.devices",
            trainer.devices,
            f"must be at least 1, and {existing} {what} here",
        )
    _batch_rules(cfg, (wanted or 1) * trainer.num_nodes)


def _batch_rules(cfg: DictConfig, ranks: int) -> None:
    batch, head = cfg.data.batch_size, cfg.model.head
    if batch % ranks:
        raise UserError(
            f"data.batch_size={batch}: is the global batch and must be divisible by the {ranks} "
            f"devices; use {max(1, round(batch / ranks)) * ranks}"
        )
    if head.batch_norm and head.hidden and batch == ranks:
        raise UserError(
            f"data.batch_size={batch}: batch normalization needs two images for each device; use {2 * ranks}, or "
            "model.head.batch_norm=false"
        )


def _callback_rules(cfg: DictConfig) -> None:
    if "swa" not in cfg.callbacks:
        return
    if "ema" in cfg.callbacks:
        raise UserError("callbacks=[ema,swa]: both average the weights; use one of them")
    start, batches, epochs = cfg.callbacks.swa.start, cfg.callbacks.swa.statistics_batches, cfg.trainer.max_epochs
    require(0 <= start < 1, "callbacks.swa.start", start, "must be in [0, 1)")
    require(batches >= 1, "callbacks.swa.statistics_batches", batches, "must be at least 1")
    if epochs - first_averaged_epoch(start, epochs) < 2:
        raise UserError(
            f"callbacks.swa.start={start}: leaves one epoch of trainer.max_epochs={epochs} to average; use a smaller "
            "share, or more epochs"
        )


def first_averaged_epoch(start: float, epochs: int) -> int:
    """The first epoch, from 0, whose weights ``callbacks=swa`` averages; ``start`` as a share of all ``epochs``."""
    return int(start * epochs)
