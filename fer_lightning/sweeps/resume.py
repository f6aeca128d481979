"""Resume a sweep: replace this process by the recorded command line, and the commands that are printed for it."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fer_lightning.config.hydra_keys import check_recorded, short
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime import imports
from fer_lightning.runtime.errors import UserError
from fer_lightning.sweeps import job
from fer_lightning.sweeps.folder import read_sweep


def resume(folder: Path, anyway: bool) -> None:
    """Replace this process by the sweep's recorded command line, with the same folder, in the working directory.

    The recorded working directory is only reported: the file may come from someone else, and programs read settings
    from where they run.

    Args:
        folder: the sweep's folder; may have moved since the start.
        anyway: also when the code or the configuration changed.

    Raises:
        UserError: the folder is not a sweep's, or its command line is damaged or unsafe.
    """
    folder = Path(os.path.abspath(folder))
    sweep = read_sweep(folder)
    if "argv" not in sweep:
        raise UserError(
            f"{folder / 'sweep.json'}: is damaged; type the sweep's command line again, with hydra.sweep.dir={folder}"
        )
    overrides = without_folder(sweep["argv"])
    check_recorded(overrides)
    overrides.append(f"hydra.sweep.dir={job.quoted(folder)}")
    overrides += ["++hydra.callbacks.summary.anyway=true"] if anyway else []
    if (started_in := sweep.get("cwd", "")) != os.getcwd():
        where = f"[sweep] started in {short(started_in)}; its relative paths are now read from {os.getcwd()}"
        print(printable(where))
    environment = {**os.environ, **imports.environment()}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "fer_lightning", *overrides], environment)


def without_folder(argv: Sequence[str]) -> list[str]:
    """A sweep's command line without the override of its folder, which may have moved."""
    return [word for word in argv if not word.lstrip("+").startswith("hydra.sweep.dir=")]


def resume_command(folder: Path) -> str:
    """The shell command that resumes a sweep."""
    return f"python -m fer_lightning.sweep resume {shlex.quote(str(folder))}"


def status_command(folder: Path) -> str:
    """The shell command that prints the state of a sweep's jobs."""
    return f"python -m fer_lightning.sweep status {shlex.quote(str(folder))}"
