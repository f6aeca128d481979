"""The picture of accuracy against macro F1."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from fer_lightning.presentation.plotting import head, styled
from fer_lightning.presentation.words import cut
from fer_lightning.report.figures import COLOURS, MARKS, colour, mark


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
        label = None if method in paths else cut(method, 24)
        axes.plot([x], [y], MARKS[mark(number)], color=hue, ms=8, mec="white", mew=0.8, label=label, zorder=3)
        points.append((cut(name) if ratio is None else f"{ratio:g}", x, y))
        paths.setdefault(method, []).append((ratio or 0, x, y, hue))
    for path in paths.values():
        places = sorted(path)
        axes.plot([x for _, x, *_ in places], [y for _, _, y, _ in places], color=places[0][3], linewidth=1, alpha=0.6)
    _frame(axes, points, [end for pair in crosses for end in pair])
    if len(points) > 8 or at_ratios:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, frameon=False, labelspacing=0.35)
    if not _name_points(figure, axes, points, crosses) and len(points) <= 8 and not at_ratios:
        axes.legend(loc="best", fontsize=8.5)
    return figure


def _frame(axes: Axes, points: Sequence[tuple[str, float, float]], ends: Sequence[tuple[float, float]]) -> None:
    """Labels, range and percent of both axes."""
    axes.set_xlabel("accuracy")
    axes.set_ylabel("macro F1")
    if points:
        axes.set_xlim(view_range([x for _, x, _ in points], [x for x, _ in ends]))
        axes.set_ylim(view_range([y for _, _, y in points], [y for _, y in ends]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))


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
