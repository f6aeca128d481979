"""Mixed images: what is mixed with what, in which proportion, and what label it gets."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, chisquare, kstest
from torch import Tensor

from fer_lightning.imbalance.mixing import CMO, COLUMNS, Mixes, Mixup, Remix, cut_boxes, remix_share
from fer_lightning.runtime.errors import UserError

COUNTS = np.array([3995, 436, 4097, 7215, 4830, 3171, 4965])
"""FER-2013's Training counts, in label order."""

ANGRY, DISGUST, FEAR, HAPPY, SAD = 0, 1, 2, 3, 4
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))
BLACK, WHITE = torch.zeros(48, 48, dtype=torch.uint8), torch.full((48, 48), 255, dtype=torch.uint8)
MIXERS = {"mixup": Mixup(LABELS), "remix": Remix(LABELS), "cmo": CMO(LABELS, epochs=10)}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def one_hot(label: int) -> Tensor:
    return torch.eye(7)[label]


def numbers(times: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).random((times, COLUMNS), dtype=np.float32)


def partners(mixer, epoch: int, times: int) -> np.ndarray:
    return mixer.sample_mixes(epoch, numbers(times)).partner.numpy()


def mixed(mixer, image, target, other, other_target, times: int = 200, seed: int = 7) -> tuple[Tensor, Tensor, Mixes]:
    """One image mixed with another again and again; all of them with a partner."""
    drawn = numbers(times, seed)
    drawn[:, 0] = 0
    mixes = mixer.sample_mixes(5, drawn)
    batch = (part.expand(times, *part.shape) for part in (image, target, other, other_target))
    return *mixer(*batch, mixes), mixes


@every_mixer
class TestEveryMixer:
    def test_is_a_pure_function_of_its_numbers_whatever_the_batch(self, mixer):
        faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 20, 48, 48), dtype=np.uint8))
        targets, others = torch.eye(7)[torch.arange(20) % 7], torch.eye(7)[torch.arange(20) % 5]
        drawn = numbers(20)
        mixes = mixer.sample_mixes(5, drawn)
        whole = mixer(faces[0], targets, faces[1], others, mixes)
        for row in range(20):
            alone = mixer.sample_mixes(5, drawn[row : row + 1])
            assert all(torch.equal(one[0], many[row]) for one, many in zip(alone, mixes, strict=True))
            batch = (part[row : row + 1] for part in (faces[0], targets, faces[1], others))
            assert all(torch.equal(one[0], many[row]) for one, many in zip(mixer(*batch, alone), whole, strict=True))

    def test_kinds_and_arguments_are_left_alone(self, mixer):
        for kind in (torch.uint8, torch.float32):
            images, others = BLACK.to(kind).expand(9, 48, 48).clone(), WHITE.to(kind).expand(9, 48, 48).clone()
            targets, other_targets = one_hot(HAPPY).repeat(9, 1), one_hot(SAD).repeat(9, 1)
            result, label = mixer(images, targets, others, other_targets, mixer.sample_mixes(5, numbers(9)))
            assert (result.dtype, result.shape) == (kind, (9, 48, 48))
            assert (label.dtype, label.shape) == (torch.float32, (9, 7))
            assert (images == 0).all()
            assert (others == 255).all()
            assert torch.equal(targets, one_hot(HAPPY).repeat(9, 1))
            assert torch.equal(other_targets, one_hot(SAD).repeat(9, 1))

    def test_images_without_a_partner_stay(self, mixer):
        drawn = numbers(50)
        drawn[:, 0] = np.where(np.arange(50) % 2, 0, 0.9999999)
        if not isinstance(mixer, CMO):
            mixer = type(mixer)(LABELS, prob=0.5)
        mixes = mixer.sample_mixes(5, drawn)
        faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 50, 48, 48), dtype=np.uint8))
        images, label = mixer(faces[0], one_hot(HAPPY).repeat(50, 1), faces[1], one_hot(DISGUST).repeat(50, 1), mixes)
        alone = mixes.partner < 0
        assert alone.sum() == 25
        assert torch.equal(images[alone], faces[0][alone])
        assert torch.equal(label[alone], one_hot(HAPPY).repeat(25, 1))
        assert not torch.equal(images[~alone], faces[0][~alone])

    def test_an_image_mixed_with_itself_stays(self, mixer):
        face = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8))
        images, label, _ = mixed(mixer, face, one_hot(FEAR), face, one_hot(FEAR))
        assert (images == face).all()
        torch.testing.assert_close(label, one_hot(FEAR).repeat(200, 1))

    def test_soft_targets_stay_distributions(self, mixer):
        votes = torch.tensor([0.1, 0, 0.6, 0, 0.3, 0, 0])
        _, label, _ = mixed(mixer, BLACK, votes, WHITE, one_hot(HAPPY))
        torch.testing.assert_close(label.sum(dim=1), torch.ones(200))
        assert label.min() >= 0


class TestMixup:
    def test_pixels_and_label_have_the_same_proportion(self):
        images, label, _ = mixed(Mixup(LABELS, alpha=1.0), WHITE, one_hot(HAPPY), BLACK, one_hot(SAD))
        assert (images == images[:, :1, :1]).all()
        torch.testing.assert_close(images[:, 0, 0] / 255, label[:, HAPPY], atol=0.5 / 255 + 1e-6, rtol=0)
        torch.testing.assert_close(label[:, HAPPY] + label[:, SAD], torch.ones(200))

    @pytest.mark.parametrize("alpha", [0.2, 1.0])
    def test_proportions_follow_the_beta_distribution(self, alpha):
        _, label, _ = mixed(Mixup(LABELS, alpha=alpha), WHITE, one_hot(HAPPY), BLACK, one_hot(SAD), times=2000)
        assert kstest(label[:, HAPPY].numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3

    @pytest.mark.parametrize("mixer", [Mixup(LABELS), Remix(LABELS)])
    def test_partners_are_drawn_from_all_images_alike_whatever_the_sampler(self, mixer):
        """A partner from a balanced sampler would mix the same few images of disgust with each other."""
        drawn = partners(mixer, 0, 20_000)
        assert chisquare(np.bincount(LABELS[drawn]), 20_000 * COUNTS / COUNTS.sum()).pvalue > 1e-4

    def test_prob(self):
        assert set(partners(Mixup(LABELS, prob=0.0), 0, 50)) == {-1}
        left_out = (partners(Mixup(LABELS, prob=0.25), 0, 4000) < 0).mean()
        assert left_out == pytest.approx(0.75, abs=0.03)


class TestRemix:
    CASES = (
        (HAPPY, DISGUST, 0.4, 0.0),
        (DISGUST, HAPPY, 0.7, 1.0),
        (SAD, FEAR, 0.4, 0.4),
        (HAPPY, DISGUST, 0.6, 0.6),
        (DISGUST, HAPPY, 0.4, 0.4),
        (HAPPY, DISGUST, 0.5, 0.5),  # lam < tau is strict
        (DISGUST, HAPPY, 0.5, 0.5),
    )

    def test_share(self):
        first, second, lam, share = (torch.tensor(column) for column in zip(*self.CASES, strict=True))
        counts = torch.from_numpy(COUNTS)
        torch.testing.assert_close(remix_share(counts[first], counts[second], lam, kappa=3, tau=0.5), share)
        mixes = Mixes(torch.zeros(7, dtype=torch.int64), lam, torch.zeros(7, 4))
        torch.testing.assert_close(Remix(LABELS).label_share(mixes, torch.eye(7)[first], torch.eye(7)[second]), share)

    def test_the_ratio_itself_is_far_enough(self):
        count, other, lam = torch.tensor([300, 100, 299]), torch.tensor([100, 300, 100]), torch.tensor([0.4, 0.6, 0.4])
        torch.testing.assert_close(remix_share(count, other, lam, 3, 0.5), torch.tensor([0.0, 1.0, 0.4]))

    def test_tau_0_is_mixup(self):
        pair = (WHITE, one_hot(HAPPY), BLACK, one_hot(DISGUST))
        plain, remixed = (mixed(mixer, *pair)[:2] for mixer in (Mixup(LABELS), Remix(LABELS, tau=0.0)))
        assert all(torch.equal(one, other) for one, other in zip(plain, remixed, strict=True))

    def test_pixels_keep_their_proportion_where_the_label_moves(self):
        images, label, _ = mixed(Remix(LABELS, alpha=1.0), WHITE, one_hot(HAPPY), BLACK, one_hot(DISGUST))
        pixels = images[:, 0, 0] / 255
        moved, kept = pixels < 0.49, pixels > 0.51
        assert (label[moved, DISGUST] == 1).all()
        assert moved.sum() > 40
        torch.testing.assert_close(label[kept, HAPPY], pixels[kept], atol=0.003, rtol=0)

    def test_class_of_a_soft_target_is_its_largest(self):
        votes = 0.6 * one_hot(HAPPY) + 0.4 * one_hot(DISGUST)
        mixes = Mixes(torch.tensor([3]), torch.tensor([0.4]), torch.zeros(1, 4))
        assert Remix(LABELS).label_share(mixes, votes[None], one_hot(DISGUST)[None]) == 0


class TestCMO:
    def test_the_label_counts_the_pixels_of_the_box_after_it_was_cut_at_the_border(self):
        """Not the drawn lam: a box in a corner loses up to three quarters of its area."""
        images, label, _ = mixed(CMO(LABELS, 10), BLACK, one_hot(HAPPY), WHITE, one_hot(DISGUST))
        torch.testing.assert_close(label[:, DISGUST], (images == 255).float().mean(dim=(1, 2)))
        drawn = numbers(200)[:, 2]  # alpha 1: the numbers are lam themselves
        assert ((1 - drawn) - label[:, DISGUST].numpy() > 0.1).sum() > 20

    @pytest.mark.parametrize("side", [48, 96, 112])
    def test_the_rectangle_keeps_its_place_at_any_size(self, side):
        face = (torch.arange(side * side).reshape(side, side) % 251).to(torch.uint8)
        background = torch.full((side, side), 255, dtype=torch.uint8)
        images, label, _ = mixed(CMO(LABELS, 10), background, one_hot(HAPPY), face, one_hot(DISGUST), times=20)
        for image, target in zip(images, label, strict=True):
            pasted = (image != 255).numpy()
            assert np.array_equal(image.numpy()[pasted], face.numpy()[pasted])
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            if len(rows):
                assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert float(target[DISGUST]) == pytest.approx(pasted.mean(), abs=0.03 if side % 48 else 1e-6)

    @pytest.mark.parametrize(("alpha", "power"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
    def test_foregrounds_come_from_rare_classes_as_often_as_from_others(self, alpha, power):
        drawn = partners(CMO(LABELS, 10, prob=1.0, weighted_alpha=alpha), 5, 20_000)
        shares = COUNTS**power / (COUNTS**power).sum()
        assert chisquare(np.bincount(LABELS[drawn]), 20_000 * shares).pvalue > 1e-4

    def test_prob(self):
        left_out = (partners(CMO(LABELS, 10), 5, 4000) < 0).mean()
        assert left_out == pytest.approx(0.5, abs=0.03)

    def test_first_and_last_epochs_are_left_alone(self):
        mixer = CMO(LABELS, epochs=10, prob=1.0, off_share=0.3)
        assert [epoch for epoch in range(10) if partners(mixer, epoch, 1)[0] >= 0] == [3, 4, 5, 6]
        assert CMO(LABELS, epochs=200).mixed_epochs == range(3, 197)  # as the authors

    @pytest.mark.parametrize(("epochs", "mixed"), [(1, [0]), (2, [0, 1]), (3, [1]), (6, [2, 3]), (7, [3])])
    def test_in_a_short_run_an_epoch_is_left_to_mix_in(self, epochs, mixed):
        mixer = CMO(LABELS, epochs=epochs, prob=1.0, off_share=0.45)
        assert [epoch for epoch in range(epochs) if partners(mixer, epoch, 1)[0] >= 0] == mixed

    def test_box_is_around_any_pixel(self):
        row, column = np.random.default_rng(0).random((2, 3000))
        boxes = cut_boxes(np.full(3000, 0.75), row, column)
        covered = np.zeros((48, 48))
        for top, bottom, left, right in boxes:
            covered[top:bottom, left:right] += 1
        heights = boxes[:, 1] - boxes[:, 0]
        assert covered.min() > 0
        assert heights.min() > 0
        assert heights.max() == 24
        assert set(heights[(boxes[:, 0] > 0) & (boxes[:, 1] < 48)]) == {24}

    @pytest.mark.parametrize(("method", "share"), [("mixup", 1.5), ("remix", 1.6), ("cmo", 3.5)])
    def test_share_of_the_rarest_class_in_the_labels(self, method, share):
        """The numbers of docs/methods.md, in percent: 436 of 28,709 images are of disgust."""
        mixer, count = MIXERS[method], len(LABELS)
        own = torch.eye(7)[torch.from_numpy(LABELS)]
        mixes = mixer.sample_mixes(5, numbers(count))
        others = own[mixes.partner.clamp(min=0)]
        kept = mixer.label_share(mixes, own, others) if isinstance(mixer, Mixup) else mixes.share
        labels = kept[:, None] * own + (1 - kept[:, None]) * others
        assert 100 * labels[:, DISGUST].mean().item() == pytest.approx(share, abs=0.15)

    def test_nothing_is_pasted_for_lam_1(self):
        top, bottom, left, right = cut_boxes(np.ones(1), np.array([0.5]), np.array([0.5]))[0]
        assert (bottom - top) * (right - left) == 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Mixup(LABELS, alpha=0), ["alpha=0", "above 0"]),
        (lambda: Mixup(LABELS, prob=1.5), ["prob=1.5", "0 to 1"]),
        (lambda: Remix(LABELS, kappa=0.5), ["kappa=0.5", "1 or more"]),
        (lambda: Remix(LABELS, tau=1.5), ["tau=1.5"]),
        (lambda: Remix(LABELS, alpha=-1), ["alpha=-1"]),
        (lambda: CMO(LABELS, 10, prob=-0.1), ["prob=-0.1"]),
        (lambda: CMO(LABELS, 10, alpha=0), ["alpha=0"]),
        (lambda: CMO(LABELS, 10, weighted_alpha=-1), ["weighted_alpha=-1"]),
        (lambda: CMO(LABELS, 6, off_share=0.5), ["imbalance.mix.off_share=0.5", "below 0.5"]),
    ],
)
def test_mistakes_are_named_in_one_line(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
