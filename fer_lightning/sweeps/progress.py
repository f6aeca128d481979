"""The progress of a sweep, read from its folder alone: the same for serial, parallel and SLURM sweeps."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.folder_lock import in_use
from fer_lightning.sweeps.folder import JobState, job_states, stop_deadline
from fer_lightning.sweeps.halving import RECORD

POLL_SECONDS = 1.0
ORDER = ("done", "running", "paused", "stopped", "failed", "interrupted", "waiting")
STYLES = {"running": "cyan", "paused": "cyan", "stopped": "dim", "failed": "red", "interrupted": "yellow"}


class Progress:
    """Prints the progress of a sweep until ``stop``: a table that is redrawn, or a line per start and end of a job.

    Args:
        folder: the sweep's folder.
        redrawn: redraw one table; only where no job writes to the terminal.
    """

    def __init__(self, folder: Path, redrawn: bool) -> None:
        self.folder = folder
        self.since = time.time()
        self.printed: dict[Path, JobState] = {state.job.folder: state for state in job_states(folder, live=True)}
        self.live = Live(get_renderable=self._render, refresh_per_second=1 / POLL_SECONDS) if redrawn else None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="progress")

    def start(self) -> None:
        """Start printing."""
        if self.live is not None:
            self.live.start()
        else:
            self.thread.start()

    def stop(self) -> None:
        """Print the final state and stop."""
        if self.live is not None:
            self.live.stop()
        elif not self.stopped.is_set():
            self.stopped.set()
            self.thread.join()
            self._print_changes()

    def _render(self) -> Group:
        return view(job_states(self.folder, live=True), self._since())

    def _since(self) -> float | None:
        # In a search most jobs will be stopped: what is left is not known.
        is_search = (self.folder / RECORD).exists()
        return self.since if stop_deadline(self.folder) is None and not is_search else None

    def _watch(self) -> None:
        while not self.stopped.wait(POLL_SECONDS):
            self._print_changes()

    def _print_changes(self) -> None:
        states = job_states(self.folder, live=True)
        shared = set.intersection(*(set(state.job.overrides) for state in states)) if len(states) > 1 else set()
        for state in states:
            before = self.printed.get(state.job.folder)
            if before and before.status == state.status and state.status in ("waiting", "running"):
                continue
            if before and (before.status, before.changed) == (state.status, state.changed):
                continue
            self.printed[state.job.folder] = state
            was_seen = before is not None and before.status == "paused"
            if state.status == "stopped" and was_seen:  # the search prints one line for a rung
                continue
            job = f"[sweep] job {state.job.number + 1} of {len(states)}"
            if state.status == "running":
                own = " ".join(word for word in state.job.overrides if word not in shared)
                print(printable(f"{job}: {own or state.job.folder.name}"), flush=True)
                continue
            took = f" in {duration(state.changed - before.changed)}" if before and before.status == "running" else ""
            reason = f": {state.reason}" if state.reason else ""
            print(f"{job} {state.status}{took}{reason}; {headline(states, self._since())}", flush=True)


def show(folder: Path) -> None:
    """Print the state of a sweep's jobs once.

    Raises:
        UserError: the folder is not a sweep's.
    """
    live = in_use(folder)
    states = job_states(folder, live)
    multirun = folder / "multirun.yaml"  # Hydra writes it whenever the sweep is started
    estimates = live and multirun.exists() and not (folder / RECORD).exists()
    since = multirun.stat().st_mtime if estimates else None
    console = Console()
    if not console.is_terminal:  # in a file or a pipe, no line is cut off or wrapped
        console = Console(width=max([120, *(len(state.reason) + len(str(state.job.folder)) + 40 for state in states)]))
    console.print(view(states, since))


def view(states: Sequence[JobState], since: float | None) -> Group:
    """The counts, then a row for each job that is running or whose state has a reason."""
    table = Table.grid(padding=(0, 2))
    for state in states:
        if state.status in STYLES:
            epochs = f"epoch {state.epochs}/{state.of_epochs}" if state.of_epochs else ""
            detail = epochs if state.status == "running" else state.reason
            name = Text(printable(state.job.folder.name))
            table.add_row(Text(state.status, STYLES[state.status]), name, Text(detail))
    return Group(Text(headline(states, since), "bold"), table)


def headline(states: Sequence[JobState], since: float | None) -> str:
    """The counts in one line: ``12 jobs: 5 done, 2 running, 5 waiting; about 12 min left``."""
    count = Counter(state.status for state in states)
    counts = ", ".join(f"{count[name]} {name}" for name in ORDER if count[name])
    left = seconds_left(states, since, time.time()) if since is not None else None
    return f"{len(states)} jobs: {counts}" + ("" if left is None else f"; about {duration(left)} left")


def seconds_left(states: Sequence[JobState], since: float, now: float) -> float | None:
    """Estimate the remaining seconds from the work done since ``since``; None while nothing is done, or at the end."""
    left = sum(1 - state.fraction_done for state in states)
    done = sum(state.fraction_done for state in states if state.changed >= since)
    return (now - since) / done * left if done and left else None


def duration(seconds: float) -> str:
    """Seconds as text, in minutes from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
