"""The tables of a comparison: numbers as text, the same for the terminal, markdown and the web page.

Shares are printed in percent and their differences in percentage points, both with one decimal: an image more or less
of FER-2013's 3,589 is 0.03 points. The exact numbers are in ``summary.csv``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from fer_lightning.comparison import ensembles as ensembles_of_rows
from fer_lightning.comparison.analysis import PRIMARY, Comparison
from fer_lightning.comparison.ratios import OverRatio
from fer_lightning.metrics.names import NOTHING, SCORES, MetricFormat
from fer_lightning.presentation.words import span

TEST_SETS = {
    "test": "test",
    "test_dedup": "test without twins",
    "test_large": "large test",
    "test_large_dedup": "large test without twins",
    "test_balanced": "balanced test",
    "test_balanced_dedup": "balanced test without twins",
}


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: what is printed.
        value: what the column is sorted by; None keeps the entry at the end.
        detail: a second, smaller line.
        low: the lower end of an interval that can be drawn.
        high: its upper end.
        shade: 0..1, colours the entry.
        best: printed bold.
    """

    text: str
    value: float | str | None = None
    detail: str = ""
    low: float = math.nan
    high: float = math.nan
    shade: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names methods (or classes).

    Attributes:
        label: a few words that distinguish it from the other tables of its section.
        headings: one per column.
        rows: the entries.
        caption: how to read it.
        plot: how the web page draws values and intervals: ``cells`` below each number, ``wide`` along an axis of the
            second column, ``zero`` the same with a line at zero, or not at all.
    """

    label: str
    headings: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    plot: Literal["", "cells", "wide", "zero"] = ""


def number_cell(value: Any, digits: int = 0) -> Cell:
    """A number with that many decimals; ``NOTHING`` for a missing one."""
    return Cell(NOTHING) if pd.isna(value) else Cell(f"{float(value):,.{digits}f}", float(value))


def score_cell(
    score: MetricFormat,
    mean: Any,
    sd: Any = math.nan,
    low: float = math.nan,
    high: float = math.nan,
    best: bool = False,
) -> Cell:
    """A score, with its standard deviation and its interval where they are known."""
    spread = "" if pd.isna(sd) else f" ± {score.words(sd)}"
    interval = score.interval(low, high)
    return Cell(score.words(mean) + spread, value_of(mean), interval, float(low), float(high), best=best)


def best_of(score: MetricFormat, values: Iterable[float]) -> float:
    """The best of some values; NaN, which no value is tied with, where fewer than two are known."""
    known = [value for value in values if not pd.isna(value)]
    if len(known) < 2:
        return math.nan
    return min(known) if score.lower else max(known)


def _p(value: float, bold: bool = False) -> Cell:
    if pd.isna(value):
        return Cell(NOTHING)
    return Cell("<0.001" if value < 0.001 else f"{value:.3f}", float(value), best=bold and value < 0.05)


def value_of(value: Any) -> float | None:
    """``Cell.value`` of a number; None for a missing one."""
    return None if value is None or pd.isna(value) else float(value)


def is_tied(value: float, best: float) -> bool:
    """Whether a score is the best one, apart from rounding; not so for NaN."""
    return math.isclose(value, best, rel_tol=0, abs_tol=1e-12)


def _by_method(frame: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    return {row["method"]: row for row in frame.to_dict("records")}


def set_name(name: str) -> str:
    """A test set's name in words."""
    return TEST_SETS.get(name, name.replace("_", " "))


def means(c: Comparison, test_set: str | None = None) -> pd.DataFrame:
    """Mean of every metric, shape (methods in the order of ``rows``, ``SCORES``); NaN where there is none."""
    return _wide(c, "mean", test_set)


def deviations(c: Comparison) -> pd.DataFrame:
    """Standard deviation over seeds; the same shape as ``means``."""
    return _wide(c, "sd", None)


def _wide(c: Comparison, column: str, test_set: str | None) -> pd.DataFrame:
    rows = c.summary[c.summary["test_set"] == (test_set or c.test_set)]
    wide = rows.pivot(index="method", columns="metric", values=column)
    return wide.reindex(index=list(c.rows), columns=list(SCORES)).astype(float)


def ordered(c: Comparison) -> list[str]:
    """The methods, best macro F1 on the primary test set first."""
    return list(means(c)[PRIMARY].sort_values(ascending=False, kind="stable", na_position="last").index)


def seeds(c: Comparison) -> int:
    """The largest number of runs of a method."""
    return max(len(runs) for runs in c.rows.values())


def train_counts(c: Comparison) -> dict[str, int] | None:
    """Training images per class; None when the runs were trained on different ones."""
    counts = [run.metrics["train/class_counts"] for runs in c.rows.values() for run in runs]
    return counts[0] if all(count == counts[0] for count in counts) else None


def test_counts(c: Comparison) -> dict[str, int]:
    """Test images per class."""
    return {str(name): int(n) for name, n in zip(c.per_class["class"], c.per_class["n"], strict=True)}


def rarest_first(c: Comparison) -> list[str]:
    """The classes, rarest in training (or in the test set) first."""
    counts = train_counts(c) or test_counts(c)
    return sorted(c.classes, key=lambda name: counts.get(name, 0))


def scores(c: Comparison, test_set: str | None = None) -> Table:
    """Method x metric: mean and deviation over seeds with the 95 % interval, the best of each metric marked."""
    test_set = test_set or c.test_set
    of_set = c.summary[c.summary["test_set"] == test_set].to_dict("records")
    table = {(row["method"], row["metric"]): row for row in of_set}
    wide = means(c, test_set)
    tested = {(run.repeat, run.metrics.get(f"{test_set}/n")) for runs in c.rows.values() for run in runs}
    alike = len(tested) == len({repeat for repeat, _ in tested})  # not so without twins, where training sets differ
    sizes = {int(n) for _, n in tested if n is not None}
    best = {key: best_of(score, wide[key]) for key, score in SCORES.items()}
    rows = []
    for name in ordered(c):
        cells = [Cell(name, name)]
        for key, score in SCORES.items():
            if (name, key) not in table:
                cells.append(Cell(NOTHING))
                continue
            entry = table[name, key]
            is_best = alike and is_tied(entry["mean"], best[key])
            cells.append(score_cell(score, entry["mean"], entry["sd"], entry["low"], entry["high"], is_best))
        rows.append([*cells, number_cell(len(c.rows[name]))])
    label = set_name(test_set) + (f", n = {span(sizes)}" if sizes else "")
    return Table(label, ["method", *(score.heading for score in SCORES.values()), "seeds"], rows, plot="cells")


def ensembles(c: Comparison, test_set: str) -> Table:
    """Method x metric of the ensembles, best macro F1 first: score, and its interval over images where it has one."""
    assert c.ensembles is not None
    of_set = c.ensembles[c.ensembles["test_set"] == test_set]
    wide = of_set.pivot(index="method", columns="metric", values="mean")
    best = {key: best_of(score, wide[key]) for key, score in SCORES.items()}
    table = {(row["method"], row["metric"]): row for row in of_set.to_dict("records")}
    rows = []
    for name in wide[PRIMARY].sort_values(ascending=False, kind="stable", na_position="last").index:
        cells = [Cell(ensembles_of_rows.label(name), name)]
        for key, score in SCORES.items():
            value, low, high = (table[name, key][column] for column in ("mean", "low", "high"))
            cells.append(score_cell(score, value, low=low, high=high, best=is_tied(value, best[key])))
        rows.append([*cells, number_cell(table[name, PRIMARY]["seeds"])])
    headings = ["method", *(score.heading for score in SCORES.values()), "models"]
    return Table(set_name(test_set), headings, rows, plot="cells")


def over_ratio(over: OverRatio, metric: str) -> Table:
    """Ratio x method: mean and deviation of one score over seeds, the best of each ratio marked."""
    score = SCORES[metric]
    chosen = over.scores[over.scores["metric"] == metric].to_dict("records")
    table = {(row["ratio"], row["method"]): row for row in chosen}
    rows = []
    for ratio in over.ratios:
        means = {name: table[ratio, name]["mean"] for name in over.methods if (ratio, name) in table}
        best = best_of(score, means.values())
        cells = [Cell(f"{ratio:g}", ratio)]
        for name in over.methods:
            if name not in means:
                cells.append(Cell(NOTHING))
                continue
            is_best = is_tied(means[name], best)
            cells.append(score_cell(score, means[name], table[ratio, name]["sd"], best=is_best))
        rows.append(cells)
    return Table(score.heading, ["ratio", *over.methods], rows)


def differences(c: Comparison, metric: str, test_set: str | None = None) -> Table:
    """Differences of one metric to each row's baseline: interval, simultaneous interval, p-value, Holm's p."""
    test_set = test_set or c.test_set
    entries = _by_method(c.differences[(c.differences["test_set"] == test_set) & (c.differences["metric"] == metric)])
    score = SCORES[metric]
    several = len(baselines(c)) > 1
    rows = []
    for name in (name for name in ordered(c) if name in entries):
        entry = entries[name]
        low, high = float(entry["low"]), float(entry["high"])
        interval = Cell(
            score.words(entry["difference"], "+"),
            value_of(entry["difference"]),
            score.interval(low, high, "+"),
            low,
            high,
            best=not pd.isna(entry["p_holm"]) and entry["p_holm"] < 0.05,
        )
        base = [Cell(c.baselines[name], c.baselines[name])] * several
        together = score.interval(entry["low_all"], entry["high_all"], "+") or NOTHING
        joint = [Cell(together, value_of(entry["low_all"]))] * (len(entries) > 1)
        tests = [*joint, _p(entry["p"]), _p(entry["p_holm"], bold=True), number_cell(entry["pairs"])]
        rows.append([Cell(name, name), interval, *tests, *base])
    rows.sort(key=lambda row: -(row[1].value if isinstance(row[1].value, float) else -math.inf))
    dedup = test_set == f"{c.test_set}_dedup"
    of = "" if test_set == c.test_set else ", no twins" if dedup else f", {set_name(test_set)}"
    headings = ["method", f"{score.heading}, points", *["simultaneous"] * (len(entries) > 1)]
    headings += ["p", "p (Holm)", "seed pairs", *["baseline"] * several]
    return Table(f"{score.heading}{of}", headings, rows, plot="zero")


def baselines(c: Comparison) -> list[str]:
    """The rows that differences are taken from, each once."""
    return list(dict.fromkeys(c.compared_with.values()))


def difference_title(c: Comparison, start: str = "Differences") -> str:
    """A heading that names the baseline where all rows have the same."""
    bases = baselines(c)
    return f"{start} to {bases[0]}" if len(bases) == 1 else f"{start} to each row's own baseline"


def ranks(c: Comparison, metric: str) -> Table:
    """Mean rank over the blocks, drawn as rank +- half the critical difference: overlapping ones do not differ."""
    half, friedman = c.ranks.critical_difference / 2, c.ranks.friedman_p[metric]
    mean = c.ranks.mean[c.ranks.mean["metric"] == metric].sort_values("mean_rank", kind="stable")
    rows = []
    for row in mean.to_dict("records"):
        name, rank = str(row["method"]), float(row["mean_rank"])
        rows.append([Cell(name, name), Cell(f"{rank:.2f}", rank, "", rank - half, rank + half)])
    caption = f"critical difference {half * 2:.2f}"
    if not pd.isna(friedman):
        caption += f"; Friedman test: p {'= ' if friedman >= 0.001 else ''}{_p(friedman).text}"
    return Table(SCORES[metric].heading, ["method", "mean rank"], rows, caption, "wide")


def calibration(c: Comparison) -> Table:
    """Temperature, NLL and calibration errors before and after temperature scaling."""
    entries = _by_method(c.calibration)
    columns = {
        "nll": ("NLL", SCORES["nll"]),
        "ece": ("ECE", SCORES["ece"]),
        "classwise_ece": ("class-wise ECE", SCORES["ece"]),
    }
    headings = ["method", "temperature"]
    for heading, _ in columns.values():
        headings += [heading, f"{heading}, scaled"]
    rows = []
    for name in (name for name in ordered(c) if name in entries):
        cells = [Cell(name, name), number_cell(entries[name]["temperature"], 2)]
        for key, (_, score) in columns.items():
            for column in (key, f"{key}_scaled"):
                value = entries[name][column]
                is_best = is_tied(value, best_of(score, c.calibration[column]))
                cells.append(score_cell(score, value, best=is_best))
        rows.append(cells)
    return Table("calibration", headings, rows)


def twins(c: Comparison) -> Table | None:
    """Scores on the primary test set beside those without the images that have a twin in training."""
    dedup = f"{c.test_set}_dedup"
    if dedup not in set(c.summary["test_set"]):
        return None
    whole, without = (means(c, name).T.to_dict() for name in (c.test_set, dedup))
    headings, keys = ["method"], ("accuracy", "f1_macro")
    for key in keys:
        heading = SCORES[key].heading
        headings += [heading, f"{heading}, no twins", "change"]
    rows = []
    for name in ordered(c):
        cells = [Cell(name, name)]
        for key in keys:
            score, before, after = SCORES[key], whole[name][key], without[name][key]
            cells += [score_cell(score, value) for value in (before, after)]
            cells.append(Cell(score.words(after - before, "+"), value_of(after - before)))
        rows.append(cells)
    return Table("with and without twins", headings, rows)


def mcnemar(c: Comparison) -> Table:
    """Exact McNemar tests of majority votes over seeds against each row's baseline."""
    several = len(baselines(c)) > 1
    rows = [
        [
            Cell(str(row["method"]), str(row["method"])),
            number_cell(row["only_method_right"]),
            number_cell(row["only_baseline_right"]),
            _p(row["p"]),
            _p(row["p_holm"], bold=True),
            *([Cell(c.baselines[row["method"]], c.baselines[row["method"]])] if several else []),
        ]
        for row in c.mcnemar.to_dict("records")
    ]
    headings = ["method", "only the method right", "only the baseline right", "p", "p (Holm)", *["baseline"] * several]
    return Table("McNemar", headings, rows)


def cost(c: Comparison) -> Table:
    """What training cost."""
    entries = _by_method(c.cost)
    rows = []
    for name in (name for name in ordered(c) if name in entries):
        row = entries[name]
        texts = [NOTHING if pd.isna(row[key]) else str(row[key]) for key in ("devices", "precision")]
        numbers = [number_cell(row[key]) for key in ("seconds", "images_per_second", "steps")]
        rows.append([Cell(name, name), *numbers, *(Cell(text, text) for text in texts)])
    return Table("cost", ["method", "seconds a run", "images a second", "steps", "devices", "precision"], rows)


def paper(c: Comparison) -> Table | None:
    """The paper's accuracies beside ours."""
    if c.paper is None:
        return None
    score, rows = SCORES["accuracy"], []
    for row in c.paper.to_dict("records"):
        rows.append(
            [
                Cell(str(row["method"]), str(row["method"])),
                Cell(set_name(str(row["test_set"]))),
                number_cell(row["n"]),
                Cell(f"{row['paper_accuracy']:.2%}".removesuffix("%"), value_of(row["paper_accuracy"])),
                score_cell(score, row["mean"], low=row["low"], high=row["high"]),
            ]
        )
    return Table("paper", ["method", "test set", "images", "the paper", "ours"], rows)
