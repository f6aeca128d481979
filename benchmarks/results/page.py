"""``docs/results.md`` and ``docs/results/`` from what ``run.py`` packed: a table's numbers are read, none typed.

    python benchmarks/results/page.py packed/*.tar.xz packed/speed.jsonl

Parts that were not run are listed with their commands. A rehearsal is refused, unless ``--out`` names another folder.
"""

import argparse
import contextlib
import json
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from run import PARTS, ROOT, setting

sys.path.insert(0, str(ROOT))

from fer_lightning.comparison.paper import ACCURACY as PAPER
from fer_lightning.comparison.runs import find_runs
from fer_lightning.metrics.names import HEADLINES, SCORES
from fer_lightning.presentation.escapes import markdown_table, to_markdown
from fer_lightning.report import sentences
from fer_lightning.report.write import compare_and_report
from fer_lightning.runtime.provenance import git_commit

HEAD = """\
# Results on FER-2013

The official split: trained on Training, selected on PublicTest, PrivateTest reported once for each finished recipe. The
paper's protocol has a split of its own, whose pool holds PrivateTest as well: its test images are no fresh ones.
`test_dedup`, or "without twins", leaves out the test images with a
pixel-identical twin among the training images. A number ± another is the mean and the standard deviation over seeds, in
percent; parentheses after it are the 95 % t interval of the mean. `tf_efficientnetv2_b0.safetensors` stands for
ImageNet weights (those of Keras Applications by timm's names, float16, without classifier); without `model.weights`,
timm's own are fetched from its hub. `benchmarks/results/run.py` has the parts and their sweeps; this page is written by
`benchmarks/results/page.py` from what it packed. The reports in `results/` have the layout and the
sentences of the commit that wrote them: {commit}.
"""

TITLES = {
    "paper_tune": "The paper's open learning rate",
    "paper": "The paper's table",
    "paper_full": "The paper's split with a full training budget",
    "tune": "The recipe that the methods share",
    "methods": "Methods on one recipe",
    "search": "The search for the strongest single model",
    "strongest": "The strongest single model",
    "speed": "Speed",
    "speed_sweep": "Speed of a sweep",
}


PLACES = {"hydra/launcher", "jobs_per_device", "logger", "model", "model.weights", "data.path", "hydra.sweep.dir"}
"""Overrides that every part's sweep is given."""


RUNS = "outputs/results"
"""Where ``run.py`` keeps the sweeps."""

WHY = Path(__file__).parent / "missed.md"
"""Written by hand: what no table can say."""


class Packed:
    """One part, unpacked.

    Args:
        folder: its sweep's folder.
        out: where its report goes.
        votes: of FER+'s raters, for the report; None leaves them out.
    """

    def __init__(self, folder: Path, out: Path, votes: Path | None) -> None:
        self.folder, self.out, self.votes = folder, out, votes
        self.calls: list[dict[str, Any]] = [json.loads(line) for line in _lines(folder / "calls.jsonl")]
        self.metrics = {
            file.parent: json.loads(file.read_text()) for file in sorted(folder.glob("*/metrics.json"), key=_number)
        }

    def report(self) -> pd.DataFrame:
        """Write the comparison to ``out``; returns its ``summary.csv``."""
        made = Path("docs", "results", self.folder.name)
        c = compare_and_report(find_runs([self.folder]), made, votes=self.votes)
        groups = (sentences.on_differences, sentences.compare_with_paper, sentences.on_seeds, sentences.on_classes)
        lines = [sentences.answer(c), *(line for group in groups for line in group(c))]
        self.words = "".join(f"- {line}\n" for line in lines)
        shutil.copytree(made, self.out, dirs_exist_ok=True)
        return pd.read_csv(self.out / "summary.csv")

    @property
    def on_gpu(self) -> bool:
        """Whether every call had one."""
        return all(call["gpu"] for call in self.calls)

    def changes(self, name: str) -> list[str]:
        """The overrides of its calls that the part itself has not."""
        words = (word for call in self.calls for word in call["command"].split() if "=" in word)
        return [
            word for word in dict.fromkeys(words) if setting(word) not in PLACES and word not in PARTS[name].overrides
        ]

    def provenance(self) -> str:
        """Commands, commit, hardware, jobs and seconds, as markdown."""
        commands = "\n".join(dict.fromkeys(shlex.join(call["command"].split()) for call in self.calls))
        machines = ", ".join(dict.fromkeys(call["machine"] for call in self.calls))
        commits = ", ".join(dict.fromkeys(f"`{call['commit']}`" for call in self.calls))
        seconds = " + ".join(f"{call['seconds']:,}" for call in self.calls)
        steps = sum(found["train/seconds"] for found in self.metrics.values())
        return (
            f"```\n{commands}\n```\n\n{len(self.metrics)} runs in {seconds} s wall ({steps:,.0f} s in training steps, "
            f"several runs at a time), commit {commits}, {machines}.\n"
        )


def paper(part: Packed) -> str:
    """Ours beside the paper's, on each arm's own test set; then on both."""
    scores = part.report()
    accuracy = scores[scores["metric"] == "accuracy"].set_index(["test_set", "method"])
    rows, missed = [], []
    for method in dict.fromkeys(name for _, name in accuracy.index):
        own, theirs = PAPER.get(method, ("test_large", None))
        cells = [_interval(accuracy.loc[(name, method)]) for name in _paper_sets(accuracy)]
        found = accuracy.loc[(own, method), "mean"]
        if theirs is not None and found <= theirs:
            missed.append(method)
        result = "-" if theirs is None else f"{100 * theirs:.2f} on {'1,050' if own == 'test_balanced' else '7,365'}"
        rows.append([method, result, *cells])
    best = accuracy.loc["test_large", "mean"].max()
    bar = 0.70 if part.folder.name == "paper_full" else 0.66
    table = _table(["arm", "the paper", "7,365 images", "without twins", "1,050 images", "without twins"], rows)
    arms = "every arm is above the paper's" if not missed else f"not above the paper's: {', '.join(missed)}"
    bars = f"{_bar('every arm above the paper', not missed, arms)}{_at_least('best arm, 7,365', best, bar)}"
    return f"{table}\n{part.words}\n{bars}"


def methods(part: Packed) -> str:
    """Every method's scores, and whether one beats the baseline in both metrics."""
    scores = part.report()
    blocks = []
    for name in ("test", "test_dedup"):
        wide = scores[scores["test_set"] == name].pivot(index="method", columns="metric", values=["mean", "sd"])
        wide = wide.sort_values(("mean", "f1_macro"), ascending=False)
        rows = [
            [
                method,
                *(f"{100 * row['mean', key]:.2f} ± {100 * row['sd', key]:.2f}" for key in SHOWN),
            ]
            for method, row in wide.iterrows()
        ]
        blocks.append(f"{name}, mean ± deviation over seeds, percent\n\n{_table(['method', *SHOWN.values()], rows)}")
    gaps = pd.read_csv(part.out / "differences.csv")
    clear = gaps[(gaps["test_set"] == "test") & (gaps["difference"] > 0) & (gaps["p_holm"] < 0.05)]
    both = [
        method for method, found in clear.groupby("method")["metric"] if {"f1_macro", "balanced_accuracy"} <= set(found)
    ]
    result = ", ".join(both) or "none does"
    bar = _bar("a method beats `none` in macro F1 and in balanced accuracy, Holm p < .05", bool(both), result)
    count, seeds = scores["method"].nunique(), scores["seeds"].max()
    return "\n".join([f"{count} methods, at most {seeds} seeds each.\n", part.words, *blocks, bar])


def trials(part: Packed) -> str:
    """The ten best settings on validation."""
    table = pd.read_csv(part.folder / "trials.csv", keep_default_na=False)  # null is a setting's value
    part.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(part.out / "trials.csv", index=False)
    rows = [[str(cell) if isinstance(cell, str) else f"{cell:.4g}" for cell in row] for row in table.head(10).values]
    best = "" if len(table) <= 10 else ", the ten best"
    return f"{len(table)} settings{best}; all in [trials.csv](results/{part.folder.name}/trials.csv)\n\n" + _table(
        list(table.columns), rows
    )


def strongest(part: Packed) -> str:
    """Each seed, and the mean, plain and with test-time augmentation."""
    scores = []
    for run, found in part.metrics.items():
        augmented = json.loads((run / "tta" / "metrics.json").read_text()) if (run / "tta").exists() else {}
        scores.append({**augmented, **found})
    names = [key.removesuffix("/accuracy") for key in scores[0] if key.startswith("test") and key.endswith("/accuracy")]
    rows = []
    for name in names:
        for key in ("accuracy", "balanced_accuracy", "f1_macro"):
            values = pd.Series([100 * found[f"{name}/{key}"] for found in scores])
            seeds = " ".join(f"{value:.2f}" for value in values)
            rows.append([name, SHOWN[key], f"{values.mean():.2f} ± {values.std():.2f}", seeds])
    mean = {key: sum(found[f"test/{key}"] for found in scores) / len(scores) for key in ("accuracy", "f1_macro")}
    bars = [_at_least("accuracy without test-time augmentation", mean["accuracy"], bar) for bar in (0.71, 0.742)]
    bars.append(_at_least("macro F1", mean["f1_macro"], 0.72))
    return _table(["test set", "score", "mean ± deviation, %", "seeds"], rows) + "\n" + "".join(bars)


def sweep_seconds(part: Packed) -> str:
    """How long a sweep took, with all its calls' starts."""
    seconds = sum(call["seconds"] for call in part.calls)
    return _bar("20 runs in less than 1,200 s", len(part.metrics) == 20 and seconds < 1200, f"{seconds:,} s")


SHOWN = {key: SCORES[key].heading for key in HEADLINES}
SECTIONS: dict[str, Callable[[Packed], str]] = {
    "paper_tune": trials,
    "paper": paper,
    "paper_full": paper,
    "tune": trials,
    "methods": methods,
    "search": trials,
    "strongest": strongest,
    "speed_sweep": sweep_seconds,
}


def speed(lines: Sequence[Mapping[str, Any]]) -> str:
    """The tables of ``benchmarks/gpu.py``."""
    blocks = []
    for line in lines:
        columns = list(line["rows"][0])
        cells = [
            [f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in line["rows"]
        ]
        result = f"{line['benchmark']}; commit `{line['commit']}`, {line['machine']}"
        blocks.append(f"{result}\n\n{_table(columns, cells)}")
    return "\n".join(blocks)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path, nargs="*", help="archives, and speed.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of results.md and results/")
    parser.add_argument("--ferplus-votes", type=Path, metavar="FILE", help="for the raters' agreement in the reports")
    options = parser.parse_args()
    out, votes = options.out.absolute(), options.ferplus_votes
    archives = [file.absolute() for file in options.packed if file.suffix != ".jsonl"]
    lines = [json.loads(line) for file in options.packed if file.suffix == ".jsonl" for line in _lines(file)]
    # The reports name the files they are made of: as they lie in a checkout, wherever this one is.
    with tempfile.TemporaryDirectory() as checkout, contextlib.ExitStack() as inside:
        if votes:
            shutil.copy(votes, Path(checkout) / votes.name)
        inside.enter_context(contextlib.chdir(checkout))
        for file in archives:
            with tarfile.open(file) as archive:
                archive.extractall(RUNS, filter="data")
        found = [name for name in PARTS if Path(RUNS, name, "calls.jsonl").exists()]
        parts = {name: Packed(Path(RUNS, name), out / "results" / name, votes and Path(votes.name)) for name in found}
        calls = [*(call for part in parts.values() for call in part.calls), *lines]
        rehearsed = any(call["rehearsal"] for call in calls)
        if rehearsed and out == ROOT / "docs":
            raise SystemExit("error: these are rehearsals, whose numbers mean nothing; give --out another folder")
        sections = {name: section(name, part) for name, part in parts.items()}
    if lines:
        sections["speed"] = speed(lines)
    on_gpu = [*(name for name, part in parts.items() if part.on_gpu), *(["speed"] if lines else [])]
    head = HEAD.format(commit=f"`{git_commit()}`")
    pages = [head, *(["**A rehearsal: these numbers mean nothing.**\n"] if rehearsed else [])]
    pages += [f"## {title}\n\n{sections[name]}" for name, title in TITLES.items() if name in sections]
    if not rehearsed:
        pages.append(f"## What was missed, and why\n\n{WHY.read_text()}")
    if missing := [name for name in TITLES if name not in on_gpu]:
        pages.append(f"## Not run on a GPU yet\n\n{_missing(missing)}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text("\n".join(page.rstrip() + "\n" for page in pages))
    print(out / "results.md")


def section(name: str, part: Packed) -> str:
    """What a part is for, how it was run, and its results."""
    body = SECTIONS[name](part)
    report, page = (f"[report.{kind}](results/{name}/report.{kind})" for kind in ("md", "html"))
    compared = (part.out / "report.html").exists()
    link = f"\nThe whole comparison: {report}, or {page} to download and open.\n" if compared else ""
    changed = " ".join(part.changes(name))
    result = [
        f"{PARTS[name].purpose.capitalize()}.",
        "" if part.on_gpu else "**On a CPU, and cut to what it can do.**",
        f"Changed: `{changed}`." if changed else "",
    ]
    return f"{' '.join(filter(None, result))}\n\n{part.provenance()}\n{body}{link}"


def _missing(names: Sequence[str]) -> str:
    files = "--data fer2013.zip --weights tf_efficientnetv2_b0.safetensors"
    lines = (f"python benchmarks/results/run.py {name:<11} {files}" for name in names)
    return (
        "Training stops after 7.5 minutes (`--minutes`), and the same command continues with what is missing. What\n"
        "`paper_tune` and `tune` find is given to the parts after them, and what `search` finds to `strongest`, as\n"
        "overrides at the end.\n\n"
        "```\n" + "\n".join(lines) + "\n```\n"
    )


def _paper_sets(accuracy: pd.DataFrame) -> list[str]:
    known = ["test_large", "test_large_dedup", "test_balanced", "test_balanced_dedup"]
    return [name for name in known if name in accuracy.index.get_level_values(0)]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def _number(file: Path) -> int:
    return int(file.parent.name.split("-")[0])


def _interval(row: "pd.Series[Any]") -> str:
    return f"{100 * row['mean']:.2f} ± {100 * row['sd']:.2f} ({100 * row['low']:.2f} to {100 * row['high']:.2f})"


def _at_least(what: str, found: float, bar: float) -> str:
    gap = f"{100 * found:.2f} %" if found >= bar else f"{100 * found:.2f} %, {100 * (bar - found):.2f} points short"
    return _bar(f"{what} at least {100 * bar:.1f} %", found >= bar, gap)


def _bar(what: str, met: bool, result: str) -> str:
    return f"- Bar: {what}. {'Met' if met else '**Missed**'}: {result}.\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([list(map(to_markdown, row)) for row in (headings, *rows)]) + "\n"


if __name__ == "__main__":
    main()
