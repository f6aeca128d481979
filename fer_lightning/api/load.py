"""``fl.load``: a trained model that answers for images."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from fer_lightning.api.images import Images, read_images
from fer_lightning.api.run import Run
from fer_lightning.data.images import as_face, may_be_a_crop
from fer_lightning.evaluation.prior_options import GivenPrior, PriorOptions, describe_prior
from fer_lightning.evaluation.prior_scores import find_reference, find_shares
from fer_lightning.evaluation.probabilities import classify, pick_device
from fer_lightning.evaluation.scorecard import scorecard_line
from fer_lightning.metrics import conformal
from fer_lightning.metrics.prior import shift
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import as_path
from fer_lightning.runtime.run_folder import checkpoint_file


@dataclass(frozen=True, eq=False)
class Prediction:
    """Answers for N images, in the order of the images.

    Attributes:
        names: N paths, or positions (``"0"``, ``"1"``, ...) of images that are not files.
        labels: N class names, each the most probable.
        probabilities: float64, shape (N, C); columns in the order of ``classes``.
        classes: the C class names.
        level: the rate at which ``sets`` hold the true class; None without sets.
        sets: N sets of class names, the most probable first; None without a level.
        prior: the shares of the classes in the place of use that ``labels`` and ``probabilities`` are for, float64,
            shape (C,); None for those that the model assumes.
    """

    names: list[str]
    labels: list[str]
    probabilities: npt.NDArray[np.float64]
    classes: tuple[str, ...]
    level: float | None = None
    sets: list[list[str]] | None = None
    prior: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """Probability of each label; float64, shape (N,)."""
        confidence: npt.NDArray[np.float64] = self.probabilities.max(axis=1)
        return confidence

    def to_frame(self) -> pd.DataFrame:
        """One row per image: ``image``, ``label``, ``confidence``, ``p_<class>`` for each class, ``set_<level>``.

        The last column holds lists of class names; it is there only with a level.
        """
        columns: dict[str, Any] = {f"p_{name}": self.probabilities[:, k] for k, name in enumerate(self.classes)}
        if self.sets is not None:
            columns[f"set_{self.level:g}"] = self.sets
        return pd.DataFrame({"image": self.names, "label": self.labels, "confidence": self.confidence, **columns})


class Classifier:
    """A trained model for inference; made by ``fl.load``.

    Attributes:
        checkpoint: the file that it was read from.
        model: the LightningModule, in ``eval`` mode.
        device: where it computes.
        classes: the C class names, in the order of the probabilities.
    """

    def __init__(self, checkpoint: Path, device: str) -> None:
        self.device: torch.device = pick_device(device, "device={!r}")
        self.checkpoint = checkpoint
        self.model = EmotionClassifier.load(checkpoint)
        self.classes: tuple[str, ...] = self.model.classes

    def __repr__(self) -> str:
        return f"Classifier({str(self.checkpoint)!r}): {scorecard_line(self.scorecard)}"

    @property
    def scorecard(self) -> Mapping[str, Any] | None:
        """Scores of the run's test, such as ``test/accuracy`` and ``test/recall/<class>``; None when untested."""
        card: Mapping[str, Any] | None = self.model.hparams["scorecard"]
        return card

    @property
    def calibrated(self) -> bool:
        """Whether ``predict`` calibrates: the scorecard has a temperature, which validation images gave."""
        return (self.scorecard or {}).get("temperature") is not None

    def predict(self, images: Images, *, level: float | None = None, prior: GivenPrior | None = None) -> Prediction:
        """Classify images of one cropped face each.

        The middle square of an image is resized, and turned to gray for a model of gray images, as for
        ``python -m fer_lightning.predict``.

        Args:
            images: the path of a file or of a folder (searched to any depth), a Pillow image, a uint8 array (H, W) gray
                or (H, W, 3) red-green-blue, a batch of them (N, H, W) or (N, H, W, 3), or a list of single images.
                Of an array with three axes, a last one of 3 makes it a colour image.
            level: also give sets of classes that hold the true class of this share of the images of each class, such
                as 0.9; they do not depend on the prior.
            prior: shares of the classes in the place of use, which shift the probabilities and so the labels:
                ``uniform``, ``training``, ``estimated`` (from all of these images), a JSON or CSV file of class and
                share, or a mapping such as ``{"happy": 0.5, ...}`` with all classes. None keeps those that the model
                assumes.

        Returns:
            Labels and probabilities in the order of the images; the probabilities are calibrated where ``calibrated``.

        Raises:
            UserError: not images of these kinds, or a file that cannot be read; nothing is skipped. An invalid level or
                prior, or a checkpoint without the scores of validation images that both need.

        Warns:
            UserWarning: an image looks like a photograph, not a cropped face, or the images are too few for a steady
                estimate of the prior.

        Examples:
            >>> classifier = fl.load("outputs/demo/run/checkpoints/best.ckpt")
            >>> classifier.predict("faces/").to_frame()
            >>> classifier.predict(np.zeros((2, 48, 48), np.uint8)).probabilities.shape
            (2, 7)
            >>> classifier.predict("faces/", level=0.9, prior="estimated").sets
            [['happy', 'surprise'], ['sad'], ...]
        """
        options = PriorOptions(level, prior, ("level={!r}", "prior={!r}"))
        options.check()
        reference = None if options == PriorOptions() else find_reference(self.model, self.checkpoint, options)
        names, probabilities = self._classify(images)
        sets = shares = None
        if level is not None and reference is not None:
            sets = conformal.named_sets(probabilities, reference.scores.thresholds(level), self.classes)
        if prior is not None and reference is not None:
            calibrated = probabilities
            shares, estimate = find_shares(self.model, reference, options, lambda: calibrated)
            if estimate is not None and estimate.few:
                warnings.warn(describe_prior(prior, shares, self.classes, estimate), stacklevel=2)
            probabilities = shift(calibrated, reference.prior, shares)
        labels = [self.classes[k] for k in probabilities.argmax(axis=1)]
        return Prediction(names, labels, probabilities, self.classes, level, sets, shares)

    def _classify(self, images: Images) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Names and probabilities, shape (N, C), as the model gives them."""
        names: list[str] = []
        faces: list[npt.NDArray[Any]] = []
        photographs: list[str] = []
        for name, picture in read_images(images):
            names.append(name)
            faces.append(as_face(picture, self.model.form))
            photographs += [] if may_be_a_crop(picture) else [name]
        if photographs:
            warnings.warn(
                f"{len(photographs)} of {len(names)} images do not have the size or shape of a cropped face "
                f"(the first: {photographs[0]}); the middle square is taken as the face; "
                "python -m fer_lightning.predict --faces finds the faces in a photograph",
                stacklevel=3,
            )
        if not faces:
            return names, np.empty((0, len(self.classes)))
        return names, classify(self.model, np.stack(faces), self.device)


def load(source: str | Path | Run, *, device: str = "auto") -> Classifier:
    """Load a trained model for inference; nothing in the file is executed, and nothing is downloaded.

    Args:
        source: a checkpoint, a run folder (its tested checkpoint), or a run of ``fl.train``.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``mps``.

    Raises:
        UserError: there is no such file or device, or the file is damaged or not a checkpoint of this project.

    Examples:
        >>> classifier = fl.load("outputs/demo/run")
        >>> classifier.scorecard["test/recall/disgust"]
    """
    if isinstance(source, Run):
        return Classifier(source.checkpoint, device)
    if not isinstance(source, str | Path):
        raise UserError(f"source={shortened(repr(source))}: must be a checkpoint, a run folder, or a run of fl.train")
    return Classifier(checkpoint_file(as_path(source, "source")), device)
