"""A trained model as one graph, from the pixels of a picture to calibrated probabilities, and its metadata."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fer_lightning.data.faces import ImageForm
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime import provenance

INPUT = "images: uint8 (batch, height, width, 3), red, green, blue; any size, the middle square is used"
OUTPUT = (
    "probabilities: float32 (batch, C), in the order of class_names, calibrated with temperature; each row sums to 1"
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

    def __init__(self, model: EmotionClassifier, temperature: float) -> None:
        super().__init__()
        self.network = model.network.eval().requires_grad_(False)
        self.prepare = partial(model.prepare, size=model.image_size)
        self.form = model.form
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.prepare(as_faces(images, self.form)))
        return torch.softmax(logits / self.temperature, dim=1)


def as_faces(images: Tensor, form: ImageForm) -> Tensor:
    """``data.images.as_face`` for a batch, in operations that every format supports.

    Levels differ from OpenCV's by 1 at most, and not at all for images of the form's size.

    Args:
        images: uint8, (B, H, W, 3), red, green, blue.
        form: of the model's images.

    Returns:
        float32, integer levels: (B, S, S) gray, or (B, 3, S, S).
    """
    if form.color:
        levels = images.permute(0, 3, 1, 2).float()
    else:
        # Integers below 2**24 are exact in float32.
        red, green, blue = (images[..., channel].float() * weight for channel, weight in enumerate(LUMA))
        levels = torch.floor((red + green + blue + 2**14) / 2**15)
    rows, columns = (torch.arange(images.shape[axis], dtype=torch.float32, device=images.device) for axis in (1, 2))
    height, width = rows[-1] + 1, columns[-1] + 1
    side = torch.minimum(height, width)
    vertical = _resampling(rows, torch.floor((height - side) / 2), side, form.size)
    horizontal = _resampling(columns, torch.floor((width - side) / 2), side, form.size)
    return torch.round(vertical @ levels @ horizontal.T)


def as_colour(faces: np.ndarray) -> np.ndarray:
    """Images (n, H, W) or (n, 3, H, W) as the input of the graph, (n, H, W, 3); gray is repeated."""
    return np.moveaxis(faces, 1, -1) if faces.ndim == 4 else np.repeat(faces[..., None], 3, axis=-1)


def _resampling(pixels: Tensor, start: Tensor, side: Tensor, size: int) -> Tensor:
    """Weights (size, n) that resample ``side`` of n pixels: area average to shrink, else linear interpolation."""
    cell = torch.arange(size, dtype=torch.float32, device=pixels.device).unsqueeze(1)
    # Lengths in shares of 1 / size and 1 / (2 size) of a pixel are integers: nothing is rounded before the division.
    left, pixel = size * start + cell * side, size * pixels
    overlap = torch.minimum(left + side, pixel + size) - torch.maximum(left, pixel)
    centre = torch.minimum(((2 * cell + 1) * side - size).clamp(min=0), 2 * size * (side - 1))
    distance = (2 * size * (start - pixels) + centre).abs()
    mean, linear = overlap / side, 1 - distance / (2 * size)
    return torch.where(side > size, mean, linear).clamp(min=0)


def export_metadata(model: EmotionClassifier) -> dict[str, Any]:
    """The metadata of an exported file; plain values, ready for JSON.

    Returns:
        ``class_names``, ``input``, ``output``, ``temperature`` (None: not calibrated), ``model``, ``run`` (imbalance,
        seed, split and the like), ``provenance`` of the training, ``scorecard``, and ``exported_with``. Of an
        ensemble, ``model`` has ``members``, each with its ``model``, ``run`` and ``temperature``; ``run`` is the
        first one's.
    """
    card = model.hparams["scorecard"] or {}
    members = [{"model": _network(each), "run": _training(each), **_temperature(each)} for each in model.members]
    return {
        "class_names": list(model.classes),
        "input": INPUT,
        "output": OUTPUT,
        "temperature": card.get("temperature"),
        "model": {"name": "ensemble", "members": members} if members else _network(model),
        "images": {"size": model.form.size, "color": model.form.color},
        "run": _training(model),
        "provenance": model.hparams["provenance"],
        "scorecard": {key: value for key, value in card.items() if not isinstance(value, list)} or None,
        "exported_with": {"git_commit": provenance.git_commit(), "versions": provenance.environment()},
    }


def _network(model: EmotionClassifier) -> dict[str, Any]:
    architecture = model.hparams["model"]
    mean, std = (list(values) if model.form.color else values[0] for values in (model.mean, model.std))
    keys = ("name", "in_channels", "image_size", "stem_stride", "head")
    return {**{key: architecture[key] for key in keys}, "mean": mean, "std": std}


def _training(model: EmotionClassifier) -> dict[str, Any]:
    config = model.hparams["config"]
    groups = {key: config.get(key) for key in ("imbalance", "data", "split", "labels")}
    return {
        "seed": config.get("seed"),
        **{key: group.get("name") if isinstance(group, Mapping) else None for key, group in groups.items()},
        "adjusted": model.hparams["adjusted"],
    }


def _temperature(model: EmotionClassifier) -> dict[str, Any]:
    return {"temperature": (model.hparams["scorecard"] or {}).get("temperature")}


def as_strings(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata for formats that hold text only: values that are not text become JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
