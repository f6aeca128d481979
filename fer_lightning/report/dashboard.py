"""What dashboards show of a comparison: its tables, scores and sentences, safe for a page."""

import pandas as pd

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.presentation.escapes import change_texts, to_csv, without_tags
from fer_lightning.report import notes, sections, sentences


def tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Each table of the report by name, its texts safe for a page and for the CSV files that it exports."""
    frames = {
        "summary": comparison.summary,
        "differences": comparison.differences,
        "mcnemar": comparison.mcnemar,
        "ranks": comparison.ranks.mean,
        "per_class": comparison.per_class,
        "calibration": comparison.calibration,
        "further": comparison.further,
        "risks": comparison.risks,
        "sets": comparison.sets,
        "cost": comparison.cost,
        "ceiling": comparison.ceiling,
        "paper": comparison.paper,
        "findings": pd.DataFrame({"sentence": _sentences(comparison)}),
    }
    return {
        name: change_texts(frame, lambda text: to_csv(without_tags(text)))
        for name, frame in frames.items()
        if frame is not None
    }


def scores(comparison: Comparison) -> dict[str, float]:
    """``<metric>/<method>`` -> mean over the runs, on the set that the report is about."""
    means = comparison.summary[comparison.summary["test_set"] == comparison.test_set]
    return {without_tags(f"{row['metric']}/{row['method']}"): row["mean"] for row in means.to_dict("records")}


def _sentences(comparison: Comparison) -> list[str]:
    """All sentences and notes of the report, in reading order."""
    parts = [sentence for part in sections.sections(comparison) for sentence in (*part.sentences, *part.notes)]
    return [sentences.answer(comparison), *parts, *notes.on_protocol(comparison)]
