"""The LightningDataModule: arrays, split, sampler and augmentation become loaders."""

from collections.abc import Callable

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fer_lightning import stop
from fer_lightning.data.augment import Augmentation, draw_seed
from fer_lightning.data.faces import Faces, count_classes
from fer_lightning.data.splits import Split
from fer_lightning.errors import UserError
from fer_lightning.imbalance.samplers import Draw, EpochSampler, EvalShard

Item = tuple[torch.Tensor, int]


class TrainingFaces(Dataset[Item]):
    """Augmented training images, indexed by a sampler's ``Draw``.

    The augmentation is a pure function of (seed, epoch, position in the epoch), so neither workers, ranks nor a
    resumed run change it.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, augmentation: Augmentation, seed: int):
        self.images = images
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Item:
        image = self.augmentation(self.images[draw.index], draw_seed(self.seed, draw.epoch, draw.position))
        return torch.from_numpy(image), int(self.labels[draw.index])


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

    Args:
        faces: the whole set.
        split: which of its images train and validate.
        build_sampler: called with ``labels`` (of the training images) and ``seed``.
        augmentation: applied to training images.
        batch_size: global; each of the trainer's processes gets its equal share.
        num_workers: per process.
        seed: of order and augmentation.

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
    ):
        super().__init__()
        self.faces = faces
        self.split = split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_set = TrainingFaces(faces.images[split.train], faces.labels[split.train], augmentation, seed)
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
