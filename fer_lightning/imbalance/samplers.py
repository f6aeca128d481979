"""Samplers: which training images an epoch contains, and in which order.

The order of an epoch is one global list, a pure function of (seed, epoch); rank r of w processes takes every w-th
entry, starting with entry r. Thus any number of processes sees the same images in the same global batches, and a
resumed epoch has the order of the interrupted one. Lightning must not replace these samplers:
``Trainer(use_distributed_sampler=False)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from fer_lightning.runtime.errors import UserError

BUDGETS = ("steps", "epochs")
"""Length of an epoch over a subset: ``steps``, as many images as the training set; ``epochs``, one pass."""


class Entry(NamedTuple):
    """One entry of an epoch.

    Attributes:
        index: position in the training subset.
        epoch: epoch of the entry.
        position: position in the epoch's global list, independent of the number of processes.
    """

    index: int  # type: ignore[assignment]  # overrides tuple.index, which is not used
    epoch: int
    position: int


class EpochSampler(Sampler[Entry], ABC):
    """Base of the training samplers: distributes an epoch's global list over the processes.

    The list is truncated to a multiple of the number of processes, so that all processes make the same number of steps.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: determines the list, together with the epoch.
        total: length of the list.
    """

    def __init__(self, labels: np.ndarray, seed: int, total: int) -> None:
        self.labels = np.asarray(labels)
        self.seed = seed
        self.total = total
        self.epoch = 0
        self.done = (-1, 0)

    @abstractmethod
    def sample_epoch(self, generator: torch.Generator) -> Tensor:
        """Return the global list of ``self.epoch``: int64, shape (total,), positions in the training subset."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def leave_out(self, epoch: int, entries: int) -> None:
        """Skip the first ``entries`` of one epoch's global list, on which the interrupted run has trained already."""
        self.done = (epoch, entries)

    def __len__(self) -> int:
        return self.total // _rank_and_world()[1]

    def rank_entries(self) -> tuple[Tensor, Tensor]:
        """Indices and positions, each int64 (n,), of this process's entries of ``self.epoch``."""
        rank, world = _rank_and_world()
        entries = self.done[1] if self.done[0] == self.epoch else 0
        positions = torch.arange(entries + rank, max(entries + rank, len(self) * world), world)
        return self.sample_epoch(_generator(self.seed, _ORDER, self.epoch))[positions], positions

    def __iter__(self) -> Iterator[Entry]:
        epoch = self.epoch
        for index, position in zip(*(part.tolist() for part in self.rank_entries()), strict=True):
            yield Entry(index, epoch, position)


class InstanceSampler(EpochSampler):
    """Every image once per epoch, in a new order each time."""

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        super().__init__(labels, seed, total=len(labels))

    def sample_epoch(self, generator: torch.Generator) -> Tensor:
        """Return a permutation of all images."""
        return torch.randperm(self.total, generator=generator)


class UnderSampler(EpochSampler):
    """The same number of images of every class.

    One pass contains each selected image once. With the budget ``steps``, an epoch repeats passes, truncating the last
    one, until it has as many entries as the training set has images. All methods then train for the same number of
    steps.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: determines the list, together with the epoch.
        per_class: images of each class; None takes as many as the rarest class has.
        redraw: select the images again for each pass instead of once per run (as EasyEnsemble does for each member:
            Liu et al. 2009, "Exploratory Undersampling for Class-Imbalance Learning").
        budget: one of ``BUDGETS``.

    Raises:
        UserError: per_class is below 1 or above the size of the rarest class, or the budget is unknown.
    """

    def __init__(
        self,
        labels: np.ndarray,
        seed: int,
        per_class: int | None = None,
        redraw: bool = False,
        budget: str = "steps",
    ) -> None:
        classes, counts = np.unique(labels, return_counts=True)
        self.per_class = int(counts.min()) if per_class is None else per_class
        if not 1 <= self.per_class <= counts.min():
            raise UserError(
                f"per_class={per_class} is out of range: the rarest training class has {counts.min()} images; "
                f"give 1 to {counts.min()}, or null for all of them"
            )
        if budget not in BUDGETS:
            raise UserError(f"budget={budget}: unknown; choose one of {', '.join(BUDGETS)}")
        super().__init__(labels, seed, total=len(labels) if budget == "steps" else self.per_class * len(classes))
        self.members = [torch.from_numpy(np.flatnonzero(self.labels == label)) for label in classes]
        self.fixed = None if redraw else self._choose(_generator(seed, _SUBSET))

    def sample_epoch(self, generator: torch.Generator) -> Tensor:
        """Return passes over balanced subsets, each in random order."""
        passes = -(-self.total // (self.per_class * len(self.members)))
        return torch.cat([self._pass(generator) for _ in range(passes)])[: self.total]

    def _pass(self, generator: torch.Generator) -> Tensor:
        chosen = self._choose(generator) if self.fixed is None else self.fixed
        return chosen[torch.randperm(len(chosen), generator=generator)]

    def _choose(self, generator: torch.Generator) -> Tensor:
        return torch.cat(
            [images[torch.randperm(len(images), generator=generator)[: self.per_class]] for images in self.members]
        )


class ClassWeightedSampler(EpochSampler):
    """Images drawn with replacement, class j with probability n_j^power / sum_k n_k^power.

    Within a class all images are equally likely. Kang et al. 2020, "Decoupling Representation and Classifier
    for Long-Tailed Recognition", eq. 1.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: determines the list, together with the epoch.
        power: class probabilities are equal for 0, proportional to the square root of the class size for 0.5, and
            proportional to the class size for 1.
        num_samples: draws per epoch, at least 1; None for the number of training images.

    Raises:
        UserError: power is outside [0, 1].
    """

    def __init__(self, labels: np.ndarray, seed: int, power: float = 0.0, num_samples: int | None = None) -> None:
        _check_power(power)
        super().__init__(labels, seed, total=len(labels) if num_samples is None else num_samples)
        self.image_weights = _image_weights(self.labels, power)

    def sample_epoch(self, generator: torch.Generator) -> Tensor:
        """Return independent draws of images."""
        return torch.multinomial(self.image_weights, self.total, replacement=True, generator=generator)


class ProgressiveSampler(EpochSampler):
    """Move from instance to class-balanced sampling over the run: p_j = (1 - t/T) n_j / N + (t/T) / C.

    p_j is the probability of class j, t the epoch from 0, T the last epoch. Images are drawn with replacement, within a
    class all with the same probability. Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed
    Recognition", section 3.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: determines the list, together with the epoch.
        epochs: length of the run.
    """

    def __init__(self, labels: np.ndarray, seed: int, epochs: int) -> None:
        super().__init__(labels, seed, total=len(labels))
        self.epochs = epochs
        self.instance, self.balanced = _image_weights(self.labels, 1.0), _image_weights(self.labels, 0.0)

    def sample_epoch(self, generator: torch.Generator) -> Tensor:
        """Return independent draws of images with the probabilities of the current epoch."""
        progress = min(1.0, self.epoch / max(1, self.epochs - 1))
        shares = (1 - progress) * self.instance + progress * self.balanced
        return torch.multinomial(shares, self.total, replacement=True, generator=generator)


class TwoStageSampler(EpochSampler):
    """Instance sampling in the first stage, class-weighted sampling in the second.

    Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition", section 4.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: determines the list, together with the epoch.
        epochs: length of the whole run; see ``first_stage_epochs`` for this and the next two arguments.
        share: share of the epochs that belong to the second stage.
        first_stage: checkpoint of a completed first stage, or None.
        power: of the second stage, as in ``ClassWeightedSampler``; 0 draws all classes equally often.

    Raises:
        UserError: power is outside [0, 1].
    """

    def __init__(
        self,
        labels: np.ndarray,
        seed: int,
        epochs: int,
        share: float = 0.25,
        first_stage: str | None = None,
        power: float = 0.0,
    ) -> None:
        _check_power(power)
        super().__init__(labels, seed, total=len(labels))
        self.first_epochs = first_stage_epochs(epochs, share, first_stage)
        self.image_weights = _image_weights(self.labels, power)

    def sample_epoch(self, generator: torch.Generator) -> Tensor:
        """Return a permutation in the first stage, independent draws in the second."""
        if self.epoch < self.first_epochs:
            return torch.randperm(self.total, generator=generator)
        return torch.multinomial(self.image_weights, self.total, replacement=True, generator=generator)


def first_stage_epochs(epochs: int, share: float, first_stage: str | None) -> int:
    """Number of epochs of the first of two stages; the second has the remaining epochs of the run.

    Args:
        epochs: length of the whole run.
        share: share of the second stage, above 0 and below 1; each stage has at least one epoch, and a run of one
            epoch has the second stage alone.
        first_stage: checkpoint of a completed first stage, or None; with a checkpoint the result is 0.
    """
    if first_stage is not None or epochs == 1:
        return 0
    return epochs - min(epochs - 1, max(1, round(share * epochs)))


class EvalShard(Sampler[int]):
    """Every w-th image in order, without padding, so that w processes together see each image exactly once.

    Args:
        total: number of images.
    """

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return len(self._positions())

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions())

    def _positions(self) -> range:
        rank, world = _rank_and_world()
        return range(rank, self.total, world)


def _check_power(power: float) -> None:
    if not 0 <= power <= 1:
        raise UserError(f"power={power} is out of range: give 0 (all classes equally often) to 1 (by their size)")


def _image_weights(labels: np.ndarray, power: float) -> Tensor:
    """Probability of each image, float64 (n,), when class j has n_j^power / sum_k n_k^power."""
    weights = np.bincount(labels)[labels].astype(np.float64) ** (power - 1)
    return torch.from_numpy(weights / weights.sum())


_ORDER, _SUBSET = 0, 1  # independent random streams of one seed


def _generator(seed: int, *stream: int) -> torch.Generator:
    """Return a generator that is a pure function of its arguments and independent for different ones."""
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _rank_and_world() -> tuple[int, int]:
    # Read at iteration time: samplers are built before the process group is initialised.
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
