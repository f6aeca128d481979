"""Sets of classes: thresholds by hand, the promised rate by simulation, classes with too few images."""

import numpy as np
import pytest

from fer_lightning.metrics.conformal import (
    MOST_KEPT,
    ClassScores,
    coverage,
    fit,
    images_needed,
    prediction_sets,
    rank_needed,
)


def answers(rng: np.random.Generator, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a poor model, and labels with so many images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(labels), len(counts))) + 1.0 * np.eye(len(counts))[labels]
    logits[:, 0] += 1  # which calls too many images class 0
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True), labels


def test_threshold_by_hand() -> None:
    """With nine scores, the ceil(10 * 0.8) = 8th smallest."""
    scores = ClassScores([[0.1 * k for k in range(1, 10)], []], [9, 0])
    np.testing.assert_allclose(scores.thresholds(0.8), [0.8, np.inf])
    np.testing.assert_allclose(scores.thresholds(0.9), [0.9, np.inf])
    assert np.isinf(scores.thresholds(0.91)).all()


@pytest.mark.parametrize(("level", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_images_needed(level: float, needed: int) -> None:
    assert images_needed(level) == needed
    assert rank_needed(needed, level) <= needed
    assert rank_needed(needed - 1, level) > needed - 1


def test_the_rate_holds_in_each_class() -> None:
    """Mean coverage over 300 draws is between level and level + 1 / (n + 1), in every class, up to simulation error."""
    rng, counts, level = np.random.default_rng(0), [60, 12, 25], 0.8
    rates = []
    for _ in range(300):
        scores = fit(*answers(rng, counts))
        probabilities, labels = answers(rng, [100] * 3)
        rates.append(coverage(prediction_sets(probabilities, scores.thresholds(level)), labels)[1])
    mean, error = np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(300)
    assert (mean > level - 3 * error).all()
    assert (mean < level + 1 / (np.array(counts) + 1) + 3 * error + 0.01).all()  # the most probable class is added


def test_other_shares_of_the_classes_leave_the_rates() -> None:
    rng, level = np.random.default_rng(1), 0.9
    scores = fit(*answers(rng, [2000, 500, 500]))
    for counts in ([3000, 300, 300], [300, 300, 3000]):
        probabilities, labels = answers(rng, counts)
        rates = coverage(prediction_sets(probabilities, scores.thresholds(level)), labels)[1]
        np.testing.assert_allclose(rates, level, atol=0.05)


def test_a_class_with_too_few_images_is_in_every_set() -> None:
    probabilities, labels = answers(np.random.default_rng(2), [50, 8, 50])
    scores = fit(probabilities, labels)
    assert np.isinf(scores.thresholds(0.9)).tolist() == [False, True, False]
    assert prediction_sets(probabilities, scores.thresholds(0.9))[:, 1].all()


def test_an_empty_set_holds_the_most_probable_class() -> None:
    sets = prediction_sets(np.array([[0.4, 0.6], [0.95, 0.05]]), np.array([0.1, 0.1]))
    assert sets.tolist() == [[False, True], [True, False]]


def test_many_scores_are_kept_in_part_and_the_sets_only_grow() -> None:
    rng = np.random.default_rng(3)
    probabilities, labels = answers(rng, [3000, 700])
    scores = fit(probabilities, labels)
    assert [len(kept) for kept in scores.kept] == [MOST_KEPT, MOST_KEPT]
    assert scores.counts == [3000, 700]
    for level in (0.5, 0.9, 0.99):
        exact = [
            np.sort(1 - probabilities[labels == k, k])[rank_needed(n, level) - 1] for k, n in enumerate(scores.counts)
        ]
        kept = scores.thresholds(level)
        assert (kept >= exact).all()
        assert (kept - exact < 0.02).all()


def test_coverage_by_hand() -> None:
    sets = np.array([[True, True], [True, False], [False, True]])
    share, by_class, size = coverage(sets, np.array([0, 1, 1]))
    assert (share, by_class.tolist(), size) == (pytest.approx(2 / 3), [1, 0.5], pytest.approx(4 / 3))
    assert np.isnan(coverage(np.zeros((0, 2), bool), np.zeros(0, int))[0])
