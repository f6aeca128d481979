"""The LightningDataModule: arrays, split, sampler and augmentation become loaders."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fer_lightning import stop
from fer_lightning.data.augment import Augmentation, draw_seed
from fer_lightning.data.faces import EMOTIONS, Faces, count_classes
from fer_lightning.data.splits import Split
from fer_lightning.errors import UserError
from fer_lightning.imbalance.samplers import Draw, EpochSampler, EvalShard

Item = tuple[torch.Tensor, int | torch.Tensor]


class TrainingFaces(Dataset[Item]):
    """Augmented training images, indexed by a sampler's ``Draw``.

    Augmentation and mixing are a pure function of (seed, epoch, position in the epoch), so neither workers, ranks nor
    a resumed run change them.

    Args:
        images: uint8, (n, 48, 48).
        labels: int64, (n,).
        augmentation: applied to every image, and to its partner with a draw of its own.
        seed: of both.
        soft: float32, (n, 7), targets in place of the labels.
        mix: one of ``imbalance.mixing``: blends an image with a partner. Targets are (7,) then, not a number.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        augmentation: Augmentation,
        seed: int,
        soft: np.ndarray | None = None,
        mix: Any = None,
    ):
        self.images = images
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.soft = soft
        self.mix = mix

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Item:
        seed = draw_seed(self.seed, draw.epoch, draw.position)
        image = self.augmentation(self.images[draw.index], seed)
        if self.soft is None and self.mix is None:
            return torch.from_numpy(image), int(self.labels[draw.index])
        target = self._target(draw.index)
        if self.mix is not None:
            rng = np.random.default_rng(draw_seed(seed, 0, 0))
            partner = self.mix.partner(draw.epoch, rng)
            if partner is not None:
                other = self.augmentation(self.images[partner], draw_seed(seed, 0, 1))
                image, target = self.mix(image, target, other, self._target(partner), rng)
        return torch.from_numpy(image), torch.from_numpy(target)

    def _target(self, index: int) -> np.ndarray:
        if self.soft is not None:
            return self.soft[index]
        return np.eye(len(EMOTIONS), dtype=np.float32)[self.labels[index]]


class EvaluationFaces(Dataset[Item]):
    """Images as they are."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return torch.from_numpy(np.array(self.images[index])), int(self.labels[index])


class FERDataModule(L.LightningDataModule):
    """Training and validation loaders over one split; batches are (uint8 images (B, 48, 48), int64 labels (B,)).

    Training targets are float32 (B, 7) instead where images are mixed or the faces bring soft labels.

    Args:
        faces: the whole set.
        split: which of its images train and validate.
        build_sampler: called with ``labels`` (of the training images) and ``seed``.
        augmentation: applied to training images.
        batch_size: global; each of the trainer's processes gets its equal share.
        num_workers: per process.
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
        augmentation: Augmentation,
        batch_size: int,
        num_workers: int,
        seed: int,
        build_mix: Callable[..., Any] | None = None,
    ):
        super().__init__()
        self.faces = faces
        self.split = split
        self.batch_size = batch_size
        self.num_workers = num_workers
        labels = faces.labels[split.train]
        soft = None if faces.soft is None else faces.soft[split.train]
        mix = None if build_mix is None else build_mix(labels=labels)
        self.train_set = TrainingFaces(faces.images[split.train], labels, augmentation, seed, soft, mix)
        # Archives are sorted by emotion: in their order, trainer.limit_val_batches would validate on one class.
        order = np.random.default_rng(0).permutation(split.val)
        self.val_set = EvaluationFaces(faces.images[order], faces.labels[order])
        self.sampler = build_sampler(labels=self.train_set.labels, seed=seed)
        drawn = len(self.sampler)
        if drawn < batch_size:
            raise UserError(
                f"data.batch_size={batch_size}: only {drawn} images are drawn per epoch; use a smaller batch"
            )

    @property
    def class_counts(self) -> list[int]:
        """Images per emotion in the training set actually used."""
        return count_classes(self.train_set.labels)

    @property
    def per_device_batch_size(self) -> int:
        ranks = self.trainer.world_size if self.trainer else 1
        if self.batch_size % ranks:
            raise UserError(
                f"data.batch_size={self.batch_size}: is the global batch and must divide by the {ranks} devices"
            )
        return self.batch_size // ranks

    def go_on(self, epoch: int, batches: int) -> None:
        """Begin the training with ``epoch`` (from 0), behind the ``batches`` of it that are done already."""
        self.sampler.set_epoch(epoch)  # workers fetch ahead of Lightning's word which epoch it is
        self.sampler.leave_out(epoch, batches * self.batch_size)

    def train_dataloader(self) -> DataLoader[Item]:
        # drop_last: a last batch of one image breaks batch normalisation, and static shapes are faster.
        return self._loader(self.train_set, self.sampler, self.per_device_batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader[Item]:
        return self._loader(self.val_set, EvalShard(len(self.val_set)), 4 * self.per_device_batch_size)

    def _loader(
        self,
        dataset: Dataset[Item],
        sampler: torch.utils.data.Sampler,
        batch_size: int,
        drop_last: bool = False,
    ) -> DataLoader[Item]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=drop_last,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # Its own generator: otherwise every new iterator shifts the global random state by one draw.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_trainer,
        )


def _leave_signals_to_the_trainer(worker: int) -> None:
    stop.ignore()
