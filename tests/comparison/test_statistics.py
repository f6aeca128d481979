"""Formulas against other libraries and textbook values."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch
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


@pytest.mark.parametrize("classes", [3, 300])
def test_bootstrap_scores_are_those_of_the_resampled_images(classes: int) -> None:
    rng = np.random.default_rng(3)
    labels, clusters = rng.integers(classes, size=400), rng.integers(350, size=400)
    answers = np.where(rng.random(400) < 0.6, labels, rng.integers(classes, size=400))
    found = statistics.bootstrap_scores([labels], [answers], [clusters], classes, 5, seed=4)[:, 0]
    groups = len(np.unique(clusters))
    drawn = np.random.default_rng(4).integers(groups, size=(5, groups))
    weights = np.stack([np.bincount(each, minlength=groups) for each in drawn])
    times = weights[:, np.unique(clusters, return_inverse=True)[1]]
    matrices = [confusion_matrix(np.repeat(labels, each), np.repeat(answers, each), classes) for each in times]
    np.testing.assert_allclose(found, statistics.scores(np.stack(matrices)), atol=1e-6)


def test_holm_ignores_what_is_unknown() -> None:
    np.testing.assert_allclose(statistics.holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    assert statistics.holm([]).shape == (0,)


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(0).random((50, 7)) ** 3
    for family in p:
        np.testing.assert_allclose(statistics.holm(family), multipletests(family, method="holm")[1], atol=1e-15)


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


def test_mcnemar_holds_without_a_difference() -> None:
    rng = np.random.default_rng(12)
    p = []
    for _ in range(1500):
        hard = rng.normal(size=300)
        right = hard + rng.normal(size=(2, 300)) < 0.5
        p.append(statistics.exact_mcnemar(*right)[2])
    assert 2 <= 100 * np.mean(np.array(p) < 0.05) <= 7  # exact tests err on the safe side
