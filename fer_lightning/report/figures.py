"""Pictures of a comparison: pure functions from numbers to a matplotlib ``Figure``, in the style of ``figures``.

Every method has one colour and one mark in all pictures and on the web page (``COLOURS``, ``MARKS``).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

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
from fer_lightning.presentation.printable import printable
from fer_lightning.presentation.words import cut
from fer_lightning.report.tables import SHOWN_CLASSES

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


def short(name: str, letters: int = 32) -> str:
    """A name cut for a picture; control characters, which have no glyph, are shown by their escapes."""
    return cut(printable(name), letters)


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
        axes.set_yticks(places, [short(str(name)) for name in means.index])
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
        axes.set_title(short(name))
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(classes)), names, fontsize=9 if few else 7, **turned)
        axes.set_yticks(range(len(classes)), names, fontsize=9 if few else 7)
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
    order = order[:SHOWN_CLASSES]  # the rarest
    shares = recalls[order].to_numpy(float)
    best = shares == np.nanmax(np.where(np.isnan(shares), -1, shares), axis=0)
    figure = Figure(figsize=(max(8.6, 0.95 * len(order) + 1.6), _compare_height(len(recalls)) + 0.35))
    head(figure, title, subtitle)
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
    axes.set_yticks(range(len(recalls)), [short(str(name)) for name in recalls.index])
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
        axes.set_yticks(range(len(methods)), [short(name) for name in methods])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.grid(axis="x", color="#E3E7EA")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10), prune="both"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("worse  ·  points  ·  better", fontsize=9, color=FAINT)
    return figure


@styled
def trade_off(
    summary: pd.DataFrame,
    numbers: Mapping[str, int],
    title: str,
    subtitle: str = "",
    at_ratios: Mapping[str, tuple[str, float]] | None = None,
) -> Figure:
    """Show accuracy against macro F1, a mark with its 95 % intervals per method, named where there is room.

    Where methods were trained at several ratios, a line joins the marks of a method, which are named by their ratio;
    intervals, which would hide the lines, are left out.

    Args:
        summary: columns ``method``, ``metric``, ``mean``, ``low`` and ``high``; one test set.
        numbers: method -> its number, for colour and mark.
        title: the bold first line.
        subtitle: the second line.
        at_ratios: row -> its method and ratio, where ratios differ.
    """
    table = {(row["method"], row["metric"]): row for row in summary.to_dict("records")}
    figure = Figure(figsize=(8.6, 6.2))
    at_ratios = at_ratios or {}
    crossed = bool(summary["low"].notna().any()) and not at_ratios
    note = " · crosses: 95 % intervals over seeds, cut at the frame" * crossed
    head(figure, title, subtitle + note + " · numbers: ratio of the largest class to the smallest" * bool(at_ratios))
    axes = figure.add_subplot()
    axes.grid(color="#E3E7EA")
    axes.set_axisbelow(True)
    points: list[tuple[str, float, float]] = []
    paths: dict[str, list[tuple[float, float, float, str]]] = {}
    crosses: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for name, number in numbers.items():
        both = [table.get((name, metric)) for metric in ("accuracy", "f1_macro")]
        (x, x_low, x_high), (y, y_low, y_high) = (
            (float(row["mean"]), float(row["low"]), float(row["high"])) if row else (math.nan,) * 3 for row in both
        )
        if math.isnan(x + y):
            continue
        hue = COLOURS[colour(number)]
        method, ratio = at_ratios.get(name, (name, None))
        if crossed:
            axes.plot([x_low, x_high], [y, y], color=hue, linewidth=1.3, alpha=0.55)
            axes.plot([x, x], [y_low, y_high], color=hue, linewidth=1.3, alpha=0.55)
            crosses += [((x_low, y), (x_high, y)), ((x, y_low), (x, y_high))]
        label = None if method in paths else short(method, 24)
        axes.plot([x], [y], MARKS[mark(number)], color=hue, ms=8, mec="white", mew=0.8, label=label, zorder=3)
        points.append((short(name) if ratio is None else f"{ratio:g}", x, y))
        paths.setdefault(method, []).append((ratio or 0, x, y, hue))
    for path in paths.values():
        places = sorted(path)
        axes.plot([x for _, x, *_ in places], [y for _, _, y, _ in places], color=places[0][3], linewidth=1, alpha=0.6)
    axes.set_xlabel("accuracy")
    axes.set_ylabel("macro F1")
    if points:
        axes.set_xlim(view_range([x for _, x, _ in points], [end for ends in crosses for end, _ in ends]))
        axes.set_ylim(view_range([y for _, _, y in points], [end for ends in crosses for _, end in ends]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
    if len(points) > 8 or at_ratios:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, frameon=False, labelspacing=0.35)
    if not _name_points(figure, axes, points, crosses) and len(points) <= 8 and not at_ratios:
        axes.legend(loc="best", fontsize=8.5)
    return figure


def view_range(points: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """An axis that shows all points; the ends of intervals only as far as the points stay distinguishable."""
    low, high = min(points), max(points)
    room = max(high - low, 0.02)
    known = [end for end in ends if math.isfinite(end)]
    low, high = max(low - room, min([low, *known])), min(high + room, max([high, *known]))
    margin = 0.1 * (high - low) or 0.01
    return low - margin, high + margin


def _name_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[str, float, float]],
    crosses: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> bool:
    """Write each point's name beside it, in the first of eight places where it covers nothing; else not at all.

    Returns:
        Whether every point has its name.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # sizes are known only now
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    taken = [Bbox(axes.transData.transform(ends)).padded(2) for ends in crosses if np.isfinite(ends).all()]
    taken += [Bbox([axes.transData.transform((x, y))] * 2).padded(9) for _, x, y in points]
    for name, x, y in points:
        for dx, dy in ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)):
            words = axes.annotate(
                name,
                (x, y),
                (dx * 6 if dy else dx * 8, dy * 5 if dx else dy * 8),
                textcoords="offset points",
                ha=("center", "left", "right")[dx],
                va=("center", "bottom", "top")[dy],
                fontsize=9,
            )
            box = words.get_window_extent(canvas.get_renderer())
            if (
                frame.containsx(box.x0)
                and frame.containsx(box.x1)
                and frame.containsy(box.y0)
                and (frame.containsy(box.y1) and not box.count_overlaps(taken))
            ):
                taken.append(box)
                break
            words.remove()
    return len(axes.texts) == len(points)


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
        axes.set_title(short(name, 26), fontsize=9.5)
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
