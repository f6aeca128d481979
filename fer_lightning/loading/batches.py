"""Training and validation batches made whole, on the device where the images are kept.

A loader hands out places in an epoch instead of images (``Batch``). What they stand for, and what is done to it, is
decided for the whole epoch at once; a step then only indexes and computes, without a copy from the host.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.imbalance import mixing
from fer_lightning.imbalance.samplers import EpochSampler, EvalShard
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.randomness import draw_seed, uniforms


class Draws:
    """The entries of one epoch that one process shows.

    Args:
        epoch: from 0; -1 for validation.
        indices: int64, (n,), positions in the training subset or in the validation set.
        positions: int64, (n,), places in the epoch's global list.
    """

    def __init__(self, epoch: int, indices: Tensor, positions: Tensor) -> None:
        self.epoch = epoch
        self.indices = indices
        self.positions = positions
        self.plan: Any = None
        """What ``TrainingBatches`` makes of them, decided at the first batch."""


class Batch(NamedTuple):
    """The entries ``start`` to ``stop`` of an epoch's draws."""

    draws: Draws
    start: int
    stop: int


class Places(Dataset[Batch]):
    """A data set of what its sampler hands out."""

    def __getitem__(self, batch: Batch) -> Batch:
        return batch


class EpochBatches(Sampler[Batch]):
    """Full batches of a training sampler's epochs.

    Args:
        sampler: decides what an epoch shows.
        batch_size: of this process. The last entries that fill no batch are dropped: a last batch of one image breaks
            batch normalisation, and static shapes are faster.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this at each epoch's start."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        draws = Draws(self.sampler.epoch, *self.sampler.mine())
        for stop in range(self.batch_size, len(draws.indices) + 1, self.batch_size):
            yield Batch(draws, stop - self.batch_size, stop)


class EvalBatches(Sampler[Batch]):
    """Batches of a validation shard in order; the last one may be smaller.

    Args:
        shard: the images of this process.
        batch_size: of this process.
    """

    def __init__(self, shard: EvalShard, batch_size: int) -> None:
        self.shard = shard
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.shard) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = torch.tensor(list(self.shard), dtype=torch.int64)
        draws = Draws(-1, indices, indices)
        for start in range(0, len(indices), self.batch_size):
            yield Batch(draws, start, min(start + self.batch_size, len(indices)))


class KeptImages:
    """Some images of a set, kept once where they are indexed.

    Args:
        images: uint8, (N, 48, 48), the whole set; possibly a memory map, which all processes of a machine share.
        rows: (n,), the images of it that are asked for.
        home: where they are kept: the device that computes, or the CPU.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray, home: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # and nothing writes
            whole = torch.from_numpy(images)
        # On another device only what is asked for; on the CPU nothing is copied at all.
        self.images = whole if home.type == "cpu" else whole[torch.from_numpy(rows)].to(home)
        self.rows = torch.from_numpy(rows) if home.type == "cpu" else torch.arange(len(rows), device=home)

    def at(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images uint8 (B, 48, 48) on ``device``, by their ``indices`` (B,) among ``rows``, on the images' home."""
        return self.images[self.rows[indices]].to(device, non_blocking=True)


class TrainingBatches:
    """Augmented and mixed training batches, a pure function of (seed, epoch, position in the epoch).

    Args:
        images: of the training subset.
        labels: int64, (n,).
        augmentation: applied to every image, and to its partner with a draw of its own.
        seed: of both.
        size: gives the side of the network's input in an epoch.
        device: where batches are computed.
        soft: float32, (n, 7), targets in place of the labels.
        mix: one of ``imbalance.mixing``: joins an image with a partner. Targets are (B, 7) then, not (B,).
    """

    def __init__(
        self,
        images: KeptImages,
        labels: np.ndarray,
        augmentation: BatchedAugmentation,
        seed: int,
        size: Callable[[int], int],
        device: torch.device,
        soft: np.ndarray | None = None,
        mix: Any = None,
    ) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed
        self.size = size
        self.device = device
        self.mix = mix
        self.targets = torch.from_numpy(labels if soft is None else soft).to(device)
        if mix is not None and soft is None:
            self.targets = F.one_hot(self.targets, len(EMOTIONS)).float()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images, uint8 or float32 from 0 to 255, (B, H, W), and targets, int64 (B,) or float32 (B, 7)."""
        draws, start, stop = batch
        if draws.plan is None:
            draws.plan = self._plan(draws)
        own, partners, mixes = draws.plan
        size = self.size(draws.epoch)
        images, targets = self._made(own.rows(start, stop), size)
        if partners is None or mixes is None:
            return images, targets
        return self.mix(images, targets, *self._made(partners.rows(start, stop), size), mixes.rows(start, stop))

    def _made(self, plan: "_Plan", size: int) -> tuple[Tensor, Tensor]:
        images = self.augmentation(self.images.at(plan.at_home, self.device), plan.changes, size)
        return images, self.targets[plan.indices]

    def _plan(self, draws: Draws) -> tuple["_Plan", "_Plan | None", mixing.Mixes | None]:
        seeds = draw_seed(self.seed, draws.epoch, draws.positions.numpy().astype(np.uint64))
        own = self._planned(draws.indices, seeds)
        if self.mix is None:
            return own, None, None
        mixes = self.mix.draw(draws.epoch, uniforms(draw_seed(seeds, 0, 0), mixing.COLUMNS))
        partners = self._planned(mixes.partner.clamp(min=0), draw_seed(seeds, 0, 1))
        return own, partners, mixes.at(self.device)

    def _planned(self, indices: Tensor, seeds: np.ndarray) -> "_Plan":
        changes = self.augmentation.draw(seeds)
        return _Plan(indices.to(self.device), indices.to(self.images.rows.device), changes.to(self.device))


class _Plan(NamedTuple):
    """Which images, by their indices on both devices, and what is done to them; all (n, ...)."""

    indices: Tensor
    at_home: Tensor
    changes: Tensor

    def rows(self, start: int, stop: int) -> "_Plan":
        return _Plan(*(part[start:stop] for part in self))
