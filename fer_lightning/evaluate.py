"""Exact scores of a trained model: ``python -m fer_lightning.evaluate CHECKPOINT``.

Always one process and float32, whatever the run was trained with: every image counts once, and the same checkpoint
gives the same numbers again.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Column, Table

from fer_lightning import config as schema
from fer_lightning import figures, safety, tta
from fer_lightning.data import ferplus
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces, count_classes
from fer_lightning.data.splits import Split, whole
from fer_lightning.errors import UserError
from fer_lightning.metrics import calibration_error, classification_metrics
from fer_lightning.model import EmotionClassifier
from fer_lightning.run_folder import write_json
from fer_lightning.statistics import fit_temperature, nll, scale

log = logging.getLogger(__name__)

BATCH_SIZE = 256

FOLDER = "folder"
"""The choice of ``data`` whose images have no split: all are tested on."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split.

    Attributes:
        metrics: flat, ``<test set>/<metric>`` and ``val/<metric>``; ``temperature`` (None without one), and
            ``nll_calibrated`` and ``ece_calibrated`` of the test sets with it; ``<test set>_<augmentation>/<metric>``.
        predictions: one row per image of any test set: id, usage, label, prediction, ``p_<emotion>``, twin_group, and
            a column of 0 and 1 per test set that says whether the image belongs to it.
    """

    metrics: dict[str, Any]
    predictions: pd.DataFrame


@torch.inference_mode()
def predict(
    model: EmotionClassifier, images: np.ndarray, device: torch.device, views: tta.Views = tta.plain
) -> np.ndarray:
    """Class probabilities.

    Args:
        model: in ``eval`` mode; moved to ``device``.
        images: uint8, (n, 48, 48).
        device: where to compute.
        views: of each image, for test-time augmentation.

    Returns:
        float64, (n, 7): the softmax of the float32 logits, averaged over the views.

    Raises:
        UserError: when the weights are so broken that answers are not finite.
    """
    model = model.to(device).eval()
    batches = (
        torch.from_numpy(np.array(images[start : start + BATCH_SIZE])).to(device)
        for start in range(0, len(images), BATCH_SIZE)
    )
    logits = [torch.stack([model(view).float().cpu() for view in views(batch)]) for batch in batches]
    probabilities = torch.cat(logits, dim=1).double().softmax(dim=2).mean(dim=0).numpy()
    if not np.isfinite(probabilities).all():
        raise UserError("the model answers NaN: its training diverged; try a smaller optim.lr")
    return probabilities


def evaluate(
    model: EmotionClassifier,
    faces: Faces,
    split: Split,
    device: torch.device,
    temperature: float | None = None,
    augmentations: Sequence[str] = (),
) -> Evaluation:
    """Score every test set of a split, and its validation set when it has one.

    Args:
        model: what is scored.
        faces: the data.
        split: which of them are validation and test images.
        device: where to compute.
        temperature: that calibrates the model's probabilities; None fits it on the validation images.
        augmentations: names in ``tta.VIEWS``; each scores the test sets once more, beside the plain images.
    """
    sets = {**split.tests, **({"val": split.val} if len(split.val) else {})}
    union = np.unique(np.concatenate(list(sets.values())))
    probabilities = predict(model, faces.images[union], device)
    metrics: dict[str, Any] = {}
    for name, indices in sets.items():
        rows = np.searchsorted(union, indices)
        metrics |= classification_metrics(probabilities[rows], faces.labels[indices], prefix=f"{name}/")
    if temperature is None and len(split.val):
        temperature = fit_temperature(probabilities[np.searchsorted(union, split.val)], faces.labels[split.val])
    metrics["temperature"] = temperature
    if temperature is not None:
        for name, indices in split.tests.items():
            calibrated, labels = (
                scale(probabilities[np.searchsorted(union, indices)], temperature),
                faces.labels[indices],
            )
            metrics[f"{name}/nll_calibrated"] = nll(calibrated, labels) if len(labels) else None
            metrics[f"{name}/ece_calibrated"] = calibration_error(calibrated, labels) if len(labels) else None
    test = np.unique(np.concatenate(list(split.tests.values())))
    for augmentation in augmentations:
        averaged = predict(model, faces.images[test], device, tta.VIEWS[augmentation])
        for name, indices in split.tests.items():
            rows = np.searchsorted(test, indices)
            metrics |= classification_metrics(averaged[rows], faces.labels[indices], f"{name}_{augmentation}/")
    chosen = probabilities[np.searchsorted(union, test)]
    names = np.array(EMOTIONS)
    predictions = pd.DataFrame(
        {
            "id": faces.ids[test],
            "usage": np.array(USAGES)[faces.usage[test]],
            "label": names[faces.labels[test]],
            "prediction": names[chosen.argmax(axis=1)],
            **{f"p_{emotion}": chosen[:, k] for k, emotion in enumerate(EMOTIONS)},
            "twin_group": faces.twins[test],
            **{name: np.isin(test, indices).astype(int) for name, indices in split.tests.items()},
        }
    )
    return Evaluation(metrics, predictions)


def load_faces(cfg: DictConfig) -> Faces:
    """The images that a configuration describes."""
    # Partial and called here, as below: Hydra's own call hides the text of errors and wraps arguments in config nodes.
    faces: Faces = instantiate(cfg.data.source, _partial_=True, _recursive_=False)()
    labels = cfg.get("labels")  # absent from the checkpoints of earlier versions
    if labels is None or labels.votes is None:
        return faces
    return ferplus.relabel(faces, labels.votes, labels.targets)


def split_faces(cfg: DictConfig, faces: Faces) -> Split:
    """The split of ``faces`` that a configuration describes."""
    arguments = {key: value for key, value in cfg.split.items() if key != "name"}
    if cfg.data.get("drop_duplicates") is not None:
        arguments["drop_duplicates"] = cfg.data.drop_duplicates
    return instantiate(arguments, _partial_=True, _recursive_=False)(faces=faces, seed=cfg.seed)


def pick_device(accelerator: str) -> torch.device:
    """The device that Lightning's ``accelerator`` name stands for.

    Raises:
        UserError: when this machine has none.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = {"auto": tuple(here), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,))
    for kind in wanted:
        if here.get(kind):
            return torch.device(kind)
    raise UserError(f"trainer.accelerator={accelerator}: this machine has no such device; use trainer.accelerator=cpu")


def _trained_config(model: EmotionClassifier, overrides: list[str]) -> DictConfig:
    """The configuration stored in a checkpoint, with ``data=NAME`` and ``key=value`` of existing keys applied.

    Raises:
        UserError: for an unknown key, and for a checkpoint that names other code than ``conf/`` does: a checkpoint is
            data, and must not choose what is executed.
    """
    cfg = OmegaConf.create(model.hparams["config"])
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        for override in parsed:
            if override.key_or_group == "data":
                _swap_data(cfg, override.value())
        stored: Any = OmegaConf.to_container(cfg)
        OmegaConf.set_struct(cfg, True)
        for override in parsed:
            if override.key_or_group == "data":
                continue
            if OmegaConf.is_dict(OmegaConf.select(cfg, override.key_or_group)):
                raise UserError(f"{override.input_line}: a whole group stays as trained; give one of its keys")
            OmegaConf.update(cfg, override.key_or_group, override.value())
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(schema.explain(error)) from None
    given = OmegaConf.to_container(cfg)
    assert isinstance(given, dict)
    safety.check(given)
    schema.check_knobs(given["data"], stored["data"], "data")
    schema.check_knobs(given["split"], stored["split"], "split")
    schema.split_rules(cfg.split)
    if "labels" in cfg:
        schema.label_rules(cfg.labels)
    if given["data"].get("drop_duplicates") != stored["data"].get("drop_duplicates"):
        raise UserError("data.drop_duplicates: stays as trained; it says which images the model has seen")
    return cfg


def _swap_data(cfg: DictConfig, name: Any) -> None:
    """Put another choice of ``conf/data`` in the place of the trained one; a folder has its own labels."""
    files = {path.stem: path for path in (schema.CONF_DIR / "data").glob("*.yaml")}
    if not isinstance(name, str) or name not in files:
        raise UserError(f"data={name}: no such choice; data is one of: {', '.join(sorted(files))}")
    trained = cfg.data
    cfg.data = OmegaConf.load(files[name])
    cfg.data.drop_duplicates = trained.get("drop_duplicates")
    if name == FOLDER:
        cfg.labels = OmegaConf.load(schema.CONF_DIR / "labels" / "fer.yaml")


def load_split(model: EmotionClassifier, overrides: list[str]) -> tuple[DictConfig, Faces, Split]:
    """A checkpoint's configuration, with overrides, and the faces and split that it describes.

    Raises:
        UserError: see ``_trained_config``; and when test images trained or selected the model.
    """
    cfg = _trained_config(model, overrides)
    faces = load_faces(cfg)
    split = whole(faces) if cfg.data.name == FOLDER else split_faces(cfg, faces)
    _check_unseen(model, cfg, faces, split)
    return cfg, faces, split


def main(arguments: list[str] | None = None) -> None:
    """Score a checkpoint on the test sets of its own split, on changed data, or on any labelled folder of images."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lightning.evaluate",
        description=main.__doc__,
        epilog="Any images: data=folder data.path=DIR, of <emotion>/<image>; for other folder names data.classes=FILE, "
        "a YAML or JSON file of folder: emotion.",
    )
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "overrides", nargs="*", help="key=value of the run's configuration, such as data.path=fer2013.zip"
    )
    parser.add_argument(
        "--tta",
        nargs="+",
        action="extend",
        choices=list(tta.VIEWS),
        default=[],
        help="test-time augmentation, as results of their own (test_flip/..., test_ten_crop/...); give it last",
    )
    parser.add_argument("--out", type=Path, help="folder for metrics, predictions and pictures; default: print only")
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = EmotionClassifier.load(parsed.checkpoint)
    if parsed.out is not None:
        _check_out(parsed.out)
    cfg, faces, split = load_split(model, parsed.overrides)
    card = model.hparams["scorecard"] or {}
    device = pick_device(cfg.trainer.accelerator)
    augmentations = list(dict.fromkeys(parsed.tta))
    evaluation = evaluate(model, faces, split, device, card.get("temperature"), augmentations)
    print_table({**evaluation.metrics, "synthetic": faces.synthetic})
    if parsed.out is not None:
        _write(
            parsed.out,
            {**evaluation.metrics, **what_was_scored(parsed.checkpoint, cfg, faces)},
            evaluation,
            faces,
            split,
        )
    print(json.dumps({"checkpoint": str(parsed.checkpoint), **headline(evaluation.metrics)}))


def _check_out(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={folder}: is a file; give a folder")
    if (folder / "status.json").exists():
        raise UserError(f"--out={folder}: holds a run, whose own scores would be overwritten; give another folder")


def _check_unseen(model: EmotionClassifier, cfg: DictConfig, faces: Faces, split: Split) -> None:
    """Say what is known of whether the test images trained or selected the model.

    Raises:
        UserError: some did.
    """
    if cfg.data.name == FOLDER:
        log.info("whether any of these images trained the model is not known: its checkpoint does not hold them")
        return
    if faces.data_hash != model.hparams["provenance"]["data_hash"]:
        log.info("these are not the images the model was trained with")
        return
    trained = split_faces(_trained_config(model, []), faces)
    seen = np.intersect1d(split.tests["test"], np.union1d(trained.train, trained.val))
    if len(seen):
        raise UserError(
            f"{len(seen)} of the {len(split.tests['test'])} test images trained or selected this model; "
            "leave seed and split as they were"
        )


def what_was_scored(checkpoint: Path, cfg: DictConfig, faces: Faces) -> dict[str, Any]:
    """What the scores are of, for ``metrics.json`` and the captions."""
    is_folder = cfg.data.name == FOLDER
    return {
        "checkpoint": str(checkpoint),
        "data": f"{FOLDER} {Path(cfg.data.path).name}" if is_folder else cfg.data.name,
        "split": "whole" if is_folder else cfg.split.name,
        "labels": faces.label_source,
        "imbalance": cfg.imbalance.name,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "synthetic": faces.synthetic,
        "data_hash": faces.data_hash,
    }


def _write(folder: Path, metrics: dict[str, Any], evaluation: Evaluation, faces: Faces, split: Split) -> None:
    test = split.tests["test"]
    subtitle = figures.caption(metrics)
    pictures = figures.of_test(reported(evaluation.predictions), faces.images[test], "Confusion matrix", subtitle)
    counts = {"test": count_classes(faces.labels[test])}
    pictures["class_distribution"] = figures.class_distribution(counts, "Images per class", subtitle)
    folder.mkdir(parents=True, exist_ok=True)
    evaluation.predictions.to_csv(folder / "predictions.csv", index=False)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png")
    write_json(folder / "metrics.json", metrics)
    log.info("wrote metrics.json, predictions.csv and %d pictures to %s", len(pictures), folder)


def reported(predictions: pd.DataFrame, name: str = "test") -> pd.DataFrame:
    """The rows of the reported set; a protocol may test on further images."""
    return predictions[predictions[name] == 1].reset_index(drop=True)


def headline(metrics: Mapping[str, Any], name: str = "test") -> dict[str, Any]:
    """The few numbers that a run is known by."""
    wanted = ("n", "accuracy", "balanced_accuracy", "f1_macro", "worst_recall")
    return {f"{name}/{key}": metrics[f"{name}/{key}"] for key in wanted}


def print_table(metrics: Mapping[str, Any], name: str = "test") -> None:
    """Scores by set, then recall, precision and F1 by emotion in the set ``name``."""
    title = "drawn (synthetic) faces: these numbers say nothing about FER-2013" if metrics["synthetic"] else None
    sets = [key.removesuffix("/n") for key in metrics if key.endswith("/n")]
    table = Table(
        Column("set", no_wrap=True), "n", "accuracy", "balanced accuracy", "macro F1", "worst recall", title=title
    )
    for row in sets:
        values = (metrics[f"{row}/{key}"] for key in ("accuracy", "balanced_accuracy", "f1_macro", "worst_recall"))
        table.add_row(row, str(metrics[f"{row}/n"]), *(_percent(value) for value in values))
    classes = Table("emotion", "recall", "precision", "F1")
    for emotion in EMOTIONS:
        classes.add_row(
            emotion, *(_percent(metrics[f"{name}/{key}/{emotion}"]) for key in ("recall", "precision", "f1"))
        )
    console = Console()
    console.print(table)
    console.print(classes)
    if metrics.get(f"{name}/nll_calibrated") is not None:
        console.print(
            f"temperature {metrics['temperature']:.2f}: NLL {metrics[f'{name}/nll']:.3f} -> "
            f"{metrics[f'{name}/nll_calibrated']:.3f}, calibration error {_percent(metrics[f'{name}/ece'])} -> "
            f"{_percent(metrics[f'{name}/ece_calibrated'])}",
            highlight=False,
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


if __name__ == "__main__":
    schema.run_tool(main)
