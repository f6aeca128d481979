"""A comparison of methods with made-up numbers, to see how it is shown."""

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


def made_up(
    methods: int = 5,
    seeds: int = 5,
    names: tuple[str, ...] = METHODS,
    baseline: bool = True,
    extras: bool = False,
    **changes: Any,
) -> Comparison:
    """``methods`` methods with ``seeds`` seeds; ``extras``: with the paper's table and the ceiling by FER+."""
    rng = np.random.default_rng(0)
    names = names[:methods]
    skills = {name: 0.66 + 0.03 * rng.standard_normal() for name in names}
    rare = {name: 0.15 + 0.5 * rng.random() for name in names}
    confusion, summaries, classes, calibration, reliability = {}, [], [], [], []
    for name in names:
        matrix = np.zeros((7, 7), dtype=np.int64)
        for k, n in enumerate(TEST):
            shares = np.full(7, (1 - skills[name]) / 6)
            shares[k] = rare[name] if k == 1 else skills[name] + 0.06 * np.sin(k)
            matrix[k] = rng.multinomial(n * seeds, shares / shares.sum())
        confusion[name] = matrix
        precision, recall, f1 = precision_recall_f1(matrix)
        spread = np.nan if seeds == 1 else 0.008
        for k, emotion in enumerate(EMOTIONS):
            scores = (recall[k], spread * 3, precision[k], spread * 2, f1[k], spread * 2)
            classes.append((name, emotion, TEST[k], *scores))
        ece = 0.04 + 0.1 * rng.random()
        means = (matrix.trace() / matrix.sum(), recall.mean(), f1.mean(), recall.min(), 0.9 + rng.random() / 3, ece)
        for test_set, loss in (("test", 0.0), ("test_dedup", 0.011)):
            for metric, mean in zip(METRICS, means, strict=True):
                value = mean - loss
                half = spread * 1.24
                summaries.append((test_set, name, metric, value, spread, value - half, value + half, seeds))
        calibration.append((name, 1.3 + rng.random(), 1.2, 0.95, ece, ece / 4, ece * 0.8, ece / 2))
        for scaled in (False, True):
            for low in np.arange(3, 15) / 15:
                gap = (0.03 if scaled else 2 * ece) * (low + 0.03)
                count = int(50 + 900 * low**3 * seeds)
                reliability.append((name, scaled, low, low + 1 / 15, low + 0.033, low + 0.033 - gap, count))
    summary = pd.DataFrame(summaries, columns=["test_set", "method", "metric", "mean", "sd", "low", "high", "seeds"])
    first = names[0] if baseline else None
    table = summary.set_index(["test_set", "method", "metric"])["mean"]
    differences = []
    for test_set in ("test", "test_dedup"):
        for name in names[1:] if first else ():
            for metric in TESTED:
                gap = table[test_set, name, metric] - table[test_set, first, metric]
                p = float(np.exp(-abs(gap) / 0.006))
                p_holm = min(1.0, p * (methods - 1))
                differences.append((test_set, name, metric, *estimate(gap, p, p_holm), seeds))
    ranks = [
        (metric, name, rank)
        for metric in TESTED
        for name, rank in table["test"][:, metric].rank(ascending=False).items()
    ]
    rank_frame = pd.DataFrame(ranks if methods > 1 and seeds > 1 else [], columns=["metric", "method", "mean_rank"])
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
    rows = {
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
    pairs = [
        (one, other, table["test", one, PRIMARY] - table["test", other, PRIMARY])
        for one, other in combinations(names, 2)
    ]
    parts: dict[str, Any] = {
        "rows": rows,
        "baselines": dict.fromkeys(names, first) if first and methods > 1 else {},
        "test_set": "test",
        "sizes": {"test": 3589, "test_dedup": 3301},
        "shared": True,
        "synthetic": False,
        "summary": summary,
        "pairs": pd.DataFrame(
            [(one, other, *estimate(gap, 0.04, min(1.0, 0.04 * len(pairs))), seeds) for one, other, gap in pairs],
            columns=["first", "second", *ESTIMATE, "seeds"],
        ),
        "differences": pd.DataFrame(
            differences,
            columns=["test_set", "method", "metric", *ESTIMATE, "pairs"],
        ),
        "twin_changes": pd.DataFrame(
            [(name, *estimate(-0.004, 0.3, 0.9), seeds) for name in names[1:] if first],
            columns=["method", *ESTIMATE, "pairs"],
        ),
        "mcnemar": pd.DataFrame(
            [(name, 200 + 5 * k, 190, 0.04, min(1.0, 0.04 * methods)) for k, name in enumerate(names[1:])],
            columns=["method", "only_method_right", "only_baseline_right", "p", "p_holm"],
        ),
        "ranks": Ranks(rank_frame, seeds, 0.5 * methods**0.9, dict.fromkeys(TESTED, 0.0123)),
        "per_class": pd.DataFrame(
            classes,
            columns=["method", "class", "n", "recall", "recall_sd", "precision", "precision_sd", "f1", "f1_sd"],
        ),
        "calibration": pd.DataFrame(
            calibration,
            columns=[
                "method",
                "temperature",
                "nll",
                "nll_scaled",
                "ece",
                "ece_scaled",
                "classwise_ece",
                "classwise_ece_scaled",
            ],
        ),
        "reliability": pd.DataFrame(
            reliability, columns=["method", "scaled", "bin_low", "bin_high", "confidence", "accuracy", "count"]
        ),
        "confusion": confusion,
        "cost": pd.DataFrame(
            [(name, 61.0 + 7 * k, 1234.5, 3380, 1, "32-true") for k, name in enumerate(names)],
            columns=["method", "seconds", "images_per_second", "steps", "devices", "precision"],
        ),
        "ceiling": None,
        "paper": None,
        "further": pd.DataFrame(
            [
                ("test", name, key, 0.5 + 0.01 * k, spread, 0.4, 0.6, seeds)
                for k, name in enumerate(names)
                for key in FURTHER
            ],
            columns=["test_set", "method", "metric", "mean", "sd", "low", "high", "seeds"],
        ),
        "risks": pd.DataFrame(
            [(name, share, (0.3 + 0.01 * k) * share**2) for k, name in enumerate(names) for share in GRID],
            columns=["method", "coverage", "risk"],
        ),
        "sets": pd.DataFrame(
            [(name, 0.9, 0.9, 2.0 + 0.1 * k, *(0.88 for _ in EMOTIONS)) for k, name in enumerate(names)],
            columns=["method", "level", "coverage", "size", *(f"coverage/{emotion}" for emotion in EMOTIONS)],
        ),
    }
    if extras:
        parts["sizes"] |= {"test_large": 7365, "test_balanced": 1050}
        parts["ceiling"] = pd.DataFrame(
            {
                "class": EMOTIONS,
                "n": TEST,
                "agreement": np.linspace(0.5, 0.93, 7),
                "zero_votes": np.linspace(0.01, 0.4, 7),
            }
        )
        parts["paper"] = pd.DataFrame(
            [
                (names[1], "test_balanced", 0.494286, 0.512, 0.498, 0.526, 1050),
                (names[-1], "test_large", 0.558316, 0.561, 0.55, 0.572, 7365),
            ],
            columns=["method", "test_set", "paper_accuracy", "mean", "low", "high", "n"],
        )
    return Comparison(**{**parts, **changes})


def all_sentences(c: Comparison) -> list[str]:
    """Every sentence of a report, the answer first."""
    return [sentences.answer(c), *(sentence for part in sections(c) for sentence in part.sentences)]


def all_notes(c: Comparison) -> list[str]:
    """Every note of a report."""
    return [*(note for part in sections(c) for note in part.notes), *notes.on_protocol(c)]
