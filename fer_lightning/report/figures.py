"""Pictures of a comparison: pure functions from numbers to a matplotlib ``Figure``, in the style of ``plotting``.

Every method has one colour and one mark in all pictures and on the web page (``COLOURS``, ``MARKS``).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fer_lightning.metrics.names import SCORES
from fer_lightning.presentation.plotting import (
    BLUE,
    FAINT,
    GREY,
    INK,
    VERMILION,
    class_labels,
    head,
    heatmap,
    row_shares,
    styled,
)
from fer_lightning.presentation.words import cut
from fer_lightning.report.class_tables import SHOWN_CLASSES

COLOURS = ("#5F666E", "#294FC1", "#761F0D", "#32A587", "#6E1461", "#1495DD", "#907002")
"""Of the methods, the baseline's first, on white: found by search so that any two differ by 0.12 in OKLab for normal,
deuteranope and protanope eyes (Machado et al. 2009), with a contrast of 3 to the ground."""

MARKS = ("o", "s", "^", "D")


def colour(number: int) -> int:
    """The place in ``COLOURS`` of method ``number``, counted from the baseline, whose grey no other method has."""
    return 1 + (number - 1) % (len(COLOURS) - 1) if number else 0


def mark(number: int) -> int:
    """The place in ``MARKS`` of method ``number``: with the colour, unique for a baseline and 24 methods."""
    return (number + (number - 1) // 12) % len(MARKS) if number else 0


def _compare_height(methods: int) -> float:
    return 1.5 + 0.42 * methods


@styled
def method_bars(
    means: pd.DataFrame, deviations: pd.DataFrame, title: str, subtitle: str = "", chance: float | None = None
) -> Figure:
    """Show each score of each method in percent as a bar, the best of each score dark.

    Args:
        means: one row per method, one column per score, both named as they shall be shown; values in 0..1.
        deviations: the same shape: standard deviation over seeds, NaN for a single seed.
        title: the bold first line.
        subtitle: the second line.
        chance: where to draw the line of guessing, if at all.
    """
    figure = Figure(figsize=(2.75 * means.shape[1] + 1.6, _compare_height(len(means))))
    head(figure, title, subtitle)
    panels = figure.subplots(1, means.shape[1], sharey=True, squeeze=False)[0]
    places = np.arange(len(means))
    for axes, score in zip(panels, means.columns, strict=True):
        values, spread = means[score].to_numpy(float), deviations[score].to_numpy(float)
        longest = np.nanmax(values + np.nan_to_num(spread)) or 1.0
        best = values == np.nanmax(values)
        axes.barh(places, values, color=np.where(best, BLUE, GREY), height=0.7)
        seen = ~np.isnan(spread)
        axes.errorbar(values[seen], places[seen], xerr=spread[seen], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for place, value, deviation, is_best in zip(places, values, spread, best, strict=True):
            end = value + (0 if np.isnan(deviation) else deviation)
            axes.text(
                end + 0.015 * longest,
                place,
                f"{value * 100:.1f}" + ("" if np.isnan(deviation) else f" ± {deviation * 100:.1f}"),
                va="center",
                fontsize=9,
                fontweight="bold" if is_best else "normal",
            )
        if chance is not None:
            axes.axvline(chance, color=VERMILION, linewidth=1.2, linestyle=":")
        axes.set_title(score)
        axes.set_xlim(0, longest * (1.5 if seen.any() else 1.25))
        axes.set_yticks(places, [cut(str(name)) for name in means.index])
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    return figure


@styled
def confusion_matrices(
    matrices: Mapping[str, np.ndarray], classes: Sequence[str], title: str, subtitle: str = ""
) -> Figure:
    """Show several confusion matrices side by side as percentages of each true class.

    Args:
        matrices: method -> counts, shape (C, C); summed over seeds where there are several.
        classes: names of the C classes.
        title: the bold first line.
        subtitle: the second line.
    """
    return _matrices({name: row_shares(matrix) for name, matrix in matrices.items()}, classes, title, subtitle)


def _matrices(
    shares: Mapping[str, np.ndarray], classes: Sequence[str], title: str, subtitle: str, limit: float | None = None
) -> Figure:
    columns = len(shares) if len(shares) <= 3 else math.ceil(math.sqrt(len(shares)))
    lines = math.ceil(len(shares) / columns)
    few, names = len(classes) <= 12, class_labels(classes)
    grown = max(1.0, min(len(classes) / 8, 2.0))
    size = (max(4.3 * grown * columns, 6.0) + 0.4, 4.1 * grown * lines + 0.6)
    figure = Figure(figsize=size, dpi=150 if columns <= 4 else 100)
    head(figure, title, subtitle)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(shares) :]:
        axes.set_axis_off()
    for place, (axes, (name, matrix)) in enumerate(zip(grid.flat, shares.items(), strict=False)):
        percent = np.nan_to_num(matrix) * 100
        sign = "" if limit is None else "+"

        def words(i: int, j: int, percent: np.ndarray = percent, sign: str = sign) -> str:
            text = f"{percent[i, j]:{sign}.0f}" if few else ""
            return "0" if text in ("+0", "-0") else text

        heatmap(axes, matrix, words, fontsize=9, bold=np.eye(len(classes)) > 0, limit=limit)
        axes.set_title(cut(name))
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, fontsize=9 if few else 7, **turned)
        axes.set_yticks(range(len(names)), names, fontsize=9 if few else 7)
        if place % columns == 0:
            axes.set_ylabel("true class")
        if place + columns >= len(shares):
            axes.set_xlabel("predicted class")
    return figure


@styled
def recall_by_class(
    recalls: pd.DataFrame, train_counts: Mapping[str, int] | None, title: str, subtitle: str = ""
) -> Figure:
    """Show every method's recall of every class, rarest class first, the best of each class bold.

    Args:
        recalls: one row per method, one column per class; values in 0..1, NaN where undefined.
        train_counts: training images per class: orders and labels the columns. None keeps the given order.
        title: the bold first line.
        subtitle: the second line.
    """
    order = list(recalls.columns)
    if train_counts is not None:
        order.sort(key=train_counts.__getitem__)
    which = "first" if train_counts is None else "rarest"
    shown = "" if len(order) <= SHOWN_CLASSES else f"the {SHOWN_CLASSES} {which} of {len(order):,} classes"
    order = order[:SHOWN_CLASSES]
    shares = recalls[order].to_numpy(float)
    best = shares == np.nanmax(np.where(np.isnan(shares), -1, shares), axis=0)
    figure = Figure(figsize=(max(8.6, 0.95 * len(order) + 1.6), _compare_height(len(recalls)) + 0.35))
    head(figure, title, " · ".join(text for text in (subtitle, shown) if text))
    axes = figure.add_subplot()
    heatmap(
        axes,
        shares,
        lambda i, j: f"{shares[i, j]:.0%}",
        fontsize=10.5,
        bold=best if len(recalls) > 1 else None,
    )
    labels = class_labels(order, 12)
    names = (
        labels if train_counts is None else [f"{e}\n{train_counts[k]:,}" for e, k in zip(labels, order, strict=True)]
    )
    axes.set_xticks(range(len(order)), names)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(recalls)), [cut(str(name)) for name in recalls.index])
    if train_counts is not None:
        axes.set_xlabel("training images under each class; rarest class left", fontsize=9, color=FAINT)
        axes.xaxis.set_label_position("bottom")
    return figure


@styled
def differences(rows: pd.DataFrame, numbers: Mapping[str, int], title: str, subtitle: str = "") -> Figure:
    """Show differences to the baseline with their intervals, one panel per metric, in the order of the first's.

    Args:
        rows: columns ``method``, ``metric``, ``difference``, ``low``, ``high`` and ``p_holm``; one test set.
        numbers: method -> its number, for colour and mark.
        title: the bold first line.
        subtitle: the second line.
    """
    metrics = sorted(dict.fromkeys(rows["metric"]), key=lambda metric: metric != "f1_macro")
    by_metric = {
        metric: {row["method"]: row for row in rows[rows["metric"] == metric].to_dict("records")} for metric in metrics
    }
    methods = list(dict.fromkeys(rows.sort_values("difference", ascending=False)["method"]))
    first = by_metric[metrics[0]]
    methods.sort(key=lambda name: -np.nan_to_num(first[name]["difference"], nan=-np.inf) if name in first else np.inf)
    figure = Figure(figsize=(3.3 * len(metrics) + 2.2, 1.6 + 0.34 * len(methods)))
    head(figure, title, f"{subtitle} · points with 95 % interval · filled: Holm p < 0.05")
    panels = figure.subplots(1, len(metrics), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (metric, by_method) in zip(panels, by_metric.items(), strict=True):
        axes.axvline(0, color=FAINT, linewidth=1)
        for place, name in enumerate(methods):
            if name not in by_method or math.isnan(by_method[name]["difference"]):
                continue
            value, low, high = (float(by_method[name][key]) * 100 for key in ("difference", "low", "high"))
            hue = COLOURS[colour(numbers[name])]
            if not math.isnan(low + high):
                axes.plot([low, high], [place, place], color=hue, linewidth=2, solid_capstyle="butt")
            face = hue if by_method[name]["p_holm"] < 0.05 else "white"
            axes.plot([value], [place], MARKS[mark(numbers[name])], color=hue, mfc=face, mew=1.6, ms=7)
        axes.set_title(SCORES[metric].heading)
        axes.set_yticks(range(len(methods)), [cut(name) for name in methods])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.grid(axis="x", color="#E3E7EA")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10), prune="both"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("worse  ·  points  ·  better", fontsize=9, color=FAINT)
    if np.ptp(panels[0].get_xlim()) < 0.2:  # equal scores
        panels[0].set_xlim(-0.1, 0.1)
    return figure


@styled
def reliability(
    bins: pd.DataFrame, methods: Sequence[str], numbers: Mapping[str, int], title: str, subtitle: str = ""
) -> Figure:
    """Show accuracy against confidence before and after temperature scaling, a panel per method.

    Args:
        bins: columns ``method``, ``scaled``, ``confidence``, ``accuracy`` and ``count``; empty bins are left out.
        methods: which, in which order.
        numbers: method -> its number, for its colour.
        title: the bold first line.
        subtitle: the second line.
    """
    columns = min(len(methods), 4 if len(methods) <= 8 else 6)
    lines = math.ceil(len(methods) / columns)
    figure = Figure(figsize=(max(2.35 * columns, 6.0) + 0.5, 2.6 * lines + 1.0))
    head(figure, title, f"{subtitle} · hollow, dashed: before")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(methods) :]:
        axes.set_axis_off()
    for place, (axes, name) in enumerate(zip(grid.flat, methods, strict=False)):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        for scaled in (False, True):
            rows = bins[(bins["method"] == name) & (bins["scaled"] == scaled) & (bins["count"] > 0)]
            hue = COLOURS[colour(numbers[name])] if scaled else FAINT
            face, line = (hue, "-") if scaled else ("white", "--")
            axes.plot(rows["confidence"], rows["accuracy"], line, color=hue, marker="o", ms=4, mfc=face, linewidth=1.4)
        axes.set_title(cut(name, 26), fontsize=9.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8.5)
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8.5)
        if place % columns == 0:
            axes.set_ylabel("accuracy", fontsize=9)
        if place + columns >= len(methods):
            axes.set_xlabel("confidence", fontsize=9)
            axes.tick_params(labelbottom=True)
    return figure


@styled
def confusion_differences(
    changes: Mapping[str, np.ndarray], classes: Sequence[str], title: str, subtitle: str = ""
) -> Figure:
    """Show how each method's shares of a confusion matrix differ from the baseline's.

    Args:
        changes: method -> difference of shares, shape (C, C); positive where the method calls it more often.
        classes: names of the C classes.
        title: the bold first line.
        subtitle: the second line.
    """
    limit = max(
        [float(np.nanmax(np.abs(change))) for change in changes.values() if not np.isnan(change).all()], default=0
    )
    return _matrices(changes, classes, title, f"{subtitle} · blue more, red less", max(limit, 0.01))
