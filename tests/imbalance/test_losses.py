"""Losses against reference values computed in float64 by an independent NumPy implementation."""

import copy
import functools
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from fer_lightning.config.safety import CONF_DIR
from fer_lightning.imbalance import combinations
from fer_lightning.imbalance.functional import (
    balancing_margin,
    cross_entropy,
    expected_loss,
    focal_loss,
    gaussian_clouded,
    ldam,
    ldam_margins,
    logit_adjusted,
    sigmoid_focal_loss,
    smoothed_by_class,
    vector_scaling,
    weighted_bce,
)
from fer_lightning.imbalance.losses import (
    LDAM,
    BalancingMargin,
    ClassBalancedFocal,
    CrossEntropy,
    FocalLoss,
    LogitAdjusted,
    VectorScaling,
    WeightedBCE,
)
from fer_lightning.imbalance.second_stage_losses import (
    GaussianClouded,
    LabelAwareSmoothing,
    LabelOverSmoothing,
    SecondStageWeights,
)
from fer_lightning.imbalance.sharpness import FocalSharpness, TailSharpness
from fer_lightning.imbalance.weights import class_weights, log_prior
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
    "class-balanced focal": ClassBalancedFocal(COUNTS, gamma=0.5),
    "class-balanced focal, softmax": FocalLoss(COUNTS, gamma=1, alpha="effective"),
    "logit adjusted": LogitAdjusted(COUNTS),
    "smoothed by class": LabelAwareSmoothing(COUNTS, 2, 0.5, "first.ckpt"),
    "over-smoothed": LabelOverSmoothing(COUNTS, 2, 0.5, "first.ckpt"),
    "weighted in the second stage": SecondStageWeights(COUNTS, 2, 0.5, "first.ckpt"),
    "ImbSAM": TailSharpness(COUNTS),
    "VS": VectorScaling(COUNTS),
    "DBM": BalancingMargin(COUNTS, scale=10.0),
    "LDAM": LDAM(COUNTS, epochs=10, scale=10.0),
    "LDAM, weighted": LDAM(COUNTS, epochs=10, scale=10.0, deferred_share=1.0),
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
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(expected, rel=1e-6)
        assert CrossEntropy(COUNTS)(LOGITS, TARGET).mean().item() == published(1.5258127832)
        beta = CrossEntropy(COUNTS, weighting="effective", normalization="sum_C", beta=0.999)
        assert beta(LOGITS, TARGET).mean().item() == pytest.approx(1.5088255433, rel=1e-6)


class TestFocalLoss:
    @pytest.mark.parametrize(
        ("gamma", "mean"),
        [(0, 1.5258127832), (0.5, 1.3620956416), (1, 1.2298710266), (2, 1.0311998706), (5, 0.6975076387)],
    )
    def test_gamma(self, gamma, mean):
        assert focal_loss(LOGITS, TARGET, gamma).mean().item() == published(mean)
        assert FocalLoss(COUNTS, gamma=gamma)(LOGITS, TARGET).mean().item() == published(mean)

    def test_alpha(self):
        weight = weights()
        loss = focal_loss(LOGITS, TARGET, 2, weight)
        assert loss.mean().item() == published(0.7149808662)
        assert (loss.sum() / weight[TARGET].sum()).item() == published(0.5172550571)
        module = FocalLoss(COUNTS, gamma=2, alpha="inverse", normalization="sum_C")
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(0.7149808662, rel=1e-6)

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
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(per_sample, rel=1e-6)

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
    assert loss.shape == (4,)
    assert torch.equal(loss, module(low.float(), TARGET))


@every_module
def test_float32_is_close_to_float64(module):
    torch.testing.assert_close(module(LOGITS.float(), TARGET).double(), module(LOGITS, TARGET), rtol=1e-5, atol=1e-6)


@every_module
def test_gradient(module):
    double = copy.deepcopy(module).double()
    assert torch.autograd.gradcheck(lambda logits: double(logits, TARGET), LOGITS.clone().requires_grad_())


@every_module
@pytest.mark.parametrize("size", [60.0, 1e4])
def test_extreme_logits_are_finite(module, size):
    logits = torch.tensor([[size, 0, 0, 0, 0, 0, -size]] * 7, requires_grad=True)
    loss = module(logits, torch.arange(7))
    loss.mean().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_extreme_logits_cross_entropy_value():
    logits = torch.tensor([[60.0, 0, 0, 0, 0, 0, -60.0]] * 2, dtype=torch.float64)
    assert cross_entropy(logits, torch.tensor([6, 0])).tolist() == pytest.approx([120, 0], abs=1e-20)


@every_module
def test_the_loss_of_an_image_does_not_depend_on_its_batch(module):
    alone = [module(LOGITS[[row]], TARGET[[row]]) for row in range(4)]
    torch.testing.assert_close(torch.cat(alone), module(LOGITS, TARGET))


@every_module
def test_logits_are_left_as_they_are(module):
    """Priors and margins belong to training; what is evaluated are the raw logits."""
    logits = LOGITS.clone()
    module(logits, TARGET)
    assert torch.equal(logits, LOGITS)


@every_module
def test_weights_stay_out_of_checkpoints(module):
    assert module.state_dict() == {}
    assert {(buffer.shape, buffer.dtype) for buffer in module.buffers()} == {((7,), torch.float32)}


class TestClassBalancedFocal:
    @pytest.mark.parametrize(("gamma", "mean"), [(0.5, 4.5163400712), (1, 3.3897667409), (2, 2.0511913059)])
    def test_sigmoid_form(self, gamma, mean):
        assert sigmoid_focal_loss(LOGITS, TARGET, gamma, weights("effective")).mean().item() == published(mean)
        module = ClassBalancedFocal(COUNTS, gamma, normalization="sum_C")
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(mean, rel=1e-6)

    def test_softmax_form_is_focal_with_effective_weights(self):
        module = FocalLoss(COUNTS, gamma=2, alpha="effective", normalization="sum_C")
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(0.7445381953, rel=1e-6)

    def test_sigmoid_focal_loss_agrees_with_torchvision(self):
        expected = torchvision_focal_loss(LOGITS, F.one_hot(TARGET, 7).double(), alpha=-1, gamma=2.0)
        torch.testing.assert_close(sigmoid_focal_loss(LOGITS, TARGET, 2.0), expected.sum(dim=1))

    def test_gamma_0_is_binary_cross_entropy(self):
        assert sigmoid_focal_loss(LOGITS, TARGET, 0).mean().item() == published(5.3985731914)

    def test_weights_are_on_by_default(self):
        """The official code's beta defaults to 0, which makes all weights 1."""
        assert not torch.equal(ClassBalancedFocal(COUNTS).weight, torch.ones(7))
        torch.testing.assert_close(ClassBalancedFocal(COUNTS, beta=0.0).weight, torch.ones(7))
        config = OmegaConf.load(CONF_DIR / "imbalance" / "class_balanced_focal.yaml")
        assert config.loss.beta == 0.9999

    @pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 2.0])
    def test_gradient_is_finite_at_probability_one(self, gamma):
        logits = torch.tensor([[88.0, -88.0, -1e4]], requires_grad=True)
        sigmoid_focal_loss(logits, torch.tensor([0]), gamma).sum().backward()
        assert logits.grad.isfinite().all()


class TestLogitAdjusted:
    @pytest.mark.parametrize(
        ("tau", "mean"), [(0, 1.5258127832), (0.5, 1.6773927187), (1, 1.9088193742), (1.5, 2.1805210947)]
    )
    def test_tau(self, tau, mean):
        assert logit_adjusted(LOGITS, TARGET, log_prior(COUNTS), tau).mean().item() == published(mean)
        assert LogitAdjusted(COUNTS, tau)(LOGITS, TARGET).mean().item() == pytest.approx(mean, rel=1e-6)

    def test_tau_1_is_balanced_softmax(self):
        log_counts = torch.tensor(COUNTS, dtype=torch.float64).log()
        assert cross_entropy(LOGITS + log_counts, TARGET).mean().item() == published(1.9088193742)

    def test_priors_are_not_rounded_to_the_precision_of_the_logits(self):
        """Official codes add them in the logits' own type: in bfloat16 log pi is off by up to 0.0034."""
        prior = log_prior(COUNTS).float()
        assert (prior.bfloat16().float() - prior).abs().max() == pytest.approx(0.0034, abs=5e-4)
        low = LOGITS.bfloat16()
        ours, rounded = LogitAdjusted(COUNTS)(low, TARGET), F.cross_entropy(low + prior.bfloat16(), TARGET)
        exact = logit_adjusted(low.double(), TARGET, log_prior(COUNTS)).mean().item()
        assert ours.mean().item() == pytest.approx(exact, rel=1e-6)
        assert rounded.item() != pytest.approx(exact, rel=1e-4)

    def test_prior_is_that_of_the_training_subset(self):
        assert LogitAdjusted([30, 10]).log_prior.tolist() == pytest.approx([math.log(0.75), math.log(0.25)], rel=1e-6)


class TestLDAM:
    COSINES = LOGITS / 4

    def test_margins(self):
        expected = [0.2873839, 0.5, 0.28557826, 0.24790343, 0.2740658, 0.30446864, 0.27218351]
        assert ldam_margins(COUNTS, 0.5).tolist() == pytest.approx(expected, abs=5.1e-9)

    @pytest.mark.parametrize(("scale", "mean"), [(30.0, 12.8851019905), (10.0, 4.7104051029)])
    def test_value(self, scale, mean):
        loss = ldam(scale * self.COSINES, TARGET, scale * ldam_margins(COUNTS, 0.5))
        assert loss.mean().item() == published(mean)
        module = LDAM(COUNTS, epochs=10, scale=scale)
        assert module(scale * self.COSINES, TARGET).mean().item() == pytest.approx(mean, rel=1e-6)

    def test_weighted_value(self):
        weight = weights("effective")
        loss = ldam(30 * self.COSINES, TARGET, 30 * ldam_margins(COUNTS, 0.5), weight)
        assert (loss.sum() / weight[TARGET].sum()).item() == published(9.4098261602)

    def test_no_margin_is_cross_entropy(self):
        torch.testing.assert_close(LDAM(COUNTS, 10, max_margin=0)(LOGITS, TARGET), cross_entropy(LOGITS, TARGET))

    @pytest.mark.parametrize(
        ("epochs", "share", "weighted"),
        [(10, 0.2, [8, 9]), (200, 0.2, [*range(160, 200)]), (5, 0, []), (3, 1, [0, 1, 2]), (2, 0.2, [1])],
    )
    def test_weights_come_in_the_last_epochs(self, epochs, share, weighted):
        module = LDAM(COUNTS, epochs, deferred_share=share)
        plain = ldam(LOGITS, TARGET, module.margin)
        torch.testing.assert_close(LDAM(COUNTS, 10)(LOGITS, TARGET), plain)
        found = []
        for epoch in reversed(range(epochs)):  # a resumed run starts anywhere
            module.set_epoch(epoch)
            loss = module(LOGITS, TARGET)
            if not torch.equal(loss, plain):
                torch.testing.assert_close(loss, module.weight.double()[TARGET] * plain)
                found.append(epoch)
        assert found == weighted[::-1]


class TestSecondStageSmoothing:
    """The second stage alone, as from a checkpoint of the first, where nothing else is said."""

    @pytest.mark.parametrize(("head", "mean"), [(0.3, 1.7099924709), (0.1, 1.5872060124)])
    def test_label_aware(self, head, mean):
        module = LabelAwareSmoothing(COUNTS, 1, 0.25, "first.ckpt", head)
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(mean, rel=1e-6)
        assert module.smoothing.max().item() == pytest.approx(head)
        assert module.smoothing[1] == 0

    def test_label_aware_for_equal_counts(self):
        """MiSLAS divides 0 by 0 there."""
        module = LabelAwareSmoothing([9, 9, 9], 1, 0.25, "first.ckpt", 0.3, 0.05)
        assert module.smoothing.tolist() == pytest.approx([0.05] * 3)

    @pytest.mark.parametrize(("smoothing", "mean"), [(0.98, 2.5145627832), (0.775, 2.3077324261)])
    def test_over_smoothing(self, smoothing, mean):
        module = LabelOverSmoothing(COUNTS, 1, 0.25, "first.ckpt", smoothing)
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(mean, rel=1e-6)
        expected = F.cross_entropy(LOGITS, TARGET, label_smoothing=smoothing)
        everywhere = torch.full((7,), smoothing, dtype=torch.float64)
        torch.testing.assert_close(smoothed_by_class(LOGITS, TARGET, everywhere).mean(), expected)

    def test_over_smoothing_by_default_has_the_odds_of_the_paper(self):
        """The official command's default is 0, which smoothes nothing."""
        for classes in (7, 100):
            eps = LabelOverSmoothing([1] * classes, 1, 0.25, "first.ckpt").smoothing[0].item()
            assert classes * (1 - eps) / eps == pytest.approx(100 * 0.02 / 0.98, rel=1e-5)
        assert LabelOverSmoothing(COUNTS, 1, 0.25, "first.ckpt").smoothing[0].item() == pytest.approx(0.774, abs=5e-4)

    @pytest.mark.parametrize("kind", [LabelAwareSmoothing, LabelOverSmoothing])
    def test_only_in_the_second_stage(self, kind):
        module = kind(COUNTS, 4, 0.25, None)
        plain, smoothed = [], []
        for epoch in (3, 2, 1, 0):
            module.set_epoch(epoch)
            same = torch.equal(module(LOGITS, TARGET), cross_entropy(LOGITS, TARGET))
            (plain if same else smoothed).append(epoch)
        assert (smoothed, plain) == ([3], [2, 1, 0])


class TestSecondStageWeights:
    def test_only_in_the_second_stage(self):
        module = SecondStageWeights(COUNTS, 4, 0.25, None, normalization="sum_C")
        means = []
        for epoch in (3, 2):
            module.set_epoch(epoch)
            means.append(module(LOGITS, TARGET).mean().item())
        assert means == pytest.approx([1.4735125891, 1.5258127832], rel=1e-6)


class TestGaussianClouded:
    COSINES, SMALL = LOGITS / 4, torch.full((4, 7), -0.2, dtype=torch.float64)

    def test_values(self):
        clouds = GaussianClouded(COUNTS, 1, 0.5, None).clouds.double()
        assert (2 * clouds).tolist() == pytest.approx([0.21064, 1, 0.20166, 0, 0.14301, 0.29296, 0.13318], abs=5e-6)
        counts = torch.tensor(COUNTS, dtype=torch.float64)
        clouds = 0.5 * (counts.max() / counts).log() / (counts.max() / counts.min()).log()
        first = gaussian_clouded(self.COSINES, TARGET, clouds, self.SMALL, 30.0, 0.0)
        assert first.mean().item() == published(6.7516654522)
        second = functools.partial(gaussian_clouded, self.COSINES, TARGET, clouds, self.SMALL, 20.0, 0.1)
        assert second().mean().item() == published(5.5668315822)
        assert second(gamma=1.0).mean().item() == published(5.5117763981)

    def test_without_noise_the_first_stage_is_cross_entropy_and_the_second_has_its_own_scale_and_margin(self):
        module = GaussianClouded(COUNTS, 2, 0.5, None, noise=0, scale=4, second_gamma=0)
        torch.testing.assert_close(module(LOGITS, TARGET), cross_entropy(LOGITS, TARGET))
        module.set_epoch(1)
        expected = cross_entropy(20 * (self.COSINES - 0.1 * F.one_hot(TARGET, 7)), TARGET)
        torch.testing.assert_close(module(LOGITS, TARGET), expected)

    def test_noise_is_new_each_time_and_leaves_the_largest_class_alone(self):
        module = GaussianClouded(COUNTS, 1, 0.5, None, noise=2.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            one, other = (module(30 * self.COSINES, TARGET) for _ in range(2))
        assert not torch.equal(one, other)
        assert module.clouds[3] == 0

    def test_gradient_and_focal_factor(self):
        clouds = torch.linspace(0, 0.5, 7, dtype=torch.float64)
        cosines = self.COSINES.clone().requires_grad_()
        loss = functools.partial(gaussian_clouded, clouds=clouds, noise=self.SMALL, scale=20.0, margin=0.1)
        assert torch.autograd.gradcheck(lambda given: loss(given, TARGET), cosines)
        plain, focal = (
            torch.autograd.grad(loss(cosines, TARGET, gamma=gamma).sum(), cosines)[0] for gamma in (0.0, 1.0)
        )
        miss = 1 - torch.exp(-loss(cosines, TARGET).detach())
        torch.testing.assert_close(focal, miss[:, None] * plain)


class TestClassSharpness:
    @pytest.mark.parametrize(
        ("loss", "plain", "sharp"),
        [(FocalSharpness(COUNTS), 1.0420858062, 0.483726977), (TailSharpness(COUNTS), 1.3167570504, 0.2090557328)],
        ids=["Focal-SAM", "ImbSAM"],
    )
    def test_parts(self, loss, plain, sharp):
        """ImbSAM's official code counts the tail twice: 0.4181114657."""
        losses, share = loss(LOGITS, TARGET), loss.sharp.double()[TARGET]
        assert ((1 - share) * losses).mean().item() == pytest.approx(plain, rel=1e-6)
        assert (share * losses).mean().item() == pytest.approx(sharp, rel=1e-6)

    def test_the_threshold_of_the_authors_is_reported(self, caplog):
        assert not TailSharpness(COUNTS, below=20).sharp.any()
        assert "below=20: the rarest class has 436 images; no class is rare" in caplog.text


class TestVectorScaling:
    @pytest.mark.parametrize(
        ("gamma", "tau", "mean"), [(0.3, 1, 2.0260504785), (0.2, 1.2, 2.1100426592), (0.3, 0, 1.5835217774)]
    )
    def test_value(self, gamma, tau, mean):
        prior = log_prior(COUNTS)
        factor = (torch.tensor(COUNTS, dtype=torch.float64) / max(COUNTS)) ** gamma
        assert vector_scaling(LOGITS, TARGET, factor, tau * prior).mean().item() == published(mean)
        module = VectorScaling(COUNTS, gamma, tau)
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(mean, rel=1e-6)

    def test_without_factors_it_is_logit_adjustment(self):
        torch.testing.assert_close(
            VectorScaling(COUNTS, gamma=0)(LOGITS, TARGET), LogitAdjusted(COUNTS)(LOGITS, TARGET)
        )


class TestBalancingMargin:
    def test_value(self):
        """The official code divides by the count of the last class in place of the rarest: 16.0379867049."""
        margin = 0.1 * min(COUNTS) / torch.tensor(COUNTS, dtype=torch.float64)
        assert balancing_margin(8 * LOGITS, TARGET, margin, 32.0, 1.0).mean().item() == published(7.4174649798)
        assert BalancingMargin(COUNTS)(8 * LOGITS, TARGET).mean().item() == pytest.approx(7.4174649798, rel=1e-6)

    def test_no_margin_is_cross_entropy(self):
        module = BalancingMargin(COUNTS, max_margin=0, scale=10.0)
        torch.testing.assert_close(module(LOGITS, TARGET), cross_entropy(LOGITS, TARGET))

    def test_an_image_classified_correctly_has_the_margin_of_its_class_alone(self):
        right = LOGITS[:2] * 3  # the first two are classified correctly
        modules = (BalancingMargin(COUNTS, difficulty=difficulty) for difficulty in (0.0, 5.0))
        first, second = (module(right, TARGET[:2]) for module in modules)
        assert torch.equal(first, second)

    @pytest.mark.parametrize("lead", [32.0, 32.001, -32.001])
    def test_a_cosine_of_one_has_a_finite_gradient(self, lead):
        logits = torch.tensor([[lead, 0.0, 1.0]], requires_grad=True)
        balancing_margin(logits, torch.tensor([0]), torch.full((3,), 0.1), 32.0, 1.0).sum().backward()
        assert logits.grad.isfinite().all()


ORDERED = {
    "VS": VectorScaling,
    "DBM": BalancingMargin,
    "logit adjusted": LogitAdjusted,
    "smoothed by class": functools.partial(LabelAwareSmoothing, epochs=1, share=0.5, first_stage=None),
}


@pytest.mark.parametrize("module", ORDERED.values(), ids=ORDERED)
def test_the_order_of_the_classes_does_not_matter(module):
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    counts, target = [COUNTS[place] for place in order], order.argsort()[TARGET]
    torch.testing.assert_close(module(counts)(LOGITS[:, order], target), module(COUNTS)(LOGITS, TARGET))


class TestExpectedLoss:
    MIXED = 0.7 * F.one_hot(TARGET, 7).double() + 0.3 * F.one_hot(TARGET[[1, 2, 3, 0]], 7).double()

    def test_cross_entropy(self):
        assert expected_loss(CrossEntropy(COUNTS), LOGITS, self.MIXED).mean().item() == published(2.0433127832)
        torch.testing.assert_close(
            expected_loss(CrossEntropy(COUNTS), LOGITS, self.MIXED),
            F.cross_entropy(LOGITS, self.MIXED, reduction="none"),
        )

    def test_weights_are_those_of_the_components_and_the_batch_divides(self):
        """Neither PyTorch's 1.6975742855 of a division by the weights' sum, nor a weight of one class alone."""
        weight = weights()
        loss = expected_loss(lambda logits, target: cross_entropy(logits, target, weight), LOGITS, self.MIXED)
        assert loss.mean().item() == published(2.3464886744)
        assert F.cross_entropy(LOGITS, self.MIXED, weight).item() == published(2.3464886744)

    def test_focal_has_its_p_t_per_component(self):
        """lam FL(y) + (1 - lam) FL(y'), not one factor from the mixed cross-entropy."""
        focal = FocalLoss(COUNTS, gamma=2)
        other = TARGET[[1, 2, 3, 0]]
        expected = 0.7 * focal(LOGITS, TARGET) + 0.3 * focal(LOGITS, other)
        torch.testing.assert_close(expected_loss(focal, LOGITS, self.MIXED), expected)
        mixed = F.cross_entropy(LOGITS, self.MIXED, reduction="none")
        assert not torch.allclose((1 - torch.exp(-mixed)) ** 2 * mixed, expected, rtol=0.01)

    def test_ldam_has_its_margin_per_component(self):
        module = LDAM(COUNTS, epochs=10)
        expected = 0.7 * module(LOGITS, TARGET) + 0.3 * module(LOGITS, TARGET[[1, 2, 3, 0]])
        torch.testing.assert_close(expected_loss(module, LOGITS, self.MIXED), expected)

    @every_module
    def test_a_certain_class_is_the_loss_itself(self, module):
        soft = F.one_hot(TARGET, 7).float()
        torch.testing.assert_close(expected_loss(module, LOGITS, soft), module(LOGITS, TARGET))

    @every_module
    def test_bfloat16_logits(self, module):
        loss = expected_loss(module, LOGITS.bfloat16(), self.MIXED.float())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected_loss(module, LOGITS.bfloat16().float(), self.MIXED.float()))


class TestKnownBugsOfPublicCode:
    """Each is in an official or widely copied implementation; the others are named at the loss that they concern."""

    def test_focal_p_t_is_not_taken_from_the_weighted_loss(self):
        """LDAM-DRW and IB-Loss: exp(-w CE) for p_t, 1.2295567178 instead."""
        weighted = cross_entropy(LOGITS, TARGET, weights())
        assert ((1 - torch.exp(-weighted)) * weighted).mean().item() == published(1.2295567178)
        assert focal_loss(LOGITS, TARGET, 1, weights()).mean().item() == published(0.9963505184)

    def test_focal_is_not_multiplied_by_ten(self):
        """IB-Loss."""
        module = FocalLoss(COUNTS, gamma=1, alpha="inverse", normalization="sum_C")
        assert module(LOGITS, TARGET).mean().item() == pytest.approx(0.9963505184, rel=1e-6)

    def test_smoothed_mass_does_not_carry_the_weights_of_other_classes(self):
        """PyTorch (pytorch#104776): an image of happy pays for disgust with the weight of disgust."""
        module = CrossEntropy(COUNTS, "inverse", label_smoothing=0.1)
        expected = module.weight[3] * cross_entropy(LOGITS[:1], TARGET[:1], label_smoothing=0.1)
        torch.testing.assert_close(module(LOGITS[:1], TARGET[:1]), expected)

    def test_weights_do_not_cancel_within_a_batch(self):
        """PyTorch divides by the batch's weights: a batch of one class alone has no weights there."""
        module = CrossEntropy(COUNTS, "inverse")
        disgust, happy = (
            module(LOGITS[:1], torch.tensor([label])) / cross_entropy(LOGITS[:1], torch.tensor([label]))
            for label in (1, 3)
        )
        assert (disgust / happy).item() == pytest.approx(7215 / 436, rel=1e-6)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_easy_images_do_not_vanish_in_bfloat16(self, gamma):
        """1 - 0.999 is 0 in bfloat16."""
        logits = torch.tensor([[7.0, 0.0]], dtype=torch.bfloat16)
        assert 1 - logits.softmax(1)[0, 0] == 0
        for module in (FocalLoss([1, 1], gamma), ClassBalancedFocal([1, 1], gamma)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = module(logits, torch.tensor([0]))
            assert loss.item() == pytest.approx(module(logits.double(), torch.tensor([0])).item(), rel=1e-4)
            assert loss.item() > 0


RUN = {"seed": 0, "budget": "steps", "trainer": {"max_epochs": 20}}


def method_of_a_run(name: str) -> DictConfig:
    return OmegaConf.create({**RUN, "imbalance": combinations.compose_method(name)}).imbalance


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF_DIR / "imbalance").glob("*.yaml")))
class TestMethodFiles:
    def test_builds_a_loss_and_a_sampler(self, name):
        method = method_of_a_run(name)
        assert method.name == name
        loss = instantiate(method.loss, _partial_=True)(class_counts=COUNTS)
        losses = loss(LOGITS, TARGET)
        assert losses.shape == (4,)
        assert losses.isfinite().all()
        labels = np.repeat(np.arange(7), COUNTS)
        sampler = instantiate(method.sampler, _partial_=True)(labels=labels, seed=0)
        assert len(list(sampler)) == len(sampler) == len(labels)
        if "mix" in method:
            numbers = np.random.default_rng(1).random((20, 5), dtype=np.float32)
            partners = instantiate(method.mix, _partial_=True)(labels=labels).sample_mixes(10, numbers).partner
            assert ((partners >= -1) & (partners < len(labels))).all()
            assert (partners >= 0).any()
        if "adjust" in method:
            weight, bias = instantiate(method.adjust, _partial_=True)(class_counts=COUNTS)(
                torch.eye(7), torch.zeros(7), 1.0
            )
            assert (weight.shape, bias.shape) == ((7, 7), (7,))

    def test_spells_every_setting_out(self, name):
        method = method_of_a_run(name)
        for part in ("loss", "sampler", "mix", "adjust", "second_stage"):
            if part in method:
                given = {"class_counts", "labels"} | ({"seed"} if part == "sampler" else set())
                settings = set(inspect.signature(get_class(method[part]._target_)).parameters) - given
                assert set(method[part]) - {"_target_"} == settings


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CrossEntropy(COUNTS, weighting="balanced"), ["'balanced'", "inverse"]),
        (lambda: CrossEntropy([5, 0, 3], weighting="inverse"), ["class 1"]),
        (lambda: FocalLoss(COUNTS, alpha="0.25"), ["'0.25'"]),
        (lambda: FocalLoss([5, 0, 3], alpha="effective"), ["class 1"]),
        (lambda: WeightedBCE(COUNTS, reading="A"), ["'A'", "sample, column, softmax"]),
        (lambda: WeightedBCE(COUNTS, normalization="none"), ["'none'", "sum_C"]),
        (lambda: WeightedBCE(COUNTS, positive_weight=0), ["positive_weight=0"]),
        (lambda: WeightedBCE([5, 0, 3]), ["class 1"]),
        (lambda: ClassBalancedFocal(COUNTS, beta=1), ["beta=1"]),
        (lambda: LogitAdjusted(COUNTS, tau=-0.5), ["tau=-0.5"]),
        (lambda: LogitAdjusted(COUNTS, tau=math.inf), ["tau=inf"]),
        (lambda: LogitAdjusted([5, 0, 3]), ["class 1", "imbalance=none"]),
        (lambda: LDAM(COUNTS, 10, max_margin=3), ["max_margin=3"]),
        (lambda: LDAM(COUNTS, 10, scale=0), ["scale=0"]),
        (lambda: LDAM(COUNTS, 10, deferred_share=1.1), ["deferred_share=1.1"]),
        (lambda: LDAM([5, 0, 3], 10), ["class 1"]),
    ],
)
def test_mistakes_are_named_in_one_line(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
