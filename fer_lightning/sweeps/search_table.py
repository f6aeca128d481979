"""The table of a search by successive halving: how far each setting trained, and its validation score there."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fer_lightning.metrics import names
from fer_lightning.presentation.escapes import table_to_csv
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file
from fer_lightning.sweeps.folder import Job, JobState, job_states
from fer_lightning.sweeps.halving import Search, Trial, read_scores, trial_score, trials_of
from fer_lightning.sweeps.trials import MAX_ROWS


def search_table(folder: Path, search: Search) -> pd.DataFrame:
    """Every setting of a search: those that trained longest first, and of these the best first.

    Args:
        folder: the sweep's folder.
        search: its progress.

    Returns:
        One row per setting: the overrides that differ between settings, ``seeds``, ``rung`` (the last that it was
        selected for, from 1), ``epochs`` (that all its seeds have finished), ``score`` (the best validation score of
        ``search.monitor`` in these epochs, mean over seeds), ``state`` (``finished``, ``stopped``, ``failed`` or
        ``unfinished``) and ``runs`` (their folders).
    """
    states = {state.job: state for state in job_states(folder, live=False)}
    trials = trials_of(list(states))
    given = [dict(line.lstrip("+").partition("=")[::2] for line in trial.settings) for trial in trials]
    keys = dict.fromkeys(key for each in given for key in each)
    varied = [key for key in keys if len({each.get(key) for each in given}) > 1]
    rows = []
    for trial, settings in zip(trials, given, strict=True):
        epochs = min(states[job].epochs for job in trial.jobs)
        rows.append(
            {
                **{key: settings.get(key, "") for key in varied},
                "seeds": len(trial.jobs),
                "rung": search.rung_of(trial.jobs[0].number) + 1,
                "epochs": epochs,
                "score": trial_score(trial, search.monitor, epochs),
                "state": _state(trial, states),
                "runs": " ".join(str(job.folder.relative_to(folder)) for job in trial.jobs),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(["rung", "score"], ascending=False, kind="stable", ignore_index=True)


def write_search(folder: Path, search: Search) -> tuple[Path, bool]:
    """Print the table of a search, and write it to ``trials.csv``.

    Returns:
        The file, and whether the scores of all runs could be read.
    """
    complete = True
    for state in job_states(folder, live=False):
        try:
            read_scores(state.job.folder, search.monitor)
        except UserError as error:
            print(printable(f"[sweep] without its scores: {error}"), flush=True)
            complete = False
    table = search_table(folder, search)
    settings = list(table.columns[: table.columns.get_loc("seeds")])
    monitored = names.SCORES[search.monitor.removeprefix("val/")]
    shown = Table(
        *(Column(escape(printable(name)), overflow="fold") for name in settings),
        *("seeds", "rung", "epochs", monitored.heading, "state"),
        title=f"{len(table)} settings by {search.monitor}, rungs at {', '.join(map(str, search.epochs))} epochs",
        title_justify="left",
        caption="scores of different rungs cannot be compared: the learning rate has fallen further in later ones",
    )
    for row in table.head(MAX_ROWS).to_dict("records"):
        shown.add_row(
            *(escape(printable(row[name])) for name in settings),
            *(str(row[name]) for name in ("seeds", "rung", "epochs")),
            monitored.words(row["score"]),
            row["state"],
        )
    Console().print(shown)
    if len(table) > MAX_ROWS:
        print(printable(f"... and {len(table) - MAX_ROWS} more: {folder / 'trials.csv'}"), flush=True)
    replace_file(folder / "trials.csv", table_to_csv(table).encode(errors="backslashreplace"))
    return folder / "trials.csv", complete


def _state(trial: Trial, states: Mapping[Job, JobState]) -> str:
    statuses = {states[job].status for job in trial.jobs}
    for status in ("failed", "stopped"):
        if status in statuses:
            return status
    return "finished" if statuses == {"done"} else "unfinished"
