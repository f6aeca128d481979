"""Class weights and priors from class counts."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fer_lightning.config.messages import did_you_mean
from fer_lightning.runtime.errors import UserError, require

SCHEMES = ("none", "inverse", "inverse_sqrt", "effective")
"""Dependence of a class's weight on its number of images."""

NORMALIZATIONS = ("balanced", "sum_C", "sum_1")
"""Scale of the weights: mean 1 over images, sum C over classes, or sum 1 over classes."""

MOST_SHOWN = 20
"""Most classes whose weights are shown one by one."""


def class_weights(
    class_counts: Sequence[int],
    scheme: str,
    normalization: str = "balanced",
    beta: float = 0.9999,
    power: float | None = None,
) -> Tensor:
    """Weight of each class in a loss.

    Schemes, for a class of n images:
        ``none``: 1.
        ``inverse``: 1 / n.
        ``inverse_sqrt``: 1 / sqrt(n).
        ``effective``: (1 - beta) / (1 - beta^n), the inverse effective number of samples
        (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", eq. 2).

    Normalizations, for C classes with shares pi of the images:
        ``balanced``: sum(pi * w) = 1, a mean weight of 1 over the images, which preserves the scale of the expected
        gradient; with ``inverse`` this is N / (C n), scikit-learn's "balanced".
        ``sum_C``: sum(w) = C.
        ``sum_1``: sum(w) = 1; with ``inverse`` on FER-2013 this also acts like dividing SGD's learning rate by 15.

    Args:
        class_counts: number of training images of each class, in label order.
        scheme: one of ``SCHEMES``.
        normalization: one of ``NORMALIZATIONS``.
        beta: of ``effective``, in [0, 1); 0 gives equal weights, towards 1 it approaches ``inverse``.
        power: weights n^-power in place of ``scheme``: 0 ``none``, 0.5 ``inverse_sqrt``, 1 ``inverse``.

    Returns:
        float64 tensor of shape (C,).

    Raises:
        UserError: the scheme or normalization is unknown, beta is outside [0, 1), or a class has no images and the
            weights depend on their number.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown weighting {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if normalization not in NORMALIZATIONS:
        raise UserError(f"unknown normalization {normalization!r}: choose one of {', '.join(NORMALIZATIONS)}")
    if not 0 <= beta < 1:
        raise UserError(f"beta={beta} is out of range: it must be at least 0 and below 1, for example 0.9999")
    counts = _counts(class_counts)
    rule = f"weighting {scheme!r}" if power is None else f"power={power}"
    if (scheme != "none" if power is None else power != 0) and counts.min() == 0:
        raise UserError(
            f"{rule} needs a training image of every class, but class_counts="
            f"{list(class_counts)} has 0 for class {int(counts.argmin())}: use none or a larger training set"
        )

    weights = counts**-power if power is not None else _of_scheme(counts, scheme, beta)
    if normalization == "balanced":
        return weights * counts.sum() / (weights * counts).sum()
    scale = len(counts) if normalization == "sum_C" else 1
    return weights * scale / weights.sum()


def _of_scheme(counts: Tensor, scheme: str, beta: float) -> Tensor:
    if scheme == "inverse":
        return 1 / counts
    if scheme == "inverse_sqrt":
        return counts.rsqrt()
    if scheme == "effective":
        # expm1 computes 1 - beta^n without loss of precision when beta is close to 1.
        return (1 - beta) / -torch.expm1(counts * torch.tensor(beta, dtype=torch.float64).log())
    return torch.ones_like(counts)


def weights_by_class(weights: Mapping[str, float], classes: Sequence[str]) -> list[float]:
    """Weights given by name, in label order; the other classes have 1.

    Raises:
        UserError: no class has such a name, or a weight is not a finite number above 0.
    """
    for name, weight in weights.items():
        if name not in classes:
            hint = did_you_mean(str(name), list(classes))
            raise UserError(
                f"imbalance.loss.weights={{{name}: {weight}}}: no such class{hint}; accepted: {', '.join(classes)}"
            )
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf
        require(is_number, f"imbalance.loss.weights.{name}", weight, "must be a number above 0")
    return [float(weights.get(name, 1)) for name in classes]


def weights_in_words(loss: nn.Module, classes: Sequence[str]) -> str:
    """The class weights that a loss holds as a buffer ``weight``, (C,): ``happy 0.57, disgust 9.4``.

    Of more than ``MOST_SHOWN`` classes the smallest and the largest; empty where there are none, or all are equal.
    """
    held = [buffer for name, buffer in loss.named_buffers() if name.rpartition(".")[2] == "weight"]
    if not held or held[0].shape != (len(classes),) or bool((held[0] == held[0][0]).all()):
        return ""
    pairs = list(zip(classes, held[0].tolist(), strict=True))
    if len(pairs) <= MOST_SHOWN:
        return ", ".join(f"{name} {weight:.3g}" for name, weight in pairs)
    (low, least), (high, most) = (choose(pairs, key=lambda pair: pair[1]) for choose in (min, max))
    return f"{least:.3g} ({low}) to {most:.3g} ({high})"


def log_prior(class_counts: Sequence[int]) -> Tensor:
    """Logarithm of each class's share of the training images.

    Args:
        class_counts: number of training images of each class, in label order.

    Returns:
        float64 tensor of shape (C,).

    Raises:
        UserError: a class has no images.
    """
    counts = _counts(class_counts)
    if counts.min() == 0:
        raise UserError(
            f"logit adjustment needs a training image of every class, but class_counts={list(class_counts)} "
            f"has 0 for class {int(counts.argmin())}: use imbalance=none or a larger training set"
        )
    return (counts / counts.sum()).log()


def _counts(class_counts: Sequence[int]) -> Tensor:
    counts = torch.tensor([int(count) for count in class_counts], dtype=torch.float64)
    if len(counts) == 0 or counts.min() < 0 or counts.sum() == 0:
        raise UserError(f"class_counts={list(class_counts)}: one count per class is needed, not all of them 0")
    return counts
