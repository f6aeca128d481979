"""A comparison as ``report.md``."""

import re
from collections.abc import Sequence

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.presentation.escapes import markdown_table, to_code, to_markdown
from fer_lightning.report import notes, sentences
from fer_lightning.report.protocol import key, made_with, protocol
from fer_lightning.report.sections import Section, sections
from fer_lightning.report.tables import Table


def markdown(c: Comparison, pictures: Sequence[str], command: str | None = None) -> str:
    """The whole report as markdown: answer, one picture and scores first.

    Args:
        c: the comparison.
        pictures: names of the pictures beside the file, as ``pictures.write_pictures`` returns them.
        command: the command line that made it.
    """
    lines = ["# Comparison of methods", "", to_markdown(key(c)), ""]
    if c.synthetic:
        lines += [f"> **{sentences.SYNTHETIC}**", ""]
    lines += [f"**{to_markdown(sentences.answer(c))}**", ""]
    opening = next((name for name in ("trade_off.png", "method_bars.png") if name in pictures), None)
    if opening:
        lines += [f"![Accuracy against macro F1]({opening})", ""]
    for section in sections(c):
        lines += _section(section, [name for name in section.pictures if name in pictures and name != opening])
    lines += ["## Protocol", "", "| | |", "| --- | --- |"]
    lines += [f"| {to_markdown(heading)} | {to_markdown(text)} |" for heading, text in protocol(c).items()]
    lines += ["", *_list(notes.on_protocol(c)), "", "## How it was made", ""]
    lines += [f"- {heading}: {to_code(text)}" for heading, text in made_with(c, command).items()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _section(section: Section, pictures: Sequence[str]) -> list[str]:
    lines = [f"## {to_markdown(section.title)}", "", *_list(section.sentences), "", to_markdown(section.text), ""]
    for table in section.tables:
        if len(section.tables) > 1:
            lines += [f"### {to_markdown(table.label[:1].upper() + table.label[1:])}", ""]
        lines += [_table(table), ""]
        lines += [to_markdown(f"{table.caption[:1].upper()}{table.caption[1:]}."), ""] if table.caption else []
    lines += [f"![{to_markdown(section.title)}]({name})\n" for name in pictures]
    return [*lines, *_list(section.notes), ""]


def _list(sentences: Sequence[str]) -> list[str]:
    return [f"- {to_markdown(sentence)}" for sentence in sentences]


def _table(table: Table) -> str:
    rows = [[to_markdown(heading) for heading in table.headings]]
    for row in table.rows:
        words = [to_markdown(cell.text + (f" ({cell.detail})" if cell.detail else "")) for cell in row]
        rows.append([f"**{text}**" if cell.best else text for text, cell in zip(words, row, strict=True)])
    return markdown_table(rows)
