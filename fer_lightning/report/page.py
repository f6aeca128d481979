"""A comparison as one web page that loads nothing: tables, charts, style and script are all in the file.

The charts are HTML and SVG with places in percent, so that they fit any width, follow the page's light and dark
colours, print, and can be read out; a plotting library would add megabytes to every report for less. Without scripts
the page shows everything; with them it sorts, switches views, and follows a method through all charts.
"""

import base64
import hashlib
import math
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from fer_lightning.report import page_charts, tables
from fer_lightning.report.figures import COLOURS, colour
from fer_lightning.report.page_charts import Numbers, axis_range, mark_of, method_button, place_on, switched, ticks_on
from fer_lightning.report.sections import Section, made_with, protocol, sections
from fer_lightning.report.tables import SCORES, Cell, Table
from fer_lightning.report.terminal import SYNTHETIC

if TYPE_CHECKING:
    from fer_lightning.compare import Comparison


def _number_of(cell: Cell) -> float:
    return cell.value if isinstance(cell.value, float) else math.nan


def _cell(cell: Cell, number: int | None, scale: tuple[float, float] | None) -> str:
    """One table entry; with ``scale`` its value and interval are drawn below the words."""
    value = "" if cell.value is None else f' data-v="{escape(str(cell.value))}"'
    shade = ""
    if cell.shade is not None:
        shade = f' class="shade" style="--v:{cell.shade:.3f}"'
    words = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    words += f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    place = _number_of(cell)
    if scale and math.isfinite(place):
        drawn = _bar(cell, scale) + f'<span class="dot" style="left:{place_on(place, scale)}%"></span>'
        words += f'<span class="track c{colour(number or 0)}" aria-hidden="true">{drawn}</span>'
    return f"<td{value}{shade}>{words}</td>"


def _bar(cell: Cell, scale: tuple[float, float]) -> str:
    if not math.isfinite(cell.low + cell.high):
        return ""
    left, right = place_on(cell.low, scale), place_on(cell.high, scale)
    return f'<span class="bar" style="left:{left}%;width:{right - left:.2f}%"></span>'


def _plot(cell: Cell, number: int, scale: tuple[float, float], hollow: bool) -> str:
    """An entry that draws the value and interval of the next one along an axis."""
    drawn = _bar(cell, scale)
    if math.isfinite(_number_of(cell)):
        drawn += f'<span class="at" style="left:{place_on(_number_of(cell), scale)}%">{mark_of(number, hollow)}</span>'
    return f'<td class="plot c{colour(number)}" aria-hidden="true">{drawn}</td>'


def _table(table: Table, title: str, numbers: Numbers, baseline: str | None) -> str:
    """A table that a click on a heading sorts."""
    columns = [[row[place] for row in table.rows] for place in range(len(table.headings))]
    scales: list[tuple[float, float] | None] = [None] * len(columns)
    for place, cells in enumerate(columns[1:], 1):
        if any(math.isfinite(cell.low) for cell in cells):
            ends = [end for cell in cells for end in (cell.low, cell.high, _number_of(cell))]
            scales[place] = axis_range(ends, table.plot == "zero")
    wide = scales[1] if table.plot in ("wide", "zero") else None
    heads = [
        f'<th scope="col" aria-sort="none"><button type="button" class="sort">{escape(heading)}</button></th>'
        for heading in table.headings
    ]
    foot = ""
    style = ""
    if wide:
        factor = 1 if table.plot == "wide" else 100
        sign = "+" if table.plot == "zero" else ""
        ticks = ticks_on(wide, 7)
        words = "worse | better" if table.plot == "zero" else "first | last"
        first, last = words.split(" | ")
        heads.insert(1, f'<th scope="col" class="axis-head"><span>← {first}</span><span>{last} →</span></th>')
        lines = []
        for tick in ticks:
            ink = "zero" if tick == 0 and table.plot == "zero" else "line"
            lines.append(f"linear-gradient(var(--{ink}) 0 0) {place_on(tick, wide)}% 0/1px 100% no-repeat")
        style = f' style="--grid:{",".join(lines)}"'
        marks = "".join(
            f'<span style="left:{place_on(tick, wide)}%">{round(tick * factor, 6):{sign if tick else ""}g}</span>'
            for tick in ticks
        )
        rest = len(table.headings) - 1
        foot = f'<tr><td></td><td class="axis">{marks}</td><td colspan="{rest}"></td></tr>'
    body = []
    for row in table.rows:
        number = numbers.get(row[0].text)
        tag = '<i class="tag">baseline</i>' if row[0].text == baseline else ""
        name = escape(row[0].text) if number is None else method_button(row[0].text, numbers, tag)
        key = escape(str(row[0].value if row[0].value is not None else row[0].text))
        entries = [f'<th scope="row" data-v="{key}">{name}</th>']
        if wide:
            entries.append(_plot(row[1], number or 0, wide, table.plot == "zero" and not row[1].best))
        drawn = scales if table.plot == "cells" else [None] * len(scales)
        entries += [_cell(cell, number, scale) for cell, scale in zip(row[1:], drawn[1:], strict=True)]
        followed = "" if number is None else f' data-m="{number}"'
        body.append(f"<tr{followed}>{''.join(entries)}</tr>")
    caption = f"{title}: {table.label}"
    note = f'<p class="about">{escape(table.caption[:1].upper() + table.caption[1:])}.</p>' if table.caption else ""
    kind = f"sortable {table.plot}".strip()
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}"{style}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f'<tbody>{"".join(body)}</tbody><tfoot aria-hidden="true">{foot}</tfoot></table></div>{note}'
    )


def _section(c: "Comparison", section: Section, numbers: Numbers) -> str:
    chart = ""
    if section.name == "Trade-off":
        views = [
            (SCORES[key].heading, page_charts.trade_off(c, key, numbers))
            for key in ("f1_macro", "balanced_accuracy", "worst_recall")
        ]
        chart = switched("trade-off", views)
    elif section.name == "Confusion":
        chart = page_charts.confusion(c, numbers)
    elif section.name == "Calibration":
        chart = page_charts.reliability(c, numbers)
    views = [(table.label, _table(table, section.title, numbers, c.baseline)) for table in section.tables]
    name = section.name.lower()
    shown = switched(f"{name}-table", views) if views else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">'
        f'{escape(section.title)}</h2><p class="about">{escape(section.text)}</p>{chart}{shown}</section>'
    )


def _list(entries: dict[str, str]) -> str:
    return "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in entries.items())


def _palette() -> str:
    """The methods' colours as CSS classes."""
    return "".join(
        f".c{number}{{--c:light-dark({light},{dark})}}"
        for number, (light, dark) in enumerate(zip(COLOURS, page_charts.DARK_COLOURS, strict=True))
    )


def render(c: "Comparison") -> str:
    """One self-contained page: no request leaves it, and its content policy forbids any."""
    numbers = {name: number for number, name in enumerate(c.rows)}
    parts = sections(c)
    style = files("fer_lightning.report").joinpath("page.css").read_text(encoding="utf-8") + _palette()
    script = files("fer_lightning.report").joinpath("page.js").read_text(encoding="utf-8")
    # Only this very script may run, whatever stands in a method's name.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'"
    links = [("answer", "Answer"), *((section.name.lower(), section.name) for section in parts), ("notes", "Notes")]
    navigation = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in links)
    banner = f'<p class="synthetic" role="note">{escape(SYNTHETIC)}</p>' if c.synthetic else ""
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in c.sentences) or "<li>Nothing to compare.</li>"
    legend = "".join(f"<li>{method_button(name, numbers)}</li>" for name in tables.ordered(c))
    notes = "".join(f"<li>{escape(note)}</li>" for note in c.notes)
    body = "".join(_section(c, section, numbers) for section in parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(c.key)}: comparison of methods</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#answer">Skip to the answer</a>
{banner}
<header><div><h1>Comparison of methods</h1><p>{escape(c.key)}</p></div>
<button type="button" id="theme" hidden>theme: <span>auto</span></button></header>
<nav aria-label="Sections">{navigation}</nav>
<main>
<section id="answer" aria-labelledby="answer-title"><h2 id="answer-title">What the data say</h2>
<ul class="answer">{sentences}</ul></section>
<section id="protocol" aria-labelledby="protocol-title"><h2 id="protocol-title">Protocol</h2>
<dl class="protocol">{_list(protocol(c))}</dl></section>
<aside class="legend" aria-label="Methods"><p>Pick methods to follow them through the page.</p><ul>{legend}</ul></aside>
{body}
<section id="notes" aria-labelledby="notes-title"><h2 id="notes-title">Notes</h2>
<ul class="notes">{notes}</ul></section>
<section id="made" aria-labelledby="made-title"><h2 id="made-title">How it was made</h2>
<dl class="made">{_list(made_with(c))}</dl></section>
</main>
<div id="tip" role="status" hidden></div>
<script>{script}</script>
</body>
</html>
"""
