"""The status of a run folder, written atomically, and the lock of the process that works in it.

``status.json`` holds ``running``, ``done``, ``failed`` (with the reason), or ``interrupted`` (stopped by a signal with
everything saved; ``resume=auto`` resumes). ``running`` without a held lock means that the process was killed.
"""

from pathlib import Path
from typing import Any

import filelock

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json

RESUMABLE = 75
"""Exit code of a run that a signal stopped and that ``resume=auto`` resumes (``EX_TEMPFAIL`` of sysexits.h)."""


def write_status(folder: Path, status: str, reason: str = "", **more: Any) -> None:
    """Record ``running``, ``done``, ``failed`` or ``interrupted``, with the one-line reason and further fields."""
    write_json(folder / "status.json", {"status": status, **({"reason": reason} if reason else {}), **more})


def read_status(folder: Path) -> dict[str, Any]:
    """A run folder's ``status`` and ``reason``; ``missing`` when it has none yet."""
    path = folder / "status.json"
    return read_json(path) if path.exists() else {"status": "missing"}


def lock_folder(folder: Path) -> filelock.FileLock:
    """Lock an existing folder for this process, until it releases the lock or ends.

    Raises:
        UserError: another process works in the folder.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=1)  # a process that only checks holds it for a moment
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is working in this folder; wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be locked ({error.strerror}); choose a folder on another disk") from error
    return lock


def lock_for_run(folder: Path, resume: str | None) -> filelock.FileLock:
    """Lock an existing folder for a run, which must be its first one or resume the one in it.

    Raises:
        UserError: another process works in it, or it holds a run and ``resume`` is None.
    """
    lock = lock_folder(folder)
    if resume is None and read_status(folder)["status"] != "missing":
        lock.release()
        raise UserError(
            f"hydra.run.dir={folder}: holds a run already; resume it with resume=auto, or choose another folder"
        )
    return lock
