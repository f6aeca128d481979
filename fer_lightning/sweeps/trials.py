"""The trials of a search (``test=false``): settings ranked by their validation score, with its spread over seeds.

The test images are not used: settings chosen on the test images would get a test score that is too high.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fer_lightning.config.rules import MONITORS
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.evaluation.run_files import check_numbers
from fer_lightning.metrics import names
from fer_lightning.presentation.escapes import table_to_csv
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file
from fer_lightning.sweeps.folder import NOT_A_SETTING

FURTHER = tuple(f"val/{name}" for name in (*names.FURTHER, *names.GROUPS))
"""In ``trials.csv`` alone, of the runs that have them."""

MAX_ROWS = 20
"""Rows of the printed table; ``trials.csv`` has all trials."""


def rank(trials: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> pd.DataFrame:
    """Rank settings by the validation score that the runs monitored, the best first.

    Args:
        trials: the overrides (``key=value``) and the ``metrics.json`` of each run.

    Returns:
        One row per setting: the overrides that differ between runs, ``seeds``, the mean of each of ``names.TRIAL``
        and of those of ``FURTHER`` that there are, ``sd`` (of the monitored score over seeds, missing with one), and
        ``seconds`` of training.
    """
    given = [dict(override.lstrip("+").partition("=")[::2] for override in overrides) for overrides, _ in trials]
    keys = dict.fromkeys(key for each in given for key in each if key not in NOT_A_SETTING)
    varied = [key for key in keys if len({each.get(key) for each in given}) > 1]
    monitor = trials[0][1]["monitor"]
    further = [score for score in FURTHER if any(score in metrics for _, metrics in trials)]
    runs = pd.DataFrame(
        [
            {
                **{key: each.get(key, "") for key in varied},
                **{score: metrics[score] for score in names.TRIAL},
                **{score: metrics.get(score) for score in further},
                "seconds": metrics["train/seconds"],
            }
            for each, (_, metrics) in zip(given, trials, strict=True)
        ]
    )
    runs = runs.astype(dict.fromkeys(further, float))  # None is NaN
    groups = runs.groupby(varied, sort=False) if varied else runs.groupby(lambda _: 0)
    table = groups[[*names.TRIAL, *further, "seconds"]].mean()
    table.insert(0, "seeds", groups.size())
    table.insert(1, "sd", groups[monitor].std())
    return table.reset_index(drop=not varied).sort_values(monitor, ascending=False, kind="stable", ignore_index=True)


def report(runs: Mapping[Path, Mapping[str, Any]], out: Path) -> Path:
    """Print the ranking of finished runs that were not tested, and write it to ``trials.csv``.

    Args:
        runs: the folder and ``metrics.json`` of each, which ``check_trial`` has checked.
        out: the folder for the file.

    Returns:
        The file.

    Raises:
        UserError: runs of different images, or monitored by different scores.
    """
    trials = [(_overrides(run), metrics) for run, metrics in runs.items()]
    _check_same_images(list(runs), trials)
    _check_same_monitor(list(runs), trials)
    table, monitor = rank(trials), trials[0][1]["monitor"]
    settings = list(table.columns[: table.columns.get_loc("seeds")])
    noun = "setting" if len(table) == 1 else "settings"
    shown = Table(
        *(Column(escape(printable(name)), overflow="fold") for name in settings),
        *("seeds", "sd", *(names.SCORES[_bare(score)].heading for score in names.TRIAL), "seconds"),
        title=f"{len(table)} {noun} by {monitor}; the test images were not used",
        title_justify="left",
    )
    for row in table.head(MAX_ROWS).itertuples(index=False):
        words = dict(zip(table.columns, row, strict=True))
        shown.add_row(
            *(escape(printable(words[name])) for name in settings),
            str(words["seeds"]),
            names.SCORES[_bare(monitor)].words(words["sd"]),
            *(names.SCORES[_bare(score)].words(words[score]) for score in names.TRIAL),
            f"{words['seconds']:.0f}",
        )
    Console().print(shown)
    if len(table) > MAX_ROWS:
        print(printable(f"... and {len(table) - MAX_ROWS} more: {out / 'trials.csv'}"), flush=True)
    replace_file(out / "trials.csv", table_to_csv(table).encode(errors="backslashreplace"))
    return out / "trials.csv"


def _bare(score: str) -> str:
    return score.removeprefix("val/")


def _check_same_images(runs: Sequence[Path], trials: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> None:
    """Check that runs with the same settings of the data had the same images.

    Raises:
        UserError: naming two runs.
    """
    first: dict[tuple[str, ...], tuple[Path, Any]] = {}
    for run, (overrides, metrics) in zip(runs, trials, strict=True):
        settings = tuple(sorted(line for line in overrides if re.match(r"\+*(data|split|labels)[.=]", line)))
        other, images = first.setdefault(settings, (run, metrics.get("data_hash")))
        if metrics.get("data_hash") != images:
            raise UserError(
                f"{other.name} and {run.name} had different images (data_hash): they cannot be ranked together"
            )


def _check_same_monitor(runs: Sequence[Path], trials: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> None:
    """Check that one score chose the checkpoints of all runs, by which they are ranked.

    Raises:
        UserError: naming two runs.
    """
    first: dict[str, Path] = {}
    for run, (_, metrics) in zip(runs, trials, strict=True):
        first.setdefault(metrics["monitor"], run)
    if len(first) > 1:
        (one, by), (other, by_another) = ((run.name, monitor) for monitor, run in list(first.items())[:2])
        raise UserError(
            f"{one} was monitored by {by} and {other} by {by_another}: they cannot be ranked together; sweep over one "
            "monitor at a time"
        )


def _overrides(run: Path) -> list[str]:
    """The recorded overrides of a run.

    Raises:
        UserError: they are missing or damaged; without them it would be taken for another setting.
    """
    file = run / ".hydra" / "overrides.yaml"
    try:
        lines = read_yaml(file) or []  # empty without overrides
    except FileNotFoundError:
        raise UserError(f"{file}: is missing, so its settings are not known") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{file}: damaged, not a list of settings")
    return lines


def check_trial(run: Path, metrics: Mapping[str, Any]) -> None:
    """Check that a run can be ranked.

    Args:
        run: its folder.
        metrics: its ``metrics.json``.

    Raises:
        UserError: a score is missing or impossible, or its settings are not known.
    """
    needed = [metrics.get(key) for key in (*names.TRIAL, "train/seconds")]
    if metrics.get("monitor") not in MONITORS or None in needed:
        raise UserError(f"{run / 'metrics.json'}: damaged, without the scores of the validation images")
    try:
        check_numbers(metrics)
    except ValueError as error:
        raise UserError(f"{run}: damaged, {error}") from None
    _overrides(run)
