"""Training and validation batches, made in one piece on the device where the images are kept.

The loader yields ranges of an epoch's entries instead of images (``Batch``). Which images they are and how they are
changed is decided for the whole epoch at once; a step then only indexes and computes, without a copy from the host.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fer_lightning.imbalance import mixing
from fer_lightning.imbalance.samplers import EpochSampler, EvalShard
from fer_lightning.loading.augment_batches import BatchedAugmentation, select
from fer_lightning.loading.randomness import entry_seed, uniforms


class EpochEntries:
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
        """Set by ``TrainingBatches`` at the first batch."""


class Batch(NamedTuple):
    """The entries ``start`` to ``stop`` of an epoch."""

    entries: EpochEntries
    start: int
    stop: int


class BatchDataset(Dataset[Batch]):
    """The data set of a loader whose sampler yields batches: each index is its own item."""

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
        entries = EpochEntries(self.sampler.epoch, *self.sampler.rank_entries())
        for stop in range(self.batch_size, len(entries.indices) + 1, self.batch_size):
            yield Batch(entries, stop - self.batch_size, stop)


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
        entries = EpochEntries(-1, indices, indices)
        for start in range(0, len(indices), self.batch_size):
            yield Batch(entries, start, min(start + self.batch_size, len(indices)))


class KeptImages:
    """Some images of a set, kept once where they are indexed.

    Args:
        images: uint8, (N, H, H) or (N, 3, H, H), the whole set, or float32, (N, D), features of images; possibly a
            memory map, which all processes share.
        rows: (n,), the rows to keep.
        storage_device: where they are kept: the device that computes, or the CPU.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray, storage_device: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # and nothing writes to it
            whole = torch.from_numpy(images)
        # On another device only the rows that are needed; on the CPU nothing is copied.
        on_cpu, rows_tensor = storage_device.type == "cpu", torch.from_numpy(rows)
        self.images = whole if on_cpu else whole[rows_tensor].to(storage_device)
        self.rows = rows_tensor if on_cpu else torch.arange(len(rows), device=storage_device)

    def at(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images, uint8, or features on ``device``.

        Args:
            indices: (B,), among ``rows``, on the storage device.
            device: where the batch is computed.
        """
        return select(self.images, self.rows[indices]).to(device, non_blocking=True)


class TrainingBatches:
    """Augmented and mixed training batches, a pure function of (seed, epoch, position in the epoch).

    Args:
        images: of the training subset.
        targets: int64, (n,), or float32, (n, C) where images are mixed or labels are soft.
        augmentation: applied to every image, and to its partner with random numbers of its own.
        seed: of both.
        size: gives the side of the network's input in an epoch.
        device: where batches are computed.
        mix: one of ``imbalance.mixing``: joins an image with a partner.
    """

    def __init__(
        self,
        images: KeptImages,
        targets: np.ndarray,
        augmentation: BatchedAugmentation,
        seed: int,
        size: Callable[[int], int],
        device: torch.device,
        mix: Any = None,
    ) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed
        self.size = size
        self.device = device
        self.mix = mix
        self.targets = torch.from_numpy(targets).to(device)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images, uint8 or float32 from 0 to 255, (B, H, W), and targets, int64 (B,) or float32 (B, C)."""
        entries, start, stop = batch
        if entries.plan is None:
            entries.plan = self._plan_epoch(entries)
        own, partners, mixes = entries.plan
        size = self.size(entries.epoch)
        images, targets = self._augmented(own.rows(start, stop), size)
        if partners is None or mixes is None:
            return images, targets
        return self.mix(images, targets, *self._augmented(partners.rows(start, stop), size), mixes.rows(start, stop))

    def _augmented(self, plan: "_Plan", size: int) -> tuple[Tensor, Tensor]:
        kept, rows = self.images.images, self.images.rows[plan.stored_indices]
        if kept.device == self.device:  # each image is read when its turn comes, not the whole batch before
            images = self.augmentation(kept, plan.changes, size, rows)
        else:
            images = self.augmentation(self.images.at(plan.stored_indices, self.device), plan.changes, size)
        return images, self.targets[plan.indices]

    def _plan_epoch(self, entries: EpochEntries) -> tuple["_Plan", "_Plan | None", mixing.Mixes | None]:
        seeds = entry_seed(self.seed, entries.epoch, entries.positions.numpy().astype(np.uint64))
        own = self._plan_images(entries.indices, seeds)
        if self.mix is None:
            return own, None, None
        mixes = self.mix.sample_mixes(entries.epoch, uniforms(entry_seed(seeds, 0, 0), mixing.COLUMNS))
        partners = self._plan_images(mixes.partner.clamp(min=0), entry_seed(seeds, 0, 1))
        return own, partners, mixes.at(self.device)

    def _plan_images(self, indices: Tensor, seeds: np.ndarray) -> "_Plan":
        changes = self.augmentation.sample(seeds)
        return _Plan(indices.to(self.device), indices.to(self.images.rows.device), changes.to(self.device))


class FeatureBatches:
    """Training batches of features of a frozen backbone, a pure function of (seed, epoch, position in the epoch).

    Each entry of an epoch shows one of the views of its image, chosen at random.

    Args:
        features: float32, (V, n, D): V views of the n images of the training subset.
        targets: as ``TrainingBatches``.
        seed: of the choice of views.
        storage_device: where the features are kept.
        device: where batches are computed.
    """

    def __init__(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        seed: int,
        storage_device: torch.device,
        device: torch.device,
    ) -> None:
        self.views, self.count, width = features.shape
        rows = np.arange(self.views * self.count)
        self.features = KeptImages(features.reshape(-1, width), rows, storage_device)
        self.targets = torch.from_numpy(targets).to(device)
        self.seed = seed
        self.device = device

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features, float32 (B, D), and targets, int64 (B,) or float32 (B, C)."""
        entries, start, stop = batch
        if entries.plan is None:
            entries.plan = self._plan_epoch(entries)
        indices, stored = (part[start:stop] for part in entries.plan)
        return self.features.at(stored, self.device), self.targets[indices]

    def _plan_epoch(self, entries: EpochEntries) -> tuple[Tensor, Tensor]:
        """Indices of the targets and of the features, each (n,)."""
        seeds = entry_seed(self.seed, entries.epoch, entries.positions.numpy().astype(np.uint64))
        views = torch.from_numpy((seeds % np.uint64(self.views)).astype(np.int64))
        stored = views * self.count + entries.indices
        return entries.indices.to(self.device), stored.to(self.features.rows.device)


class _Plan(NamedTuple):
    """Which images, by index on the computing and on the storage device, and how they are changed; all (n, ...)."""

    indices: Tensor
    stored_indices: Tensor
    changes: Tensor

    def rows(self, start: int, stop: int) -> "_Plan":
        return _Plan(*(part[start:stop] for part in self))
