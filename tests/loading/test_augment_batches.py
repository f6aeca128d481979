"""Batched augmentation: each image by its own random numbers, and the same distribution as albumentations'."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp, kstest
from torch.nn import functional as F

from fer_lightning.config.augment import Strengths
from fer_lightning.data.synthetic import draw
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.augment_images import Augmentation
from fer_lightning.loading.randomness import entry_seed, uniforms
from tests.loading.test_augment_images import DOTS, assert_uniform, pose

STRONG = Strengths(0.5, 15.0, 0.1, 0.15, 0.3, 0.3, 0.25, [0.02, 0.2])
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 48, 48), dtype=np.uint8))


def seeds(n: int, seed: int = 0) -> np.ndarray:
    return entry_seed(seed, 0, np.arange(n, dtype=np.uint64))


def repeated(strengths: Strengths, image: np.ndarray, n: int, size: int = 48) -> np.ndarray:
    """One image changed in n ways."""
    augmentation = BatchedAugmentation(strengths, 48)
    images = torch.from_numpy(image).expand(n, 48, 48)
    return augmentation(images, augmentation.sample(seeds(n)), size).numpy()


def one_by_one(strengths: Strengths, image: np.ndarray, n: int) -> np.ndarray:
    augmentation = Augmentation(strengths)
    return np.stack([augmentation(image, entry_seed(1, 0, position)) for position in range(n)])


class TestRandomNumbers:
    def test_an_array_of_seeds_is_the_seeds(self):
        assert entry_seed(3, 5, np.arange(50, dtype=np.uint64)).tolist() == [entry_seed(3, 5, k) for k in range(50)]
        again = entry_seed(entry_seed(3, 5, np.arange(50, dtype=np.uint64)), 0, 1)
        assert again.tolist() == [entry_seed(entry_seed(3, 5, k), 0, 1) for k in range(50)]

    def test_numbers_are_uniform_and_independent(self):
        numbers = uniforms(seeds(20_000), 6)
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert all(kstest(column, "uniform").pvalue > 1e-4 for column in numbers.T)
        correlation = np.corrcoef(numbers, rowvar=False) - np.eye(6)
        assert np.abs(correlation).max() < 0.04
        assert np.abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02

    def test_values_never_change(self):
        np.testing.assert_allclose(uniforms(seeds(2), 2), [[0.129646, 0.049920], [0.385329, 0.961426]], atol=1e-6)


class TestPurity:
    def test_neither_the_batch_nor_its_order_changes_an_image(self):
        augmentation = BatchedAugmentation(STRONG, 48)
        changes = augmentation.sample(seeds(64))
        whole = augmentation(IMAGES, changes, 96)
        for size in (1, 7, 32):
            parts = [augmentation(IMAGES[k : k + size], changes[k : k + size], 96) for k in range(0, 64, size)]
            assert torch.equal(torch.cat(parts), whole)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(augmentation(IMAGES[order], changes[order], 96), whole[order])

    def test_images_are_left_alone_and_no_global_state_is_used(self):
        before, state = IMAGES.clone(), torch.get_rng_state()
        augmentation = BatchedAugmentation(STRONG, 48)
        augmentation(IMAGES, augmentation.sample(seeds(64)), 64)
        assert torch.equal(before, IMAGES)
        assert torch.equal(state, torch.get_rng_state())

    def test_nothing_to_do_returns_the_images(self):
        augmentation = BatchedAugmentation(Strengths(), 48)
        assert augmentation(IMAGES, augmentation.sample(seeds(64)), 96) is IMAGES

    @pytest.mark.parametrize("size", [48, 64, 96, 112])
    def test_a_movement_of_nothing_is_the_resize_of_evaluation(self, size):
        moved = BatchedAugmentation(Strengths(rotate=1e-7), 48)
        result = moved(IMAGES, moved.sample(seeds(64)), size)
        resized = F.interpolate(IMAGES[:, None].float(), (size, size), mode="bilinear", align_corners=False)[:, 0]
        torch.testing.assert_close(result, resized, atol=0.01, rtol=0)


class TestColour:
    SMOOTH = F.interpolate(IMAGES[:24, :9, :9].unflatten(0, (8, 3)).float(), (48, 48), mode="bicubic")
    IMAGES = SMOOTH.clamp(0, 255).round().to(torch.uint8)

    @pytest.mark.parametrize("size", [32, 48, 96])
    @pytest.mark.parametrize("strengths", [STRONG, Strengths(hflip=0.5, rotate=15.0, scale=0.15, translate=0.1)])
    def test_each_channel_changes_as_a_gray_image_does(self, strengths, size):
        augmentation = BatchedAugmentation(strengths, 48)
        changes = augmentation.sample(seeds(8))
        result = augmentation(self.IMAGES, changes, size)
        assert result.shape == (8, 3, size, size)
        for channel in range(3):
            gray = augmentation(self.IMAGES[:, channel].contiguous(), changes, size)
            # OpenCV rounds to levels, and to 1/32 of a pixel, over which these images change by up to 1.7 levels.
            torch.testing.assert_close(result[:, channel].float(), gray, atol=3, rtol=0)

    def test_neither_the_batch_nor_its_order_changes_an_image(self):
        augmentation = BatchedAugmentation(STRONG, 48)
        before, changes = self.IMAGES.clone(), augmentation.sample(seeds(8))
        whole = augmentation(self.IMAGES, changes, 64)
        assert torch.equal(torch.cat([augmentation(self.IMAGES[k:][:1], changes[k:][:1], 64) for k in range(8)]), whole)
        assert torch.equal(before, self.IMAGES)

    @pytest.mark.parametrize("strengths", [STRONG, Strengths(hflip=0.5, rotate=15.0), Strengths(hflip=0.5)])
    def test_the_order_in_memory_changes_nothing(self, strengths):
        augmentation = BatchedAugmentation(strengths, 48)
        together, changes = self.IMAGES.contiguous(memory_format=torch.channels_last), augmentation.sample(seeds(8))
        rows = torch.tensor([7, 0, 3, 3])
        expected = augmentation(self.IMAGES[rows], changes[:4], 48)
        for images in (self.IMAGES, together):
            assert torch.equal(augmentation(images, changes[:4], 48, rows), expected)


class TestStrengths:
    @pytest.mark.parametrize("probability", [0.2, 0.5, 1.0])
    @pytest.mark.parametrize("rotate", [0.0, 1e-7])
    def test_flip(self, probability, rotate):
        """Alone, and as a part of the warp."""
        image = IMAGES[0].numpy()
        results = repeated(Strengths(hflip=probability, rotate=rotate), image, 2000)
        flipped, kept = (np.abs(results - other).max(axis=(1, 2)) < 0.01 for other in (image[:, ::-1], image))
        assert (flipped ^ kept).all()
        assert binomtest(int(flipped.sum()), 2000, probability).pvalue > 1e-4

    @pytest.mark.parametrize(("key", "limit"), [("rotate", 15.0), ("scale", 0.15), ("translate", 0.1)])
    def test_geometry(self, key, limit):
        angle, size, right, down = np.array([pose(each) for each in repeated(Strengths(**{key: limit}), DOTS, 1000)]).T
        if key == "rotate":
            assert_uniform(angle, limit, slack=0.5)
        elif key == "scale":
            assert_uniform(size - 1, limit, slack=0.02)
        else:  # whole pixels: up to 0.1 * 48 = 4.8, cut to 4
            assert np.abs([right, down]).max() == pytest.approx(4, abs=0.1)
            assert set(right.round()) == set(down.round()) == set(range(-4, 5))
            assert np.corrcoef(right, down)[0, 1] == pytest.approx(0, abs=0.15)
        if key != "rotate":
            assert np.abs(angle).max() < 0.5
        if key != "scale":
            assert np.abs(size - 1).max() < 0.02
        if key != "translate":
            assert np.abs([right, down]).max() < 0.1

    def test_light(self):
        flat = np.full((48, 48), 100, dtype=np.uint8)
        shifts = repeated(Strengths(brightness=0.3), flat, 1000)[:, 0, 0] - 100
        assert_uniform(shifts / 255, 0.3, slack=1e-5)
        factors = repeated(Strengths(contrast=0.3), flat, 1000)[:, 0, 0] / 100
        assert_uniform(factors - 1, 0.3, slack=1e-5)
        bright = repeated(Strengths(brightness=1.0), np.full((48, 48), 200, dtype=np.uint8), 200)
        assert (bright.min(), bright.max()) == (0, 255)

    @pytest.mark.parametrize("size", [48, 96, 112])
    def test_erase(self, size):
        black = np.zeros((48, 48), dtype=np.uint8)
        strengths = Strengths(erase=0.25, erase_area=[0.05, 0.2], rotate=1e-7)
        areas, gray = [], []
        for image in repeated(strengths, black, 2000, size):
            rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
            if not len(rows):
                continue
            rectangle = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert len(np.unique(rectangle)) == 1
            assert 0.5 - 0.1 < len(columns) / len(rows) < 2 + 0.3  # sides are rounded to pixels
            areas.append(rectangle.size / size**2)
            gray.append(rectangle[0, 0])
        # A gray of 0 erases unseen, in 1 of 256 cases.
        assert binomtest(len(areas), 2000, 0.25 * 255 / 256).pvalue > 1e-4
        assert 0.045 < min(areas) < 0.07
        assert 0.18 < max(areas) < 0.21
        assert kstest(np.array(gray) / 256, "uniform").pvalue > 1e-4

    def test_steps_are_independent(self):
        changes = BatchedAugmentation(STRONG, 48).sample(seeds(20_000)).numpy()
        angle = np.arctan2(-changes[:, 3], changes[:, 4])
        parts = np.stack([changes[:, 6], angle, changes[:, 7], changes[:, 8], changes[:, 10] > 0, changes[:, 13]])
        assert np.abs(np.corrcoef(parts) - np.eye(len(parts))).max() < 0.04


class TestAsAlbumentations:
    """The same settings mean the same to both backends; their random numbers differ."""

    N = 3000

    @pytest.mark.nightly
    @pytest.mark.parametrize(
        "strengths",
        [
            Strengths(rotate=15.0, translate=0.1, scale=0.15),
            pytest.param(Strengths(hflip=0.5, rotate=10.0, translate=0.05, scale=0.1), marks=pytest.mark.nightly),
        ],
    )
    def test_poses_are_distributed_alike(self, strengths):
        ours, theirs = (
            np.array([pose(image) for image in make(strengths, DOTS, self.N)]).T for make in (repeated, one_by_one)
        )
        for part, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            whole = np.rint if part >= 2 else np.asarray  # shifts are whole pixels, give or take the interpolation
            assert ks_2samp(whole(mine), whole(other)).pvalue > 1e-3
            assert mine.std() == pytest.approx(other.std(), rel=0.06)

    @pytest.mark.parametrize("settings", [{"brightness": 0.3}, {"contrast": 0.3}, {"brightness": 0.2, "contrast": 0.4}])
    def test_light_is_distributed_alike(self, settings):
        flat = np.full((48, 48), 90, dtype=np.uint8)
        ours, theirs = (make(Strengths(**settings), flat, self.N)[:, 0, 0] for make in (repeated, one_by_one))
        assert ks_2samp(np.rint(ours), theirs).pvalue > 1e-3

    def test_rectangles_are_distributed_alike(self):
        ours, theirs = (
            make(Strengths(erase=0.5), np.zeros((48, 48), dtype=np.uint8), self.N) for make in (repeated, one_by_one)
        )
        for statistic in (lambda x: x.max(axis=(1, 2)), lambda x: (x > 0).mean(axis=(1, 2))):
            assert ks_2samp(statistic(ours), statistic(theirs)).pvalue > 1e-3
        # Where they are: the share of images in which each pixel is hidden.
        hidden = [(part > 0).mean(axis=0) for part in (ours, theirs)]
        assert np.abs(hidden[0] - hidden[1]).max() < 0.06

    @pytest.mark.nightly
    def test_mean_and_spread_of_an_augmented_face_agree(self):
        face = draw(400).images[0]
        ours, theirs = (make(STRONG, face, self.N) for make in (repeated, one_by_one))
        error = ours.std(axis=0) / np.sqrt(self.N) * np.sqrt(2)
        gaps = (ours.mean(axis=0) - theirs.mean(axis=0)) / error
        # Neighbouring pixels move together: the largest of 2,304 gaps stays far below that of independent ones.
        assert np.abs(gaps).max() < 5
        np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.12)
