"""The schema of a run and the rules between its parts; imports nothing heavy, so mistakes are told at once.

The files in ``conf/`` say which knobs exist; the dataclasses here say their types. Nodes that Hydra instantiates
(``data.source``, ``split``, ``imbalance``, ``callbacks``) have no dataclass: for them the
chosen file itself is the schema, so that a new method is one new file and nothing else.
"""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fer_lightning import safety
from fer_lightning.data.strengths import Strengths
from fer_lightning.errors import UserError, require
from fer_lightning.hydra_errors import did_you_mean, explain
from fer_lightning.imbalance.rules import imbalance_rules
from fer_lightning.run_folder import claim

CONF_DIR = safety.CONF_DIR


@dataclass
class Data:
    name: str
    path: str | None
    cache_dir: str | None
    drop_duplicates: str | None
    batch_size: int
    num_workers: int
    device: str
    source: dict[str, Any]
    classes: str | None = None


@dataclass
class Labels:
    name: str
    votes: str | None
    targets: str | None


@dataclass
class Head:
    hidden: list[int]
    activation: str
    batch_norm: bool
    dropout: float
    cosine_scale: float | None
    class_scale: bool


@dataclass
class Model:
    name: str
    weights: str
    in_channels: int
    image_size: int
    first_image_size: int | None
    stem_stride: int
    drop_path: float
    head: Head
    freeze_epochs: int
    compile: Any


@dataclass
class Augment:
    name: str
    backend: str
    hflip: float
    rotate: float
    translate: float
    scale: float
    brightness: float
    contrast: float
    erase: float
    erase_area: list[float]


@dataclass
class Optim:
    name: str
    lr: float
    weight_decay: float
    momentum: float | None
    layer_decay: float | None
    backbone_lr_scale: float
    schedule: str
    warmup_fraction: float
    sam_rho: float | None


@dataclass
class Trainer:
    accelerator: str
    devices: Any
    num_nodes: int
    strategy: str
    precision: Any
    max_epochs: int
    max_steps: int
    max_time: Any
    limit_train_batches: Any
    limit_val_batches: Any
    check_val_every_n_epoch: int
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: str | None
    log_every_n_steps: int
    num_sanity_val_steps: int
    deterministic: Any
    benchmark: bool | None
    detect_anomaly: bool
    profiler: str | None
    fast_dev_run: Any
    sync_batchnorm: bool
    enable_progress_bar: bool


@dataclass
class Logger:
    name: str
    project: str
    entity: str | None


@dataclass
class Config:
    """A composed run; field for field what ``--cfg job`` prints."""

    data: Data
    labels: Labels
    split: dict[str, Any]
    imbalance: dict[str, Any]
    model: Model
    augment: Augment
    optim: Optim
    trainer: Trainer
    logger: Logger
    name: str
    seed: int
    budget: str
    resume: str | None
    jobs_per_device: int
    monitor: str
    test: bool
    save_every_n_steps: int | None
    callbacks: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


FREE_FORM = ("data.source", "split", "imbalance", "callbacks")
MONITORS = ("val/f1_macro", "val/balanced_accuracy", "val/accuracy")
VOTES = "fer2013new.csv of https://github.com/microsoft/FERPlus, or a csv with the columns path and the ten votes"
PRECISIONS = (
    "auto",
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "16-true",
    "bf16-true",
    "64-true",
    "32",
    "16",
    "bf16",
    "64",
)


def validate(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Refuse unknown keys, wrong types and contradictions.

    Args:
        cfg: the composed run (without the ``hydra`` node).
        choices: Hydra's ``hydra.runtime.choices``, group to chosen file.

    Raises:
        UserError: with the key, the value given and what is accepted.
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), cfg)
        OmegaConf.to_container(typed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    assert isinstance(typed, DictConfig)
    reference = _reference(choices)
    for path in FREE_FORM:
        check_knobs(_container(typed, path, resolve=True), _container(reference, path, resolve=False), path)
    for rule in (_data_rules, _augment_rules, _model_rules, _optim_rules, imbalance_rules, _trainer_rules):
        rule(typed)


class Validate(Callback):
    """Hydra callback that validates before the run folder is made, so that a typo leaves nothing behind."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        run = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            if config.hydra.job.chdir:
                raise UserError("hydra.job.chdir=true: paths are relative to where you start; leave it false")
            validate(run, config.hydra.runtime.choices)
            folder = Path(config.hydra.run.dir)
            if is_first_process() and folder.is_dir():
                claim(folder, run.resume).release()  # before Hydra writes into it
        except UserError as error:  # Hydra only warns of a callback's exceptions, but lets SystemExit pass
            fail(error)
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error


def is_first_process() -> bool:
    """Whether this is the process of a run that speaks and writes, told without torch from what starts processes."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(rank) or 0) for rank in ranks)


def fail(error: Exception | str, code: int = 2) -> None:
    """Print one line to stderr and exit: the end of every user mistake."""
    if is_first_process():  # the other processes of a run meet the same mistake
        print(f"error: {error}", file=sys.stderr)
    raise SystemExit(code)


def run_tool(main: Callable[[], None]) -> None:
    """Run a command-line tool, guarded: user mistakes end in one line and code 2, bugs keep their traceback."""
    safety.guard_hydra()
    try:
        main()
    except UserError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        fail(explain(error))
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except OSError as error:
        if not any(frame.name in ("mkdir", "makedirs") for frame in traceback.extract_tb(error.__traceback__)):
            raise
        fail(f"{error.filename}: cannot be made ({error.strerror}); choose another folder with hydra.run.dir=FOLDER")


def _reference(choices: Mapping[str, Any]) -> DictConfig:
    """The chosen files composed with no other override: the keys and kinds that free-form nodes may have.

    Raises:
        UserError: a file of callbacks, chosen or not, that cannot be composed or may not be.
    """
    loader = GlobalHydra.instance().config_loader()
    groups = ("data", "split", "imbalance", "imbalance/sampler", "imbalance/mix")
    overrides = [f"{group}={choices[group]}" for group in groups if choices.get(group)]

    def compose(*callbacks: str) -> DictConfig:
        chosen = [*overrides, f"callbacks=[{','.join(callbacks)}]"]
        return loader.load_configuration(config_name="config", overrides=chosen, run_mode=RunMode.RUN)

    # Several callbacks can be chosen at once, which Hydra does not record among the choices: allow what any file has.
    files = loader.get_group_options("callbacks")
    mistakes = (UserError, HydraException, OmegaConfBaseException, YAMLError)
    try:
        return compose(*files)
    except mistakes:
        for name in files:
            try:
                compose(name)
            except mistakes as error:
                raise UserError(f"callbacks/{name}.yaml: {explain(error)}") from None
        raise


def _container(cfg: DictConfig, path: str, resolve: bool) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.select(cfg, path), resolve=resolve)  # type: ignore[return-value]


def check_knobs(given: Mapping[str, Any], expected: Mapping[str, Any], path: str) -> None:
    """Refuse keys that ``expected`` lacks and values of another kind than its own.

    Raises:
        UserError: naming the key below ``path``, and what is accepted.
    """
    for key, value in given.items():
        name = f"{path}.{key}"
        if key not in expected:
            hint = did_you_mean(key, list(expected), prefix=f"{path}.")
            knobs = ", ".join(other for other in expected if not other.startswith("_"))
            raise UserError(f"{name}={value}: no such key{hint}; {path} has: {knobs or 'nothing to set'}")
        if isinstance(value, dict) and isinstance(expected[key], dict):
            check_knobs(value, expected[key], name)
        elif not _same_kind(value, expected[key]):
            raise UserError(f"{name}={value}: expected {_kind(expected[key])}, such as {expected[key]}")


def _same_kind(value: Any, expected: Any) -> bool:
    if expected is None or (isinstance(expected, str) and expected.startswith("${")):
        return True
    if isinstance(expected, bool) or isinstance(value, bool):
        return isinstance(expected, bool) and isinstance(value, bool)
    if isinstance(expected, float):
        return isinstance(value, int | float)
    return isinstance(value, type(expected))


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", list: "a list"}
    return kinds.get(type(value), type(value).__name__)


def _data_rules(cfg: DictConfig) -> None:
    data = cfg.data
    require(data.batch_size >= 1, "data.batch_size", data.batch_size, "must be at least 1")
    require(data.num_workers >= 0, "data.num_workers", data.num_workers, "must be 0 or more")
    if cfg.resume not in (None, "auto") and not Path(cfg.resume).exists():
        raise UserError(f"resume={cfg.resume}: no such run folder or checkpoint; give one, or auto, or null")
    require("/" not in cfg.name and "=" not in cfg.name, "name", cfg.name, "is part of folder names: no / and no =")
    accepted = f"must be one of {', '.join(MONITORS)}"
    require(cfg.monitor in MONITORS, "monitor", cfg.monitor, accepted)
    require(cfg.jobs_per_device >= 1, "jobs_per_device", cfg.jobs_per_device, "must be at least 1")
    require(0 <= cfg.seed < 2**32, "seed", cfg.seed, "must be between 0 and 4294967295")
    if "path" not in data.source and data.path is not None:
        raise UserError(f"data.path={data.path}: data={data.name} reads no files; use data=fer2013 for real faces")
    if data.name == "folder":
        raise UserError(
            "data=folder: is for scoring (python -m fer_lightning.evaluate CHECKPOINT data=folder data.path=DIR); to "
            "train on folders of your own, sort them into train/<emotion>/ and test/<emotion>/ and use data=fer2013"
        )
    if data.classes is not None:
        raise UserError(f"data.classes={data.classes}: data={data.name} has its own class names; leave it out")
    require(data.device in ("auto", "cpu"), "data.device", data.device, "must be auto (where the model is) or cpu")
    kept = "must be train (remove training images that have an exact twin in a test set), or null"
    require(data.drop_duplicates in (None, "train"), "data.drop_duplicates", data.drop_duplicates, kept)
    label_rules(cfg.labels)
    votes = cfg.labels.votes
    exists = votes is None or Path(votes).expanduser().is_file()
    require(exists, "labels.votes", votes, f"no such file; give {VOTES}")
    split_rules(cfg.split)
    if cfg.split.name == "paper" and cfg.split.get("val_fraction") is None:
        wanting = "callbacks=early_stopping" if "early_stopping" in cfg.callbacks else "test=false"
        if "early_stopping" in cfg.callbacks or not cfg.test:
            raise UserError(f"{wanting}: split=paper has no validation set; set split.val_fraction=0.1")


def _augment_rules(cfg: DictConfig) -> None:
    backend = cfg.augment.backend
    accepted = "must be batched (whole batches, on the trainer's device) or albumentations (one by one, in workers)"
    require(backend in ("batched", "albumentations"), "augment.backend", backend, accepted)
    Strengths(**{str(key): value for key, value in cfg.augment.items() if key not in ("name", "backend")})


def label_rules(labels: DictConfig) -> None:
    """Check that votes are there where they are needed, and only there.

    Raises:
        UserError: ``votes`` is missing or not wanted, or ``targets`` is unknown.
    """
    votes, targets = labels.votes, labels.targets
    if labels.name == "fer":
        for key, value in (("votes", votes), ("targets", targets)):
            require(value is None, f"labels.{key}", value, "labels=fer has no votes; use labels=ferplus")
        return
    require(votes is not None, "labels.votes", votes, f"labels={labels.name} needs the votes; give {VOTES}")
    require(targets in ("majority", "soft"), "labels.targets", targets, "must be majority or soft")


def split_rules(split: DictConfig) -> None:
    """Check the optional knobs of a split, whose files say ``null`` and so tell nothing of their kind.

    Raises:
        UserError: ``val_fraction`` is no fraction, or ``train_size`` no positive whole number.
    """
    fraction, size = split.get("val_fraction"), split.get("train_size")
    is_fraction = isinstance(fraction, int | float) and 0 < fraction < 1
    require(fraction is None or is_fraction, "split.val_fraction", fraction, "must lie between 0 and 1, or be null")
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    require(size is None or is_size, "split.train_size", size, "must be a number of images, or null")


def _model_rules(cfg: DictConfig) -> None:
    model = cfg.model
    require(model.in_channels in (1, 3), "model.in_channels", model.in_channels, "must be 1 or 3")
    require(model.stem_stride in (1, 2), "model.stem_stride", model.stem_stride, "must be 1 or 2")
    require(model.image_size >= 32, "model.image_size", model.image_size, "must be at least 32 pixels")
    first = model.first_image_size
    grows = first is None or 32 <= first <= model.image_size
    require(grows, "model.first_image_size", first, "must be from 32 to model.image_size pixels, or null")
    modes = (False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    named = f"must be false, true or a mode of torch.compile: {', '.join(map(str, modes[2:]))}"
    require(model.compile in modes, "model.compile", model.compile, named)
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
    if model.weights not in ("none", "imagenet") and not Path(model.weights).is_file():
        raise UserError(f"model.weights={model.weights}: no such file; give none, imagenet or a weights file")


def _optim_rules(cfg: DictConfig) -> None:
    optim = cfg.optim
    require(optim.lr > 0, "optim.lr", optim.lr, "must be positive")
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
    why = "SAM makes two passes over each batch; use trainer.accumulate_grad_batches=1"
    require(one_batch, "optim.sam_rho", rho, why)
    decay = optim.layer_decay
    require(decay is None or 0 < decay <= 1, "optim.layer_decay", decay, "must be in (0, 1], or null")


def _trainer_rules(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    require(cfg.budget in ("steps", "epochs"), "budget", cfg.budget, "must be steps or epochs")
    require(trainer.max_epochs >= 1, "trainer.max_epochs", trainer.max_epochs, "must be at least 1")
    require(trainer.num_nodes >= 1, "trainer.num_nodes", trainer.num_nodes, "must be at least 1")
    accelerators = ("auto", "cpu", "gpu", "cuda", "mps")
    require(
        trainer.accelerator in accelerators,
        "trainer.accelerator",
        trainer.accelerator,
        f"must be one of {', '.join(accelerators)}",
    )
    precision = str(trainer.precision)
    require(precision in PRECISIONS, "trainer.precision", precision, f"must be one of {', '.join(PRECISIONS)}")
    gpus = visible_gpus()
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and gpus == 0)
    if trainer.accelerator in ("gpu", "cuda") and gpus == 0:
        raise UserError(
            f"trainer.accelerator={trainer.accelerator}: this machine shows no GPU; use trainer.accelerator=cpu"
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
        ranks = wanted * trainer.num_nodes
        if cfg.data.batch_size % ranks:
            raise UserError(
                f"data.batch_size={cfg.data.batch_size}: is the global batch and must divide by the {ranks} devices; "
                f"use {max(1, round(cfg.data.batch_size / ranks)) * ranks}"
            )


def device_count(devices: Any) -> int | None:
    """How many devices per node are asked for; None where only Lightning can tell (``auto``, ``-1``).

    Raises:
        UserError: for anything that is no count, list of indices or ``auto``.
    """
    if isinstance(devices, list) or OmegaConf.is_list(devices):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return None
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    try:
        return int(str(devices))
    except ValueError:
        raise UserError(f"trainer.devices={devices}: must be a number, auto, or a list such as [0,1]") from None


def visible_gpus() -> int | None:
    """Number of CUDA GPUs this process may use, without importing torch; None where that cannot be told cheaply."""
    masked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if masked is not None and masked.strip() in ("", "-1"):
        return 0
    nodes = [node for node in Path("/dev").glob("nvidia*") if node.name.removeprefix("nvidia").isdigit()]
    if not nodes:
        other = not sys.platform.startswith("linux") or Path("/dev/dxg").exists() or Path("/dev/kfd").exists()
        return None if other else 0
    return min(len(nodes), len(masked.split(","))) if masked else len(nodes)
