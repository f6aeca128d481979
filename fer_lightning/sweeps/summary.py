"""The end of a sweep: compare or rank its finished runs, print what failed, and one JSON line."""

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.run_folder import RESUMABLE
from fer_lightning.sweeps.folder import job_states, read_sweep
from fer_lightning.sweeps.halving import Search
from fer_lightning.sweeps.resume import resume_command


def summarise(folder: Path, stopped_by: int | None = None, search: Search | None = None) -> int:
    """Print the comparison of a sweep's finished jobs, its failed and unfinished jobs, and one JSON line.

    A search ends with its own table instead: its runs were selected, so they are not a sample of what their settings
    give.

    Args:
        folder: the sweep's folder.
        stopped_by: the signal that ended the sweep early.
        search: the progress of a search by successive halving.

    Returns:
        The exit code: 0; 1 when a job failed, when a finished run cannot be compared, or when the jobs are not known;
        75 when jobs are left to resume, 130 after Ctrl-C.
    """
    states = job_states(folder, live=False)
    failed = [state for state in states if state.status == "failed"]
    over = ("done", "failed") if search is None else ("done", "failed", "stopped")
    unfinished = [state for state in states if state.status not in over]
    done = [state.job.folder for state in states if state.status == "done"]
    if search is None:
        files, complete = _write_reports(done, folder, compare=stopped_by is None)
    else:
        files, complete = _write_search(folder, search)
    if "jobs" not in read_sweep(folder):
        _print(f"[sweep] {folder / 'sweep.json'}: its jobs are not known, so there may be more than these")
        complete = False
    for state in [*failed, *unfinished]:
        if state.status != "waiting":
            _print(f"[sweep] {state.status}: {state.job.folder.name}: {state.reason} ({state.job.folder})")
    waiting = sum(state.status == "waiting" for state in states)
    if waiting:
        _print(f"[sweep] not started: {waiting} of {len(states)} jobs")
    if unfinished or any(search is None or search.is_active(state.job.number) for state in failed):
        _print(f"[sweep] run the remaining jobs with: {resume_command(folder)}")
    line = {
        "sweep": str(folder),
        "jobs": len(states),
        "failed": [state.job.folder.name for state in failed],
        "unfinished": [state.job.folder.name for state in unfinished],
        "report": None,
        **files,
    }
    _print(json.dumps(line))
    if unfinished and stopped_by is not None:
        return RESUMABLE if stopped_by == signal.SIGTERM else 130
    return 1 if failed else RESUMABLE if unfinished else 0 if complete else 1


def _write_search(folder: Path, search: Search) -> tuple[dict[str, str], bool]:
    from fer_lightning.sweeps.search_table import write_search

    file, complete = write_search(folder, search)
    return {"trials": str(file)}, complete


def _write_reports(runs: Sequence[Path], folder: Path, compare: bool) -> tuple[dict[str, str], bool]:
    """Compare the tested runs, unless the sweep was stopped, and rank those that were only validated.

    Returns:
        The files, and whether nothing was refused.
    """
    scores, complete = {}, True
    for run in runs:
        try:
            scores[run] = read_json(run / "metrics.json")
        except FileNotFoundError:  # trainer.fast_dev_run
            continue
        except UserError as error:
            _print(f"[sweep] left out: {error}")
            complete = False
    untested = {run: metrics for run, metrics in scores.items() if "test/accuracy" not in metrics}
    files: dict[str, str] = {}
    if compare and (tested := [run for run in scores if run not in untested]):
        from fer_lightning.report.write import compare_sweep

        report, has_all = compare_sweep(tested, folder / "report")
        files |= {"report": str(report)} if report else {}
        complete &= has_all
    if untested:
        trials, has_all = _rank(untested, folder)
        files |= {"trials": str(trials)} if trials else {}
        complete &= has_all
    return files, complete


def _rank(runs: Mapping[Path, Mapping[str, Any]], folder: Path) -> tuple[Path | None, bool]:
    """Rank runs that were only validated; a damaged one is left out.

    Returns:
        The file, None where nothing can be ranked, and whether no run was left out.
    """
    from fer_lightning.sweeps import trials

    good = {}
    for run, metrics in runs.items():
        try:
            trials.check_trial(run, metrics)
            good[run] = metrics
        except UserError as error:
            _print(f"[sweep] left out: {error}")
    try:
        return (trials.report(good, folder) if good else None), len(good) == len(runs)
    except UserError as error:
        _print(f"[sweep] no ranking: {error}")
        return None, False


def _print(text: str) -> None:
    print(printable(text), flush=True)
