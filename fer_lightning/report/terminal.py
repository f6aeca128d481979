"""A comparison made visible: terminal tables, markdown and pictures. The web page is ``html_report``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.evaluation import figures as run_figures
from fer_lightning.presentation import plotting
from fer_lightning.report import figures, tables
from fer_lightning.report.sections import made_with, protocol, sections
from fer_lightning.report.tables import SCORES, Cell, Table

if TYPE_CHECKING:
    from fer_lightning.compare import Comparison

SYNTHETIC = "SYNTHETIC DATA: drawn faces. The scores say nothing about FER-2013 or real faces."

SHORT = {
    "balanced accuracy": "balanced",
    "worst-class recall": "worst class",
}
"""Headings that a terminal has room for."""


def _rich_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> RichTable:
    table = RichTable(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, heading in enumerate(headings):
        table.add_column(SHORT.get(heading, heading), justify="right" if number else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(f"[bold]{escape(cell.text)}[/bold]" if cell.best else escape(cell.text) for cell in cells))
    return table


def _difference_rows(c: "Comparison", metrics: Sequence[str]) -> list[list[Cell]]:
    """A row per method: each metric's difference with its interval, and Holm's p."""
    found = [{row[0].text: row for row in tables.differences(c, metric).rows} for metric in metrics]
    rows = []
    for name in found[0]:
        cells = [Cell(name)]
        for by_name in found:
            _, difference, _, p, _ = by_name[name]
            interval = f" ({difference.detail})" if difference.detail else ""
            cells += [Cell(difference.text + interval, best=difference.best), Cell(p.text, best=p.best)]
        rows.append(cells)
    return rows


def print_comparison(c: "Comparison", console: Console) -> None:
    """Print what the comparison says: scores, differences to the baseline, sentences and notes.

    Fits 80 columns; differences in metrics that there is no room for are left to the report.
    """

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, markup=False, highlight=False)

    if c.synthetic:
        console.rule("[bold red]SYNTHETIC DATA (drawn faces)", characters="=", style="red")
    whole = tables.scores(c)
    # Calibration is in the report; five numbers and a name fit 80 columns.
    keep = [0, 1, 2, 3, 4, len(whole.headings) - 1]
    rows = [[row[place] for place in keep] for row in whole.rows]
    console.print(_rich_table(c.key, [whole.headings[place] for place in keep], rows))
    metrics = [key for key in ("f1_macro", "accuracy", "balanced_accuracy") if key in set(c.differences["metric"])]
    while c.baseline and metrics:
        headings = ["method"]
        for metric in metrics:
            headings += [SCORES[metric].heading, "Holm p"]
        title = f"Differences to {c.baseline}, points (95 % interval)"
        table = _rich_table(title, headings, _difference_rows(c, metrics))
        if (
            len(metrics) == 1
            or console.measure(table, options=console.options.update_width(1000)).maximum <= console.width
        ):
            console.print(table)
            break
        metrics.pop()
    for sentence in c.sentences:
        say(f"- {sentence}")
    if c.notes:
        say("\nNotes", "dim")
    for note in c.notes:
        say(f"- {note}", "dim")


def _plain(text: str) -> str:
    """Text as markdown shows it literally, also within a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _markdown_table(table: Table) -> list[str]:
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    lines = [[_plain(heading) for heading in lines[0]], lines[1]]
    for row in table.rows:
        words = [_plain(cell.text + (f" ({cell.detail})" if cell.detail else "")) for cell in row]
        lines.append([f"**{text}**" if cell.best else text for text, cell in zip(words, row, strict=True)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def markdown(c: "Comparison", pictures: Sequence[str]) -> str:
    """The whole report as markdown.

    Args:
        c: the comparison.
        pictures: names of the pictures beside the file, as ``draw`` returns them.
    """
    lines = ["# Comparison of methods", "", _plain(c.key), ""]
    if c.synthetic:
        lines += [f"> **{SYNTHETIC}**", ""]
    lines += [f"- {_plain(sentence)}" for sentence in c.sentences]
    lines += ["", "## Protocol", "", "| | |", "| --- | --- |"]
    lines += [f"| {_plain(key)} | {_plain(value)} |" for key, value in protocol(c).items()]
    for section in sections(c):
        lines += ["", f"## {_plain(section.title)}", "", section.text, ""]
        for table in section.tables:
            if len(section.tables) > 1:
                lines += [f"### {_plain(table.label[:1].upper() + table.label[1:])}", ""]
            lines += [*_markdown_table(table), ""]
            lines += [f"{table.caption[:1].upper()}{table.caption[1:]}.", ""] if table.caption else []
        lines += [f"![{section.title}]({name})\n" for name in section.pictures if name in pictures]
    if c.notes:
        lines += ["", "## Notes", "", *(f"- {_plain(note)}" for note in c.notes)]
    lines += ["", "## How it was made", ""]
    lines += [f"- {key}: `{value.replace('`', '')}`" for key, value in made_with(c).items()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def draw(c: "Comparison", folder: Path) -> list[str]:
    """Write the pictures of a comparison into ``folder``; returns their names."""
    several = tables.seeds(c) > 1
    order = tables.ordered(c)
    marks = {name: number for number, name in enumerate(c.rows)}
    spread = " · percent, " + ("mean ± deviation over seeds" if several else "one seed: no ranking")
    heads = ["accuracy", "balanced_accuracy", "f1_macro", "worst_recall"]
    titles = [SCORES[key].heading for key in heads]
    means, deviations = (
        frame.loc[order, heads].set_axis(titles, axis=1) for frame in (tables.means(c), tables.deviations(c))
    )
    recalls = c.per_class.pivot(index="method", columns="emotion", values="recall").astype(float)
    recalls = recalls.reindex(index=order, columns=list(EMOTIONS))
    trained = tables.train_counts(c)
    tested = tables.test_counts(c)
    counts = {"training": [trained[emotion] for emotion in EMOTIONS]} if trained else {}
    matrices = {name: c.confusion[name] for name in order if name in c.confusion}
    percent = "percent of each true class" + (", all seeds together" if several else "")
    drawn = {
        "method_bars.png": figures.method_bars(means, deviations, "Methods compared", c.key + spread),
        "trade_off.png": figures.trade_off(
            c.summary[c.summary["test_set"] == c.test_set], marks, "Accuracy against macro F1", c.key
        ),
        "recall_by_class.png": figures.recall_by_class(
            recalls, trained, "Recall of each class", c.key + (" · mean over seeds" if several else "")
        ),
        "confusion_matrices.png": figures.confusion_matrices(matrices, "Confusion matrices", f"{c.key} · {percent}"),
        "class_distribution.png": run_figures.class_distribution(
            {**counts, "test": [tested.get(emotion, 0) for emotion in EMOTIONS]}, "Images per class", c.key
        ),
    }
    if c.baseline and len(c.differences):
        rows = c.differences[c.differences["test_set"] == c.test_set]
        against = c.baseline if tables.baselines(c) == 1 else "the baseline"
        drawn["differences.png"] = figures.differences(rows, marks, f"Differences to {against}", c.key)
        pairs = {name: (matrix, tables.baseline_of(c, name)) for name, matrix in matrices.items()}
        changes = {
            name: plotting.row_shares(matrix) - plotting.row_shares(c.confusion[base])
            for name, (matrix, base) in pairs.items()
            if base in c.confusion and base != name
        }
        if changes:
            drawn["confusion_differences.png"] = figures.confusion_differences(
                changes, f"Confusion: differences to {against}", f"{c.key} · percentage points of each true class"
            )
    metric = c.ranks.attrs.get("metric", "f1_macro")
    ranks = c.ranks[c.ranks["metric"] == metric].set_index("method")["mean_rank"]
    critical = tables.critical_difference(c, metric)
    if len(ranks) > 1 and critical > 0:
        drawn["ranks.png"] = figures.critical_difference(
            ranks, critical, marks, f"Mean ranks by {SCORES[metric].heading}", c.key
        )
    if len(c.reliability):
        drawn["reliability.png"] = figures.reliability(
            c.reliability, order, marks, "Reliability before and after temperature scaling", c.key
        )
    for name, figure in drawn.items():
        figure.savefig(folder / name)
    return list(drawn)


def default_console() -> Console:
    """A console on standard output, wide enough for the tables where there is no terminal (as in a CI log)."""
    console = Console()
    return console if console.is_terminal else Console(width=140)
