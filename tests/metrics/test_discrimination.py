"""Scores of separation and confusion: hand values, and torchmetrics'."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_matthews_corrcoef,
)

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.classification import (
    classification_metrics,
    confusion_matrix,
    g_mean,
    grouped_recall,
    matthews_correlation,
)
from fer_lightning.metrics.discrimination import auroc, average_precision, macro_areas

# Three images of the class among five, one tie across the border.
SCORES = np.array([0.9, 0.8, 0.8, 0.4, 0.1])
POSITIVE = np.array([True, True, False, True, False])


def test_auroc_by_hand() -> None:
    """Six pairs: .9 beats both, .8 ties one and beats one, .4 loses one and beats one."""
    assert auroc(SCORES, POSITIVE) == pytest.approx((2 + 1.5 + 1) / 6)
    assert np.isnan(auroc(SCORES, np.ones(5, bool)))
    assert np.isnan(auroc(SCORES, np.zeros(5, bool)))


def test_average_precision_by_hand() -> None:
    """Recall 1/3 at precision 1, 2/3 at 2/3 (the tie enters at once), 1 at 3/4."""
    assert average_precision(SCORES, POSITIVE) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert average_precision(SCORES, np.ones(5, bool)) == 1
    assert np.isnan(average_precision(SCORES, np.zeros(5, bool)))


def test_scores_equal_torchmetrics() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, 400)
    probabilities = rng.dirichlet(np.ones(7), 400).round(2) + np.eye(7)[labels] * 0.1  # rounded, so that some tie
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    p, y = torch.tensor(probabilities), torch.tensor(labels)
    ours = classification_metrics(probabilities, labels, EMOTIONS, "")
    assert ours["auroc_macro"] == pytest.approx(multiclass_auroc(p, y, 7).item(), abs=1e-6)
    assert ours["average_precision_macro"] == pytest.approx(multiclass_average_precision(p, y, 7).item(), abs=1e-6)
    assert ours["mcc"] == pytest.approx(multiclass_matthews_corrcoef(p, y, 7).item(), abs=1e-6)
    recalls = np.array([ours[f"recall/{name}"] for name in EMOTIONS])
    assert ours["g_mean"] == pytest.approx(np.prod(recalls) ** (1 / 7))


def test_g_mean_leaves_out_classes_without_images() -> None:
    assert g_mean(np.array([0.5, np.nan, 0.08])) == pytest.approx(0.2)
    assert g_mean(np.array([0.5, 0.0, np.nan])) == 0
    assert np.isnan(g_mean(np.array([np.nan])))


def test_mcc_of_two_classes_by_hand() -> None:
    """(TP TN - FP FN) / sqrt of the four sums, with 4, 3, 2 and 1 images."""
    assert matthews_correlation(np.array([[4, 1], [2, 3]])) == pytest.approx(10 / np.sqrt(6 * 5 * 4 * 5))
    assert matthews_correlation(np.array([[5, 0], [3, 0]])) == 0


def test_areas_leave_out_classes_without_images() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.75, 0.15, 0.1]])
    assert macro_areas(probabilities, np.array([0, 1, 1])) == pytest.approx(((0.5 + 0.5) / 2, (0.5 + 5 / 6) / 2))
    only, precision = macro_areas(probabilities, np.array([0, 0, 0]))
    assert np.isnan(only)
    assert precision == 1
    assert np.isnan(macro_areas(np.zeros((0, 3)), np.zeros(0, int))).all()


def test_undefined_scores_are_none() -> None:
    scores = classification_metrics(np.eye(7)[[0, 1]], [0, 0], EMOTIONS, "")
    assert scores["auroc_macro"] is None
    assert scores["average_precision_macro"] == pytest.approx(1.0)
    assert (scores["g_mean"], scores["mcc"]) == (0.5, 0.0)
    empty = classification_metrics(np.zeros((0, 7)), [], EMOTIONS, "")
    assert [empty[key] for key in ("g_mean", "mcc", "auroc_macro", "aurc")] == [None] * 4


def test_groups_of_many_classes() -> None:
    """More than 100, 20 to 100, fewer than 20 training images; for more than 20 classes alone."""
    recall, counts = [0.5] * 19 + [0.9, 0.1, None], [60] * 19 + [101, 19, 5]
    assert grouped_recall(recall, counts, "val/") == {
        "val/recall_many": 0.9,
        "val/recall_medium": pytest.approx(0.5),
        "val/recall_few": 0.1,
    }
    assert grouped_recall([0.5] * 21, [100] * 20 + [20], "")["recall_few"] is None
    assert grouped_recall([0.5] * 20, [100] * 20) == {}


def test_confusion_matrix_of_the_hand_values() -> None:
    assert confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist() == [[1, 1], [0, 1]]
