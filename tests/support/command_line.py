"""The command line in tests: a tiny run's overrides, what a call printed, and where it ran."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = (
    "data=synthetic",
    "data.source.images=400",
    "data.batch_size=32",
    "model=test_efficientnet",
    "augment=none",
    "logger=csv",
    "figures=False",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
)
"""A whole run in about two seconds, without pictures."""

COMMANDS = (
    "audit",
    "card",
    "compare",
    "demo",
    "ensemble",
    "evaluate",
    "explain",
    "export",
    "methods",
    "predict",
    "sweep",
)
"""Modules that can be typed, beside the package itself."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a user sees; fails when there is more or less than one."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err + self.out, self.err
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def json(self) -> dict[str, Any]:
        """The last printed line."""
        return json.loads(self.out.strip().splitlines()[-1])


def with_first(folder: Path) -> str:
    """``PYTHONPATH`` with a folder before all others."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def only_run(folder: Path) -> Path:
    """The run folder below ``folder``, of which there must be exactly one."""
    found = [path.parent for path in folder.rglob("status.json")]
    assert len(found) == 1, found
    return found[0]


def assert_refused(outcome: Outcome, folder: Path, *words: str) -> None:
    """One line that holds all words, code 2, the same reason on record, and no result."""
    for word in words:
        assert word in outcome.error
    assert outcome.code == 2
    run = only_run(folder)
    status = json.loads((run / "status.json").read_text())
    assert status == {"status": "failed", "reason": outcome.error.removeprefix("error: ")}
    left = {path.name for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    assert left <= {"status.json", "train.log", "metrics.csv", ".lock"}


def processes_in(folder: Path) -> list[int]:
    """Processes of this package whose working directory is ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and os.readlink(entry / "cwd") == str(folder)
                and b"fer_lightning" in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
