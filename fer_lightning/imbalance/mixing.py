"""Mixing pairs of training images: mixup, Remix and CMO.

``sample_mixes`` chooses partners and proportions for a whole epoch or for single images from random numbers passed as
an argument, so that the result is a pure function of (seed, epoch, position). Calling the mixer applies them to
batches. Targets are distributions over the classes. Losses use them through ``functional.expected_loss``, so that every
class in a mixed target keeps its own weight, margin and p_t.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from torch import Tensor

from fer_lightning.runtime.errors import UserError, require

COLUMNS = 5
"""Random numbers in [0, 1) that a mixer needs per image."""

GRID = 48
"""Side in pixels of the grid in which rectangles are specified, for images of any size; FER-2013's image size."""


class Mixes(NamedTuple):
    """How each of n images is mixed.

    Attributes:
        partner: int64, (n,), position of the partner in the training subset; -1 for none.
        share: float32, (n,), share of the image itself in the result; 1 without a partner.
        box: int64, (n, 4), rectangle that the partner replaces: top, bottom, left, right in pixels of ``GRID``;
            all 0 without a partner, and for mixup and Remix.
    """

    partner: Tensor
    share: Tensor
    box: Tensor

    def at(self, device: torch.device) -> "Mixes":
        """Copy to a device."""
        return Mixes(*(part.to(device) for part in self))

    def rows(self, start: int, stop: int) -> "Mixes":
        """Select the images from ``start`` up to, but not including, ``stop``."""
        return Mixes(*(part[start:stop] for part in self))


class Mixup:
    """A weighted mean of two images and of their targets, lam ~ Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". Partners are drawn uniformly from the training
    images, independently of the sampler: a rebalancing sampler would often mix the few images of a rare class with
    each other.

    Args:
        labels: (n,) class of each image of the training subset.
        alpha: of the Beta distribution, above 0; small values leave most images almost unchanged.
        prob: probability that an image is mixed.

    Raises:
        UserError: alpha or prob is out of range.
    """

    def __init__(self, labels: np.ndarray, alpha: float = 0.2, prob: float = 1.0) -> None:
        self.images = len(labels)
        self.alpha = _checked_alpha(alpha)
        self.prob = _checked_prob(prob)

    def sample_mixes(self, epoch: int, numbers: np.ndarray) -> Mixes:
        """Sample how each of n images is mixed.

        Args:
            epoch: from 0.
            numbers: (n, COLUMNS), independent and uniform in [0, 1).

        Returns:
            The partner and share of each image.
        """
        mixed, partner, lam = numbers.T[:3].astype(np.float64)
        partner = np.where(mixed < self.prob, np.floor(partner * self.images), -1)
        return _mixes(partner, scipy.special.betaincinv(self.alpha, self.alpha, lam), np.zeros((len(numbers), 4)))

    def __call__(
        self, images: Tensor, targets: Tensor, others: Tensor, other_targets: Tensor, mixes: Mixes
    ) -> tuple[Tensor, Tensor]:
        """Mix ``others`` into ``images``.

        Args:
            images: (B, H, W) or (B, 3, H, W), augmented; uint8, or floating point from 0 to 255. ``others`` likewise.
            targets: float32 (B, C), rows sum to 1; ``other_targets`` likewise.
            mixes: of these images, on their device.

        Returns:
            New tensors of images and targets, with the shapes and types of the arguments; values without a partner
            are unchanged.
        """
        one_each = (-1, *(1,) * (images.ndim - 1))
        share = mixes.share.view(one_each)
        mixed = share * images.float() + (1 - share) * others.float()
        mixed = torch.where(mixes.partner.view(one_each) < 0, images, _as_kind_of(images, mixed))
        return mixed, _blend(targets, other_targets, self.label_share(mixes, targets, other_targets))

    def label_share(self, mixes: Mixes, targets: Tensor, other_targets: Tensor) -> Tensor:
        """Share of ``targets`` in the mixed targets, (B,)."""
        return mixes.share


class Remix(Mixup):
    """Mixup that gives the whole label to the rarer class if the class sizes differ by a factor of kappa or more.

    Chou et al. 2020, "Remix: Rebalanced Mixup", section 3. The class of a soft target is its most probable one.

    Args:
        labels: (n,) class of each image of the training subset.
        alpha: of the Beta distribution, above 0.
        prob: probability that an image is mixed.
        kappa: minimum ratio of class sizes for which the label is changed, at least 1.
        tau: mixing share below which the larger class loses its label, from 0 (plain mixup) to 1.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self, labels: np.ndarray, alpha: float = 0.2, prob: float = 1.0, kappa: float = 3.0, tau: float = 0.5
    ) -> None:
        super().__init__(labels, alpha, prob)
        if not 1 <= kappa < math.inf:
            raise UserError(f"kappa={kappa} is out of range: it is a ratio of class sizes, 1 or more, usually 3")
        if not 0 <= tau <= 1:
            raise UserError(f"tau={tau} is out of range: it is a share, from 0 (plain mixup) to 1, usually 0.5")
        self.kappa = kappa
        self.tau = tau
        self.counts = torch.from_numpy(np.bincount(labels))

    def label_share(self, mixes: Mixes, targets: Tensor, other_targets: Tensor) -> Tensor:
        """Share of ``targets`` in the mixed targets, (B,), see ``remix_share``; 1 without a partner."""
        self.counts = self.counts.to(targets.device)
        count, other_count = (self.counts[part.argmax(dim=1)] for part in (targets, other_targets))
        share = remix_share(count, other_count, mixes.share, self.kappa, self.tau)
        return torch.where(mixes.partner < 0, mixes.share, share)


def remix_share(count: Tensor, other_count: Tensor, lam: Tensor, kappa: float, tau: float) -> Tensor:
    """Share of the first image's label in the mixed target, when its mixing share is ``lam``.

    0 where its class, with ``count`` images, is at least kappa times as large as the other and lam < tau; 1 where the
    other is at least kappa times as large and 1 - lam < tau; else lam (Chou et al. 2020, section 3). All (B,).
    """
    moved = torch.where((kappa * count <= other_count) & (1 - lam < tau), 1.0, lam)
    return torch.where((count >= kappa * other_count) & (lam < tau), 0.0, moved)


class CMO:
    """CutMix that pastes a rectangle of an image drawn in favour of rare classes onto the sampler's image.

    Park et al. 2022, "The Majority Can Help the Minority: Context-rich Minority Oversampling", section 3. The share
    of the background in the target is its share of the pixels, computed after clipping the rectangle at the border.

    Args:
        labels: (n,) class of each image of the training subset.
        epochs: length of the run.
        prob: probability that an image is mixed.
        alpha: of the Beta distribution of the background's share, above 0.
        weighted_alpha: an image of a class of n is drawn with weight n^-weighted_alpha; 1 draws all classes
            equally often, 0 draws all images equally often.
        off_share: share of the epochs without mixing, both at the start and at the end of the run, below 0.5; at
            least one epoch mixes. The authors leave out 3 of 200.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        labels: np.ndarray,
        epochs: int,
        prob: float = 0.5,
        alpha: float = 1.0,
        weighted_alpha: float = 1.0,
        off_share: float = 0.015,
    ) -> None:
        if not 0 <= weighted_alpha < math.inf:
            raise UserError(f"weighted_alpha={weighted_alpha} is out of range: it must be 0 or more, usually 1")
        require(0 <= off_share < 0.5, "imbalance.mix.off_share", off_share, "must be 0 or more and below 0.5")
        self.alpha = _checked_alpha(alpha)
        self.prob = _checked_prob(prob)
        off = min(round(off_share * epochs), (epochs - 1) // 2)
        self.mixed_epochs = range(off, epochs - off)
        weights = np.bincount(labels)[labels].astype(np.float64) ** -weighted_alpha
        self.cumulative = np.cumsum(weights / weights.sum())

    def sample_mixes(self, epoch: int, numbers: np.ndarray) -> Mixes:
        """Sample how each of n images is mixed; as ``Mixup.sample_mixes``."""
        mixed, partner, lam, row, column = numbers.T.astype(np.float64)
        drawn = np.searchsorted(self.cumulative, partner, side="right")
        drawn = np.minimum(drawn, len(self.cumulative) - 1)  # the sum may round to less than 1
        is_mixed = (mixed < self.prob) & (epoch in self.mixed_epochs)
        box = cut_boxes(scipy.special.betaincinv(self.alpha, self.alpha, lam), row, column)
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        return _mixes(np.where(is_mixed, drawn, -1), 1 - area / GRID**2, box)

    def __call__(
        self, images: Tensor, targets: Tensor, others: Tensor, other_targets: Tensor, mixes: Mixes
    ) -> tuple[Tensor, Tensor]:
        """Paste rectangles of ``others`` onto ``images``; arguments and result as for ``Mixup``."""
        top, bottom, left, right = mixes.box.T[:, :, None]
        rows, columns = (torch.arange(side, device=images.device) * GRID // side for side in images.shape[-2:])
        inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
        inside = inside if images.ndim == 3 else inside.unsqueeze(1)
        return torch.where(inside, others, images), _blend(targets, other_targets, mixes.share)


def cut_boxes(lam: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Rectangles with the share 1 - lam of an image's area around a random centre, clipped at the border.

    Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers", section 3.

    Args:
        lam: (n,), from 0 to 1.
        row: (n,), relative position of the centre, in [0, 1); ``column`` likewise.

    Returns:
        int64, (n, 4): top, bottom, left, right in pixels of ``GRID``.
    """
    half = (GRID * np.sqrt(1 - lam)).astype(np.int64) // 2
    middles = (np.floor(part * GRID).astype(np.int64) for part in (row, column))
    return np.stack(
        [side for middle in middles for side in (np.maximum(0, middle - half), np.minimum(GRID, middle + half))], axis=1
    )


def _mixes(partner: np.ndarray, share: np.ndarray, box: np.ndarray) -> Mixes:
    alone = partner < 0
    return Mixes(
        torch.from_numpy(partner.astype(np.int64)),
        torch.from_numpy(np.where(alone, 1.0, share).astype(np.float32)),
        torch.from_numpy(np.where(alone[:, None], 0, box).astype(np.int64)),
    )


def _blend(targets: Tensor, other_targets: Tensor, share: Tensor) -> Tensor:
    return share[:, None] * targets + (1 - share[:, None]) * other_targets


def _as_kind_of(images: Tensor, mixed: Tensor) -> Tensor:
    return mixed if images.is_floating_point() else mixed.round().to(images.dtype)


def _checked_alpha(alpha: float) -> float:
    if not 0 < alpha < math.inf:
        raise UserError(f"alpha={alpha} is out of range: the Beta distribution needs an alpha above 0")
    return alpha


def _checked_prob(prob: float) -> float:
    if not 0 <= prob <= 1:
        raise UserError(f"prob={prob} is out of range: it must be from 0 to 1")
    return prob
