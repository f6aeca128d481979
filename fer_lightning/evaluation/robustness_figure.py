"""The picture of a model's robustness: curves over the strength, and one face under each corruption."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fer_lightning.data.images import as_picture
from fer_lightning.evaluation.corruptions import KINDS, STRENGTHS, corrupt
from fer_lightning.evaluation.robustness import CLEAN, Robustness
from fer_lightning.presentation.plotting import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, head, styled

LINES = (
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (INK, "v", "-"),
    (GREEN, "^", "--"),
    ("#CC79A7", "D", "-"),  # Okabe and Ito's purple
    (ORANGE, "P", "--"),
)
"""Colour, marker and style of each kind."""


@styled
def robustness_figure(robustness: Robustness, images: np.ndarray, title: str, subtitle: str = "") -> Figure:
    """Show accuracy and macro F1 by kind over the strength, beside one face under each corruption.

    Args:
        robustness: the scores.
        images: uint8, (N, H, H) or (N, 3, H, H), the set that the scored rows are of.
        title: the bold first line.
        subtitle: the second line.
    """
    figure = Figure(figsize=(11.5, 6.4))
    head(figure, title, subtitle)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.25))
    accuracy, f1 = (figure.add_subplot(grid[row, 0]) for row in (0, 1))
    _curves(accuracy, robustness, "accuracy", "accuracy")
    _curves(f1, robustness, "f1_macro", "macro F1")
    f1.set_xlabel("strength (0: unchanged)")
    accuracy.legend(fontsize=8.5, ncols=2, loc="lower left")
    faces = grid[:, 1].subgridspec(len(KINDS), len(STRENGTHS) + 1)
    row = robustness.rows[:1]
    for line, kind in enumerate(KINDS):
        shown = [images[row], *(corrupt(images, row, kind, strength) for strength in STRENGTHS)]
        _faces([figure.add_subplot(faces[line, column]) for column in range(len(shown))], shown, kind, line == 0)
    return figure


def _curves(axes: Axes, robustness: Robustness, score: str, title: str) -> None:
    clean = float(robustness.table[score].iloc[0])
    for (kind, rows), (colour, marker, style) in zip(
        robustness.table[robustness.table["kind"] != CLEAN].groupby("kind", sort=False), LINES, strict=True
    ):
        axes.plot(
            [0, *rows["strength"]],
            [clean, *rows[score]],
            color=colour,
            marker=marker,
            linestyle=style,
            markersize=5,
            label=str(kind).replace("_", " "),
        )
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.set_xticks([0, *STRENGTHS])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", color="#E3E7EA")
    axes.set_axisbelow(True)


def _faces(panels: Sequence[Axes], shown: Sequence[np.ndarray], kind: str, first: bool) -> None:
    for strength, (axes, images) in enumerate(zip(panels, shown, strict=True)):
        axes.imshow(as_picture(images[0]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        if first:
            axes.set_title(str(strength) if strength else "unchanged", fontsize=9, fontweight="normal", loc="center")
    panels[0].set_ylabel(kind.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=9, color=FAINT)
