"""Formulas against other libraries and textbook values; intervals and tests against simulated methods."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from simulation import simulate, true_gap
from statsmodels.stats.multitest import multipletests
from torchmetrics.functional.classification import multiclass_calibration_error

from fer_lightning.comparison import statistics
from fer_lightning.metrics import calibration
from fer_lightning.metrics.calibration import calibration_error
from fer_lightning.metrics.classification import classification_metrics, confusion_matrix


@pytest.fixture(autouse=True, scope="module")
def _old_objects_apart() -> Iterator[None]:
    """statsmodels collects garbage at every correction: 0.4 s each beside a loaded torch."""
    gc.freeze()
    yield
    gc.unfreeze()


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def answers(seed: int, n: int = 400, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities themselves: calibrated."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(2 * rng.normal(size=(n, classes)))
    labels = (probabilities.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return probabilities, labels


def test_t_interval_is_students() -> None:
    values = np.array([0.61, 0.63, 0.6, 0.66])
    mean, deviation, low, high = statistics.t_interval(values)
    assert (low, high) == pytest.approx(scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values)))
    assert (mean, deviation) == (values.mean(), values.std(ddof=1))
    assert statistics.t_interval(np.array([0.5]))[0] == 0.5
    assert np.isnan(statistics.t_interval(np.array([0.5]))[1:]).all()
    assert np.isnan(statistics.t_interval(np.array([0.5, np.nan]))).all()


def test_scores_are_those_of_metrics_json() -> None:
    probabilities, labels = answers(0)
    labels[labels == 1] = 2  # a class without images that is still answered
    expected = classification_metrics(probabilities, labels, [str(k) for k in range(7)], "")
    found = statistics.scores(confusion_matrix(labels, probabilities.argmax(axis=1), 7))
    assert found.tolist() == pytest.approx([expected[key] for key in ("accuracy", "balanced_accuracy", "f1_macro")])
    assert np.isnan(statistics.scores(np.zeros((7, 7)))).all()


def bootstrap(clusters: np.ndarray, right: np.ndarray, resamples: int = 3000) -> np.ndarray:
    """Accuracy of runs, rows of ``right``, on resampled images; two classes."""
    runs = len(right)
    labels = np.zeros(right.shape[1], np.int64)
    predictions = (~right).astype(np.int64)
    return statistics.bootstrap_scores([labels] * runs, list(predictions), [clusters] * runs, 2, resamples)[:, :, 0]


def test_bootstrap_agrees_with_theory_and_draws_the_same_images_for_all_runs() -> None:
    n = 900
    right = np.random.default_rng(0).random((2, n)) < 0.7
    found = bootstrap(np.arange(n), right[[0, 1, 0]])
    np.testing.assert_array_equal(found[:, 0], found[:, 2])
    share = right[0].mean()
    assert found[:, 0].mean() == pytest.approx(share, abs=0.002)
    assert found[:, 0].std() == pytest.approx(np.sqrt(share * (1 - share) / n), rel=0.05)
    np.testing.assert_array_equal(found, bootstrap(np.arange(n), right[[0, 1, 0]]))


def test_bootstrap_keeps_clusters_together() -> None:
    """Every image twice holds no more than once: the deviation is that of half as many images."""
    right = np.random.default_rng(1).random((1, 400)) < 0.6
    alone = bootstrap(np.arange(400), right).std()
    doubled = bootstrap(np.tile(np.arange(400), 2), np.tile(right, 2)).std()
    apart = bootstrap(np.arange(800), np.tile(right, 2)).std()
    assert doubled == pytest.approx(alone, rel=0.05)
    assert apart == pytest.approx(alone / np.sqrt(2), rel=0.05)


def test_bootstrap_knows_which_test_sets_overlap() -> None:
    rng = np.random.default_rng(2)
    right = rng.random(600) < 0.6
    parts = [np.arange(300), np.arange(300, 600), np.arange(150, 450)]
    found = statistics.bootstrap_scores(
        [np.zeros(300, np.int64)] * 3, [(~right[part]).astype(np.int64) for part in parts], parts, 2, 3000
    )[:, :, 0]
    correlation = np.corrcoef(found, rowvar=False)
    assert abs(correlation[0, 1]) < 0.06
    assert correlation[0, 2] == pytest.approx(0.5, abs=0.08)


def test_difference_without_effects_of_images_is_a_t_test() -> None:
    gaps = np.array([0.02, 0.01, 0.035, 0.005])
    found = statistics.paired_difference(gaps, np.zeros((50, 4)))
    expected = scipy.stats.ttest_1samp(gaps, 0.0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))


def test_difference_without_effects_of_training_is_normal() -> None:
    resampled = np.repeat(np.random.default_rng(3).normal(0.02, 0.01, (4000, 1)), 3, axis=1)
    error = resampled[:, 0].std(ddof=1)
    for pairs in (1, 3):
        found = statistics.paired_difference(np.full(pairs, 0.02), resampled[:, :pairs])
        assert found.high - found.value == pytest.approx(1.959964 * error)
        assert found.p == pytest.approx(2 * scipy.stats.norm.sf(0.02 / error))


def test_difference_adds_both_variances() -> None:
    """By hand: S2/k = 0.0001 / 3, c = 0.0004; t(2) = 4.3027."""
    rng = np.random.default_rng(4)
    resampled = np.repeat(rng.normal(size=(500, 1)), 3, axis=1)
    resampled *= 0.02 / resampled[:, 0].std(ddof=1)
    training, images = 0.0001 / 3, 0.0004
    found = statistics.paired_difference(np.array([0.02, 0.03, 0.04]), resampled)
    assert found.value == pytest.approx(0.03)
    half = (4.302653 * training + 1.959964 * images) / np.sqrt(training + images)
    assert (found.low, found.high) == pytest.approx((0.03 - half, 0.03 + half), rel=1e-5)


def test_interval_and_p_say_the_same() -> None:
    resampled = np.random.default_rng(5).normal(0, 0.01, (300, 3)) + np.random.default_rng(6).normal(0, 0.01, (300, 1))
    spread = np.array([-0.004, 0.0, 0.004])
    found = [statistics.paired_difference(gap + spread, resampled) for gap in np.linspace(0, 0.06, 61)]
    assert all((each.low > 0) == (each.p < 0.05) for each in found)
    assert {each.low > 0 for each in found} == {True, False}
    assert np.all(np.diff([each.p for each in found]) < 0)


def test_differences_that_cannot_be_judged() -> None:
    same = statistics.paired_difference(np.zeros(3), np.zeros((10, 3)))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    never = statistics.paired_difference(np.array([0.1]), np.full((10, 1), 0.1))
    assert never.value == 0.1
    assert np.isnan(never.p)
    assert np.isnan(statistics.paired_difference(np.array([]), np.zeros((10, 0))).value)
    assert np.isnan(statistics.paired_difference(np.array([0.1, np.nan]), np.zeros((10, 2))).value)
    assert np.isnan(statistics.paired_difference(np.array([0.1]), np.zeros((0, 1))).low)


def test_holm_ignores_what_is_unknown() -> None:
    np.testing.assert_allclose(statistics.holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    assert statistics.holm([]).shape == (0,)


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(0).random((50, 7)) ** 3
    for family in p:
        np.testing.assert_allclose(statistics.holm(family), multipletests(family, method="holm")[1], atol=1e-15)


def test_holm_finds_something_exactly_when_bonferroni_does() -> None:
    """What ``simulation.family_errors`` counts on."""
    families = np.random.default_rng(13).random((30, 5)) ** 3
    found = [(statistics.holm(family) < 0.05).any() for family in families]
    assert found == (families.min(axis=1) * 5 < 0.05).tolist()
    assert set(found) == {True, False}


def test_majority_vote_breaks_ties_by_probability() -> None:
    predictions = np.array([[0, 0, 1], [0, 1, 1], [1, 2, 2]])
    probabilities = np.full((3, 3, 3), 0.2)
    probabilities[:, 1] = [[0.5, 0.1, 0.4], [0.1, 0.5, 0.4], [0.1, 0.3, 0.6]]
    assert statistics.majority_vote(predictions, probabilities).tolist() == [0, 2, 1]


def test_mcnemar_is_the_binomial_test_of_the_discordant_images() -> None:
    right, baseline = np.array([True] * 20 + [False] * 10), np.array([False] * 14 + [True] * 11 + [False] * 5)
    only, baseline_only, p = statistics.exact_mcnemar(right, baseline)
    assert (only, baseline_only) == (14, 5)
    assert p == pytest.approx(scipy.stats.binomtest(5, 19).pvalue)
    assert statistics.exact_mcnemar(right, right) == (0, 0, 1.0)


def test_ranks_and_demsars_critical_difference() -> None:
    """Demsar (2006), section 3.2.2: four methods on fourteen data sets have a critical difference of 1.25."""
    values = np.random.default_rng(7).random((14, 4))
    ranks, p, distance = statistics.mean_ranks(values)
    assert distance == pytest.approx(1.25, abs=0.005)
    assert p == scipy.stats.friedmanchisquare(*values.T).pvalue
    assert ranks.sum() == pytest.approx(10)
    ranks, p, _ = statistics.mean_ranks(np.array([[0.6, 0.5, 0.5], [0.7, 0.6, 0.5]]))
    assert ranks.tolist() == [1, 2.25, 2.75]
    assert np.isnan(statistics.mean_ranks(np.ones((3, 3)))[1])
    assert np.isnan(statistics.mean_ranks(values[:, :2])[1])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_found_again(temperature: float) -> None:
    probabilities, labels = answers(8, n=20_000)
    sharpened = calibration.apply_temperature(probabilities, 1 / temperature)
    found = calibration.fit_temperature(sharpened, labels)
    assert found == pytest.approx(temperature, rel=0.04)
    best = calibration.nll(calibration.apply_temperature(sharpened, found), labels)
    assert all(
        best < calibration.nll(calibration.apply_temperature(sharpened, found * factor), labels)
        for factor in (0.95, 1.05)
    )


def test_temperature_without_a_minimum_ends_at_its_bounds() -> None:
    labels = np.array([0, 1, 2, 0])
    sure = 0.97 * np.eye(3)[labels] + 0.01
    assert 0.05 <= calibration.fit_temperature(sure, labels) < 0.2  # from there on the NLL is 0 in floating point
    assert calibration.fit_temperature(sure, (labels + 1) % 3) == pytest.approx(20, rel=0.01)
    assert np.isfinite(calibration.fit_temperature(np.eye(3)[labels], labels))
    with pytest.raises(ValueError, match="0 labels"):
        calibration.fit_temperature(np.zeros((0, 3)), np.array([], np.int64))
    with pytest.raises(ValueError, match="not finite"):
        calibration.fit_temperature(np.full((1, 3), np.nan), np.array([0]))


def test_scaling_is_dividing_logits() -> None:
    logits = np.random.default_rng(9).normal(size=(50, 7)) * 3
    np.testing.assert_allclose(calibration.apply_temperature(softmax(logits), 1.7), softmax(logits / 1.7), rtol=1e-9)


def test_calibration_agrees_with_torchmetrics() -> None:
    probabilities, labels = answers(10)
    probabilities = calibration.apply_temperature(probabilities, 0.5)
    top = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 7, n_bins=15)
    assert calibration_error(probabilities, labels) == pytest.approx(float(top), rel=1e-5)
    # Per class: torchmetrics' own two-class error of "this class or not", on the class's probability.
    each = []
    for k in range(7):
        bins = np.digitize(probabilities[:, k], np.linspace(0, 1, 16), right=True)
        gap = [(probabilities[bins == b, k] - (labels[bins == b] == k)).sum() for b in range(17)]
        each.append(np.abs(gap).sum() / len(labels))
    assert calibration.classwise_calibration_error(probabilities, labels) == pytest.approx(np.mean(each))


def test_reliability_sums_to_the_calibration_error() -> None:
    probabilities, labels = answers(11)
    confidence, accuracy, count = calibration.reliability(probabilities, labels)
    gaps = np.nansum(np.abs(confidence - accuracy) * count) / count.sum()
    assert gaps == pytest.approx(calibration_error(probabilities, labels))
    assert count.sum() == len(labels)
    assert np.isnan(accuracy[0])  # with seven classes the top probability is never below 1/7


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.nightly)])
def test_intervals_hold_without_a_difference(seeds: int) -> None:
    found = simulate(250, seeds, training=0.1)
    assert np.all(np.abs(found.misses() - 5) <= 2)
    np.testing.assert_array_equal(found.misses(), found.found())
    assert np.all(found.family_errors() <= 7)


@pytest.mark.nightly
def test_a_real_difference_is_found_and_covered() -> None:
    gap = true_gap(0.4, training=0.1)
    assert gap[0] > 0.05
    found = simulate(150, 5, training=0.1, skills=(0, 0.4) * 3)
    assert np.all(found.found() > 60)
    assert np.all(found.misses(gap) <= 7)


def test_mcnemar_holds_without_a_difference() -> None:
    rng = np.random.default_rng(12)
    p = []
    for _ in range(1500):
        hard = rng.normal(size=300)
        right = hard + rng.normal(size=(2, 300)) < 0.5
        p.append(statistics.exact_mcnemar(*right)[2])
    assert 2 <= 100 * np.mean(np.array(p) < 0.05) <= 7  # exact tests err on the safe side


@pytest.mark.parametrize(  # every two values of two columns meet
    ("seeds", "training", "test_sets"),
    [
        pytest.param(2, 0.0, "shared", marks=pytest.mark.nightly),
        pytest.param(2, 0.1, "overlapping", marks=pytest.mark.nightly),
        pytest.param(2, 0.3, "disjoint", marks=pytest.mark.nightly),
        pytest.param(3, 0.0, "overlapping", marks=pytest.mark.nightly),
        pytest.param(3, 0.1, "disjoint", marks=pytest.mark.slow),
        pytest.param(3, 0.3, "shared", marks=pytest.mark.nightly),
        pytest.param(5, 0.0, "disjoint", marks=pytest.mark.nightly),
        pytest.param(5, 0.1, "shared", marks=pytest.mark.nightly),
        pytest.param(5, 0.3, "overlapping", marks=pytest.mark.slow),
        pytest.param(10, 0.1, "shared", marks=pytest.mark.nightly),
    ],
)
def test_intervals_hold_whatever_decides(seeds: int, training: float, test_sets: str) -> None:
    """95 % +- 2, and 5 % + 2 but for chance in 400 families. Two seeds are worse, which ``report.notes`` states."""
    found = simulate(400, seeds, training, images=300, test_sets=test_sets)
    print(seeds, training, test_sets, found.misses().round(1), found.family_errors().round(1))
    assert np.all(found.misses() <= (7.5 if seeds == 2 else 7))
    assert np.all(found.misses() >= (2 if seeds == 2 else 3))
    assert np.all(found.family_errors() <= (12 if seeds == 2 else 7.5))


@pytest.mark.nightly
@pytest.mark.parametrize("seeds", [pytest.param(3), pytest.param(5, marks=pytest.mark.nightly)])
def test_families_against_one_baseline_hold(seeds: int) -> None:
    assert np.all(simulate(500, seeds, 0.1, against_first=True).family_errors() <= 7)
