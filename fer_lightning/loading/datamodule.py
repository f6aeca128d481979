"""The LightningDataModule: arrays, split, sampler and augmentation become loaders."""

import copy
import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, Dataset

from fer_lightning.data.faces import Faces
from fer_lightning.data.images import as_picture
from fer_lightning.data.splits import Split
from fer_lightning.imbalance import mixing
from fer_lightning.imbalance.samplers import Entry, EpochSampler, EvalShard
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.device_batches import (
    Batch,
    BatchDataset,
    EpochBatches,
    EvalBatches,
    FeatureBatches,
    KeptImages,
    TrainingBatches,
)
from fer_lightning.loading.randomness import entry_seed, uniforms
from fer_lightning.runtime import signals
from fer_lightning.runtime.errors import UserError

Item = tuple[torch.Tensor, int | torch.Tensor]

GPU_EVAL_BATCH = 1024
"""Minimum images of a validation batch on a GPU: without a backward pass, more of them fit into memory."""


class TrainingFaces(Dataset[Item]):
    """Training images augmented one by one, in the loader's workers; indexed by a sampler's ``Entry``.

    As ``TrainingBatches``, a pure function of (seed, epoch, position in the epoch).

    Args:
        images: uint8, (N, H, H) or (N, 3, H, H), the whole set.
        rows: (n,), those of the training subset.
        targets: int64, (n,), or float32, (n, C) where images are mixed or labels are soft.
        augmentation: called with an image and a seed.
        seed: of augmentation and mixing.
        mix: one of ``imbalance.mixing``: joins an image with a partner; None for no mixing.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        targets: np.ndarray,
        augmentation: Callable[[np.ndarray, int], np.ndarray],
        seed: int,
        mix: Any,
    ):
        self.images = images
        self.rows = rows
        self.targets = targets
        self.augmentation = augmentation
        self.seed = seed
        self.mix = mix

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, entry: Entry) -> Item:
        seed = entry_seed(self.seed, entry.epoch, entry.position)
        image = self._image(entry.index, seed)
        if self.targets.ndim == 1:
            return image, int(self.targets[entry.index])
        target = torch.from_numpy(self.targets[entry.index])
        if self.mix is not None:
            numbers = uniforms(np.array([entry_seed(seed, 0, 0)], dtype=np.uint64), mixing.COLUMNS)
            mixes = self.mix.sample_mixes(entry.epoch, numbers)
            partner = int(mixes.partner)
            if partner >= 0:
                other = self._image(partner, entry_seed(seed, 0, 1))
                other_target = torch.from_numpy(self.targets[partner])
                pair = (part[None] for part in (image, target, other, other_target))
                image, target = (part[0] for part in self.mix(*pair, mixes))
        return image, target

    def _image(self, index: int, seed: int) -> torch.Tensor:
        image = np.asarray(self.images[self.rows[index]])
        changed = self.augmentation(as_picture(image), seed)
        if image.ndim == 3:
            changed = np.moveaxis(changed, -1, 0)
        return torch.from_numpy(np.array(changed))


@dataclass(frozen=True)
class Loading:
    """How batches are made.

    Attributes:
        batch_size: global; each of the trainer's processes gets its equal share.
        num_workers: per process; for augmentation image by image.
        device: ``auto`` keeps the images on the trainer's device, ``cpu`` in the machine's memory.
        size: gives the side of the network's input in an epoch, which batched augmentation samples at; None for that of
            the images.
    """

    batch_size: int
    num_workers: int = 0
    device: str = "auto"
    size: Callable[[int], int] | None = None


class FERDataModule(L.LightningDataModule):
    """Training and validation loaders over one split.

    Batches, as the model gets them, are images (B, H, W) or (B, 3, H, W), uint8 or float32 from 0 to 255, and int64
    labels; training targets are float32 (B, C) instead where images are mixed or the faces have soft labels. After
    ``use_features`` they hold features of a frozen backbone, float32 (B, D), in place of images.

    Args:
        faces: the whole set.
        split: which of its images train and validate.
        build_sampler: called with ``labels`` (of the training images) and ``seed``.
        augmentation: applied to training images: a ``BatchedAugmentation`` on the trainer's device, anything else
            image by image in the loader.
        loading: how batches are made.
        seed: of order and augmentation.
        build_mix: called with ``labels`` (of the training images); None for images as they are.

    Raises:
        UserError: when the training images are fewer than one batch, or a class has none.
    """

    def __init__(
        self,
        faces: Faces,
        split: Split,
        build_sampler: Callable[..., EpochSampler],
        augmentation: BatchedAugmentation | Callable[[np.ndarray, int], np.ndarray],
        loading: Loading,
        seed: int,
        build_mix: Callable[..., Any] | None = None,
    ):
        super().__init__()
        self.faces = faces
        self.split = split
        self.augmentation = augmentation
        self.loading = loading
        self.seed = seed
        self.labels = faces.labels[split.train]
        self.mix = None if build_mix is None else build_mix(labels=self.labels)
        self.targets = self._targets()
        self.sampler = build_sampler(labels=self.labels, seed=seed)
        # Archives are sorted by emotion: in their order, trainer.limit_val_batches would validate on one class.
        self.val_rows = np.random.default_rng(0).permutation(split.val)
        self.kept: dict[str, Any] = {}
        self.features: tuple[np.ndarray, np.ndarray] | None = None
        drawn = len(self.sampler)
        if drawn < loading.batch_size:
            raise UserError(
                f"data.batch_size={loading.batch_size}: only {drawn} images are drawn per epoch; use a smaller batch"
            )

    def _targets(self) -> np.ndarray:
        """Of the training images: labels (n,), or shares of the classes (n, C) where they are mixed or soft."""
        if self.faces.soft is not None:
            return self.faces.soft[self.split.train]
        return self.labels if self.mix is None else np.eye(len(self.faces.classes), dtype=np.float32)[self.labels]

    @property
    def class_counts(self) -> list[int]:
        """Images per class in the training set actually used."""
        return self.faces.count(self.split.train)

    @property
    def drawn_counts(self) -> list[int]:
        """Images per class that the first epoch shows."""
        return self.faces.count(self.split.train[self.sampler.rank_entries()[0].numpy()])

    @property
    def per_device_batch_size(self) -> int:
        ranks = self.trainer.world_size if self.trainer else 1
        if self.loading.batch_size % ranks:
            raise UserError(
                f"data.batch_size={self.loading.batch_size}: is the global batch size and must be a multiple of the "
                f"{ranks} devices"
            )
        return self.loading.batch_size // ranks

    @property
    def root_device(self) -> torch.device:
        """Where this process computes."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def use_features(self, train: np.ndarray, val: np.ndarray) -> None:
        """Give features of a frozen backbone in place of images.

        Args:
            train: float32, (V, n, D), V views of the training images.
            val: float32, (m, D), of the validation images in the order of the split.
        """
        self.features = train, val

    def resume_at(self, epoch: int, batches: int) -> None:
        """Start the training in ``epoch`` (from 0), after the ``batches`` of it that are done already."""
        self.sampler.set_epoch(epoch)  # workers fetch images before Lightning sets the epoch
        self.sampler.leave_out(epoch, batches * self.loading.batch_size)

    def first_batches(self, epoch: int, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The first training batches of an epoch once more, those of this process; the same where the run was resumed.

        Args:
            epoch: from 0.
            number: of batches, where the epoch has as many.

        Yields:
            Images and targets, as the model gets them.
        """
        sampler = copy.copy(self.sampler)
        sampler.set_epoch(epoch)
        sampler.leave_out(-1, 0)
        for batch in itertools.islice(self._training_loader(sampler, workers=0), number):
            yield self.on_after_batch_transfer(move_data_to_device(batch, self.root_device), 0)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._training_loader(self.sampler, self.loading.num_workers)

    def _training_loader(self, sampler: EpochSampler, workers: int) -> DataLoader[Any]:
        if self.features is not None or isinstance(self.augmentation, BatchedAugmentation):
            return _loader(BatchDataset(), EpochBatches(sampler, self.per_device_batch_size))
        one_by_one = TrainingFaces(
            self.faces.images, self.split.train, self.targets, self.augmentation, self.seed, self.mix
        )
        return _loader(
            one_by_one,
            sampler,
            batch_size=self.per_device_batch_size,
            num_workers=workers,
            drop_last=True,  # as EpochBatches does
            pin_memory=self.root_device.type == "cuda",
        )

    def val_dataloader(self) -> DataLoader[Any]:
        size = 4 * self.per_device_batch_size
        size = max(size, GPU_EVAL_BATCH) if self.root_device.type == "cuda" else size
        return _loader(BatchDataset(), EvalBatches(EvalShard(len(self.val_rows)), size))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Replace a ``Batch`` by its images and targets."""
        if not isinstance(batch, Batch):
            return batch
        if batch.entries.epoch >= 0:
            return self._kept("train", self._training_batches)(batch)
        images, labels = self._kept("val", self._validation)
        rows = batch.entries.indices[batch.start : batch.stop].to(images.rows.device, non_blocking=True)
        return images.at(rows, self.root_device), labels[rows.to(labels.device, non_blocking=True)]

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def _training_batches(self) -> TrainingBatches | FeatureBatches:
        if self.features is not None:
            train = self.features[0]
            return FeatureBatches(train, self.targets, self.seed, self._storage_device, self.root_device)
        assert isinstance(self.augmentation, BatchedAugmentation)
        images = KeptImages(self.faces.images, self.split.train, self._storage_device)
        size = self.loading.size or (lambda epoch: self.faces.form.size)
        return TrainingBatches(images, self.targets, self.augmentation, self.seed, size, self.root_device, self.mix)

    def _validation(self) -> tuple[KeptImages, torch.Tensor]:
        labels = torch.from_numpy(self.faces.labels[self.val_rows]).to(self.root_device)
        if self.features is not None:
            rows = np.searchsorted(self.split.val, self.val_rows)
            return KeptImages(self.features[1], rows, self._storage_device), labels
        return KeptImages(self.faces.images, self.val_rows, self._storage_device), labels

    @property
    def _storage_device(self) -> torch.device:
        return self.root_device if self.loading.device == "auto" else torch.device("cpu")


def _loader(dataset: Dataset[Any], sampler: Any, batch_size: int | None = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        # Its own generator: otherwise every new iterator shifts the global random state by one draw.
        generator=torch.Generator(),
        worker_init_fn=_begin_worker,
        **options,
    )


def _begin_worker(worker: int) -> None:
    signals.ignore()
    # A garbage collection would write to every object the parent made, and so copy the memory shared with it.
    gc.freeze()
