"""Tables of the single classes: scores, images, and how far raters agree with the labels."""

import math
from dataclasses import replace

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.metrics.names import SHARE
from fer_lightning.report.tables import (
    Cell,
    Table,
    number_cell,
    ordered,
    rarest_first,
    score_cell,
    test_counts,
    train_counts,
    value_of,
)

SHOWN_CLASSES = 20
"""Most classes whose scores are shown one by one: the rarest."""


def per_class(c: Comparison, score: str) -> Table:
    """One score (recall, precision or f1) of every method for the rarest classes, the rarest first."""
    classes = rarest_first(c)[:SHOWN_CLASSES]
    table = {(row["method"], row["class"]): row for row in c.per_class.to_dict("records")}
    best = c.per_class.groupby("class")[score].max().to_dict()
    several = c.per_class["method"].nunique() > 1
    rows = []
    for name in ordered(c):
        cells = [Cell(name, name)]
        for each in classes:
            entry = table.get((name, each), {})
            value, spread = entry.get(score), entry.get(f"{score}_sd")
            is_best = several and value == best.get(each)
            cells.append(replace(score_cell(SHARE, value, spread, best=is_best), shade=value_of(value)))
        rows.append(cells)
    return Table({"f1": "F1"}.get(score, score), ["method", *classes], rows)


def class_counts(c: Comparison) -> Table:
    """Images of the rarest classes in the training set and in the test set."""
    classes = rarest_first(c)[:SHOWN_CLASSES]
    tested = test_counts(c)
    rows = [[Cell("test"), *(number_cell(tested.get(name)) for name in classes)]]
    if trained := train_counts(c):
        rows.insert(0, [Cell("training"), *(number_cell(trained.get(name)) for name in classes)])
    return Table("images", ["images", *classes], rows)


def ceiling(c: Comparison) -> Table | None:
    """How often ten raters' plurality is FER-2013's label, beside the best recall that a method reaches."""
    if c.ceiling is None:
        return None
    recall = c.per_class.groupby("class")["recall"].max().to_dict()
    rows = []
    for row in c.ceiling.to_dict("records"):
        reached = recall.get(row["class"], math.nan)
        rows.append(
            [
                Cell(str(row["class"]), str(row["class"])),
                number_cell(row["n"]),
                Cell(SHARE.words(row["agreement"]), value_of(row["agreement"]), shade=value_of(row["agreement"])),
                Cell(SHARE.words(reached), value_of(reached), shade=value_of(reached)),
                Cell(SHARE.words(row["zero_votes"]), value_of(row["zero_votes"])),
            ]
        )
    headings = ["emotion", "images", "raters agree with the label", "best recall of a method", "label nobody gave"]
    return Table("ceiling", headings, rows)
