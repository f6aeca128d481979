"""Going on from a checkpoint: which one, and whether it fits the run."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fer_lightning.errors import UserError
from fer_lightning.model import read_checkpoint

MUST_AGREE = ("seed", "split", "model", "optim")
"""Parts of the configuration that a resumed run takes over."""

MAY_CHANGE = (
    "model.weights",
    "model.freeze_epochs",
    "model.compile",
    "optim.schedule",
    "optim.warmup_fraction",
)
"""Their knobs that take effect in the rest of a resumed run."""


def resume_from(cfg: DictConfig, folder: Path, data_hash: str) -> Path | None:
    """The checkpoint that ``cfg.resume`` means, or None to start anew.

    The best checkpoint so far is copied along when another run's folder is resumed, so that it is not forgotten.

    Args:
        cfg: the composed run; ``resume`` is null, ``auto`` (``last.ckpt`` of ``folder``, if it is there), a run folder
            or a checkpoint.
        folder: the run folder.
        data_hash: of the images of this run.

    Raises:
        UserError: no safe checkpoint of this project; one of another model or optimizer; one trained on other images,
            whose training set may hold this run's test images; or one that has nothing left to train.
    """
    if cfg.resume is None:
        return None
    path = folder if cfg.resume == "auto" else Path(cfg.resume)
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if cfg.resume == "auto" and not path.exists():
        return None
    checkpoint = read_checkpoint(path)
    hyper = checkpoint["hyper_parameters"]
    wanted: Any = OmegaConf.to_container(cfg, resolve=True)
    trained = {**hyper["config"], "model": hyper["model"], "optim": hyper["optim"]}
    fixed = dict(_leaves({key: trained[key] for key in MUST_AGREE}))
    for key, value in _leaves({key: wanted[key] for key in MUST_AGREE}):
        if key not in MAY_CHANGE and fixed.get(key) != value:
            raise UserError(f"resume={cfg.resume}: {key} was {fixed.get(key)} there and cannot become {value}")
    if hyper["provenance"]["data_hash"] != data_hash:
        raise UserError(f"resume={cfg.resume}: it was trained on other images; give the same data.path and data.source")
    if checkpoint["epoch"] + 1 >= cfg.trainer.max_epochs:
        raise UserError(
            f"resume={cfg.resume}: it has all {checkpoint['epoch'] + 1} epochs; "
            f"raise trainer.max_epochs={cfg.trainer.max_epochs} to train on"
        )
    best, own = path.parent / "best.ckpt", folder / "checkpoints"
    if best.exists() and best.parent.resolve() != own.resolve():
        own.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, own / "best.ckpt")
    return path


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
