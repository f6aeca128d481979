"""Splits: exact totals, stratified, twins kept together, deterministic from the seed."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from archives import image_files, tiny_faces, write_zip
from command_line import TINY, Outcome, only_run

from fer_lightning.data import fer2013
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces, count_classes
from fer_lightning.data.splits import Split, apportion, kfold, official, paper
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json

TRAINING, PUBLIC, PRIVATE, TEST = range(4)
COUNTS = (400, 44, 410, 720, 480, 320, 500)


def faces_of(counts: tuple[int, ...], usage: list[int] | None = None, twins: float = 0.0, seed: int = 0) -> Faces:
    """Tiny-valued images with these class counts; a share of them copies the pixels of an earlier image."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(7), counts))
    n = len(labels)
    images = np.zeros((n, 48, 48), np.uint8)
    images[:, 0, :4] = np.arange(n, dtype=np.uint32).view(np.uint8).reshape(n, 4)
    for copy in np.flatnonzero(rng.random(n) < twins):
        images[copy] = images[rng.integers(0, copy + 1)]
    drawn = rng.choice(3, n, p=(0.8, 0.1, 0.1)) if usage is None else np.resize(usage, n)
    return Faces.from_arrays(images, labels, drawn, np.array([f"row {i + 1}" for i in range(n)]), kind="made up")


@pytest.fixture(scope="module")
def plain() -> Faces:
    return faces_of(COUNTS)


@pytest.fixture(scope="module")
def twinned() -> Faces:
    return faces_of(COUNTS, twins=0.15)


SPLITS: dict[str, Callable[..., Split]] = {
    "official": official,
    "paper": paper,
    "balanced": partial(paper, subset="balanced"),
    "kfold": kfold,
}
every_split = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)


def assert_same(one: Split, other: Split) -> None:
    np.testing.assert_array_equal(one.train, other.train)
    np.testing.assert_array_equal(one.val, other.val)
    assert list(one.tests) == list(other.tests)
    for name in one.tests:
        np.testing.assert_array_equal(one.tests[name], other.tests[name])


@every_split
@pytest.mark.parametrize("val_fraction", [None, 0.1])
@pytest.mark.parametrize("train_size", [None, 100])
def test_every_split_is_sorted_disjoint_and_deterministic(
    split: Callable[..., Split], val_fraction: float | None, train_size: int | None, twinned: Faces
) -> None:
    made = split(twinned, 3, val_fraction=val_fraction, train_size=train_size)
    assert_same(made, split(twinned, 3, val_fraction=val_fraction, train_size=train_size))
    assert list(made.tests)[:2] == ["test", "test_dedup"]
    for indices in (made.train, made.val, *made.tests.values()):
        assert indices.dtype == np.int64
        assert np.all(np.diff(indices) > 0)
    together = np.concatenate([made.train, made.val, made.tests["test"]])
    assert len(np.unique(together)) == len(together)
    assert all(count_classes(twinned.labels[made.train], 7))


@every_split
def test_seed_decides_what_is_drawn(split: Callable[..., Split], twinned: Faces) -> None:
    one, other = (split(twinned, seed, val_fraction=0.1) for seed in (0, 1))
    assert not np.array_equal(one.val, other.val)


@every_split
def test_dedup_drops_exactly_the_test_images_with_a_twin_in_train(split: Callable[..., Split], twinned: Faces) -> None:
    for train_size in (None, 200):
        made = split(twinned, 0, train_size=train_size)
        seen = {twinned.images[index].tobytes() for index in made.train}
        expected = [index for index in made.tests["test"] if twinned.images[index].tobytes() not in seen]
        assert made.tests["test_dedup"].tolist() == expected


@every_split
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_validation_cut_is_stratified_and_keeps_twins_together(
    split: Callable[..., Split], fraction: float, twinned: Faces
) -> None:
    made = split(twinned, 0, val_fraction=fraction)
    assert not np.isin(twinned.twins[made.val], twinned.twins[made.train]).any()
    pool = np.array(count_classes(twinned.labels[np.concatenate([made.train, made.val])], 7))
    assert np.all(np.abs(np.array(count_classes(twinned.labels[made.val], 7)) - fraction * pool) <= 1.5)


def test_validation_cut_has_every_emotion_even_when_rare() -> None:
    made = official(faces_of((60, 4, 60, 60, 60, 60, 60), usage=[TRAINING] * 4 + [TEST]), 0, val_fraction=0.05)
    assert len(made.val) > 0
    rare = faces_of((300, 2, 300, 300, 300, 300, 300), usage=[TRAINING])
    rare.usage[:9] = TEST
    made = official(rare, 0, val_fraction=0.01)
    assert all(count_classes(rare.labels[made.val], 7))


@every_split
def test_train_size_is_exact_and_stratified(split: Callable[..., Split], twinned: Faces) -> None:
    whole = split(twinned, 0)
    ratios = np.array(count_classes(twinned.labels[whole.train], 7)) / len(whole.train)
    for size in (7, 20, 150, len(whole.train)):
        made = split(twinned, 0, train_size=size)
        assert len(made.train) == size
        assert np.isin(made.train, whole.train).all()
        np.testing.assert_array_equal(made.val, whole.val)
        counts = np.array(count_classes(twinned.labels[made.train], 7))
        assert counts.min() >= 1
        if size >= 150:
            assert np.all(np.abs(counts - ratios * size) <= 1)


def test_train_size_leaves_the_validation_cut_alone(twinned: Faces) -> None:
    np.testing.assert_array_equal(
        official(twinned, 0, val_fraction=0.1).val, official(twinned, 0, val_fraction=0.1, train_size=50).val
    )


@every_split
@pytest.mark.parametrize("size", [0, 6, -1, 100_000])
def test_impossible_train_size_is_refused(split: Callable[..., Split], size: int, plain: Faces) -> None:
    with pytest.raises(
        UserError, match=rf"split.train_size={size}: out of range; accepted: 7 \(one of each emotion\) to \d+"
    ):
        split(plain, 0, train_size=size)


def test_official_follows_the_usage(plain: Faces) -> None:
    made = official(plain, 0)
    assert np.unique(plain.usage[made.train]).tolist() == [TRAINING]
    assert np.unique(plain.usage[made.val]).tolist() == [PUBLIC]
    assert np.unique(plain.usage[made.tests["test"]]).tolist() == [PRIVATE]
    assert len(made.train) + len(made.val) + len(made.tests["test"]) == len(plain)
    cut = official(plain, 0, val_fraction=0.2)
    assert np.unique(plain.usage[cut.val]).tolist() == [TRAINING]
    np.testing.assert_array_equal(cut.tests["test"], made.tests["test"])


def test_official_without_public_test_cuts_validation_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    faces = faces_of(COUNTS, usage=[TRAINING] * 4 + [TEST])
    made = official(faces, 0)
    assert np.unique(faces.usage[made.val]).tolist() == [TRAINING]
    assert len(made.val) == pytest.approx(0.1 * (faces.usage == TRAINING).sum(), abs=4)
    np.testing.assert_array_equal(made.tests["test"], np.flatnonzero(faces.usage == TEST))
    assert "validating on 0.1 of the training images" in caplog.text


def test_official_needs_training_images() -> None:
    with pytest.raises(UserError, match=r"needs Training.* use split=kfold"):
        official(faces_of(COUNTS, usage=[PUBLIC, PRIVATE]), 0)


def test_official_without_test_images_cuts_the_same_ones_for_every_seed(caplog: pytest.LogCaptureFixture) -> None:
    faces = faces_of(COUNTS, usage=[TRAINING, PUBLIC])
    made, other = official(faces, 0), official(faces, 1)
    np.testing.assert_array_equal(made.tests["test"], other.tests["test"])
    assert np.unique(faces.usage[made.tests["test"]]).tolist() == [TRAINING]
    assert set(faces.labels[made.tests["test"]]) == set(range(7))
    assert np.unique(faces.usage[made.val]).tolist() == [PUBLIC]
    assert "testing on" in caplog.text


def test_training_split_without_an_emotion_is_refused() -> None:
    faces = faces_of((0, 40, 40, 40, 40, 40, 40))
    with pytest.raises(UserError, match="no image of angry"):
        official(faces, 0)


def test_paper_has_the_exact_totals_of_fer2013() -> None:
    faces = faces_of((4953, 547, 5121, 8989, 6077, 4002, 6198))
    large, balanced = paper(faces, 0), paper(faces, 0, subset="balanced")
    assert (len(large.train), len(large.tests["test"]), len(large.val)) == (17182, 7365, 0)
    assert (len(balanced.train), len(balanced.tests["test"]), len(balanced.val)) == (2450, 1050, 0)
    assert len(np.union1d(large.train, large.tests["test"])) == 24547
    assert count_classes(faces.labels[large.train], 7) == [2800, 382, 2800, 2800, 2800, 2800, 2800]
    assert count_classes(faces.labels[large.tests["test"]], 7) == [1200, 165, 1200, 1200, 1200, 1200, 1200]
    assert count_classes(faces.labels[balanced.train], 7) == [350] * 7
    assert count_classes(faces.labels[balanced.tests["test"]], 7) == [150] * 7


def test_paper_arms_are_nested_and_carry_each_others_test_set(plain: Faces) -> None:
    large, balanced = paper(plain, 5), paper(plain, 5, subset="balanced")
    assert np.isin(balanced.train, large.train).all()
    assert np.isin(balanced.tests["test"], large.tests["test"]).all()
    for name, arm in (("test_large", large), ("test_balanced", balanced)):
        for other in (large, balanced):
            np.testing.assert_array_equal(other.tests[name], arm.tests["test"])
    assert not np.isin(balanced.tests["test_large"], balanced.train).any()


@pytest.mark.parametrize("subset", ["large", "balanced"])
def test_paper_dedups_each_test_set_against_the_arm_that_trains(subset: str, twinned: Faces) -> None:
    made = paper(twinned, 0, subset=subset)
    assert list(made.tests) == [
        "test",
        "test_dedup",
        "test_large",
        "test_balanced",
        "test_large_dedup",
        "test_balanced_dedup",
    ]
    seen = {twinned.images[index].tobytes() for index in made.train}
    for name in ("test", "test_large", "test_balanced"):
        expected = [index for index in made.tests[name] if twinned.images[index].tobytes() not in seen]
        assert made.tests[f"{name}_dedup"].tolist() == expected
        assert len(expected) < len(made.tests[name])
    np.testing.assert_array_equal(made.tests["test"], made.tests[f"test_{subset}"])


@every_split
def test_training_twins_of_test_images_can_be_dropped(
    split: Callable[..., Split], twinned: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole, made = split(twinned, 0), split(twinned, 0, drop_duplicates="train")
    tested = {twinned.images[index].tobytes() for name in whole.tests for index in whole.tests[name]}
    expected = [index for index in whole.train if twinned.images[index].tobytes() not in tested]
    assert made.train.tolist() == expected
    np.testing.assert_array_equal(made.val, whole.val)
    for name in ("test", "test_large", "test_balanced"):
        if name in whole.tests:
            np.testing.assert_array_equal(made.tests[name], whole.tests[name])
            np.testing.assert_array_equal(made.tests[f"{name}_dedup"], whole.tests[name])
    assert f"Removed {len(whole.train) - len(expected)} training images" in caplog.text
    assert len(split(twinned, 0, drop_duplicates="train", train_size=100).train) == 100


@pytest.mark.slow
def test_duplicates_are_dropped_from_the_command_line(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    faces = tiny_faces(training=8, public=2, private=2)
    images = faces.images.copy()
    train, test = (np.flatnonzero(faces.usage == number) for number in (TRAINING, PRIVATE))
    images[train[:3]] = images[test[:3]]
    leaky = Faces.from_arrays(images, faces.labels, faces.usage, faces.ids, kind="x")
    archive = write_zip(image_files(leaky), tmp_path / "faces.zip")
    arguments = [word for word in TINY if not word.startswith("data=") and "data.source" not in word]
    done = cli(*arguments, f"data.path={archive}", "data.drop_duplicates=train", "data.batch_size=8")
    assert done.code == 0, done.err
    assert "Removed 3 training images that have an exact twin in a test set" in done.out + done.err
    metrics = read_json(only_run(tmp_path) / "metrics.json")
    assert sum(metrics["train/class_counts"].values()) == len(train) - 3
    assert metrics["test_dedup/n"] == metrics["test/n"] == len(test)
    done = cli(*arguments, f"data.path={archive}", "data.drop_duplicates=test")
    assert "data.drop_duplicates=test: must be train" in done.error


def test_paper_scales_down_to_the_rarest_emotion(plain: Faces) -> None:
    balanced = paper(plain, 0, subset="balanced")
    assert count_classes(plain.labels[balanced.train], 7) == [7 * 44 // 10] * 7
    assert count_classes(plain.labels[balanced.tests["test"]], 7) == [44 - 7 * 44 // 10] * 7


def test_paper_ignores_usage_and_draws_anew_with_each_seed(plain: Faces) -> None:
    made = paper(plain, 0)
    assert set(np.unique(plain.usage[made.train])) == {TRAINING, PUBLIC, PRIVATE}
    assert not np.array_equal(made.train, paper(plain, 1).train)


def test_paper_says_how_many_persons_are_in_two_parts_and_kfold_keeps_them_apart(
    plain: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    people = replace(plain, groups=np.arange(len(plain)) // 40)
    with caplog.at_level(logging.INFO):
        split = paper(people, 0)
        shared = set(people.groups[split.train]) & set(people.groups[split.tests["test"]])
        assert shared
        assert f"draws images, not persons: {len(shared)} persons are in train and in test" in caplog.text
    split = kfold(people, 0)
    assert not set(people.groups[split.train]) & set(people.groups[split.tests["test"]])


def test_paper_refuses_what_it_cannot_do(plain: Faces) -> None:
    with pytest.raises(UserError, match=r"split.subset=small: no such subset; accepted: large, balanced"):
        paper(plain, 0, subset="small")
    with pytest.raises(UserError, match=r"two images or more of each emotion, and the data have 1 of disgust"):
        paper(faces_of((9, 1, 9, 9, 9, 9, 9)), 0)


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_folds_partition_the_images_evenly(folds: int, plain: Faces) -> None:
    tests = [kfold(plain, 0, folds=folds, fold=fold).tests["test"] for fold in range(folds)]
    np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(len(plain)))
    counts = np.array([count_classes(plain.labels[test], 7) for test in tests])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 2


def test_twins_never_straddle_folds(twinned: Faces) -> None:
    made = [kfold(twinned, 0, fold=fold) for fold in range(5)]
    fold_of = np.empty(len(twinned), int)
    for fold, split in enumerate(made):
        fold_of[split.tests["test"]] = fold
        np.testing.assert_array_equal(split.tests["test"], split.tests["test_dedup"])
        np.testing.assert_array_equal(split.val, made[(fold + 1) % 5].tests["test"])
        assert len(split.train) + len(split.val) + len(split.tests["test"]) == len(twinned)
    assert (np.bincount(twinned.twins) > 1).sum() > 100
    for group in range(twinned.twins.max() + 1):
        assert len(set(fold_of[twinned.twins == group])) == 1
    counts = np.array([count_classes(twinned.labels[split.tests["test"]], 7) for split in made])
    assert np.ptp(counts, axis=0).max() <= 2


def test_a_cut_of_one_person_is_said_to_be_empty(plain: Faces, caplog: pytest.LogCaptureFixture) -> None:
    split = official(replace(plain, groups=np.zeros(len(plain), np.int64)), seed=0, val_fraction=0.1)
    assert len(split.val) == 0
    assert "No validation image can be cut" in caplog.text


@pytest.mark.parametrize("persons", [2, 5])
def test_a_cut_has_a_person_at_least(plain: Faces, persons: int) -> None:
    """A tenth of the images is less than half a person."""
    people = replace(plain, groups=np.arange(len(plain)) % persons)
    split = official(people, seed=0, val_fraction=0.1)
    assert len(set(people.groups[split.val])) == 1
    assert not set(people.groups[split.train]) & set(people.groups[split.val])


def test_kfold_validation_may_be_cut_from_the_rest(plain: Faces) -> None:
    made = kfold(plain, 0, folds=2, val_fraction=0.25)
    assert len(made.val) == pytest.approx(len(plain) / 8, abs=4)
    assert len(made.train) + len(made.val) + len(made.tests["test"]) == len(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 5}, r"split.fold=5: out of range; accepted: 0 to 4 \(split.folds=5\)"),
        ({"fold": -1}, r"split.fold=-1: out of range; accepted: 0 to 4"),
        ({"folds": 2}, r"split.folds=2: out of range; accepted: 3 or more \(one tests, one validates"),
        ({"folds": 1, "val_fraction": 0.1}, r"split.folds=1: out of range; accepted: 2 or more"),
        (
            {"folds": 45},
            r"split.folds=45 needs as many images of each emotion, and the data have 44 of disgust",
        ),
    ],
)
def test_kfold_refuses_impossible_folds(options: dict[str, int], message: str, plain: Faces) -> None:
    with pytest.raises(UserError, match=message):
        kfold(plain, 0, **options)


def test_kfold_refuses_folds_that_would_have_no_image(plain: Faces) -> None:
    copies = replace(plain, twins=np.arange(len(plain)) % 4)
    with pytest.raises(
        UserError, match=r"split.folds=5: the data have 4 different images, each in one fold; give 4 or"
    ):
        kfold(copies, 0, folds=5, fold=4)
    assert len(kfold(replace(plain, twins=np.arange(len(plain)) % 20), 0, folds=5, fold=4).tests["test"])


def test_validating_on_one_class_is_said(caplog: pytest.LogCaptureFixture) -> None:
    numbers = np.arange(30)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None], (30, 48, 48))
    labels, person = np.where(numbers < 20, 0, 1), np.where(numbers < 10, 0, 1 + numbers % 3)
    faces = Faces.from_arrays(images, labels, 0 * numbers, numbers.astype(str), "x", classes=("cat", "dog"))
    splits = [kfold(replace(faces, groups=person), 0, folds=4, fold=fold) for fold in range(4)]
    assert [len(np.unique(labels[split.val])) for split in splits].count(1) == 1
    assert caplog.messages == ["All 10 validation images are of cat: their scores cannot choose a model"]


@pytest.mark.parametrize("total", [56, 57, 100, 300, 2400])
def test_apportion_sums_to_the_total_and_respects_the_least(total: int) -> None:
    shares = apportion(total, (4953, 547, 5121, 8989, 6077, 4002, 6198), least=8)
    assert sum(shares) == total
    assert min(shares) >= 8
    assert apportion(total, (1, 0, 3), least=0)[1] == 0


def test_apportion_never_exceeds_what_there_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(1, 30, 7)
        total = int(rng.integers(7, counts.sum() + 1))
        shares = np.array(apportion(total, counts.tolist(), least=1))
        assert shares.sum() == total
        assert np.all((shares >= 1) & (shares <= counts))


def test_tiny_archive_splits(tmp_path: Path) -> None:
    made = official(tiny_faces(), 0)
    assert (len(made.train), len(made.val), len(made.tests["test"])) == (28, 14, 14)


has_archive = pytest.mark.skipif(
    not os.environ.get("FER2013_PATH"), reason="FER2013_PATH does not name the real FER-2013 zip"
)


@pytest.fixture(scope="module")
def real(real_cache: Path) -> Faces:
    return fer2013.load(os.environ["FER2013_PATH"], str(real_cache / "faces"))


@pytest.mark.slow
@pytest.mark.real
@has_archive
def test_official_split_of_the_real_archive(real: Faces) -> None:
    made = official(real, 0)
    sizes = [len(made.train), len(made.val), len(made.tests["test"]), len(made.tests["test_dedup"])]
    assert sizes == [28709, 3589, 3589, 3301]
    assert count_classes(real.labels[made.tests["test_dedup"]], 7) == [454, 39, 481, 851, 577, 298, 601]
    assert [USAGES[number] for number in np.unique(real.usage[made.tests["test"]])] == ["PrivateTest"]


@pytest.mark.nightly
@pytest.mark.real
@has_archive
def test_paper_split_of_the_real_archive(real: Faces) -> None:
    large, balanced = paper(real, 0), paper(real, 0, subset="balanced")
    assert (len(large.train), len(large.tests["test"])) == (17182, 7365)
    assert (len(balanced.train), len(balanced.tests["test"])) == (2450, 1050)
    leaked = 1 - len(large.tests["test_dedup"]) / 7365
    assert 0.066 <= leaked <= 0.082
    assert len(large.tests["test_balanced"]) == 1050
    assert len(balanced.tests["test_large"]) == 7365
    assert len(balanced.tests["test_large_dedup"]) > len(large.tests["test_dedup"])


@pytest.mark.nightly
@pytest.mark.real
@has_archive
def test_dropping_duplicates_of_the_real_archive(real: Faces) -> None:
    made = official(real, 0, drop_duplicates="train")
    assert len(made.train) == 28709 - 387
    assert len(made.tests["test_dedup"]) == 3589


@pytest.mark.nightly
@pytest.mark.real
@has_archive
def test_folds_of_the_real_archive(real: Faces) -> None:
    made = [kfold(real, 0, fold=fold) for fold in range(5)]
    counts = np.array([count_classes(real.labels[split.tests["test"]], 7) for split in made])
    assert counts.sum(axis=0).tolist() == count_classes(real.labels, 7)
    assert np.ptp(counts, axis=0).max() <= 2
    for split in made:
        assert not np.isin(real.twins[split.tests["test"]], real.twins[split.train]).any()
        assert not np.isin(real.twins[split.val], real.twins[split.train]).any()
    assert len(EMOTIONS) == counts.shape[1]
