"""How the numbers of a comparison were made, and what in the runs could mislead: notes on each part of the report."""

from itertools import combinations

import numpy as np

from fer_lightning.comparison.analysis import PRIMARY, Comparison
from fer_lightning.comparison.differences import FEWEST_MODERATED
from fer_lightning.comparison.ratios import SETTING, OverRatio
from fer_lightning.comparison.rows import BASELINE, is_tested, paired, share_images, varying
from fer_lightning.comparison.statistics import RESAMPLES
from fer_lightning.presentation.words import listed, percent, span

NAMED_BY_ROW = ("model.name", "model.head.cosine_scale", "model.head.class_scale", "model.head.class_margin")
"""Settings that may differ between methods without a note: the row names the model, the method sets the others."""

MAX_NAMED = 3
"""Runs that a note names."""


def on_scores(c: Comparison) -> list[str]:
    """About seeds and the interval of a single method."""
    counts = {len(members) for members in c.rows.values()}
    notes = []
    if len(counts) > 1:
        notes.append(f"The methods have unequal numbers of seeds ({min(counts)} to {max(counts)}).")
    if max(counts) > 1:
        notes.append(
            "The interval of a single method is Student's over seeds: how its trainings vary"
            + (" on these test images" if c.shared else "")
            + ". Methods are compared by the intervals of their differences, not by whether their own overlap."
        )
    return notes


def on_differences(c: Comparison) -> list[str]:
    """How differences are estimated, and which rows have none."""
    notes = [*_on_baselines(c), *_on_pairs(c)]
    counts = {len(members) for members in c.rows.values()}
    if c.compared_with:
        notes.append(
            f"Methods are paired by seed and by test image. {RESAMPLES:,} bootstrap resamples of the test images "
            "(twins together) give the variance that images cause, the seeds give that of training (Obuchowski and "
            "Rockette 1995; critical values of Cochran and Cox 1957)."
            + _on_moderation(c)
            + " With one seed the variance of training is left out." * (max(counts) == 1)
        )
        notes += _on_families(c)
        if 2 in counts:
            notes.append(
                "Two seeds are too few: error rates hold in simulations of FER-2013's test set, but true differences "
                "of 2 points in macro F1 are rarely found. Use at least three."
            )
    return notes + ([] if c.shared else _on_own_test_sets(c))


def _on_moderation(c: Comparison) -> str:
    repeated = c.differences[(c.differences["test_set"] == c.test_set) & (c.differences["metric"] == PRIMARY)]
    if np.count_nonzero(repeated["pairs"] > 1) < FEWEST_MODERATED:
        if len(c.pairs) < FEWEST_MODERATED or not (repeated["pairs"] > 1).any():
            return ""
        return (
            f" Each difference here has its own variance over seeds; the answer's is moderated by that of all "
            f"{len(c.pairs)} pairs of methods (Smyth 2004), so its interval for the same difference is another."
        )
    return " The variance over seeds of a comparison is moderated by that of the others in its metric (Smyth 2004)."


def _on_families(c: Comparison) -> list[str]:
    """How the comparisons of a metric are corrected, and what they could have found."""
    count = len(c.compared_with)
    if count == 1:
        return []
    return [
        f"Holm's p-values are over all {count} methods, for each metric separately. Simultaneous intervals contain the "
        f"true differences of all {count} together with 95 % confidence (Bonferroni; Dunn 1961). Holm's test is more "
        "powerful: its p can be below 0.05 where a simultaneous interval still contains 0."
    ]


def _on_own_test_sets(c: Comparison) -> list[str]:
    """What seeds or folds have in common, and what follows for the intervals."""
    notes = [
        "Each seed or fold has test images of its own; all methods with one seed share them. An image that several "
        "seeds test is resampled in all of them together. There is no McNemar test."
    ]
    if c.runs[0].metrics["split"] == "paper":
        notes.append(
            f"Two seeds share {_shared_test_images(c)}of their test images and, by the protocol, about 51 % of their "
            "training images. The shared test images are in the intervals, the shared training images are not: the "
            "intervals hold for samples of this pool of images, and are too short for a new pool. The pool holds all "
            "images of FER-2013, PrivateTest among them: a choice by these results is a choice on PrivateTest too."
        )
    else:
        notes.append(
            "The training sets of two folds overlap, which the intervals leave out: they hold for these images, and "
            "are too short for new ones."
        )
    return notes


def _shared_test_images(c: Comparison) -> str:
    """The mean share of test images that two seeds have in common, in words; empty for one seed."""
    tested = {run.repeat: run.ids[run.members[c.test_set]] for run in c.runs}
    shares = [len(np.intersect1d(one, other)) / len(one) for one, other in combinations(tested.values(), 2)]
    return f"{percent(float(np.mean(shares)), 0)} " if shares else "some "


def _on_baselines(c: Comparison) -> list[str]:
    if len(c.rows) == 1:
        return []
    notes = []
    if c.baselines and all(run.metrics["imbalance"] != BASELINE for run in c.runs):
        bases = listed(list(dict.fromkeys(c.baselines.values())))
        notes.append(
            f"No run has the method {BASELINE}: differences are taken from {bases}; choose another with --baseline."
        )
    if without := [name for name in c.rows if name not in c.baselines]:
        notes.append(f"{listed(without)}: no difference, because not exactly one baseline has the same setup.")
    return notes


def _on_pairs(c: Comparison) -> list[str]:
    notes = []
    for name, base in c.compared_with.items():
        pairs = len(paired(c.rows[name], c.rows[base]))
        if pairs == 0:
            notes.append(f"{name} and {base} share no seed, so there is no difference between them.")
        elif pairs < max(len(c.rows[name]), len(c.rows[base])):
            notes.append(f"The difference between {name} and {base} is over the {pairs} seeds that both have.")
    return notes


def on_twins(c: Comparison) -> list[str]:
    """About test images without a twin, where methods train on different images."""
    dedup = f"{c.test_set}_dedup"
    same_seed = [run for run in c.runs if run.repeat == c.runs[0].repeat]
    if not is_tested(c.runs, dedup) or share_images(same_seed, dedup):
        return []
    return [
        f"The methods train on different images, so {dedup} differs between them; differences on it are taken on the "
        "images that are in all of them."
    ]


def on_ranks(c: Comparison) -> list[str]:
    """What ranks within the seeds of one data set can show."""
    blocks = c.ranks.blocks
    return [
        f"Ranks are within {blocks} blocks, the seeds{' or folds' * (not c.shared)} of one data set, not several data "
        "sets: they say how stable the order is here"
        + (", and so few blocks rarely show a difference." if blocks < 10 else ".")
    ]


def on_mcnemar() -> list[str]:
    """What McNemar's test leaves out."""
    return [
        "McNemar's exact test compares the majority votes of these very models on these images; it ignores variation "
        "between trainings, so a small p is weaker evidence about the methods."
    ]


def on_calibration(c: Comparison) -> list[str]:
    """Whether temperatures are known."""
    if any(run.metrics.get("temperature") is not None for run in c.runs):
        return []
    return ["No run has a temperature (none had validation images to fit it on): calibration is as trained."]


def on_missing_scores(c: Comparison) -> list[str]:
    """Test sets that only some runs have scores of, which are therefore left out for all."""
    names = sorted(set().union(*(run.members for run in c.runs)))
    notes = []
    for name in names:
        if lacking := [run.name for run in c.runs if name not in run.members]:
            shown = listed(lacking[:MAX_NAMED]) + " and others" * (len(lacking) > MAX_NAMED)
            notes.append(f"No scores on {name}: {shown} {'has' if len(lacking) == 1 else 'have'} none.")
    return notes


def on_other_settings(c: Comparison) -> list[str]:
    """Settings that differ between runs, and are neither of the method nor named by the rows."""
    different = varying([run.settings for run in c.runs])
    other = [key for key in different if not key.startswith("imbalance.") and key not in NAMED_BY_ROW]
    return [f"Not the same in all runs: {', '.join(other)}."] if other else []


def on_protocol(c: Comparison) -> list[str]:
    """What differs between the runs besides the method, and which folders were skipped."""
    notes = on_missing_scores(c)
    steps = list(dict.fromkeys(span(run.training_steps for run in members) for members in c.rows.values()))
    if len(steps) > 1:
        notes.append(
            f"The methods made unequal numbers of optimizer steps ({'; '.join(steps)}): part of a difference may come "
            "from longer training."
        )
    notes += on_other_settings(c)
    commits = {str(run.metrics.get("git_commit")) for run in c.runs}
    if len(commits) > 1:
        notes.append(f"The runs come from different versions of the code: {', '.join(sorted(commits))}.")
    return notes + [f"Skipped: {folder}: {reason}." for folder, reason in c.skipped.items()]


def on_ratio(c: Comparison, over: OverRatio) -> list[str]:
    """What else changes with the ratio."""
    sizes: dict[float, set[int]] = {}
    for members in c.rows.values():
        value = members[0].settings.get(SETTING)
        if value is not None:
            sizes.setdefault(float(value), set()).update(run.training_images for run in members)
    known = {ratio: span(sizes[ratio]) for ratio in over.ratios if ratio in sizes}
    texts = [f"{text} at {ratio:g}" for ratio, text in known.items()]
    if len(set(known.values())) > 1:
        return [
            f"Training images: {', '.join(texts)}. A larger ratio has fewer images too, and scores change for "
            "both reasons; split.total holds their number."
        ]
    return [f"Training images: {next(iter(known.values()))} at every ratio."] if known else []
