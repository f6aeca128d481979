"""Losses against reference values computed in float64 by an independent NumPy implementation."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor

from fer_lightning.config import CONF_DIR
from fer_lightning.errors import UserError
from fer_lightning.imbalance.losses import (
    CrossEntropy,
    FocalLoss,
    WeightedBCE,
    cross_entropy,
    focal_loss,
    weighted_bce,
)
from fer_lightning.imbalance.weights import class_weights

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
TARGET = torch.tensor([3, 1, 4, 2])

MODULES = {
    "cross entropy": CrossEntropy(COUNTS),
    "weighted": CrossEntropy(COUNTS, weighting="inverse"),
    "smoothed": CrossEntropy(COUNTS, weighting="effective", label_smoothing=0.1),
    "focal 0.5": FocalLoss(COUNTS, gamma=0.5),
    "focal 1": FocalLoss(COUNTS, gamma=1),
    "focal 2 with alpha": FocalLoss(COUNTS, gamma=2, alpha="inverse"),
    "bce sample": WeightedBCE(COUNTS, "sample"),
    "bce column": WeightedBCE(COUNTS, "column", positive_weight=3.0),
    "bce softmax": WeightedBCE(COUNTS, "softmax"),
}
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def weights(scheme: str = "inverse", normalization: str = "sum_C", beta: float = 0.9999) -> Tensor:
    return class_weights(COUNTS, scheme, normalization, beta)


def published(value: float):
    """A value printed with ten decimals."""
    return pytest.approx(value, rel=1e-9, abs=5.1e-11)


class TestCrossEntropy:
    def test_per_sample_and_mean(self):
        loss = cross_entropy(LOGITS, TARGET)
        assert loss.tolist() == published([0.7090160489, 0.8362229313, 1.798888581, 2.7591235716])
        assert loss.mean().item() == published(1.5258127832)

    @pytest.mark.parametrize(
        ("weight", "batch_mean", "divided_by_weights"),
        [
            (weights("inverse", "sum_C"), 1.4679789110, 1.0620137562),
            (weights("inverse", "sum_1"), 0.2097112730, 1.0620137562),
            (weights("inverse", "balanced"), 3.1396394763, 1.0620137562),
            (weights("inverse_sqrt"), 1.4945597811, 1.3089878961),
            (weights("effective"), 1.4735125891, 1.0940802170),
            (weights("effective", beta=0.999), 1.5088255433, 1.3142362196),
        ],
    )
    def test_weighted(self, weight, batch_mean, divided_by_weights):
        loss = cross_entropy(LOGITS, TARGET, weight)
        assert loss.mean().item() == published(batch_mean)
        assert (loss.sum() / weight[TARGET].sum()).item() == published(divided_by_weights)
        assert F.cross_entropy(LOGITS, TARGET, weight).item() == published(divided_by_weights)

    def test_label_smoothing(self):
        assert cross_entropy(LOGITS, TARGET, label_smoothing=0.1).mean().item() == published(1.6267056403)

    def test_weighted_label_smoothing_uses_the_target_weight(self):
        weight = weights()
        loss = cross_entropy(LOGITS, TARGET, weight, label_smoothing=0.1)
        assert (loss.sum() / weight[TARGET].sum()).item() == published(1.1887985475)
        pytorch = F.cross_entropy(LOGITS, TARGET, weight, label_smoothing=0.1).item()
        assert pytorch == published(1.1578470542)

    def test_module(self):
        module = CrossEntropy(COUNTS, weighting="inverse", normalization="sum_C", label_smoothing=0.1)
        expected = cross_entropy(LOGITS, TARGET, weights(), 0.1).mean().item()
        assert module(LOGITS, TARGET).item() == pytest.approx(expected, rel=1e-6)
        assert CrossEntropy(COUNTS)(LOGITS, TARGET).item() == published(1.5258127832)
        beta = CrossEntropy(COUNTS, weighting="effective", normalization="sum_C", beta=0.999)
        assert beta(LOGITS, TARGET).item() == pytest.approx(1.5088255433, rel=1e-6)


class TestFocalLoss:
    @pytest.mark.parametrize(
        ("gamma", "mean"),
        [(0, 1.5258127832), (0.5, 1.3620956416), (1, 1.2298710266), (2, 1.0311998706), (5, 0.6975076387)],
    )
    def test_gamma(self, gamma, mean):
        assert focal_loss(LOGITS, TARGET, gamma).mean().item() == published(mean)
        assert FocalLoss(COUNTS, gamma=gamma)(LOGITS, TARGET).item() == published(mean)

    def test_alpha(self):
        weight = weights()
        loss = focal_loss(LOGITS, TARGET, 2, weight)
        assert loss.mean().item() == published(0.7149808662)
        assert (loss.sum() / weight[TARGET].sum()).item() == published(0.5172550571)
        module = FocalLoss(COUNTS, gamma=2, alpha="inverse", normalization="sum_C")
        assert module(LOGITS, TARGET).item() == pytest.approx(0.7149808662, rel=1e-6)

    def test_class_balanced_focal(self):
        loss = focal_loss(LOGITS, TARGET, 2, weights("effective")).mean().item()
        assert loss == published(0.7445381953)

    def test_modulating_factor_sees_the_probability_not_the_weighted_loss(self):
        # 1.2295567178 where p_t is taken from the weighted cross-entropy.
        assert focal_loss(LOGITS, TARGET, 1, weights()).mean().item() == published(0.9963505184)

    @pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_gradient_is_finite_at_probability_one(self, gamma, dtype):
        for lead in (5.0, 16.0, 30.0, 88.0, 1e4):
            logits = torch.tensor([[lead, 0.0, 0.0]], dtype=dtype, requires_grad=True)
            loss = focal_loss(logits, torch.tensor([0]), gamma).sum()
            loss.backward()
            assert loss.isfinite()
            assert logits.grad.isfinite().all()

    def test_easy_samples_stay_accurate_in_float32(self):
        logits = torch.tensor([[12.0, 0.0, 0.0]])
        exact = focal_loss(logits.double(), torch.tensor([0]), 2).item()
        assert focal_loss(logits, torch.tensor([0]), 2).item() == pytest.approx(exact, rel=1e-2)


class TestWeightedBCE:
    @pytest.mark.parametrize(
        ("reading", "normalization", "per_term", "per_sample"),
        [
            ("column", "sum_1", 0.0822583963, 0.5758087744),
            ("column", "sum_C", 0.5758087744, 4.0306614206),
            ("sample", "sum_1", 0.1279533252, 0.8956732764),
            ("sample", "sum_C", 0.8956732764, 6.2697129347),
            ("softmax", "sum_1", 0.0501968852, 0.3513781964),
            ("softmax", "sum_C", 0.3513781964, 2.4596473746),
        ],
    )
    def test_readings_of_the_paper(self, reading, normalization, per_term, per_sample):
        loss = weighted_bce(LOGITS, TARGET, weights("inverse", normalization), reading)
        assert loss.mean().item() == published(per_sample)
        assert (loss.mean() / 7).item() == published(per_term)
        module = WeightedBCE(COUNTS, reading, normalization)
        assert module(LOGITS, TARGET).item() == pytest.approx(per_sample, rel=1e-6)

    @pytest.mark.parametrize(
        ("reading", "per_sample"),
        [("sample", 5.3985731914), ("column", 5.3985731914), ("softmax", 2.4828024782)],
    )
    def test_unweighted(self, reading, per_sample):
        ones = torch.ones(7, dtype=torch.float64)
        assert weighted_bce(LOGITS, TARGET, ones, reading).mean().item() == published(per_sample)

    def test_sigmoid_readings_agree_with_pytorch(self):
        onehot = F.one_hot(TARGET, 7).double()
        weight = weights()
        for reading, matrix in (("sample", weight[TARGET][:, None]), ("column", weight[None])):
            expected = F.binary_cross_entropy_with_logits(
                LOGITS,
                onehot,
                matrix.expand(4, 7),
                pos_weight=torch.tensor(2.5, dtype=torch.float64),
                reduction="none",
            ).sum(1)
            torch.testing.assert_close(weighted_bce(LOGITS, TARGET, weight, reading, 2.5), expected)

    def test_softmax_reading_is_exact_where_a_probability_rounds_to_one(self):
        logits = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
        loss = weighted_bce(logits, torch.tensor([1]), torch.ones(3, dtype=torch.float64), "softmax")
        # -log p_1 = 60, -log(1 - p_0) = 60 - log 2, -log(1 - p_2) = exp(-60), up to terms of exp(-60).
        assert loss.item() == pytest.approx(120 - math.log(2), rel=1e-12)


@every_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_give_the_float32_result_of_their_values(module, dtype):
    low = LOGITS.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(low, TARGET)
    assert loss.dtype == torch.float32
    assert loss.item() == module(low.float(), TARGET).item()


@every_module
def test_float32_is_close_to_float64(module):
    assert module(LOGITS.float(), TARGET).item() == pytest.approx(module(LOGITS, TARGET).item(), rel=1e-5)


@every_module
def test_gradient(module):
    double = copy.deepcopy(module).double()
    assert torch.autograd.gradcheck(lambda logits: double(logits, TARGET), LOGITS.clone().requires_grad_())


@every_module
@pytest.mark.parametrize("size", [60.0, 1e4])
def test_extreme_logits_are_finite(module, size):
    logits = torch.tensor([[size, 0, 0, 0, 0, 0, -size]] * 7, requires_grad=True)
    loss = module(logits, torch.arange(7))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_extreme_logits_cross_entropy_value():
    logits = torch.tensor([[60.0, 0, 0, 0, 0, 0, -60.0]] * 2, dtype=torch.float64)
    assert cross_entropy(logits, torch.tensor([6, 0])).tolist() == pytest.approx([120, 0], abs=1e-20)


@every_module
def test_mean_does_not_depend_on_the_batches(module):
    halves = [module(LOGITS[half], TARGET[half]) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, module(LOGITS, TARGET))


@every_module
def test_weights_stay_out_of_checkpoints(module):
    assert module.state_dict() == {}
    assert [buffer.shape for buffer in module.buffers()] == [(7,)]


@pytest.mark.parametrize("method", sorted((CONF_DIR / "imbalance").glob("*.yaml")), ids=lambda path: path.stem)
class TestMethodFiles:
    def test_builds_a_loss_and_a_sampler(self, method):
        config = OmegaConf.load(method)
        assert config.name == method.stem
        loss = instantiate(config.loss, class_counts=COUNTS)
        assert loss(LOGITS, TARGET).isfinite()
        sampler = instantiate(config.sampler, _partial_=True)(labels=np.repeat(np.arange(7), COUNTS), seed=0)
        assert len(list(sampler)) == len(sampler)

    def test_spells_every_knob_out(self, method):
        config = OmegaConf.load(method)
        for node, given in ((config.loss, {"class_counts"}), (config.sampler, {"labels", "seed"})):
            knobs = set(inspect.signature(get_class(node._target_)).parameters) - given
            assert set(node) - {"_target_"} == knobs


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CrossEntropy(COUNTS, weighting="balanced"), ["'balanced'", "inverse"]),
        (lambda: CrossEntropy([5, 0, 3], weighting="inverse"), ["class 1"]),
        (lambda: CrossEntropy(COUNTS, label_smoothing=1.0), ["label_smoothing=1.0"]),
        (lambda: CrossEntropy(COUNTS, label_smoothing=-0.1), ["label_smoothing=-0.1"]),
        (lambda: FocalLoss(COUNTS, gamma=-1), ["gamma=-1"]),
        (lambda: FocalLoss(COUNTS, gamma=math.nan), ["gamma=nan"]),
        (lambda: FocalLoss(COUNTS, alpha="0.25"), ["'0.25'"]),
        (lambda: FocalLoss([5, 0, 3], alpha="effective"), ["class 1"]),
        (lambda: WeightedBCE(COUNTS, reading="A"), ["'A'", "sample, column, softmax"]),
        (lambda: WeightedBCE(COUNTS, normalization="none"), ["'none'", "sum_C"]),
        (lambda: WeightedBCE(COUNTS, positive_weight=0), ["positive_weight=0"]),
        (lambda: WeightedBCE([5, 0, 3]), ["class 1"]),
    ],
)
def test_mistakes_are_named_in_one_line(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
