"""The parts of a comparison's report in reading order, the same in markdown and on the web page."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fer_lightning.comparison.analysis import PRIMARY, Comparison
from fer_lightning.comparison.ratios import over_ratio
from fer_lightning.data.faces import class_noun
from fer_lightning.presentation.words import MANY
from fer_lightning.report import class_tables, further_tables, notes, paper, sentences, tables
from fer_lightning.report.tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: one word for it.
        title: its heading.
        text: how to read it.
        tables: in reading order.
        pictures: file names, as ``pictures.write_pictures`` writes them.
        sentences: what its numbers support.
        notes: how its numbers were made, and what could mislead.
    """

    name: str
    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()
    sentences: Sequence[str] = ()
    notes: Sequence[str] = ()


def sections(c: Comparison) -> list[Section]:
    """The report below its opening, in reading order; a part without data is left out."""
    parts = (
        _scores,
        _ensembles,
        _differences,
        _ratio,
        _classes,
        _ranks,
        _confusion,
        _calibration,
        _selective,
        _sets,
        _twins,
        _labels,
        _paper,
        _mcnemar,
    )
    return [section for part in (*parts, _cost) if (section := part(c))]


def _test_sets(c: Comparison, table: pd.DataFrame) -> list[str]:
    """The test sets of a table, the primary one first; those without twins only where there are twins."""
    others = [name for name in dict.fromkeys(table["test_set"]) if name != c.test_set]
    return [c.test_set, *(name for name in others if c.has_twins or not name.endswith("_dedup"))]


def _scores(c: Comparison) -> Section:
    several = tables.seeds(c) > 1
    over = "mean ± standard deviation over seeds, then the 95 % t interval over seeds" if several else "one seed"
    alone = not len(c.differences)  # then no section of differences exists, which would hold these sentences and notes
    return Section(
        "Scores",
        "Scores",
        f"Percent, NLL in nats; {over}. The best of each column is bold; for NLL and ECE lower is better. "
        "Methods are in the order of macro F1.",
        [*(tables.scores(c, name) for name in _test_sets(c, c.summary)), *_present(further_tables.further(c))],
        ("method_bars.png",),
        sentences.on_seeds(c) if alone else [],
        [*notes.on_scores(c), *(notes.on_differences(c) if alone else [])],
    )


def _ensembles(c: Comparison) -> Section | None:
    if c.ensembles is None:
        return None
    return Section(
        "Ensembles",
        "Ensembles",
        "Each row is one model: the mean of the probabilities of a method's models, one per seed, not calibrated. "
        "Percent, NLL in nats; the 95 % interval is over test images alone (bootstrap, whole groups of twins), not "
        "over seeds. Ensembles are not paired with single models and stand in no test. The best of each column is "
        "bold; for NLL and ECE lower is better.",
        [tables.ensembles(c, name) for name in _test_sets(c, c.ensembles)],
    )


def _differences(c: Comparison) -> Section | None:
    if not len(c.differences):
        return None
    tested = sorted(dict.fromkeys(c.differences["metric"]), key=lambda metric: metric != PRIMARY)
    return Section(
        "Differences",
        tables.difference_title(c),
        "Percentage points, right of zero is better, with 95 % intervals (paired over test images and seeds), each for "
        "one method alone; simultaneous ones hold for all methods of a table together. Filled marks and bold numbers: "
        "Holm's p, which corrects for all methods, is below 0.05.",
        [tables.differences(c, metric, name) for name in _test_sets(c, c.differences) for metric in tested],
        ("differences.png",),
        [*sentences.on_differences(c), *sentences.on_seeds(c)],
        notes.on_differences(c),
    )


def _ratio(c: Comparison) -> Section | None:
    over = over_ratio(c)
    if over is None:
        return None
    return Section(
        "Ratio",
        "Over the imbalance ratio",
        "Training images of the largest class to those of the smallest; validation and test images are the same at "
        "every ratio. Mean ± standard deviation over seeds, percent; the best method of each ratio is bold. "
        "Differences are to the baseline at the same ratio.",
        [tables.over_ratio(over, metric) for metric in ("f1_macro", "balanced_accuracy", "accuracy")],
        ("over_ratio.png",),
        sentences.on_ratio(over, c.baselines),
        notes.on_ratio(c, over),
    )


def _classes(c: Comparison) -> Section:
    noun, shown = class_noun(c.classes), class_tables.SHOWN_CLASSES
    return Section(
        "Emotions" if noun == "emotion" else "Classes",
        f"Each {noun}",
        f"Percent, the rarest {noun} in training first; the best of each {noun} is bold."
        + f" The {shown} rarest of {len(c.classes):,} are shown." * (len(c.classes) > shown),
        [*(class_tables.per_class(c, score) for score in ("recall", "precision", "f1")), class_tables.class_counts(c)],
        ("recall_by_class.png", "class_distribution.png"),
        sentences.on_classes(c),
    )


def _ranks(c: Comparison) -> Section | None:
    metrics = sorted(dict.fromkeys(c.ranks.mean["metric"]), key=lambda metric: metric != PRIMARY)
    if not metrics:
        return None
    return Section(
        "Ranks",
        "Ranks",
        f"Mean rank over {c.ranks.blocks} seeds, 1 is best. Bars are half a critical difference (Nemenyi, 5 %) to each "
        "side: methods whose bars overlap cannot be distinguished.",
        [tables.ranks(c, metric) for metric in metrics],
        ("ranks.png",),
        notes=notes.on_ranks(c),
    )


def _confusion(c: Comparison) -> Section:
    noun, pooled = class_noun(c.classes), ", all seeds together." if tables.seeds(c) > 1 else "."
    return Section(
        "Confusion",
        "Confusion matrices",
        f"Percent of each true {noun} (rows) that was called each {noun} (columns){pooled}"
        + " Differences are percentage points to each row's own baseline." * bool(c.compared_with)
        + f" Of more than {MANY} classes there are pictures alone, without names." * (len(c.classes) > MANY),
        pictures=("confusion_matrices.png", "confusion_differences.png"),
    )


def _calibration(c: Comparison) -> Section | None:
    if not len(c.calibration):
        return None
    return Section(
        "Calibration",
        "Calibration",
        "Whether a model that says 80 % is right in 80 % of cases, before and after dividing the logits by one "
        "temperature fitted on validation. ECE in percent, NLL in nats; lower is better.",
        [tables.calibration(c)],
        ("reliability.png",),
        notes=notes.on_calibration(c),
    )


def _present(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def _selective(c: Comparison) -> Section | None:
    table = further_tables.selective(c)
    if table is None:
        return None
    return Section(
        "Selective",
        "Selective prediction",
        "Errors in percent when only the most confident images are answered and the others are left to somebody else "
        "(risk-coverage curve: El-Yaniv and Wiener 2010, Geifman and El-Yaniv 2017); mean over seeds. Confidence is "
        "the largest probability, not calibrated. The area under each curve is AURC among the further scores. The best "
        "of each column is bold.",
        [table],
        ("risk_coverage.png",),
    )


def _sets(c: Comparison) -> Section | None:
    table = further_tables.sets(c)
    if table is None or c.sets is None:
        return None
    noun, level = class_noun(c.classes), c.sets["level"].iloc[0]
    return Section(
        "Sets",
        f"Sets of {'emotions' if noun == 'emotion' else 'classes'}",
        f"For each image the {noun} labels whose probability is not lower than that of all but a few validation images "
        f"of this {noun}: such sets hold the label of {100 * level:g} % of new images of each {noun} "
        "(label-conditional conformal prediction: Vovk 2012, Sadinle et al. 2019). Percent of the test images whose "
        f"set holds the label, in all and by {noun}, and the mean size of a set, where smaller is better; means over "
        "seeds.",
        [table],
    )


def _twins(c: Comparison) -> Section | None:
    table = tables.twins(c)
    if table is None:
        return None
    return Section(
        "Twins",
        "Without twins",
        "Twins are test images with the same pixels as a training image; scores are with and without them.",
        [table] if c.has_twins else [],
        sentences=sentences.on_twins(c.twin_changes, c.baselines, has_twins=c.has_twins),
        notes=notes.on_twins(c),
    )


def _labels(c: Comparison) -> Section | None:
    table = class_tables.ceiling(c)
    if table is None:
        return None
    return Section(
        "Labels",
        "Label noise",
        "Percent of test images whose FER-2013 label is what most of ten raters (FER+) said. Where they disagree with "
        "the label, a model that sees what they see is counted wrong.",
        [table],
    )


def _paper(c: Comparison) -> Section | None:
    table = tables.paper(c)
    if table is None:
        return None
    return Section(
        "Paper",
        "The paper's numbers",
        "Accuracy in percent, ours with 95 % interval over seeds.",
        [table],
        sentences=paper.compare_with_paper(c),
    )


def _mcnemar(c: Comparison) -> Section | None:
    if not len(c.mcnemar):
        return None
    return Section(
        "McNemar",
        "McNemar's test",
        "Images that only one of the two gets right, by majority vote over seeds; exact test.",
        [tables.mcnemar(c)],
        notes=notes.on_mcnemar(),
    )


def _cost(c: Comparison) -> Section | None:
    if not len(c.cost):
        return None
    text = "Means over runs; seconds in training steps, without validation."
    return Section("Cost", "Cost of training", text, [tables.cost(c)])
