"""Confident learning: its thresholds, the confident joint, and labels that were flipped on purpose."""

import numpy as np
import pytest

from fer_lightning.metrics.label_errors import (
    class_thresholds,
    confident_classes,
    find_label_errors,
    normalized_margin,
    precision_recall,
)

PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.7, 0.2, 0.1],
        [0.2, 0.75, 0.05],  # labelled 0
        [0.1, 0.8, 0.1],
        [0.3, 0.4, 0.3],
        [0.5, 0.1, 0.4],
        [0.05, 0.35, 0.6],
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 2, 2])


def noisy(seed: int, n: int = 4000, classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels of which a tenth are wrong, and the true classes, of unequal sizes."""
    rng = np.random.default_rng(seed)
    true = rng.choice(classes, n, p=np.array([16, 8, 4, 2, 1])[:classes] / 31)
    logits = rng.normal(0, 1, (n, classes))
    logits[np.arange(n), true] += rng.normal(4, 1, n)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flipped = rng.random(n) < 0.1
    labels = np.where(flipped, (true + rng.integers(1, classes, n)) % classes, true)
    return probabilities, labels, true


def test_values_of_the_definition():
    thresholds = class_thresholds(PROBABILITIES, LABELS)
    np.testing.assert_allclose(thresholds, [(0.9 + 0.7 + 0.2) / 3, (0.8 + 0.4) / 2, (0.4 + 0.6) / 2])
    assert confident_classes(PROBABILITIES, thresholds).tolist() == [0, 0, 1, 1, -1, -1, 2]
    errors = find_label_errors(PROBABILITIES, LABELS)
    assert errors.ranked.tolist() == [2]
    np.testing.assert_allclose(errors.joint, [[2, 1, 0], [0, 2, 0], [0, 0, 2]])
    assert errors.estimated == pytest.approx(1)
    np.testing.assert_allclose(normalized_margin(PROBABILITIES, LABELS)[[0, 2, 5]], [0.85, -0.55, -0.1])


def test_a_class_of_low_probabilities_is_believed_where_it_is_not_the_largest():
    probabilities = np.array([[0.55, 0.45], [0.9, 0.1], [0.95, 0.05], [0.6, 0.4], [0.7, 0.3]])
    labels = np.array([0, 0, 0, 1, 1])
    errors = find_label_errors(probabilities, labels)
    assert errors.suggested.tolist() == [1, 0, 0, 1, -1]
    assert errors.wrong.tolist() == [True, False, False, False, False]


def test_a_label_without_images_is_suggested_to_none():
    errors = find_label_errors(np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]), np.array([0, 1]))
    assert 2 not in errors.suggested
    assert errors.joint.sum() == pytest.approx(2)


def test_flipped_labels_are_found_and_counted():
    probabilities, labels, true = noisy(0)
    errors, wrong = find_label_errors(probabilities, labels), labels != true
    everything = np.ones(len(labels), bool)
    precision, recall = precision_recall(errors.ranked, wrong, everything)
    assert precision > 0.75
    assert recall > 0.75
    first, _ = precision_recall(errors.ranked[:100], wrong, everything)
    assert first > 0.97, "the ranking begins with what is surest"
    assert errors.estimated == pytest.approx(wrong.sum(), rel=0.25)
    assert (np.diff(errors.margin[errors.ranked]) >= 0).all()


def test_nothing_depends_on_the_order_of_the_classes():
    probabilities, labels, _ = noisy(1)
    order = np.array([3, 0, 4, 1, 2])
    place = np.argsort(order)
    errors, permuted = (
        find_label_errors(probabilities, labels),
        find_label_errors(probabilities[:, order], place[labels]),
    )
    assert (errors.wrong == permuted.wrong).all()
    np.testing.assert_allclose(errors.joint[np.ix_(order, order)], permuted.joint)


def test_precision_and_recall_leave_undecided_images_out():
    wrong, decided = np.array([True, True, False, False, True]), np.array([True, True, True, True, False])
    assert precision_recall(np.array([0, 2, 4]), wrong & decided, decided) == (0.5, 0.5)
    assert np.isnan(precision_recall(np.array([4]), wrong & decided, decided)[0])
    assert np.isnan(precision_recall(np.array([2]), np.zeros(5, bool), decided)[1])
