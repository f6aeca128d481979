"""Mixed images: what is mixed with what, in which proportion, and what label it gets."""

import numpy as np
import pytest
from scipy.stats import beta, chisquare, kstest

from fer_lightning.errors import UserError
from fer_lightning.imbalance.mixing import CMO, Mixup, Remix, cut_box, remix_share

COUNTS = np.array([3995, 436, 4097, 7215, 4830, 3171, 4965])
"""FER-2013's Training counts, in label order."""

ANGRY, DISGUST, FEAR, HAPPY, SAD = 0, 1, 2, 3, 4
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))
BLACK, WHITE = np.zeros((48, 48), np.uint8), np.full((48, 48), 255, np.uint8)
MIXERS = {"mixup": Mixup(LABELS), "remix": Remix(LABELS), "cmo": CMO(LABELS, epochs=10)}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def one_hot(label: int) -> np.ndarray:
    return np.eye(7, dtype=np.float32)[label]


def partners(mixer, epoch: int, times: int) -> list[int | None]:
    return [mixer.partner(epoch, np.random.default_rng([7, number])) for number in range(times)]


@every_mixer
class TestEveryMixer:
    def test_is_a_pure_function_of_its_generator(self, mixer):
        def result(seed: int):
            rng = np.random.default_rng(seed)
            faces = np.random.default_rng(0).integers(0, 256, (2, 48, 48), dtype=np.uint8)
            partner = mixer.partner(5, rng)
            return partner, *mixer(faces[0], one_hot(ANGRY), faces[1], one_hot(FEAR), rng)

        first, again, other = result(3), result(3), result(4)
        assert first[0] == again[0]
        assert np.array_equal(first[1], again[1])
        assert np.array_equal(first[2], again[2])
        assert not np.array_equal(first[1], other[1])

    def test_kinds_and_arguments_are_left_alone(self, mixer):
        image, other, target, other_target = BLACK.copy(), WHITE.copy(), one_hot(HAPPY), one_hot(SAD)
        mixed, label = mixer(image, target, other, other_target, np.random.default_rng(0))
        assert (mixed.dtype, mixed.shape) == (np.uint8, (48, 48))
        assert (label.dtype, label.shape) == (np.float32, (7,))
        assert label.sum() == pytest.approx(1, abs=1e-6)
        assert np.array_equal(image, BLACK)
        assert np.array_equal(other, WHITE)
        assert np.array_equal(target, one_hot(HAPPY))
        assert np.array_equal(other_target, one_hot(SAD))

    def test_read_only_images_are_fine(self, mixer):
        image, other = BLACK.copy(), WHITE.copy()
        image.flags.writeable = other.flags.writeable = False
        mixer(image, one_hot(HAPPY), other, one_hot(SAD), np.random.default_rng(0))

    def test_an_image_mixed_with_itself_stays(self, mixer):
        face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
        mixed, label = mixer(face, one_hot(FEAR), face, one_hot(FEAR), np.random.default_rng(1))
        assert np.array_equal(mixed, face)
        assert label == pytest.approx(one_hot(FEAR))

    def test_soft_targets_stay_distributions(self, mixer):
        votes = np.array([0.1, 0, 0.6, 0, 0.3, 0, 0], np.float32)
        for seed in range(20):
            _, label = mixer(BLACK, votes, WHITE, one_hot(HAPPY), np.random.default_rng(seed))
            assert label.sum() == pytest.approx(1, abs=1e-6)
            assert label.min() >= 0


class TestMixup:
    def test_pixels_and_label_have_the_same_proportion(self):
        for seed in range(50):
            mixed, label = Mixup(LABELS, alpha=1.0)(
                WHITE, one_hot(HAPPY), BLACK, one_hot(SAD), np.random.default_rng(seed)
            )
            assert np.unique(mixed).size == 1
            assert mixed[0, 0] / 255 == pytest.approx(label[HAPPY], abs=0.5 / 255 + 1e-6)
            assert label[HAPPY] + label[SAD] == pytest.approx(1)

    @pytest.mark.parametrize("alpha", [0.2, 1.0])
    def test_proportions_follow_the_beta_distribution(self, alpha):
        mixer = Mixup(LABELS, alpha=alpha)
        shares = [
            float(mixer(WHITE, one_hot(HAPPY), BLACK, one_hot(SAD), np.random.default_rng(seed))[1][HAPPY])
            for seed in range(1000)
        ]
        assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3

    @pytest.mark.parametrize("mixer", [Mixup(LABELS), Remix(LABELS)])
    def test_partners_are_drawn_from_all_images_alike_whatever_the_sampler(self, mixer):
        """A partner from a balanced sampler would mix the same few images of disgust with each other."""
        drawn = np.array(partners(mixer, 0, 20_000))
        assert chisquare(np.bincount(LABELS[drawn]), 20_000 * COUNTS / COUNTS.sum()).pvalue > 1e-4

    def test_prob(self):
        assert set(partners(Mixup(LABELS, prob=0.0), 0, 50)) == {None}
        left_out = partners(Mixup(LABELS, prob=0.25), 0, 4000).count(None)
        assert left_out / 4000 == pytest.approx(0.75, abs=0.03)


class TestRemix:
    @pytest.mark.parametrize(
        ("first", "second", "lam", "share"),
        [
            (HAPPY, DISGUST, 0.4, 0.0),
            (DISGUST, HAPPY, 0.7, 1.0),
            (SAD, FEAR, 0.4, 0.4),
            (HAPPY, DISGUST, 0.6, 0.6),
            (DISGUST, HAPPY, 0.4, 0.4),
            (HAPPY, DISGUST, 0.5, 0.5),  # lam < tau is strict
            (DISGUST, HAPPY, 0.5, 0.5),
        ],
    )
    def test_share(self, first, second, lam, share):
        assert remix_share(COUNTS[first], COUNTS[second], lam, kappa=3, tau=0.5) == share
        assert Remix(LABELS).label_share(lam, one_hot(first), one_hot(second)) == share

    def test_the_ratio_itself_is_far_enough(self):
        assert remix_share(300, 100, 0.4, 3, 0.5) == 0
        assert remix_share(100, 300, 0.6, 3, 0.5) == 1
        assert remix_share(299, 100, 0.4, 3, 0.5) == 0.4

    def test_tau_0_is_mixup(self):
        for seed in range(20):
            pair = (WHITE, one_hot(HAPPY), BLACK, one_hot(DISGUST))
            plain, remixed = (
                mixer(*pair, np.random.default_rng(seed)) for mixer in (Mixup(LABELS), Remix(LABELS, tau=0.0))
            )
            assert np.array_equal(plain[0], remixed[0])
            assert np.array_equal(plain[1], remixed[1])

    def test_pixels_keep_their_proportion_where_the_label_moves(self):
        moved = 0
        for seed in range(50):
            mixed, label = Remix(LABELS, alpha=1.0)(
                WHITE, one_hot(HAPPY), BLACK, one_hot(DISGUST), np.random.default_rng(seed)
            )
            pixels = mixed[0, 0] / 255
            if pixels < 0.49:
                assert label[DISGUST] == 1
                moved += 1
            elif pixels > 0.51:
                assert label[HAPPY] == pytest.approx(pixels, abs=0.003)
        assert moved > 10

    def test_class_of_a_soft_target_is_its_largest(self):
        votes = 0.6 * one_hot(HAPPY) + 0.4 * one_hot(DISGUST)
        assert Remix(LABELS).label_share(0.4, votes, one_hot(DISGUST)) == 0


class TestCMO:
    def test_the_label_counts_the_pixels_of_the_box_after_it_was_cut_at_the_border(self):
        """Not the drawn lam: a box in a corner loses up to three quarters of its area."""
        cut = 0
        for seed in range(200):
            mixed, label = CMO(LABELS, 10)(BLACK, one_hot(HAPPY), WHITE, one_hot(DISGUST), np.random.default_rng(seed))
            assert label[DISGUST] == pytest.approx((mixed == 255).mean(), abs=1e-6)
            drawn = np.random.default_rng(seed).beta(1.0, 1.0)
            cut += (1 - drawn) - label[DISGUST] > 0.1
        assert cut > 20

    def test_the_rectangle_keeps_its_place(self):
        face = np.arange(48 * 48, dtype=np.uint32).reshape(48, 48) % 251
        background, other = np.full((48, 48), 255, np.uint8), face.astype(np.uint8)
        mixed, _ = CMO(LABELS, 10)(background, one_hot(HAPPY), other, one_hot(DISGUST), np.random.default_rng(2))
        pasted = mixed != 255
        assert 0 < pasted.mean() < 1
        assert np.array_equal(mixed[pasted], other[pasted])
        rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
        assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()

    @pytest.mark.parametrize(("alpha", "power"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
    def test_foregrounds_come_from_rare_classes_as_often_as_from_others(self, alpha, power):
        drawn = np.array(partners(CMO(LABELS, 10, prob=1.0, weighted_alpha=alpha), 5, 20_000))
        shares = COUNTS**power / (COUNTS**power).sum()
        assert chisquare(np.bincount(LABELS[drawn]), 20_000 * shares).pvalue > 1e-4

    def test_prob(self):
        left_out = partners(CMO(LABELS, 10), 5, 4000).count(None)
        assert left_out / 4000 == pytest.approx(0.5, abs=0.03)

    def test_first_and_last_epochs_are_left_alone(self):
        mixer = CMO(LABELS, epochs=10, prob=1.0)
        mixed = [epoch for epoch in range(10) if mixer.partner(epoch, np.random.default_rng(0)) is not None]
        assert mixed == [3, 4, 5, 6]
        assert CMO(LABELS, epochs=1, prob=1.0, off_epochs=0).partner(0, np.random.default_rng(0)) is not None

    def test_box_is_around_any_pixel(self):
        boxes = [cut_box(48, 48, 0.75, np.random.default_rng(seed)) for seed in range(3000)]
        covered = np.zeros((48, 48))
        for box in boxes:
            covered[box] += 1
            assert 0 < (box[0].stop - box[0].start) <= 24
        assert covered.min() > 0
        inside = [box for box in boxes if box[0].start > 0 and box[0].stop < 48]
        assert {box[0].stop - box[0].start for box in inside} == {24}

    def test_nothing_is_pasted_for_lam_1(self):
        assert BLACK[cut_box(48, 48, 1.0, np.random.default_rng(0))].size == 0


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
        (lambda: CMO(LABELS, 6), ["off_epochs=3", "trainer.max_epochs=6", "at most 2"]),
        (lambda: CMO(LABELS, 6, off_epochs=-1), ["off_epochs=-1"]),
    ],
)
def test_mistakes_are_named_in_one_line(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
