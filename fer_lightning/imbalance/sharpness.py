"""Losses whose share of some classes is made flat by sharpness-aware minimisation; see ``sam.split_passes``."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fer_lightning.imbalance.functional import cross_entropy
from fer_lightning.imbalance.weights import log_prior
from fer_lightning.runtime.errors import require

log = logging.getLogger(__name__)


class ClassSharpness(nn.Module):
    """Base: cross-entropy, of which the share ``sharp[y]`` of each image is minimised in its sharpness too.

    Args:
        sharp: (C,), each from 0 (the class has plain steps) to 1.
        rho: radius of the neighbourhood, above 0.

    Raises:
        UserError: ``rho`` is out of range.
    """

    sharp: Tensor

    def __init__(self, sharp: Tensor, rho: float) -> None:
        super().__init__()
        require(0 < rho < math.inf, "imbalance.loss.rho", rho, "must be positive, usually 0.05 to 0.2")
        self.rho = rho
        self.register_buffer("sharp", sharp.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return cross_entropy(logits, target)


class TailSharpness(ClassSharpness):
    """Sharpness of the rare classes alone (ImbSAM).

    Zhou et al. 2023, "ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition". The
    plain part of the loss leaves the rare classes out; the official code counts them twice.

    Args:
        class_counts: number of training images of each class, in label order.
        below: eta, a class with fewer images is rare. The authors' 20 selects no class of FER-2013.
        rho: radius of the neighbourhood, above 0.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, class_counts: Sequence[int], below: int = 1000, rho: float = 0.05) -> None:
        require(below >= 0, "imbalance.loss.below", below, "must be a number of images")
        rare = torch.tensor(class_counts) < below
        if not rare.any():
            log.warning(
                "imbalance.loss.below=%d: the rarest class has %d images; no class is rare", below, min(class_counts)
            )
        super().__init__(rare, rho)


class FocalSharpness(ClassSharpness):
    """Sharpness of each class by its rarity: c_k = weight (1 - pi_k)^gamma (Focal-SAM).

    Li et al. 2025, "Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification".

    Args:
        class_counts: number of training images of each class, in label order.
        gamma: at least 0; 0 for the same share of every class.
        weight: lambda, from 0 to 1; above, the plain part of the loss would be negative.
        rho: radius of the neighbourhood, above 0.

    Raises:
        UserError: an argument is out of range or a class has no images.
    """

    def __init__(self, class_counts: Sequence[int], gamma: float = 3.0, weight: float = 0.5, rho: float = 0.2) -> None:
        require(0 <= weight <= 1, "imbalance.loss.weight", weight, "must be from 0 to 1")
        super().__init__(weight * (1 - log_prior(class_counts).exp()) ** gamma, rho)
