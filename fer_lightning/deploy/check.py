"""Whether an exported file gives the probabilities of PyTorch, on test images and on colour pictures."""

from dataclasses import dataclass

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from fer_lightning.data.images import as_face, as_picture
from fer_lightning.deploy.formats import Predictor
from fer_lightning.deploy.graph import as_colour
from fer_lightning.evaluation.probabilities import pick_device, predict
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.model.classifier import EmotionClassifier

TOLERANCE = 1e-4
"""Largest accepted difference of a probability between an exported file and PyTorch."""

PHOTO_SIDES = (10 / 3, 5 / 2)
"""Width and height of the colour pictures that the preprocessing is checked with, in sides of the model's images.

The central square is 5/2 of a face: every gray level is a multiple of 1/25 before it is rounded, never halfway between
two integers, where libraries round differently.
"""
PHOTOS = 32

BATCH_SIZE = 256


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from a reference.

    Attributes:
        images: number of images compared.
        max_difference: largest difference of a probability.
        other_answers: images whose most probable emotion differs.
    """

    images: int
    max_difference: float
    other_answers: int

    @property
    def within_tolerance(self) -> bool:
        """Whether every probability is within ``TOLERANCE``; NaN is not."""
        return self.max_difference <= TOLERANCE


def parity(expected: np.ndarray, actual: np.ndarray) -> Parity:
    """Compare probabilities, both (n, C)."""
    other = int((expected.argmax(axis=1) != actual.argmax(axis=1)).sum())
    return Parity(len(expected), float(np.abs(expected - actual).max()), other)


def predict_all(predictor: Predictor, pictures: np.ndarray) -> np.ndarray:
    """Probabilities (n, C) of uint8 pictures (n, H, W, 3), in batches."""
    starts = range(0, len(pictures), BATCH_SIZE)
    return np.concatenate([predictor(np.ascontiguousarray(pictures[start : start + BATCH_SIZE])) for start in starts])


def check_parity(
    model: EmotionClassifier, temperature: float, predictor: Predictor, images: np.ndarray
) -> tuple[dict[str, Parity], np.ndarray]:
    """Compare a file with PyTorch, on gray images and on colour pictures of another size.

    Args:
        model: the exported classifier.
        temperature: that calibrates its probabilities.
        predictor: the reopened file.
        images: uint8, (n, H, H) or (n, 3, H, H).

    Returns:
        ``parity`` (of ``images``) and ``parity_photos`` (colour pictures), and the file's probabilities of ``images``,
        (n, C).
    """
    photos = _colour_photos(images[:PHOTOS])
    answers = predict_all(predictor, as_colour(images))
    pairs = {
        "parity": (images, answers),
        "parity_photos": (
            np.stack([as_face(photo[..., ::-1], model.form) for photo in photos]),
            predict_all(predictor, photos),
        ),
    }
    parities = {
        name: parity(apply_temperature(predict(model, faces, pick_device("cpu")), temperature), actual)
        for name, (faces, actual) in pairs.items()
    }
    return parities, answers


def _colour_photos(faces: np.ndarray) -> np.ndarray:
    """Colour pictures of ``PHOTO_SIDES`` made from a model's images: uint8, (n, H, W, 3)."""
    width, height = (round(ratio * faces.shape[-1]) for ratio in PHOTO_SIDES)
    pictures = (as_picture(face) for face in faces)
    larger = np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in pictures])
    coloured = larger if larger.ndim == 4 else larger[..., None]
    return np.rint(coloured * np.array([1.0, 0.8, 0.65])).astype(np.uint8)


def print_parities(parities: dict[str, Parity], source: str) -> None:
    """Print a table of ``check_parity``'s results; ``source`` names the images."""
    names = {
        "parity": f"{source} images",
        "parity_photos": "in colour, larger and not square",
    }
    table = Table("compared with PyTorch", "images", "largest difference of a probability", "other predictions")
    for name, result in parities.items():
        table.add_row(names[name], f"{result.images:,}", f"{result.max_difference:.1e}", str(result.other_answers))
    Console().print(table)
