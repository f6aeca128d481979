"""Tables of further scores, of errors when unsure answers are left out, and of sets of classes."""

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.metrics.names import ALL_SCORES, SCORES, SHARE
from fer_lightning.metrics.selective import COVERAGES
from fer_lightning.report.tables import Cell, Table, best_of, is_tied, ordered, rarest_first, score_cell, seeds

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
        best = best_of(score, means.values())
        for cells in rows:
            name = cells[0].text
            cells.append(score_cell(score, means[name], entries[name, metric]["sd"], best=is_tied(means[name], best)))
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
    names = [name for name in ordered(c) if (name, 1.0) in curves]
    best = {share: best_of(ERROR, (curves[name, share] for name in names)) for share in COVERAGES}
    rows = []
    for name in names:
        cells = [Cell(name, name)]
        for share in COVERAGES:
            risk = curves[name, share]
            cells.append(score_cell(ERROR, risk, best=is_tied(risk, best[share])))
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
    return score_cell(SHARE, value)
