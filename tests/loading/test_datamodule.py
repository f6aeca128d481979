"""Loaders: the right images in the right batches, whatever the workers, the processes and the epoch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from legs import every_third
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fer_lightning.config.augment import Strengths
from fer_lightning.data.faces import count_classes
from fer_lightning.data.splits import official
from fer_lightning.data.synthetic import draw
from fer_lightning.imbalance.mixing import CMO, Mixup
from fer_lightning.imbalance.samplers import ClassWeightedSampler, InstanceSampler, UnderSampler
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.augment_images import Augmentation
from fer_lightning.loading.datamodule import FERDataModule, Loading
from fer_lightning.loading.device_batches import KeptImages
from fer_lightning.runtime.errors import UserError

FACES = draw(400)
STRENGTHS = Strengths(0.5, 15, 0.1, 0.1, 0.2, 0.2, 0.5)
PLAIN, STRONG = BatchedAugmentation(Strengths(), 48), BatchedAugmentation(STRENGTHS, 48)
ONE_BY_ONE = Augmentation(STRENGTHS)
both_backends = pytest.mark.parametrize("strong", [STRONG, ONE_BY_ONE], ids=["batched", "albumentations"])


def build(
    sampler=InstanceSampler, augmentation=PLAIN, batch_size=32, num_workers=0, seed=0, **split_settings
) -> FERDataModule:
    split = official(FACES, 0, **split_settings)
    return FERDataModule(FACES, split, sampler, augmentation, Loading(batch_size, num_workers), seed)


def epoch(datamodule: FERDataModule, number: int) -> tuple[Tensor, Tensor]:
    """All training images and labels of an epoch, in order."""
    datamodule.sampler.set_epoch(number)
    images, labels = zip(*batches(datamodule, datamodule.train_dataloader()), strict=True)
    return torch.cat(images), torch.cat(labels)


def batches(datamodule: FERDataModule, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """What the trainer makes of a loader's batches."""
    return (datamodule.on_after_batch_transfer(batch, 0) for batch in loader)


class TestCounts:
    @pytest.mark.parametrize("settings", [{}, {"train_size": 100}, {"val_fraction": 0.3}])
    def test_class_counts_are_those_of_the_training_images_used(self, settings):
        datamodule = build(**settings)
        assert datamodule.class_counts == count_classes(FACES.labels[official(FACES, 0, **settings).train], 7)
        assert datamodule.class_counts == count_classes(epoch(build(**settings, batch_size=1), 0)[1].numpy(), 7)

    def test_the_sampler_does_not_change_them(self):
        # They are the prior that losses correct for; what a sampler draws from them is its own matter.
        assert build(UnderSampler).class_counts == build().class_counts


class TestBatches:
    def test_bytes_and_labels(self):
        datamodule = build()
        images, labels = next(batches(datamodule, datamodule.train_dataloader()))
        assert (images.shape, images.dtype) == ((32, 48, 48), torch.uint8)
        assert (labels.shape, labels.dtype) == ((32,), torch.int64)

    def test_images_keep_their_labels(self):
        images, labels = epoch(build(), 0)
        label_of = {image.tobytes(): label for image, label in zip(FACES.images, FACES.labels, strict=True)}
        assert [label_of[image.numpy().tobytes()] for image in images] == labels.tolist()

    def test_a_last_batch_that_is_not_full_is_dropped(self):
        for augmentation in (PLAIN, ONE_BY_ONE):
            datamodule = build(augmentation=augmentation, batch_size=50)
            loader = datamodule.train_dataloader()
            assert [len(labels) for _, labels in batches(datamodule, loader)] == [50] * (288 // 50)
            assert len(loader) == 288 // 50

    def test_validation_is_every_image_once_without_padding(self):
        datamodule = build(batch_size=10)
        loader = datamodule.val_dataloader()
        images, labels = zip(*batches(datamodule, loader), strict=True)
        assert [len(batch) for batch in labels] == [40, 16]
        assert len(loader) == 2
        val = datamodule.split.val
        seen = sorted(
            zip(torch.cat(labels).tolist(), (image.numpy().tobytes() for image in torch.cat(images)), strict=True)
        )
        wanted = zip(FACES.labels[val].tolist(), (image.tobytes() for image in FACES.images[val]), strict=True)
        assert seen == sorted(wanted)

    def test_a_few_validation_batches_hold_several_classes(self):
        """Archives are sorted by emotion, and ``trainer.limit_val_batches`` takes the first batches."""
        datamodule = build(batch_size=7)
        _, labels = next(batches(datamodule, datamodule.val_dataloader()))
        assert len(set(labels.tolist())) > 3

    def test_more_than_an_epoch_is_refused(self):
        one_pass = partial(UnderSampler, budget="epochs")
        build(one_pass, batch_size=56)
        with pytest.raises(UserError, match=r"data\.batch_size=57: only 56 images are drawn per epoch"):
            build(one_pass, batch_size=57)

    def test_samplers_are_given_the_training_labels_and_the_seed(self):
        _, labels = epoch(build(partial(UnderSampler, budget="epochs")), 0)
        assert np.bincount(labels).max() <= 8
        assert not torch.equal(epoch(build(seed=1), 0)[1], epoch(build(seed=0), 0)[1])

    @both_backends
    def test_a_new_iterator_leaves_the_global_random_state_alone(self, strong):
        datamodule = build(augmentation=strong)
        before = torch.get_rng_state()
        next(iter(datamodule.train_dataloader()))
        next(iter(datamodule.val_dataloader()))
        assert torch.equal(before, torch.get_rng_state())


class TestTargets:
    @pytest.mark.slow
    def test_mixing_is_a_function_of_seed_epoch_and_position(self):
        def mixed(workers: int, epoch_number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
            split = official(FACES, 0)
            mix = partial(Mixup, alpha=1.0)
            return epoch(
                FERDataModule(FACES, split, InstanceSampler, ONE_BY_ONE, Loading(32, workers), seed, mix), epoch_number
            )

        images, targets = mixed(0, 0)
        assert (images.dtype, targets.dtype, targets.shape[1]) == (torch.uint8, torch.float32, 7)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))
        assert ((targets > 0).sum(dim=1) == 2).float().mean() > 0.5
        for again, same in ((mixed(2, 0), True), (mixed(0, 1), False), (mixed(0, 0, seed=1), False)):
            assert torch.equal(images, again[0]) == same
            assert torch.equal(targets, again[1]) == same

    def test_both_backends_mix_alike(self):
        """The same partners in the same proportions; without augmentation, the same pixels."""
        split = official(FACES, 0)
        for build_mix in (partial(Mixup, alpha=1.0), partial(CMO, epochs=3)):
            (images, targets), (others, other_targets) = (
                epoch(FERDataModule(FACES, split, InstanceSampler, each, Loading(32), 0, build_mix), 1)
                for each in (PLAIN, Augmentation(Strengths()))
            )
            assert torch.equal(images, others)
            torch.testing.assert_close(targets, other_targets)

    @both_backends
    def test_images_without_a_partner_stay_as_they_are(self, strong):
        """CMO starts in its second epoch here."""
        split = official(FACES, 0)
        build_mix = partial(CMO, epochs=3, off_share=0.33, prob=1.0)
        mixed, plain = (
            FERDataModule(FACES, split, InstanceSampler, strong, Loading(32), 0, mix) for mix in (build_mix, None)
        )
        assert torch.equal(epoch(mixed, 0)[0], epoch(plain, 0)[0])
        assert not torch.equal(epoch(mixed, 1)[0], epoch(plain, 1)[0])

    def test_soft_labels_reach_the_loss(self):
        soft = np.full((len(FACES), 7), 1 / 7, np.float32)
        faces = replace(FACES, soft=soft)
        _, targets = epoch(FERDataModule(faces, official(faces, 0), InstanceSampler, PLAIN, Loading(32), 0), 0)
        torch.testing.assert_close(targets, torch.full_like(targets, 1 / 7))


class TestAugmentation:
    def test_workers_change_nothing(self):
        alone, workers = build(augmentation=ONE_BY_ONE), build(augmentation=ONE_BY_ONE, num_workers=2)
        for number in (0, 1):
            for one, two in zip(epoch(alone, number), epoch(workers, number), strict=True):
                assert torch.equal(one, two)

    def test_the_batch_size_changes_nothing(self):
        small, large = (epoch(build(augmentation=STRONG, batch_size=size), 0) for size in (16, 48))
        assert all(torch.equal(one, other) for one, other in zip(small, large, strict=True))

    def test_a_resumed_epoch_continues_with_the_same_pictures(self):
        whole = epoch(build(augmentation=STRONG), 1)
        resumed = build(augmentation=STRONG)
        resumed.resume_at(1, batches=3)
        rest = epoch(resumed, 1)
        assert len(rest[0]) == len(whole[0]) - 96
        assert all(torch.equal(part, other[96:]) for part, other in zip(rest, whole, strict=True))

    @both_backends
    def test_epochs_differ_and_can_be_had_again(self, strong):
        datamodule = build(augmentation=strong)
        (first, _), (second, _) = epoch(datamodule, 0), epoch(datamodule, 1)
        assert torch.equal(first, epoch(build(augmentation=strong), 0)[0])
        # Not only another order: hardly any picture of the first epoch comes again in the second.
        pictures = [{image.numpy().tobytes() for image in images} for images in (first, second)]
        assert len(pictures[0] & pictures[1]) < 5

    @both_backends
    def test_copies_of_an_image_in_one_epoch_differ(self, strong):
        sampler = ClassWeightedSampler
        drawn = [draw.index for draw in build(sampler).sampler]
        disgust = [place for place, index in enumerate(drawn[:256]) if build().labels[index] == 1]
        images, _ = epoch(build(sampler, augmentation=strong), 0)
        assert len(disgust) > 20  # of eight images
        assert len({images[place].numpy().tobytes() for place in disgust}) == len(disgust)

    def test_validation_is_never_augmented(self):
        plain, strong = (
            next(batches(datamodule, datamodule.val_dataloader()))[0]
            for datamodule in (build(augmentation=each) for each in (PLAIN, STRONG))
        )
        assert torch.equal(plain, strong)

    def test_batches_are_made_at_the_size_of_the_epoch(self):
        loading = Loading(32, size=lambda number: 64 + 32 * number)
        datamodule = FERDataModule(FACES, official(FACES, 0), InstanceSampler, STRONG, loading, 0)
        assert epoch(datamodule, 0)[0].shape[1:] == (64, 64)
        assert epoch(datamodule, 1)[0].shape[1:] == (96, 96)

    def test_memory_mapped_images_are_not_copied(self, tmp_path):
        np.save(tmp_path / "images.npy", FACES.images)
        kept = KeptImages(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(9), torch.device("cpu"))
        assert kept.images.data_ptr() % 4096 == 128  # behind the file's header, so in the map
        assert torch.equal(
            kept.at(torch.tensor([3, 3, 8]), torch.device("cpu")), torch.from_numpy(FACES.images[[3, 3, 8]])
        )


class Witness(L.LightningModule):
    """Writes down what each process is given."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.linear = nn.Linear(1, 1)
        self.seen: dict[str, list] = {"train": [], "val": []}

    def note(self, part: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        rows = [
            [int(label), hashlib.sha1(image.numpy().tobytes()).hexdigest()]
            for image, label in zip(images, labels, strict=True)
        ]
        self.seen[part].append([self.current_epoch, rows])

    def training_step(self, batch, batch_idx):
        self.note("train", batch)
        return self.linear(torch.ones(1)).sum()

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)

    def on_fit_end(self):
        Path(self.folder, f"{self.global_rank}-of-{self.trainer.world_size}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("sampler", "strong"), every_third([(InstanceSampler, STRONG), (UnderSampler, ONE_BY_ONE)]))
def test_two_processes_share_the_batches_of_one(tmp_path, sampler, strong):
    """A real process group: together the two see each global batch, pixel for pixel, and validate each image once."""
    method: Any = "spawn" if torch.cuda.is_available() else "fork"  # much faster, and forbidden once CUDA has begun
    for strategy, devices in (("auto", 1), (DDPStrategy(start_method=method, process_group_backend="gloo"), 2)):
        trainer = L.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            max_epochs=2,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Witness(str(tmp_path)), build(sampler, augmentation=strong, batch_size=14))
    names = ("0-of-1", "0-of-2", "1-of-2")
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    assert len(alone["train"]) == len(first["train"]) == len(second["train"]) > 2
    for whole, even, odd in zip(alone["train"], first["train"], second["train"], strict=True):
        assert whole[0] == even[0] == odd[0]
        assert (len(whole[1]), len(even[1]), len(odd[1])) == (14, 7, 7)
        assert whole[1] == [row for pair in zip(even[1], odd[1], strict=True) for row in pair]
    validated = [
        sorted(row for number, rows in part if number == 1 for row in rows)
        for part in (alone["val"], first["val"] + second["val"])
    ]
    assert validated[0] == validated[1]
    assert len(validated[0]) == 56
