"""Which settings of a run must be those that it was trained with when it is resumed."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.interpolations import bounded
from fer_lightning.config.settings import flatten
from fer_lightning.runtime.errors import UserError, first_line

MUST_AGREE = (
    "seed",
    "split",
    "labels.name",
    "labels.targets",
    "data.drop_duplicates",
    "imbalance.name",
    "imbalance",
    "model",
    "optim",
    "augment",
    "callbacks",
    "budget",
    "monitor",
    "data.batch_size",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.check_val_every_n_epoch",
    "trainer.sync_batchnorm",
    "trainer.precision",
)
"""Parts of the configuration that must be those of the checkpoint; the first that differs is reported."""

MUST_AGREE_IN_CYCLE = ("trainer.max_epochs", "trainer.max_steps", "optim.schedule")
"""Further ones with ``optim.schedule=one_cycle``, whose last step is fixed from the first."""

MUST_AGREE_IN_STAGES = ("trainer.max_epochs",)
"""Further ones where something counts in shares of the epochs: see ``_depends_on_epochs``."""

MAY_CHANGE = (
    "model.weights",
    "model.compile",
    "optim.schedule",
    "optim.warmup_fraction",
    "callbacks.early_stopping.patience",
)
"""Settings within these parts that may change; they apply to the rest of a resumed run."""

ADDED = {
    "imbalance.feature_views": 0,
    "imbalance.loss.power": None,
    "imbalance.loss.weights": None,
    "imbalance.second_stage.max_norm": None,
    "model.first_image_size": None,
    "model.head.class_margin": False,
    "optim.sam_rho": None,
    **dict.fromkeys(("split.order", "split.profile", "split.ratio", "split.seed", "split.total")),
}
"""Settings that a checkpoint may lack, and the values that describe how it was trained."""

_NOT_SET = object()


def check_same_training(cfg: DictConfig, trained: DictConfig) -> None:
    """Check that a run can be resumed with its settings.

    Args:
        cfg: the composed run.
        trained: the configuration that a checkpoint or a run folder holds, from ``safety.recorded``.

    Raises:
        UserError: naming the first setting that differs, with both values; or ``trained`` is damaged.
    """
    try:
        with bounded():
            before_of = {part: _resolved(trained, part) for part in _parts(cfg, trained)}
    except OmegaConfBaseException as error:
        raise UserError(
            f"resume={cfg.resume}: its configuration is damaged ({first_line(error)}); give another checkpoint"
        ) from None
    for part, before in before_of.items():
        now = _resolved(cfg, part)
        for key in {**now, **before}:
            value, was = (_value(settings, key) for settings in (now, before))
            if key not in MAY_CHANGE and was != value:
                became = "be left out" if value is _NOT_SET else f"become {value!r}"
                raise UserError(
                    f"resume={cfg.resume}: {key} was {'not set' if was is _NOT_SET else repr(was)} there and cannot "
                    f"{became}; give the value that it had, or train anew in another hydra.run.dir"
                )


def _parts(cfg: DictConfig, trained: DictConfig) -> tuple[str, ...]:
    return (
        *MUST_AGREE,
        *(MUST_AGREE_IN_CYCLE if cfg.optim.schedule == "one_cycle" else ()),
        *(MUST_AGREE_IN_STAGES if any(map(_depends_on_epochs, (cfg, trained))) else ()),
    )


def _resolved(cfg: DictConfig, part: str) -> dict[str, Any]:
    node = OmegaConf.select(cfg, part)
    return flatten(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node, part)


def _value(settings: Mapping[str, Any], key: str) -> Any:
    """A setting, or all those below it; ``_NOT_SET`` where there is none."""
    below = {name.removeprefix(f"{key}."): value for name, value in settings.items() if name.startswith(f"{key}.")}
    return settings.get(key, below or ADDED.get(key, _NOT_SET))


def _depends_on_epochs(cfg: DictConfig) -> bool:
    """Whether something counts in shares of all epochs: a method's schedule, the size of the images, an average."""
    if any(OmegaConf.select(cfg, key) is not None for key in ("model.first_image_size", "callbacks.swa")):
        return True
    return any(key.split(".")[2:] == ["epochs"] for key in flatten(OmegaConf.select(cfg, "imbalance"), "imbalance"))
