"""The pictures of a comparison, as files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fer_lightning.comparison.analysis import PRIMARY, Comparison
from fer_lightning.comparison.ratios import over_ratio
from fer_lightning.evaluation import figures as run_figures
from fer_lightning.metrics.names import HEADLINES, SCORES
from fer_lightning.presentation.plotting import row_shares, write_figure
from fer_lightning.report import figures, ratio_figure, tables
from fer_lightning.report.protocol import key
from fer_lightning.report.rank_figure import critical_difference
from fer_lightning.report.selective_figure import risk_coverage
from fer_lightning.report.trade_off_figure import trade_off


def write_pictures(c: Comparison, folder: Path) -> list[str]:
    """Write the pictures of a comparison into ``folder``; returns their names."""
    drawn = {**_overview(c), **_over_ratio(c), **_classes(c), **_differences(c), **_ranks_and_reliability(c)}
    for name, figure in drawn.items():
        write_figure(figure, folder / name)
    return list(drawn)


def numbers(c: Comparison) -> dict[str, int]:
    """Row -> the number of its method, counted from the first baseline: its colour and mark.

    Rows that differ in the imbalance ratio alone are one method.
    """
    placed = at_ratios(c)
    method_of = {row: placed[row][0] if row in placed else row for row in c.rows}
    methods = list(dict.fromkeys(method_of.values()))
    return {row: methods.index(method) for row, method in method_of.items()}


def at_ratios(c: Comparison) -> dict[str, tuple[str, float]]:
    """Row -> its method and ratio; empty where the ratio was not varied."""
    over = over_ratio(c)
    if over is None:
        return {}
    scores = over.scores
    return {
        row: (method, ratio)
        for row, method, ratio in zip(scores["row"], scores["method"], scores["ratio"], strict=True)
    }


def _overview(c: Comparison) -> dict[str, Figure]:
    order = tables.ordered(c)
    titles = [SCORES[metric].heading for metric in HEADLINES]
    means, deviations = (
        frame.loc[order, list(HEADLINES)].set_axis(titles, axis=1) for frame in (tables.means(c), tables.deviations(c))
    )
    spread = "mean ± deviation over seeds" if tables.seeds(c) > 1 else "one seed: no ranking"
    summary = c.summary[c.summary["test_set"] == c.test_set]
    return {
        "method_bars.png": figures.method_bars(means, deviations, "Methods compared", f"{key(c)} · percent, {spread}"),
        "trade_off.png": trade_off(summary, numbers(c), "Accuracy against macro F1", key(c), at_ratios(c)),
    }


def _over_ratio(c: Comparison) -> dict[str, Figure]:
    over = over_ratio(c)
    if over is None:
        return {}
    title, by_row = "Scores over the imbalance of the training images", numbers(c)
    by_method = {method: by_row[row] for row, (method, _) in at_ratios(c).items()}
    return {"over_ratio.png": ratio_figure.over_ratio(over, by_method, title, key(c))}


def _classes(c: Comparison) -> dict[str, Figure]:
    several = tables.seeds(c) > 1
    recalls = c.per_class.pivot(index="method", columns="class", values="recall").astype(float)
    recalls = recalls.reindex(index=tables.ordered(c), columns=list(c.classes))
    trained, tested = tables.train_counts(c), tables.test_counts(c)
    counts = {"training": [trained[name] for name in c.classes]} if trained else {}
    counts["test"] = [tested.get(name, 0) for name in c.classes]
    percent = "percent of each true class" + ", all seeds together" * several
    return {
        "recall_by_class.png": figures.recall_by_class(
            recalls, trained, "Recall of each class", key(c) + " · mean over seeds" * several
        ),
        "confusion_matrices.png": figures.confusion_matrices(
            {name: c.confusion[name] for name in tables.ordered(c)},
            c.classes,
            "Confusion matrices",
            f"{key(c)} · {percent}",
        ),
        "class_distribution.png": run_figures.class_distribution(counts, c.classes, "Images per class", key(c)),
    }


def _differences(c: Comparison) -> dict[str, Figure]:
    if not len(c.differences):
        return {}
    rows = c.differences[c.differences["test_set"] == c.test_set]
    return {
        "differences.png": figures.differences(rows, numbers(c), tables.difference_title(c), key(c)),
        "confusion_differences.png": figures.confusion_differences(
            confusion_changes(c),
            c.classes,
            tables.difference_title(c, "Confusion: differences"),
            f"{key(c)} · percentage points of each true class",
        ),
    }


def confusion_changes(c: Comparison) -> Mapping[str, np.ndarray]:
    """Row -> its shares of the confusion matrix minus those of its own baseline, shape (C, C); best macro F1 first."""
    bases = c.compared_with
    return {
        name: row_shares(c.confusion[name]) - row_shares(c.confusion[bases[name]])
        for name in tables.ordered(c)
        if name in bases
    }


def _ranks_and_reliability(c: Comparison) -> dict[str, Figure]:
    drawn = {}
    ranks = c.ranks.mean[c.ranks.mean["metric"] == PRIMARY].set_index("method")["mean_rank"]
    if len(ranks):
        drawn["ranks.png"] = critical_difference(
            ranks, c.ranks.critical_difference, numbers(c), f"Mean ranks by {SCORES[PRIMARY].heading}", key(c)
        )
    if len(c.reliability):
        title = "Reliability before and after temperature scaling"
        drawn["reliability.png"] = figures.reliability(c.reliability, tables.ordered(c), numbers(c), title, key(c))
    if c.risks is not None and len(c.risks):
        title = "Errors when the least confident images are not answered"
        drawn["risk_coverage.png"] = risk_coverage(c.risks, tables.ordered(c), numbers(c), title, key(c))
    return drawn
