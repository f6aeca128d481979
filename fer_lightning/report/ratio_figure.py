"""Scores over the imbalance ratio, a line per method."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fer_lightning.comparison.ratios import OverRatio
from fer_lightning.metrics.names import SCORES
from fer_lightning.presentation.plotting import FAINT, head, styled
from fer_lightning.presentation.words import cut
from fer_lightning.report.figures import COLOURS, MARKS, colour, mark
from fer_lightning.report.trade_off_figure import view_range


@styled
def over_ratio(over: OverRatio, numbers: Mapping[str, int], title: str, subtitle: str = "") -> Figure:
    """Show scores, and differences to the baseline at the same ratio, over the ratio; a column per metric.

    Args:
        over: the scores and differences.
        numbers: method -> its number, for colour and mark.
        title: the bold first line.
        subtitle: the second line.
    """
    metrics = list(dict.fromkeys(over.differences["metric"])) or ["f1_macro", "balanced_accuracy", "accuracy"]
    metrics.sort(key=lambda metric: metric != "f1_macro")
    lines = 2 if len(over.differences) else 1
    figure = Figure(figsize=(3.7 * len(metrics) + 1.6, 3.0 * lines + 1.0))
    key = "bars: 95 % intervals, cut at the frame" + "; filled below: Holm p < 0.05" * (lines == 2)
    head(figure, title, f"{subtitle} · {key}")
    grid = figure.subplots(lines, len(metrics), sharex=True, squeeze=False)
    for column, metric in enumerate(metrics):
        shown = over.scores[over.scores["metric"] == metric].rename(columns={"mean": "value"})
        _lines_over_ratio(grid[0, column], over, shown, numbers, "")
        grid[0, column].set_title(SCORES[metric].heading)
        if lines == 2:
            gaps = over.differences[over.differences["metric"] == metric].rename(columns={"difference": "value"})
            grid[1, column].axhline(0, color=FAINT, linewidth=1)
            _lines_over_ratio(grid[1, column], over, gaps, numbers, "+")
        grid[-1, column].set_xlabel("largest class : smallest class")
    grid[0, 0].set_ylabel("percent")
    if lines == 2:
        grid[1, 0].set_ylabel("points to the baseline")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    return figure


def _lines_over_ratio(axes: Axes, over: OverRatio, rows: pd.DataFrame, numbers: Mapping[str, int], sign: str) -> None:
    spread = (over.ratios[-1] / over.ratios[0]) ** 0.012
    middle = (len(over.methods) - 1) / 2
    tested = "p_holm" in rows
    for place, method in enumerate(over.methods):
        mine = rows[(rows["method"] == method) & rows["value"].notna()]
        if not len(mine):
            continue
        number = numbers[method]
        hue = COLOURS[colour(number)]
        x = mine["ratio"].to_numpy(float) * spread ** (place - middle)  # beside one another, not on top
        axes.plot(x, 100 * mine["value"], color=hue, linewidth=1.6)
        axes.plot([], [], f"{MARKS[mark(number)]}-", color=hue, mfc="white", label=cut(method, 24))
        axes.vlines(x, 100 * mine["low"], 100 * mine["high"], color=hue, linewidth=1.3, alpha=0.6)
        clear = mine["p_holm"] < 0.05 if tested else [False] * len(mine)
        for one, value, filled in zip(x, mine["value"], clear, strict=True):
            face = hue if filled else "white"
            axes.plot([one], [100 * value], MARKS[mark(number)], color=hue, mfc=face, mew=1.4, ms=6)
    axes.set_xscale("log")
    axes.set_xticks(over.ratios, [f"{ratio:g}" for ratio in over.ratios])
    axes.minorticks_off()
    points, ends = rows["value"].dropna(), pd.concat([rows["low"], rows["high"]]).dropna()
    if len(points):
        low, high = view_range(list(points), list(ends))
        axes.set_ylim(100 * low, 100 * high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{sign}g}" if value else "0"))
    axes.grid(axis="y", color="#E3E7EA")
    axes.set_axisbelow(True)
