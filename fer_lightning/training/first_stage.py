"""Runs that start from the weights of another run (``imbalance.first_stage``)."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.imbalance_rules import refuse_corrected_first_stage
from fer_lightning.config.interpolations import bounded
from fer_lightning.config.rules import is_seed
from fer_lightning.config.safety import recorded
from fer_lightning.config.settings import flatten, to_plain
from fer_lightning.data.from_config import split_seed
from fer_lightning.model.checkpoint import LONGEST_TEXT, StoredModel, weights_digest
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

SAME_IMAGES = ("split", "labels.targets", "data.drop_duplicates")
"""Parts of the configuration that both stages must share: otherwise the first may have trained on test images."""


def first_stage_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint that ``cfg.imbalance.first_stage`` names: a file, or that of a run folder before adjustments."""
    given = cfg.imbalance.get("first_stage")
    if given is None:
        return None
    folder = Path(given) / "checkpoints"
    names = ("unadjusted.ckpt", "best.ckpt")
    return next((folder / name for name in names if (folder / name).exists()), Path(given))


def read_first_stage(cfg: DictConfig) -> StoredModel | None:
    """The model that another run trained and this one begins with; None without one.

    Raises:
        UserError: no safe checkpoint.
    """
    path = first_stage_checkpoint(cfg)
    return None if path is None else StoredModel.read(path)


def with_split_of_first_stage(cfg: DictConfig, first_stage: StoredModel | None) -> DictConfig:
    """The run with the images of its first stage: a seed of its own then draws no others.

    Raises:
        UserError: its configuration is damaged.
    """
    if first_stage is None or cfg.split.get("seed") is not None:
        return cfg
    given = f"imbalance.first_stage={first_stage.path}"
    with bounded():
        seed = _plain_split(recorded(first_stage.content["hyper_parameters"]["config"], given), given)["seed"]
    return cfg if seed == cfg.seed else OmegaConf.merge(cfg, {"split": {"seed": seed}})  # type: ignore[return-value]


def load_first_stage(model: EmotionClassifier, cfg: DictConfig, first_stage: StoredModel, data_hash: str) -> None:
    """Load the weights of a first stage into a model.

    Raises:
        UserError: another architecture, or one trained on other images or another split, whose training images may be
            this run's test images; a damaged configuration.
    """
    path, checkpoint = first_stage
    hyper = checkpoint["hyper_parameters"]
    given = f"imbalance.first_stage={path}"
    if hyper["members"]:
        raise UserError(f"{given}: is an ensemble, which has no last layer of its own; give one of its members")
    if hyper["provenance"]["data_hash"] != data_hash:
        raise UserError(f"{given}: it was trained on other images; give the same data and labels")
    if hyper["adjusted"]:
        raise UserError(f"{given}: its last layer is adjusted already; give the unadjusted.ckpt beside it")
    if "global_step" not in checkpoint:
        raise UserError(f"{given}: damaged, it does not say how many steps it was trained for")
    trained = recorded(hyper["config"], given)
    _check_method(hyper["config"].get("imbalance"), given)
    for key in SAME_IMAGES:
        with bounded():
            before, now = (_images(each, key, given) for each in (trained, cfg))
        if before != now:
            raise UserError(f"{given}: its {key} was {before}, here it is {now}; both stages need the same images")
    ours, theirs = (architecture(settings) for settings in (to_plain(cfg.model), hyper["model"]))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            was, now = ("null" if value is None else value for value in (theirs.get(key), ours.get(key)))
            its = f"{given}: its model.{key} was {was}"
            if key == "head.cosine_scale" and "cosine_scale" in cfg.imbalance:
                raise UserError(
                    f"{its}, and imbalance={cfg.imbalance.name} needs {now}; give a run with model.{key}={now}, or "
                    "imbalance.first_stage=null, which trains the first stage too"
                )
            raise UserError(f"{its}, here it is {now}; give model.{key}={was}, or another first stage")
    parts = {key: trained.imbalance[key] for key in ("loss", "sampler", "mix") if key in trained.imbalance}
    refuse_corrected_first_stage(OmegaConf.create({**to_plain(cfg.imbalance), **parts}), given)
    model.load_state_dict({**model.state_dict(), **checkpoint["state_dict"]})  # factors per class may be new
    log.info("first stage: %s (%s)", path, hyper["config"]["imbalance"]["name"])


def _check_method(imbalance: Any, given: str) -> None:
    """Raise UserError unless a checkpoint's configuration names its method, which ``metrics.json`` repeats."""
    name = imbalance.get("name") if isinstance(imbalance, dict) else None
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_TEXT:
        raise UserError(f"{given}: damaged, its configuration names no imbalance method")


def first_stage_hash(first_stage: StoredModel, begun: str | None) -> str:
    """The digest of a first stage's weights.

    Args:
        first_stage: as it is now.
        begun: the digest of the one that the training began with; None for a new training.

    Raises:
        UserError: it is another model than that, and so are features and adjustments that come from it.
    """
    digest = weights_digest(first_stage.content["state_dict"])
    if begun not in (None, digest):
        raise UserError(
            f"imbalance.first_stage={first_stage.path}: has other weights than when this run began; put the former "
            "model back, or train anew in another hydra.run.dir"
        )
    return digest


def _images(cfg: DictConfig, key: str, given: str) -> Any:
    """A setting that chooses images; of ``split``, without what is not set, and with the seed in any case."""
    return _plain_split(cfg, given) if key == "split" else OmegaConf.select(cfg, key)


def _plain_split(cfg: DictConfig, given: str) -> dict[str, Any]:
    """Raise UserError where the configuration, which anybody may have written, has no split."""
    split, seed = OmegaConf.select(cfg, "split"), OmegaConf.select(cfg, "seed")
    if not OmegaConf.is_dict(split) or not is_seed(seed) or not is_seed(split_seed(cfg)):
        raise UserError(f"{given}: damaged, its configuration has no split or no seed")
    plain = {key: value for key, value in to_plain(split).items() if value is not None}
    return {**plain, "seed": split_seed(cfg)}


def architecture(model: dict[str, Any]) -> dict[str, Any]:
    """The settings of the ``model`` group, flat, that determine what a network's weights mean."""
    of_head = ("head.dropout", "head.class_scale", "head.class_margin")
    free = ("weights", "freeze_epochs", "compile", "drop_path", "first_image_size", *of_head)
    return {key: value for key, value in flatten(model).items() if key not in free and value is not None}


def first_stage_metrics(first_stage: StoredModel | None) -> dict[str, Any]:
    """For ``metrics.json``: method and optimizer steps of a first stage that another run trained."""
    if first_stage is None:
        return {}
    name = first_stage.content["hyper_parameters"]["config"]["imbalance"]["name"]
    return {"first_stage/imbalance": name, "first_stage/steps": int(first_stage.content["global_step"])}
