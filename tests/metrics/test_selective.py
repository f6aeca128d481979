"""The risk-coverage curve against hand values."""

import numpy as np
import pytest

from fer_lightning.metrics.selective import aurc, risk_at, selective_risks


def two_classes(confidence: list[float]) -> np.ndarray:
    return np.array([[value, 1 - value] for value in confidence])


def test_curve_by_hand() -> None:
    """The most confident is right, the second wrong, the third right."""
    probabilities, labels = two_classes([0.7, 0.9, 0.8]), np.array([0, 0, 1])
    np.testing.assert_allclose(selective_risks(probabilities, labels), [0, 1 / 2, 1 / 3])
    assert aurc(probabilities, labels) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert risk_at(selective_risks(probabilities, labels), 0.5) == 0.5
    assert risk_at(selective_risks(probabilities, labels), 0.01) == 0


def test_ties_do_not_depend_on_the_order() -> None:
    """Two equally confident answers, one of them wrong: each counts as half an error."""
    probabilities = two_classes([0.8, 0.8, 0.6])
    for labels in ([0, 1, 0], [1, 0, 0]):
        np.testing.assert_allclose(selective_risks(probabilities, np.array(labels)), [1 / 2, 1 / 2, 1 / 3])


def test_perfect_order_is_best() -> None:
    probabilities = two_classes([0.9, 0.8, 0.7, 0.6])
    right_first, wrong_first = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    assert aurc(probabilities, right_first) < aurc(probabilities, wrong_first)
    assert np.isnan(aurc(np.zeros((0, 2)), np.zeros(0, int)))
