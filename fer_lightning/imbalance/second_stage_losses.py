"""Losses that change with the second stage of ``second_stage.SecondStage``.

Each takes the length of the stages as ``samplers.first_stage_epochs`` does, and knows the epoch by ``set_epoch``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fer_lightning.imbalance.functional import cross_entropy, gaussian_clouded, smoothed_by_class
from fer_lightning.imbalance.losses import CrossEntropy
from fer_lightning.imbalance.samplers import first_stage_epochs
from fer_lightning.imbalance.weights import log_prior
from fer_lightning.runtime.errors import require


class StagedLoss(nn.Module):
    """Base of the losses that know which of two stages an epoch belongs to: ``in_second``.

    Args:
        epochs: length of the run, with ``share`` and ``first_stage`` as ``samplers.first_stage_epochs``.
        share: share of the epochs that belong to the second stage.
        first_stage: checkpoint of a completed first stage, or None.
    """

    def __init__(self, epochs: int, share: float, first_stage: str | None) -> None:
        super().__init__()
        self.first_of_second = first_stage_epochs(epochs, share, first_stage)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the following calls."""
        self.in_second = epoch >= self.first_of_second


class SecondStageSmoothing(StagedLoss):
    """Base of the losses that smooth the labels in the second of two stages; plain cross-entropy in the first.

    Args:
        smoothing: of ``smoothed_by_class``, (C,).
        epochs: as ``StagedLoss``, with ``share`` and ``first_stage``.
    """

    smoothing: Tensor

    def __init__(self, smoothing: Tensor, epochs: int, share: float, first_stage: str | None) -> None:
        super().__init__(epochs, share, first_stage)
        self.register_buffer("smoothing", smoothing.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        if not self.in_second:
            return cross_entropy(logits, target)
        return smoothed_by_class(logits, target, self.smoothing)


class LabelAwareSmoothing(SecondStageSmoothing):
    """Labels smoothed more the larger their class.

    eps_c = tail + (head - tail) sin(pi/2 (n_c - n_min) / (n_max - n_min)):
    Zhong et al. 2021, "Improving Calibration for Long-Tailed Recognition". Classes of equal size have ``tail``.

    Args:
        class_counts: number of training images of each class, in label order.
        epochs: as ``StagedLoss``, with ``share`` and ``first_stage``.
        head: eps of the largest class, in [0, 1); the paper has 0.3, 0.2 and 0.1 at ratios of 100, 50 and 10.
        tail: eps of the smallest class, in [0, 1).

    Raises:
        UserError: ``head`` or ``tail`` is out of range.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        epochs: int,
        share: float,
        first_stage: str | None,
        head: float = 0.1,
        tail: float = 0.0,
    ) -> None:
        for name, value in (("head", head), ("tail", tail)):
            require(0 <= value < 1, f"imbalance.loss.{name}", value, "must be in [0, 1)")
        counts = torch.tensor(class_counts, dtype=torch.float64)
        above = counts - counts.min()
        share_of_largest = above / above.max().clamp(min=1)
        smoothing = tail + (head - tail) * torch.sin(math.pi / 2 * share_of_largest)
        super().__init__(smoothing, epochs, share, first_stage)


class LabelOverSmoothing(SecondStageSmoothing):
    """Labels of all classes smoothed almost to a uniform distribution (LOS).

    Args:
        class_counts: number of training images of each class, in label order.
        epochs: as ``StagedLoss``, with ``share`` and ``first_stage``.
        smoothing: eps, in [0, 1). None: C / (C + 2.04), with which the target has the odds that the authors' 0.98
            gives it among 100 classes; 0.774 for 7.

    Raises:
        UserError: ``smoothing`` is out of range.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        epochs: int,
        share: float,
        first_stage: str | None,
        smoothing: float | None = None,
    ) -> None:
        classes = len(class_counts)
        eps = classes / (classes + 100 * 0.02 / 0.98) if smoothing is None else smoothing
        require(0 <= eps < 1, "imbalance.loss.smoothing", eps, "must be in [0, 1), or null")
        super().__init__(torch.full((classes,), eps), epochs, share, first_stage)


class SecondStageWeights(StagedLoss):
    """Plain cross-entropy in the first of two stages, weighted in the second.

    Args:
        class_counts: as ``WeightedLoss``, with ``normalization``, ``beta``, ``power`` and ``weights``.
        epochs: as ``StagedLoss``, with ``share`` and ``first_stage``.
        weighting: scheme of ``class_weights``.

    Raises:
        UserError: as ``class_weights``.
    """

    def __init__(  # noqa: PLR0913 - the settings of its configuration file
        self,
        class_counts: Sequence[int],
        epochs: int,
        share: float,
        first_stage: str | None,
        weighting: str = "effective",
        normalization: str = "balanced",
        beta: float = 0.9999,
        power: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(epochs, share, first_stage)
        self.weighted = CrossEntropy(class_counts, weighting, normalization, beta, power=power, weights=weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return self.weighted(logits, target) if self.in_second else cross_entropy(logits, target)


class GaussianClouded(StagedLoss):
    """``gaussian_clouded`` with another scale, a margin and a focal factor in the second stage (GCL).

    The logits must be ``scale`` times cosines. Classes of equal size have no noise.

    Args:
        class_counts: number of training images of each class, in label order.
        epochs: as ``StagedLoss``, with ``share`` and ``first_stage``.
        noise: kappa, share of a cosine that the noise of the rarest class takes away at most, in [0, 2].
        scale: s of the cosine logits and of the first stage, above 0.
        second_scale: s of the second stage, above 0.
        second_margin: m of the second stage, in [0, 2].
        second_gamma: exponent of the focal factor in the second stage, at least 0.

    Raises:
        UserError: an argument is out of range or a class has no images.
    """

    clouds: Tensor

    def __init__(  # noqa: PLR0913 - the settings of its configuration file
        self,
        class_counts: Sequence[int],
        epochs: int,
        share: float,
        first_stage: str | None,
        noise: float = 0.5,
        scale: float = 30.0,
        second_scale: float = 20.0,
        second_margin: float = 0.1,
        second_gamma: float = 1.0,
    ) -> None:
        super().__init__(epochs, share, first_stage)
        for name, value in (("noise", noise), ("second_margin", second_margin)):
            require(0 <= value <= 2, f"imbalance.loss.{name}", value, "must be from 0 to 2")
        for name, value in (("scale", scale), ("second_scale", second_scale)):
            require(0 < value < math.inf, f"imbalance.loss.{name}", value, "must be above 0")
        require(0 <= second_gamma < math.inf, "imbalance.loss.second_gamma", second_gamma, "must be 0 or more")
        self.scale = scale
        self.second = {"scale": second_scale, "margin": second_margin, "gamma": second_gamma}
        rarity = log_prior(class_counts).max() - log_prior(class_counts)
        clouds = noise * rarity / rarity.max().clamp(min=torch.finfo(rarity.dtype).tiny)
        self.register_buffer("clouds", clouds.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C), scale times cosines, and targets (B,); draws new noise each time."""
        cosines = logits / self.scale
        noise = (torch.randn_like(cosines, dtype=self.clouds.dtype) / 3).clamp(-1, 1)
        settings = self.second if self.in_second else {"scale": self.scale, "margin": 0.0}
        return gaussian_clouded(cosines, target, self.clouds, noise, **settings)
