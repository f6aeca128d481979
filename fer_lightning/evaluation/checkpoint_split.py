"""The data that a checkpoint was trained with, or other data, and whether the model has seen them."""

import logging
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config import safety, schema
from fer_lightning.config.interpolations import check_expansion
from fer_lightning.config.messages import explain
from fer_lightning.config.rules import label_rules, split_rules
from fer_lightning.config.yaml_files import compose_file
from fer_lightning.data.classes import match_classes
from fer_lightning.data.faces import USAGES, Faces, ImageForm, trained_on
from fer_lightning.data.folder import ANY_COLOR
from fer_lightning.data.from_config import load_faces, split_faces
from fer_lightning.data.splits import Split, whole
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError, one_line

log = logging.getLogger(__name__)

LONGEST_NAME = 150
"""Maximum characters of what names the members of an ensemble."""

CHANGEABLE = ("data.", "split.", "labels.", "trainer.accelerator.")
"""Beginnings of the keys, with a dot at the end, that an evaluation may change: they choose images and device."""

FOLDER = "folder"
"""The choice of ``data`` whose images have no split: all are test images."""


def load_split(model: EmotionClassifier, overrides: list[str]) -> tuple[DictConfig, Faces, Split]:
    """A checkpoint's configuration, with overrides, and the faces and split that it describes.

    Of an ensemble it is the first member's, with the names of all methods, networks and seeds, and the images that
    its members' splits have in common (``common_split``).

    Raises:
        UserError: see ``_trained_config``; when the configuration is damaged; and when test images trained or selected
            the model.
    """
    try:
        configs = [_trained_config(each, overrides) for each in model.members or [model]]
        cfg = configs[0]
        loaded = load_faces(cfg)
        if loaded.form != model.form:
            raise UserError(
                f"data={cfg.data.name}: has {loaded.form} images, and the model was trained on {model.form} ones; "
                "leave data.color and data.image_size out"
            )
        faces = match_classes(loaded, model.classes)
        is_other = _is_other_set(model, overrides)
        split = whole(faces) if is_other else common_split([split_faces(each, faces) for each in configs])
        _check_unseen(model, configs, faces, split, is_other)
        if model.members:
            _name_members(cfg, configs)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Keys of data and split, which are free form, reach the functions that they name as arguments.
        raise UserError(f"the checkpoint's configuration is damaged ({shortened(one_line(error), 200)})") from error
    return cfg, faces, split


def common_split(splits: Sequence[Split]) -> Split:
    """The images that trained any of several models, and those that all validated and tested on.

    Validation images may be few or none where each model has its own; of ``test_dedup``, those remain that have no twin
    in any model's training images.

    Raises:
        UserError: the models were tested on different images, so that one may have trained on those of another.
    """
    first = splits[0]
    if len(splits) == 1:
        return first
    if not all(np.array_equal(split.tests["test"], first.tests["test"]) for split in splits):
        raise UserError("the members were tested on different images: give runs of one split and fold, or of one seed")
    train = reduce(np.union1d, [split.train for split in splits])
    val = np.setdiff1d(reduce(np.intersect1d, [split.val for split in splits]), train)
    tests = {name: reduce(np.intersect1d, [split.tests[name] for split in splits]) for name in first.tests}
    return Split(train, val, tests)


def _name_members(cfg: DictConfig, configs: Sequence[DictConfig]) -> None:
    """Let ``cfg`` name the methods, networks and seeds of all members."""
    methods, networks, seeds = (
        list(dict.fromkeys(str(OmegaConf.select(each, key)) for each in configs))
        for key in ("imbalance.name", "model.name", "seed")
    )
    number = len(configs)
    cfg.imbalance.name = shortened(", ".join(methods), LONGEST_NAME)
    cfg.model.name = shortened(f"ensemble of {number}: {', '.join(networks)}", LONGEST_NAME)
    cfg.seed = shortened(", ".join(seeds), LONGEST_NAME)


def what_was_scored(checkpoint: Path, cfg: DictConfig, faces: Faces, split: Split) -> dict[str, Any]:
    """Data, split and model of the scores, for ``metrics.json`` and the captions."""
    is_folder = cfg.data.name == FOLDER
    return {
        "checkpoint": str(checkpoint),
        "data": f"{FOLDER} {Path(cfg.data.path).name}" if is_folder else cfg.data.name,
        "split": "whole" if len(split.train) == 0 else cfg.split.name,
        "labels": faces.label_source,
        "imbalance": cfg.imbalance.name,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "synthetic": faces.synthetic,
        "data_hash": faces.data_hash,
    }


def _trained_config(model: EmotionClassifier, overrides: list[str]) -> DictConfig:
    """The configuration stored in a checkpoint, with ``data=NAME`` and ``key=value`` of existing keys applied.

    Raises:
        UserError: for an unknown key, one that describes the model, and for a checkpoint that names other code than
            ``conf/`` does: a checkpoint is data and must not choose what is executed.
    """
    try:
        cfg = OmegaConf.create(model.hparams["config"])
        OmegaConf.merge(OmegaConf.structured(schema.Config), cfg)  # for its types
        parsed = OverridesParser.create().parse_overrides(overrides)
        for override in parsed:
            if override.key_or_group == "data":
                _swap_data(cfg, override.value(), model.form)
        stored: Any = OmegaConf.to_container(cfg)
        OmegaConf.set_struct(cfg, True)
        for override in parsed:
            if override.key_or_group == "data":
                continue
            if OmegaConf.is_dict(OmegaConf.select(cfg, override.key_or_group)):
                raise UserError(f"{override.input_line}: a whole group cannot be replaced; give one of its keys")
            OmegaConf.update(cfg, override.key_or_group, override.value())
            is_name = override.key_or_group in ("data.name", "split.name", "labels.name")  # recorded, and nothing else
            if is_name or not f"{override.key_or_group}.".startswith(CHANGEABLE):
                raise UserError(
                    f"{override.input_line}: describes the trained model and cannot be changed; accepted are keys of "
                    "data, split and labels, and trainer.accelerator"
                )
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None
    given = OmegaConf.to_container(cfg)
    assert isinstance(given, dict)
    safety.check(given)
    check_expansion(cfg)
    _check_kinds(given)
    schema.check_keys(given["data"], stored["data"], "data")
    schema.check_keys(given["split"], stored["split"], "split")
    split_rules(cfg.split)
    label_rules(cfg.labels, cfg.data)
    if given["data"]["drop_duplicates"] != stored["data"]["drop_duplicates"]:
        raise UserError("data.drop_duplicates: cannot be changed; it determines which images the model has seen")
    if model.form.color and "color" in cfg.data and cfg.data.color is None:
        cfg.data.color = ANY_COLOR
    return cfg


def _check_kinds(given: Any) -> None:
    """Refuse keys and types of ``data`` and ``split`` that the files of ``conf/`` with the same target do not have.

    Raises:
        UserError: naming the key and what is accepted.
    """
    for group in ("data", "split"):
        for path in (safety.CONF_DIR / group).glob("*.yaml"):
            own = compose_file(path)
            target, own_target = (node.get("source", node)["_target_"] for node in (given[group], own))
            if target == own_target:
                schema.check_keys(given[group], own, group)


def _is_other_set(model: EmotionClassifier, overrides: list[str]) -> bool:
    """Whether another set than FER-2013 is named in place of the data that the model was trained on."""
    own = ("fer2013", "ferplus8", "synthetic", trained_on(model.hparams["config"]))
    named = [word.removeprefix("data=") for word in overrides if word.startswith("data=")]
    return any(name == FOLDER or name not in own for name in named)


def _swap_data(cfg: DictConfig, name: Any, form: ImageForm) -> None:
    """Replace the trained choice of ``conf/data``, read in the model's form; all but FER-2013 have own labels."""
    files = {path.stem: path for path in (safety.CONF_DIR / "data").glob("*.yaml")}
    if not isinstance(name, str) or name not in files:
        raise UserError(f"data={name}: no such choice; data is one of: {', '.join(sorted(files))}")
    trained = cfg.data
    cfg.data = compose_file(files[name])
    cfg.data.drop_duplicates = trained.drop_duplicates
    if "image_size" in cfg.data:
        cfg.data.image_size, cfg.data.color = form.size, None if form.color else False
    if "classes" in cfg.data.source:
        cfg.labels = OmegaConf.load(safety.CONF_DIR / "labels" / "fer.yaml")


def _check_unseen(
    model: EmotionClassifier, configs: Sequence[DictConfig], faces: Faces, split: Split, is_other: bool
) -> None:
    """Log whether the test images may have trained or selected the model.

    Raises:
        UserError: some of them did.
    """
    is_trained = faces.data_hash == model.hparams["provenance"]["data_hash"]
    if is_other and is_trained:
        raise UserError(
            f"data.path={configs[0].data.path}: has the images that trained this model; leave data and data.path out "
            "to score its own test images"
        )
    if not is_trained:
        if not is_other and (faces.usage[split.tests["test"]] < USAGES.index("PrivateTest")).any():
            raise UserError(
                "the images or labels are not those that trained this model, and its test images were cut from them: "
                "a new cut may hold training images; give the data as they were, or score other images with "
                "data=folder data.path=DIR"
            )
        if not is_other:
            log.warning("the images or labels are not those of the run, whose scores these are not")
        log.info("it is unknown whether any of these images trained the model: checkpoints do not list their images")
        return
    own = [_trained_config(each, []) for each in model.members or [model]]
    if all(map(_split_alike, own, configs)):
        trained = split
    else:
        trained = common_split([split_faces(each, faces) for each in own])
    seen = np.intersect1d(split.tests["test"], np.union1d(trained.train, trained.val))
    if len(seen):
        raise UserError(
            f"{len(seen)} of the {len(split.tests['test'])} test images trained or selected this model; "
            "keep seed and split as trained"
        )


def _split_alike(one: DictConfig, other: DictConfig) -> bool:
    """Whether two configurations split the same images in the same way."""
    return all(
        OmegaConf.select(one, key) == OmegaConf.select(other, key) for key in ("split", "seed", "data.drop_duplicates")
    )
