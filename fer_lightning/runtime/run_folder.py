"""The status of a run folder, written atomically, and its checkpoints.

``status.json`` holds ``running``, ``done``, ``failed`` (with the reason), ``interrupted`` (stopped by a signal or by
``pause_after_epochs`` with everything saved; ``resume=auto`` resumes), or ``stopped`` (the same, and a search continues
with other settings). ``running`` without a held lock means that the process was killed.
"""

import shutil
from pathlib import Path
from typing import Any

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json

RESUMABLE = 75
"""Exit code of a run that a signal stopped and that ``resume=auto`` resumes (``EX_TEMPFAIL`` of sysexits.h)."""

FORMER = ".former"
"""Folder of a run folder with the record of its training, while a start that resumes it may still be refused."""

LONGEST_REASON = 1000
"""Characters of a reason that are read."""

STATUSES = ("running", "done", "failed", "interrupted", "stopped")


def write_status(folder: Path, status: str, reason: str = "", **more: Any) -> None:
    """Record one of ``STATUSES``, with the one-line reason and further fields."""
    write_json(folder / "status.json", {"status": status, **({"reason": reason} if reason else {}), **more})


def read_status(folder: Path) -> dict[str, Any]:
    """A run folder's ``status``, ``reason``, ``step`` and ``pause_after_epochs``; ``missing`` without a status.

    A damaged file reads as ``running``: it was being written when the machine stopped, so the run was killed.
    """
    try:
        content = read_json(folder / "status.json")
    except (FileNotFoundError, NotADirectoryError):
        return {"status": "missing"}
    except UserError:
        return {"status": "running"}
    status, reason = content.get("status"), content.get("reason")
    read: dict[str, Any] = {"status": status if status in STATUSES else "running"}
    if isinstance(reason, str) and reason:
        read["reason"] = " ".join("".join(c if c.isprintable() else " " for c in reason[:LONGEST_REASON]).split())
    for key in ("step", "pause_after_epochs"):
        number = content.get(key)
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            read[key] = number
    return read


def holds_training(folder: Path) -> bool:
    """Whether there is something to resume in a run folder: a checkpoint, or a run that is done."""
    return any((folder / "checkpoints").glob("*.ckpt")) or read_status(folder)["status"] == "done"


def recorded_file(folder: Path, name: str) -> Path:
    """A file of the record of how a run was started, in ``FORMER`` while another start has not settled."""
    former = folder / FORMER / name
    return former if former.exists() else folder / name


def keep_record(folder: Path, name: str) -> None:
    """Copy the record in ``folder / name``, which the next start replaces, until ``settle_record``.

    A copy that a killed start left is the record of the training, and stays.
    """
    if (folder / name).is_dir() and not (folder / FORMER).exists():
        part = folder / f"{FORMER}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder / name, part / name)
        part.rename(folder / FORMER)


def settle_record(folder: Path, started: bool) -> None:
    """Discard the copy of ``keep_record`` once a run has started; restore it where the run did not."""
    if (folder / FORMER).is_dir():
        if not started:
            shutil.copytree(folder / FORMER, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / FORMER)


def tested_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run was tested with: ``best.ckpt``, or ``last.ckpt`` where no validation chose one.

    Raises:
        UserError: the run has none.
    """
    best, last = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    if not best.exists() and not last.exists():
        status = read_status(folder)["status"]
        raise UserError(
            f"{folder}: has no checkpoint (the run is {status}); resume it with resume=auto, or give a finished run"
        )
    return best if best.exists() else last


def checkpoint_file(given: str | Path) -> Path:
    """The checkpoint that a path names: the file itself, or the tested one of a run folder.

    Raises:
        UserError: a folder that is no run's, or whose run has no checkpoint.
    """
    path = Path(given)
    if not path.is_dir():
        return path
    if not (path / "status.json").is_file():
        raise UserError(f"{path}: not a run folder (it has no status.json); give a run, or its checkpoints/best.ckpt")
    return tested_checkpoint(path)
