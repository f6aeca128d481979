"""Tables of further scores, of errors when unsure answers are left out, and of sets of classes."""

import math

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.metrics.names import ALL_SCORES, NOTHING, SCORES, SHARE
from fer_lightning.metrics.selective import COVERAGES
from fer_lightning.report.tables import Cell, Table, is_tied, ordered, rarest_first, seeds

SHOWN_CLASSES = 8
"""Most classes whose coverage is shown: the rarest."""

ERROR = SCORES["ece"]
"""Format of an error: a share, of which less is better."""


def further(c: Comparison) -> Table | None:
    """Method x further score: mean and deviation over seeds, the best of each marked."""
    if c.further is None or not len(c.further):
        return None
    entries = {(row["method"], row["metric"]): row for row in c.further.to_dict("records")}
    metrics = list(dict.fromkeys(c.further["metric"]))
    rows = [[Cell(name, name)] for name in ordered(c)]
    for metric in metrics:
        score = ALL_SCORES[metric]
        means = {name: float(entries[name, metric]["mean"]) for name in ordered(c)}
        known = [mean for mean in means.values() if not math.isnan(mean)]
        best = (min(known) if score.lower else max(known)) if len(known) > 1 else math.nan
        for cells in rows:
            mean, deviation = means[cells[0].text], float(entries[cells[0].text, metric]["sd"])
            spread = "" if math.isnan(deviation) else f" ± {score.words(deviation)}"
            value = None if math.isnan(mean) else mean
            cells.append(Cell(score.words(mean) + spread, value, best=is_tied(mean, best)))
    caption = (
        "G-mean: geometric mean of the recalls, 0 where one is 0; MCC: Matthews correlation, from -1 to 1; AUROC and "
        "AP: areas under the ROC and the precision-recall curve, of each class against the rest, averaged over the "
        "classes that have images; AURC: mean error over all shares of answered images, lower is better"
    )
    if "recall_many" in metrics:
        caption += (
            "; many, medium, few: mean recall of classes with more than 100, 20 to 100, and fewer training images"
        )
    spread = " (mean ± deviation)" if seeds(c) > 1 else ""
    return Table(f"further scores{spread}", ["method", *(ALL_SCORES[key].heading for key in metrics)], rows, caption)


def selective(c: Comparison) -> Table | None:
    """Method x share of answered images: the error among the most confident answers, mean over seeds."""
    if c.risks is None or not len(c.risks):
        return None
    curves = {(row["method"], round(row["coverage"], 2)): float(row["risk"]) for row in c.risks.to_dict("records")}
    best = {share: min(curves[name, share] for name in c.rows if (name, share) in curves) for share in COVERAGES}
    rows = []
    for name in (name for name in ordered(c) if (name, 1.0) in curves):
        cells = [Cell(name, name)]
        for share in COVERAGES:
            risk = curves[name, share]
            cells.append(Cell(ERROR.words(risk), risk, best=len(c.rows) > 1 and is_tied(risk, best[share])))
        rows.append(cells)
    return Table("errors", ["method", *(f"{100 * share:.0f} % answered" for share in COVERAGES)], rows)


def sets(c: Comparison) -> Table | None:
    """Method x coverage and size of the sets, and coverage of the rarest classes; None where no run recorded them."""
    if c.sets is None or not len(c.sets):
        return None
    classes = rarest_first(c)[:SHOWN_CLASSES]
    entries = {row["method"]: row for row in c.sets.to_dict("records")}
    rows = []
    for name in (name for name in ordered(c) if name in entries):
        entry = entries[name]
        size = float(entry["size"])
        cells = [Cell(name, name), _share(entry["coverage"])]
        cells.append(Cell(f"{size:.2f}", size, best=len(entries) > 1 and is_tied(size, c.sets["size"].min())))
        rows.append([*cells, *(_share(entry[f"coverage/{each}"]) for each in classes)])
    return Table("sets", ["method", "hold the label", "classes in a set", *classes], rows)


def _share(value: float) -> Cell:
    return Cell(NOTHING) if math.isnan(value) else Cell(SHARE.words(value), float(value))
