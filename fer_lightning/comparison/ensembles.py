"""The ensemble of each method: the mean of its seeds' probabilities, scored as one model."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pandas as pd

from fer_lightning.comparison import statistics
from fer_lightning.comparison.rows import Rows, share_images
from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.metrics.names import SCORES
from fer_lightning.runtime.errors import UserError

BOOTSTRAPPED = ("accuracy", "balanced_accuracy", "f1_macro")
"""The scores that have an interval: the order of ``statistics.scores``."""


def ensemble_scores(rows: Rows, test_sets: Sequence[str]) -> pd.DataFrame:
    """Score the mean of each row's probabilities, as its runs recorded them: not calibrated.

    The interval is that of the test images alone: of one fixed set of models, so it is shorter than an interval over
    seeds and is not compared with it.

    Args:
        rows: row -> its runs; rows of one run are left out.
        test_sets: the sets to score, the primary one first. Of each, a row is scored on the images that all its runs
            have in it: without twins, those that have no twin in the training images of any of them.

    Returns:
        As ``Comparison.ensembles``.

    Raises:
        UserError: no row has two runs, or its runs have test images of their own.
    """
    several = {name: members for name, members in rows.items() if len(members) > 1}
    if not several:
        raise UserError(
            "ensemble: each method has one run, and an ensemble needs two or more seeds; add runs, or leave it out"
        )
    runs = [run for members in several.values() for run in members]
    if not share_images(runs, test_sets[0]):
        raise UserError(
            f"ensemble: with split={runs[0].metrics['split']} these runs have test images of their own, which others "
            "may have trained on; give runs that share their test images, or leave it out"
        )
    frames = [_scores_on(several, name) for name in test_sets]
    return pd.concat(frames, ignore_index=True)


def label(row: str) -> str:
    """How the ensemble of a row is called where single models are listed, too."""
    return f"{row} (ensemble)"


def mean_probabilities(members: Sequence[FinishedRun], test_set: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probabilities, float64 (n, C), labels and twin groups, int64 (n,), of the images that all runs have."""
    common = reduce(np.intersect1d, [run.ids[run.members[test_set]] for run in members])
    chosen = [np.isin(run.ids, common) for run in members]
    mean = np.mean([run.probabilities[rows] for run, rows in zip(members, chosen, strict=True)], axis=0)
    return mean, members[0].labels[chosen[0]], members[0].twins[chosen[0]]


def _scores_on(rows: Rows, test_set: str) -> pd.DataFrame:
    classes = next(iter(rows.values()))[0].classes
    answers = {name: mean_probabilities(members, test_set) for name, members in rows.items()}
    predictions = [mean.argmax(axis=1) for mean, _, _ in answers.values()]
    _, labels, twins = zip(*answers.values(), strict=True)
    resampled = (
        statistics.bootstrap_scores(labels, predictions, twins, len(classes))
        if all(len(each) for each in labels)
        else np.full((0, len(rows), len(BOOTSTRAPPED)), np.nan)
    )
    records = []
    for place, (name, (mean, truth, _)) in enumerate(answers.items()):
        scores = classification_metrics(mean, truth, classes, "")
        for metric in SCORES:
            value, low, high = scores[metric], np.nan, np.nan
            if value is not None and metric in BOOTSTRAPPED:
                low, high = statistics.image_interval(value, resampled[:, place, BOOTSTRAPPED.index(metric)])
            record = (test_set, name, metric, np.nan if value is None else value, np.nan, low, high, len(rows[name]))
            records.append(record)
    return pd.DataFrame(records, columns=["test_set", "method", "metric", "mean", "sd", "low", "high", "seeds"])
