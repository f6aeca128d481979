"""Classification losses, one value per image: pure functions, and modules that hold weights and priors of the classes.

The training step takes the unweighted mean over the batch. So every weighted loss is divided by the number of images,
not by the sum of their weights as in PyTorch's ``cross_entropy(weight=...)``: there a batch without the rare class
raises the weight of all others, so that gradients depend on the composition and size of the batch.

The losses do not change the predictions of a model: margins and priors enter the loss only, not the logits.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.imbalance.weights import class_weights, log_prior
from fer_lightning.runtime.errors import UserError

READINGS = ("sample", "column", "softmax")
"""Interpretations of the paper's weighted binary cross-entropy, see ``weighted_bce``."""

FORMS = ("sigmoid", "softmax")
"""Forms of the class-balanced focal loss."""


def expected_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, probabilities: Tensor) -> Tensor:
    """Loss of soft targets: sum_c q_c loss(z, c).

    Used for all soft targets: mixed images and FER+ votes. Each class keeps its own weight, margin and p_t; for plain
    cross-entropy the result is the cross-entropy with q.

    Args:
        loss: (logits (N, C), target (N,)) -> (N,), such as any module here.
        logits: (B, C).
        probabilities: q, (B, C), rows sum to 1.

    Returns:
        (B,)
    """
    images, classes = logits.shape
    every_class = torch.arange(classes, device=logits.device).repeat(images)
    losses = loss(logits.repeat_interleave(classes, dim=0), every_class).view(images, classes)
    return (probabilities * losses).sum(dim=1)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy w[y] * sum_c -q_c log p_c with q = (1 - eps) * one_hot(y) + eps / C.

    All terms have the weight of the target class. PyTorch weights the smoothed term of each class by that class's own
    weight, so that the weight of a rare class enters the loss of every image (pytorch#104776).

    Args:
        logits: (B, C).
        target: (B,) int64.
        weight: (C,) or None for 1.
        label_smoothing: eps, in [0, 1).

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
    # expm1 avoids cancellation in 1 - p near p = 1. At p = 1, where the derivative of x^gamma is infinite for
    # gamma < 1, the clamp gives a gradient of zero, which is the limit of the loss's gradient.
    miss = -torch.expm1(-plain)
    loss = miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma * plain
    return loss if weight is None else weight[target] * loss


def sigmoid_focal_loss(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """One-versus-rest focal loss, summed over classes: sum_c -w[y] (1 - p_c)^gamma log p_c.

    p_c = sigmoid(z_c) for the target class and 1 - sigmoid(z_c) for the others: Cui et al. 2019, "Class-Balanced
    Loss Based on Effective Number of Samples", section 4.3 after Lin et al. 2017.

    Args:
        logits: (B, C).
        target: (B,) int64.
        gamma: focusing parameter, 0 for binary cross-entropy.
        weight: (C,) or None for 1.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    logits = at_least_float32(logits)
    right = torch.where(F.one_hot(target, logits.shape[1]).bool(), logits, -logits)
    # Computed in log space, (1 - p)^gamma has a finite gradient for every gamma and logit.
    loss = -(torch.exp(gamma * F.logsigmoid(-right)) * F.logsigmoid(right)).sum(dim=1)
    return loss if weight is None else weight[target] * loss


def logit_adjusted(logits: Tensor, target: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of z + tau log pi.

    Menon et al. 2021, "Long-tail learning via logit adjustment", eq. 10. With tau = 1 it equals the
    Balanced Softmax (Ren et al. 2020), which has log n in place of log pi.

    Args:
        logits: (B, C).
        target: (B,) int64.
        log_prior: log pi, (C,), at least float32; in bfloat16 the error is up to 0.0034 on FER-2013.
        tau: 0 for plain cross-entropy.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    return cross_entropy(at_least_float32(logits) + tau * log_prior, target)


def ldam(logits: Tensor, target: Tensor, margin: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy w[y] CE(z - margin[y] 1_y).

    Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", section 3.

    Args:
        logits: scale times the cosine, (B, C).
        target: (B,) int64.
        margin: scale times the margin of each class, (C,).
        weight: (C,) or None for 1.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    logits = at_least_float32(logits)
    return cross_entropy(logits - F.one_hot(target, logits.shape[1]) * margin, target, weight)


def ldam_margins(class_counts: Sequence[int], max_margin: float) -> Tensor:
    """Margins K n_c^(-1/4) whose largest is ``max_margin``, float64 (C,): Cao et al. 2019, section 3."""
    counts = torch.tensor([int(count) for count in class_counts], dtype=torch.float64)
    return max_margin * (counts / counts.min()) ** -0.25


def weighted_bce(
    logits: Tensor, target: Tensor, weight: Tensor, reading: str = "sample", positive_weight: float = 1.0
) -> Tensor:
    """One-versus-rest binary cross-entropy with class weights, summed over classes.

    sum_c -w_{n,c} [p_c y_c log s_c + (1 - y_c) log(1 - s_c)], eq. 1-2 of Elizabeth and Sadeddin, "Facial
    emotion recognition and handling data imbalance in machine learning". The paper does not
    define the indices of w, so that three readings are possible:

    ``sample``: w_{n,c} = w[y_n], the weight of the sample's class; s = sigmoid. Closest to the paper's text.
    ``column``: w_{n,c} = w[c], the weight of the class of the term; s = sigmoid.
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
    """Convert logits of a lower precision to float32; others are unchanged. In bfloat16, 1 - 0.999 is 0."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_softmax_pair(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of the softmax, both (B, C).

    1 - p_c is the sum of the other classes' probabilities: a logsumexp over them keeps log(1 - p_c) finite and accurate
    where p_c rounds to 1.
    """
    classes = logits.shape[1]
    itself = torch.eye(classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(itself, -math.inf).logsumexp(dim=2)
    total = logits.logsumexp(dim=1, keepdim=True)
    return logits - total, others - total


class WeightedLoss(nn.Module):
    """Base of the losses with class weights: holds them in float32, as a buffer that is not saved in checkpoints.

    Args:
        class_counts: number of training images of each class, in label order.
        scheme: of ``class_weights``.
        normalization: of ``class_weights``.
        beta: of ``class_weights``, used by scheme ``effective`` only.

    Raises:
        UserError: as ``class_weights``.
    """

    weight: Tensor

    def __init__(
        self, class_counts: Sequence[int], scheme: str, normalization: str = "balanced", beta: float = 0.9999
    ) -> None:
        super().__init__()
        weight = class_weights(class_counts, scheme, normalization, beta)
        self.register_buffer("weight", weight.float(), persistent=False)


class CrossEntropy(WeightedLoss):
    """``cross_entropy`` with class weights.

    Args:
        class_counts: as ``WeightedLoss``, with ``normalization`` and ``beta``.
        weighting: scheme of ``class_weights``.
        label_smoothing: in [0, 1).

    Raises:
        UserError: an argument is out of range; see also ``class_weights``.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        weighting: str = "none",
        normalization: str = "balanced",
        beta: float = 0.9999,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_counts, weighting, normalization, beta)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing} is out of range: it must be at least 0 and below 1")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return cross_entropy(logits, target, self.weight, self.label_smoothing)


class FocalLoss(WeightedLoss):
    """``focal_loss`` with class weights.

    Args:
        class_counts: as ``WeightedLoss``, with ``normalization`` and ``beta``.
        gamma: focusing parameter, at least 0.
        alpha: scheme of ``class_weights``.

    Raises:
        UserError: an argument is out of range; see also ``class_weights``.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 2.0,
        alpha: str = "none",
        normalization: str = "balanced",
        beta: float = 0.9999,
    ) -> None:
        super().__init__(class_counts, alpha, normalization, beta)
        if not 0 <= gamma < math.inf:
            raise UserError(f"gamma={gamma} is out of range: the focal loss needs a gamma of 0 or more, usually 1 to 5")
        self.gamma = gamma
        self.focal: Callable[..., Tensor] = focal_loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, C) and targets (B,)."""
        return self.focal(logits, target, self.gamma, self.weight)


class ClassBalancedFocal(FocalLoss):
    """Focal loss weighted by the inverse effective number of samples.

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 4.3. The paper's focal loss is
    a sum of sigmoid terms, the default here; form ``softmax`` is ``FocalLoss`` with alpha ``effective``.

    Args:
        class_counts: as ``FocalLoss``, with ``gamma`` and ``normalization``.
        form: one of ``FORMS``.
        beta: of ``class_weights``. The official code defaults to 0, which disables the weights.

    Raises:
        UserError: an argument is out of range; see also ``class_weights``.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 1.0,
        form: str = "sigmoid",
        beta: float = 0.9999,
        normalization: str = "balanced",
    ) -> None:
        super().__init__(class_counts, gamma, "effective", normalization, beta)
        if form not in FORMS:
            raise UserError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
        if form == "sigmoid":
            self.focal = sigmoid_focal_loss


class WeightedBCE(WeightedLoss):
    """``weighted_bce`` with inverse class frequencies as weights.

    The sum over classes is not divided by C. PyTorch's mean over all B * C terms with ``sum_C`` weights is
    this loss with ``sum_1`` weights.

    Args:
        class_counts: as ``WeightedLoss``.
        reading: one of ``READINGS``.
        normalization: of ``class_weights``; the paper's "normalize them over the seven classes" can mean
            ``sum_1`` or ``sum_C``.
        positive_weight: p_c, above 0.

    Raises:
        UserError: an argument is out of range; see also ``class_weights``.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        reading: str = "sample",
        normalization: str = "sum_C",
        positive_weight: float = 1.0,
    ) -> None:
        super().__init__(class_counts, "inverse", normalization)
        if reading not in READINGS:
            raise UserError(f"unknown reading {reading!r}: choose one of {', '.join(READINGS)}")
        if not 0 < positive_weight < math.inf:
            raise UserError(f"positive_weight={positive_weight} is out of range: it must be above 0")
        self.reading = reading
        self.positive_weight = positive_weight

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


class LDAM(WeightedLoss):
    """``ldam`` with deferred re-weighting: class weights are 1 at first, later the inverse effective number.

    Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss". The logits must be
    ``scale`` times cosines.

    Args:
        class_counts: as ``WeightedLoss``, with ``beta`` and ``normalization``.
        epochs: length of the run.
        max_margin: margin of the rarest class, in cosine units, at least 0.
        scale: of the cosine logits, above 0.
        deferred_share: share of the epochs, at the end of the run, that use the weights; 0 for none, 1 for all.

    Raises:
        UserError: an argument is out of range or a class has no images; see also ``class_weights``.
    """

    margin: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        epochs: int,
        max_margin: float = 0.5,
        scale: float = 30.0,
        deferred_share: float = 0.2,
        beta: float = 0.9999,
        normalization: str = "balanced",
    ) -> None:
        super().__init__(class_counts, "effective", normalization, beta)
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
