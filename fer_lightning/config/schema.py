"""The schema of a run; imports nothing heavy, so that mistakes are reported at once.

The files in ``conf/`` define which keys exist; the dataclasses here define their types. Nodes that Hydra instantiates
(``data.source``, ``split``, ``imbalance``, ``callbacks``) have no dataclass: the chosen
file itself is their schema, so that a new method is one new file and nothing else.
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fer_lightning.config.augment import Strengths
from fer_lightning.config.hydra_keys import leaves, short
from fer_lightning.config.interpolations import bounded
from fer_lightning.config.messages import did_you_mean, explain
from fer_lightning.config.rules import check_rules, model_rules
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.config.secrets import check_secrets
from fer_lightning.config.settings import to_plain
from fer_lightning.presentation.printable import has_control_characters
from fer_lightning.runtime.errors import UserError, require


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
    only: list[str] | None = None
    votes: str | None = None
    color: bool | None = None
    image_size: int | None = None


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
    class_margin: bool = False


@dataclass
class Model:
    name: str
    weights: str
    in_channels: int
    image_size: int
    first_image_size: int | None
    stem_stride: int | None
    drop_path: float
    head: Head
    freeze_epochs: int
    compile: Any


@dataclass
class Augment(Strengths):
    name: str = MISSING
    backend: str = MISSING


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
    """A composed run, as printed by ``--cfg job``."""

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
    pause_after_epochs: int | None
    figures: bool
    callbacks: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


MAX_SIDE = 2048
"""Maximum side of the network's input, in pixels, that a checkpoint may ask for."""

MAX_LAYERS = 20
"""Maximum hidden layers of the head that a checkpoint may ask for."""

PATHS = ("data.path", "data.cache_dir", "data.classes", "data.votes", "labels.votes", "model.weights", "resume")
"""Keys that name a file or a folder."""

FREE_FORM = ("data.source", "split", "imbalance", "callbacks")


def validate(cfg: DictConfig, choices: Mapping[str, Any], searchpath: Sequence[str] = ()) -> None:
    """Refuse unknown keys, wrong types and contradictions.

    Args:
        cfg: the composed run (without the ``hydra`` node).
        choices: Hydra's ``hydra.runtime.choices``, group to chosen file.
        searchpath: ``hydra.searchpath``: folders of the user's files.

    Raises:
        UserError: with the key, the value given and what is accepted.
    """
    try:
        with bounded():
            typed = OmegaConf.merge(OmegaConf.structured(Config), cfg)
            assert isinstance(typed, DictConfig)
            resolved: Any = OmegaConf.to_container(typed, resolve=True, throw_on_missing=True)
            given = to_plain(cfg)
    except (OmegaConfBaseException, RecursionError) as error:  # RecursionError: circular interpolation
        raise UserError(explain(error)) from None
    _check_resolved(resolved)
    if missing := [key for key in resolved if key not in given]:
        raise UserError(f"{missing[0]}: is missing, and every run has it; leave ~{missing[0]} out")
    check_kinds(given, resolved)
    reference = _reference(choices, searchpath)
    for path in FREE_FORM:
        node: Any = functools.reduce(lambda node, key: node[key], path.split("."), resolved)
        check_keys(node, to_plain(OmegaConf.select(reference, path), resolve=False), path)
    check_rules(typed)


def _check_resolved(resolved: dict[str, Any]) -> None:
    """Check what the interpolations resolve to: no secrets, nothing that could be resolved again, names for folders.

    Raises:
        UserError: naming the key.
    """
    texts = [(".".join(parts), str(value)) for parts, value in leaves(resolved)]
    check_secrets(texts)
    for parts, value in leaves(resolved):
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite, ".".join(parts), value, "must be a finite number")
    for key, text in texts:
        if "${" in text:
            raise UserError(f"{key}={short(text)}: resolves to another interpolation; write it out")
        if has_control_characters(text):
            raise UserError(f"{key}={short(text)}: holds a line break or another control character; remove it")
    check_names(resolved["name"], resolved["imbalance"].get("name"))


def check_kinds(given: Any, typed: Any, path: str = "") -> None:
    """Refuse text where a number, true or false is expected, and numbers in place of paths.

    The schema would convert them, but the run reads what was given: ``no`` is a text that is not empty, so true.

    Args:
        given: a configuration as it is, plain and resolved.
        typed: the same with the types of the schema.
        path: of the node, empty at the root.

    Raises:
        UserError: naming the key, and how to write its value.
    """
    if isinstance(typed, dict):
        for key, value in given.items():
            check_kinds(value, typed[key], f"{path}.{key}" if path else str(key))
    elif isinstance(typed, list):
        for value, expected in zip(given, typed, strict=True):
            check_kinds(value, expected, path)
    elif isinstance(given, str) and isinstance(typed, bool | int | float):
        written = str(typed).lower() if isinstance(typed, bool) else typed
        raise UserError(f"{path}={short(given)!r}: is text where {_kind(typed)} is expected; write it as {written}")
    elif path in PATHS and isinstance(typed, str) and not isinstance(given, str):
        raise UserError(f"{path}={given}: is not text, but must name a file or a folder; write it as ./{given}")


def check_names(run: Any, method: Any) -> None:
    """Check ``name`` and ``imbalance.name``, which become parts of folder names.

    Raises:
        UserError: one would lead elsewhere.
    """
    for key, name in (("name", run), ("imbalance.name", method)):
        is_plain = isinstance(name, str) and name.isprintable() and bool(re.fullmatch(r"[^\s./=][^/=]{0,99}", name))
        require(is_plain, key, short(name), "is part of folder names: 1 to 100 characters, no / and no =, no dot first")


def _reference(choices: Mapping[str, Any], searchpath: Sequence[str]) -> DictConfig:
    """The chosen files composed without other overrides: the keys and types that free-form nodes may have.

    Raises:
        UserError: a file of callbacks, chosen or not, cannot be composed or is unsafe.
    """
    groups = ("data", "split", "imbalance", "imbalance/sampler", "imbalance/mix")
    overrides = tuple(f"{group}={choices[group]}" for group in groups if choices.get(group))
    if searchpath:
        overrides += (f"hydra.searchpath={json.dumps(list(searchpath))}",)
    folders = [source for source in GlobalHydra.instance().config_loader().get_sources() if source.scheme() == "file"]
    own = not searchpath and all(Path(folder.path) == CONF_DIR for folder in folders)
    return _compose_own_files(overrides) if own else _compose_files(overrides)


MAX_CALLBACKS = 50
"""Files of the group ``callbacks``, with those of a ``--config-dir``."""


def _compose_files(overrides: tuple[str, ...]) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()

    def compose(*callbacks: str) -> DictConfig:
        chosen = [*overrides, f"callbacks=[{','.join(callbacks)}]"]
        return loader.load_configuration(config_name="config", overrides=chosen, run_mode=RunMode.RUN)

    # Several callbacks can be chosen at once, which Hydra does not record among the choices: allow what any file has.
    files = loader.get_group_options("callbacks")
    if len(files) > MAX_CALLBACKS:  # a mistake in one takes as long to find as to compose each of them
        raise UserError(f"callbacks/: has {len(files)} files, and at most {MAX_CALLBACKS} are read; move others away")
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


# Jobs of a sweep choose the same ones again; files of the user may change in the meantime.
_compose_own_files = functools.lru_cache(maxsize=64)(_compose_files)


OPTIONAL = ("imbalance.loss.power",)
"""Settings that may be null in every method, also where a method's file has a number (``marc``)."""


def check_keys(given: Mapping[str, Any], expected: Mapping[str, Any], path: str) -> None:
    """Refuse keys that ``expected`` lacks and values of another type than there.

    Raises:
        UserError: naming the key below ``path``, and what is accepted.
    """
    for key, value in given.items():
        name = f"{path}.{key}"
        if key not in expected:
            hint = did_you_mean(key, list(expected), prefix=f"{path}.")
            keys = ", ".join(other for other in expected if not other.startswith("_"))
            raise UserError(f"{name}={value}: no such key{hint}; {path} has: {keys or 'nothing to set'}")
        if isinstance(value, dict) and isinstance(expected[key], dict):
            check_keys(value, expected[key], name)
        elif not (_same_kind(value, expected[key]) or (value is None and name in OPTIONAL)):
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


def check_model(model: Mapping[str, Any]) -> None:
    """Refuse a ``model`` group of unknown origin, such as a checkpoint's, that a configuration could not have.

    Raises:
        UserError: with the key, the value and what is accepted.
    """
    try:
        cfg = OmegaConf.merge(OmegaConf.structured({"model": Model}), {"model": dict(model)})
        OmegaConf.to_container(cfg, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, [])) from None
    assert isinstance(cfg, DictConfig)
    model_rules(cfg)
    widths = cfg.model.head.hidden
    require(len(widths) <= MAX_LAYERS, "model.head.hidden", f"[{len(widths):,} widths]", f"at most {MAX_LAYERS} layers")
    require(cfg.model.image_size <= MAX_SIDE, "model.image_size", cfg.model.image_size, f"at most {MAX_SIDE} pixels")
