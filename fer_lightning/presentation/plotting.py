"""The style of every figure: colours, titles, heat maps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fer_lightning.presentation.printable import printable
from fer_lightning.presentation.words import MANY, cut

P = ParamSpec("P")

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#B8BEC4"

INK, FAINT = "#22272B", "#5F6A72"

SCALE = matplotlib.colormaps["Blues"]

CHANGE = matplotlib.colormaps["RdBu"]
"""Red is less, blue is more."""

STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8A949B",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.edgecolor": "white",
    "legend.framealpha": 0.9,
    "figure.dpi": 150,
    "text.parse_math": False,  # a dollar sign in a name begins no formula
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own defaults and ``STYLE``: not those of a ``matplotlibrc``, which may be somebody else's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def write_figure(figure: Figure, file: Path | BinaryIO) -> None:
    """Write a figure as PNG."""
    with style():
        figure.savefig(file, format="png")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in ``STYLE``, without changing the user's settings."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return drawn


def head(figure: Figure, title: str, subtitle: str) -> None:
    """Put a bold title and a smaller second line above everything, flush left."""
    title, subtitle = (printable(text, keep="\n") for text in (title, subtitle))
    width, height = figure.get_size_inches()
    top = 0.62 if subtitle else 0.4
    margin = 0.08
    room = (margin / width, margin / height, 1 - 2 * margin / width, 1 - (top + margin) / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=room))
    figure.text(0.12 / width, 1 - 0.1 / height, title, va="top", ha="left", fontsize=13, fontweight="bold")
    figure.text(0.12 / width, 1 - 0.38 / height, subtitle, va="top", ha="left", fontsize=9.5, color=FAINT)


def ink_on(value: float) -> str:
    """Text colour that reads on ``SCALE`` at this value."""
    return "white" if value > 0.55 else INK


def class_labels(classes: Sequence[str], letters: int = 16) -> list[str]:
    """Names of classes that fit beside a cell; long ones are cut, and of many there are none."""
    return [] if len(classes) > MANY else [cut(name, letters) for name in classes]


def turn(classes: Sequence[str]) -> int:
    """Degrees by which names below columns are turned so that they do not overlap."""
    return 0 if len(classes) <= 8 and max(map(len, classes), default=0) <= 9 else 90


def heatmap(
    axes: Axes,
    shares: np.ndarray,
    text: Callable[[int, int], str],
    fontsize: float,
    bold: np.ndarray | None = None,
    limit: float | None = None,
) -> None:
    """Draw shares in 0..1 as coloured cells with text; NaN cells stay empty.

    With ``limit`` they are changes in -limit..limit. Beyond ``MANY`` rows and columns, cells have no text and no
    border, as a thousand classes have a million of them.
    """
    if limit is None:
        axes.imshow(shares, cmap=SCALE, vmin=0, vmax=1, aspect="auto")
    else:
        axes.imshow(shares, cmap=CHANGE, vmin=-limit, vmax=limit, aspect="auto")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    rows, columns = shares.shape
    if min(rows, columns) > MANY:
        return
    for row, column in np.ndindex(rows, columns):
        share = float(shares[row, column])
        axes.text(
            column,
            row,
            "-" if np.isnan(share) else text(row, column),
            ha="center",
            va="center",
            fontsize=fontsize,
            linespacing=1.15,
            color=ink_on(share if limit is None else abs(share) / limit * 0.8),
            fontweight="bold" if bold is not None and bold[row, column] else "normal",
        )
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="white", linewidth=1.5)


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Divide each row by its sum; NaN in a row without images."""
    with np.errstate(invalid="ignore"):
        return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))
