"""Which method wins, by how much, and is it real: ``python -m fer_lightning.compare RUN_OR_SWEEP_FOLDER...``.

It reads run folders and nothing else, so it loads no models and needs no torch. Runs are compared only if they share
data, labels, split and test images; rows are methods, repeats are seeds (or folds), and methods are paired by them.
"""

import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from rich.console import Console

from fer_lightning.comparison import statistics
from fer_lightning.comparison.rows import (
    BASELINE,
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
from fer_lightning.comparison.runs import Run, find_runs, read_runs
from fer_lightning.comparison.statistics import Estimate
from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics import calibration
from fer_lightning.metrics.calibration import CALIBRATION_BINS, calibration_error
from fer_lightning.metrics.classification import confusion_matrix, precision_recall_f1
from fer_lightning.report import page, sentences, terminal, to_wandb
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "worst_recall", "nll", "ece")
"""What is summarised over seeds."""

TESTED = ("accuracy", "balanced_accuracy", "f1_macro")
"""What differences to the baseline are tested in: the order of ``statistics.scores``."""

PRIMARY = "f1_macro"


@dataclass(frozen=True)
class Comparison:
    """Methods compared on one protocol. Frames are tidy; ``method`` holds row names, in the order of ``rows``.

    Attributes:
        key: data, split and test size in words.
        protocol: heading -> words, for the head of a report.
        baseline: the row that differences are taken from; None when there is no such row. With several models
            each has its own, and this is the first.
        test_set: the primary test set: ``test``, or ``test_large`` for the paper's split.
        synthetic: whether the images are drawn.
        rows: row name -> its runs, baselines first.
        summary: test_set, method, metric (``METRICS``), mean, sd, low, high, seeds. The 95 % interval is Student's t
            over seeds; sd, low and high are NaN for one seed.
        differences: test_set, method, metric (``TESTED``), difference, low, high, p, p_holm, pairs.
        mcnemar: method, only_method_right, only_baseline_right, p, p_holm; empty where seeds have their own test sets.
        ranks: metric, method, mean_rank; ``attrs``: critical_difference (float), friedman_p (by metric), blocks (int),
            metric (the primary one); empty for one method or one seed.
        per_class: method, emotion, n, recall, recall_sd, precision, precision_sd, f1, f1_sd.
        calibration: method, temperature, nll, nll_scaled, ece, ece_scaled, classwise_ece, classwise_ece_scaled.
        reliability: method, scaled (bool), bin_low, bin_high, confidence, accuracy, count.
        confusion: row name -> int64 (7, 7), rows true, all seeds together.
        cost: method, seconds, images_per_second, steps, devices, precision.
        ceiling: emotion, n, agreement, zero_votes: with FER+ votes only.
        paper: method, test_set, paper_accuracy, mean, low, high, n: for the paper's split only.
        sentences: what the data support, and what they do not.
        notes: what a reader must know.
    """

    key: str
    protocol: dict[str, str]
    baseline: str | None
    test_set: str
    synthetic: bool
    rows: dict[str, list[Run]]
    summary: pd.DataFrame
    differences: pd.DataFrame
    mcnemar: pd.DataFrame
    ranks: pd.DataFrame
    per_class: pd.DataFrame
    calibration: pd.DataFrame
    reliability: pd.DataFrame
    confusion: dict[str, np.ndarray]
    cost: pd.DataFrame
    ceiling: pd.DataFrame | None
    paper: pd.DataFrame | None
    sentences: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Scored:
    """Scores of runs on one test set: place of a run in the arrays, points (runs, 3), resampled (R, runs, 3)."""

    places: dict[Path, int]
    points: np.ndarray
    resampled: np.ndarray

    def difference(self, pairs: Sequence[tuple[Run, Run]], metric: str) -> Estimate:
        """The first of each pair minus the second."""
        k = TESTED.index(metric)
        left, right = ([self.places[pair[side].folder] for pair in pairs] for side in (0, 1))
        gaps = self.points[left, k] - self.points[right, k]
        return statistics.paired_difference(gaps, self.resampled[:, left, k] - self.resampled[:, right, k])


def analyse(runs: Sequence[Run], baseline: str | None = None, votes: str | Path | None = None) -> Comparison:
    """Compare runs.

    Args:
        runs: one or more finished runs.
        baseline: imbalance method or row that differences are taken from; default: ``none`` where there is one, else
            the first method.
        votes: FER+ votes, for the ceiling.

    Raises:
        UserError: the runs are not comparable, there is no such baseline, or the votes cannot be read.
    """
    refuse_incomparable(runs)
    named = named_rows(runs)
    baselines, notes = find_baselines(named, baseline)
    bases = set(baselines.values())
    rows = dict(sorted(named.items(), key=lambda item: item[0] not in bases))
    runs = [run for members in rows.values() for run in members]
    test_set = primary_test_set(runs[0])
    shared = share_images(runs, test_set)
    scored = {name: _score(runs, name) for name in (test_set, f"{test_set}_dedup") if is_tested(runs, name)}
    summary = _summary(rows, test_set)
    per_class = _per_class(rows, test_set)
    differences = _differences(rows, baselines, scored)
    synthetic = any(bool(run.metrics.get("synthetic")) for run in runs)
    seeds = [len(members) for members in rows.values()]
    sizes = {name: max(int(run.members[name].sum()) for run in runs) for name in common_test_sets(runs)}

    means = summary[(summary["test_set"] == test_set) & (summary["metric"] == PRIMARY)].set_index("method")["mean"]
    all_pairs = {
        pair: scored[test_set].difference(paired(rows[pair[0]], rows[pair[1]]), PRIMARY)
        for pair in combinations(rows, 2)
    }
    common = [len(paired(rows[one], rows[other])) for one, other in all_pairs]
    fewest = min([*seeds, *(count for count in common if count)])
    statements = [
        sentences.winner({str(name): float(mean) for name, mean in means.items()}, all_pairs, fewest, PRIMARY),
        *sentences.against_baseline(differences, baselines, test_set),
    ]
    paper = None
    if test_set == "test_large":
        paper = sentences.paper(
            {name: members[0].metrics["imbalance"] for name, members in rows.items()}, summary, sizes
        )
        statements.append(sentences.honest_sentence(rows, paper, summary, sizes, max(seeds)))
    statements += sentences.limits(differences, per_class, test_set, seeds, synthetic)
    ranks = _ranks(rows, scored[test_set])
    first_base = next((name for name in rows if name in bases), None)
    return Comparison(
        key=sentences.key(runs, test_set, sizes[test_set]),
        protocol=sentences.protocol(rows, test_set, sizes, shared, first_base),
        baseline=first_base,
        test_set=test_set,
        synthetic=synthetic,
        rows=rows,
        summary=summary,
        differences=differences,
        mcnemar=_mcnemar(rows, baselines, test_set if shared else None),
        ranks=ranks,
        per_class=per_class,
        calibration=_calibration(rows, test_set),
        reliability=_reliability(rows, test_set),
        confusion={
            name: np.sum([_confusion(run, test_set) for run in members], axis=0) for name, members in rows.items()
        },
        cost=_cost(rows),
        ceiling=None if votes is None else _ceiling(runs, test_set, votes),
        paper=paper,
        sentences=statements,
        notes=[*notes, *sentences.notes(rows, baselines, test_set, shared, ranks)],
    )


def _score(runs: Sequence[Run], test_set: str) -> _Scored:
    """Score runs on what those with the same seed have in common of a test set, as it is and resampled."""
    common: dict[Any, np.ndarray] = {}
    for run in runs:
        ids = run.ids[run.members[test_set]]
        common[run.repeat] = np.intersect1d(common[run.repeat], ids) if run.repeat in common else ids
    chosen = [np.isin(run.ids, common[run.repeat]) & run.members[test_set] for run in runs]
    labels, predictions, twins = (
        [getattr(run, name)[rows] for run, rows in zip(runs, chosen, strict=True)]
        for name in ("labels", "predictions", "twins")
    )
    points = statistics.scores(np.stack([confusion_matrix(*each) for each in zip(labels, predictions, strict=True)]))
    empty = any(not len(each) for each in labels)
    resampled = (
        np.full((0, len(runs), len(TESTED)), np.nan)
        if empty
        else statistics.bootstrap_scores(labels, predictions, twins, len(EMOTIONS))
    )
    return _Scored({run.folder: place for place, run in enumerate(runs)}, points, resampled)


def _summary(rows: Rows, test_set: str) -> pd.DataFrame:
    names = common_test_sets([run for members in rows.values() for run in members])
    records = []
    for name in sorted(names, key=lambda name: name != test_set):
        for row, members in rows.items():
            for metric in METRICS:
                values = [_number(run.metrics.get(f"{name}/{metric}")) for run in members]
                mean, deviation, low, high = statistics.t_interval(np.array(values))
                records.append((name, row, metric, mean, deviation, low, high, len(members)))
    return pd.DataFrame(records, columns=["test_set", "method", "metric", "mean", "sd", "low", "high", "seeds"])


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _differences(rows: Rows, baselines: Mapping[str, str], scored: Mapping[str, _Scored]) -> pd.DataFrame:
    records = []
    methods = [name for name in rows if baselines.get(name, name) != name]
    for test_set, scores in scored.items():
        for metric in TESTED:
            pairs = {name: paired(rows[name], rows[baselines[name]]) for name in methods}
            found = {name: scores.difference(pairs[name], metric) for name in methods}
            adjusted = statistics.holm([estimate.p for estimate in found.values()])
            for (name, estimate), p_holm in zip(found.items(), adjusted, strict=True):
                numbers = (estimate.value, estimate.low, estimate.high, estimate.p, p_holm, len(pairs[name]))
                records.append((test_set, name, metric, *numbers))
    columns = ["test_set", "method", "metric", "difference", "low", "high", "p", "p_holm", "pairs"]
    return pd.DataFrame(records, columns=columns)


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


def _ranks(rows: Rows, scored: _Scored) -> pd.DataFrame:
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
    frame.attrs = {
        "critical_difference": distance,
        "friedman_p": p_values,
        "blocks": len(blocks),
        "metric": PRIMARY,
    }
    return frame


def _confusion(run: Run, test_set: str) -> np.ndarray:
    member = run.members[test_set]
    return confusion_matrix(run.labels[member], run.predictions[member])


def _per_class(rows: Rows, test_set: str) -> pd.DataFrame:
    records = []
    for name, members in rows.items():
        matrices = np.stack([_confusion(run, test_set) for run in members])
        precision, recall, f1 = precision_recall_f1(matrices)
        for k, emotion in enumerate(EMOTIONS):
            scores = (statistics.t_interval(each[:, k])[:2] for each in (recall, precision, f1))
            n = int(np.round(matrices[:, k].sum(axis=1).mean()))
            records.append((name, emotion, n, *(number for pair in scores for number in pair)))
    columns = ["method", "emotion", "n", "recall", "recall_sd", "precision", "precision_sd", "f1", "f1_sd"]
    return pd.DataFrame(records, columns=columns)


def _answers(run: Run, test_set: str, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, NaN when there is no temperature to scale with, and labels."""
    member = run.members[test_set]
    probabilities = run.probabilities[member]
    if scaled:
        temperature = _number(run.metrics.get("temperature"))
        probabilities = calibration.apply_temperature(probabilities, temperature)
    return probabilities, run.labels[member]


def _calibration(rows: Rows, test_set: str) -> pd.DataFrame:
    errors: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "nll": calibration.nll,
        "ece": calibration_error,
        "classwise_ece": calibration.classwise_calibration_error,
    }
    records = []
    for name, members in rows.items():
        temperatures = [_number(run.metrics.get("temperature")) for run in members]
        record: dict[str, Any] = {"method": name, "temperature": float(np.mean(temperatures))}
        for key, error in errors.items():
            record[key] = np.mean([error(*_answers(run, test_set, scaled=False)) for run in members])
            known = not np.isnan(temperatures).any()
            values = [error(*_answers(run, test_set, scaled=True)) for run in members] if known else [np.nan]
            record[f"{key}_scaled"] = np.mean(values)
        records.append(record)
    return pd.DataFrame(records)


def _reliability(rows: Rows, test_set: str) -> pd.DataFrame:
    frames = []
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    for name, members in rows.items():
        known = all(run.metrics.get("temperature") is not None for run in members)
        for scaled in (False, True) if known else (False,):
            answers = [_answers(run, test_set, scaled) for run in members]
            probabilities, labels = (np.concatenate(part) for part in zip(*answers, strict=True))
            confidence, accuracy, count = calibration.reliability(probabilities, labels)
            columns = {"bin_low": edges[:-1], "bin_high": edges[1:], "confidence": confidence, "accuracy": accuracy}
            frames.append(pd.DataFrame({"method": name, "scaled": scaled, **columns, "count": count}))
    return pd.concat(frames, ignore_index=True)


def _cost(rows: Rows) -> pd.DataFrame:
    records = []
    for name, members in rows.items():
        record: dict[str, Any] = {"method": name}
        for key in ("seconds", "images_per_second", "steps"):
            record[key] = np.mean([_number(run.metrics.get(f"train/{key}")) for run in members])
        for key in ("devices", "precision"):
            values = sorted({str(run.metrics[key]) for run in members if run.metrics.get(key) is not None})
            record[key] = ", ".join(values) or None
        records.append(record)
    return pd.DataFrame(records)


def _ceiling(runs: Sequence[Run], test_set: str, votes: str | Path) -> pd.DataFrame:
    if runs[0].protocol["labels"] != "fer":
        raise UserError(
            f"--ferplus-votes: these runs have labels={runs[0].protocol['labels']}, the votes' own; leave it out"
        )
    from fer_lightning.data.ferplus import ceiling

    labels: dict[str, str] = {}
    for run in runs:
        member = run.members[test_set]
        labels |= dict(zip(run.ids[member].tolist(), np.array(EMOTIONS)[run.labels[member]].tolist(), strict=True))
    return ceiling(list(labels), list(labels.values()), str(votes))


def compare(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    console: Console | None = None,
    baseline: str | None = None,
    votes: str | Path | None = None,
) -> Comparison:
    """Compare the finished runs at or below ``run_dirs`` and write a report.

    Writes ``summary.csv``, ``differences.csv``, ``report.md`` with its pictures, and ``report.html`` into ``out``.
    Folders of unfinished or failed runs are noted with the reason.

    Args:
        run_dirs: folders of runs or of sweeps.
        out: the report folder; made when missing.
        console: where the tables are printed; None prints to standard output.
        baseline: as for ``analyse``.
        votes: as for ``analyse``.

    Raises:
        UserError: no run folders, none of them finished, or as ``analyse``.
    """
    console = console or terminal.default_console()
    folders = find_runs(run_dirs)
    runs, skipped = read_runs(folders)
    if not runs:
        folder, reason = next(iter(skipped.items()))
        raise UserError(f"none of the {len(folders)} runs is finished; {folder}: {reason}")
    comparison = analyse(runs, baseline, votes)
    options = {"--out": out, "--baseline": baseline, "--ferplus-votes": votes}
    given = [str(word) for key, value in options.items() if value is not None for word in (key, value)]
    places = [os.path.commonpath(run_dirs)] if len(run_dirs) > 3 else run_dirs  # a sweep hands over its jobs
    shown = [
        place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place for place in map(Path, places)
    ]
    command = shlex.join([*map(str, shown), *given])
    comparison.protocol["command"] = f"python -m fer_lightning.compare {command}"
    comparison.notes.extend(f"Left out: {folder}: {reason}." for folder, reason in skipped.items())
    terminal.print_comparison(comparison, console)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    comparison.summary.to_csv(out / "summary.csv", index=False)
    comparison.differences.to_csv(out / "differences.csv", index=False)
    pictures = terminal.draw(comparison, out)
    (out / "report.md").write_text(terminal.markdown(comparison, pictures), encoding="utf-8")
    (out / "report.html").write_text(page.render(comparison), encoding="utf-8")
    console.print(f"Report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return comparison


def compare_sweep(folders: Sequence[Path], out: Path) -> Path | None:
    """Compare a sweep's tested runs at its end, in W&B too when they log there.

    Returns:
        The report folder; None, and a line that says why, when the runs cannot be compared.
    """
    try:
        comparison = compare(folders, out)
    except UserError as error:
        print(f"[sweep] no comparison: {error}", flush=True)
        return None
    runs = [run for members in comparison.rows.values() for run in members]
    logged = next((run.folder for run in runs if (run.folder / "wandb").is_dir()), None)
    if logged is not None:
        logger = OmegaConf.load(logged / ".hydra" / "config.yaml").logger
        log_to_wandb(comparison, out, logger.project, logger.entity)
    return out


def log_to_wandb(comparison: Comparison, out: Path, project: str, entity: str | None = None) -> None:
    """Log the report to W&B; whatever happens there is a warning."""
    # Imports torch, which comparing does not need.

    to_wandb.log_report(comparison, out, project, entity)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(
        prog="python -m fer_lightning.compare",
        description="Which method wins, by how much, and is it real: tables, tests, pictures and a page in report/.",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN_OR_SWEEP_FOLDER", help="folders of runs or of sweeps")
    parser.add_argument("--out", help="report folder (default: report/ in the first folder)")
    parser.add_argument("--baseline", metavar="METHOD", help=f"what differences are taken from (default: {BASELINE})")
    parser.add_argument("--ferplus-votes", metavar="FILE", help="FER+ votes: how far raters agree with the labels")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the report to this W&B project as well")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(options.out or Path(options.folders[0]) / "report")
    comparison = compare(options.folders, out, None, options.baseline, options.ferplus_votes)
    if options.wandb:
        log_to_wandb(comparison, out, options.wandb)


if __name__ == "__main__":
    run_tool(main)
