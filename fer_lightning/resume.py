"""Going on from a checkpoint: which one, and whether it fits the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fer_lightning.errors import UserError
from fer_lightning.model import read_checkpoint

RESUME_MAY_CHANGE = (
    "model.weights",
    "model.freeze_epochs",
    "model.compile",
    "optim.schedule",
    "optim.warmup_fraction",
)
"""Knobs of model and optimizer that take effect in the rest of a resumed run; the restored state fixes all others."""


def resume_from(cfg: DictConfig, folder: Path) -> Path | None:
    """The checkpoint that ``cfg.resume`` means, or None to start anew.

    Args:
        cfg: the composed run; ``resume`` is null, ``auto`` (``last.ckpt`` of ``folder``, if it is there), a run folder
            or a checkpoint.
        folder: the run folder.

    Raises:
        UserError: no safe checkpoint of this project, or one of another model or optimizer.
    """
    if cfg.resume is None:
        return None
    path = folder if cfg.resume == "auto" else Path(cfg.resume)
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if cfg.resume == "auto" and not path.exists():
        return None
    hyper = read_checkpoint(path)["hyper_parameters"]
    wanted: Any = OmegaConf.to_container(cfg, resolve=True)
    trained = dict(_leaves({"model": hyper["model"], "optim": hyper["optim"]}))
    for key, value in _leaves({"model": wanted["model"], "optim": wanted["optim"]}):
        if key not in RESUME_MAY_CHANGE and trained.get(key) != value:
            raise UserError(f"resume={cfg.resume}: {key} was {trained.get(key)} there and cannot become {value}")
    return path


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
