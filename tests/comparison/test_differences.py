"""Differences of paired methods: formulas against textbook values and limma's, intervals against simulated methods."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from simulation import ALL_PAIRS, BASELINE_PAIRS, CLASSES, UNEQUAL, World, estimates_of, influences, simulate

from fer_lightning.comparison import differences, statistics
from fer_lightning.comparison.differences import PairedDifference, Variances, estimate, paired_difference


def alone(gaps: np.ndarray, resampled: np.ndarray) -> dict[str, float]:
    """The estimate of a single comparison."""
    (row,) = estimate([paired_difference(gaps, resampled)]).to_dict("records")
    return {str(key): value for key, value in row.items()}


def test_difference_without_effects_of_images_is_a_t_test() -> None:
    gaps = np.array([0.02, 0.01, 0.035, 0.005])
    found = alone(gaps, np.zeros((50, 4)))
    expected = scipy.stats.ttest_1samp(gaps, 0.0)
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found["low"], found["high"]) == pytest.approx(expected.confidence_interval(0.95))


def test_difference_without_effects_of_training_is_normal() -> None:
    resampled = np.repeat(np.random.default_rng(3).normal(0.02, 0.01, (4000, 1)), 3, axis=1)
    error = resampled[:, 0].std(ddof=1)
    for pairs in (1, 3):
        found = alone(np.full(pairs, 0.02), resampled[:, :pairs])
        assert found["high"] - 0.02 == pytest.approx(1.959964 * error)
        assert found["p"] == pytest.approx(2 * scipy.stats.norm.sf(0.02 / error))
        assert found["detectable"] == pytest.approx((1.959964 + 0.841621) * error)


def test_difference_adds_both_variances() -> None:
    """By hand: S2/k = 0.0001 / 3, c = 0.0004; t(2) = 4.3027."""
    rng = np.random.default_rng(4)
    resampled = np.repeat(rng.normal(size=(500, 1)), 3, axis=1)
    resampled *= 0.02 / resampled[:, 0].std(ddof=1)
    training, images = 0.0001 / 3, 0.0004
    found = alone(np.array([0.02, 0.03, 0.04]), resampled)
    assert found["difference"] == pytest.approx(0.03)
    half = (4.302653 * training + 1.959964 * images) / np.sqrt(training + images)
    assert (found["low"], found["high"]) == pytest.approx((0.03 - half, 0.03 + half), rel=1e-5)


def test_interval_and_p_agree() -> None:
    rng = np.random.default_rng(5)
    resampled = rng.normal(0, 0.01, (300, 3)) + rng.normal(0, 0.01, (300, 1))
    spread = np.array([-0.004, 0.0, 0.004])
    found = [alone(gap + spread, resampled) for gap in np.linspace(0, 0.06, 13)]
    assert all((each["low"] > 0) == (each["p"] < 0.05) for each in found)
    assert {each["low"] > 0 for each in found} == {True, False}
    assert np.all(np.diff([each["p"] for each in found]) < 0)


def test_differences_that_cannot_be_judged() -> None:
    same = alone(np.zeros(3), np.zeros((10, 3)))
    assert [same[key] for key in ("difference", "low", "high", "p", "detectable")] == [0, 0, 0, 1, 0]
    never = alone(np.array([0.1]), np.full((10, 1), 0.1))
    assert never["difference"] == 0.1
    assert np.isnan([never["p"], never["low"], never["p_holm"], never["detectable"]]).all()
    assert np.isnan(alone(np.array([]), np.zeros((10, 0)))["difference"])
    assert np.isnan(alone(np.array([0.1, np.nan]), np.zeros((10, 2)))["difference"])
    assert np.isnan(alone(np.array([0.1]), np.zeros((0, 1)))["low"])
    assert alone(np.full(3, 0.5), np.repeat([[0.5], [0.5001]], 3, axis=1))["p"] == pytest.approx(1e-15)
    assert list(estimate([]).columns) == list(estimate([PairedDifference(0.0, 0.0, 0.0, 3)]).columns)


def test_inverse_trigamma() -> None:
    values = np.array([1e-8, 1e-3, 0.1, 1.0, 5.0, 1e3, 1e9])
    found = differences.inverse_trigamma(values)
    np.testing.assert_allclose(scipy.special.polygamma(1, found), values, rtol=1e-5)


def test_moderation_recovers_the_prior() -> None:
    """Variances drawn from Smyth's own model, many of them: d0 = 6, s0^2 = 0.04, d = 3."""
    rng = np.random.default_rng(6)
    true = 0.04 * 6 / rng.chisquare(6, 40_000)
    drawn = true * rng.chisquare(3, true.shape) / 3
    moderated, freedom = differences.moderate(drawn, np.full(drawn.shape, 3.0), np.inf)
    assert freedom[0] - 3 == pytest.approx(6, rel=0.1)
    np.testing.assert_allclose(moderated, (6 * 0.04 + 3 * drawn) / 9, rtol=0.05)


def test_moderation_by_hand() -> None:
    """The method of moments in scalar arithmetic, with other tools: brentq instead of Newton."""
    variances, d = np.array([1.0, 40.0, 0.02, 3.0]), 2.0
    logs = np.log(variances) - scipy.special.digamma(d / 2) + np.log(d / 2)
    excess = logs.var(ddof=1) - scipy.special.polygamma(1, d / 2)
    prior = 2 * scipy.optimize.brentq(lambda x: scipy.special.polygamma(1, x) - excess, 1e-3, 1e3)
    scale = np.exp(logs.mean() + scipy.special.digamma(prior / 2) - np.log(prior / 2))
    moderated, freedom = differences.moderate(variances, np.full(4, d), 8)
    np.testing.assert_allclose(moderated, (prior * scale + d * variances) / (prior + d))
    np.testing.assert_allclose(freedom, min(prior + d, 8))


def test_variances_that_vary_less_than_chance_are_pooled() -> None:
    """d0 is infinite and s0^2 = exp(mean of log S2 - digamma(d/2) + log(d/2)), Smyth's estimate."""
    variances = np.array([1.0, 1.1, 0.9])
    moderated, freedom = differences.moderate(variances, np.full(3, 2.0), 6)
    np.testing.assert_allclose(moderated, np.exp(np.log(variances).mean() + np.euler_gamma))
    np.testing.assert_allclose(freedom, 6)


def test_moderation_with_variances_of_zero() -> None:
    freedom = np.full(4, 2.0)
    moderated, _ = differences.moderate(np.array([0.0, 1.0, 2.0, 3.0]), freedom, 8)
    assert np.all(moderated > 0)
    for variances in (np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0])):
        moderated, together = differences.moderate(variances, freedom, 8)
        np.testing.assert_array_equal(moderated, variances)
        np.testing.assert_array_equal(together, freedom)


def test_families_are_moderated_from_three_comparisons_on() -> None:
    gaps = [PairedDifference(0.01 * k, 1e-4 * k, 1e-4, 3) for k in range(1, 4)]
    apart = [estimate([gap]).iloc[0] for gap in gaps]
    two, three = estimate(gaps[:2]), estimate(gaps)
    for key in ("low", "high", "p"):
        assert two[key].tolist() == pytest.approx([row[key] for row in apart[:2]])
        assert all(abs(row[key] - value) > 1e-5 for row, value in zip(apart, three[key], strict=True))
    single = PairedDifference(0.02, np.nan, 1e-4, 1)
    unknown = PairedDifference(np.nan, np.nan, np.nan, 3)
    mixed = estimate([*gaps, single, unknown])
    assert mixed["p"][3] == pytest.approx(estimate([single])["p"][0])  # one pair: images alone, as before
    assert mixed.iloc[4].drop("pairs").isna().all()
    np.testing.assert_allclose(mixed["p"][:3], three["p"])


def test_simultaneous_intervals_are_bonferronis() -> None:
    gaps = [PairedDifference(value, 2e-4, 1e-4, 4) for value in (0.01, 0.02)]
    found = estimate(gaps)
    variances = Variances(np.full(2, 5e-5), np.full(2, 3.0), np.full(2, 1e-4))
    np.testing.assert_allclose(found["high_all"] - found["difference"], variances.half_widths(0.025))
    assert (found["low_all"] < found["low"]).all()
    assert (found["detectable_all"] > found["detectable"]).all()
    (one,) = estimate(gaps[:1]).to_dict("records")
    assert (one["low_all"], one["high_all"]) == (one["low"], one["high"])


def test_influence_functions_agree_with_the_bootstrap() -> None:
    """What the simulation estimates variances by, against what the product does."""
    rng = np.random.default_rng(7)
    labels = rng.choice(CLASSES, 1500)
    answers = [np.where(rng.random(1500) < 0.6, labels, rng.choice(CLASSES, 1500)) for _ in range(3)]
    cells = np.stack([labels * CLASSES + each for each in answers])
    counts = np.stack([np.bincount(row, minlength=CLASSES**2) for row in cells]).reshape(-1, CLASSES, CLASSES)
    values = np.take_along_axis(influences(counts), cells[:, None, :], axis=2)
    resampled = statistics.bootstrap_scores([labels] * 3, answers, [np.arange(1500)] * 3, CLASSES, 1000)
    for metric in range(3):
        expected = np.cov(resampled[:, :, metric], rowvar=False)
        np.testing.assert_allclose(values[:, metric] @ values[:, metric].T, expected, atol=0.15 * expected.max())


def test_intervals_hold_at_three_seeds() -> None:
    """A small version of ``python tests/support/simulation.py``: coarse limits, for few simulations."""
    found = simulate(World(3), 60)
    moderated, before = (estimates_of(found, BASELINE_PAIRS, rule) for rule in (True, False))
    assert np.all(moderated.misses() < 10)
    assert np.all(moderated.family_errors() <= 12)
    assert np.all(moderated.half_widths(0.05).mean((0, 2)) < 0.8 * before.half_widths(0.05).mean((0, 2)))
    assert np.all(moderated.power(0.03, corrected=True) > before.power(0.03, corrected=True))


@pytest.mark.nightly
@pytest.mark.parametrize("factors", [(1.0,) * 6, UNEQUAL, (2.0,) * 6], ids=["equal", "unequal", "doubled"])
def test_intervals_hold_at_the_size_of_fer(factors: tuple[float, ...]) -> None:
    """The limits of docs/comparison.md, but for chance in 400 families."""
    found = simulate(World(5, factors), 400)
    for seeds, pairs in ((3, BASELINE_PAIRS), (3, ALL_PAIRS), (5, BASELINE_PAIRS), (5, ALL_PAIRS)):
        result = estimates_of(found.grouped(seeds), pairs, moderated=True)
        print(seeds, len(pairs), result.misses().round(1), result.family_errors().round(1))
        assert np.all((result.misses() >= 2) & (result.misses() <= 7.5))
        assert np.all(result.family_errors() <= 8)


@pytest.mark.nightly
def test_a_real_difference_is_found_and_covered() -> None:
    found = simulate(World(5, skills=(0, 0.2, 0.2, 0.2, 0.2, 0.2)), 300)
    result = estimates_of(found, BASELINE_PAIRS, moderated=True)
    truth = result.values.mean(axis=(0, 2), keepdims=True)
    assert np.all(truth > 0.03)
    assert np.all(result.misses(truth) <= 7.5)
    assert np.all(result.power(0.0, corrected=True) > 80)
