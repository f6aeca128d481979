"""Classification losses as pure functions, one value per image; ``losses`` has the modules with weights and priors.

The training step takes the unweighted mean over the batch. So every weighted loss is divided by the number of images,
not by the sum of their weights as in PyTorch's ``cross_entropy(weight=...)``: there a batch without the rare class
raises the weight of all others, so that gradients depend on the composition and size of the batch.

The losses do not change the predictions of a model: margins and priors enter the loss only, not the logits.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

READINGS = ("sample", "column", "softmax")
"""Interpretations of the paper's weighted binary cross-entropy, see ``weighted_bce``."""


def expected_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, probabilities: Tensor) -> Tensor:
    """Loss of soft targets: sum_c q_c loss(z, c).

    Used for all soft targets: mixed images and FER+ votes. Each class keeps its own weight, margin and p_t; for plain
    cross-entropy the result is the cross-entropy with q.

    Args:
        loss: (logits (N, C), target (N,)) -> (N,), such as any module of ``losses``.
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


def smoothed_by_class(logits: Tensor, target: Tensor, smoothing: Tensor) -> Tensor:
    """Cross-entropy with labels smoothed by eps of the image's class: -(1 - eps_y) log p_y - eps_y mean_c log p_c.

    Zhong et al. 2021, "Improving Calibration for Long-Tailed Recognition", label-aware smoothing.

    Args:
        logits: (B, C).
        target: (B,) int64.
        smoothing: eps, (C,), each in [0, 1).

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    own = log_probabilities.gather(1, target[:, None]).squeeze(1)
    return -own - smoothing[target] * (log_probabilities.mean(dim=1) - own)


def vector_scaling(logits: Tensor, target: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Cross-entropy of factor_j z_j + shift_j.

    Kini et al. 2021, "Label-Imbalanced and Group-Sensitive Classification under Overparameterization": factors
    (n_j / n_max)^gamma and shifts tau log pi_j. With gamma = 0 it is ``logit_adjusted``, with tau = 0 the
    class-dependent temperatures of Ye et al. 2020.

    Args:
        logits: (B, C).
        target: (B,) int64.
        factor: (C,), above 0.
        shift: (C,), at least float32.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    return cross_entropy(at_least_float32(logits) * factor + shift, target)


def balancing_margin(logits: Tensor, target: Tensor, margin: Tensor, scale: float, difficulty: float) -> Tensor:
    """Cross-entropy with an additive angular margin for the target: s cos(theta_y + M) in place of s cos(theta_y).

    M = m_y, and m_y (1 + difficulty (1 - cos_y) / 2) for an image that is classified wrongly: Son et al. 2025,
    "Difficulty-aware Balancing Margin Loss for Long-tailed Recognition". The gradient is that of the
    formula as written, M included.

    Args:
        logits: scale times the cosine, (B, C).
        target: (B,) int64.
        margin: m, (C,), in radians.
        scale: s, above 0.
        difficulty: lambda, at least 0; 0 for margins of the class alone.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    logits = at_least_float32(logits)
    # The derivative of the arc cosine is infinite at -1 and 1, and a rounded cosine may lie beyond.
    largest = 1 - torch.finfo(logits.dtype).eps ** 0.5
    cosine = (logits.gather(1, target[:, None]) / scale).clamp(-largest, largest)
    wrong = (logits.argmax(dim=1) != target)[:, None]
    harder = torch.where(wrong, difficulty * (1 - cosine) / 2, 0.0)
    angle = cosine.acos() + margin[target][:, None] * (1 + harder)
    return cross_entropy(logits.scatter(1, target[:, None], scale * angle.cos()), target)


def gaussian_clouded(
    logits: Tensor, target: Tensor, clouds: Tensor, noise: Tensor, scale: float, margin: float, gamma: float = 0.0
) -> Tensor:
    """Cross-entropy, or focal loss, of s (cos_j - |e_j| cloud_j - m 1(j = y)).

    Li et al. 2022, "Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment": logits of rare classes get
    more noise, which lowers them and so asks for a larger margin.

    Args:
        logits: cosines, (B, C).
        target: (B,) int64.
        clouds: kappa log(n_max / n_j) / log(n_max / n_min), (C,).
        noise: e, (B, C), normal with deviation 1/3, clipped to [-1, 1].
        scale: s.
        margin: m, of the target class.
        gamma: of a focal factor (1 - p_y)^gamma, which is a constant of the gradient.

    Returns:
        (B,) in the precision of ``at_least_float32(logits)``.
    """
    logits = at_least_float32(logits)
    lowered = logits - noise.abs() * clouds - margin * F.one_hot(target, logits.shape[1]).to(logits.dtype)
    loss = cross_entropy(scale * lowered, target)
    return loss if gamma == 0 else (-torch.expm1(-loss.detach())) ** gamma * loss


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
