"""The lock of the process that works in the folder of a run or of a sweep: the file ``.lock`` in it."""

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

import filelock

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_no_links
from fer_lightning.runtime.run_folder import read_status


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
