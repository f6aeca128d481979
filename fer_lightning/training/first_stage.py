"""Runs that start from the weights of another run (``imbalance.first_stage``)."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.imbalance_rules import refuse_double_corrections
from fer_lightning.config.interpolations import bounded
from fer_lightning.config.safety import recorded
from fer_lightning.config.settings import flatten, to_plain
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

SAME_IMAGES = ("seed", "split", "labels.targets", "data.drop_duplicates")
"""Parts of the configuration that both stages must share: otherwise the first may have trained on test images."""


def load_first_stage(model: EmotionClassifier, cfg: DictConfig, data_hash: str) -> None:
    """Load the weights of the run that ``cfg.imbalance.first_stage`` names into a model.

    Raises:
        UserError: no safe checkpoint, another architecture, or one trained on other images or another split, whose
            training images may be this run's test images.
    """
    path = Path(cfg.imbalance.first_stage)
    checkpoint = read_checkpoint(path)
    hyper = checkpoint["hyper_parameters"]
    given = f"imbalance.first_stage={path}"
    if hyper["members"]:
        raise UserError(f"{given}: is an ensemble, which has no last layer of its own; give one of its members")
    if hyper["provenance"]["data_hash"] != data_hash:
        raise UserError(f"{given}: it was trained on other images; give the same data and labels")
    if hyper["adjusted"]:
        raise UserError(f"{given}: its last layer is adjusted already; give the unadjusted.ckpt beside it")
    trained = recorded(hyper["config"], given)
    for key in SAME_IMAGES:
        with bounded():
            before, now = OmegaConf.select(trained, key), OmegaConf.select(cfg, key)
        if before != now:
            raise UserError(f"{given}: its {key} was {before}, here it is {now}; both stages need the same images")
    ours, theirs = (architecture(settings) for settings in (to_plain(cfg.model), hyper["model"]))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            was, now = theirs.get(key), ours.get(key)
            raise UserError(f"{given}: its model.{key} was {was}, here it is {now}; choose the same model")
    if cfg.imbalance.get("adjust"):
        parts = {key: trained.imbalance[key] for key in ("loss", "sampler", "mix") if key in trained.imbalance}
        refuse_double_corrections(OmegaConf.create({**to_plain(cfg.imbalance), **parts}))
    model.load_state_dict({**model.state_dict(), **checkpoint["state_dict"]})  # a factor per class may be new
    log.info("first stage: %s (%s)", path, hyper["config"]["imbalance"]["name"])


def architecture(model: dict[str, Any]) -> dict[str, Any]:
    """The settings of the ``model`` group, flat, that determine what a network's weights mean."""
    free = ("weights", "freeze_epochs", "compile", "drop_path", "first_image_size", "head.dropout", "head.class_scale")
    return {key: value for key, value in flatten(model).items() if key not in free and value is not None}


def first_stage_metrics(checkpoint: str | None) -> dict[str, Any]:
    """Method and optimizer steps of a first stage that another run trained, for ``metrics.json``."""
    if checkpoint is None:
        return {}
    content = read_checkpoint(Path(checkpoint))
    name = content["hyper_parameters"]["config"]["imbalance"]["name"]
    return {"first_stage/imbalance": name, "first_stage/steps": int(content["global_step"])}
