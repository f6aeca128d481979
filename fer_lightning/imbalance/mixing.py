"""Training images mixed of two: mixup, Remix and CMO.

Each mixer chooses a partner for an image and joins the two. All randomness comes from the generator that is handed
in, so the result is a pure function of (seed, epoch, position). Targets are distributions over the classes; a loss
meets them through ``losses.expected_loss``, so that weights, margins and p_t stay those of each component.
"""

import math

import numpy as np

from fer_lightning.errors import UserError


class Mixup:
    """A weighted mean of two images and of their targets, lam ~ Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". Partners are drawn uniformly from the training
    images whatever the sampler: a rebalancing sampler would mix the same few images of a rare class with each other.

    Args:
        labels: (n,) class of each image of the training subset.
        alpha: of the Beta distribution, above 0; small values leave most images nearly alone.
        prob: probability that an image is mixed at all.

    Raises:
        UserError: for a knob out of range.
    """

    def __init__(self, labels: np.ndarray, alpha: float = 0.2, prob: float = 1.0) -> None:
        self.images = len(labels)
        self.alpha = _checked_alpha(alpha)
        self.prob = _checked_prob(prob)

    def partner(self, epoch: int, rng: np.random.Generator) -> int | None:
        """Index of the training image to mix in, or None for none."""
        return int(rng.integers(self.images)) if rng.random() < self.prob else None

    def __call__(
        self,
        image: np.ndarray,
        target: np.ndarray,
        other: np.ndarray,
        other_target: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mix ``other`` into ``image``.

        Args:
            image: uint8 (H, W), augmented; ``other`` likewise.
            target: float32 (C,), sums to 1; ``other_target`` likewise.
            rng: decides the proportions.

        Returns:
            uint8 (H, W) and float32 (C,), new arrays.
        """
        lam = float(rng.beta(self.alpha, self.alpha))
        mixed = lam * image.astype(np.float32) + (1 - lam) * other.astype(np.float32)
        return np.rint(mixed).astype(np.uint8), _blend(
            target, other_target, self.label_share(lam, target, other_target)
        )

    def label_share(self, lam: float, target: np.ndarray, other_target: np.ndarray) -> float:
        """Share of ``target`` in the mixed target of an image that has the share ``lam`` of its pixels."""
        return lam


class Remix(Mixup):
    """Mixup that gives the whole label to the rarer class where the classes are far apart.

    Chou et al. 2020, "Remix: Rebalanced Mixup", section 3. The class of a soft target is its largest.

    Args:
        labels: (n,) class of each image of the training subset.
        alpha: of the Beta distribution, above 0.
        prob: probability that an image is mixed at all.
        kappa: ratio of class sizes from which on the label is moved, at least 1.
        tau: share of pixels below which the larger class loses its label, from 0 (plain mixup) to 1.

    Raises:
        UserError: for a knob out of range.
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
        self.counts = np.bincount(labels)

    def label_share(self, lam: float, target: np.ndarray, other_target: np.ndarray) -> float:
        """See ``remix_share``."""
        count, other_count = (int(self.counts[part.argmax()]) for part in (target, other_target))
        return remix_share(count, other_count, lam, self.kappa, self.tau)


def remix_share(count: int, other_count: int, lam: float, kappa: float, tau: float) -> float:
    """Share of the first image's label, whose class has ``count`` images and whose pixels have the share ``lam``.

    0 where its class is at least kappa times larger and lam < tau, 1 where it is at least kappa times smaller and
    1 - lam < tau, else lam (Chou et al. 2020, section 3).
    """
    if count >= kappa * other_count and lam < tau:
        return 0.0
    if kappa * count <= other_count and 1 - lam < tau:
        return 1.0
    return lam


class CMO:
    """CutMix whose pasted rectangle comes from a rare class, on the background that the sampler drew.

    Park et al. 2022, "The Majority Can Help the Minority: Context-rich Minority Oversampling", section 3. The share
    of the background in the target is its share of the pixels, counted after the rectangle is cut at the border.

    Args:
        labels: (n,) class of each image of the training subset.
        epochs: length of the run.
        prob: probability that an image is mixed at all.
        alpha: of the Beta distribution of the background's share, above 0.
        weighted_alpha: an image of a class of n is drawn with weight n^-weighted_alpha; 1 draws all classes
            equally often, 0 all images.
        off_epochs: number of first, and of last, epochs without mixing.

    Raises:
        UserError: for a knob out of range, or a run of no more epochs than are left out.
    """

    def __init__(
        self,
        labels: np.ndarray,
        epochs: int,
        prob: float = 0.5,
        alpha: float = 1.0,
        weighted_alpha: float = 1.0,
        off_epochs: int = 3,
    ) -> None:
        if not 0 <= weighted_alpha < math.inf:
            raise UserError(f"weighted_alpha={weighted_alpha} is out of range: it must be 0 or more, usually 1")
        if not 0 <= 2 * off_epochs < epochs:
            raise UserError(
                f"imbalance.mix.off_epochs={off_epochs}: with trainer.max_epochs={epochs} it must be 0 or more and "
                f"leave an epoch to mix in, so at most {(epochs - 1) // 2}"
            )
        self.alpha = _checked_alpha(alpha)
        self.prob = _checked_prob(prob)
        self.mixed_epochs = range(off_epochs, epochs - off_epochs)
        weights = np.bincount(labels)[labels].astype(np.float64) ** -weighted_alpha
        self.cumulative = np.cumsum(weights / weights.sum())

    def partner(self, epoch: int, rng: np.random.Generator) -> int | None:
        """Index of the training image to cut from, or None for none."""
        if epoch not in self.mixed_epochs or rng.random() >= self.prob:
            return None
        drawn = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        return min(drawn, len(self.cumulative) - 1)  # the sum may round to less than 1

    def __call__(
        self,
        image: np.ndarray,
        target: np.ndarray,
        other: np.ndarray,
        other_target: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paste a rectangle of ``other`` onto ``image``; arguments and result as ``Mixup``'s."""
        box = cut_box(image.shape[0], image.shape[1], float(rng.beta(self.alpha, self.alpha)), rng)
        pasted = image.copy()
        pasted[box] = other[box]
        return pasted, _blend(target, other_target, 1 - image[box].size / image.size)


def cut_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle of the share 1 - lam of an image, around any pixel, cut at the border.

    Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers", section 3.
    """
    side = math.sqrt(1 - lam)
    rows, columns = (_cut(length, int(length * side), int(rng.integers(length))) for length in (height, width))
    return rows, columns


def _cut(length: int, size: int, middle: int) -> slice:
    return slice(max(0, middle - size // 2), min(length, middle + size // 2))


def _blend(target: np.ndarray, other_target: np.ndarray, share: float) -> np.ndarray:
    return (share * target + (1 - share) * other_target).astype(np.float32)


def _checked_alpha(alpha: float) -> float:
    if not 0 < alpha < math.inf:
        raise UserError(f"alpha={alpha} is out of range: the Beta distribution needs an alpha above 0")
    return alpha


def _checked_prob(prob: float) -> float:
    if not 0 <= prob <= 1:
        raise UserError(f"prob={prob} is out of range: it must be from 0 to 1")
    return prob
