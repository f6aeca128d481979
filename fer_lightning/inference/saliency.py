"""Where in a face a model finds an emotion: pure functions from a model and images to maps.

The maps are activation times gradient, summed over channels (HiResCAM: Draelos & Carin 2020, "Use HiResCAM instead of
Grad-CAM for faithful explanations of CNNs"), at the ends of the last three resolutions that have at least 4x4 cells,
added up. The obvious choice, Grad-CAM at the last convolution (timm's ``bn2``), has 2x2 cells for an input of 64
pixels, and Grad-CAM averages the gradient over the picture, so that further up it no longer knows where.

How much the probability falls sooner when the most salient pixels are hidden first than when the least salient are
(mean over 10 to 50 % of the pixels; ``tf_efficientnetv2_b0`` at 64 pixels, FER-2013, 96 test faces): these maps 0.51,
one resolution alone 0.37 to 0.47, Grad-CAM at the last convolution 0.15, at its best layer 0.35, integrated gradients
0.45, SmoothGrad 0.27. Occlusion, which is chosen by what it is measured with, 0.52 for forty times the work.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.integrate
import torch
from torch import nn
from torch.nn import functional as F

from fer_lightning.data.faces import EMOTIONS, IMAGE_SIZE
from fer_lightning.evaluation.probabilities import predict
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError

try:
    from captum.attr import LayerGradientXActivation
except ImportError:
    raise UserError("saliency maps need captum: pip install 'fer_lightning[explain]'") from None

BATCH_SIZE = 64
"""Smaller than evaluation's: activations are kept for the way back."""

LEAST_CELLS = 4
RESOLUTIONS = 3

SHARES = np.linspace(0, 1, 11)
"""Of the pixels that are hidden, one after another, in ``deletion``."""

_BLUR = IMAGE_SIZE / 8
"""Standard deviation, in pixels, of what stands for hidden pixels: no eye or mouth survives it, but no edge arises."""


CHECKED = 256
"""Test faces that the maps are checked on; the check takes thirty answers for each."""


@dataclass(frozen=True)
class MeanMaps:
    """What a model looks at in the test faces that it classifies correctly.

    Attributes:
        maps: mean saliency of each emotion, float32, (7, 48, 48), 0..1; 0 where ``right`` is 0.
        faces: mean face of each emotion, float32, (7, 48, 48), 0..255.
        right: correctly classified test images of each emotion, int64, (7,).
        total: test images of each emotion, int64, (7,).
        deletion: mean area under the probability of the answer while pixels are hidden, for the orders
            ``salient first``, ``at random`` and ``salient last``.
        checked: the number of faces that ``deletion`` is a mean of.
    """

    maps: np.ndarray
    faces: np.ndarray
    right: np.ndarray
    total: np.ndarray
    deletion: dict[str, float]
    checked: int


def layers(model: EmotionClassifier) -> list[nn.Module]:
    """The modules whose outputs are explained: where each of the last resolutions with 4x4 cells or more ends."""
    stride = model.network.conv_stem.stride[0]  # timm counts on 2
    ends = [
        info["module"]
        for info in model.network.feature_info
        if model.image_size * 2 / (info["reduction"] * stride) >= LEAST_CELLS
    ]
    return [model.network.get_submodule(name) for name in ends[-RESOLUTIONS:]]


def saliency_maps(
    model: EmotionClassifier, images: np.ndarray, emotions: np.ndarray, device: torch.device
) -> np.ndarray:
    """What in each face speaks for an emotion.

    Args:
        model: moved to ``device``; its parameters may be frozen.
        images: uint8, (n, 48, 48).
        emotions: int, (n,): the class to explain, of each image.
        device: where to compute.

    Returns:
        float32, (n, 48, 48), in 0..1: 1 at the most salient pixel; all 0 where nothing speaks for the emotion.
    """
    model = model.to(device).eval()
    method = LayerGradientXActivation(model, layers(model))
    maps = np.zeros((len(images), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for start in range(0, len(images), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        # The images, too, because activations of a frozen network would have no gradient.
        pixels = torch.from_numpy(np.array(images[rows])).to(device).float().requires_grad_()
        targets = torch.from_numpy(np.array(emotions[rows], dtype=np.int64)).to(device)
        parts = [_unit(part.detach().float().sum(1, keepdim=True).relu()) for part in method.attribute(pixels, targets)]
        size = (IMAGE_SIZE, IMAGE_SIZE)
        whole = sum(F.interpolate(part, size, mode="bilinear", align_corners=False) for part in parts)
        assert isinstance(whole, torch.Tensor)
        maps[rows] = _unit(whole)[:, 0].cpu().numpy()
    return maps


def mean_maps(maps: np.ndarray, emotions: np.ndarray, classes: int) -> np.ndarray:
    """The mean map of each emotion, float32 (classes, 48, 48); 0 for one without faces.

    Args:
        maps: (n, 48, 48).
        emotions: int in 0..classes-1, (n,).
        classes: how many there are.
    """
    means = np.zeros((classes, *maps.shape[1:]), np.float32)
    for emotion in np.unique(emotions):
        means[emotion] = maps[emotions == emotion].mean(axis=0)
    return means


def hide(images: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """Blur the first ``share`` of each face's pixels.

    Args:
        images: uint8, (n, 48, 48).
        order: (n, 48, 48); pixels with higher values go first, among equals those further up and left.
        share: in 0..1.

    Returns:
        uint8, (n, 48, 48).
    """
    n, pixels = len(images), IMAGE_SIZE * IMAGE_SIZE
    first = np.argsort(-order.reshape(n, pixels), axis=1, kind="stable")[:, : round(share * pixels)]
    mask = np.zeros((n, pixels), bool)
    np.put_along_axis(mask, first, True, axis=1)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), _BLUR) for image in images])
    return np.where(mask.reshape(images.shape), blurred, images)


def deletion(
    model: EmotionClassifier, images: np.ndarray, emotions: np.ndarray, order: np.ndarray, device: torch.device
) -> np.ndarray:
    """Area under the probability of each face's emotion as ever more of its pixels are hidden.

    The "deletion" of Petsiuk et al. (2018, "RISE", section 4.2): the better ``order`` knows what the model looks at,
    the sooner the probability falls, and the smaller the area. Hidden is blurred here, for a face with gray holes is
    like none that the model has seen.

    Args:
        model: moved to ``device``.
        images: uint8, (n, 48, 48).
        emotions: int, (n,): whose probability is watched.
        order: (n, 48, 48), such as saliency maps; highest first.
        device: where to compute.

    Returns:
        float64, (n,), in 0..1: the mean probability over the shares of hidden pixels from 0 to 1.
    """
    rows = np.arange(len(images))
    kept = [predict(model, hide(images, order, share), device)[rows, emotions] for share in SHARES]
    return scipy.integrate.trapezoid(np.array(kept), SHARES, axis=0)


def random_patches(n: int, seed: int = 0) -> np.ndarray:
    """Orders for ``deletion`` that know nothing, in patches as large as the maps': float32, (n, 48, 48).

    Single pixels at random would be no fair comparison: hiding a third of them ruins the whole face at once.
    """
    coarse = np.random.default_rng(seed).random((n, 8, 8), dtype=np.float32)
    return np.stack([cv2.resize(one, (IMAGE_SIZE, IMAGE_SIZE)) for one in coarse])


def explain_test_set(
    model: EmotionClassifier, images: np.ndarray, labels: np.ndarray, device: torch.device
) -> MeanMaps:
    """Mean maps per emotion, and the deletion check.

    Args:
        model: moved to ``device``.
        images: uint8, (n, 48, 48), n >= 1.
        labels: int, (n,).
        device: where to compute.

    Raises:
        UserError: when no image is classified correctly.
    """
    answers = predict(model, images, device).argmax(axis=1)
    right = np.flatnonzero(answers == labels)
    if not len(right):
        raise UserError(f"none of the {len(images)} test images is classified correctly: nothing to explain")
    emotions = labels[right]
    maps = saliency_maps(model, images[right], emotions, device)
    some = np.sort(np.random.default_rng(0).permutation(len(right))[:CHECKED])
    orders = {
        "salient first": maps[some],
        "at random": random_patches(len(some)),
        "salient last": -maps[some],
    }
    areas = {
        name: float(deletion(model, images[right[some]], emotions[some], order, device).mean())
        for name, order in orders.items()
    }
    count = len(EMOTIONS)
    return MeanMaps(
        maps=mean_maps(maps, emotions, count),
        faces=mean_maps(images[right], emotions, count),
        right=np.bincount(emotions, minlength=count),
        total=np.bincount(labels, minlength=count),
        deletion=areas,
        checked=len(some),
    )


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Each map divided by its maximum, (n, 1, H, W); 0 stays 0."""
    peak = maps.amax(dim=(2, 3), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
