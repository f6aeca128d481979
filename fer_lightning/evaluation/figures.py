"""Pictures of a run: pure functions from numbers to a matplotlib ``Figure``; ``report.figures`` has a comparison's.

They use ``Figure`` directly rather than pyplot, so nothing is kept open and no display is needed. Colours are
those of Okabe & Ito (2008) and a single-hue scale, readable with any colour vision; hue never carries
meaning alone.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from fer_lightning.data.images import as_picture
from fer_lightning.metrics.classification import confusion_matrix as count_confusions
from fer_lightning.metrics.predictions import class_indices, classes_of, confident_mistakes
from fer_lightning.presentation.plotting import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    class_labels,
    head,
    heatmap,
    row_shares,
    styled,
    turn,
)
from fer_lightning.presentation.words import MANY


@styled
def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], title: str, subtitle: str = "") -> Figure:
    """Show counts, and each true class's shares as colour and percentage.

    Args:
        matrix: counts, shape (C, C), rows true, columns predicted.
        classes: names of the C classes.
        title: the bold first line.
        subtitle: the second line; see ``caption``.
    """
    shares, n = row_shares(matrix), len(classes)
    side = min(max(7.0, 0.75 * n), 20.0)
    figure = Figure(figsize=(side + 0.6, side))
    head(figure, title, subtitle)
    axes = figure.add_subplot()

    def words(i: int, j: int) -> str:
        return f"{shares[i, j]:.0%}" + (f"\n({matrix[i, j]:,})" if n <= 20 else "")

    heatmap(axes, shares, words, fontsize=9.5 if n <= 20 else 7, bold=np.eye(n) > 0)
    images, names = matrix.sum(axis=1), class_labels(classes)
    axes.set_xticks(range(len(names)), names, rotation=turn(names))
    axes.set_yticks(range(len(names)), [f"{e}\nn = {k:,}" for e, k in zip(names, images, strict=False)])
    axes.set_xlabel("predicted class", labelpad=8)
    axes.set_ylabel("true class", labelpad=8)
    return figure


@styled
def class_distribution(
    counts: Mapping[str, Sequence[int]], classes: Sequence[str], title: str, subtitle: str = ""
) -> Figure:
    """Show how many images of each class every set has, one panel per set.

    Args:
        counts: name of a set -> its C counts.
        classes: names of the C classes.
        title: the bold first line.
        subtitle: the second line.
    """
    many = len(classes) > MANY
    height = 6.0 if many else max(3.9, 0.3 * len(classes) + 1.4)
    figure = Figure(figsize=(max(3.0 * len(counts), 6.0) + 0.9, height))
    head(figure, title, subtitle)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (name, numbers) in zip(panels, counts.items(), strict=True):
        values = np.sort(np.asarray(numbers))[::-1] if many else np.asarray(numbers)
        total = int(values.sum())
        rare = (values == values.min()) & (values.min() < values.max())
        axes.barh(range(len(values)), values, color=np.where(rare, VERMILION, BLUE), height=0.72)
        for place, value in enumerate(() if many else values):
            share = f"  {value / total:.1%}" if total else ""
            axes.text(value, place, f" {value:,}{share}", va="center", fontsize=8.5, color=INK)
        ratio = f" · {values.max() / values.min():.3g} : 1" if values.min() else ""
        axes.set_title(name, pad=20)
        axes.text(0, 1.015, f"{total:,} images{ratio}", transform=axes.transAxes, fontsize=9, color=FAINT)
        axes.set_xlim(0, max(int(values.max()), 1) * 1.55)
        axes.set_yticks([] if many else range(len(classes)), [] if many else class_labels(classes))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    if many:
        panels[0].set_ylabel(f"{len(classes):,} classes, the most frequent of each set first")
    panels[0].invert_yaxis()
    return figure


def _logged(metrics: pd.DataFrame, column: str, by: str = "epoch") -> pd.Series:
    """Mean of a column of ``metrics.csv`` per epoch, from 1 (or step) that has it; empty when it was never logged."""
    if column not in metrics or by not in metrics:
        return pd.Series(dtype=float)
    series = metrics[[by, column]].dropna().groupby(by)[column].mean()
    return series.set_axis(series.index + 1) if by == "epoch" else series


def _line(axes: Axes, series: pd.Series, label: str, colour: str, marker: str, dashed: bool = False) -> None:
    if len(series):
        axes.plot(
            series.index,
            series.to_numpy(),
            color=colour,
            label=label,
            linewidth=2,
            linestyle="--" if dashed else "-",
            marker=marker if len(series) <= 40 else None,
            markersize=5,
        )


@styled
def curves(metrics: pd.DataFrame, title: str, subtitle: str = "") -> Figure:
    """Show losses, validation scores and learning rates of one training.

    Args:
        metrics: ``metrics.csv``, a row per epoch with ``epoch``, ``step``, ``lr``, ``train/loss``, ``val/loss``,
            ``val/accuracy``, ``val/f1_macro`` and ``val/balanced_accuracy``; missing columns are left out.
        title: the bold first line.
        subtitle: the second line.
    """
    figure = Figure(figsize=(11.5, 3.9))
    head(figure, title, subtitle)
    loss, score, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))

    _line(loss, _logged(metrics, "train/loss"), "training", GREY, "s", dashed=True)
    _line(loss, _logged(metrics, "val/loss"), "validation", BLUE, "o")
    loss.set_title("loss")

    f1 = _logged(metrics, "val/f1_macro")
    _line(score, _logged(metrics, "val/accuracy"), "accuracy", ORANGE, "s", dashed=True)
    _line(score, _logged(metrics, "val/balanced_accuracy"), "balanced accuracy", GREEN, "^", dashed=True)
    _line(score, f1, "macro F1", BLUE, "o")
    if len(f1):
        best = f1.max()
        label = f"best macro F1: {best:.3f}"
        score.plot([f1.idxmax()], [best], "o", ms=12, mfc="none", mec=VERMILION, mew=2, label=label)
    score.set_title("validation score")
    score.yaxis.set_major_formatter(PercentFormatter(1))

    rates = _logged(metrics, "lr", by="step")
    rate.plot(rates.index, rates.to_numpy(), "o-" if len(rates) == 1 else "-", color=BLUE, linewidth=2)
    rate.set_title("learning rate")
    rate.set_xlabel("optimizer step")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    rate.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    rate.set_visible(len(rates) > 0)

    for axes in (loss, score):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (loss, score, rate):
        axes.grid(axis="y", color="#E3E7EA")
        axes.set_axisbelow(True)
        lines = len(axes.get_legend_handles_labels()[0])
        if lines and (axes is not rate or 1 < lines <= 4):
            axes.legend(fontsize=9)
    return figure


@styled
def mistakes(images: np.ndarray, rows: pd.DataFrame, title: str, subtitle: str = "") -> Figure:
    """Show wrongly classified faces with their labels and predictions.

    Args:
        images: uint8, (n, H, H) or (n, 3, H, H), one per row of ``rows``.
        rows: columns ``label``, ``prediction`` and ``confidence``; see ``confident_mistakes``.
        title: the bold first line.
        subtitle: the second line.
    """
    columns = min(8, max(len(rows), 4))
    lines = max(1, math.ceil(len(rows) / columns))
    figure = Figure(figsize=(1.45 * columns + 0.2, 1.85 * lines + 0.75))
    head(figure, title, subtitle)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, row in zip(grid.flat, images, rows.itertuples(), strict=False):
        axes.imshow(as_picture(image), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        words = f"labelled {row.label}\npred. {row.prediction} {row.confidence:.0%}"
        axes.set_title(words, fontsize=9, fontweight="normal", linespacing=1.25, pad=4)
    if not len(rows):
        grid[0, 0].text(0, 0.5, "no mistakes", fontsize=11)
    return figure


def of_test(predictions: pd.DataFrame, images: np.ndarray, title: str, subtitle: str) -> dict[str, Figure]:
    """Show the predictions of a test set: ``confusion_matrix`` and ``mistakes``.

    Args:
        predictions: the rows of ``predictions.csv``, of one test set.
        images: uint8, (n, H, H) or (n, 3, H, H), one per row.
        title: of the confusion matrix.
        subtitle: the second line of both.
    """
    classes = classes_of(predictions)
    labels, predicted = (class_indices(list(predictions[column]), classes) for column in ("label", "prediction"))
    counts, wrong = count_confusions(labels, predicted, len(classes)), confident_mistakes(predictions)
    return {
        "confusion_matrix": confusion_matrix(counts, classes, title, subtitle),
        "mistakes": mistakes(images[wrong.index], wrong, "Most confident mistakes", subtitle),
    }
