"""Compare finished runs: ``python -m fer_lightning.compare RUN_OR_SWEEP_FOLDER... [--out FOLDER]``.

Only runs on the same data, split and number of test images share a table. Rows are methods, values are means
over seeds. It reads run folders and nothing else: it loads no models and tests no significance; what it says
about uncertainty is the deviation over seeds and a bootstrap over test images.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError  # type: ignore[import-untyped]

from fer_lightning import figures
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.metrics import confusion_matrix, emotion_indices, macro_f1

SCORES = {
    "test/accuracy": "accuracy",
    "test/balanced_accuracy": "balanced accuracy",
    "test/f1_macro": "macro F1",
    "test/worst_recall": "worst-class recall",
}
"""The headline scores: key in ``metrics.json`` -> heading."""

BASELINE = "none"
"""The method that differences are taken from."""

RESAMPLES = 2000
"""Bootstrap resamples of the test images."""

NEEDED = ("imbalance", "model", "split", "seed", "data", "data_hash", "test/n", *SCORES)
"""What ``metrics.json`` must hold for a run to be compared."""

NOT_A_SETTING = (
    "seed",
    "split.fold",
    "name",
    "tags",
    "resume",
    "logger",
    "data.path",
    "data.source.path",
    "data.source.cache_dir",
    "data.num_workers",
    "trainer.enable_progress_bar",
)
"""Configuration that does not make two runs different experiments: repeats, names, places and display."""


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder.

    Attributes:
        folder: the run folder.
        metrics: ``metrics.json``.
        settings: the composed configuration, flat (``optim.lr``), without what is no setting.
        ids: str, shape (n,): the test images.
        labels: int64, shape (n,).
        predictions: int64, shape (n,).
        fold: the fold of a cross-validation, else None.
    """

    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, str]
    ids: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    fold: str | None

    @property
    def method(self) -> tuple[str, str]:
        """Imbalance method and model."""
        return self.metrics["imbalance"], self.metrics["model"]

    @property
    def repeat(self) -> tuple[Any, str | None]:
        """What distinguishes runs of one row: seed and fold."""
        return self.metrics["seed"], self.fold

    @property
    def test_set(self) -> tuple[tuple[str, ...], bytes]:
        """Equal for runs that were tested on the same images."""
        return self.ids, self.labels.tobytes()


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


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """List the run folders at or below ``paths``, in the order of their names (2 before 10), each once.

    Raises:
        UserError: a path that is no folder, or nothing that looks like a run below any of them.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give the folders of runs or of sweeps")
        for root, folders, files in os.walk(path):
            folders.sort(key=_natural)
            if {"metrics.json", "status.json"} & set(files) or ".hydra" in folders:
                found[Path(root).resolve()] = None
                folders.clear()
    if not found:
        names = ", ".join(map(str, paths))
        raise UserError(f"no run folder in {names}; a run folder holds metrics.json and predictions.csv")
    return list(found)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``2-focal`` before ``10-focal``."""
    return [(int(part or -1), text) for part, text in re.findall(r"(\d*)(\D*)", name)]


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, Mapping):
        return {prefix: str(config)}
    return {
        key: value
        for name, part in config.items()
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _is_setting(key: str) -> bool:
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_A_SETTING)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: the run is not finished or its files do not fit together; the message is the reason.
    """
    try:
        status_file = folder / "status.json"
        if status_file.exists():
            status = json.loads(status_file.read_text())
            if status.get("status") != "done":
                reason = status.get("reason")
                raise ValueError(f"{status.get('status')}: {reason}" if reason else f"{status.get('status')}")
        metrics = json.loads((folder / "metrics.json").read_text())
        missing = [key for key in NEEDED if metrics.get(key) is None]
        if missing:
            raise ValueError(f"metrics.json lacks {', '.join(missing)}")
        table = pd.read_csv(folder / "predictions.csv", usecols=["id", "label", "prediction"], dtype=str)
        if len(table) != metrics["test/n"]:
            raise ValueError(f"predictions.csv has {len(table)} rows but test/n is {metrics['test/n']}")
        labels, predictions = (emotion_indices(table[name].tolist()) for name in ("label", "prediction"))
        config_file = folder / ".hydra" / "config.yaml"
        config = _flat(OmegaConf.to_container(OmegaConf.load(config_file))) if config_file.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"damaged json: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"no {Path(error.filename).name}") from error
    except (OSError, OmegaConfBaseException, YAMLError, pd.errors.ParserError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    settings = {key: value for key, value in config.items() if _is_setting(key)}
    fold = config.get("split.fold")
    return Run(folder, metrics, settings, tuple(table["id"]), labels, predictions, fold)


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Read run folders; returns the finished ones, and for the others the reason why they are left out.

    Of runs that repeat each other (same settings, seed and data) only the newest counts: it is no new seed.
    """
    runs: dict[Any, Run] = {}
    skipped: dict[Path, str] = {}
    for folder in sorted(folders, key=lambda folder: _written(folder)):
        try:
            run = read_run(folder)
        except ValueError as error:
            skipped[folder] = str(error)
            continue
        same = (run.method, run.repeat, _table_key(run), tuple(sorted(run.settings.items())))
        if same in runs:
            skipped[runs[same].folder] = f"the same settings and seed as {folder.name}, which is newer"
        runs[same] = run
    order = {folder: place for place, folder in enumerate(folders)}
    return sorted(runs.values(), key=lambda run: order[run.folder]), skipped


def _written(folder: Path) -> float:
    file = folder / "metrics.json"
    return file.stat().st_mtime if file.exists() else 0.0


def _table_key(run: Run) -> tuple[Any, ...]:
    # The folds of one cross-validation differ in size by a few images; they are repeats of one experiment.
    n = None if run.metrics["split"] == "kfold" else run.metrics["test/n"]
    return run.metrics["data"], run.metrics["data_hash"], run.metrics["split"], n


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
    ``worst_class`` (lowest mean recall), ``recall/<emotion>``, ``test_dedup/f1_macro``, ``train_seconds``,
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
        record["worst_class"] = recalls.idxmin()
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


def _cell(mean: float, deviation: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _cells(comparison: Comparison) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """The table as text: headings, and rows of (text, whether it is the best of its column)."""
    table = comparison.table
    intervals = "f1_macro_low" in table and bool(table["seeds"].min() == 1)
    differences = "f1_macro_difference" in table
    headings = ["method", *SCORES.values()]
    headings += ["macro F1, 95 %"] * intervals + [f"macro F1 vs {BASELINE}"] * differences + ["seeds"]
    columns = [key.removeprefix("test/") for key in SCORES]
    best = {column: table[column].max() for column in columns}
    lines = []
    for _, row in table.iterrows():
        cells = [(str(row["method"]), False)]
        for column in columns:
            text = _cell(row[column], row[f"{column}_sd"])
            if column == "worst_recall":
                text += f" {row['worst_class']}"
            cells.append((text, len(table) > 1 and row[column] == best[column]))
        if intervals:
            cells.append((f"{row['f1_macro_low']:.3f} to {row['f1_macro_high']:.3f}", False))
        if differences:
            cells.append((_difference_cell(row), False))
        cells.append((str(row["seeds"]), False))
        lines.append(cells)
    return headings, lines


def _difference_cell(row: "pd.Series[Any]") -> str:
    if np.isnan(row["f1_macro_difference"]):
        return "-"
    text = f"{row['f1_macro_difference']:+.3f}"
    if "f1_macro_difference_low" in row.index and not np.isnan(row["f1_macro_difference_low"]):
        text += f" ({row['f1_macro_difference_low']:+.3f} to {row['f1_macro_difference_high']:+.3f})"
    return text


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table with its notes; the best of each column is bold."""
    headings, lines = _cells(comparison)
    table = Table(title=escape(comparison.key), title_justify="left", title_style="bold", pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    for cells in lines:
        table.add_row(*(f"[bold]{escape(text)}[/bold]" if best else escape(text) for text, best in cells))
    if comparison.synthetic:
        console.rule("[bold red]SYNTHETIC DATA (drawn faces)", characters="=", style="red")
    console.print(table)
    for note in comparison.notes:
        console.print(f"- {note}", markup=False, highlight=False)


def _markdown(comparison: Comparison, pictures: Sequence[str], folder: str) -> str:
    headings, lines = _cells(comparison)
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    rows += [[f"**{text}**" if best else text for text, best in cells] for cells in lines]
    text = [f"## {comparison.key}", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    text += [f"- {note}" for note in comparison.notes] + [""]
    text += [f"![{Path(name).stem.replace('_', ' ')}]({folder}{name})\n" for name in pictures]
    return "\n".join(text)


def _draw(comparison: Comparison, folder: Path) -> list[str]:
    """Write the pictures of a comparison into ``folder``; returns their names."""
    table = comparison.table.set_index("method")
    columns = {key.removeprefix("test/"): heading for key, heading in SCORES.items()}
    several = table["seeds"].max() > 1
    spread = " · mean ± deviation over seeds" if several else " · one seed: no ranking"
    train_counts = comparison.rows[table.index[0]][0].metrics.get("train/class_counts")
    means = table[list(columns)].rename(columns=columns)
    deviations = table[[f"{column}_sd" for column in columns]].set_axis(list(means.columns), axis=1)
    matrices = {
        name: np.sum([confusion_matrix(run.labels, run.predictions) for run in runs], axis=0)
        for name, runs in comparison.rows.items()
    }
    recalls = table[[f"recall/{emotion}" for emotion in EMOTIONS]].set_axis(list(EMOTIONS), axis=1)
    test_counts = np.bincount(comparison.rows[table.index[0]][0].labels, minlength=len(EMOTIONS)).tolist()
    counts = {"train": [train_counts[emotion] for emotion in EMOTIONS]} if train_counts else {}
    percent = "percent of each true class" + (", all seeds together" if several else "")
    drawn = {
        "method_bars.png": figures.method_bars(means, deviations, "Methods compared", comparison.key + spread),
        "recall_by_class.png": figures.recall_by_class(
            recalls,
            train_counts,
            "Recall of each class",
            comparison.key + (" · mean over seeds" if several else ""),
        ),
        "confusion_matrices.png": figures.confusion_matrices(
            matrices, "Confusion matrices", f"{comparison.key} · {percent}"
        ),
        "class_distribution.png": figures.class_distribution(
            {**counts, "test": test_counts}, "Images per class", comparison.key
        ),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name)
    return list(drawn)


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
    console = console or default_console()
    folders = find_runs(run_dirs)
    runs, skipped = read_runs(folders)
    if not runs:
        folder, reason = next(iter(skipped.items()))
        raise UserError(f"none of the {len(folders)} runs is finished; {folder}: {reason}")
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_table_key(run), []).append(run)
    comparisons = [summarise(group) for group in groups.values()]

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    report = ["# Comparison of methods", ""]
    if any(comparison.synthetic for comparison in comparisons):
        report += ["> **SYNTHETIC DATA**: drawn faces, not FER-2013.", ""]
    if len(comparisons) > 1:
        separate = "These runs differ in data, split or number of test images, so they are in separate tables."
        console.print(separate, highlight=False)
        report += [separate, ""]
    for number, comparison in enumerate(comparisons):
        print_comparison(comparison, console)
        name = f"{number}/" if len(comparisons) > 1 else ""
        (out / name).mkdir(exist_ok=True)
        report.append(_markdown(comparison, _draw(comparison, out / name), name))
    if skipped:
        left_out = [f"{folder}: {reason}" for folder, reason in skipped.items()]
        console.print(f"Left out ({len(left_out)}):", *left_out, sep="\n  ", markup=False, highlight=False)
        report += ["## Left out", "", *(f"- {line}" for line in left_out), ""]
    (out / "report.md").write_text("\n".join(report), encoding="utf-8")
    frame = pd.concat(
        [comparison.table.assign(table=number) for number, comparison in enumerate(comparisons)],
        ignore_index=True,
    )
    frame.to_csv(out / "comparison.csv", index=False)
    console.print(f"Report: {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
    return frame


def default_console() -> Console:
    """A console on standard output, wide enough for the table where there is no terminal (as in a CI log)."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_lightning.compare",
        description="Compare finished runs: a table with means over seeds, a csv, and pictures.",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN_OR_SWEEP_FOLDER", help="folders of runs or of sweeps")
    parser.add_argument("--out", help="report folder (default: report/ in the first folder)")
    options = parser.parse_args(arguments)
    try:
        compare(options.folders, options.out or Path(options.folders[0]) / "report")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
