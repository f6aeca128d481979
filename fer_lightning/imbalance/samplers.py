"""Which training images an epoch shows, in which order.

Every order is one global list, a pure function of (seed, epoch); rank r of w processes takes every w-th of
its entries from r on. So one and two processes see the same images in the same global batches, and a resumed
epoch has the order of the interrupted one. Lightning must leave these samplers alone:
``Trainer(use_distributed_sampler=False)``.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError


class Draw(NamedTuple):
    """One entry of an epoch.

    Attributes:
        index: position in the training subset.
        epoch: the epoch that it is drawn for.
        position: place in the epoch's global list, the same for any number of processes.
    """

    index: int  # type: ignore[assignment]  # tuple.index is not missed
    epoch: int
    position: int


class EpochSampler(Sampler[Draw]):
    """Base of the training samplers: deals an epoch's global list out to the processes.

    The list is cut to a multiple of the number of processes, so that all make the same number of steps.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: with the epoch, decides the list.
        total: length of the list.
    """

    def __init__(self, labels: np.ndarray, seed: int, total: int) -> None:
        self.labels = np.asarray(labels)
        self.seed = seed
        self.total = total
        self.epoch = 0
        self.done = (-1, 0)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the global list of one epoch: int64, shape (total,), positions in the training subset."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this at each epoch's start."""
        self.epoch = epoch

    def leave_out(self, epoch: int, entries: int) -> None:
        """Leave the first ``entries`` of one epoch's global list out: a resumed run has shown them already."""
        self.done = (epoch, entries)

    def __len__(self) -> int:
        return self.total // _rank_and_world()[1]

    def __iter__(self) -> Iterator[Draw]:
        rank, world = _rank_and_world()
        epoch = self.epoch
        indices = self.draw(_generator(self.seed, _ORDER, epoch)).tolist()
        entries = self.done[1] if self.done[0] == epoch else 0
        for position in range(entries + rank, len(self) * world, world):
            yield Draw(indices[position], epoch, position)


class InstanceSampler(EpochSampler):
    """Every image once per epoch, in a new order each time."""

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        super().__init__(labels, seed, total=len(labels))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return a permutation of all images."""
        return torch.randperm(self.total, generator=generator)


class UnderSampler(EpochSampler):
    """The same number of images of every class, without repetition.

    Args:
        labels: (n,) class of each image of the training subset.
        seed: with the epoch, decides the list.
        per_class: images of each class; None takes as many as the rarest class has.
        redraw: choose the images anew for each epoch (as EasyEnsemble does for each member: Liu et al. 2009,
            "Exploratory Undersampling for Class-Imbalance Learning") rather than once and for all.

    Raises:
        UserError: when per_class is below 1 or above the rarest class.
    """

    def __init__(self, labels: np.ndarray, seed: int, per_class: int | None = None, redraw: bool = False) -> None:
        classes, counts = np.unique(labels, return_counts=True)
        self.per_class = int(counts.min()) if per_class is None else per_class
        if not 1 <= self.per_class <= counts.min():
            rarest = EMOTIONS[classes[counts.argmin()]]
            raise UserError(
                f"per_class={per_class} is out of range: the rarest training class, {rarest}, has "
                f"{counts.min()} images; give 1 to {counts.min()}, or null for all of them"
            )
        super().__init__(labels, seed, total=self.per_class * len(classes))
        self.members = [torch.from_numpy(np.flatnonzero(self.labels == label)) for label in classes]
        self.fixed = None if redraw else self._choose(_generator(seed, _SUBSET))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the epoch's balanced subset in random order."""
        chosen = self._choose(generator) if self.fixed is None else self.fixed
        return chosen[torch.randperm(self.total, generator=generator)]

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
        seed: with the epoch, decides the list.
        power: 0 draws all classes equally often, 0.5 by the square root of their size, 1 by their size.
        num_samples: draws per epoch; None for as many as there are images.

    Raises:
        UserError: when power is outside [0, 1] or num_samples below 1.
    """

    def __init__(self, labels: np.ndarray, seed: int, power: float = 0.0, num_samples: int | None = None) -> None:
        if not 0 <= power <= 1:
            raise UserError(f"power={power} is out of range: give 0 (all classes equally often) to 1 (by their size)")
        if num_samples is not None and num_samples < 1:
            raise UserError(f"num_samples={num_samples} is out of range: give 1 or more, or null for the training size")
        super().__init__(labels, seed, total=len(labels) if num_samples is None else num_samples)
        counts = np.bincount(self.labels)[self.labels]
        self.image_weights = torch.from_numpy(counts.astype(np.float64) ** (power - 1))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return independent draws of images."""
        return torch.multinomial(self.image_weights, self.total, replacement=True, generator=generator)


class EvalShard(Sampler[int]):
    """Every w-th image in order, without padding, so that the processes together see each image exactly once.

    Args:
        total: number of images.
    """

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return len(self._mine())

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine())

    def _mine(self) -> range:
        rank, world = _rank_and_world()
        return range(rank, self.total, world)


_ORDER, _SUBSET = 0, 1  # independent random streams of one seed


def _generator(seed: int, *stream: int) -> torch.Generator:
    """Return a generator that is a pure function of its arguments, unrelated for different ones."""
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _rank_and_world() -> tuple[int, int]:
    # Asked for at iteration time: samplers are built before the processes have found each other.
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
