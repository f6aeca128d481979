"""Drawn faces: FER-2013's shape and ratios, deterministic, distinct, neither trivial nor hopeless."""

import time

import numpy as np
import pytest
from legs import every_third

from fer_lightning.data import synthetic
from fer_lightning.data.faces import EMOTIONS, Faces, count_classes
from fer_lightning.data.fer2013 import usage_counts
from fer_lightning.data.splits import kfold, official, paper
from fer_lightning.runtime.errors import UserError


@pytest.fixture(scope="module")
def faces() -> Faces:
    return synthetic.draw()


@pytest.mark.slow
def test_faces_have_the_form_of_fer2013(faces: Faces) -> None:
    assert faces.images.shape == (3000, 48, 48)
    assert faces.images.dtype == np.uint8
    assert faces.synthetic
    assert faces.kind == "drawn faces"
    assert len(np.unique(faces.ids)) == 3000


@pytest.mark.nightly
def test_usages_and_classes_have_the_ratios_of_fer2013(faces: Faces) -> None:
    counts = usage_counts(faces)
    assert {usage: sum(n) for usage, n in counts.items()} == {
        "Training": 2400,
        "PublicTest": 300,
        "PrivateTest": 300,
    }
    shares = np.array(synthetic.CLASS_WEIGHTS) / 35887
    assert np.abs(np.array(counts["Training"]) / 2400 - shares).max() < 0.001
    assert counts["PrivateTest"][EMOTIONS.index("disgust")] == 8


@pytest.mark.parametrize("images", every_third([168, 200, 561, 1000]))
def test_few_images_still_hold_every_emotion_in_every_usage(images: int) -> None:
    counts = usage_counts(synthetic.draw(images))
    assert sum(sum(n) for n in counts.values()) == images
    assert len(counts) == 3
    assert min(min(n) for n in counts.values()) >= 8


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.source.images=167: 168 or more are needed"):
        synthetic.draw(167)


def test_no_recorded_number_takes_hours_to_draw() -> None:
    with pytest.raises(UserError, match=r"data\.source\.images=1000000: at most 100,000 are drawn"):
        synthetic.draw(images=1_000_000)


def test_seed_decides_every_pixel(faces: Faces) -> None:
    assert synthetic.draw(300, seed=1).data_hash == synthetic.draw(300, seed=1).data_hash
    assert synthetic.draw(300, seed=1).data_hash != synthetic.draw(300, seed=2).data_hash


def test_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    one = synthetic.draw(168).data_hash
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    np.random.seed(1)
    assert synthetic.draw(168).data_hash == one


def test_no_two_faces_are_equal_and_none_is_blank(faces: Faces) -> None:
    assert len(np.unique(faces.twins)) == len(faces)
    assert faces.images.reshape(len(faces), -1).std(axis=1).min() > 5


def test_drawing_is_fast() -> None:
    start = time.process_time()
    synthetic.draw(500)
    assert time.process_time() - start < 2


def test_expressions_move_the_face_as_they_should() -> None:
    """The mean face of an emotion shows it: an open mouth is dark, wide eyes are light."""
    rng = np.random.default_rng
    mean = {
        emotion: np.mean([synthetic._draw_face(full, rng(seed)) for seed in range(150)], axis=0)
        for emotion, full in synthetic.EXPRESSIONS.items()
    }
    mouth, eyes = (slice(33, 41), slice(20, 28)), (slice(17, 22), slice(12, 36))
    assert mean["surprise"][mouth].mean() < mean["neutral"][mouth].mean() - 5
    assert mean["surprise"][eyes].mean() > mean["disgust"][eyes].mean() + 5


def test_a_linear_reader_finds_the_emotion_but_not_always(faces: Faces) -> None:
    """Ridge regression on blurred pixels: above the majority share of 25 %, far from perfect."""
    pixels = faces.images.reshape(-1, 24, 2, 24, 2).mean(axis=(2, 4)).reshape(len(faces), -1)
    pixels = (pixels - pixels.mean(axis=1, keepdims=True)) / pixels.std(axis=1, keepdims=True)
    made = official(faces, 0)
    train, test = made.train, made.tests["test"]
    targets = np.eye(7)[faces.labels[train]]
    gram = pixels[train].T @ pixels[train] + 300 * np.eye(pixels.shape[1])
    weights = np.linalg.solve(gram, pixels[train].T @ (targets - targets.mean(axis=0)))
    predicted = np.argmax(pixels[test] @ weights + targets.mean(axis=0), axis=1)
    assert 0.33 < np.mean(predicted == faces.labels[test]) < 0.85


def test_every_split_takes_drawn_faces(faces: Faces) -> None:
    for made in (official(faces, 0), paper(faces, 0), paper(faces, 0, subset="balanced"), kfold(faces, 0)):
        assert min(count_classes(faces.labels[made.train], 7)) > 0
        np.testing.assert_array_equal(made.tests["test"], made.tests["test_dedup"])


def test_difficulty_changes_the_faces_and_1_is_the_default() -> None:
    assert synthetic.draw(168, difficulty=1.0).data_hash == synthetic.draw(168).data_hash
    assert synthetic.draw(168, difficulty=0.5).data_hash != synthetic.draw(168).data_hash


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=rf"data\.source\.seed={seed} is out of range: give 0 to 4294967295"):
        synthetic.draw(seed=seed)


def test_least_per_class_holds_in_every_usage() -> None:
    counts = usage_counts(synthetic.draw(500, least_per_class=15))
    assert min(min(n) for n in counts.values()) == 15
    with pytest.raises(UserError, match=r"315 or more are needed \(15 of each emotion"):
        synthetic.draw(314, least_per_class=15)
