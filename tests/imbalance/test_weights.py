"""Class weights against the published formulas and FER-2013's counts."""

import functools
import math

import numpy as np
import pytest
from command_line import TINY

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.imbalance.losses import LDAM, ClassBalancedFocal, CrossEntropy, FocalLoss, WeightedBCE
from fer_lightning.imbalance.second_stage_losses import SecondStageWeights
from fer_lightning.imbalance.weights import (
    NORMALIZATIONS,
    SCHEMES,
    class_weights,
    log_prior,
    weights_by_class,
    weights_in_words,
)
from fer_lightning.runtime.errors import UserError

COUNTS = [3995, 436, 4097, 7215, 4830, 3171, 4965]
"""FER-2013's Training counts, in label order."""

TABLE = {
    ("inverse", "sum_C", 0.9999): (0.480002, 4.398186, 0.468052, 0.265781, 0.397020, 0.604733, 0.386225),
    ("inverse", "sum_1", 0.9999): (0.068572, 0.628312, 0.066865, 0.037969, 0.056717, 0.086390, 0.055175),
    ("inverse", "balanced", 0.9999): (1.026605, 9.406619, 1.001046, 0.568439, 0.849127, 1.293373, 0.826039),
    ("inverse_sqrt", "sum_C", 0.9999): (0.805754, 2.439032, 0.795661, 0.599574, 0.732803, 0.904404, 0.722772),
    ("effective", "sum_C", 0.9999): (0.528166, 4.077218, 0.517472, 0.338438, 0.454091, 0.640122, 0.444492),
    ("effective", "sum_C", 0.999): (0.799104, 2.218873, 0.797655, 0.784999, 0.790723, 0.818724, 0.789922),
}


@pytest.mark.parametrize(("scheme", "normalization", "beta"), TABLE)
def test_fer2013_table(scheme, normalization, beta):
    weights = class_weights(COUNTS, scheme, normalization, beta)
    assert weights.numpy() == pytest.approx(TABLE[scheme, normalization, beta], abs=5.1e-7)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_formula_and_normalization(scheme, normalization):
    n = np.array(COUNTS, dtype=np.float64)
    formula = {
        "none": np.ones(7),
        "inverse": 1 / n,
        "inverse_sqrt": 1 / np.sqrt(n),
        "effective": (1 - 0.9999) / (1 - 0.9999**n),
    }[scheme]
    weights = class_weights(COUNTS, scheme, normalization).numpy()
    assert weights.dtype == np.float64
    assert weights / weights[0] == pytest.approx(formula / formula[0], rel=1e-9)
    total = {"balanced": (n / n.sum() * weights).sum(), "sum_C": weights.sum() / 7, "sum_1": weights.sum()}
    assert total[normalization] == pytest.approx(1, rel=1e-12)


def test_paper_split_weights():
    counts = [2800, 382, 2800, 2800, 2800, 2800, 2800]
    sum_c = class_weights(counts, "inverse", "sum_C").numpy()
    sum_1 = class_weights(counts, "inverse", "sum_1").numpy()
    assert sum_c[:2] == pytest.approx([0.525137, 3.849175], abs=5.1e-7)
    assert sum_1[:2] == pytest.approx([0.075020, 0.549882], abs=5.1e-7)


def test_effective_number_goes_from_uniform_to_inverse():
    assert class_weights(COUNTS, "effective", beta=0.0).numpy() == pytest.approx(np.ones(7), rel=1e-12)
    nearly_inverse = class_weights(COUNTS, "effective", beta=1 - 1e-12).numpy()
    assert nearly_inverse == pytest.approx(class_weights(COUNTS, "inverse").numpy(), rel=1e-6)


def test_unweighted_accepts_an_empty_class():
    assert class_weights([5, 0, 3], "none").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("counts", "settings", "words"),
    [
        (COUNTS, {"scheme": "sqrt"}, ["'sqrt'", "inverse_sqrt"]),
        (COUNTS, {"scheme": "inverse", "normalization": "mean"}, ["'mean'", "balanced"]),
        (COUNTS, {"scheme": "effective", "beta": 1.0}, ["beta=1.0", "below 1"]),
        (COUNTS, {"scheme": "effective", "beta": -0.1}, ["beta=-0.1"]),
        (COUNTS, {"scheme": "effective", "beta": float("nan")}, ["beta=nan"]),
        ([5, 0, 3], {"scheme": "inverse"}, ["class 1", "[5, 0, 3]"]),
        ([5, 0, 3], {"scheme": "inverse_sqrt"}, ["class 1"]),
        ([5, 0, 3], {"scheme": "effective"}, ["class 1"]),
        ([], {"scheme": "none"}, ["class_counts=[]"]),
        ([0, 0], {"scheme": "none"}, ["class_counts=[0, 0]"]),
        ([4, -1], {"scheme": "inverse"}, ["class_counts=[4, -1]"]),
    ],
)
def test_mistakes_are_named_in_one_line(counts, settings, words):
    with pytest.raises(UserError) as error:
        class_weights(counts, **settings)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_log_prior_is_the_logarithm_of_the_shares():
    assert log_prior([3, 1]).tolist() == pytest.approx([math.log(0.75), math.log(0.25)], rel=1e-15)
    assert log_prior(COUNTS).exp().sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "words"), [([5, 0, 3], "class 1"), ([], "one count per class"), ([0, 0], "not all")]
)
def test_log_prior_needs_an_image_of_every_class(counts, words):
    with pytest.raises(UserError, match=words):
        log_prior(counts)


@pytest.mark.parametrize(("power", "scheme"), [(0, "none"), (0.5, "inverse_sqrt"), (1, "inverse")])
def test_a_power_subsumes_the_schemes(power, scheme):
    for normalization in NORMALIZATIONS:
        expected = class_weights(COUNTS, scheme, normalization).numpy()
        assert class_weights(COUNTS, "effective", normalization, power=power).numpy() == pytest.approx(expected)


def test_a_power_needs_images_of_every_class():
    with pytest.raises(UserError, match="has 0 for class 1"):
        class_weights([5, 0], "none", power=0.5)
    assert class_weights([5, 0], "inverse", power=0).tolist() == [1, 1]


def test_weights_by_name():
    assert weights_by_class({"disgust": 5, "fear": 2.5}, EMOTIONS) == [1, 5, 2.5, 1, 1, 1, 1]
    with pytest.raises(
        UserError, match=r"\{disgusst: 5\}: no such class \(did you mean disgust\?\); accepted: angry, disgust"
    ):
        weights_by_class({"disgusst": 5}, EMOTIONS)
    for weight in (0, -1, math.inf, math.nan, True, "much"):
        with pytest.raises(UserError, match=r"imbalance\.loss\.weights\.fear=.*: must be a number above 0"):
            weights_by_class({"fear": weight}, EMOTIONS)


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy, FocalLoss, ClassBalancedFocal, WeightedBCE, functools.partial(LDAM, epochs=2)],
    ids=["cross entropy", "focal", "class-balanced focal", "bce", "LDAM"],
)
def test_every_weighted_loss_takes_them(loss):
    given = [1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert loss(COUNTS, weights=given).weight.tolist() == given
    power = loss(COUNTS, power=0.25, normalization="sum_1").weight.numpy()
    assert power == pytest.approx(class_weights(COUNTS, "none", "sum_1", power=0.25).numpy(), rel=1e-6)


def test_marc_takes_weights_in_place_of_its_power(cli):
    own = ("imbalance=marc", "imbalance.loss.weights={disgust: 5}", "trainer.max_epochs=2")
    refused = cli(*TINY, *own)
    assert refused.code == 2
    assert "imbalance.loss.power=null" in refused.error
    assert cli(*TINY, *own, "imbalance.loss.power=null").code == 0


def test_the_weights_of_a_loss_are_named(cli):
    outcome = cli(*TINY, "imbalance.loss.weights={disgust: 5}")
    assert "Class weights in the loss: angry 1, disgust 5, fear 1, happy 1, sad 1, surprise 1, neutral 1" in outcome.out
    assert not weights_in_words(CrossEntropy(COUNTS), EMOTIONS)
    second = SecondStageWeights(COUNTS, 4, 0.25, None, weighting="inverse")
    assert weights_in_words(second, EMOTIONS).startswith("angry 1.03, disgust 9.41, fear 1, ")
    many = CrossEntropy(range(1, 22), weighting="inverse")
    assert weights_in_words(many, [f"class {n}" for n in range(21)]) == "0.524 (class 20) to 11 (class 0)"
