"""A comparison as ``report.md``."""

import re
from collections.abc import Sequence

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.report import notes, sentences
from fer_lightning.report.protocol import key, made_with, protocol
from fer_lightning.report.sections import Section, sections
from fer_lightning.report.tables import Table


def markdown(c: Comparison, pictures: Sequence[str], command: str | None = None) -> str:
    """The whole report as markdown: answer, one picture and scores first.

    Args:
        c: the comparison.
        pictures: names of the pictures beside the file, as ``pictures.draw`` returns them.
        command: the command line that made it.
    """
    lines = ["# Comparison of methods", "", _plain(key(c)), ""]
    if c.synthetic:
        lines += [f"> **{sentences.SYNTHETIC}**", ""]
    lines += [f"**{_plain(sentences.answer(c))}**", ""]
    opening = next((name for name in ("trade_off.png", "method_bars.png") if name in pictures), None)
    if opening:
        lines += [f"![Accuracy against macro F1]({opening})", ""]
    for section in sections(c):
        lines += _section(section, [name for name in section.pictures if name in pictures and name != opening])
    lines += ["## Protocol", "", "| | |", "| --- | --- |"]
    lines += [f"| {_plain(heading)} | {_plain(text)} |" for heading, text in protocol(c).items()]
    lines += ["", *_list(notes.on_protocol(c)), "", "## How it was made", ""]
    lines += [f"- {heading}: `{text.replace('`', '')}`" for heading, text in made_with(c, command).items()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _section(section: Section, pictures: Sequence[str]) -> list[str]:
    lines = [f"## {_plain(section.title)}", "", *_list(section.sentences), "", section.text, ""]
    for table in section.tables:
        if len(section.tables) > 1:
            lines += [f"### {_plain(table.label[:1].upper() + table.label[1:])}", ""]
        lines += [*_table(table), ""]
        lines += [f"{table.caption[:1].upper()}{table.caption[1:]}.", ""] if table.caption else []
    lines += [f"![{_plain(section.title)}]({name})\n" for name in pictures]
    return [*lines, *_list(section.notes), ""]


def _list(sentences: Sequence[str]) -> list[str]:
    return [f"- {_plain(sentence)}" for sentence in sentences]


def _plain(text: str) -> str:
    """Text as markdown shows it literally, also within a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _table(table: Table) -> list[str]:
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    lines = [[_plain(heading) for heading in lines[0]], lines[1]]
    for row in table.rows:
        words = [_plain(cell.text + (f" ({cell.detail})" if cell.detail else "")) for cell in row]
        lines.append([f"**{text}**" if cell.best else text for text, cell in zip(words, row, strict=True)])
    return ["| " + " | ".join(line) + " |" for line in lines]
