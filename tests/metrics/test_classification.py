"""Scores against hand-computed values, torchmetrics and a published confusion matrix."""

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.calibration import calibration_error
from fer_lightning.metrics.classification import classification_metrics, confusion_matrix, macro_f1, precision_recall_f1
from fer_lightning.metrics.predictions import class_indices, confident_mistakes, probability_columns
from fer_lightning.model.step_metrics import training_metrics


def drawn_predictions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, 7) that lean towards labels drawn in FER-2013's ratios; every class has an image."""
    rng = np.random.default_rng(seed)
    ratios = np.array([3995, 436, 4097, 7215, 4830, 3171, 4965])
    labels = np.concatenate([np.arange(7), rng.choice(7, size=n - 7, p=ratios / ratios.sum())])
    logits = rng.normal(size=(n, 7)) + 1.2 * np.eye(7)[labels]
    exponent = np.exp(logits)
    return exponent / exponent.sum(axis=1, keepdims=True), labels


def test_scores_equal_torchmetrics() -> None:
    probabilities, labels = drawn_predictions(900)
    p, y = torch.tensor(probabilities), torch.tensor(labels)
    ours = classification_metrics(probabilities, labels, EMOTIONS, prefix="")

    assert ours["n"] == 900
    assert ours["accuracy"] == pytest.approx(multiclass_accuracy(p, y, 7, average="micro").item(), abs=1e-6)
    recall = multiclass_recall(p, y, 7, average=None).numpy()
    for name, expected in (
        ("recall", recall),
        ("precision", multiclass_precision(p, y, 7, average=None).numpy()),
        ("f1", multiclass_f1_score(p, y, 7, average=None).numpy()),
    ):
        np.testing.assert_allclose([ours[f"{name}/{e}"] for e in EMOTIONS], expected, atol=1e-6)
    assert ours["balanced_accuracy"] == pytest.approx(recall.mean(), abs=1e-6)
    assert ours["worst_recall"] == pytest.approx(recall.min(), abs=1e-6)
    assert ours["f1_macro"] == pytest.approx(multiclass_f1_score(p, y, 7, average="macro").item(), abs=1e-6)
    assert ours["nll"] == pytest.approx(torch.nn.functional.nll_loss(p.log(), y).item(), abs=1e-9)
    assert ours["ece"] == pytest.approx(multiclass_calibration_error(p, y, 7, n_bins=15).item(), abs=1e-6)
    np.testing.assert_array_equal(
        confusion_matrix(labels, probabilities.argmax(1), 7), multiclass_confusion_matrix(p, y, 7).numpy()
    )


def test_scores_of_a_published_confusion_matrix() -> None:
    """Khaireddin & Chen 2021, FER-2013 PublicTest: recalls .660 .643 .573 .891 .651 .846 .707."""
    recall = np.array([308, 36, 284, 797, 425, 351, 429])
    images = np.array([467, 56, 496, 895, 653, 415, 607])
    labels = np.repeat(np.arange(7), images)
    predictions = labels.copy()
    start = 0
    for c in range(7):
        predictions[start + recall[c] : start + images[c]] = (c + 1) % 7
        start += images[c]
    scores = classification_metrics(np.eye(7)[predictions], labels, EMOTIONS)
    assert scores["test/n"] == 3589
    assert scores["test/accuracy"] == pytest.approx(2630 / 3589)
    assert scores["test/balanced_accuracy"] == pytest.approx(0.7098, abs=1e-4)


def test_training_metrics_equal_the_scores_of_the_whole_set() -> None:
    probabilities, labels = drawn_predictions(500)
    metrics = training_metrics(7).clone(prefix="val/")
    for start in range(0, 500, 64):
        metrics.update(torch.tensor(probabilities[start : start + 64]), torch.tensor(labels[start : start + 64]))
    whole = classification_metrics(probabilities, labels, EMOTIONS, prefix="val/")
    computed = {key: value.item() for key, value in metrics.compute().items()}
    assert computed == pytest.approx({key: whole[key] for key in computed}, abs=1e-6)
    assert set(computed) == {"val/accuracy", "val/balanced_accuracy", "val/f1_macro"}


def test_calibration_error_by_hand() -> None:
    # Two images in one bin, one of two right at confidence .6: |.6 - .5|.
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4]])
    assert calibration_error(probabilities, np.array([0, 1]), bins=5) == pytest.approx(0.1)


def test_calibration_error_counts_certainty_in_the_last_bin() -> None:
    """Confidence .95 (wrong) and 1.0 (right) share the last bin: one gap of |1.95 - 1| / 2, not two."""
    probabilities = np.array([[0.95, 0.05], [1.0, 0.0]])
    assert calibration_error(probabilities, np.array([1, 0])) == pytest.approx(0.475)


def test_a_class_without_images_is_left_out_and_stays_valid_json() -> None:
    labels = np.array([0, 0, 2, 2])
    predictions = np.array([0, 1, 2, 2])  # disgust (1) has no images but one prediction
    scores = classification_metrics(np.eye(7)[predictions], labels, EMOTIONS, prefix="")
    assert scores["recall/disgust"] is None
    assert scores["precision/disgust"] == 0.0
    assert scores["f1/disgust"] == 0.0
    assert [scores[f"{name}/happy"] for name in ("recall", "precision", "f1")] == [None] * 3
    assert scores["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert scores["worst_recall"] == 0.5
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    json.dumps(scores, allow_nan=False)


def test_a_class_never_predicted_has_precision_zero() -> None:
    scores = classification_metrics(np.eye(7)[[3, 3]], [1, 3], EMOTIONS, prefix="")
    assert (scores["precision/disgust"], scores["recall/disgust"], scores["f1/disgust"]) == (0.0, 0.0, 0.0)


def test_no_images_at_all() -> None:
    scores = classification_metrics(np.zeros((0, 7)), np.zeros(0, dtype=int), EMOTIONS)
    assert scores["test/n"] == 0
    assert all(value is None for key, value in scores.items() if key != "test/n")
    assert math.isnan(macro_f1(np.zeros((7, 7), dtype=int)))


def test_a_probability_rounded_to_zero_keeps_the_likelihood_finite() -> None:
    scores = classification_metrics(np.eye(7, dtype=np.float32)[[0]], [1], EMOTIONS)
    assert scores["test/nll"] == pytest.approx(-math.log(np.finfo(np.float32).tiny))


def test_stacked_matrices_equal_single_ones() -> None:
    rng = np.random.default_rng(1)
    stack = rng.integers(0, 9, size=(4, 7, 7))
    stack[2, :, 5] = stack[2, 5, :] = 0
    np.testing.assert_array_equal(macro_f1(stack), [macro_f1(matrix) for matrix in stack])
    for whole, single in zip(precision_recall_f1(stack), precision_recall_f1(stack[2]), strict=True):
        np.testing.assert_array_equal(whole[2], single)


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (np.full((2, 6), 1 / 6), [0, 1], "shape"),
        (np.full((1, 7), np.nan), [0], "not finite"),
        (np.full((1, 7), 1 / 7), [7], "0..6"),
        (np.full((1, 7), 1 / 7), [-1], "0..6"),
    ],
)
def test_wrong_input_is_refused(probabilities: np.ndarray, labels: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classification_metrics(probabilities, labels, EMOTIONS)


def test_emotion_names_to_indices() -> None:
    np.testing.assert_array_equal(class_indices(["neutral", "angry", "disgust"], EMOTIONS), [6, 0, 1])
    with pytest.raises(ValueError, match="'anger'"):
        class_indices(["angry", "anger"], EMOTIONS)


def test_confident_mistakes_are_wrong_sorted_and_findable() -> None:
    probabilities, labels = drawn_predictions(300)
    named = np.array(EMOTIONS)
    table = pd.DataFrame(probabilities, columns=probability_columns(EMOTIONS))
    table.insert(0, "label", named[labels])
    table.insert(1, "prediction", named[probabilities.argmax(1)])
    picked = confident_mistakes(table)
    assert len(picked) == 24
    assert (picked["label"] != picked["prediction"]).all()
    wrong = probabilities.argmax(1) != labels
    np.testing.assert_allclose(picked["confidence"], np.sort(probabilities.max(1)[wrong])[::-1][:24])
    np.testing.assert_array_equal(picked["label"], named[labels[picked.index]])


@pytest.mark.nightly
def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys; from fer_lightning.metrics.classification import classification_metrics as m;"
        "m([[1, 0]], [0], ['a', 'b']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
