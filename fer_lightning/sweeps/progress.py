"""The live view of a sweep, read from its folder alone: serial, parallel and SLURM sweeps look the same."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fer_lightning.sweeps.folder import Standing, in_use, standings, stop_deadline

POLL_SECONDS = 1.0
ORDER = ("done", "running", "failed", "interrupted", "waiting")
STYLES = {"running": "cyan", "failed": "red", "interrupted": "yellow"}


class Progress:
    """Shows a sweep until ``stop``: one view that is redrawn, or a line whenever a job starts or ends.

    Args:
        folder: the sweep's folder.
        redrawn: the terminal belongs to the view; False when the jobs write to it too.
    """

    def __init__(self, folder: Path, redrawn: bool) -> None:
        self.folder = folder
        self.since = time.time()
        self.shown: dict[Path, Standing] = {stand.job.folder: stand for stand in standings(folder, live=True)}
        self.live = Live(get_renderable=self._render, refresh_per_second=1 / POLL_SECONDS) if redrawn else None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="progress")

    def start(self) -> None:
        """Show it from now on."""
        if self.live is not None:
            self.live.start()
        else:
            self.thread.start()

    def stop(self) -> None:
        """Show how it stands a last time."""
        if self.live is not None:
            self.live.stop()
        elif not self.stopped.is_set():
            self.stopped.set()
            self.thread.join()
            self._tell()

    def _render(self) -> Group:
        return view(standings(self.folder, live=True), self._since())

    def _since(self) -> float | None:
        return self.since if stop_deadline(self.folder) is None else None

    def _watch(self) -> None:
        while not self.stopped.wait(POLL_SECONDS):
            self._tell()

    def _tell(self) -> None:
        now = standings(self.folder, live=True)
        shared = set.intersection(*(set(stand.job.overrides) for stand in now)) if len(now) > 1 else set()
        for stand in now:
            before = self.shown.get(stand.job.folder)
            if before and before.status == stand.status and stand.status in ("waiting", "running"):
                continue
            if before and (before.status, before.changed) == (stand.status, stand.changed):
                continue
            self.shown[stand.job.folder] = stand
            said = f"[sweep] job {stand.job.number + 1} of {len(now)}"
            if stand.status == "running":
                own = " ".join(word for word in stand.job.overrides if word not in shared)
                print(f"{said}: {own or stand.job.folder.name}", flush=True)
                continue
            took = f" in {duration(stand.changed - before.changed)}" if before and before.status == "running" else ""
            reason = f": {stand.reason}" if stand.reason else ""
            print(f"{said} {stand.status}{took}{reason}; {headline(now, self._since())}", flush=True)


def show(folder: Path) -> None:
    """Print how a sweep stands, once.

    Raises:
        UserError: the folder is no sweep's.
    """
    live = in_use(folder)
    stands = standings(folder, live)
    hydras = folder / "multirun.yaml"  # written whenever the sweep is started
    since = hydras.stat().st_mtime if live and hydras.exists() else None
    console = Console()
    if not console.is_terminal:  # for a file or a pipe, nothing is cut off or wrapped
        console = Console(width=max(120, *(len(stand.reason) + len(str(stand.job.folder)) + 40 for stand in stands)))
    console.print(view(stands, since))


def view(stands: Sequence[Standing], since: float | None) -> Group:
    """All of a sweep in a few lines: the counts, then whatever runs, failed or was interrupted."""
    table = Table.grid(padding=(0, 2))
    for stand in stands:
        if stand.status in STYLES:
            epochs = f"epoch {stand.epochs}/{stand.of_epochs}" if stand.of_epochs else ""
            said = epochs if stand.status == "running" else stand.reason
            table.add_row(Text(stand.status, STYLES[stand.status]), Text(stand.job.folder.name), Text(said))
    return Group(Text(headline(stands, since), "bold"), table)


def headline(stands: Sequence[Standing], since: float | None) -> str:
    """``12 jobs: 5 done, 2 running, 5 waiting; about 12 min left``."""
    count = Counter(stand.status for stand in stands)
    counts = ", ".join(f"{count[name]} {name}" for name in ORDER if count[name])
    left = seconds_left(stands, since, time.time()) if since is not None else None
    return f"{len(stands)} jobs: {counts}" + ("" if left is None else f"; about {duration(left)} left")


def seconds_left(stands: Sequence[Standing], since: float, now: float) -> float | None:
    """Estimate from the jobs' shares since ``since``; None while nothing is known or nothing is left."""
    left = sum(1 - stand.share for stand in stands)
    behind = sum(stand.share for stand in stands if stand.changed >= since)
    return (now - since) / behind * left if behind and left else None


def duration(seconds: float) -> str:
    """Seconds, in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def in_terminal() -> bool:
    """Whether the view can be redrawn."""
    return sys.stdout.isatty()
