"""Pictures of runs and of comparisons: what they say, and that every word of them can be read."""

import io
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from comparisons import METHODS, made_up
from legs import every_third
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.evaluation import figures
from fer_lightning.presentation import plotting, words
from fer_lightning.report import figures as report_figures
from fer_lightning.report import page_charts, rank_figure
from fer_lightning.report.trade_off_figure import trade_off

TRAIN = (3995, 436, 4097, 7215, 4830, 3171, 4965)
RUN = {
    "data": "fer2013",
    "synthetic": False,
    "split": "official",
    "imbalance": "focal",
    "model": "tf_efficientnetv2_b0",
    "seed": 0,
}


def matrix(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    images = (491, 55, 528, 879, 594, 416, 626)
    shares = [rng.dirichlet(1 + 6 * np.eye(7)[k]) for k in range(7)]
    return np.stack([rng.multinomial(n, share) for n, share in zip(images, shares, strict=True)])


def scores(methods: int, deviation: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    columns = ["accuracy", "balanced accuracy", "macro F1", "worst-class recall"]
    values = np.random.default_rng(0).uniform(0.1, 0.7, (methods, 4))
    means = pd.DataFrame(values, index=list(METHODS[:methods]), columns=columns)
    return means, means * 0 + deviation


def training_log(epochs: int, steps: int = 10) -> pd.DataFrame:
    """``metrics.csv`` of a run that validates every other epoch."""
    rows: list[dict[str, float]] = []
    for epoch in range(epochs):
        rows.append({"epoch": epoch, "step": (epoch + 1) * steps, "lr": 1e-4 * epoch, "train/loss": 2 - epoch * 0.1})
        if epoch % 2 == 0:
            score = 0.3 + 0.2 * np.sin(epoch)
            rows[-1] |= {"val/loss": 2 - score, "val/accuracy": score + 0.1, "val/f1_macro": score}
            rows[-1]["val/balanced_accuracy"] = score - 0.05
    return pd.DataFrame(rows)


def mistaken(n: int) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"label": "disgust", "prediction": "surprise", "confidence": np.linspace(1, 0.4, n)})
    return rng.integers(0, 256, (n, 48, 48), dtype=np.uint8), rows


def recalls(methods: int) -> pd.DataFrame:
    values = np.random.default_rng(0).random((methods, 7))
    return pd.DataFrame(values, index=list(METHODS[:methods]), columns=list(EMOTIONS))


def compared(methods: int, seeds: int = 5) -> dict[str, Callable[[], Figure]]:
    """The pictures of a comparison."""
    c = made_up(methods, seeds)
    numbers = {name: number for number, name in enumerate(c.rows)}
    ranks = c.ranks.mean[c.ranks.mean["metric"] == "f1_macro"].set_index("method")["mean_rank"]
    primary = c.differences["test_set"] == "test"
    changes = {
        name: plotting.row_shares(m) - plotting.row_shares(c.confusion["none"]) for name, m in c.confusion.items()
    }
    return {
        "differences": lambda: report_figures.differences(c.differences[primary], numbers, "Differences", LINE),
        "trade_off": lambda: trade_off(c.summary[c.summary["test_set"] == "test"], numbers, "Trade-off", LINE),
        "ranks": lambda: rank_figure.critical_difference(ranks, 2.1, numbers, "Ranks", LINE),
        "reliability": lambda: report_figures.reliability(c.reliability, list(numbers), numbers, "Reliability", LINE),
        "changes": lambda: report_figures.confusion_differences(changes, EMOTIONS, "Differences", LINE),
        "matrices": lambda: report_figures.confusion_matrices(c.confusion, EMOTIONS, "Matrices", LINE),
    }


COUNTS = dict(zip(EMOTIONS, TRAIN, strict=True))
LINE = words.caption(RUN)
DRAWN: dict[str, Callable[[], Figure]] = {
    "confusion_matrix": lambda: figures.confusion_matrix(matrix(), EMOTIONS, "Confusion matrix", LINE),
    "no_subtitle": lambda: figures.confusion_matrix(matrix(), EMOTIONS, "Confusion matrix"),
    "three_sets": lambda: figures.class_distribution(
        {"train": TRAIN, "val": matrix().sum(1), "test": matrix().sum(1)}, EMOTIONS, "Images", LINE
    ),
    "one_set": lambda: figures.class_distribution({"train": TRAIN}, EMOTIONS, "Images", LINE),
    "curves": lambda: figures.curves(training_log(12), "Curves", LINE),
    "one_epoch": lambda: figures.curves(training_log(1), "Curves", LINE),
    "many_epochs": lambda: figures.curves(training_log(300, 2), "Curves", LINE),
    "mistakes": lambda: figures.mistakes(*mistaken(24), "Mistakes", LINE),
    "three_mistakes": lambda: figures.mistakes(*mistaken(3), "Mistakes", LINE),
    "no_mistakes": lambda: figures.mistakes(*mistaken(0), "Mistakes", LINE),
    "bars": lambda: report_figures.method_bars(*scores(4, 0.02), "Methods compared", LINE),
    "bars_one_seed": lambda: report_figures.method_bars(*scores(4, np.nan), "Methods compared", LINE),
    "ten_bars": lambda: report_figures.method_bars(*scores(10, 0.02), "Methods compared", LINE),
    "one_bar": lambda: report_figures.method_bars(*scores(1, np.nan), "Methods compared", LINE),
    "matrices": lambda: report_figures.confusion_matrices(
        {m: matrix() for m in METHODS[:4]}, EMOTIONS, "Matrices", LINE
    ),
    "one_matrix": lambda: report_figures.confusion_matrices({"focal": matrix()}, EMOTIONS, "Matrices", LINE),
    "ten_matrices": lambda: report_figures.confusion_matrices(
        {m: matrix() for m in METHODS[:10]}, EMOTIONS, "Matrices", LINE
    ),
    "recalls": lambda: report_figures.recall_by_class(recalls(4), COUNTS, "Recall", LINE),
    "ten_recalls": lambda: report_figures.recall_by_class(recalls(10), COUNTS, "Recall", LINE),
    "one_recall": lambda: report_figures.recall_by_class(recalls(1), None, "Recall", LINE),
    **{f"{name}_of_{n}": draw for n in (2, 5, 22) for name, draw in compared(n).items()},
    "trade_off_one_seed": compared(4, 1)["trade_off"],
}


def texts(figure: Figure) -> list[Text]:
    """All words that are drawn."""
    shown = [t for t in figure.texts if t.get_text()]
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        candidates = [axes.title, axes._left_title, *axes.texts]  # type: ignore[attr-defined]
        if axes.axison:
            candidates += [axes.xaxis.label, axes.yaxis.label]
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                ticks = [t for t in axis.get_major_ticks() if min(low, high) <= t.get_loc() <= max(low, high)]
                candidates += [t.label1 for t in ticks] + [t.label2 for t in ticks]
                candidates.append(axis.get_offset_text())
        if legend := axes.get_legend():
            candidates += legend.get_texts()
        shown += [t for t in candidates if t.get_visible() and t.get_text().strip()]
    return shown


def drawn_text(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in texts(figure))


LARGE = ("changes_of_22", "matrices_of_22", "ten_matrices", "reliability_of_22", "matrices_of_5", "mistakes")
"""Pictures that take long."""


@pytest.mark.parametrize(
    "name", every_third([pytest.param(name, marks=[pytest.mark.nightly] * (name in LARGE)) for name in DRAWN])
)
def test_no_words_overlap_or_leave_a_picture_of_sensible_size(name: str) -> None:
    figure = DRAWN[name]()
    content = io.BytesIO()
    figure.savefig(content)
    with Image.open(content) as picture:
        assert 600 <= picture.width <= 2700
        assert 250 <= picture.height <= 2500
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    assert len(content.getvalue()) < 1_000_000
    width, height = figure.bbox.size
    # Boxes of slanted labels are larger than the words, so their corners may touch.
    boxes = [(t.get_text(), t.get_window_extent(), bool(t.get_rotation() % 90)) for t in texts(figure)]
    assert boxes
    for text, box, _ in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"'{text}' is cut off: {box}"
    for (a, first, a_slanted), (b, second, b_slanted) in combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert a_slanted or b_slanted or across < 2 or down < 2, f"'{a}' and '{b}' overlap"


def test_confusion_matrix_shows_counts_and_shares() -> None:
    counts = matrix()
    words = drawn_text(figures.confusion_matrix(counts, EMOTIONS, "T", LINE))
    for row in counts:
        for n in row:
            assert f"{n / row.sum():.0%}\n({n:,})" in words
    assert "disgust\nn = 55" in words


def test_a_class_without_images_leaves_an_empty_row() -> None:
    counts = matrix()
    counts[1] = 0
    words = drawn_text(figures.confusion_matrix(counts, EMOTIONS, "T"))
    assert "nan" not in words
    assert "disgust\nn = 0" in words


def test_class_distribution_shows_every_count_and_the_ratio() -> None:
    words = drawn_text(figures.class_distribution({"train": TRAIN}, EMOTIONS, "T"))
    assert all(f"{n:,}" in words for n in TRAIN)
    assert "28,709 images · 16.5 : 1" in words
    assert "1.5%" in words


def test_curves_mark_the_best_epoch_and_draw_what_was_logged() -> None:
    log = training_log(6)
    figure = figures.curves(log, "T")
    assert f"best macro F1: {log['val/f1_macro'].max():.3f}" in drawn_text(figure)
    loss, score, rate = figure.axes
    (train, validation) = loss.get_lines()
    np.testing.assert_allclose(train.get_ydata(), log["train/loss"].dropna())
    np.testing.assert_allclose(validation.get_ydata(), log["val/loss"].dropna())
    np.testing.assert_array_equal(train.get_xdata(), range(1, 7))
    assert len(score.get_lines()) == 4
    (rates,) = rate.get_lines()
    np.testing.assert_array_equal(rates.get_xdata(), log["step"])
    np.testing.assert_array_equal(rates.get_ydata(), log["lr"])


def test_curves_without_validation_or_rates() -> None:
    figure = figures.curves(pd.DataFrame({"epoch": [0, 1], "step": [9, 19], "train/loss": [2.0, 1.5]}), "T")
    loss, score, rate = figure.axes
    assert len(loss.get_lines()) == 1
    assert not score.get_lines()
    assert not rate.get_visible()


def test_mistakes_say_label_and_prediction() -> None:
    images, rows = mistaken(3)
    figure = figures.mistakes(images, rows, "T")
    assert "labelled disgust\npred. surprise 70%" in drawn_text(figure)
    shown: list[Any] = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(np.stack(shown), images)


def test_bars_mark_the_best_of_each_score() -> None:
    means, deviations = scores(4, 0.02)
    for axes, column in zip(report_figures.method_bars(means, deviations, "T").axes, means, strict=True):
        bold = [t.get_text() for t in axes.texts if t.get_fontweight() == "bold"]
        assert bold == [f"{means[column].max() * 100:.1f} ± 2.0"]


def test_recall_puts_the_rarest_class_left() -> None:
    (axes,) = report_figures.recall_by_class(recalls(4), COUNTS, "T").axes
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert labels[0] == "disgust\n436"
    assert labels[-1] == "happy\n7,215"


def test_recall_of_many_classes_says_which_are_drawn() -> None:
    names = [f"kind{k}" for k in range(30)]
    many = pd.DataFrame(np.full((2, 30), 0.5), index=list(METHODS[:2]), columns=names)
    figure = report_figures.recall_by_class(many, {name: 40 - k for k, name in enumerate(names)}, "T", "S")
    assert figure.texts[1].get_text() == "S · the 20 rarest of 30 classes"
    assert figure.axes[0].get_xticklabels()[0].get_text() == "kind29\n11"


def test_differences_are_in_points_and_filled_where_holm_says_so() -> None:
    rows = pd.DataFrame(
        [("focal", "f1_macro", 0.021, 0.009, 0.032, 0.01), ("mixup", "f1_macro", -0.01, -0.02, 0.001, 0.2)],
        columns=["method", "metric", "difference", "low", "high", "p_holm"],
    )
    (axes,) = report_figures.differences(rows, {"none": 0, "focal": 1, "mixup": 2}, "T").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["focal", "mixup"]
    _, interval, focal, _, mixup = axes.get_lines()
    np.testing.assert_allclose(interval.get_xdata(), [0.9, 3.2])
    np.testing.assert_allclose(focal.get_xdata(), [2.1])
    assert focal.get_markerfacecolor() == report_figures.COLOURS[report_figures.colour(1)]
    assert mixup.get_markerfacecolor() == "white"


def test_trade_off_names_points_and_draws_their_intervals() -> None:
    c = made_up(4)
    figure = trade_off(c.summary[c.summary["test_set"] == "test"], dict.fromkeys(c.rows, 1), "T")
    assert set(c.rows) <= set(drawn_text(figure).split("\n"))
    table = c.summary[c.summary["test_set"] == "test"].set_index(["method", "metric"])
    across = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(across.get_xdata(), table.loc[("none", "accuracy"), ["low", "high"]].astype(float))


@pytest.mark.parametrize(
    ("ranks", "critical", "joined"),
    [
        ([1, 2, 3, 4], 1.5, [(0, 1), (1, 2), (2, 3)]),
        ([1, 1.2, 3, 3.1], 1.0, [(0, 1), (2, 3)]),
        ([1, 2, 3], 5, [(0, 2)]),
        ([1, 3, 5], 1, []),
    ],
)
def test_bars_join_ranks_within_the_critical_difference(
    ranks: list[float], critical: float, joined: list[tuple[int, int]]
) -> None:
    assert rank_figure.indistinguishable(ranks, critical) == joined


def test_every_method_looks_different_and_the_baseline_alone_is_grey() -> None:
    looks = [(report_figures.colour(number), report_figures.mark(number)) for number in range(25)]
    assert len(set(looks)) == 25
    assert [number for number, (colour, _) in enumerate(looks) if colour == 0] == [0]


# Linear-light matrices of complete deuteranopia and protanopia, Machado et al. 2009, table 1.
SIGHT = {
    "normal": np.eye(3),
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    ("colours", "ground"), [(report_figures.COLOURS, 1.0), (page_charts.DARK_COLOURS, 0.012)], ids=["light", "dark"]
)
def test_colours_of_methods_differ_for_any_colour_vision(sight: str, colours: tuple[str, ...], ground: float) -> None:
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    contrast = (np.maximum(luminance, ground) + 0.05) / (np.minimum(luminance, ground) + 0.05)
    assert contrast.min() > 3, "WCAG 1.4.11"
    seen = np.clip(linear @ np.transpose(SIGHT[sight]), 0, 1)
    # OKLab, Ottosson 2020.
    cones = np.array(
        [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    )
    lab = np.array(
        [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    )
    places = np.cbrt(seen @ cones.T) @ lab.T
    assert min(np.linalg.norm(a - b) for a, b in combinations(places, 2)) > 0.12


def test_drawing_leaves_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    figures.confusion_matrix(matrix(), EMOTIONS, "T")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("step", "needed"), [(0.1, False), (0.0, True)])
def test_a_method_without_room_for_its_name_is_in_a_legend(step, needed):
    names = ["none", "focal", "weighted", "crt", "mixup", "remix", "cmo", "lws"]
    rows = [
        {"method": name, "metric": metric, "mean": 0.1 + step * place, "low": math.nan, "high": math.nan}
        for place, name in enumerate(names)
        for metric in ("accuracy", "f1_macro")
    ]
    figure = trade_off(pd.DataFrame(rows), {name: place for place, name in enumerate(names)}, "T")
    legend = figure.axes[0].get_legend()
    assert (legend is not None) == needed
    assert not needed or [word.get_text() for word in legend.get_texts()] == names


def test_a_matrix_of_many_classes_has_no_text_in_its_cells() -> None:
    """A thousand classes have a million cells; with a text and a border each they took minutes and gigabytes."""
    classes = [f"class {number}" for number in range(1000)]
    counts = np.eye(1000, dtype=np.int64)
    for figure in (
        figures.confusion_matrix(counts, classes, "one run"),
        report_figures.confusion_matrices({"none": counts, "focal": counts}, classes, "two methods"),
    ):
        assert len(figure.findobj(Text)) < 200
        figure.savefig(io.BytesIO(), format="png")
