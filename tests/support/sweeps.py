"""Sweeps as real processes, started and watched from outside."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command_line import processes_in

ENDLESS = "trainer.max_epochs=500"
"""Override for a job that trains until it is stopped."""


@contextmanager
def sweep(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m fer_lightning -m`` in ``folder``, a process group of its own; it prints to the file ``terminal``."""
    with (folder / "terminal").open("w") as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "fer_lightning", "-m", *arguments],
            cwd=folder, stdout=terminal, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        for pid in processes_in(folder):
            subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)


def rank_one(folder: Path) -> int:
    """Process id of the second process of the two-device run in ``folder``."""
    (pid,) = [pid for pid in processes_in(folder) if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
    return pid


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait until ``condition()`` is true and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)
    return result


def training(sweep_folder: Path) -> list[Path]:
    """The job folders of a sweep in which two epochs are finished."""
    return [path.parent for path in sweep_folder.glob("*/metrics.csv") if path.read_bytes().count(b"\n") > 2]


def status_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def statuses(sweep_folder: Path) -> list[str]:
    """The recorded statuses of a sweep's jobs, in job order."""
    return [status_of(path.parent)["status"] for path in sorted(sweep_folder.glob("*/status.json"))]
