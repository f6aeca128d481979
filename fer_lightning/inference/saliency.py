"""Saliency maps, and how faithful they are: functions from a model and images to arrays.

The maps are activation times gradient, summed over channels (HiResCAM: Draelos & Carin 2020, "Use HiResCAM instead of
Grad-CAM for faithful explanations of CNNs"), at the ends of the last three resolutions with at least 4x4 cells,
added up. The usual choice, Grad-CAM at the last convolution (timm's ``bn2``), has 2x2 cells for an input of 64
pixels; at earlier layers it localises badly, because it averages the gradient over the picture.

Drop of the probability when the most salient pixels are blurred first, minus the drop when the least salient are
(mean over 10 to 50 % of the pixels; ``tf_efficientnetv2_b0`` at 64 pixels, FER-2013, 96 test faces): these maps 0.51,
one resolution alone 0.37 to 0.47, Grad-CAM at the last convolution 0.15, at its best layer 0.35, integrated gradients
0.45, SmoothGrad 0.27. Occlusion, which optimises this very measure, 0.52 at forty times the cost.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.integrate
import torch
from torch import nn
from torch.nn import functional as F

from fer_lightning.evaluation.probabilities import predict
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import stem_of
from fer_lightning.runtime.errors import UserError

try:
    from captum.attr import LayerGradientXActivation
except ImportError:
    raise UserError("saliency maps need captum: pip install 'fer_lightning[explain]'") from None

BATCH_SIZE = 64
"""Smaller than in evaluation, since activations are kept for the backward pass."""

LEAST_CELLS = 4
RESOLUTIONS = 3

SHARES = np.linspace(0, 1, 11)
"""Shares of pixels blurred in ``deletion``."""

_BLUR = 1 / 8
"""Standard deviation of the blur as a share of the side: removes eyes and mouth without adding edges."""

CHECKED = 256
"""Number of test faces in the deletion check, which runs the model 33 times on each."""


@dataclass(frozen=True)
class MeanMaps:
    """Mean saliency maps of the test faces that a model classifies correctly.

    Attributes:
        maps: mean saliency of each class, float32, (C, H, H), 0..1; 0 where ``right`` is 0.
        faces: mean face of each class, float32, (C, H, H), 0..255.
        right: correctly classified test images of each class, int64, (C,).
        total: test images of each class, int64, (C,).
        deletion: mean area under the probability of the prediction while pixels are blurred, for the orders
            ``salient first``, ``at random`` and ``salient last``.
        checked: number of faces averaged in ``deletion``.
    """

    maps: np.ndarray
    faces: np.ndarray
    right: np.ndarray
    total: np.ndarray
    deletion: dict[str, float]
    checked: int


def layers(model: EmotionClassifier) -> list[nn.Module]:
    """The modules whose outputs are used: the ends of the last resolutions with 4x4 cells or more.

    Raises:
        UserError: timm does not know the network's resolutions, or all have fewer cells.
    """
    stem = stem_of(model.network)
    coarser = 1.0 if stem is None else stem.stride[0] / 2  # timm's reductions are for 2
    ends = [
        info["module"]
        for info in getattr(model.network, "feature_info", [])
        if model.image_size / (info["reduction"] * coarser) >= LEAST_CELLS
    ]
    if not ends:
        raise UserError(
            f"{model.hparams['model']['name']}: has no layer with {LEAST_CELLS}x{LEAST_CELLS} cells or more at "
            f"{model.image_size} pixels, from which a saliency map could be made; train at a larger model.image_size"
        )
    return [model.network.get_submodule(name) for name in ends[-RESOLUTIONS:]]


def _as_maps(values: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """Values of a layer, (n, C, H, W), (n, H, W, C) or tokens (n, T, C), summed over channels: (n, 1, H, W)."""
    if values.ndim == 3:
        tokens = values[:, int(getattr(network, "num_prefix_tokens", 0)) :].sum(-1)
        side = math.isqrt(tokens.shape[1])
        return tokens.reshape(len(tokens), 1, side, side)
    channels = -1 if getattr(network, "output_fmt", "NCHW") == "NHWC" else 1
    return values.sum(channels).unsqueeze(1)


def saliency_maps(
    model: EmotionClassifier, images: np.ndarray, emotions: np.ndarray, device: torch.device
) -> np.ndarray:
    """Compute the evidence for an emotion at each pixel of each face; of an ensemble, the mean of its members' maps.

    Args:
        model: moved to ``device``; its parameters may be frozen.
        images: uint8, (n, H, H) or (n, 3, H, H).
        emotions: int, (n,): the class to explain, of each image.
        device: where to compute.

    Returns:
        float32, (n, H, H), in 0..1: 1 at the most salient pixel; all 0 without evidence for the emotion.
    """
    model = model.to(device).eval()
    if model.members:
        mean = np.mean([saliency_maps(member, images, emotions, device) for member in model.members], axis=0)
        return _unit(torch.from_numpy(mean)[:, None])[:, 0].numpy()
    method = LayerGradientXActivation(model, layers(model))
    side = images.shape[-1]
    maps = np.zeros((len(images), side, side), np.float32)
    for start in range(0, len(images), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        # The images need a gradient, since activations of a frozen network would have none.
        pixels = torch.from_numpy(np.array(images[rows])).to(device).float().requires_grad_()
        targets = torch.from_numpy(np.array(emotions[rows], dtype=np.int64)).to(device)
        parts = [
            _unit(_as_maps(part.detach().float(), model.network).relu()) for part in method.attribute(pixels, targets)
        ]
        whole = sum(F.interpolate(part, (side, side), mode="bilinear", align_corners=False) for part in parts)
        assert isinstance(whole, torch.Tensor)
        maps[rows] = _unit(whole)[:, 0].cpu().numpy()
    return maps


def mean_maps(maps: np.ndarray, emotions: np.ndarray, classes: int) -> np.ndarray:
    """Average the maps of each class: float32 (classes, ...); 0 for a class without images.

    Args:
        maps: (n, ...).
        emotions: int in 0..classes-1, (n,).
        classes: number of classes.
    """
    means = np.zeros((classes, *maps.shape[1:]), np.float32)
    for emotion in np.unique(emotions):
        means[emotion] = maps[emotions == emotion].mean(axis=0)
    return means


def hide(images: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """Blur the first ``share`` of each face's pixels.

    Args:
        images: uint8, (n, H, H).
        order: (n, H, H); pixels with higher values first, ties from the upper left.
        share: in 0..1.

    Returns:
        uint8, (n, H, H).
    """
    n, side = len(images), images.shape[-1]
    pixels = side * side
    first = np.argsort(-order.reshape(n, pixels), axis=1, kind="stable")[:, : round(share * pixels)]
    mask = np.zeros((n, pixels), bool)
    np.put_along_axis(mask, first, True, axis=1)
    planes = images.reshape(-1, side, side)
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), _BLUR * side) for plane in planes]).reshape(images.shape)
    hidden = mask.reshape(n, side, side)
    return np.where(hidden if images.ndim == 3 else hidden[:, None], blurred, images)


def deletion(
    model: EmotionClassifier, images: np.ndarray, emotions: np.ndarray, order: np.ndarray, device: torch.device
) -> np.ndarray:
    """Area under the probability of each face's emotion as more and more of its pixels are blurred.

    The "deletion" metric of Petsiuk et al. (2018, "RISE", section 4.2): the more faithful ``order`` is, the sooner the
    probability falls, and the smaller the area. Pixels are blurred, not set to gray, which would be unlike any face in
    training.

    Args:
        model: moved to ``device``.
        images: uint8, (n, H, H).
        emotions: int, (n,): the class whose probability is measured.
        order: (n, H, H), such as saliency maps; highest first.
        device: where to compute.

    Returns:
        float64, (n,), in 0..1: the mean probability over the shares of blurred pixels from 0 to 1.
    """
    rows = np.arange(len(images))
    kept = [predict(model, hide(images, order, share), device)[rows, emotions] for share in SHARES]
    return scipy.integrate.trapezoid(np.array(kept), SHARES, axis=0)


def random_patches(n: int, side: int) -> np.ndarray:
    """Random orders for ``deletion``, in patches about as large as those of the maps: float32, (n, side, side).

    Single random pixels would not be comparable: blurring a third of them already destroys the whole face.
    """
    coarse = np.random.default_rng(0).random((n, 8, 8), dtype=np.float32)
    return np.stack([cv2.resize(one, (side, side)) for one in coarse])


def explain_test_set(
    model: EmotionClassifier, images: np.ndarray, labels: np.ndarray, device: torch.device
) -> MeanMaps:
    """Compute mean maps per emotion, and the deletion metric.

    Args:
        model: moved to ``device``.
        images: uint8, (n, H, H), n >= 1.
        labels: int, (n,).
        device: where to compute.

    Raises:
        UserError: no image is classified correctly.
    """
    predicted = predict(model, images, device).argmax(axis=1)
    right = np.flatnonzero(predicted == labels)
    if not len(right):
        raise UserError(
            f"none of the {len(images)} test images is classified correctly, so none can be explained; train longer"
        )
    emotions = labels[right]
    maps = saliency_maps(model, images[right], emotions, device)
    some = np.sort(np.random.default_rng(0).permutation(len(right))[:CHECKED])
    orders = {
        "salient first": maps[some],
        "at random": random_patches(len(some), images.shape[-1]),
        "salient last": -maps[some],
    }
    areas = {
        name: float(deletion(model, images[right[some]], emotions[some], order, device).mean())
        for name, order in orders.items()
    }
    count = len(model.classes)
    return MeanMaps(
        maps=mean_maps(maps, emotions, count),
        faces=mean_maps(images[right], emotions, count),
        right=np.bincount(emotions, minlength=count),
        total=np.bincount(labels, minlength=count),
        deletion=areas,
        checked=len(some),
    )


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Divide each map by its maximum, (n, 1, H, W); 0 stays 0."""
    peak = maps.amax(dim=(2, 3), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
