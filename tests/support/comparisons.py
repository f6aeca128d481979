"""A comparison of methods with made-up numbers, to see how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.comparison.analysis import METRICS, PRIMARY, TESTED, Comparison, Ranks
from fer_lightning.comparison.further_tables import GRID
from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.classification import precision_recall_f1
from fer_lightning.metrics.names import FURTHER
from fer_lightning.report import notes, sentences
from fer_lightning.report.sections import sections

METHODS = (
    "none",
    "undersample",
    "weighted",
    "focal",
    "balanced_softmax",
    "oversample",
    "logit_adjusted",
    "undersample_redraw",
    "sqrt_sampler",
    "progressive_sampler",
    "weighted_bce",
    "sqrt_weighted",
    "class_balanced",
    "class_balanced_focal",
    "posthoc_logit_adjusted",
    "ldam_drw",
    "crt",
    "tau_norm",
    "lws",
    "mixup",
    "remix",
    "cmo",
)
TRAIN = (3995, 436, 4097, 7215, 4830, 3171, 4965)
TEST = (491, 55, 528, 879, 594, 416, 626)


ESTIMATE = ("difference", "low", "high", "p", "p_holm", "low_all", "high_all", "detectable", "detectable_all")


def estimate(gap: float, p: float, p_holm: float) -> tuple[float, ...]:
    """A difference with intervals, in the order of ``ESTIMATE``."""
    return gap, gap - 0.013, gap + 0.015, p, p_holm, gap - 0.017, gap + 0.019, 0.02, 0.026


@dataclass(frozen=True)
class Drawn:
    """The random numbers of a method: its confusion matrix, all seeds together, and what a matrix does not give."""

    name: str
    matrix: np.ndarray
    ece: float
    nll: float
    temperature: float


def made_up(
    methods: int = 5,
    seeds: int = 5,
    names: tuple[str, ...] = METHODS,
    baseline: bool = True,
    extras: bool = False,
    **changes: Any,
) -> Comparison:
    """``methods`` methods with ``seeds`` seeds; ``extras``: with the paper's table and the ceiling by FER+."""
    names = names[:methods]
    drawn = draw(names, seeds)
    first = names[0] if baseline else None
    scores = summary(drawn, seeds)
    means = scores.set_index(["test_set", "method", "metric"])["mean"]
    parts: dict[str, Any] = {
        "rows": rows(names, seeds),
        "baselines": dict.fromkeys(names, first) if first and methods > 1 else {},
        "test_set": "test",
        "sizes": {"test": 3589, "test_dedup": 3301, **({"test_large": 7365, "test_balanced": 1050} if extras else {})},
        "shared": True,
        "synthetic": False,
        "summary": scores,
        "pairs": pairs(means, names, seeds),
        "differences": differences(means, names[1:] if first else (), first, seeds),
        "twin_changes": twin_changes(names[1:] if first else (), seeds),
        "mcnemar": mcnemar(names),
        "ranks": ranks(means, methods, seeds),
        "per_class": per_class(drawn, seeds),
        "calibration": calibration(drawn),
        "reliability": reliability(drawn, seeds),
        "confusion": {each.name: each.matrix for each in drawn},
        "cost": cost(names),
        "ceiling": ceiling() if extras else None,
        "paper": paper(names) if extras else None,
        "further": further(names, seeds),
        "risks": risks(names),
        "sets": sets(names),
    }
    return Comparison(**{**parts, **changes})


def draw(names: Sequence[str], seeds: int) -> list[Drawn]:
    rng = np.random.default_rng(0)
    skills = {name: 0.66 + 0.03 * rng.standard_normal() for name in names}
    rare = {name: 0.15 + 0.5 * rng.random() for name in names}
    drawn = []
    for name in names:
        matrix = np.zeros((7, 7), dtype=np.int64)
        for k, n in enumerate(TEST):
            shares = np.full(7, (1 - skills[name]) / 6)
            shares[k] = rare[name] if k == 1 else skills[name] + 0.06 * np.sin(k)
            matrix[k] = rng.multinomial(n * seeds, shares / shares.sum())
        ece, nll, temperature = 0.04 + 0.1 * rng.random(), 0.9 + rng.random() / 3, 1.3 + rng.random()
        drawn.append(Drawn(name, matrix, ece, nll, temperature))
    return drawn


def spread(seeds: int) -> float:
    """The standard deviation of every score over seeds."""
    return np.nan if seeds == 1 else 0.008


SUMMARY = ("test_set", "method", "metric", "mean", "sd", "low", "high", "seeds")


def summary(drawn: Sequence[Drawn], seeds: int) -> pd.DataFrame:
    lines = []
    for each in drawn:
        _, recall, f1 = precision_recall_f1(each.matrix)
        accuracy = each.matrix.trace() / each.matrix.sum()
        means = (accuracy, recall.mean(), f1.mean(), recall.min(), each.nll, each.ece)
        for test_set, loss in (("test", 0.0), ("test_dedup", 0.011)):
            for metric, mean in zip(METRICS, means, strict=True):
                value, half = mean - loss, spread(seeds) * 1.24
                lines.append((test_set, each.name, metric, value, spread(seeds), value - half, value + half, seeds))
    return pd.DataFrame(lines, columns=[*SUMMARY])


def per_class(drawn: Sequence[Drawn], seeds: int) -> pd.DataFrame:
    lines = []
    for each in drawn:
        precision, recall, f1 = precision_recall_f1(each.matrix)
        for k, emotion in enumerate(EMOTIONS):
            scores = (recall[k], spread(seeds) * 3, precision[k], spread(seeds) * 2, f1[k], spread(seeds) * 2)
            lines.append((each.name, emotion, TEST[k], *scores))
    columns = ["method", "class", "n", "recall", "recall_sd", "precision", "precision_sd", "f1", "f1_sd"]
    return pd.DataFrame(lines, columns=columns)


def calibration(drawn: Sequence[Drawn]) -> pd.DataFrame:
    errors = ("ece", "ece_scaled", "classwise_ece", "classwise_ece_scaled")
    return pd.DataFrame(
        [(d.name, d.temperature, 1.2, 0.95, d.ece, d.ece / 4, d.ece * 0.8, d.ece / 2) for d in drawn],
        columns=["method", "temperature", "nll", "nll_scaled", *errors],
    )


def reliability(drawn: Sequence[Drawn], seeds: int) -> pd.DataFrame:
    lines = []
    for each in drawn:
        for scaled in (False, True):
            for low in np.arange(3, 15) / 15:
                gap = (0.03 if scaled else 2 * each.ece) * (low + 0.03)
                count = int(50 + 900 * low**3 * seeds)
                lines.append((each.name, scaled, low, low + 1 / 15, low + 0.033, low + 0.033 - gap, count))
    columns = ["method", "scaled", "bin_low", "bin_high", "confidence", "accuracy", "count"]
    return pd.DataFrame(lines, columns=columns)


def differences(means: pd.Series, others: Sequence[str], first: str | None, seeds: int) -> pd.DataFrame:
    lines = []
    for test_set in ("test", "test_dedup"):
        for name in others:
            for metric in TESTED:
                gap = means[test_set, name, metric] - means[test_set, first, metric]
                p = float(np.exp(-abs(gap) / 0.006))
                p_holm = min(1.0, p * len(others))
                lines.append((test_set, name, metric, *estimate(gap, p, p_holm), seeds))
    return pd.DataFrame(lines, columns=["test_set", "method", "metric", *ESTIMATE, "pairs"])


def pairs(means: pd.Series, names: Sequence[str], seeds: int) -> pd.DataFrame:
    every = list(combinations(names, 2))
    p_holm = min(1.0, 0.04 * len(every))
    lines = [
        (one, other, *estimate(means["test", one, PRIMARY] - means["test", other, PRIMARY], 0.04, p_holm), seeds)
        for one, other in every
    ]
    return pd.DataFrame(lines, columns=["first", "second", *ESTIMATE, "seeds"])


def twin_changes(others: Sequence[str], seeds: int) -> pd.DataFrame:
    lines = [(name, *estimate(-0.004, 0.3, 0.9), seeds) for name in others]
    return pd.DataFrame(lines, columns=["method", *ESTIMATE, "pairs"])


def mcnemar(names: Sequence[str]) -> pd.DataFrame:
    lines = [(name, 200 + 5 * k, 190, 0.04, min(1.0, 0.04 * len(names))) for k, name in enumerate(names[1:])]
    return pd.DataFrame(lines, columns=["method", "only_method_right", "only_baseline_right", "p", "p_holm"])


def ranks(means: pd.Series, methods: int, seeds: int) -> Ranks:
    lines = [
        (metric, name, rank)
        for metric in TESTED
        for name, rank in means["test"][:, metric].rank(ascending=False).items()
    ]
    frame = pd.DataFrame(lines if methods > 1 and seeds > 1 else [], columns=["metric", "method", "mean_rank"])
    return Ranks(frame, seeds, 0.5 * methods**0.9, dict.fromkeys(TESTED, 0.0123))


def rows(names: Sequence[str], seeds: int) -> dict[str, list[FinishedRun]]:
    metrics = {
        "test/n": 3589,
        "test_dedup/n": 3301,
        "data": "fer2013",
        "data_hash": "5f1c9a0e3b7d",
        "split": "official",
        "budget": "steps",
        "labels": "fer",
        "model": "efficientnet_b0",
        "git_commit": "1a2b3c",
        "temperature": 1.5,
        "train/steps": 3380,
        "train/class_counts": dict(zip(EMOTIONS, TRAIN, strict=True)),
    }
    places = np.arange(sum(TEST))
    members = {"test": places >= 0, "test_dedup": places < 3301}
    return {
        name: [
            FinishedRun(
                folder=Path(f"/sweep/{number}-{seed}"),
                metrics={**metrics, "imbalance": name, "seed": seed},
                settings={"optim.lr": "0.001"},
                ids=places.astype(str),
                labels=np.repeat(np.arange(7), TEST),
                predictions=np.repeat(np.arange(7), TEST),
                probabilities=np.full((len(places), 7), 1 / 7),
                twins=places,
                members=members,
                fold=None,
            )
            for seed in range(seeds)
        ]
        for number, name in enumerate(names)
    }


def cost(names: Sequence[str]) -> pd.DataFrame:
    lines = [(name, 61.0 + 7 * k, 1234.5, 3380, 1, "32-true") for k, name in enumerate(names)]
    return pd.DataFrame(lines, columns=["method", "seconds", "images_per_second", "steps", "devices", "precision"])


def ceiling() -> pd.DataFrame:
    agreement, zero_votes = np.linspace(0.5, 0.93, 7), np.linspace(0.01, 0.4, 7)
    return pd.DataFrame({"class": EMOTIONS, "n": TEST, "agreement": agreement, "zero_votes": zero_votes})


def paper(names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (names[1], "test_balanced", 0.494286, 0.512, 0.498, 0.526, 1050),
            (names[-1], "test_large", 0.558316, 0.561, 0.55, 0.572, 7365),
        ],
        columns=["method", "test_set", "paper_accuracy", "mean", "low", "high", "n"],
    )


def further(names: Sequence[str], seeds: int) -> pd.DataFrame:
    lines = [
        ("test", name, key, 0.5 + 0.01 * k, spread(seeds), 0.4, 0.6, seeds)
        for k, name in enumerate(names)
        for key in FURTHER
    ]
    return pd.DataFrame(lines, columns=[*SUMMARY])


def risks(names: Sequence[str]) -> pd.DataFrame:
    lines = [(name, share, (0.3 + 0.01 * k) * share**2) for k, name in enumerate(names) for share in GRID]
    return pd.DataFrame(lines, columns=["method", "coverage", "risk"])


def sets(names: Sequence[str]) -> pd.DataFrame:
    lines = [(name, 0.9, 0.9, 2.0 + 0.1 * k, *(0.88 for _ in EMOTIONS)) for k, name in enumerate(names)]
    columns = ["method", "level", "coverage", "size", *(f"coverage/{emotion}" for emotion in EMOTIONS)]
    return pd.DataFrame(lines, columns=columns)


def all_sentences(c: Comparison) -> list[str]:
    """Every sentence of a report, the answer first."""
    return [sentences.answer(c), *(sentence for part in sections(c) for sentence in part.sentences)]


def all_notes(c: Comparison) -> list[str]:
    """Every note of a report."""
    return [*(note for part in sections(c) for note in part.notes), *notes.on_protocol(c)]
