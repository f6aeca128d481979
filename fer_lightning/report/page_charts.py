"""The charts of the web page, as HTML and SVG.

Places are in percent, so that a chart fits any width; colours are the page's own, so that it follows light and dark.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from fer_lightning.comparison import ratios
from fer_lightning.comparison.analysis import Comparison
from fer_lightning.metrics.names import SCORES
from fer_lightning.metrics.selective import COVERAGES
from fer_lightning.presentation.escapes import to_html
from fer_lightning.presentation.plotting import row_shares
from fer_lightning.presentation.words import MANY, cut
from fer_lightning.report import tables
from fer_lightning.report.figures import colour, mark
from fer_lightning.report.pictures import at_ratios, confusion_changes
from fer_lightning.report.trade_off_figure import view_range

DARK_COLOURS = ("#AEACA2", "#3995FF", "#C66A2D", "#8AFCA0", "#B565A8", "#80E2FE", "#E6AA1F")
"""``figures.COLOURS`` on a dark ground, found in the same way."""

SHAPES = (
    "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z",
    "M-4.5-4.5H4.5V4.5H-4.5Z",
    "M0-5.6L5.4 4.2H-5.4Z",
    "M0-6L6 0L0 6L-6 0Z",
)
"""``figures.MARKS`` as SVG paths."""

Numbers = dict[str, int]
"""Method -> its number, counted from the baseline: what its colour, mark and highlighting go by."""


def mark_of(number: int, hollow: bool = False) -> str:
    """A method's mark, 16 pixels wide."""
    style = " hollow" if hollow else ""
    return (
        f'<svg class="mark c{colour(number)}{style}" viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true">'
        f'<path d="{SHAPES[mark(number)]}"/></svg>'
    )


def method_button(name: str, numbers: Numbers, tag: str = "") -> str:
    """A method's mark and name, as a button that follows it through the page."""
    number = numbers[name]
    return (
        f'<button type="button" class="method" data-pick="{number}" aria-pressed="false">'
        f"{mark_of(number)}<span>{to_html(name).replace('_', '_<wbr>')}</span>{tag}</button>"
    )


def switched(name: str, views: Sequence[tuple[str, str]]) -> str:
    """Several views, of which one is seen at a time (all of them on paper and without scripts)."""
    if len(views) == 1:
        return views[0][1]
    choices = "".join(
        f'<label><input type="radio" name="{name}" value="{number}"{" checked" * (not number)}>'
        f"<span>{to_html(label)}</span></label>"
        for number, (label, _) in enumerate(views)
    )
    shown = "".join(
        f'<div class="view" data-view="{number}"><p class="view-name">{to_html(label)}</p>{view}</div>'
        for number, (label, view) in enumerate(views)
    )
    return f'<div class="views"><fieldset class="switch"><legend>show</legend>{choices}</fieldset>{shown}</div>'


def axis_range(values: Iterable[float], zero: bool = False) -> tuple[float, float]:
    """The range of an axis, with some room at both ends."""
    finite = [value for value in values if math.isfinite(value)] + [0.0] * zero
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def place_on(value: float, scale: tuple[float, float]) -> float:
    """Where a value is on an axis, in percent."""
    return round(100 * (value - scale[0]) / (scale[1] - scale[0]), 2)


def _within(value: float, scale: tuple[float, float]) -> float:
    """The same, cut at the ends of the axis."""
    return min(max(place_on(value, scale), 0), 100)


def ticks_on(scale: tuple[float, float], count: int) -> list[float]:
    """Round values on an axis, about ``count``."""
    ticks = MaxNLocator(count, steps=(1, 2, 5, 10)).tick_values(*scale)
    return [float(tick) for tick in ticks if scale[0] <= tick <= scale[1]]


def _tick(value: float) -> str:
    return f"{round(value * 100, 6):g}"


def _grid(x_scale: tuple[float, float], x_ticks: Mapping[float, str], y_scale: tuple[float, float]) -> list[str]:
    """Lines and labels of a chart's ticks: those of the x axis as given, round percents on the y axis."""
    drawn = []
    for tick, label in x_ticks.items():
        place = place_on(tick, x_scale)
        drawn.append(f'<line class="grid" x1="{place}%" x2="{place}%" y1="0" y2="100%"/>')
        drawn.append(f'<text x="{place}%" y="100%" dy="18" text-anchor="middle">{label}</text>')
    for tick in ticks_on(y_scale, 6):
        place = 100 - place_on(tick, y_scale)
        drawn.append(f'<line class="grid" y1="{place:.2f}%" y2="{place:.2f}%" x1="0" x2="100%"/>')
        drawn.append(f'<text x="0" y="{place:.2f}%" dx="-8" dy=".35em" text-anchor="end">{_tick(tick)}</text>')
    return drawn


def _point(
    place: tuple[float, float],
    number: int,
    words: Sequence[str],
    lines: str = "",
    name: str = "",
    name_below: int = 4,
) -> str:
    """A method's mark, which shows ``words`` when it is pointed at; ``place`` in percent from the left and the top."""
    written = f'<text class="name" x="9" y="{name_below}">{to_html(cut(name, 24))}</text>' if name else ""
    return (
        f'<g class="point c{colour(number)}" data-m="{number}" data-pick="{number}" '
        f'data-tip="{to_html(chr(10).join(words))}" tabindex="0" role="img" aria-label="{to_html(", ".join(words))}">'
        f'{lines}<svg x="{place[0]}%" y="{place[1]}%" overflow="visible"><circle class="hit" r="13"/>'
        f'<path d="{SHAPES[mark(number)]}"/>{written}</svg></g>'
    )


def _frame(drawn: Sequence[str], label: str, across: str, up: str) -> str:
    """A chart with the names of its axes; ``label`` describes it for a screen reader."""
    return (
        f'<figure class="scatter"><svg role="group" aria-label="{to_html(label)}">{"".join(drawn)}</svg>'
        f'<figcaption class="x">{to_html(across)}</figcaption>'
        f'<span class="y" aria-hidden="true">{to_html(up)}</span></figure>'
    )


def trade_off(c: Comparison, metric: str, numbers: Numbers) -> str:
    """Accuracy (x) against another metric (y), a mark with its intervals per method."""
    placed = at_ratios(c)
    rows = c.summary[c.summary["test_set"] == c.test_set].to_dict("records")
    table = {(row["method"], row["metric"]): row for row in rows}
    ends = ("mean", "low", "high")
    both = {
        name: [[float(table[name, key][end]) for end in ends] for key in ("accuracy", metric)]
        for name in numbers
        if (name, "accuracy") in table and (name, metric) in table
    }
    both = {name: axes for name, axes in both.items() if math.isfinite(axes[0][0] + axes[1][0])}
    x_scale, y_scale = (
        view_range(
            [axes[place][0] for axes in both.values()],
            [end for axes in both.values() for end in axes[place] if not placed],
        )
        if both
        else (0.0, 1.0)
        for place in (0, 1)
    )
    drawn = _grid(x_scale, {tick: _tick(tick) for tick in ticks_on(x_scale, 6)}, y_scale)
    heading = SCORES[metric].heading
    before: dict[str, tuple[float, float]] = {}
    for name, ((x, x_low, x_high), (y, y_low, y_high)) in sorted(
        both.items(), key=lambda item: placed.get(item[0], ("", 0.0))[1]
    ):
        left, top = place_on(x, x_scale), round(100 - place_on(y, y_scale), 2)
        number = numbers[name]
        if name in placed:  # a line from ratio to ratio; intervals would hide it
            (method, ratio), cross = placed[name], ""
            if method in before:
                cross = (
                    f'<line class="join" x1="{before[method][0]}%" y1="{before[method][1]}%" x2="{left}%" y2="{top}%"/>'
                )
            before[method] = left, top
            shown = f"{ratio:g}"
        else:
            cross, shown = _cross((left, x_low, x_high), (top, y_low, y_high), x_scale, y_scale), name
        words = [name]
        for key, value, low, high in (("accuracy", x, x_low, x_high), (metric, y, y_low, y_high)):
            interval = SCORES[key].interval(low, high)
            words.append(f"{SCORES[key].heading} {SCORES[key].words(value)}" + (f" ({interval})" if interval else ""))
        drawn.append(_point((left, top), number, words, cross, shown, name_below=-7))
    label = f"Accuracy against {heading} in percent, one point per method; the numbers are in the table of scores."
    note = "; beside each mark: largest training class : smallest" * bool(placed)
    return _frame(drawn, label, f"accuracy, %{note}", f"{heading}, %")


def _cross(
    x: tuple[float, float, float],
    y: tuple[float, float, float],
    x_scale: tuple[float, float],
    y_scale: tuple[float, float],
) -> str:
    """The intervals of a point; ``x`` and ``y`` are its place in percent, and the ends of an interval or NaN."""
    (left, x_low, x_high), (top, y_low, y_high) = x, y
    drawn = ""
    if math.isfinite(x_low + x_high):
        ends = f'x1="{_within(x_low, x_scale)}%" x2="{_within(x_high, x_scale)}%"'
        drawn += f'<line {ends} y1="{top}%" y2="{top}%"/>'
    if math.isfinite(y_low + y_high):
        ends = f'y1="{100 - _within(y_low, y_scale):.2f}%" y2="{100 - _within(y_high, y_scale):.2f}%"'
        drawn += f'<line {ends} x1="{left}%" x2="{left}%"/>'
    return drawn


def over_ratio(c: Comparison, numbers: Numbers) -> str:
    """Scores over the imbalance ratio, a line with intervals per method; one view per metric."""
    over = ratios.over_ratio(c)
    if over is None:
        return ""
    views = [
        (SCORES[metric].heading, _lines(over, metric, numbers))
        for metric in ("f1_macro", "balanced_accuracy", "accuracy")
    ]
    return switched("ratio-chart", views)


def _lines(over: ratios.OverRatio, metric: str, numbers: Numbers) -> str:
    chosen = over.scores[(over.scores["metric"] == metric) & over.scores["mean"].notna()]
    records = chosen.to_dict("records")
    ends = [float(row[end]) for row in records for end in ("mean", "low", "high")]
    y_scale = view_range([float(row["mean"]) for row in records], ends) if records else (0.0, 1.0)
    logs = [math.log(ratio) for ratio in over.ratios]
    x_scale = (logs[0] - 0.06 * (logs[-1] - logs[0]), logs[-1] + 0.14 * (logs[-1] - logs[0]))
    drawn = _grid(x_scale, {math.log(ratio): f"{ratio:g}" for ratio in over.ratios}, y_scale)
    score = SCORES[metric]
    for order, method in enumerate(over.methods):
        shift = 0.7 * (order - (len(over.methods) - 1) / 2)  # beside one another, not on top
        mine = [row for row in records if row["method"] == method]
        before: tuple[float, float] | None = None
        for row in mine:
            left = round(place_on(math.log(row["ratio"]), x_scale) + shift, 2)
            top = round(100 - place_on(float(row["mean"]), y_scale), 2)
            marks = ""
            if before is not None:
                marks += f'<line class="join" x1="{before[0]}%" y1="{before[1]}%" x2="{left}%" y2="{top}%"/>'
            if math.isfinite(row["low"] + row["high"]):
                low, high = (100 - _within(float(row[end]), y_scale) for end in ("low", "high"))
                marks += f'<line x1="{left}%" x2="{left}%" y1="{low:.2f}%" y2="{high:.2f}%"/>'
            words = f"{method} at {row['ratio']:g}: {score.heading} {score.words(row['mean'])}"
            interval = score.interval(float(row["low"]), float(row["high"]))
            words += f" ({interval})" if interval else ""
            name = method if row is mine[-1] else ""
            drawn.append(_point((left, top), numbers[row["row"]], [words], marks, name))
            before = left, top
    label = (
        f"{score.heading} in percent over the ratio of the largest training class to the smallest, a line per method."
    )
    return _frame(drawn, label, "largest class : smallest class", f"{score.heading}, %")


def selective(c: Comparison, numbers: Numbers) -> str:
    """Errors over the share of answered images, a curve per method, with marks at the shares of the table."""
    assert c.risks is not None
    x_scale, y_scale = (0.0, 1.14), (0.0, 1.06 * float(c.risks["risk"].max()) or 0.01)
    drawn = _grid(x_scale, {tick: _tick(tick) for tick in ticks_on((0.0, 1.0), 6)}, y_scale)
    points = []
    for name in (name for name in tables.ordered(c) if name in set(c.risks["method"])):
        number, mine = numbers[name], c.risks[c.risks["method"] == name]
        shares, risks = mine["coverage"].to_numpy(float), mine["risk"].to_numpy(float)
        places = [
            (place_on(share, x_scale), round(100 - place_on(risk, y_scale), 2))
            for share, risk in zip(shares, risks, strict=True)
        ]
        drawn.append(
            f'<svg class="curve c{colour(number)}" data-m="{number}" viewBox="0 0 100 100" preserveAspectRatio="none" '
            f'overflow="visible"><path d="M{"L".join(f"{x:g} {y:g}" for x, y in places)}"/></svg>'
        )
        for share in COVERAGES:
            at = int(np.abs(shares - share).argmin())
            words = [name, f"{100 * share:.0f} % answered: {100 * risks[at]:.1f} % errors"]
            points.append(_point(places[at], number, words, name=name if share == 1 else ""))
    label = "Errors in percent over the share of answered images, a curve per method; the numbers are in the table."
    return _frame([*drawn, *points], label, "answered images, the most confident first, %", "errors, %")


def distinct_letters(classes: Sequence[str]) -> int:
    """How many letters distinguish the names of classes, at least 3 and at most 8."""
    return next((n for n in range(3, 8) if len({name[:n] for name in classes}) == len(classes)), 8)


def _matrix(
    shares: np.ndarray,
    classes: Sequence[str],
    counts: np.ndarray | None,
    name: str,
    numbers: Numbers,
    limit: float | None,
) -> str:
    """A confusion matrix as a small coloured table; with ``limit`` it holds differences of shares."""
    letters = distinct_letters(classes)
    heads = [f'<abbr title="{to_html(each)}">{to_html(each[:letters])}</abbr></th>' for each in classes]
    head = "".join(f'<th scope="col">{each}' for each in heads)
    rows = []
    for i, truth in enumerate(classes):
        cells = []
        for j, called in enumerate(classes):
            share = float(shares[i, j])
            if not math.isfinite(share):
                cells.append("<td>-</td>")
                continue
            tip = f"{truth}, called {called}: {share * 100:{'+' if limit else ''}.1f} {'points' if limit else '%'}"
            if counts is not None:
                tip += f" ({counts[i, j]:,} of {counts[i].sum():,})"
            text = f"{share * 100:{'+' if limit else ''}.0f}"
            text = "0" if text in ("+0", "-0") else text
            strength = abs(share) / limit if limit else share
            kind = ("less " if share < 0 else "more ") * bool(limit) + "right" * (i == j)
            cells.append(
                f'<td class="shade {kind.strip()}" style="--v:{strength:.3f}" data-tip="{to_html(tip)}">{text}</td>'
            )
        rows.append(f'<tr><th scope="row">{heads[i]}{"".join(cells)}</tr>')
    number = numbers[name]
    return (
        f'<div class="panel" data-m="{number}"><table class="matrix"><caption>{method_button(name, numbers)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def confusion(c: Comparison, numbers: Numbers) -> str:
    """Confusion matrices of all methods, and the differences to each row's own baseline; empty for many classes."""
    if len(c.classes) > MANY:
        return ""
    shares = {name: row_shares(c.confusion[name]) for name in tables.ordered(c)}
    views = [
        (
            "shares",
            "".join(
                _matrix(share, c.classes, c.confusion[name], name, numbers, None) for name, share in shares.items()
            ),
        )
    ]
    changes = confusion_changes(c)
    if changes:
        limit = max((float(np.nanmax(np.abs(change), initial=0)) for change in changes.values()), default=0) or 0.01
        panels = "".join(_matrix(change, c.classes, None, name, numbers, limit) for name, change in changes.items())
        views.append((tables.difference_title(c, "differences"), panels))
    return switched("confusion", [(label, f'<div class="panels">{panels}</div>') for label, panels in views])


def reliability(c: Comparison, numbers: Numbers) -> str:
    """Accuracy against confidence before and after temperature scaling, a square per method."""
    panels = []
    for name in (name for name in tables.ordered(c) if name in set(c.reliability["method"])):
        drawn = ['<path class="ideal" d="M0 100L100 0"/>']
        for scaled in (False, True):
            rows = c.reliability[(c.reliability["method"] == name) & (c.reliability["scaled"] == scaled)]
            bins = [row for row in rows[rows["count"] > 0].to_dict("records") if not math.isnan(row["accuracy"])]
            places = [(100 * row["confidence"], 100 - 100 * row["accuracy"]) for row in bins]
            kind = "after" if scaled else "before"
            if places:
                drawn.append(f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
            for row, (x, y) in zip(bins, places, strict=True):
                words = f"{kind}: says {row['confidence']:.1%}, right in {row['accuracy']:.1%} of {int(row['count']):,}"
                drawn.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2" data-tip="{words}"/>')
        number = numbers[name]
        label = to_html(f"Reliability diagram of {name}; the table below has the errors in numbers.")
        panels.append(
            f'<figure class="panel reliability c{colour(number)}" data-m="{number}">{method_button(name, numbers)}'
            f'<div class="square"><svg viewBox="0 0 100 100" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
            '<span class="y0">0</span><span class="y1">1</span><span class="x1">1</span></div></figure>'
        )
    key = (
        '<p class="key"><span class="before"></span>before <span class="after"></span>after scaling '
        "· across: confidence, up: accuracy</p>"
    )
    return f'{key}<div class="panels">{"".join(panels)}</div>' if panels else ""
