"""Training sets thinned to a ratio: sizes, nesting, and what is refused."""

import json

import numpy as np
import pytest
from command_line import TINY
from legs import every_nth

from fer_lightning.data.profile import Profile, class_sizes, thin
from fer_lightning.data.splits import kfold, official
from fer_lightning.data.synthetic import draw
from fer_lightning.runtime.errors import UserError

FACES = draw(1500)
TRAIN = official(FACES, 0).train
CLASSES = ("a", "b", "c", "d", "e")


def test_exponential_sizes_are_those_of_the_formula():
    """Cui et al. 2019, section 5.1: n_i = n mu^i; their CIFAR-10 with ratio 100 has 5000 to 50."""
    sizes = class_sizes(Profile("exp", 100), [5000] * 10, [str(k) for k in range(10)])
    assert sizes == [int(5000 * 0.01 ** (k / 9) + 0.5) for k in range(10)]
    assert (sizes[0], sizes[-1]) == (5000, 50)


def test_step_sizes():
    """Buda et al. 2018: half of the classes are minorities; of an odd number, the smaller half."""
    assert class_sizes(Profile("step", 5), [100] * 5, CLASSES) == [100, 100, 100, 20, 20]
    assert class_sizes(Profile("step", 5), [100, 60, 100, 70, 100], CLASSES) == [60, 12, 60, 12, 60]


@pytest.mark.parametrize("shape", ["exp", "step"])
@pytest.mark.parametrize("ratio", [1, 2.5, 20])
def test_a_total_is_held(shape, ratio):
    sizes = class_sizes(Profile(shape, ratio, total=900), [600, 500, 400, 500, 600], CLASSES)
    assert sum(sizes) == 900
    assert max(sizes) / min(sizes) == pytest.approx(ratio, rel=0.1)


def test_order_is_that_of_the_data_or_given():
    assert np.argsort(class_sizes(Profile("exp", 8), [9, 90, 30, 20, 40], CLASSES))[::-1].tolist() == [1, 4, 2, 3, 0]
    given = Profile("exp", 8, order=("e", "d", "c", "b", "a"))
    sizes = class_sizes(given, [9, 90, 30, 20, 40], CLASSES)
    assert sizes == sorted(sizes)
    with pytest.raises(UserError, match=r"split\.order: no class f; give all of a, b, c, d, e"):
        class_sizes(Profile("exp", 8, order=("f",)), [9] * 5, CLASSES)
    with pytest.raises(UserError, match=r"split\.order=a,b: give each of a, b, c, d, e once, the largest first"):
        class_sizes(Profile("exp", 8, order=("a", "b")), [9] * 5, CLASSES)


def test_larger_ratios_lie_within_smaller_ones():
    sets = [set(thin(FACES, TRAIN, Profile("exp", ratio), seed=3).tolist()) for ratio in (1, 2, 4, 8)]
    for larger, smaller in zip(sets[1:], sets, strict=False):
        assert larger < smaller
    assert sets[0] < set(TRAIN.tolist())
    assert sets[1] != set(thin(FACES, TRAIN, Profile("exp", 2), seed=4).tolist())


def test_with_a_total_rare_classes_are_nested():
    one, other = (thin(FACES, TRAIN, Profile("exp", ratio, total=90), seed=0) for ratio in (1, 10))
    rarest = FACES.labels[one] == 1  # disgust
    assert set(other[FACES.labels[other] == 1].tolist()) < set(one[rarest].tolist())


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            Profile("exp", 50),
            r"split\.ratio=50: leaves no image of e; give a ratio of at most 20",
        ),
        (
            Profile("exp", 2, total=400),
            r"too few training images of d \(60 of 65\), e \(20 of 55\); give split\.total=145 or less",
        ),
    ],
)
def test_what_the_data_cannot_give_is_refused(profile, message):
    with pytest.raises(UserError, match=message):
        class_sizes(profile, [200, 150, 100, 60, 20], CLASSES)


def test_validation_and_test_stay_whole():
    plain, thinned = official(FACES, 0), official(FACES, 0, profile=Profile("exp", 4))
    np.testing.assert_array_equal(plain.val, thinned.val)
    np.testing.assert_array_equal(plain.tests["test"], thinned.tests["test"])
    assert len(thinned.train) < len(plain.train)
    folds = kfold(FACES, 0, profile=Profile("step", 3))
    np.testing.assert_array_equal(folds.val, kfold(FACES, 0).val)


@pytest.mark.slow
def test_a_run_and_its_counts(cli, tmp_path):
    outcome = cli(*TINY, "data.source.images=1500", "split.ratio=4", "data.batch_size=16", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    counts = json.loads((tmp_path / "run" / "metrics.json").read_text())["train/class_counts"]
    assert max(counts.values()) / min(counts.values()) == pytest.approx(4, abs=0.4)
    assert max(counts, key=counts.__getitem__) == "happy"


@pytest.mark.parametrize(
    ("words", "message"),
    every_nth(
        7,
        [
            (["split.ratio=0.5"], "split.ratio=0.5: must be 1 or more"),
            (["split.profile=exponential"], "split.profile=exponential: must be natural, exp"),
            (["split.profile=exp"], "split.profile=exp: needs split.ratio"),
            (["split.profile=natural", "split.ratio=3"], "split.ratio=3: needs split.profile=exp or step"),
            (["split.total=100"], "split.total=100: needs split.profile"),
            (["split.ratio=3", "split.train_size=100"], "split.train_size=100: split.ratio chooses the images"),
            (["split.ratio=5000"], "split.ratio=5000: leaves no image of disgust"),
        ],
    ),
)
def test_mistakes_are_one_line(cli, words, message):
    outcome = cli(*TINY, *words)
    assert outcome.code == 2
    assert message in outcome.error
