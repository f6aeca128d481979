"""Classification losses as modules, which hold the weights and priors of the classes; see ``functional``."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fer_lightning.imbalance.functional import (
    READINGS,
    balancing_margin,
    cross_entropy,
    focal_loss,
    ldam,
    ldam_margins,
    logit_adjusted,
    sigmoid_focal_loss,
    vector_scaling,
    weighted_bce,
)
from fer_lightning.imbalance.weights import class_weights, log_prior
from fer_lightning.runtime.errors import UserError


class WeightedLoss(nn.Module):
    """Base of the losses with class weights: holds them in float32, as a buffer that is not saved in checkpoints.

    Args:
        class_counts: number of training images of each class, in label order.
        scheme: of ``class_weights``.
        normalization: of ``class_weights``.
        beta: of ``class_weights``, used by scheme ``effective`` only.
        power: of ``class_weights``; in place of ``scheme``.
        weights: (C,), used as they are, in place of all others.

    Raises:
        UserError: as ``class_weights``.
    """

    weight: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        scheme: str,
        normalization: str = "balanced",
        beta: float = 0.9999,
        power: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        weight = class_weights(class_counts, scheme, normalization, beta, power)
        weight = weight if weights is None else torch.tensor(weights)
        self.register_buffer("weight", weight.float(), persistent=False)


class CrossEntropy(WeightedLoss):
    """``cross_entropy`` with class weights.

    Args:
        class_counts: as ``WeightedLoss``, with ``normalization``, ``beta``, ``power`` and ``weights``.
        weighting: scheme of ``class_weights``.
        label_smoothing: in [0, 1).

    Raises:
        UserError: as ``class_weights``.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: str = "none",
        normalization: str = "balanced",
        beta: float = 0.9999,
        label_smoothing: float = 0.0,
        power: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_counts, weighting, normalization, beta, power, weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return cross_entropy(logits, target, self.weight, self.label_smoothing)


class FocalLoss(WeightedLoss):
    """``focal_loss`` with class weights.

    Args:
        class_counts: as ``WeightedLoss``, with ``normalization``, ``beta``, ``power`` and ``weights``.
        gamma: focusing parameter, at least 0.
        alpha: scheme of ``class_weights``.

    Raises:
        UserError: as ``class_weights``.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 2.0,
        alpha: str = "none",
        normalization: str = "balanced",
        beta: float = 0.9999,
        power: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_counts, alpha, normalization, beta, power, weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return focal_loss(logits, target, self.gamma, self.weight)


def bias_at_chance(classes: int) -> float:
    """Initial bias of the last layer, -log(C - 1), with which the sigmoid of every class starts at about 1 / C.

    Starting at 1 / 2, the first steps of a one-versus-rest loss lower all logits (official code of Cui et al. 2019).
    """
    return -math.log(max(1, classes - 1))


class ClassBalancedFocal(WeightedLoss):
    """``sigmoid_focal_loss`` weighted by the inverse effective number of samples.

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 4.3. Its form with a softmax is
    ``FocalLoss`` with alpha ``effective``.

    Args:
        class_counts: as ``WeightedLoss``, with ``normalization``, ``power`` and ``weights``.
        gamma: focusing parameter, at least 0.
        beta: of ``class_weights``. The official code defaults to 0, which disables the weights.
        start_at_chance: see ``bias_at_chance``.

    Raises:
        UserError: as ``class_weights``.
    """

    initial_bias: float | None

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 1.0,
        beta: float = 0.9999,
        normalization: str = "balanced",
        power: float | None = None,
        weights: Sequence[float] | None = None,
        start_at_chance: bool = True,
    ) -> None:
        super().__init__(class_counts, "effective", normalization, beta, power, weights)
        self.gamma = gamma
        self.initial_bias = bias_at_chance(len(class_counts)) if start_at_chance else None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return sigmoid_focal_loss(logits, target, self.gamma, self.weight)


class WeightedBCE(WeightedLoss):
    """``weighted_bce`` with inverse class frequencies as weights.

    The sum over classes is not divided by C. PyTorch's mean over all B * C terms with ``sum_C`` weights is
    this loss with ``sum_1`` weights.

    Args:
        class_counts: as ``WeightedLoss``, with ``power`` and ``weights``.
        reading: one of ``READINGS``.
        normalization: of ``class_weights``; the paper's "normalize them over the seven classes" can mean
            ``sum_1`` or ``sum_C``.
        positive_weight: p_c, above 0.
        start_at_chance: see ``bias_at_chance``; the paper mentions none.

    Raises:
        UserError: an argument is out of range; see also ``class_weights``.
    """

    initial_bias: float | None

    def __init__(
        self,
        class_counts: Sequence[int],
        reading: str = "sample",
        normalization: str = "sum_C",
        positive_weight: float = 1.0,
        power: float | None = None,
        weights: Sequence[float] | None = None,
        start_at_chance: bool = False,
    ) -> None:
        super().__init__(class_counts, "inverse", normalization, power=power, weights=weights)
        if reading not in READINGS:
            raise UserError(f"unknown reading {reading!r}: choose one of {', '.join(READINGS)}")
        if not 0 < positive_weight < math.inf:
            raise UserError(f"positive_weight={positive_weight} is out of range: it must be above 0")
        self.reading = reading
        self.positive_weight = positive_weight
        self.initial_bias = bias_at_chance(len(class_counts)) if start_at_chance else None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return weighted_bce(logits, target, self.weight, self.reading, self.positive_weight)


class LogitAdjusted(nn.Module):
    """``logit_adjusted`` with the class shares of the training images; the Balanced Softmax for tau = 1.

    Args:
        class_counts: number of training images of each class, in label order.
        tau: at least 0.

    Raises:
        UserError: tau is out of range or a class has no images.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Sequence[int], tau: float = 1.0) -> None:
        super().__init__()
        if not 0 <= tau < math.inf:
            raise UserError(f"tau={tau} is out of range: give 0 (cross-entropy) or more; 1 aims at balanced error")
        self.tau = tau
        self.register_buffer("log_prior", log_prior(class_counts).float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return logit_adjusted(logits, target, self.log_prior, self.tau)


class VectorScaling(nn.Module):
    """``vector_scaling`` by the class sizes of the training images (VS loss).

    Args:
        class_counts: number of training images of each class, in label order.
        gamma: exponent of the factors (n_j / n_max)^gamma, at least 0.
        tau: of the shifts tau log pi_j, at least 0.

    Raises:
        UserError: an argument is out of range or a class has no images.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, class_counts: Sequence[int], gamma: float = 0.3, tau: float = 1.0) -> None:
        super().__init__()
        if not 0 <= tau < math.inf:
            raise UserError(f"tau={tau} is out of range: give 0 (no shift) or more; 1 aims at balanced error")
        prior = log_prior(class_counts)
        self.register_buffer("factor", (gamma * (prior - prior.max())).exp().float(), persistent=False)
        self.register_buffer("shift", (tau * prior).float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return vector_scaling(logits, target, self.factor, self.shift)


class BalancingMargin(nn.Module):
    """``balancing_margin`` with margins m_j = max_margin (n_min / n_j)^tau (DBM loss).

    The logits must be ``scale`` times cosines.

    Args:
        class_counts: number of training images of each class, in label order.
        max_margin: K, margin of the rarest class in radians, from 0 to pi / 2.
        tau: at least 0; 0 gives every class the same margin.
        difficulty: lambda, at least 0.
        scale: of the cosine logits, above 0.

    Raises:
        UserError: an argument is out of range or a class has no images.
    """

    margin: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        max_margin: float = 0.1,
        tau: float = 1.0,
        difficulty: float = 1.0,
        scale: float = 32.0,
    ) -> None:
        super().__init__()
        if not 0 <= max_margin <= math.pi / 2:
            raise UserError(f"max_margin={max_margin} is out of range: give an angle of 0 to 1.57, usually 0.1")
        for name, value in (("tau", tau), ("difficulty", difficulty)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name}={value} is out of range: it must be 0 or more, usually 1")
        if not 0 < scale < math.inf:
            raise UserError(f"scale={scale} is out of range: it must be above 0, usually 32")
        self.difficulty = difficulty
        self.scale = scale
        prior = log_prior(class_counts)
        self.register_buffer("margin", (max_margin * (tau * (prior.min() - prior)).exp()).float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C), scale times cosines, and targets (B,)."""
        return balancing_margin(logits, target, self.margin, self.scale, self.difficulty)


class LDAM(WeightedLoss):
    """``ldam`` with deferred re-weighting: class weights are 1 at first, later the inverse effective number.

    Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss". The logits must be
    ``scale`` times cosines.

    Args:
        class_counts: as ``WeightedLoss``, with ``beta``, ``normalization``, ``power`` and ``weights``.
        epochs: length of the run.
        max_margin: margin of the rarest class, in cosine units, at least 0.
        scale: of the cosine logits, above 0.
        deferred_share: share of the epochs, at the end of the run, that use the weights; 0 for none, 1 for all.

    Raises:
        UserError: an argument is out of range or a class has no images; see also ``class_weights``.
    """

    margin: Tensor

    def __init__(  # noqa: PLR0913 - the settings of conf/imbalance/ldam_drw.yaml
        self,
        class_counts: Sequence[int],
        epochs: int,
        max_margin: float = 0.5,
        scale: float = 30.0,
        deferred_share: float = 0.2,
        beta: float = 0.9999,
        normalization: str = "balanced",
        power: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_counts, "effective", normalization, beta, power, weights)
        if not 0 <= max_margin <= 2:
            raise UserError(f"max_margin={max_margin} is out of range: cosines leave room for 0 to 2, usually 0.5")
        if not 0 < scale < math.inf:
            raise UserError(f"scale={scale} is out of range: it must be above 0, usually 30")
        if not 0 <= deferred_share <= 1:
            raise UserError(f"deferred_share={deferred_share} is out of range: give 0 (no class weights) to 1 (always)")
        self.first_weighted = epochs - (max(1, round(deferred_share * epochs)) if deferred_share else 0)
        self.register_buffer("margin", (scale * ldam_margins(class_counts, max_margin)).float(), persistent=False)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the following calls."""
        self.weighted = epoch >= self.first_weighted

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C), scale times cosines, and targets (B,)."""
        return ldam(logits, target, self.margin, self.weight if self.weighted else None)
