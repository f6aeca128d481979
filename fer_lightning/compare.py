"""Compare finished runs: ``python -m fer_lightning.compare RUN_OR_SWEEP_FOLDER... [--out FOLDER]``.

Only runs on the same data, split and number of test images share a table. Rows are methods, values are means
over seeds. It reads run folders and nothing else: it loads no models and tests no significance; what it says
about uncertainty is the deviation over seeds and a bootstrap over test images.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from fer_lightning import figures, report
from fer_lightning.config import run_tool
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.metrics import macro_f1
from fer_lightning.runs import BASELINE, SCORES, Run, find_runs, read_runs, table_key

RESAMPLES = 2000
"""Bootstrap resamples of the test images."""


@dataclass(frozen=True)
class Comparison:
    """One table of comparable runs.

    Attributes:
        key: data, split and test size in words.
        table: one row per method, in the order of ``rows``.
        rows: row name -> its runs.
        notes: what a reader must know, one sentence each.
    """

    key: str
    table: pd.DataFrame
    rows: dict[str, list[Run]]
    notes: list[str]

    @property
    def synthetic(self) -> bool:
        """Whether the images are drawn."""
        return any(run.metrics.get("synthetic") for runs in self.rows.values() for run in runs)


def _rows(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sort runs into named rows: one per method, model and combination of settings that vary within them."""
    several_models = len({run.metrics["model"] for run in runs}) > 1
    methods: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    rows: dict[str, list[Run]] = {}
    for (imbalance, model), members in methods.items():
        varying = _varying([run.settings for run in members])
        for run in members:
            parts = [model] if several_models else []
            parts += [f"{key.rsplit('.', 1)[-1]}={run.settings.get(key)}" for key in varying]
            rows.setdefault(" ".join([imbalance, *parts]), []).append(run)
    # The baseline first: everything else is read against it. The rest keeps the order of the runs.
    return dict(sorted(rows.items(), key=lambda item: item[1][0].metrics["imbalance"] != BASELINE))


def _varying(settings: Sequence[Mapping[str, str]]) -> list[str]:
    keys = sorted(set().union(*settings))
    return [key for key in keys if len({setting.get(key) for setting in settings}) > 1]


def bootstrap_f1(runs: Sequence[Run], seed: int = 0) -> np.ndarray:
    """Macro F1 of runs on resampled test images: the same resamples for all, so that differences are paired.

    Args:
        runs: runs with the same test images.
        seed: of the resampling.

    Returns:
        float64, shape (``RESAMPLES``, number of runs).
    """
    n, classes = len(runs[0].labels), len(EMOTIONS)
    rng = np.random.default_rng(seed)
    scores = np.empty((RESAMPLES, len(runs)))
    cells = [run.labels * classes + run.predictions for run in runs]
    for number in range(RESAMPLES):
        drawn = rng.integers(n, size=n)
        matrices = [np.bincount(cell[drawn], minlength=classes**2).reshape(classes, classes) for cell in cells]
        scores[number] = macro_f1(np.stack(matrices))
    return scores


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)


def _recalls(runs: Sequence[Run]) -> pd.Series:
    """Mean recall per emotion over runs."""
    each = [[_number(run.metrics.get(f"test/recall/{emotion}")) for emotion in EMOTIONS] for run in runs]
    return pd.DataFrame(each, columns=list(EMOTIONS)).mean()


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def summarise(runs: Sequence[Run]) -> Comparison:
    """Put comparable runs into one table.

    Columns: ``method``, ``imbalance``, ``model``, ``split``, ``data``, ``data_hash``, ``test_n``, ``seeds``
    (number of runs), for every headline score its mean and ``_sd`` (sample deviation, NaN for one seed),
    ``worst_class`` (empty when the runs disagree), ``recall/<emotion>``, ``test_dedup/f1_macro``, ``train_seconds``,
    ``f1_macro_low``/``_high`` (95 % bootstrap interval over test images with the trained models as they are),
    and ``f1_macro_difference`` to the baseline of the same seeds and test images, with its ``_low``/``_high``
    and the number of ``_pairs``.
    """
    rows = _rows(runs)
    resampled: dict[Path, np.ndarray] = {}
    one_test_set = len({run.test_set for run in runs}) == 1
    if one_test_set:
        scores = bootstrap_f1(runs)
        resampled = {run.folder: scores[:, number] for number, run in enumerate(runs)}
    records = []
    for name, members in rows.items():
        first = members[0].metrics
        record: dict[str, Any] = {
            "method": name,
            "imbalance": first["imbalance"],
            "model": first["model"],
            "split": first["split"],
            "data": first["data"],
            "data_hash": first["data_hash"],
            "test_n": first["test/n"],
            "seeds": len(members),
        }
        for key in (*SCORES, "test_dedup/f1_macro"):
            values = np.array([_number(run.metrics.get(key)) for run in members])
            column = key.removeprefix("test/")
            record[column] = values.mean()
            record[f"{column}_sd"] = values.std(ddof=1) if len(values) > 1 else np.nan
        recalls = _recalls(members)
        worst = {_recalls([run]).idxmin() for run in members}
        record["worst_class"] = worst.pop() if len(worst) == 1 else ""
        record |= {f"recall/{emotion}": value for emotion, value in recalls.items()}
        record["train_seconds"] = np.mean([_number(run.metrics.get("train/seconds")) for run in members])
        if one_test_set:
            sample = np.mean([resampled[run.folder] for run in members], axis=0)
            record["f1_macro_low"], record["f1_macro_high"] = _interval(sample)
        record |= _difference(members, _baseline(rows, members[0]), resampled)
        records.append(record)
    first = runs[0].metrics
    n = "folds" if first["split"] == "kfold" else f"test n = {first['test/n']:,}"
    key = f"{figures.data_name(first)} · split {first['split']} · {n}"
    return Comparison(key, pd.DataFrame(records), rows, _notes(rows, one_test_set))


def _baseline(rows: Mapping[str, list[Run]], run: Run) -> list[Run]:
    """The runs of the one baseline row with this run's model; empty when there is none, or for itself."""
    if run.metrics["imbalance"] == BASELINE:
        return []
    candidates = [members for members in rows.values() if members[0].method == (BASELINE, run.metrics["model"])]
    return candidates[0] if len(candidates) == 1 else []


def _difference(
    members: Sequence[Run], baseline: Sequence[Run], resampled: Mapping[Path, np.ndarray]
) -> dict[str, float]:
    partners = {(run.repeat, run.test_set): run for run in baseline}
    pairs = [(run, partners[run.repeat, run.test_set]) for run in members if (run.repeat, run.test_set) in partners]
    if not pairs:
        return {}
    gaps = [float(run.metrics["test/f1_macro"] - base.metrics["test/f1_macro"]) for run, base in pairs]
    found = {"f1_macro_difference": float(np.mean(gaps)), "f1_macro_difference_pairs": float(len(pairs))}
    if resampled:
        sample = np.mean([resampled[run.folder] - resampled[base.folder] for run, base in pairs], axis=0)
        found["f1_macro_difference_low"], found["f1_macro_difference_high"] = _interval(sample)
    return found


def _notes(rows: Mapping[str, list[Run]], one_test_set: bool) -> list[str]:
    runs = [run for members in rows.values() for run in members]
    notes = []
    if any(run.metrics.get("synthetic") for run in runs):
        notes.append("SYNTHETIC DATA: these faces are drawn; the scores say nothing about FER-2013 or real faces.")
    counts = {len(members) for members in rows.values()}
    if min(counts) == 1:
        notes.append(
            "One seed cannot rank methods: a second seed may turn the order round. Repeat with more seeds, "
            "as in `-m seed=0,1,2,3,4`."
        )
    elif len(counts) > 1:
        notes.append(f"The methods have unequal numbers of seeds ({min(counts)} to {max(counts)}).")
    if one_test_set:
        notes.append(
            f"Intervals are 95 % bootstrap intervals over the test images ({RESAMPLES:,} resamples) for the "
            "models as trained; they leave out how much training itself varies from seed to seed."
        )
    else:
        notes.append("The runs were tested on different images (other seeds or folds), so there are no intervals.")
    shared = [key for key in _varying([run.settings for run in runs]) if not key.startswith(("imbalance.", "model."))]
    if shared:
        notes.append(f"Not the same in all runs: {', '.join(shared)}.")
    commits = {run.metrics.get("git_commit") for run in runs}
    if len(commits) > 1:
        notes.append(f"The runs come from different versions of the code: {', '.join(sorted(map(str, commits)))}.")
    return notes


def compare(run_dirs: Sequence[str | Path], out: str | Path, console: Console | None = None) -> pd.DataFrame:
    """Compare the finished runs at or below ``run_dirs`` and write a report.

    Writes ``report.md``, ``comparison.csv`` and the pictures into ``out``; with several tables the pictures
    of each are in a numbered folder. Folders of unfinished or failed runs are listed with the reason.

    Args:
        run_dirs: folders of runs or of sweeps.
        out: the report folder; made when missing.
        console: where the tables are printed; None prints to standard output.

    Returns:
        All tables in one frame with a column ``table``; see ``summarise`` for the others.

    Raises:
        UserError: no run folders, or none of them finished.
    """
    console = console or report.default_console()
    folders = find_runs(run_dirs)
    runs, skipped = read_runs(folders)
    if not runs:
        folder, reason = next(iter(skipped.items()))
        raise UserError(f"none of the {len(folders)} runs is finished; {folder}: {reason}")
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(table_key(run), []).append(run)
    comparisons = [summarise(group) for group in groups.values()]

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Comparison of methods", ""]
    if any(comparison.synthetic for comparison in comparisons):
        lines += ["> **SYNTHETIC DATA**: drawn faces, not FER-2013.", ""]
    if len(comparisons) > 1:
        separate = "These runs differ in data, split or number of test images, so they are in separate tables."
        console.print(separate, highlight=False)
        lines += [separate, ""]
    for number, comparison in enumerate(comparisons):
        report.print_comparison(comparison, console)
        name = f"{number}/" if len(comparisons) > 1 else ""
        (out / name).mkdir(exist_ok=True)
        lines.append(report.markdown(comparison, report.draw(comparison, out / name), name))
    if skipped:
        left_out = [f"{folder}: {reason}" for folder, reason in skipped.items()]
        console.print(f"Left out ({len(left_out)}):", *left_out, sep="\n  ", markup=False, highlight=False)
        lines += ["## Left out", "", *(f"- {line}" for line in left_out), ""]
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")
    frame = pd.concat(
        [comparison.table.assign(table=number) for number, comparison in enumerate(comparisons)],
        ignore_index=True,
    )
    frame.to_csv(out / "comparison.csv", index=False)
    console.print(f"Report: {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
    return frame


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lightning.compare",
        description="Compare finished runs: a table with means over seeds, a csv, and pictures.",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN_OR_SWEEP_FOLDER", help="folders of runs or of sweeps")
    parser.add_argument("--out", help="report folder (default: report/ in the first folder)")
    options = parser.parse_args(arguments)
    compare(options.folders, options.out or Path(options.folders[0]) / "report")


if __name__ == "__main__":
    run_tool(main)
