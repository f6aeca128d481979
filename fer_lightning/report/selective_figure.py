"""The risk-coverage curve: the error among the most confident answers, a line per method."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fer_lightning.presentation.plotting import head, styled
from fer_lightning.presentation.words import cut
from fer_lightning.report.figures import COLOURS, MARKS, colour, mark


@styled
def risk_coverage(
    risks: pd.DataFrame, methods: Sequence[str], numbers: Mapping[str, int], title: str, subtitle: str = ""
) -> Figure:
    """Draw the curves.

    Args:
        risks: columns ``method``, ``coverage`` and ``risk``, shares.
        methods: which, in the order of the legend.
        numbers: method -> its number, for colour and mark.
        title: the bold first line.
        subtitle: the second line.
    """
    figure = Figure(figsize=(8.6, max(4.2, 1.4 + 0.21 * len(methods))))
    head(figure, title, subtitle)
    axes = figure.add_subplot()
    for name in methods:
        mine = risks[risks["method"] == name]
        axes.plot(
            100 * mine["coverage"],
            100 * mine["risk"],
            f"{MARKS[mark(numbers[name])]}-",
            color=COLOURS[colour(numbers[name])],
            markevery=(9, 10),
            mfc="white",
            ms=5,
            linewidth=1.5,
            label=cut(name, 24),
            clip_on=False,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("answered images, the most confident first, percent")
    axes.set_ylabel("errors among them, percent")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", color="#E3E7EA")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure
