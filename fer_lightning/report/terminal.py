"""A comparison in a terminal: one screen with the scores and at most three sentences; the report has the rest."""

import os
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.presentation.printable import printable
from fer_lightning.report import notes, sentences, tables
from fer_lightning.report.protocol import key
from fer_lightning.report.tables import Cell

HEADINGS = {"balanced accuracy": "balanced", "worst-class recall": "worst class"}
"""Shorter headings, so that five scores and a name fit 80 columns."""

COLUMNS = ("method", "accuracy", "balanced accuracy", "macro F1", "worst-class recall", "seeds")
"""Of the table of scores; calibration is in the report."""

ROWS = 8
"""Methods that a screen of 24 lines has room for beside the sentences."""


def print_comparison(c: Comparison, console: Console) -> None:
    """Print the scores of the best methods and of the baselines, and the main sentences; fits 80 columns, 24 lines."""
    if c.synthetic:
        console.rule("[bold red]SYNTHETIC DATA (drawn faces)", characters="=", style="red")
    whole = tables.scores(c)
    places = [whole.headings.index(heading) for heading in COLUMNS]
    rows = _selected(whole.rows, list(c.compared_with.values()))
    headings = [HEADINGS.get(heading, heading) for heading in COLUMNS]
    console.print(_rich_table(key(c), headings, [[row[place] for place in places] for row in rows]))
    if len(rows) < len(whole.rows):
        _say(console, f"... and {len(whole.rows) - len(rows)} more in the report")
    if c.ensembles is not None:
        _print_ensembles(c, console)
    for sentence in (*sentences.highlights(c), *notes.on_missing_scores(c), *notes.on_other_settings(c)):
        _say(console, f"- {sentence}")


def _print_ensembles(c: Comparison, console: Console) -> None:
    whole = tables.ensembles(c, c.test_set)
    places = [whole.headings.index(heading) for heading in (*COLUMNS[:-1], "models")]
    headings = [HEADINGS.get(whole.headings[place], whole.headings[place]) for place in places]
    rows = [[row[place] for place in places] for row in whole.rows[:ROWS]]
    console.print(_rich_table("Mean of the probabilities of each method's models", headings, rows))
    if len(rows) < len(whole.rows):
        _say(console, f"... and {len(whole.rows) - len(rows)} more in the report")


def _selected(rows: Sequence[list[Cell]], baselines: Sequence[str]) -> list[list[Cell]]:
    """The first rows, and the baselines where there is room."""
    if len(rows) <= ROWS:
        return list(rows)
    below = [row for row in rows[ROWS - 1 :] if row[0].text in baselines][: ROWS // 2]
    return [*rows[: ROWS - 1 - len(below)], *below]


def _say(console: Console, line: str) -> None:
    console.print(printable(line), markup=False, highlight=False)


def _rich_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> RichTable:
    table = RichTable(
        title=escape(printable(title)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for cells in rows:
        texts = [escape(printable(cell.text)) for cell in cells]
        table.add_row(*(f"[bold]{text}[/bold]" if cell.best else text for text, cell in zip(texts, cells, strict=True)))
    return table


def default_console() -> Console:
    """A console on standard output; where there is no terminal (as in a CI log) as wide as COLUMNS, or 140."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=140)
