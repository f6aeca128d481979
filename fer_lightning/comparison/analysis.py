"""A comparison of finished runs as numbers: scores, differences, tests, ranks, calibration, cost.

Rows are methods, repeats are seeds (or folds), and methods are paired by them. ``report`` makes sentences, tables and
pages of the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.comparison import differences, paper, statistics
from fer_lightning.comparison.calibration_tables import calibration_table, reliability_table
from fer_lightning.comparison.class_tables import ceiling_table, confusion_matrices, per_class_table
from fer_lightning.comparison.differences import PairedDifference
from fer_lightning.comparison.ensembles import ensemble_scores
from fer_lightning.comparison.further_tables import further_table, risk_table, sets_table
from fer_lightning.comparison.rows import (
    Rows,
    common_test_sets,
    find_baselines,
    is_tested,
    named_rows,
    paired,
    primary_test_set,
    refuse_incomparable,
    share_images,
)
from fer_lightning.comparison.runs import FinishedRun, find_runs, read_runs
from fer_lightning.metrics.classification import confusion_matrix
from fer_lightning.metrics.names import SCORES
from fer_lightning.runtime.errors import UserError

METRICS = tuple(SCORES)
"""What is summarised over seeds."""

TESTED = ("accuracy", "balanced_accuracy", "f1_macro")
"""What differences to the baseline are tested in: the order of ``statistics.scores``."""

PRIMARY = "f1_macro"
"""What rows are ordered by, and what all pairs of rows are tested in."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of the rows within each seed or fold (Demsar 2006).

    Attributes:
        mean: metric (``TESTED``), method, mean_rank; empty for one row or one block.
        blocks: the seeds or folds that all rows have.
        critical_difference: Nemenyi's, at 5 %; NaN where ``mean`` is empty.
        friedman_p: metric -> p-value; NaN for two rows.
    """

    mean: pd.DataFrame
    blocks: int
    critical_difference: float
    friedman_p: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Methods compared on one protocol. Frames are tidy; ``method`` holds row names, in the order of ``rows``.

    Attributes:
        rows: row name -> its runs, baselines first.
        baselines: row -> the row that its differences are taken from, a baseline's own being itself. Rows without
            a baseline are absent, and it is empty for a single row.
        test_set: the primary test set: ``test``, or ``test_large`` for the paper's split.
        sizes: test set -> images in it; the largest, where seeds have test sets of their own.
        shared: whether all runs have the same images in ``test_set``.
        synthetic: whether the images are drawn.
        summary: test_set, method, metric (``METRICS``), mean, sd, low, high, seeds. The 95 % interval is Student's t
            over seeds, cut at 0, and shares at 1; sd, low and high are NaN for one seed.
        pairs: first, second, and the columns of ``differences.estimate`` (``seeds`` for its ``pairs``): every pair of
            rows once, in ``PRIMARY`` on ``test_set``, all in one family.
        differences: test_set, method, metric (``TESTED``), and the columns of ``differences.estimate``: each row to its
            baseline; the methods of one metric are a family.
        twin_changes: method, and the columns of ``differences.estimate``: how much leaving out the test images with a
            twin in training changes a method's difference to its baseline in ``PRIMARY``; empty without such a test
            set.
        mcnemar: method, only_method_right, only_baseline_right, p, p_holm; empty where seeds have their own test sets.
        ranks: mean ranks over the seeds.
        per_class: method, class, n, recall, recall_sd, precision, precision_sd, f1, f1_sd.
        calibration: method, temperature, nll, nll_scaled, ece, ece_scaled, classwise_ece, classwise_ece_scaled.
        reliability: method, scaled (bool), bin_low, bin_high, confidence, accuracy, count.
        confusion: row name -> int64 (C, C), rows true, all seeds together.
        cost: method, seconds, images_per_second, steps, devices, precision.
        ceiling: class, n, agreement, zero_votes: with FER+ votes only.
        paper: method, test_set, paper_accuracy, mean, low, high, n: for the paper's split only.
        ensembles: the columns of ``summary``, one row per method, test set and metric: the mean of the probabilities
            of its seeds' models, scored as one model. The interval is over images, sd is NaN. None unless asked for.
        further: the columns of ``summary``, for the scores of ``names.FURTHER`` and ``GROUPS`` on ``test_set``.
        risks: method, coverage, risk: error rate among the most confident answers, mean over seeds.
        sets: method, level, coverage, size, and ``coverage/`` + class: sets of classes, means over seeds, of the
            methods whose runs recorded them.
        skipped: folders that were not compared -> the reason.
    """

    rows: dict[str, list[FinishedRun]]
    baselines: dict[str, str]
    test_set: str
    sizes: dict[str, int]
    shared: bool
    synthetic: bool
    summary: pd.DataFrame
    pairs: pd.DataFrame
    differences: pd.DataFrame
    twin_changes: pd.DataFrame
    mcnemar: pd.DataFrame
    ranks: Ranks
    per_class: pd.DataFrame
    calibration: pd.DataFrame
    reliability: pd.DataFrame
    confusion: dict[str, np.ndarray]
    cost: pd.DataFrame
    ceiling: pd.DataFrame | None
    paper: pd.DataFrame | None
    ensembles: pd.DataFrame | None = None
    further: pd.DataFrame | None = None
    risks: pd.DataFrame | None = None
    sets: pd.DataFrame | None = None
    skipped: dict[Path, str] = field(default_factory=dict)

    @property
    def runs(self) -> list[FinishedRun]:
        """The runs of all rows."""
        return [run for members in self.rows.values() for run in members]

    @property
    def has_twins(self) -> bool:
        """Whether a test image of any run has a pixel-identical twin in its training set."""
        whole, dedup = self.test_set, f"{self.test_set}_dedup"
        return any(dedup in run.members and run.members[dedup].sum() < run.members[whole].sum() for run in self.runs)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.runs[0].classes

    @property
    def compared_with(self) -> dict[str, str]:
        """Row -> its baseline, without the baselines themselves."""
        return {name: base for name, base in self.baselines.items() if name != base}


@dataclass(frozen=True)
class _Scored:
    """Scores of runs on one test set: place of a run in the arrays, points (runs, 3), resampled (R, runs, 3)."""

    places: dict[Path, int]
    points: np.ndarray
    resampled: np.ndarray

    def difference(self, pairs: Sequence[tuple[FinishedRun, FinishedRun]], metric: str) -> PairedDifference:
        """The first of each pair minus the second."""
        points, resampled = self._gaps(pairs, metric)
        return differences.paired_difference(points, resampled)

    def change(
        self, other: "_Scored", pairs: Sequence[tuple[FinishedRun, FinishedRun]], metric: str
    ) -> PairedDifference:
        """How much larger the differences are here than on another test set, resampled together with this one."""
        gaps = zip(self._gaps(pairs, metric), other._gaps(pairs, metric), strict=True)
        points, resampled = (here - there for here, there in gaps)
        return differences.paired_difference(points, resampled)

    def _gaps(self, pairs: Sequence[tuple[FinishedRun, FinishedRun]], metric: str) -> tuple[np.ndarray, np.ndarray]:
        k = TESTED.index(metric)
        left, right = ([self.places[pair[side].folder] for pair in pairs] for side in (0, 1))
        return self.points[left, k] - self.points[right, k], self.resampled[:, left, k] - self.resampled[:, right, k]


def analyse_folders(
    folders: Sequence[str | Path],
    baseline: str | None = None,
    votes: str | Path | None = None,
    ensemble: bool = False,
) -> Comparison:
    """Compare the finished runs at or below ``folders``; the others are in ``skipped``.

    Args:
        folders: of runs or of sweeps.
        baseline: as for ``analyse``.
        votes: as for ``analyse``.
        ensemble: as for ``analyse``.

    Raises:
        UserError: no run folders, none of them finished, or as ``analyse``.
    """
    found = find_runs(folders)
    runs, skipped = read_runs(found)
    if not runs:
        folder, reason = max(skipped.items(), key=lambda item: item[1].startswith("not tested"))
        raise UserError(f"no run can be compared ({len(found)} found); {folder}: {reason}")
    return analyse(runs, baseline, votes, skipped, ensemble)


def analyse(
    runs: Sequence[FinishedRun],
    baseline: str | None = None,
    votes: str | Path | None = None,
    skipped: Mapping[Path, str] | None = None,
    ensemble: bool = False,
) -> Comparison:
    """Compare runs.

    Args:
        runs: one or more finished runs.
        baseline: imbalance method or row that differences are taken from; default: ``none`` where there is one, else
            the first method.
        votes: FER+ votes, for the ceiling.
        skipped: kept in the result.
        ensemble: score the mean of each row's probabilities, too.

    Raises:
        UserError: the runs are not comparable, there is no such baseline, the votes cannot be read, or no ensemble can
            be made.
    """
    refuse_incomparable(runs)
    named = named_rows(runs)
    baselines = find_baselines(named, baseline)
    rows = dict(sorted(named.items(), key=lambda item: item[0] not in baselines.values()))
    runs = [run for members in rows.values() for run in members]
    test_set = primary_test_set(runs[0])
    shared = share_images(runs, test_set)
    dedup = f"{test_set}_dedup"
    scored = _score(runs, [name for name in (test_set, dedup) if is_tested(runs, name)])
    sizes = {name: max(int(run.members[name].sum()) for run in runs) for name in common_test_sets(runs)}
    summary = _summary(rows, test_set)
    return Comparison(
        rows=rows,
        baselines=baselines,
        test_set=test_set,
        sizes=sizes,
        shared=shared,
        synthetic=any(bool(run.metrics.get("synthetic")) for run in runs),
        summary=summary,
        pairs=_pairs(rows, scored[test_set]),
        differences=_differences(rows, baselines, scored),
        twin_changes=_twin_changes(rows, baselines, scored[test_set], scored.get(dedup)),
        mcnemar=_mcnemar(rows, baselines, test_set if shared else None),
        ranks=_ranks(rows, scored[test_set]),
        per_class=per_class_table(rows, test_set),
        calibration=calibration_table(rows, test_set),
        reliability=reliability_table(rows, test_set),
        confusion=confusion_matrices(rows, test_set),
        cost=_cost(rows),
        ceiling=None if votes is None else ceiling_table(runs, test_set, votes),
        paper=paper.beside_ours(rows, summary, sizes) if test_set == "test_large" else None,
        ensembles=ensemble_scores(rows, list(dict.fromkeys(summary["test_set"]))) if ensemble else None,
        further=further_table(rows, test_set),
        risks=risk_table(rows, test_set),
        sets=sets_table(rows, test_set),
        skipped=dict(skipped or {}),
    )


def _pairs(rows: Rows, scored: _Scored) -> pd.DataFrame:
    names = list(combinations(rows, 2))
    gaps = [scored.difference(paired(rows[one], rows[other]), PRIMARY) for one, other in names]
    estimates = differences.estimate(gaps, independent=len(rows) - 1).rename(columns={"pairs": "seeds"})
    return pd.concat([pd.DataFrame(names, columns=["first", "second"]), estimates], axis=1)


def _score(runs: Sequence[FinishedRun], test_sets: Sequence[str]) -> dict[str, _Scored]:
    """Score runs on what those with the same seed have in common of each test set, as it is and resampled.

    A resample holds the same images in all test sets.
    """
    tested: list[tuple[FinishedRun, np.ndarray]] = []
    for test_set in test_sets:
        common: dict[Any, np.ndarray] = {}
        for run in runs:
            ids = run.ids[run.members[test_set]]
            common[run.repeat] = np.intersect1d(common[run.repeat], ids) if run.repeat in common else ids
        tested += [(run, np.isin(run.ids, common[run.repeat]) & run.members[test_set]) for run in runs]
    labels, predictions, twins = (
        [getattr(run, name)[chosen] for run, chosen in tested] for name in ("labels", "predictions", "twins")
    )
    classes = len(runs[0].classes)
    points = np.split(
        np.stack(
            [statistics.scores(confusion_matrix(*each, classes)) for each in zip(labels, predictions, strict=True)]
        ),
        len(test_sets),
    )
    resampled = np.split(statistics.bootstrap_scores(labels, predictions, twins, classes), len(test_sets), axis=1)
    places = {run.folder: place for place, run in enumerate(runs)}
    return {name: _Scored(places, points[k], resampled[k]) for k, name in enumerate(test_sets)}


def _summary(rows: Rows, test_set: str) -> pd.DataFrame:
    names = common_test_sets([run for members in rows.values() for run in members])
    records = []
    for name in sorted(names, key=lambda name: name != test_set):
        for row, members in rows.items():
            for metric in METRICS:
                values = [run.number(f"{name}/{metric}") for run in members]
                mean, deviation, low, high = statistics.t_interval(np.array(values))
                # No score is negative, and shares are at most 1.
                low, high = (float(end) for end in np.clip([low, high], 0, 1 if SCORES[metric].factor == 100 else None))
                records.append((name, row, metric, mean, deviation, low, high, len(members)))
    return pd.DataFrame(records, columns=["test_set", "method", "metric", "mean", "sd", "low", "high", "seeds"])


def _differences(rows: Rows, baselines: Mapping[str, str], scored: Mapping[str, _Scored]) -> pd.DataFrame:
    pairs = _to_baselines(rows, baselines)
    families = []
    for test_set, scores in scored.items():
        for metric in TESTED:
            estimates = differences.estimate([scores.difference(runs, metric) for runs in pairs.values()])
            labels = {"test_set": test_set, "method": list(pairs), "metric": metric}
            families.append(pd.concat([pd.DataFrame(labels, index=estimates.index), estimates], axis=1))
    return pd.concat(families, ignore_index=True)


def _twin_changes(rows: Rows, baselines: Mapping[str, str], whole: _Scored, dedup: _Scored | None) -> pd.DataFrame:
    pairs = _to_baselines(rows, baselines) if dedup else {}
    gaps = [dedup.change(whole, runs, PRIMARY) for runs in pairs.values()] if dedup else []
    return pd.concat([pd.DataFrame({"method": list(pairs)}), differences.estimate(gaps)], axis=1)


def _to_baselines(rows: Rows, baselines: Mapping[str, str]) -> dict[str, list[tuple[FinishedRun, FinishedRun]]]:
    """Row -> pairs of its runs and those of its baseline; without the baselines."""
    return {name: paired(rows[name], rows[baselines[name]]) for name in rows if baselines.get(name, name) != name}


def _mcnemar(rows: Rows, baselines: Mapping[str, str], test_set: str | None) -> pd.DataFrame:
    """Majority votes over the seeds that a row and its baseline share, on one test set that all share."""
    records = []
    for name, members in rows.items():
        pairs = paired(members, rows[baselines[name]]) if baselines.get(name, name) != name else []
        if not pairs or test_set is None:
            continue
        right = []
        for side in (0, 1):
            runs = [pair[side] for pair in pairs]
            member = runs[0].members[test_set]
            votes = statistics.majority_vote(
                np.stack([run.predictions[run.members[test_set]] for run in runs]),
                np.stack([run.probabilities[run.members[test_set]] for run in runs]),
            )
            right.append(votes == runs[0].labels[member])
        records.append((name, *statistics.exact_mcnemar(*right)))
    frame = pd.DataFrame(records, columns=["method", "only_method_right", "only_baseline_right", "p"])
    return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy()))


def _ranks(rows: Rows, scored: _Scored) -> Ranks:
    by_repeat = [{run.repeat: scored.places[run.folder] for run in members} for members in rows.values()]
    blocks = [repeat for repeat in by_repeat[0] if all(repeat in each for each in by_repeat)]
    records, p_values = [], {}
    distance = np.nan
    if len(rows) > 1 and len(blocks) > 1:
        places = np.array([[each[repeat] for each in by_repeat] for repeat in blocks])
        for metric in TESTED:
            values = scored.points[places, TESTED.index(metric)]
            if np.isnan(values).any():
                continue
            ranks, p_values[metric], distance = statistics.mean_ranks(values)
            records += [(metric, name, rank) for name, rank in zip(rows, ranks, strict=True)]
    frame = pd.DataFrame(records, columns=["metric", "method", "mean_rank"])
    return Ranks(frame, len(blocks), distance, p_values)


def _cost(rows: Rows) -> pd.DataFrame:
    records = []
    for name, members in rows.items():
        record: dict[str, Any] = {"method": name}
        for key in ("seconds", "images_per_second", "steps"):
            record[key] = np.mean([run.number(f"train/{key}") for run in members])
        for key in ("devices", "precision"):
            values = sorted({str(run.metrics[key]) for run in members if run.metrics.get(key) is not None})
            record[key] = ", ".join(values) or None
        records.append(record)
    return pd.DataFrame(records)
