"""The parts of a comparison's report in reading order, the same in markdown and on the web page."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.report.tables import (
    Table,
    baselines,
    calibration,
    ceiling,
    class_counts,
    cost,
    differences,
    mcnemar,
    paper,
    per_class,
    ranks,
    scores,
    seeds,
    twins,
)

if TYPE_CHECKING:
    from fer_lightning.compare import Comparison


@dataclass(frozen=True)
class Section:
    """A part of the report: one word for it, heading, what it shows, its tables and pictures."""

    name: str
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    pictures: tuple[str, ...] = ()


def sections(c: "Comparison") -> list[Section]:
    """The report below its answer and its protocol, in reading order; what there is no data for is left out."""
    several = seeds(c) > 1
    over = "mean ± standard deviation over seeds, then the 95 % t interval over seeds" if several else "one seed"
    test_sets = [c.test_set, *(name for name in dict.fromkeys(c.summary["test_set"]) if name != c.test_set)]
    found = [
        Section(
            "Scores",
            "Scores",
            f"Percent, NLL in nats; {over}. The best of each column is bold; for NLL and ECE less is better. "
            "Methods are in the order of macro F1.",
            [scores(c, name) for name in test_sets],
            ("method_bars.png",),
        )
    ]
    tested = list(dict.fromkeys(c.differences["metric"]))
    tested.sort(key=lambda metric: metric != "f1_macro")
    if len(c.differences) and c.baseline:
        against = c.baseline if baselines(c) == 1 else "the baseline of the same model"
        found.append(
            Section(
                "Differences",
                f"Differences to {against}",
                "Percentage points, right of zero is better, with 95 % intervals (paired over test images and seeds). "
                "Filled marks and bold numbers: Holm's p over all methods is below 0.05.",
                [
                    differences(c, metric, name)
                    for name in dict.fromkeys(c.differences["test_set"])
                    for metric in tested
                ],
                ("differences.png",),
            )
        )
    found.append(
        Section(
            "Trade-off",
            "Accuracy against macro F1",
            "Up and to the right is better. Crosses are 95 % intervals over seeds."
            if several
            else "Up and to the right is better.",
            [],
            ("trade_off.png",),
        )
    )
    found.append(
        Section(
            "Emotions",
            "Each emotion",
            "Percent, the rarest emotion in training first; the best of each emotion is bold.",
            [*(per_class(c, score) for score in ("recall", "precision", "f1")), class_counts(c)],
            ("recall_by_class.png", "class_distribution.png"),
        )
    )
    if len(c.ranks):
        primary = c.ranks.attrs.get("metric")
        metrics = sorted(dict.fromkeys(c.ranks["metric"]), key=lambda metric: metric != primary)
        blocks = c.ranks.attrs.get("blocks")
        found.append(
            Section(
                "Ranks",
                "Ranks",
                f"Mean rank over {blocks} seeds, 1 is best. "
                * bool(blocks)
                + "Bars are half a critical difference (Nemenyi, 5 %) to each side: methods whose bars overlap are not "
                "told apart.",
                [ranks(c, metric) for metric in metrics],
                ("ranks.png",),
            )
        )
    found.append(
        Section(
            "Confusion",
            "Confusion matrices",
            "Percent of each true emotion (rows) that was called each emotion (columns)"
            + (", all seeds together." if several else ".")
            + (" Differences are percentage points to the baseline." if c.baseline else ""),
            [],
            ("confusion_matrices.png", "confusion_differences.png"),
        )
    )
    if len(c.calibration):
        found.append(
            Section(
                "Calibration",
                "Calibration",
                "Whether a model that says 80 % is right in 80 % of cases, before and after dividing the logits by one "
                "temperature fitted on validation. ECE in percent, NLL in nats; less is better.",
                [calibration(c)],
                ("reliability.png",),
            )
        )
    if table := twins(c):
        found.append(
            Section(
                "Twins",
                "Without twins",
                "Test images with a pixel-identical twin in training are left out of the second number.",
                [table],
            )
        )
    if table := ceiling(c):
        found.append(
            Section(
                "Labels",
                "Label noise",
                "Percent of test images whose FER-2013 label is what most of ten raters (FER+) said. Where they "
                "disagree with the label, a model that sees what they see is counted wrong.",
                [table],
            )
        )
    if table := paper(c):
        found.append(
            Section("Paper", "The paper's numbers", "Accuracy in percent, ours with 95 % interval over seeds.", [table])
        )
    if len(c.mcnemar):
        found.append(
            Section(
                "McNemar",
                "McNemar's test",
                "Images that only one of the two gets right, by majority vote over seeds; exact test.",
                [mcnemar(c)],
            )
        )
    if len(c.cost):
        lead = "Means over runs; seconds in training steps, without validation."
        found.append(Section("Cost", "Cost of training", lead, [cost(c)]))
    return found


def protocol(c: "Comparison") -> dict[str, str]:
    """What a reader must know to judge the numbers: heading -> words."""
    return {key: words for key, words in c.protocol.items() if key != "command"}


def made_with(c: "Comparison") -> dict[str, str]:
    """How the report came about: command, code version and run folders."""
    folders = [run.folder for runs in c.rows.values() for run in runs]
    common = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0]
    common = common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
    commits = sorted({str(run.metrics.get("git_commit")) for runs in c.rows.values() for run in runs})
    return {
        "command": c.protocol.get("command") or f"python -m fer_lightning.compare {common}",
        "code of the runs": ", ".join(commits),
        "runs": f"{len(folders)} in {common}",
    }
