"""The status of a run folder, written atomically, and the lock of the process that works in it.

``status.json`` holds ``running``, ``done``, ``failed`` (with the reason), ``interrupted`` (stopped by a signal or by
``pause_after_epochs`` with everything saved; ``resume=auto`` resumes), or ``stopped`` (the same, and a search trains
other settings on). ``running`` without a held lock means that the process was killed.
"""

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_no_links, read_json, write_json

RESUMABLE = 75
"""Exit code of a run that a signal stopped and that ``resume=auto`` resumes (``EX_TEMPFAIL`` of sysexits.h)."""

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
        read["reason"] = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    for key in ("step", "pause_after_epochs"):
        number = content.get(key)
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            read[key] = number
    return read


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
        if lock.lock_file and not stat.S_ISREG(os.lstat(lock.lock_file).st_mode):
            raise UserError(f"{lock.lock_file}: is a link or not a file, and is not locked; remove it") from error
        raise UserError(f"{folder}: cannot be locked ({error.strerror}); choose a folder on another disk") from error
    return lock


def in_use(folder: Path) -> bool:
    """Whether a live process works in the folder; writes nothing, so that it works for any reader."""
    try:
        file = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return True  # unknown; better than to call a live job killed
    except OSError:  # no process has ever locked it
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        with suppress(OSError):
            os.close(file)


def lock_for_run(folder: Path, resume: str | None) -> filelock.FileLock:
    """Lock an existing folder for a run, which must be its first one or resume the one in it.

    Raises:
        UserError: another process works in it, it holds a run and ``resume`` is None, or something in it is a link.
    """
    lock = lock_folder(folder)
    try:
        if resume is None and read_status(folder)["status"] != "missing":
            raise UserError(
                f"hydra.run.dir={folder}: holds a run already; resume it with resume=auto, or choose another folder"
            )
        check_no_links(folder)
    except BaseException:
        lock.release()
        raise
    return lock
