"""Which settings of a run must be those that it was trained with when it is resumed."""

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
    "trainer.precision",
)
"""Parts of the configuration that must be those of the checkpoint; the first that differs is reported."""

MUST_AGREE_IN_CYCLE = ("trainer.max_epochs", "trainer.max_steps", "optim.schedule")
"""Further ones with ``optim.schedule=one_cycle``, whose last step is fixed from the first."""

MUST_AGREE_IN_STAGES = ("trainer.max_epochs",)
"""Further ones where something depends on the epoch: the start of a second stage, or the size of the images."""

MAY_CHANGE = (
    "model.weights",
    "model.compile",
    "optim.schedule",
    "optim.warmup_fraction",
    "callbacks.early_stopping.patience",
)
"""Settings within these parts that may change; they apply to the rest of a resumed run."""


ADDED = {"model.head.class_margin": False, "imbalance.feature_views": 0}
"""Settings that a checkpoint may lack, and the values that describe how it was trained."""


def check_same_training(cfg: DictConfig, trained: DictConfig) -> None:
    """Check that a run can be resumed with its settings.

    Args:
        cfg: the composed run.
        trained: the configuration that a checkpoint or a run folder holds, from ``safety.recorded``.

    Raises:
        UserError: naming the first setting that differs, with both values; or ``trained`` is damaged.
    """
    keys = (
        *MUST_AGREE,
        *(MUST_AGREE_IN_CYCLE if cfg.optim.schedule == "one_cycle" else ()),
        *(MUST_AGREE_IN_STAGES if any(_depends_on_epochs(each) for each in (cfg, trained)) else ()),
    )
    for part in keys:
        try:
            with bounded():
                before = _resolved(trained, part)
        except OmegaConfBaseException as error:
            raise UserError(
                f"resume={cfg.resume}: its configuration is damaged ({first_line(error)}); give another checkpoint"
            ) from None
        now = _resolved(cfg, part)
        left_out = before if part == "callbacks" else {}  # other parts always have their keys
        for key in {**now, **left_out}:
            value, was = now.get(key), before.get(key, ADDED.get(key))
            if key not in MAY_CHANGE and was != value:
                raise UserError(
                    f"resume={cfg.resume}: {key} was {was!r} there and cannot become {value!r}; give the value that it "
                    "had, or train anew in another hydra.run.dir"
                )


def _resolved(cfg: DictConfig, part: str) -> dict[str, Any]:
    node = OmegaConf.select(cfg, part)
    return flatten(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node, part)


def _depends_on_epochs(cfg: DictConfig) -> bool:
    parts = cfg.imbalance.values()
    return bool(cfg.model.get("first_image_size")) or any(
        OmegaConf.is_dict(part) and "epochs" in part for part in parts
    )
