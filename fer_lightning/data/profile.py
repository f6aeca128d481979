"""Training sets thinned to a chosen imbalance: which images of each class are kept, as pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fer_lightning.config.messages import did_you_mean
from fer_lightning.data.faces import Faces
from fer_lightning.runtime.errors import UserError

SHAPES = ("natural", "exp", "step")


@dataclass(frozen=True)
class Profile:
    """How many training images each class has.

    Attributes:
        shape: ``natural`` (as the data are); ``exp``: n_i = n_1 ratio^(-i / (C - 1)) for i = 0 to C - 1 (Cui et al.
            2019, section 5.1); ``step``: the second half of the classes has n_1 / ratio (Buda et al. 2018, section
            3.1).
        ratio: images of the largest class to those of the smallest, 1 or more.
        total: training images in all; None keeps the largest class as large at every ratio (as the rarest class of the
            data), so that the set of a larger ratio lies within that of a smaller one.
        order: classes from the largest to the smallest; None orders them as the data do.
    """

    shape: str = "natural"
    ratio: float = 1.0
    total: int | None = None
    order: tuple[str, ...] | None = None


def thin(faces: Faces, train: np.ndarray, profile: Profile, seed: int) -> np.ndarray:
    """Thin a training set to a profile.

    The images of a class are shuffled once per seed and the first ones are kept: of two profiles, the images of a class
    in the one that has fewer of them are all in the other.

    Args:
        faces: the data.
        train: int64, (n,), training images.
        profile: wanted class sizes.
        seed: of the choice of images.

    Returns:
        int64, (m,), a part of ``train``; class by class.

    Raises:
        UserError: the data have too few images of a class, or the ratio leaves none of one.
    """
    if profile.shape == "natural":
        return train
    available = faces.count(train)
    sizes = class_sizes(profile, available, faces.classes)
    chosen = []
    for label, size in enumerate(sizes):
        rng = np.random.default_rng([seed, label, *b"profile"])
        chosen.append(rng.permutation(train[faces.labels[train] == label])[:size])
    return np.concatenate(chosen)


def class_sizes(profile: Profile, available: Sequence[int], classes: Sequence[str]) -> list[int]:
    """Images of each class under a profile, in the order of ``classes``.

    Args:
        profile: ``exp`` or ``step``.
        available: training images of each class.
        classes: their names.

    Raises:
        UserError: as ``thin``.
    """
    order = _order(profile.order, available, classes)
    weights = _weights(profile, len(classes))
    largest = min(available) if profile.total is None else profile.total / sum(weights)
    sizes = [math.floor(largest * weight + 0.5) for weight in weights]
    if profile.total is not None:
        sizes[0] += profile.total - sum(sizes)  # what rounding left
    setting = f"split.ratio={profile.ratio:g}" + (f" split.total={profile.total}" if profile.total is not None else "")
    if min(sizes) < 1:
        raise UserError(
            f"{setting}: leaves no image of {classes[order[-1]]}; give a ratio of at most {int(largest)}, or a larger "
            "split.total"
        )
    lacking = [
        f"{classes[label]} ({available[label]:,} of {size:,})"
        for label, size in zip(order, sizes, strict=True)
        if size > available[label]
    ]
    if lacking:
        reachable = min(available[label] / weight for label, weight in zip(order, weights, strict=True))
        most = math.floor(sum(weights) * reachable)
        raise UserError(
            f"{setting}: the data have too few training images of {', '.join(lacking)}; give split.total={most} or less"
        )
    by_class = dict(zip(order, sizes, strict=True))
    return [by_class[label] for label in range(len(classes))]


def _weights(profile: Profile, classes: int) -> list[float]:
    """Size of each class relative to the largest, from the largest on."""
    if profile.shape == "exp":
        return [profile.ratio ** (-place / (classes - 1)) for place in range(classes)]
    return [1.0 if place < classes - classes // 2 else 1 / profile.ratio for place in range(classes)]


def _order(order: Sequence[str] | None, available: Sequence[int], classes: Sequence[str]) -> list[int]:
    if order is None:
        return sorted(range(len(classes)), key=lambda label: -available[label])
    for name in order:
        if name not in classes:
            hint = did_you_mean(name, list(classes))
            raise UserError(f"split.order: no class {name}{hint}; give all of {', '.join(classes)}")
    if len(order) != len(classes) or len(set(order)) != len(order):
        raise UserError(f"split.order={','.join(order)}: give each of {', '.join(classes)} once, the largest first")
    return [classes.index(name) for name in order]
