"""What was compared on which data, and how the report was made: heading -> text."""

import os
from collections.abc import Callable
from pathlib import Path

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.presentation import words

BUDGETS = {"steps": "equal optimizer steps", "epochs": "equal epochs"}

LABELS = {"fer": "FER-2013", "ferplus": "FER+"}


def key(c: Comparison) -> str:
    """Data, split and test size in one line."""
    metrics, n = c.runs[0].metrics, c.sizes[c.test_set]
    size = f"{len({run.repeat for run in c.runs})} folds" if metrics["split"] == "kfold" else f"{c.test_set} n = {n:,}"
    return f"{words.data_name(metrics)} · split {metrics['split']} · {size}"


def protocol(c: Comparison) -> dict[str, str]:
    """What a reader must know to judge the numbers."""
    first = c.runs[0]
    repeats = {"seed": sorted({str(run.metrics["seed"]) for run in c.runs}, key=words.natural_key)}
    if first.metrics["split"] == "kfold":
        repeats["fold"] = sorted({str(run.fold) for run in c.runs}, key=words.natural_key)
    budgets = {BUDGETS[run.metrics["budget"]] for run in c.runs}
    commits = sorted({str(run.metrics.get("git_commit"))[:12] for run in c.runs})
    return {
        "data": words.data_name(first.metrics),
        "data hash": str(first.metrics["data_hash"]),
        "labels": _labels(first.protocol),
        "split": str(first.metrics["split"]),
        "test set": c.test_set,
        "test images": _test_images(c),
        "seeds": ", folds ".join(", ".join(values) for values in repeats.values()),
        "budget": " and ".join(sorted(budgets)),
        "training images": _by_row(c, lambda run: run.training_images),
        "training steps": _by_row(c, lambda run: run.training_steps),
        "baseline": words.listed(list(dict.fromkeys(c.baselines.values()))) if c.baselines else "none",
        "tuning": _tuning(c),
        "code version": ", ".join(commits),
    }


def _tuning(c: Comparison) -> str:
    rates = {str(run.settings.get("optim.lr")) for run in c.runs}
    shared = f"all methods share optim.lr={rates.pop()}" if len(rates) == 1 else "optim.lr differs between the runs"
    return f"{shared}; run folders do not record for which method it was tuned, nor trials before these runs"


def _labels(protocol: dict[str, str]) -> str:
    if protocol["labels"] == "fer" and protocol["data"] not in ("fer2013", "synthetic"):
        return "those of the data"
    return LABELS.get(protocol["labels"], protocol["labels"])


def _test_images(c: Comparison) -> str:
    varies = len({run.members[c.test_set].sum() for run in c.runs}) > 1
    images = ("up to " * (varies and not c.shared)) + f"{c.sizes[c.test_set]:,}"
    if not c.shared:
        images += ", different ones for each seed or fold"
    dedup = f"{c.test_set}_dedup"
    if dedup in c.sizes:
        without = words.span(int(run.members[dedup].sum()) for run in c.runs)
        images += f"; {without} of them without a pixel-identical twin in training"
    return images


def _by_row(c: Comparison, number: Callable[[FinishedRun], int]) -> str:
    """A number of every row in words; once where all rows agree."""
    spans = {name: words.span(number(run) for run in members) for name, members in c.rows.items()}
    first, *others = dict.fromkeys(spans.values())
    return "; ".join(f"{name} {text}" for name, text in spans.items()) if others else first


def made_with(c: Comparison, command: str | None = None) -> dict[str, str]:
    """How the report was made: command (default: the plain one), code version and run folders."""
    folders = [run.folder for run in c.runs]
    common = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0]
    common = common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
    return {
        "command": command or f"python -m fer_lightning.compare {common}",
        "code of the runs": ", ".join(sorted({str(run.metrics.get("git_commit")) for run in c.runs})),
        "runs": f"{len(folders)} in {common}",
    }
