"""Post-hoc adjustments of the last layer, with a strength tau that is chosen on the validation images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fer_lightning.imbalance.functional import at_least_float32
from fer_lightning.imbalance.weights import log_prior
from fer_lightning.metrics.classification import confusion_matrix, macro_f1, precision_recall_f1
from fer_lightning.runtime.errors import UserError

TAUS = tuple(round(0.1 * step, 1) for step in range(21))
"""0 to 2 in steps of 0.1: the candidates of Kang et al. 2020."""


class LogitAdjustment:
    """Logits z - tau log pi, implemented as a change of the bias.

    Menon et al. 2021, "Long-tail learning via logit adjustment", eq. 9. Meant for a model trained
    without any correction for imbalance.

    Args:
        class_counts: number of training images of each class, in label order.
        tau: fixed strength, at least 0, or None to choose one of ``candidates`` on the validation images.
        candidates: strengths to choose from, each 0 (no change) or more.

    Raises:
        UserError: a candidate is out of range, or a class has no images.
    """

    def __init__(
        self, class_counts: Sequence[int], tau: float | None = None, candidates: Sequence[float] = TAUS
    ) -> None:
        self.tau = tau
        self.candidates = _checked(candidates)
        self.log_prior = log_prior(class_counts)

    def __call__(self, weight: Tensor, bias: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of the adjusted layer."""
        return weight, bias - tau * self.log_prior.to(bias)


class TauNormalization:
    """Weights w_c / ||w_c||^tau, without a bias.

    Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition", section 4. The
    bias is removed with tau = 0 too.

    Args:
        class_counts: unused, accepted for the same signature as ``LogitAdjustment``; the norm of a class's weights
            reflects its size.
        tau: fixed strength, at least 0, or None to choose one of ``candidates`` on the validation images.
        candidates: strengths to choose from, each 0 or more.

    Raises:
        UserError: a candidate is out of range.
    """

    def __init__(
        self, class_counts: Sequence[int], tau: float | None = None, candidates: Sequence[float] = TAUS
    ) -> None:
        self.tau = tau
        self.candidates = _checked(candidates)

    def __call__(self, weight: Tensor, bias: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,), all 0, of the normalized layer."""
        norm = weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        return weight / norm**tau, torch.zeros_like(bias)


def choose_tau(
    adjust: LogitAdjustment | TauNormalization,
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    metric: str = "f1_macro",
) -> tuple[float, list[float]]:
    """Choose the candidate with the best score on the validation images; ties go to the smallest tau.

    Args:
        adjust: adjustment with its ``candidates``.
        features: inputs of the last layer, (n, D).
        labels: (n,) int64.
        weight: of the last layer, (C, D).
        bias: of the last layer, (C,).
        metric: ``f1_macro``, ``balanced_accuracy`` or ``accuracy``.

    Returns:
        The chosen tau, and the scores of all candidates in their order.

    Raises:
        ValueError: unknown metric.
    """
    features, weight, bias = (at_least_float32(tensor) for tensor in (features, weight, bias))
    scores = []
    for tau in adjust.candidates:
        logits = F.linear(features, *adjust(weight, bias, tau))
        scores.append(_score(labels, logits.argmax(dim=1), len(weight), metric))
    best = max(scores)
    return min(tau for tau, score in zip(adjust.candidates, scores, strict=True) if score == best), scores


def _score(labels: Tensor, predicted: Tensor, classes: int, metric: str) -> float:
    matrix = confusion_matrix(labels.cpu().numpy(), predicted.cpu().numpy(), classes)
    if metric == "f1_macro":
        return float(macro_f1(matrix))
    if metric == "balanced_accuracy":
        recall = precision_recall_f1(matrix)[1]
        return float(recall[matrix.sum(axis=1) > 0].mean())
    if metric == "accuracy":
        return float(matrix.trace() / matrix.sum())
    raise ValueError(f"metric={metric}: choose f1_macro, balanced_accuracy or accuracy")


def _checked(candidates: Sequence[float]) -> tuple[float, ...]:
    if not candidates:
        raise UserError("imbalance.adjust.candidates=[]: give at least one number, for example [0,0.5,1]")
    for value in candidates:
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise UserError(f"imbalance.adjust.candidates={value} is out of range: give 0 or more, usually up to 2")
    return tuple(float(candidate) for candidate in candidates)
