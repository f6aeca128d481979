"""What a card says of a trained model: read from a finished run's folder, or from a checkpoint with a scorecard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.data.faces import ImageForm, about_faces, class_noun
from fer_lightning.evaluation import run_files
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.run_folder import read_status, tested_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """The results and configuration of a trained model.

    Attributes:
        metrics: a run's ``metrics.json``, or the part of it in a checkpoint's scorecard.
        config: the composed configuration of its training.
        folder: of the run; None for a single checkpoint.
        members: the ``model`` group of each member of an ensemble.
    """

    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    folder: Path | None
    members: Sequence[Mapping[str, Any]] = ()

    @property
    def noun(self) -> str:
        """What a class is called."""
        return class_noun(list(self.metrics["train/class_counts"]))

    @property
    def about_faces(self) -> bool:
        """Whether its images are faces."""
        return about_faces(list(self.metrics["train/class_counts"]), self.metrics.get("data"))

    @property
    def real(self) -> bool:
        """Whether it was trained on FER-2013."""
        return not self.metrics.get("synthetic") and self.metrics.get("data") == "fer2013"


def read_trained_model(path: Path) -> TrainedModel:
    """Read a finished run's folder, or a checkpoint with a scorecard.

    Raises:
        UserError: the path is neither, or the run is not finished, or the model was never tested.
    """
    if path.is_dir():
        return _read_run(path)
    from fer_lightning.model.checkpoint import read_checkpoint

    if not path.exists():
        raise UserError(f"{path}: no such run or checkpoint; give a run's folder, or its checkpoints/best.ckpt")
    hyper = read_checkpoint(path)["hyper_parameters"]
    card = hyper.get("scorecard")
    if not card:
        raise UserError(f"{path}: was never tested, so it has no scorecard; give the folder of its run")
    counts = dict(zip(hyper["classes"], hyper["class_counts"], strict=True))
    images = str(ImageForm(**(hyper["form"] or {})))
    members = [member["config"]["model"] for member in hyper["members"] or ()]
    return TrainedModel({**card, "train/class_counts": counts, "images": images}, hyper["config"], None, members)


def _read_run(folder: Path) -> TrainedModel:
    status = read_status(folder)["status"]
    if status == "missing":
        raise UserError(
            f"{folder}: not a run (it has no status.json); give a run's folder, or its checkpoints/best.ckpt"
        )
    if status != "done":
        raise UserError(f"{folder}: this run is {status}; only a finished one has a card")
    try:
        metrics = read_json(folder / "metrics.json")
        config = read_yaml(folder / ".hydra" / "config.yaml")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{folder}: metrics.json or .hydra/config.yaml cannot be read ({reason})") from None
    try:
        run_files.check_numbers(metrics)
        if metrics.get("test/accuracy") is not None and (folder / "predictions.csv").exists():
            run_files.read_predictions(folder, checked := run_files.read_metrics(folder))
            run_files.read_config(folder, checked)
    except ValueError as error:
        raise UserError(f"{folder}: {error}; test it again with resume=auto") from None
    _check_checkpoint(folder, metrics)
    return TrainedModel(metrics, config, folder)


def _check_checkpoint(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Refuse a run whose checkpoint, where it was kept, is not the model that its ``metrics.json`` describes.

    Raises:
        UserError: naming the first thing that differs.
    """
    from fer_lightning.model.checkpoint import read_checkpoint

    try:
        path = tested_checkpoint(folder)
    except UserError:  # removed to free its space
        return
    hyper = read_checkpoint(path)["hyper_parameters"]
    counts = dict(zip(hyper["classes"], hyper["class_counts"], strict=True))
    stored = {**(hyper["scorecard"] or {}), "train/class_counts": counts}
    for key in stored:
        if key in metrics and stored[key] != metrics[key]:
            raise UserError(
                f"{folder}: {path.name} is of another model than metrics.json ({key} is {stored[key]} there, "
                f"{printable(metrics[key])} here); put the run's own file back, or train it again"
            )
