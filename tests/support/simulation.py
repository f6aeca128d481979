"""Simulated methods, seeds and test images: do the intervals and tests of ``comparison.differences`` hold?

    python tests/support/simulation.py --simulations 1000

prints the tables of ``docs/comparison.md``. A model's answer to an image depends on the image (for all methods alike,
for a method, for a seed of it) and on the training (for a run, for each class of it). The size of these effects is set
so that the scores vary over seeds and images as in runs on FER-2013: 3,589 test images, 55 of the rarest class,
deviations over seeds of 0.54, 1.2 and 1.0 points in accuracy, balanced accuracy and macro F1.

The covariances that the product estimates by resampling images are computed here from the scores' influence functions
(the infinitesimal jackknife, Efron 1982), which is some hundred times faster; a test compares both.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fer_lightning.comparison import differences, statistics

CLASSES = 7
IMAGES = 3589
SHARES = np.array([491, 55, 528, 879, 594, 416, 626]) / IMAGES
EASE = np.array([0.35, -0.1, -0.35, 1.3, 0.1, 1.0, 0.45])
"""Of the classes: how easily their images are recognised."""

_OTHERS = SHARES * (1 - np.eye(CLASSES))
WRONG = np.stack([np.searchsorted(row.cumsum() / row.sum(), (np.arange(1000) + 0.5) / 1000) for row in _OTHERS])
"""Of each true class: its wrong answers, as frequent as the classes."""

TWINS = 0.08
"""Share of the images that come in pixel-identical pairs."""

UNEQUAL = (1.58, 0.97, 1.06, 0.48, 0.95, 0.39)
"""Deviations of macro F1 over seeds of six methods (docs/results.md), as factors of training's effect."""

BASELINE_PAIRS = tuple((method, 0) for method in range(1, 6))
ALL_PAIRS = tuple(combinations(range(6), 2))


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        seeds: trainings of each method.
        training: factor of each method's training effects.
        skills: added to the ease of all classes, by method.
        images: in a test set.
        pool: images that seeds draw their test sets from, as a multiple of ``images``; 1: all seeds share theirs.
        folds: seeds have disjoint test sets instead, as the folds of a cross-validation.
        same_training: share of the variance of a method's training effects that its seeds have in common, as where
            they share training images.
    """

    seeds: int = 3
    training: Sequence[float] = (1.0,) * 6
    skills: Sequence[float] = (0.0,) * 6
    images: int = IMAGES
    pool: float = 1.0
    folds: bool = False
    same_training: float = 0.0


@dataclass(frozen=True)
class Simulated:
    """Scores of S simulations: points (S, methods, seeds, 3), covariances (S, 3, methods, seeds, methods, seeds)."""

    points: np.ndarray
    covariances: np.ndarray

    def grouped(self, seeds: int) -> "Simulated":
        """As many simulations with fewer seeds as these have room for."""
        groups = [slice(start, start + seeds) for start in range(0, self.points.shape[2] - seeds + 1, seeds)]
        points = [self.points[:, :, group] for group in groups]
        covariances = [self.covariances[:, :, :, group, :, group] for group in groups]
        return Simulated(np.concatenate(points), np.concatenate(covariances))

    def gaps(self, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean difference, S2 and c of pairs of methods, each of shape (S, 3, J)."""
        first, second = np.array(pairs).T
        each = self.points[:, first] - self.points[:, second]
        blocks = np.stack(
            [
                self.covariances[:, :, a, :, a, :]
                + self.covariances[:, :, b, :, b, :]
                - self.covariances[:, :, a, :, b, :]
                - self.covariances[:, :, b, :, a, :]
                for a, b in pairs
            ],
            axis=2,
        )
        seeds = each.shape[2]
        apart = blocks.sum(axis=(-2, -1)) - np.trace(blocks, axis1=-2, axis2=-1)
        images = np.maximum(apart / (seeds * (seeds - 1)), 0)
        return each.mean(axis=2).swapaxes(1, 2), each.var(axis=2, ddof=1).swapaxes(1, 2), images


@dataclass(frozen=True)
class Estimates:
    """Differences of J comparisons in S simulations by one rule; arrays (S, 3, J)."""

    values: np.ndarray
    variances: differences.Variances

    def misses(self, truth: np.ndarray | float = 0.0) -> np.ndarray:
        """Percent of 95 % intervals that miss the truth, by metric."""
        return 100 * np.mean(np.abs(self.values - truth) > self.half_widths(0.05), axis=(0, 2))

    def half_widths(self, level: float) -> np.ndarray:
        """Half the widths of intervals of confidence 1 - ``level``."""
        return self.variances.half_widths(level)

    def family_errors(self) -> np.ndarray:
        """Percent of simulations in which Holm finds anything, by metric: its first step is Bonferroni's."""
        beyond = np.abs(self.values) > self.half_widths(0.05 / self.values.shape[2])
        return 100 * np.mean(beyond.any(axis=2), axis=0)

    def power(self, gap: np.ndarray | float, corrected: bool) -> np.ndarray:
        """Percent of simulations that find a gap of the first comparison alone, by metric."""
        values = self.values.copy()
        values[:, :, 0] += gap
        if not corrected:
            return 100 * np.mean(np.abs(values[:, :, 0]) > self.half_widths(0.05)[:, :, 0], axis=0)
        # Holm at step s needs a p-value below 0.05 / (J - s) for the comparison and for the s before it.
        count = values.shape[2]
        rejected = np.zeros(values.shape, bool)
        going = np.ones(values.shape[:2], bool)
        for step in range(count):
            # The ratio orders comparisons by p-value, whatever their degrees of freedom.
            ratio = np.where(rejected, -1, np.abs(values) / self.half_widths(0.05 / (count - step)))
            best = ratio.argmax(axis=2)
            going &= np.take_along_axis(ratio, best[:, :, None], axis=2)[:, :, 0] > 1
            chosen = (np.arange(count) == best[:, :, None]) & going[:, :, None]
            rejected |= chosen
        return 100 * rejected[:, :, 0].mean(axis=0)

    def detectable(self, level: float = 0.05) -> np.ndarray:
        """Median of the difference that is said to be found with 80 % power, in points, by metric."""
        missed = self.half_widths(2 * (1 - differences.POWER))
        return 100 * np.median(self.half_widths(level) + missed, axis=(0, 2))


def simulate(world: World, simulations: int, seed: int = 0) -> Simulated:
    """Train and test all methods again and again, each time on new images."""
    rng = np.random.default_rng([seed, world.seeds, world.images])
    found = [_once(world, rng) for _ in range(simulations)]
    points, covariances = (np.stack(part) for part in zip(*found, strict=True))
    return Simulated(points, covariances)


def estimates_of(simulated: Simulated, pairs: Sequence[tuple[int, int]], moderated: bool = True) -> Estimates:
    """Test pairs of methods by the product's rule, or by the one for less than three comparisons."""
    values, variances, images = simulated.gaps(pairs)
    methods, seeds = simulated.points.shape[1:3]
    freedom = np.full(variances.shape, seeds - 1.0)
    if moderated:
        independent = min(methods - 1, len(pairs))
        variances, freedom = differences.moderate(variances, freedom, independent * (seeds - 1))
    return Estimates(values, differences.Variances(variances / seeds, freedom, images))


def _once(world: World, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    methods, seeds = len(world.skills), world.seeds
    pool = world.images * (seeds if world.folds else world.pool)
    single = round(pool * (1 - TWINS / 2))
    labels = rng.choice(CLASSES, size=single, p=SHARES)
    copies = 1 + (np.arange(single) < pool - single)
    answers = answer(world, labels, rng).reshape(methods * seeds, single)
    member = _test_sets(world, single, rng)
    weights = np.tile(member * copies, (methods, 1))
    cells = labels * CLASSES + answers
    counts = np.stack(
        [np.bincount(row, weight, CLASSES**2) for row, weight in zip(cells, weights, strict=True)]
    ).reshape(-1, CLASSES, CLASSES)
    values = np.take_along_axis(influences(counts), cells[:, None, :], axis=2) * weights[:, None, :]
    values = values.swapaxes(0, 1)
    covariances = values @ values.swapaxes(1, 2)
    shape = (methods, seeds)
    return statistics.scores(counts).reshape(*shape, 3), covariances.reshape(3, *shape, *shape)


def _test_sets(world: World, single: int, rng: np.random.Generator) -> np.ndarray:
    """Which images each seed is tested on, float32 (seeds, images)."""
    member = np.ones((world.seeds, single), np.float32)
    if world.folds:
        member[:] = rng.integers(world.seeds, size=single) == np.arange(world.seeds)[:, None]
    elif world.pool > 1:
        member[:] = rng.random(member.shape) < 1 / world.pool
    return member


def answer(world: World, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Predictions of all methods and seeds, shape (methods, seeds, n)."""
    shape = (len(world.skills), world.seeds)
    n = len(labels)
    hard = _normal(rng, n) + 0.45 * _normal(rng, shape[0], 1, n) + 0.6 * _normal(rng, *shape, n)
    classes = EASE + np.array(world.skills)[:, None, None] + _training(world, rng)
    right = hard < classes.astype(np.float32)[..., labels]
    # Many wrong answers are the image's own, whoever gives them.
    own = rng.integers(0, WRONG.shape[1], n), rng.integers(0, WRONG.shape[1], (*shape, n))
    usual, other = (WRONG[labels, place] for place in own)
    wrong = np.where(rng.random((*shape, n), np.float32) < 0.7, usual, other)
    return np.where(right, labels, wrong)


def _training(world: World, rng: np.random.Generator) -> np.ndarray:
    """Effects of training on the classes, shape (methods, seeds, C): of the run, and of each of its classes."""

    def draw(*shape: int) -> np.ndarray:
        own, common = _normal(rng, *shape), _normal(rng, shape[0], 1, *shape[2:])
        return np.sqrt(1 - world.same_training) * own + np.sqrt(world.same_training) * common

    shape = (len(world.skills), world.seeds)
    effects = 0.004 * draw(*shape, 1) + np.where(np.arange(CLASSES) == 1, 0.18, 0.013) * draw(*shape, CLASSES)
    return effects * np.array(world.training)[:, None, None]


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def influences(counts: np.ndarray) -> np.ndarray:
    """How much one more image in a cell of the confusion matrix changes the scores, (runs, C, C) -> (runs, 3, C * C).

    The derivatives of accuracy, balanced accuracy and macro F1 by the weight of an image.
    """
    runs = len(counts)
    n, rows, columns = counts.sum(axis=(1, 2)), counts.sum(axis=2), counts.sum(axis=1)
    diagonal = np.diagonal(counts, axis1=1, axis2=2)
    hit = np.eye(CLASSES)
    present = np.maximum(rows, 1)
    recall, f1 = diagonal / present, 2 * diagonal / np.maximum(rows + columns, 1)
    accuracy = (hit - (diagonal.sum(axis=1) / n)[:, None, None]) / n[:, None, None]
    balanced = (hit - recall[:, :, None]) / present[:, :, None] / np.count_nonzero(rows, axis=1)[:, None, None]
    size = np.maximum(rows + columns, 1)
    share = f1 / size
    macro = (2 * hit / size[:, :, None] - share[:, :, None] - share[:, None, :]) / CLASSES
    return np.stack([accuracy, balanced, macro], axis=1).reshape(runs, 3, -1)


WORLDS = {
    "equal variances": (World(10), (2, 3, 5, 10), 1.0),
    "variances as unequal as in docs/results.md": (World(5, UNEQUAL), (3, 5), 1.0),
    "training variation doubled": (World(3, (2.0,) * 6), (3,), 1.0),
    "baseline with ten times the training variance": (World(3, (10**0.5, 1, 1, 1, 1, 1)), (3,), 1.0),
    "paper's split, shared test images": (World(5, pool=1 / 0.22), (3, 5), 0.25),
    "paper's split, shared test and training images": (World(5, pool=1 / 0.22, same_training=0.5 * 0.51), (3, 5), 0.25),
    "folds, shared training images": (World(5, folds=True, same_training=0.5 * 0.75), (5,), 0.25),
}
"""What is simulated: world, numbers of seeds that are compared, share of the simulations (larger pools are slow).

Seeds of the paper's split share 22 % of their test images and 51 % of their training images; two of five folds share
none and 75 %. Half of the variance of training is then taken to come from its images. The true difference is that in a
new pool of images.
"""

GAPS = ((5, 0.01), (5, 0.02), (3, 0.025))
"""Seeds, with equal variances, and the true difference in macro F1 that is looked for."""


def _slashed(numbers: np.ndarray, digits: int = 1) -> str:
    return " / ".join(f"{number:.{digits}f}" for number in numbers)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (headings, ["---"] * len(headings), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def _coverage_row(name: str, found: Simulated) -> list[str]:
    deviation = 100 * np.sqrt(found.points.var(axis=2, ddof=1).mean(axis=(0, 1)))
    rules = [estimates_of(found, BASELINE_PAIRS, moderated) for moderated in (False, True)]
    pairs = estimates_of(found, ALL_PAIRS)
    covered = [_slashed(100 - rule.misses()) for rule in (*rules, pairs)]
    errors = [_slashed(rule.family_errors()) for rule in (*rules, pairs)]
    return [name, _slashed(deviation, 2), covered[0], errors[0], covered[1], errors[1], covered[2], errors[2]]


def _power_row(name: str, found: Simulated, gap: float) -> list[str]:
    cells = [name, f"{100 * gap:+.1f}"]
    for moderated in (False, True):
        rule = estimates_of(found, BASELINE_PAIRS, moderated)
        cells.append(f"{100 * rule.half_widths(0.05)[:, 2].mean():.2f}")
        cells += [f"{rule.power(gap, corrected)[2]:.0f} %" for corrected in (False, True)]
    return cells


def _detectable_row(name: str, found: Simulated) -> list[str]:
    """The difference that the report calls detectable, and how often one of that size is found."""
    rule = estimates_of(found, BASELINE_PAIRS)
    said = rule.detectable()
    power = [rule.power(gap / 100, corrected=False)[metric] for metric, gap in enumerate(said)]
    return [name, _slashed(said), _slashed(np.array(power), 0)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="of each row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    options = parser.parse_args()
    results = {}
    for name, (world, numbers, share) in WORLDS.items():
        found = simulate(world, round(share * options.simulations), options.seed)
        results |= {f"{seeds} seeds, {name}": found.grouped(seeds) for seeds in numbers}
    print("Accuracy / balanced accuracy / macro F1, percent.\n")
    rules = ("before", "moderated", "moderated, all 15 pairs")
    headings = ["six methods", "deviation over seeds, points"]
    headings += [f"{what}, {rule}" for rule in rules for what in ("covered", "family error")]
    _print_table(headings, [_coverage_row(name, found) for name, found in results.items()])
    headings = ["macro F1", "true difference, points"]
    headings += [
        f"{what}, {rule}"
        for rule in rules[:2]
        for what in ("half-width, points", "found alone", "found after Holm over 5")
    ]
    names = {seeds: f"{seeds} seeds, equal variances" for seeds, _ in GAPS}
    _print_table(headings, [_power_row(names[seeds], results[names[seeds]], gap) for seeds, gap in GAPS])
    headings = ["moderated", "difference said to be found with 80 % power, points", "found"]
    _print_table(headings, [_detectable_row(name, found) for name, found in results.items()])


if __name__ == "__main__":
    main()
