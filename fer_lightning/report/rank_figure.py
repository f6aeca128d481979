"""The critical-difference diagram of mean ranks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fer_lightning.presentation.plotting import BLUE, FAINT, INK, VERMILION, head, styled
from fer_lightning.presentation.words import cut
from fer_lightning.report.figures import COLOURS, MARKS, colour, mark


@styled
def critical_difference(
    ranks: pd.Series, critical: float, numbers: Mapping[str, int], title: str, subtitle: str = ""
) -> Figure:
    """Show mean ranks on a line; bars join methods that do not differ clearly (Demsar 2006).

    Args:
        ranks: method -> mean rank, 1 is best.
        critical: the critical difference.
        numbers: method -> its number, for colour and mark.
        title: the bold first line.
        subtitle: the second line.
    """
    ranks = ranks.astype(float).sort_values(kind="stable")
    values, names = ranks.to_numpy(), [cut(str(name), 28) for name in ranks.index]
    k = len(values)
    cliques = indistinguishable(values, critical)
    half = (k + 1) // 2
    top, step = 0.55 + 0.22 * len(cliques), 0.36
    depth = top + step * half
    figure = Figure(figsize=(9.5, 1.5 + 0.62 * depth))
    head(figure, title, f"{subtitle} · critical difference {critical:.2f} · bars join ranks that do not differ clearly")
    axes = figure.add_subplot()
    low, high = math.floor(values.min()), math.ceil(values.max())
    high = max(high, low + 1, math.ceil(low + critical))
    width = high - low
    axes.set_xlim(low - 0.42 * width, high + 0.42 * width)
    axes.set_ylim(depth, -1.05)
    axes.set_axis_off()
    axes.plot([low, high], [0, 0], color=INK, linewidth=1.4)
    for tick in range(low, high + 1, max(1, width // 10)):
        axes.plot([tick, tick], [0, -0.12], color=INK, linewidth=1.2)
        axes.text(tick, -0.18, str(tick), ha="center", va="bottom", fontsize=9)
    axes.plot([low, low + critical], [-0.72, -0.72], color=VERMILION, linewidth=2.5, solid_capstyle="butt")
    axes.text(low + critical, -0.72, f"  CD = {critical:.2f}", va="center", fontsize=9, color=VERMILION)
    for number, (value, name) in enumerate(zip(values, names, strict=True)):
        left = number < half
        line = top + step * (number if left else k - 1 - number)
        end = low - 0.03 * width if left else high + 0.03 * width
        axes.plot([value, value, end], [0, line, line], color=FAINT, linewidth=0.9)
        number_of = numbers[str(ranks.index[number])]
        axes.plot([value], [0], MARKS[mark(number_of)], color=COLOURS[colour(number_of)], ms=6, mec="white", mew=0.6)
        words = f"{name}  {value:.2f}" if left else f"{value:.2f}  {name}"
        axes.text(
            end - 0.01 * width if left else end + 0.01 * width,
            line,
            words,
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            fontweight="bold" if number == 0 else "normal",
        )
    for row, (first, last) in enumerate(cliques):
        line = 0.28 + 0.22 * row
        pad = 0.006 * width
        axes.plot(
            [values[first] - pad, values[last] + pad], [line, line], color=BLUE, linewidth=4, solid_capstyle="butt"
        )
    return figure


def indistinguishable(ranks: Sequence[float] | np.ndarray, critical: float) -> list[tuple[int, int]]:
    """Find the longest stretches of ascending ``ranks`` within ``critical``, as (first, last) places of two or more."""
    reach = [int(np.searchsorted(ranks, rank + critical, side="right")) - 1 for rank in ranks]
    return [
        (first, last) for first, last in enumerate(reach) if last > first and (first == 0 or last > reach[first - 1])
    ]
