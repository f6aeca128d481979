"""Prior shift: Bayes' rule by hand, and EM that recovers a known shift."""

import numpy as np
import pytest

from fer_lightning.metrics.calibration import nll
from fer_lightning.metrics.prior import estimate, model_prior, shift

OLD = np.array([0.6, 0.3, 0.1])


def posterior(rng: np.random.Generator, shares: np.ndarray, n: int, assumed: np.ndarray = OLD):
    """Images of Gaussian classes with these shares, and their exact probabilities under the assumed ones."""
    labels = rng.choice(3, n, p=shares)
    place = rng.normal(size=(n, 2)) + 1.5 * np.array([[0, 0], [1, 0], [0, 1]])[labels]
    distances = ((place[:, None] - 1.5 * np.array([[0, 0], [1, 0], [0, 1]])) ** 2).sum(axis=2)
    weights = assumed * np.exp(-distances / 2)
    return weights / weights.sum(axis=1, keepdims=True), labels


def test_shift_by_hand() -> None:
    """.6 and .4 under (1/2, 1/2) become .6 * .2 and .4 * .8, divided by their sum."""
    shifted = shift(np.array([[0.6, 0.4]]), np.array([0.5, 0.5]), np.array([0.2, 0.8]))
    np.testing.assert_allclose(shifted, [[0.12 / 0.44, 0.32 / 0.44]])
    np.testing.assert_allclose(shift(np.array([[0.6, 0.4]]), OLD[:2], OLD[:2]), [[0.6, 0.4]])


def test_a_class_that_does_not_occur_gets_probability_0() -> None:
    shifted = shift(np.array([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]), OLD, np.array([0.0, 0.5, 0.5]))
    assert (shifted[:, 0] == 0).all()
    np.testing.assert_allclose(shifted.sum(axis=1), 1)


def test_shifting_there_and_back() -> None:
    probabilities, _ = posterior(np.random.default_rng(0), OLD, 50)
    new = np.array([0.1, 0.1, 0.8])
    np.testing.assert_allclose(shift(shift(probabilities, OLD, new), new, OLD), probabilities)


def test_em_recovers_a_known_shift() -> None:
    new = np.array([0.15, 0.2, 0.65])
    probabilities, labels = posterior(np.random.default_rng(1), new, 4000)
    result = estimate(probabilities, OLD)
    np.testing.assert_allclose(result.prior, new, atol=0.05)
    assert (result.images, result.few) == (4000, False)
    assert estimate(probabilities[:20], OLD).few
    shifted = shift(probabilities, OLD, result.prior)
    assert nll(shifted, labels) < nll(probabilities, labels) - 0.2
    # A fixed point: the mean of the shifted probabilities and of 20 images per class with the old shares.
    fixed = (shifted.sum(axis=0) + 60 * OLD) / 4060
    np.testing.assert_allclose(fixed, result.prior, atol=1e-4)


def test_few_images_leave_the_old_prior() -> None:
    probabilities, _ = posterior(np.random.default_rng(1), np.array([0.0, 0.0, 1.0]), 3)
    np.testing.assert_allclose(estimate(probabilities, OLD).prior, OLD, atol=0.06)


def test_the_prior_of_a_plain_model_is_that_of_its_images() -> None:
    probabilities, labels = posterior(np.random.default_rng(2), OLD, 4000)
    np.testing.assert_allclose(model_prior(probabilities, labels), OLD, atol=0.03)


def test_the_prior_of_a_balanced_model_is_uniform() -> None:
    """Trained against imbalance: its probabilities assume equal shares, its validation images have others."""
    uniform = np.full(3, 1 / 3)
    probabilities, labels = posterior(np.random.default_rng(3), OLD, 4000, assumed=uniform)
    prior = model_prior(probabilities, labels)
    np.testing.assert_allclose(prior, uniform, atol=0.05)
    shares = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(shift(probabilities, prior, shares).mean(axis=0), shares, atol=1e-4)


def test_a_class_without_validation_images_keeps_a_share() -> None:
    probabilities, labels = posterior(np.random.default_rng(4), np.array([0.7, 0.3, 0.0]), 300)
    prior = model_prior(probabilities, labels)
    assert (prior > 0).all()
    assert prior.sum() == pytest.approx(1)
