"""A comparison as one web page that loads nothing: tables, charts, style and script are all in the file.

The charts are HTML and SVG with places in percent, so that they fit any width, follow the page's light and dark
colours, print, and can be read out; a plotting library would add megabytes to every report for less. Without scripts
the page shows everything; with them it sorts, switches views, and follows a method through all charts.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.metrics.names import SCORES
from fer_lightning.presentation.escapes import to_html
from fer_lightning.report import notes, page_charts, pictures, sentences, tables
from fer_lightning.report.figures import COLOURS, colour
from fer_lightning.report.page_charts import Numbers, axis_range, mark_of, method_button, place_on, switched, ticks_on
from fer_lightning.report.protocol import key, made_with, protocol
from fer_lightning.report.sections import Section, sections
from fer_lightning.report.tables import Cell, Table


def _number_of(cell: Cell) -> float:
    return cell.value if isinstance(cell.value, float) else math.nan


def _cell(cell: Cell, number: int | None, scale: tuple[float, float] | None) -> str:
    """One table entry; with ``scale`` its value and interval are drawn below the words."""
    value = "" if cell.value is None else f' data-v="{to_html(str(cell.value))}"'
    shade = ""
    if cell.shade is not None:
        shade = f' class="shade" style="--v:{cell.shade:.3f}"'
    words = f"<b>{to_html(cell.text)}</b>" if cell.best else to_html(cell.text)
    words += f"<small>{to_html(cell.detail)}</small>" if cell.detail else ""
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


def _table(table: Table, title: str, numbers: Numbers, baselines: Sequence[str]) -> str:
    """A table that a click on a heading sorts."""
    scales = _scales(table)
    axis = scales[1] if table.plot in ("wide", "zero") else None
    heads = [
        f'<th scope="col" aria-sort="none"><button type="button" class="sort">{to_html(heading)}</button></th>'
        for heading in table.headings
    ]
    style = foot = ""
    if axis:
        head, style, foot = _axis(axis, table.plot == "zero", len(table.headings) - 1)
        heads.insert(1, head)
    body = []
    for row in table.rows:
        number = numbers.get(row[0].text)
        tag = '<i class="tag">baseline</i>' if row[0].text in baselines else ""
        name = to_html(row[0].text) if number is None else method_button(row[0].text, numbers, tag)
        value = to_html(str(row[0].value if row[0].value is not None else row[0].text))
        entries = [f'<th scope="row" data-v="{value}">{name}</th>']
        if axis:
            entries.append(_plot(row[1], number or 0, axis, table.plot == "zero" and not row[1].best))
        drawn = scales if table.plot == "cells" else [None] * len(scales)
        entries += [_cell(cell, number, scale) for cell, scale in zip(row[1:], drawn[1:], strict=True)]
        followed = "" if number is None else f' data-m="{number}"'
        body.append(f"<tr{followed}>{''.join(entries)}</tr>")
    caption = to_html(f"{title}: {table.label}")
    note = f'<p class="about">{to_html(table.caption[:1].upper() + table.caption[1:])}.</p>' if table.caption else ""
    kind = f"sortable {table.plot}".strip()
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="{kind}"{style}>'
        f"<caption>{caption}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f'<tbody>{"".join(body)}</tbody><tfoot aria-hidden="true">{foot}</tfoot></table></div>{note}'
    )


def _scales(table: Table) -> list[tuple[float, float] | None]:
    """The axis range of each column that holds intervals."""
    scales: list[tuple[float, float] | None] = [None]
    for cells in list(zip(*table.rows, strict=True))[1:] or [()] * (len(table.headings) - 1):
        ends = [end for cell in cells for end in (cell.low, cell.high, _number_of(cell))]
        known = any(math.isfinite(cell.low) for cell in cells)
        scales.append(axis_range(ends, table.plot == "zero") if known else None)
    return scales


def _axis(scale: tuple[float, float], differences: bool, columns: int) -> tuple[str, str, str]:
    """Heading, grid and tick labels of a column that is drawn along an axis, before ``columns`` others."""
    first, last = ("worse", "better") if differences else ("first", "last")
    factor, sign = (100, "+") if differences else (1, "")
    head = f'<th scope="col" class="axis-head"><span>← {first}</span><span>{last} →</span></th>'
    lines, labels = [], []
    for tick in ticks_on(scale, 7):
        ink = "zero" if tick == 0 and differences else "line"
        place = place_on(tick, scale)
        lines.append(f"linear-gradient(var(--{ink}) 0 0) {place}% 0/1px 100% no-repeat")
        labels.append(f'<span style="left:{place}%">{round(tick * factor, 6):{sign if tick else ""}g}</span>')
    foot = f'<tr><td></td><td class="axis">{"".join(labels)}</td><td colspan="{columns}"></td></tr>'
    return head, f' style="--grid:{",".join(lines)}"', foot


def _opening(c: Comparison, numbers: Numbers) -> str:
    """The answer in one sentence, and the trade-off as a chart."""
    views = [
        (SCORES[metric].heading, page_charts.trade_off(c, metric, numbers))
        for metric in ("f1_macro", "balanced_accuracy", "worst_recall")
    ]
    return (
        '<section id="answer" aria-labelledby="answer-title"><h2 id="answer-title">Answer</h2>'
        f'<p class="answer">{to_html(sentences.answer(c))}</p>'
        f'<div id="trade-off">{switched("trade-off", views)}</div></section>'
    )


def _section(c: Comparison, section: Section, numbers: Numbers) -> str:
    charts = {
        "Confusion": page_charts.confusion,
        "Calibration": page_charts.reliability,
        "Ratio": page_charts.over_ratio,
        "Selective": page_charts.selective,
    }
    chart = charts[section.name](c, numbers) if section.name in charts else ""
    bases = list(c.compared_with.values())
    views = [(table.label, _table(table, section.title, numbers, bases)) for table in section.tables]
    name = section.name.lower()
    shown = switched(f"{name}-table", views) if views else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{to_html(section.title)}</h2>'
        f'{_items(section.sentences, "sentences")}<p class="about">{to_html(section.text)}</p>{chart}{shown}'
        f"{_items(section.notes, 'notes')}</section>"
    )


def _items(texts: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{to_html(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _list(entries: dict[str, str]) -> str:
    return "".join(f"<div><dt>{to_html(key)}</dt><dd>{to_html(value)}</dd></div>" for key, value in entries.items())


def _palette() -> str:
    """The methods' colours as CSS classes."""
    return "".join(
        f".c{number}{{--c:light-dark({light},{dark})}}"
        for number, (light, dark) in enumerate(zip(COLOURS, page_charts.DARK_COLOURS, strict=True))
    )


def render(c: Comparison, command: str | None = None) -> str:
    """One self-contained page: no request leaves it, and its content policy forbids any."""
    numbers = pictures.numbers(c)
    parts = sections(c)
    style = files("fer_lightning.report").joinpath("page.css").read_text(encoding="utf-8") + _palette()
    script = files("fer_lightning.report").joinpath("page.js").read_text(encoding="utf-8")
    # Only this very script may run, whatever a method's name contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'"
    links = [("answer", "Answer"), *((part.name.lower(), part.name) for part in parts), ("protocol", "Protocol")]
    navigation = "".join(f'<a href="#{name}">{to_html(title)}</a>' for name, title in links)
    banner = f'<p class="synthetic" role="note">{to_html(sentences.SYNTHETIC)}</p>' if c.synthetic else ""
    legend = "".join(f"<li>{method_button(name, numbers)}</li>" for name in tables.ordered(c))
    scores, *rest = (_section(c, section, numbers) for section in parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{to_html(key(c))}: comparison of methods</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#answer">Skip to the answer</a>
{banner}
<header><div><h1>Comparison of methods</h1><p>{to_html(key(c))}</p></div>
<button type="button" id="theme" hidden>theme: <span>auto</span></button></header>
<nav aria-label="Sections">{navigation}</nav>
<main>
{_opening(c, numbers)}
{scores}
<aside class="legend" aria-label="Methods"><p>Select methods to highlight them everywhere.</p><ul>{legend}</ul></aside>
{"".join(rest)}
<section id="protocol" aria-labelledby="protocol-title"><h2 id="protocol-title">Protocol</h2>
<dl class="protocol">{_list(protocol(c))}</dl>{_items(notes.on_protocol(c), "notes")}</section>
<section id="made" aria-labelledby="made-title"><h2 id="made-title">How it was made</h2>
<dl class="made">{_list(made_with(c, command))}</dl></section>
</main>
<div id="tip" role="status" hidden></div>
<script>{script}</script>
</body>
</html>
"""
