"""Class probabilities of images, by one process in float32."""

from dataclasses import dataclass

import numpy as np
import torch

from fer_lightning.evaluation import tta
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError

BATCH_SIZE = 256
"""Batch size at 48 pixels or on a GPU."""


@dataclass(frozen=True)
class PooledFeatures:
    """Inputs of a model's head, computed before.

    Attributes:
        rows: int64, (m,), the images, in increasing order.
        values: float32, (m, D).
    """

    rows: np.ndarray
    values: np.ndarray

    def at(self, rows: np.ndarray) -> torch.Tensor:
        """Values (n, D) of n of the images."""
        return torch.from_numpy(self.values[np.searchsorted(self.rows, rows)])


def batch_size(image_size: int, device: torch.device) -> int:
    """Batch size; smaller for large images on a CPU, so that activations fit the cache."""
    return BATCH_SIZE if device.type != "cpu" else min(BATCH_SIZE, max(16, BATCH_SIZE * 48**2 // image_size**2))


@torch.inference_mode()
def predict(
    model: EmotionClassifier, images: np.ndarray, device: torch.device, views: tta.Views = tta.plain
) -> np.ndarray:
    """Class probabilities.

    Args:
        model: in ``eval`` mode; moved to ``device``.
        images: uint8, (n, H, H) or (n, 3, H, H).
        device: where to compute.
        views: of each image, for test-time augmentation.

    Returns:
        float64, (n, C): the softmax of the float32 logits, averaged over the views.

    Raises:
        UserError: when the probabilities are not finite.
    """
    model = model.to(device).eval()
    step = batch_size(model.image_size, device)
    batches = (
        torch.from_numpy(np.array(images[start : start + step])).to(device) for start in range(0, len(images), step)
    )
    logits = [torch.stack([model(view).float().cpu() for view in views(batch)]) for batch in batches]
    return _probabilities(torch.cat(logits, dim=1))


@torch.inference_mode()
def predict_pooled(model: EmotionClassifier, pooled: torch.Tensor, device: torch.device) -> np.ndarray:
    """``predict`` from the inputs of the head, float32 (n, D), of all images: in the same batches, so the same bits.

    Raises:
        UserError: as ``predict``.
    """
    head = model.to(device).eval().head
    batches = pooled.split(batch_size(model.image_size, device))
    return _probabilities(torch.cat([head(batch.to(device)).float().cpu() for batch in batches])[None])


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    """Float64 (n, C) of float32 logits (views, n, C)."""
    probabilities = logits.double().softmax(dim=2).mean(dim=0).numpy()
    if not np.isfinite(probabilities).all():
        raise UserError("the model's probabilities are NaN: its training diverged; try a smaller optim.lr")
    return probabilities


def classify(model: EmotionClassifier, images: np.ndarray, device: torch.device) -> np.ndarray:
    """``predict``, calibrated by the temperature of the model's scorecard, if it has one: float64, (n, C)."""
    temperature = (model.hparams["scorecard"] or {}).get("temperature")
    return apply_temperature(predict(model, images, device), temperature or 1.0)


def pick_device(accelerator: str, setting: str = "trainer.accelerator={}") -> torch.device:
    """The device of a ``trainer.accelerator``.

    Args:
        accelerator: its value.
        setting: how the user gives it, for the error.

    Raises:
        UserError: when this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = {"auto": tuple(available), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,))
    for kind in wanted:
        if available.get(kind):
            return torch.device(kind)
    given, remedy = setting.format(accelerator), setting.format("cpu")
    raise UserError(f"{given}: this machine has no such device; accepted are auto, cpu, cuda and mps; use {remedy}")
