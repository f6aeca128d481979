"""A comparison made visible: terminal table, markdown and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fer_lightning import figures
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics import confusion_matrix
from fer_lightning.runs import BASELINE, SCORES

if TYPE_CHECKING:
    from fer_lightning.compare import Comparison


def _cell(mean: float, deviation: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _cells(comparison: "Comparison") -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """The table as text: headings, and rows of (text, whether it is the best of its column)."""
    table = comparison.table
    intervals = "f1_macro_low" in table and bool(table["seeds"].min() == 1)
    differences = "f1_macro_difference" in table
    headings = ["method", *SCORES.values()]
    headings += ["macro F1, 95 %"] * intervals + [f"macro F1 vs {BASELINE}"] * differences + ["seeds"]
    columns = [key.removeprefix("test/") for key in SCORES]
    best = {column: table[column].max() for column in columns}
    lines = []
    for _, row in table.iterrows():
        cells = [(str(row["method"]), False)]
        for column in columns:
            text = _cell(row[column], row[f"{column}_sd"])
            if column == "worst_recall":
                text = f"{text} {row['worst_class']}".rstrip()
            cells.append((text, len(table) > 1 and row[column] == best[column]))
        if intervals:
            cells.append((f"{row['f1_macro_low']:.3f} to {row['f1_macro_high']:.3f}", False))
        if differences:
            cells.append((_difference_cell(row), False))
        cells.append((str(row["seeds"]), False))
        lines.append(cells)
    return headings, lines


def _difference_cell(row: "pd.Series[Any]") -> str:
    if np.isnan(row["f1_macro_difference"]):
        return "-"
    text = f"{row['f1_macro_difference']:+.3f}"
    if "f1_macro_difference_low" in row.index and not np.isnan(row["f1_macro_difference_low"]):
        text += f" ({row['f1_macro_difference_low']:+.3f} to {row['f1_macro_difference_high']:+.3f})"
    return text


def print_comparison(comparison: "Comparison", console: Console) -> None:
    """Print a table with its notes; the best of each column is bold."""
    headings, lines = _cells(comparison)
    table = Table(title=escape(comparison.key), title_justify="left", title_style="bold", pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    for cells in lines:
        table.add_row(*(f"[bold]{escape(text)}[/bold]" if best else escape(text) for text, best in cells))
    if comparison.synthetic:
        console.rule("[bold red]SYNTHETIC DATA (drawn faces)", characters="=", style="red")
    console.print(table)
    for note in comparison.notes:
        console.print(f"- {note}", markup=False, highlight=False)


def markdown(comparison: "Comparison", pictures: Sequence[str], folder: str) -> str:
    """A comparison as a section of the report, its pictures linked."""
    headings, lines = _cells(comparison)
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    rows += [[f"**{text}**" if best else text for text, best in cells] for cells in lines]
    text = [f"## {comparison.key}", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    text += [f"- {note}" for note in comparison.notes] + [""]
    text += [f"![{Path(name).stem.replace('_', ' ')}]({folder}{name})\n" for name in pictures]
    return "\n".join(text)


def draw(comparison: "Comparison", folder: Path) -> list[str]:
    """Write the pictures of a comparison into ``folder``; returns their names."""
    table = comparison.table.set_index("method")
    columns = {key.removeprefix("test/"): heading for key, heading in SCORES.items()}
    several = table["seeds"].max() > 1
    spread = " · mean ± deviation over seeds" if several else " · one seed: no ranking"
    train_counts = comparison.rows[table.index[0]][0].metrics.get("train/class_counts")
    means = table[list(columns)].rename(columns=columns)
    deviations = table[[f"{column}_sd" for column in columns]].set_axis(list(means.columns), axis=1)
    matrices = {
        name: np.sum([confusion_matrix(run.labels, run.predictions) for run in runs], axis=0)
        for name, runs in comparison.rows.items()
    }
    recalls = table[[f"recall/{emotion}" for emotion in EMOTIONS]].set_axis(list(EMOTIONS), axis=1)
    test_counts = np.bincount(comparison.rows[table.index[0]][0].labels, minlength=len(EMOTIONS)).tolist()
    counts = {"train": [train_counts[emotion] for emotion in EMOTIONS]} if train_counts else {}
    percent = "percent of each true class" + (", all seeds together" if several else "")
    drawn = {
        "method_bars.png": figures.method_bars(means, deviations, "Methods compared", comparison.key + spread),
        "recall_by_class.png": figures.recall_by_class(
            recalls,
            train_counts,
            "Recall of each class",
            comparison.key + (" · mean over seeds" if several else ""),
        ),
        "confusion_matrices.png": figures.confusion_matrices(
            matrices, "Confusion matrices", f"{comparison.key} · {percent}"
        ),
        "class_distribution.png": figures.class_distribution(
            {**counts, "test": test_counts}, "Images per class", comparison.key
        ),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name)
    return list(drawn)


def default_console() -> Console:
    """A console on standard output, wide enough for the table where there is no terminal (as in a CI log)."""
    console = Console()
    return console if console.is_terminal else Console(width=140)
