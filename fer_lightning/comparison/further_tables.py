"""Further scores, the risk-coverage curve, and sets of classes of the methods.

The scores and the curve are computed from the predictions; ``metrics.json`` need not hold them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fer_lightning.comparison import statistics
from fer_lightning.comparison.rows import Rows
from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.metrics.classification import classification_metrics, grouped_recall
from fer_lightning.metrics.names import FURTHER, GROUPS
from fer_lightning.metrics.selective import risk_at, selective_risks

GRID = np.linspace(0.01, 1, 100)
"""Coverages at which the curve is kept."""


def further_table(rows: Rows, test_set: str) -> pd.DataFrame:
    """The scores of ``names.FURTHER``, and of ``GROUPS`` for many classes, as in ``Comparison.further``."""
    records = []
    for name, members in rows.items():
        scores = [_further(run, test_set) for run in members]
        for metric in scores[0]:
            values = [np.nan if each[metric] is None else each[metric] for each in scores]
            records.append((test_set, name, metric, *statistics.t_interval(np.array(values, float)), len(members)))
    return pd.DataFrame(records, columns=["test_set", "method", "metric", "mean", "sd", "low", "high", "seeds"])


def _further(run: FinishedRun, test_set: str) -> dict[str, float | None]:
    member = run.members[test_set]
    scores = classification_metrics(run.probabilities[member], run.labels[member], run.classes, "")
    recalls = [scores[f"recall/{name}"] for name in run.classes]
    counts = [run.metrics["train/class_counts"][name] for name in run.classes]
    grouped = grouped_recall(recalls, counts, "")
    return {key: {**scores, **grouped}[key] for key in (*FURTHER, *(key for key in GROUPS if key in grouped))}


def risk_table(rows: Rows, test_set: str) -> pd.DataFrame:
    """Error rate over the share of answered images, mean over seeds, as in ``Comparison.risks``."""
    frames = []
    for name, members in rows.items():
        curves = []
        for run in members:
            member = run.members[test_set]
            if member.any():
                risks = selective_risks(run.probabilities[member], run.labels[member])
                curves.append([risk_at(risks, coverage) for coverage in GRID])
        if curves:
            frames.append(pd.DataFrame({"method": name, "coverage": GRID, "risk": np.mean(curves, axis=0)}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["method", "coverage", "risk"])


def sets_table(rows: Rows, test_set: str) -> pd.DataFrame:
    """Coverage and size of the sets of classes, as in ``Comparison.sets``: of methods whose runs recorded them all."""
    records = []
    for name, members in rows.items():
        values = {key: [run.number(f"{test_set}/{key}") for run in members] for key in ("set_coverage", "set_size")}
        levels = {run.metrics.get("set_level") for run in members}
        level = next(iter(levels)) if len(levels) == 1 else None
        if level is None or np.isnan(list(values.values())).any():
            continue
        by_class = {each: _mean_coverage(members, test_set, each) for each in members[0].classes}
        means = (float(np.mean(values[key])) for key in ("set_coverage", "set_size"))
        records.append((name, float(level), *means, *by_class.values()))
    columns = [
        "method",
        "level",
        "coverage",
        "size",
        *(f"coverage/{each}" for each in next(iter(rows.values()))[0].classes),
    ]
    return pd.DataFrame(records, columns=columns)


def _mean_coverage(members: Sequence[FinishedRun], test_set: str, class_name: str) -> float:
    return float(np.mean([run.number(f"{test_set}/set_coverage/{class_name}") for run in members]))
