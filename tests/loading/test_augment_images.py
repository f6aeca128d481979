"""Augmentation: a pure function of image and seed, with the given strengths."""

import inspect
import os
import pickle
import random
import subprocess
import sys
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from legs import every_third
from omegaconf import OmegaConf
from scipy.stats import binomtest, chi2_contingency, kstest
from torch.utils.data import DataLoader

from fer_lightning.config.augment import Strengths
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.imbalance.samplers import Entry, InstanceSampler
from fer_lightning.loading.augment_images import Augmentation
from fer_lightning.loading.randomness import entry_seed
from fer_lightning.runtime.errors import UserError

OFF = {
    "hflip": 0.0,
    "rotate": 0.0,
    "translate": 0.0,
    "scale": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "erase": 0.0,
    "erase_area": [0.02, 0.2],
}
STRONG = {
    "hflip": 0.5,
    "rotate": 15.0,
    "translate": 0.1,
    "scale": 0.15,
    "brightness": 0.3,
    "contrast": 0.3,
    "erase": 0.25,
    "erase_area": [0.02, 0.2],
}
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 48, 48), dtype=np.uint8)


def _dots() -> np.ndarray:
    rows, columns = np.mgrid[:48, :48]
    spots = [light * np.exp(-((columns - x) ** 2 + (rows - 23.5) ** 2) / 8) for light, x in ((250, 11.5), (180, 35.5))]
    return sum(spots).round().astype(np.uint8)


DOTS = _dots()
"""Two spots on the middle row, 12 pixels left and right of the centre, the left one brighter."""


def pose(image: np.ndarray) -> tuple[float, float, float, float]:
    """Angle in degrees, relative size, and shift right and down in pixels of ``DOTS``, flipped or not."""
    rows, columns = np.mgrid[:48, :48]
    left, right = (
        np.array([np.average(axis[:, half], weights=image[:, half]) for axis in (columns, rows)])
        for half in (slice(0, 24), slice(24, 48))
    )
    across, middle = right - left, (left + right) / 2 - 23.5
    return np.degrees(np.arctan2(across[1], across[0])), np.hypot(*across) / 24, middle[0], middle[1]


def assert_uniform(values: np.ndarray, limit: float, slack: float) -> None:
    assert np.abs(values).max() <= limit + slack
    assert kstest(values, "uniform", args=(-limit, 2 * limit)).pvalue > 1e-4


def only(**settings) -> Augmentation:
    return Augmentation(Strengths(**{**OFF, **settings}))


class AugmentedFaces:
    """What a training set does with a draw."""

    def __init__(self, augmentation: Augmentation, seed: int) -> None:
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, draw: Entry) -> torch.Tensor:
        seed = entry_seed(self.seed, draw.epoch, draw.position)
        return torch.from_numpy(self.augmentation(IMAGES[draw.index], seed).copy())


def epoch_of_images(seed: int, epoch: int, workers: int) -> torch.Tensor:
    """One epoch's images, put back into the order of ``IMAGES``."""
    sampler = InstanceSampler(np.zeros(len(IMAGES), dtype=np.int64), seed=0)
    sampler.set_epoch(epoch)
    order = torch.tensor([draw.index for draw in sampler])
    loader = DataLoader(
        AugmentedFaces(Augmentation(Strengths(**STRONG)), seed),
        batch_size=8,
        sampler=sampler,
        num_workers=workers,
    )
    return torch.cat(list(loader))[order.argsort()]


class TestPurity:
    def test_same_seed_same_image(self):
        augmentation, another = Augmentation(Strengths(**STRONG)), Augmentation(Strengths(**STRONG))
        first = [augmentation(image, seed) for seed, image in enumerate(IMAGES)]
        random.seed(1)
        np.random.seed(1)
        backwards = [another(image, seed) for seed, image in reversed(list(enumerate(IMAGES)))]
        np.testing.assert_array_equal(first, backwards[::-1])

    def test_global_random_state_is_left_alone(self):
        random.seed(0)
        np.random.seed(0)
        before = random.getstate(), np.random.get_state()[1].copy()
        Augmentation(Strengths(**STRONG))(IMAGES[0], 0)
        assert random.getstate() == before[0]
        assert np.array_equal(np.random.get_state()[1], before[1])

    def test_input_is_left_alone_and_may_be_read_only(self):
        image = IMAGES[0].copy()
        image.setflags(write=False)
        for seed in range(50):
            result = Augmentation(Strengths(**STRONG))(image, seed)
            assert (result.dtype, result.shape) == (np.uint8, (48, 48))
            assert result.flags.c_contiguous
        np.testing.assert_array_equal(image, IMAGES[0])

    def test_pickles(self):
        augmentation = Augmentation(Strengths(**STRONG))
        copy = pickle.loads(pickle.dumps(augmentation))
        for seed in range(20):
            np.testing.assert_array_equal(copy(IMAGES[seed], seed), augmentation(IMAGES[seed], seed))

    def test_two_runs_agree_and_two_epochs_or_seeds_differ(self):
        run = epoch_of_images(seed=0, epoch=0, workers=0)
        assert torch.equal(run, epoch_of_images(seed=0, epoch=0, workers=0))
        for other in (
            epoch_of_images(seed=0, epoch=1, workers=0),
            epoch_of_images(seed=1, epoch=0, workers=0),
        ):
            changed = (run != other).flatten(1).any(1)
            assert changed.all()

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_workers_change_nothing(self, epoch):
        alone = epoch_of_images(seed=0, epoch=epoch, workers=0)
        assert torch.equal(alone, epoch_of_images(seed=0, epoch=epoch, workers=2))

    def test_seed_alone_decides_the_parameters(self):
        flipped = [np.array_equal(only(hflip=0.5)(image, 3), image[:, ::-1]) for image in IMAGES]
        assert len(set(flipped)) == 1


class TestDrawSeed:
    def test_distinct_over_seeds_epochs_and_positions(self):
        seeds = {entry_seed(*key) for key in product(range(5), range(5), range(2000))}
        assert len(seeds) == 50_000
        assert all(0 <= seed < 2**64 for seed in seeds)

    def test_values_never_change(self):
        assert entry_seed(0, 0, 0) == 2558736989570252433
        assert entry_seed(1, 2, 3) == 7702586659592502839

    def test_bits_are_fair(self):
        seeds = np.array([entry_seed(0, epoch, position) for epoch in range(5) for position in range(2000)], np.uint64)
        for bit in range(64):
            ones = int((seeds >> np.uint64(bit) & np.uint64(1)).sum())
            assert binomtest(ones, len(seeds)).pvalue > 1e-6


class TestStrengths:
    def test_all_off_returns_the_image_untouched(self):
        image = IMAGES[0]
        assert only()(image, 5) is image

    @pytest.mark.parametrize("probability", [0.2, 0.5, 1.0])
    def test_flip(self, probability):
        augmentation = only(hflip=probability)
        flipped = 0
        for position in range(2000):
            result = augmentation(IMAGES[0], entry_seed(0, 0, position))
            is_flipped = np.array_equal(result, IMAGES[0][:, ::-1])
            assert is_flipped or np.array_equal(result, IMAGES[0])
            flipped += is_flipped
        assert binomtest(flipped, 2000, probability).pvalue > 1e-4

    @pytest.mark.parametrize(("key", "limit"), every_third([("rotate", 15.0), ("scale", 0.15), ("translate", 0.1)]))
    def test_geometry(self, key, limit):
        measured = [pose(only(**{key: limit})(DOTS, entry_seed(0, 0, position))) for position in range(1000)]
        angle, size, right, down = np.array(measured).T
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

    def test_brightness(self):
        flat = np.full((48, 48), 100, dtype=np.uint8)
        shifts = [int(only(brightness=0.3)(flat, entry_seed(0, 0, k))[0, 0]) - 100 for k in range(1000)]
        assert_uniform(np.array(shifts) / 255, 0.3, slack=1 / 255)

    def test_contrast(self):
        flat = np.full((48, 48), 100, dtype=np.uint8)
        factors = [only(contrast=0.3)(flat, entry_seed(0, 0, k))[0, 0] / 100 for k in range(1000)]
        assert_uniform(np.array(factors) - 1, 0.3, slack=0.01)

    def test_erase(self):
        augmentation = only(erase=0.25, erase_area=[0.05, 0.2])
        background = np.zeros((48, 48), dtype=np.uint8)
        areas = []
        for position in range(2000):
            result = augmentation(background, entry_seed(0, 0, position))
            left, top, width, height = cv2.boundingRect(result)
            if width == 0:
                continue
            rectangle = result[top : top + height, left : left + width]
            assert len(np.unique(rectangle)) == 1
            assert 0.5 - 0.1 < width / height < 2 + 0.3  # sides are rounded to pixels
            areas.append(width * height / 48**2)
        # A gray of 0 erases unseen, in 1 of 256 cases.
        assert binomtest(len(areas), 2000, 0.25 * 255 / 256).pvalue > 1e-4
        assert 0.045 < min(areas) < 0.07
        assert 0.18 < max(areas) < 0.21

    def test_steps_are_independent(self):
        turned = only(hflip=0.5, rotate=15.0)
        erased = only(hflip=0.5, erase=0.5, erase_area=[0.01, 0.01])
        halves = np.repeat(np.array([[200, 100]], dtype=np.uint8), 24, axis=1).repeat(48, axis=0)
        by_angle, by_erasing = np.zeros((2, 2)), np.zeros((2, 2))
        for position in range(1000):
            seed = entry_seed(0, 0, position)
            result = turned(DOTS, seed)
            by_angle[int(result[:, :24].max() < result[:, 24:].max()), int(pose(result)[0] > 0)] += 1
            result = erased(halves, seed)
            by_erasing[int(result[:, :24].mean() < result[:, 24:].mean()), int(len(np.unique(result)) > 2)] += 1
        assert chi2_contingency(by_angle).pvalue > 1e-4
        assert chi2_contingency(by_erasing).pvalue > 1e-4


@pytest.mark.parametrize("name", ["none", "light", "strong"])
def test_group_files(name):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=[f"augment={name}"]).augment)
    assert config.pop("name") == name
    assert config.pop("backend") == "batched"
    assert list(config) == list(inspect.signature(Strengths).parameters)
    augmentation = Augmentation(Strengths(**config))
    changed = [not np.array_equal(augmentation(image, seed), image) for seed, image in enumerate(IMAGES)]
    assert all(changed) if name != "none" else not any(changed)


@pytest.mark.slow
def test_import_uses_no_network_and_takes_no_threads():
    code = """
import os, socket
socket.socket.connect = socket.getaddrinfo = lambda *_, **__: os._exit(3)
import fer_lightning.loading.augment_images, cv2
os._exit(0 if cv2.getNumThreads() == 1 else 4)
"""
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hflip": 1.5}, ["augment.hflip=1.5"]),
        ({"erase": -0.1}, ["augment.erase=-0.1"]),
        ({"translate": 2.0}, ["augment.translate=2.0"]),
        ({"contrast": float("nan")}, ["augment.contrast=nan"]),
        ({"brightness": 30.0}, ["augment.brightness=30.0", "0 to 1"]),
        ({"scale": 1.0}, ["augment.scale=1"]),
        ({"rotate": 360.0}, ["augment.rotate=360.0", "180"]),
        ({"erase_area": [0.2, 0.1]}, ["augment.erase_area=[0.2, 0.1]"]),
        ({"erase_area": [0.0, 0.1]}, ["augment.erase_area"]),
        ({"erase_area": [0.1, 0.9]}, ["augment.erase_area", "0.5"]),
        ({"erase_area": [0.1]}, ["augment.erase_area=[0.1]"]),
    ],
)
def test_mistakes_are_named_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        only(**settings)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
