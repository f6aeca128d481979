"""Exact scores of a trained model: ``python -m fer_lightning.evaluate CHECKPOINT``.

Always one process and float32, whatever the run was trained with: every image counts once, and the same checkpoint
gives the same numbers again.
"""

import argparse
import json
import logging
from collections.abc import Mapping
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
from rich.table import Table

from fer_lightning import config as schema
from fer_lightning import safety
from fer_lightning.data import ferplus
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.splits import Split
from fer_lightning.errors import UserError
from fer_lightning.metrics import classification_metrics
from fer_lightning.model import EmotionClassifier
from fer_lightning.run_folder import write_json
from fer_lightning.statistics import fit_temperature

log = logging.getLogger(__name__)

BATCH_SIZE = 256


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split.

    Attributes:
        metrics: flat, ``<test set>/<metric>`` and ``val/<metric>``; ``temperature``, fitted on the validation images,
            None without any.
        predictions: one row per image of any test set: id, usage, label, prediction, ``p_<emotion>``, twin_group, and
            a column of 0 and 1 per test set that says whether the image belongs to it.
    """

    metrics: dict[str, Any]
    predictions: pd.DataFrame


@torch.inference_mode()
def predict(model: EmotionClassifier, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Class probabilities.

    Args:
        model: in ``eval`` mode; moved to ``device``.
        images: uint8, (n, 48, 48).
        device: where to compute.

    Returns:
        float64, (n, 7): the softmax of the float32 logits.

    Raises:
        UserError: when the weights are so broken that answers are not finite.
    """
    model = model.to(device).eval()
    logits = [
        model(torch.from_numpy(np.array(images[start : start + BATCH_SIZE])).to(device)).float().cpu()
        for start in range(0, len(images), BATCH_SIZE)
    ]
    probabilities = torch.cat(logits).double().softmax(dim=1).numpy()
    if not np.isfinite(probabilities).all():
        raise UserError("the model answers NaN: its training diverged; try a smaller optim.lr")
    return probabilities


def evaluate(model: EmotionClassifier, faces: Faces, split: Split, device: torch.device) -> Evaluation:
    """Score every test set of a split, and its validation set when it has one."""
    sets = {**split.tests, **({"val": split.val} if len(split.val) else {})}
    union = np.unique(np.concatenate(list(sets.values())))
    probabilities = predict(model, faces.images[union], device)
    metrics: dict[str, Any] = {}
    for name, indices in sets.items():
        rows = np.searchsorted(union, indices)
        metrics |= classification_metrics(probabilities[rows], faces.labels[indices], prefix=f"{name}/")
    validated = np.searchsorted(union, split.val)
    metrics["temperature"] = (
        fit_temperature(probabilities[validated], faces.labels[split.val]) if len(validated) else None
    )
    test = np.unique(np.concatenate(list(split.tests.values())))
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
    """The configuration stored in a checkpoint, with ``key=value`` applied to its existing keys.

    Raises:
        UserError: for an unknown key, and for a checkpoint that names other code than ``conf/`` does: a checkpoint is
            data, and must not choose what is executed.
    """
    cfg = OmegaConf.create(model.hparams["config"])
    OmegaConf.set_struct(cfg, True)
    try:
        for override in OverridesParser.create().parse_overrides(overrides):
            if OmegaConf.is_dict(OmegaConf.select(cfg, override.key_or_group)):
                raise UserError(f"{override.input_line}: a whole group stays as trained; give one of its keys")
            OmegaConf.update(cfg, override.key_or_group, override.value())
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(schema.explain(error)) from None
    given, stored = OmegaConf.to_container(cfg), model.hparams["config"]
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


def load_split(model: EmotionClassifier, overrides: list[str]) -> tuple[DictConfig, Faces, Split]:
    """A checkpoint's configuration, with overrides, and the faces and split that it describes.

    Raises:
        UserError: see ``_trained_config``; and when test images trained or selected the model.
    """
    cfg = _trained_config(model, overrides)
    faces = load_faces(cfg)
    split = split_faces(cfg, faces)
    if faces.data_hash != model.hparams["provenance"]["data_hash"]:
        log.info("these are not the images the model was trained with")
    else:
        trained = split_faces(_trained_config(model, []), faces)
        seen = np.intersect1d(split.tests["test"], np.union1d(trained.train, trained.val))
        if len(seen):
            raise UserError(
                f"{len(seen)} of the {len(split.tests['test'])} test images trained or selected this model; "
                "leave seed and split as they were"
            )
    return cfg, faces, split


def main(arguments: list[str] | None = None) -> None:
    """Score a checkpoint on the test sets of its own split, or of changed data."""
    parser = argparse.ArgumentParser(prog="python -m fer_lightning.evaluate", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "overrides", nargs="*", help="key=value of the run's configuration, such as data.path=fer2013.zip"
    )
    parser.add_argument("--out", type=Path, help="folder for metrics.json and predictions.csv; default: print only")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = EmotionClassifier.load(parsed.checkpoint)
    cfg, faces, split = load_split(model, parsed.overrides)
    evaluation = evaluate(model, faces, split, pick_device(cfg.trainer.accelerator))
    print_table({**evaluation.metrics, "synthetic": faces.synthetic})
    if parsed.out is not None:
        parsed.out.mkdir(parents=True, exist_ok=True)
        write_json(parsed.out / "metrics.json", evaluation.metrics)
        evaluation.predictions.to_csv(parsed.out / "predictions.csv", index=False)
    print(json.dumps({"checkpoint": str(parsed.checkpoint), **headline(evaluation.metrics)}))


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers that a run is known by."""
    wanted = ("n", "accuracy", "balanced_accuracy", "f1_macro", "worst_recall")
    return {f"test/{key}": metrics[f"test/{key}"] for key in wanted}


def print_table(metrics: Mapping[str, Any]) -> None:
    """Scores by set, then recall, precision and F1 by emotion."""
    title = "drawn (synthetic) faces: these numbers say nothing about FER-2013" if metrics["synthetic"] else None
    sets = [key.removesuffix("/n") for key in metrics if key.endswith("/n")]
    table = Table("set", "n", "accuracy", "balanced accuracy", "macro F1", "worst recall", title=title)
    for name in sets:
        values = (metrics[f"{name}/{key}"] for key in ("accuracy", "balanced_accuracy", "f1_macro", "worst_recall"))
        table.add_row(name, str(metrics[f"{name}/n"]), *(_percent(value) for value in values))
    classes = Table("emotion", "recall", "precision", "F1")
    for emotion in EMOTIONS:
        classes.add_row(emotion, *(_percent(metrics[f"test/{key}/{emotion}"]) for key in ("recall", "precision", "f1")))
    console = Console()
    console.print(table)
    console.print(classes)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


if __name__ == "__main__":
    schema.run_tool(main)
