"""A trained model as one graph, from the pixels of a picture to calibrated probabilities, and its metadata."""

import json
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fer_lightning.data.faces import EMOTIONS, IMAGE_SIZE
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime import provenance

INPUT = "images: uint8 (batch, height, width, 3), red, green, blue, one face each; any size, the middle square is used"
OUTPUT = (
    "probabilities: float32 (batch, 7), in the order of class_names, calibrated with temperature; each row sums to 1"
)

LUMA = (9798.0, 19235.0, 3735.0)
"""Weights of red, green and blue in gray, times 2**15: ITU-R BT.601 as OpenCV rounds it."""


class Deployable(nn.Module):
    """A classifier for other programs: ``data.images.as_face``, the network, and the softmax of logits / temperature.

    ``forward`` takes ``INPUT`` and returns ``OUTPUT``. It does not branch on the input's size, so that one traced
    graph is valid for every size.

    Args:
        model: the trained classifier.
        temperature: fitted on validation images; 1 leaves the probabilities as they are.
    """

    def __init__(self, model: EmotionClassifier, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = model.network.eval().requires_grad_(False)
        self.prepare = partial(model.prepare, size=model.image_size)
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.prepare(as_faces(images)))
        return torch.softmax(logits / self.temperature, dim=1)


def as_faces(images: Tensor) -> Tensor:
    """``data.images.as_face`` for a batch, in operations that every format supports.

    Gray levels differ from OpenCV's by 1 at most, and not at all for gray 48x48 images.

    Args:
        images: uint8, (B, H, W, 3), red, green, blue.

    Returns:
        float32, (B, 48, 48), integer gray levels.
    """
    # Integers below 2**24 are exact in float32.
    red, green, blue = (images[..., channel].float() * weight for channel, weight in enumerate(LUMA))
    gray = torch.floor((red + green + blue + 2**14) / 2**15)
    rows, columns = (torch.arange(images.shape[axis], dtype=torch.float32, device=images.device) for axis in (1, 2))
    height, width = rows[-1] + 1, columns[-1] + 1
    side = torch.minimum(height, width)
    vertical = _resampling(rows, torch.floor((height - side) / 2), side)
    horizontal = _resampling(columns, torch.floor((width - side) / 2), side)
    return torch.round(vertical @ gray @ horizontal.T)


def as_colour(faces: np.ndarray) -> np.ndarray:
    """Repeat gray images (n, H, W) as the input of the graph, (n, H, W, 3)."""
    return np.repeat(faces[..., None], 3, axis=-1)


def _resampling(pixels: Tensor, start: Tensor, side: Tensor) -> Tensor:
    """Weights (48, n) that resample ``side`` of n pixels to 48: area average to shrink, else linear interpolation."""
    cell = torch.arange(IMAGE_SIZE, dtype=torch.float32, device=pixels.device).unsqueeze(1)
    # Lengths in 48ths and 96ths of a pixel are integers, so that nothing is rounded before the division.
    left, pixel = IMAGE_SIZE * start + cell * side, IMAGE_SIZE * pixels
    overlap = torch.minimum(left + side, pixel + IMAGE_SIZE) - torch.maximum(left, pixel)
    centre = torch.minimum(((2 * cell + 1) * side - IMAGE_SIZE).clamp(min=0), 2 * IMAGE_SIZE * (side - 1))
    distance = (2 * IMAGE_SIZE * (start - pixels) + centre).abs()
    mean, linear = overlap / side, 1 - distance / (2 * IMAGE_SIZE)
    return torch.where(side > IMAGE_SIZE, mean, linear).clamp(min=0)


def export_metadata(model: EmotionClassifier) -> dict[str, Any]:
    """The metadata of an exported file; plain values, ready for JSON.

    Returns:
        ``class_names``, ``input``, ``output``, ``temperature`` (None: not calibrated), ``model``, ``run`` (imbalance,
        seed, split and the like), ``provenance`` of the training, ``scorecard``, and ``exported_with``.
    """
    card = model.hparams["scorecard"] or {}
    config = model.hparams["config"]
    architecture = model.hparams["model"]
    network = {key: architecture[key] for key in ("name", "in_channels", "image_size", "stem_stride", "head")}
    return {
        "class_names": list(EMOTIONS),
        "input": INPUT,
        "output": OUTPUT,
        "temperature": card.get("temperature"),
        "model": {**network, "mean": model.mean, "std": model.std},
        "run": {
            "seed": config.get("seed"),
            **{key: config.get(key, {}).get("name") for key in ("imbalance", "data", "split", "labels")},
            "adjusted": model.hparams["adjusted"],
        },
        "provenance": model.hparams["provenance"],
        "scorecard": card or None,
        "exported_with": {"git_commit": provenance.git_commit(), "versions": provenance.environment()},
    }


def as_strings(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata for formats that hold text only: values that are not text become JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
