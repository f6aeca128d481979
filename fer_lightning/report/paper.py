"""What a comparison in the paper's protocol and the paper's own numbers show about each other, in sentences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.comparison.paper import TRAINING_IMAGES
from fer_lightning.presentation.words import count, percent, span

PAPER_RESULTS = (
    "The paper reports 49.43 % on 1,050 balanced images (519 right), and 49.90 % (weighted) and 55.83 % (focal) on "
    "7,365 images (3,675 and 4,112 right; the counts are inferred from its digits): two different test sets, single "
    "runs, no baseline, so its numbers do not rank undersampling against the other two."
)


def compare_with_paper(c: Comparison) -> list[str]:
    """What the paper's numbers and ours can and cannot show about each other; empty outside the paper's split."""
    if c.paper is None:
        return []
    seeds = max(len(members) for members in c.rows.values())
    each = "one seed" if seeds == 1 else f"{seeds} seeds, each with a sample and split of its own"
    large = count(c.sizes["test_large"])
    accuracy = c.summary[(c.summary["metric"] == "accuracy") & (c.summary["test_set"] == "test_large")]
    ours = ", ".join(f"{row['method']} {percent(row['mean'])}" for row in accuracy.to_dict("records"))
    sentences = [
        PAPER_RESULTS,
        "Under our reading of its protocol, whose optimizer, learning rates and head it leaves open, with "
        f"{each} and {large} test images common to all methods, accuracy is {ours}.",
    ]
    ranges = [_range_of_runs(row, len(c.rows[row["method"]])) for row in c.paper.to_dict("records")]
    if known := [text for text in ranges if text]:
        sentences.append(f"The 95 % range of a further single run of ours, and the paper's number: {'; '.join(known)}.")
    return sentences + _less_than_the_paper(c)


def _range_of_runs(row: Mapping[Any, Any], seeds: int) -> str:
    """A row of ``Comparison.paper`` in words; empty for one seed."""
    # An interval for the mean of k runs, times sqrt(k + 1): where 95 % of single runs, as the paper's, would be.
    half = (row["high"] - row["low"]) / 2 * np.sqrt(seeds + 1)
    if np.isnan(half):
        return ""
    low, high, theirs = row["mean"] - half, row["mean"] + half, row["paper_accuracy"]
    place = "below" if theirs < low else "above" if theirs > high else "inside"
    return f"{row['method']} {percent(low)} to {percent(high)}, the paper's {percent(theirs)} is {place}"


def _less_than_the_paper(c: Comparison) -> list[str]:
    """Where training or test images are fewer than the paper's."""
    smaller = [
        f"{name} {span(run.training_images for run in members)} instead of {full:,}"
        for name, members in c.rows.items()
        for full in (TRAINING_IMAGES["balanced" if members[0].metrics["imbalance"] == "undersample" else "large"],)
        if any(run.training_images < full for run in members)
    ]
    cut = [f"training images: {', '.join(smaller)}"] * bool(smaller)
    cut += [f"test images: {count(c.sizes['test_large'])} instead of 7,365"] * (c.sizes["test_large"] < 7365)
    if not cut:
        return []
    return [f"Our data are a cut of the paper's ({'; '.join(cut)}), so our numbers are not a replication of it."]
