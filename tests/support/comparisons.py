"""A comparison of methods with made-up numbers, to see how it is shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.compare import METRICS, TESTED, Comparison
from fer_lightning.comparison.runs import Run
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.classification import precision_recall_f1

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
                differences.append((test_set, name, metric, gap, gap - 0.013, gap + 0.015, p, p_holm, seeds))
    ranks = [
        (metric, name, rank)
        for metric in TESTED
        for name, rank in table["test"][:, metric].rank(ascending=False).items()
    ]
    rank_frame = pd.DataFrame(ranks if methods > 1 and seeds > 1 else [], columns=["metric", "method", "mean_rank"])
    rank_frame.attrs = {
        "critical_difference": dict.fromkeys(TESTED, 0.5 * methods**0.9),
        "friedman_p": dict.fromkeys(TESTED, 0.0123),
        "blocks": seeds,
        "metric": "f1_macro",
    }
    metrics = {
        "test/n": 3589,
        "test_dedup/n": 3301,
        "imbalance": "x",
        "model": "efficientnet_b0",
        "git_commit": "1a2b3c",
    }
    metrics["train/class_counts"] = dict(zip(EMOTIONS, TRAIN, strict=True))
    rows = {
        name: [
            Run(
                folder=Path(f"/sweep/{number}-{seed}"),
                metrics={**metrics, "imbalance": name, "seed": seed},
                **dict.fromkeys(set(Run.__dataclass_fields__) - {"folder", "metrics"}),  # type: ignore[arg-type]
            )
            for seed in range(seeds)
        ]
        for number, name in enumerate(names)
    }
    parts: dict[str, Any] = {
        "key": "FER-2013 · split official · test n = 3,589",
        "protocol": {
            "data": "FER-2013, 35,887 images",
            "data hash": "5f1c9a0e3b7d",
            "labels": "FER-2013's own",
            "split": "official: train Training, select PublicTest, report PrivateTest",
            "test set": "PrivateTest",
            "test images": "3,589; 3,301 without a twin in Training",
            "seeds": f"{seeds} (0 to {seeds - 1})",
            "budget": "equal optimizer steps",
            "training steps": "3,380",
            "baseline": names[0],
            "tuning": "none: every method with its published defaults",
            "code version": "1a2b3c4",
        },
        "baseline": first,
        "test_set": "test",
        "synthetic": False,
        "rows": rows,
        "summary": summary,
        "differences": pd.DataFrame(
            differences,
            columns=["test_set", "method", "metric", "difference", "low", "high", "p", "p_holm", "pairs"],
        ),
        "mcnemar": pd.DataFrame(
            [(name, 200 + 5 * k, 190, 0.04, min(1.0, 0.04 * methods)) for k, name in enumerate(names[1:])],
            columns=["method", "only_method_right", "only_baseline_right", "p", "p_holm"],
        ),
        "ranks": rank_frame,
        "per_class": pd.DataFrame(
            classes,
            columns=["method", "emotion", "n", "recall", "recall_sd", "precision", "precision_sd", "f1", "f1_sd"],
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
        "sentences": [
            f"{names[-1]} beats {names[0]} in macro F1 by 2.1 points (95 % interval 0.9 to 3.2, Holm p = 0.012).",
            "There is no evidence of a difference in accuracy between any method and the baseline.",
            f"{len(names)} methods with {seeds} seeds cannot show differences below about 1.5 points.",
        ],
        "notes": [
            "Intervals of differences are paired cluster bootstrap intervals over test images and seeds.",
            "No method was tuned.",
        ],
    }
    if extras:
        parts["ceiling"] = pd.DataFrame(
            {
                "emotion": EMOTIONS,
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
