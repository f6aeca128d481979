"""The status of a run folder, written atomically, and its checkpoints.

``status.json`` holds ``running``, ``done``, ``failed`` (with the reason), ``interrupted`` (stopped by a signal or by
``pause_after_epochs`` with everything saved; ``resume=auto`` resumes), or ``stopped`` (the same, and a search continues
with other settings). ``running`` without a held lock means that the process was killed.
"""

from pathlib import Path
from typing import Any

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json

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
