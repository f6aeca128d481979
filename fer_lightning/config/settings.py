"""Settings as flat keys, and which of them cannot change a result."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

MAY_DIFFER = (
    "hydra",
    "name",
    "tags",
    "resume",
    "logger",
    "jobs_per_device",
    "figures",
    "save_every_n_steps",
    "pause_after_epochs",
    "data.path",
    "data.source.path",
    "data.cache_dir",
    "data.source.cache_dir",
    "data.num_workers",
    "trainer.enable_progress_bar",
)
"""Configuration that cannot change a result: names, paths, display, pictures, and when to save."""


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration, or its part ``prefix``, to full key (``optim.lr``) -> value.

    A key that has a dot of its own is put in brackets: it is not the setting whose full key it looks like.
    """
    content = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(content, Mapping):
        return {prefix: content}
    named = ((str(key), value) for key, value in content.items())
    names = ((f"[{key}]" if "." in key else key, value) for key, value in named)
    parts = ((f"{prefix}.{name}" if prefix else name, value) for name, value in names)
    return {key: value for name, part in parts for key, value in flatten(part, name).items()}


def is_part_of(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of ``names``, or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def may_change_results(key: str) -> bool:
    """Whether a key is neither in ``MAY_DIFFER`` nor below one of its keys."""
    return not is_part_of(key, MAY_DIFFER)


def to_plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A configuration as dictionaries and lists, with interpolations resolved or as written."""
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]  # a dict, of a DictConfig


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The run's own part of a composed configuration; interpolations of Hydra's part still resolve."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
