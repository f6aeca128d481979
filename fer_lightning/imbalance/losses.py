"""Classification losses: pure functions for one value per sample, modules for the batch mean.

Every weighted loss divides by the number of samples, never by the sum of their weights as PyTorch's
``cross_entropy(weight=...)`` does: there a batch without the rare class raises the weight of all others, so
that gradients depend on the batch size.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.errors import UserError
from fer_lightning.imbalance.weights import class_weights

READINGS = ("sample", "column", "softmax")
"""Readings of the paper's weighted binary cross-entropy."""


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy w[y] * sum_c -q_c log p_c with q = (1 - eps) * one_hot(y) + eps / C.

    The weight is the target class's, for the smoothed mass too. PyTorch weights that mass by its own class,
    which gives a rare class a share of every other class's loss (pytorch#104776).

    Args:
        logits: (B, C).
        target: (B,) int64.
        weight: (C,) or None for 1.
        label_smoothing: eps.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    loss = F.cross_entropy(at_least_float32(logits), target, reduction="none", label_smoothing=label_smoothing)
    return loss if weight is None else weight[target] * loss


def focal_loss(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Softmax focal loss -w[y] (1 - p_y)^gamma log p_y.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 5, with p_t the softmax probability of the
    target class itself, never exp(-loss) of a weighted loss.

    Args:
        logits: (B, C).
        target: (B,) int64.
        gamma: focusing parameter, 0 for plain cross-entropy.
        weight: alpha, (C,), or None for 1.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    plain = cross_entropy(logits, target)
    # expm1 adds no rounding of its own to 1 - p near p = 1. At p = 1 the clamp gives a zero gradient, the
    # limit there, where the derivative of x^gamma is infinite for gamma < 1.
    miss = -torch.expm1(-plain)
    loss = miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma * plain
    return loss if weight is None else weight[target] * loss


def weighted_bce(
    logits: Tensor, target: Tensor, weight: Tensor, reading: str = "sample", positive_weight: float = 1.0
) -> Tensor:
    """Binary cross-entropy of one class against the rest, summed over classes.

    sum_c -w_{n,c} [p_c y_c log s_c + (1 - y_c) log(1 - s_c)], eq. 1-2 of Elizabeth and Sadeddin, "Facial
    emotion recognition and handling data imbalance in machine learning". It leaves the indices of w open:

    ``sample``: w_{n,c} = w[y_n], the weight of the sample's class; s = sigmoid. Its text reads this way.
    ``column``: w_{n,c} = w[c], the weight of the class that the term asks about; s = sigmoid.
    ``softmax``: w_{n,c} = w[y_n] and s = softmax, because the paper's network ends in a softmax layer.

    Args:
        logits: (B, C).
        target: (B,) int64.
        weight: (C,).
        reading: one of ``READINGS``.
        positive_weight: p_c, the same for all classes.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    logits = at_least_float32(logits)
    if reading == "softmax":
        log_yes, log_no = _log_softmax_pair(logits)
    else:
        log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = F.one_hot(target, logits.shape[1]).bool()
    loss = -torch.where(positive, positive_weight * log_yes, log_no)
    sample_weight = weight[None] if reading == "column" else weight[target][:, None]
    return (sample_weight * loss).sum(dim=1)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits of a lower precision as float32, others as they are: in bfloat16, 1 - 0.999 is 0."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_softmax_pair(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of the softmax, both (B, C).

    1 - p_c is the share of the other classes: a sum over them keeps log(1 - p_c) finite and exact where p_c
    rounds to 1.
    """
    classes = logits.shape[1]
    itself = torch.eye(classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(itself, -math.inf).logsumexp(dim=2)
    total = logits.logsumexp(dim=1, keepdim=True)
    return logits - total, others - total


class CrossEntropy(nn.Module):
    """Mean over the batch of ``cross_entropy``.

    Args:
        class_counts: number of training images of each class, in label order.
        weighting: scheme of ``class_weights``.
        normalization: of ``class_weights``.
        beta: of ``class_weights``, used by weighting ``effective`` only.
        label_smoothing: in [0, 1).

    Raises:
        UserError: for a knob out of range; see also ``class_weights``.
    """

    weight: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: str = "none",
        normalization: str = "balanced",
        beta: float = 0.9999,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing} is out of range: it must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        weight = class_weights(class_counts, weighting, normalization, beta)
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits (B, C) and targets (B,)."""
        return cross_entropy(logits, target, self.weight, self.label_smoothing).mean()


class FocalLoss(nn.Module):
    """Mean over the batch of ``focal_loss``.

    Args:
        class_counts: number of training images of each class, in label order.
        gamma: focusing parameter, at least 0.
        alpha: scheme of ``class_weights`` for the class weights.
        normalization: of ``class_weights``.
        beta: of ``class_weights``, used by alpha ``effective`` only.

    Raises:
        UserError: for a knob out of range; see also ``class_weights``.
    """

    weight: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 2.0,
        alpha: str = "none",
        normalization: str = "balanced",
        beta: float = 0.9999,
    ) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise UserError(f"gamma={gamma} is out of range: the focal loss needs a gamma of 0 or more, usually 1 to 5")
        self.gamma = gamma
        weight = class_weights(class_counts, alpha, normalization, beta)
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits (B, C) and targets (B,)."""
        return focal_loss(logits, target, self.gamma, self.weight).mean()


class WeightedBCE(nn.Module):
    """Mean over the batch of ``weighted_bce`` with inverse class frequencies for weights.

    The sum over classes is not divided by C. PyTorch's mean over all B * C terms with ``sum_C`` weights is
    this loss with ``sum_1`` weights.

    Args:
        class_counts: number of training images of each class, in label order.
        reading: one of ``READINGS``.
        normalization: of ``class_weights``; the paper's "normalize them over the seven classes" fits
            ``sum_1`` and ``sum_C``.
        positive_weight: p_c, above 0.

    Raises:
        UserError: for a knob out of range; see also ``class_weights``.
    """

    weight: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        reading: str = "sample",
        normalization: str = "sum_C",
        positive_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if reading not in READINGS:
            raise UserError(f"unknown reading {reading!r}: choose one of {', '.join(READINGS)}")
        if not 0 < positive_weight < math.inf:
            raise UserError(f"positive_weight={positive_weight} is out of range: it must be above 0")
        self.reading = reading
        self.positive_weight = positive_weight
        weight = class_weights(class_counts, "inverse", normalization)
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits (B, C) and targets (B,)."""
        return weighted_bce(logits, target, self.weight, self.reading, self.positive_weight).mean()
