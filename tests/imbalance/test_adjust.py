"""Changes of the last layer after training, and the choice of their one number."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from fer_lightning.imbalance.adjust import TAUS, LogitAdjustment, TauNormalization, choose_tau
from fer_lightning.runtime.errors import UserError

COUNTS = [3995, 436, 4097, 7215, 4830, 3171, 4965]
"""FER-2013's Training counts, in label order."""

LOGITS = torch.tensor(
    [
        [1.0, -0.5, 0.25, 2.0, 0.0, -1.0, 0.5],
        [0.2, 1.5, -0.3, 0.1, -1.2, 0.4, 0.0],
        [-0.7, 0.3, 0.9, 0.0, 1.1, -0.2, 2.2],
        [3.0, -2.0, 0.5, -1.0, 0.7, 0.1, -0.4],
    ],
    dtype=torch.float64,
)
EYE, ZERO = torch.eye(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)


class TestLogitAdjustment:
    @pytest.mark.parametrize(("tau", "expected"), [(0, [3, 1, 6, 0]), (0.5, [3, 1, 6, 0]), (1, [1, 1, 1, 0])])
    def test_predictions(self, tau, expected):
        weight, bias = LogitAdjustment(COUNTS)(EYE, ZERO, tau)
        assert F.linear(LOGITS, weight, bias).argmax(dim=1).tolist() == expected

    def test_it_is_the_shift_of_the_bias(self):
        bias = torch.arange(7, dtype=torch.float64)
        weight, shifted = LogitAdjustment(COUNTS)(EYE, bias, 1.5)
        prior = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
        torch.testing.assert_close(shifted, bias - 1.5 * prior.log(), rtol=1e-12, atol=0)
        assert weight is EYE
        assert bias.tolist() == list(range(7))

    def test_keeps_the_kind_of_the_layer(self):
        _, bias = LogitAdjustment(COUNTS)(EYE.float(), ZERO.float(), 1.0)
        assert bias.dtype == torch.float32


class TestTauNormalization:
    ROWS = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]], dtype=torch.float64)

    def test_value(self):
        weight, bias = TauNormalization([1, 1, 1])(self.ROWS, torch.ones(3, dtype=torch.float64), 0.7)
        expected = [[0.972393958, 1.2965252774], [0, 1.2311444133], [1, 0]]
        assert weight.flatten().tolist() == pytest.approx(np.ravel(expected).tolist(), rel=1e-9)
        assert bias.tolist() == [0, 0, 0]

    def test_tau_1_makes_all_norms_1_and_tau_0_none(self):
        adjust = TauNormalization([1, 1, 1])
        torch.testing.assert_close(adjust(self.ROWS, ZERO[:3], 1)[0].norm(dim=1), torch.ones(3).double())
        assert torch.equal(adjust(self.ROWS, ZERO[:3], 0)[0], self.ROWS)

    def test_a_class_without_weights_stays_finite(self):
        weight, _ = TauNormalization([1, 1])(torch.zeros(2, 3), torch.zeros(2), 1.0)
        assert torch.equal(weight, torch.zeros(2, 3))


@pytest.fixture(scope="module")
def trained() -> tuple[torch.Tensor, ...]:
    """Features, labels, and the Bayes-optimal linear layer of a training set with far fewer of some classes."""
    rng = np.random.default_rng(0)
    counts = np.array([600, 30, 400, 900, 500, 300, 600])
    labels = np.repeat(np.arange(7), counts)
    centres = 1.2 * rng.normal(size=(7, 5))
    features = centres[labels] + rng.normal(size=(len(labels), 5))
    bias = np.log(counts / counts.sum()) - (centres**2).sum(axis=1) / 2
    arrays = features, labels, centres, bias, counts
    return tuple(torch.from_numpy(np.asarray(array)) for array in arrays)


class TestChooseTau:
    @pytest.mark.parametrize("build", [LogitAdjustment, TauNormalization])
    @pytest.mark.parametrize(
        ("metric", "score"),
        [
            ("accuracy", lambda found, true: multiclass_accuracy(found, true, 7, average="micro")),
            ("balanced_accuracy", lambda found, true: multiclass_accuracy(found, true, 7, average="macro")),
            ("f1_macro", lambda found, true: multiclass_f1_score(found, true, 7, average="macro")),
        ],
    )
    def test_scores_are_those_of_torchmetrics_and_the_best_is_taken(self, trained, build, metric, score):
        features, labels, weight, bias, counts = trained
        adjust = build(counts.tolist())
        tau, scores = choose_tau(adjust, features, labels, weight, bias, metric)
        expected = []
        for candidate in TAUS:
            found = F.linear(features, *adjust(weight, bias, candidate)).argmax(dim=1)
            expected.append(score(found, labels).item())
        assert scores == pytest.approx(expected, rel=1e-6)
        assert tau == TAUS[int(np.argmax(scores))]

    def test_the_calibrated_model_wants_no_change_for_accuracy_and_much_for_balanced_accuracy(self, trained):
        features, labels, weight, bias, counts = trained
        adjust = LogitAdjustment(counts.tolist())
        assert choose_tau(adjust, features, labels, weight, bias, "accuracy")[0] <= 0.3
        assert choose_tau(adjust, features, labels, weight, bias, "balanced_accuracy")[0] >= 0.6

    def test_among_equals_the_smallest_wins(self):
        adjust = LogitAdjustment([1, 1], candidates=[2.0, 0.5, 1.0])
        chosen, scores = choose_tau(adjust, torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.zeros(2))
        assert scores == [1, 1, 1]
        assert chosen == 0.5

    def test_bfloat16_features_are_scored_in_float32(self, trained):
        features, labels, weight, bias, counts = trained
        low = [tensor.bfloat16() for tensor in (features, weight, bias)]
        adjust = LogitAdjustment(counts.tolist())
        found = choose_tau(adjust, low[0], labels, *low[1:])
        assert found == choose_tau(adjust, low[0].float(), labels, low[1].float(), low[2].float())

    def test_unknown_metric(self, trained):
        features, labels, weight, bias, counts = trained
        with pytest.raises(ValueError, match="metric=recall"):
            choose_tau(LogitAdjustment(counts.tolist()), features, labels, weight, bias, "recall")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LogitAdjustment([5, 0, 3]), ["class 1"]),
        (lambda: TauNormalization(COUNTS, candidates=[]), ["candidates=[]", "at least one"]),
        (lambda: LogitAdjustment(COUNTS, candidates=[0.0, -2.0]), ["imbalance.adjust.candidates=-2.0", "0 or more"]),
        (lambda: LogitAdjustment(COUNTS, candidates=["much"]), ["candidates=much"]),
    ],
)
def test_mistakes_are_named_in_one_line(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
