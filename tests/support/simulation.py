"""Made-up methods, seeds and test images, to see whether intervals and tests hold what they promise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fer_lightning.comparison import statistics

CLASSES = 7
SHARES = np.array([491, 55, 528, 879, 594, 416, 626]) / 3589
EASE = np.array([0.4, -0.1, 0.1, 1.4, 0.2, 1.2, 0.6])


@dataclass(frozen=True)
class Simulation:
    """What many simulated comparisons found; ``estimates`` has shape (simulations, pairs of methods, 3 metrics)."""

    estimates: np.ndarray

    def misses(self, truth: np.ndarray | float = 0.0) -> np.ndarray:
        """Percent of intervals that miss the truth, by metric."""
        low, high = self._each("low"), self._each("high")
        return 100 * np.mean((low > truth) | (high < truth), axis=(0, 1))

    def found(self) -> np.ndarray:
        """Percent of p-values below 0.05, by metric."""
        return 100 * np.mean(self._each("p") < 0.05, axis=(0, 1))

    def family_errors(self) -> np.ndarray:
        """Percent of simulations where any pair is significant after Holm's correction, by metric."""
        # Holm's first step is Bonferroni's; statistics.holm itself collects garbage (statsmodels) and is slow here.
        return 100 * np.mean(self._each("p").min(axis=1) * self.estimates.shape[1] < 0.05, axis=0)

    def _each(self, name: str) -> np.ndarray:
        return np.array([getattr(each, name) for each in self.estimates.ravel()]).reshape(self.estimates.shape)


def population(rng: np.random.Generator, n: int, twins: float = 0.08) -> tuple[np.ndarray, np.ndarray]:
    """Labels as imbalanced as FER-2013's, and clusters: this share of images has a twin, or is one."""
    labels, clusters = rng.choice(CLASSES, size=n, p=SHARES), np.arange(n)
    pairs = rng.permutation(n)[: int(n * twins / 2) * 2].reshape(2, -1)
    labels[pairs[1]], clusters[pairs[1]] = labels[pairs[0]], pairs[0]
    return labels, clusters


def answer(
    rng: np.random.Generator,
    labels: np.ndarray,
    clusters: np.ndarray,
    skills: Sequence[float],
    seeds: int,
    training: float,
) -> np.ndarray:
    """Predictions (methods, seeds, n).

    Whether an image is answered rightly depends on the image (for all methods alike, for a method, for a seed of it),
    and on the training of a method with a seed (``training``: deviation, twice that for each class by itself). Twins
    are answered alike. Many wrong answers are the image's own, whoever gives them.
    """
    n, shape = len(labels), (len(skills), seeds, len(labels))
    hard = rng.normal(size=n) + 0.5 * rng.normal(size=(shape[0], 1, n)) + 0.6 * rng.normal(size=shape)
    luck = training * (rng.normal(size=(*shape[:2], 1)) + 2 * rng.normal(size=(*shape[:2], CLASSES))[..., labels])
    luck = luck + training * rng.normal(size=(1, seeds, 1))
    right = hard[..., clusters] + luck < EASE[labels] + np.array(skills)[:, None, None]
    usual = (labels + rng.integers(1, CLASSES, n)[clusters]) % CLASSES
    other = (labels + rng.integers(1, CLASSES, shape)[..., clusters]) % CLASSES
    wrong = np.where((rng.random(shape) < 0.7)[..., clusters], usual, other)
    return np.where(right, labels, wrong)


def simulate(
    simulations: int,
    seeds: int,
    training: float,
    skills: Sequence[float] = (0.0,) * 6,
    images: int = 300,
    test_sets: str = "shared",
    against_first: bool = False,
    resamples: int = 200,
) -> Simulation:
    """Compare methods again and again, each time with new images and new trainings.

    Args:
        simulations: how often.
        seeds: trainings of each method.
        training: see ``answer``.
        skills: one per method.
        images: in a test set.
        test_sets: ``shared`` by all seeds, ``overlapping`` (each seed draws its own from the same four times as many,
            as the paper's split), or ``disjoint`` (as folds).
        against_first: compare all others with the first method, not each second one with the one before.
        resamples: of the bootstrap.
    """
    rng = np.random.default_rng([seeds, int(100 * training), images, len(test_sets)])
    methods = len(skills)
    pairs = [(m, 0) for m in range(1, methods)] if against_first else [(m + 1, m) for m in range(0, methods, 2)]
    found = []
    for _ in range(simulations):
        pool = {"shared": images, "overlapping": 4 * images, "disjoint": seeds * images}[test_sets]
        labels, clusters = population(rng, pool)
        answers = answer(rng, labels, clusters, skills, seeds, training)
        order = rng.permutation(pool)
        if test_sets == "overlapping":
            own = [rng.permutation(pool)[:images] for _ in range(seeds)]
        else:
            own = [order] * seeds if test_sets == "shared" else np.split(order, seeds)
        tested = own * methods
        truth = [labels[rows] for rows in tested]
        given = [answers[run // seeds, run % seeds][rows] for run, rows in enumerate(tested)]
        counts = [np.bincount(a * CLASSES + b, minlength=CLASSES**2) for a, b in zip(truth, given, strict=True)]
        points = statistics.scores(np.array(counts).reshape(methods, seeds, CLASSES, CLASSES))
        together = [clusters[rows] for rows in tested]
        resampled = statistics.bootstrap_scores(
            truth, given, together, CLASSES, resamples, int(rng.integers(2**31))
        ).reshape(resamples, methods, seeds, 3)
        found.append(
            [
                [
                    statistics.paired_difference(
                        points[a, :, k] - points[b, :, k], resampled[:, a, :, k] - resampled[:, b, :, k]
                    )
                    for k in range(3)
                ]
                for a, b in pairs
            ]
        )
    return Simulation(np.array(found, dtype=object))


def true_gap(skill: float, training: float) -> np.ndarray:
    """The difference in each metric that a method with ``skill`` has to one with 0, from very many images."""
    rng = np.random.default_rng(0)
    labels, clusters = population(rng, 20_000, twins=0)
    answers = answer(rng, labels, clusters, (0.0, skill), 60, training)
    counts = [np.bincount(labels * CLASSES + one, minlength=CLASSES**2) for one in answers.reshape(-1, len(labels))]
    scores = statistics.scores(np.array(counts).reshape(2, 60, CLASSES, CLASSES)).mean(axis=1)
    return scores[1] - scores[0]
