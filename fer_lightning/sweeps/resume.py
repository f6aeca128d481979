"""Resume a sweep: replace this process by the recorded command line, and the commands that are printed for it."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fer_lightning.config.safety import check_recorded
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json
from fer_lightning.sweeps import job
from fer_lightning.sweeps.folder import check_is_sweep


def resume(folder: Path, anyway: bool) -> None:
    """Replace this process by the sweep's recorded command line, in its working directory, with the same folder.

    Args:
        folder: the sweep's folder; may have moved since the start.
        anyway: also when the code or the configuration changed.

    Raises:
        UserError: the folder is not a sweep's, its working directory does not exist, or its command line is unsafe.
    """
    folder = Path(os.path.abspath(folder))
    check_is_sweep(folder)
    sweep = read_json(folder / "sweep.json")
    overrides = without_folder(sweep["argv"])
    check_recorded(overrides)  # the file may come from someone else
    overrides.append(f"hydra.sweep.dir={job.quoted(folder)}")
    overrides += ["++hydra.callbacks.summary.anyway=true"] if anyway else []
    environment = {**os.environ, **job.same_imports()}
    try:
        os.chdir(sweep["cwd"])
    except OSError as error:
        raise UserError(
            f"{sweep['cwd']}: the sweep was started there, but: {error.strerror}; restore that folder, "
            f"or change cwd in {folder / 'sweep.json'}"
        ) from None
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
