"""Reading and writing the small files of a run folder; every write is atomic."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write to a sibling file first, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def write_status(folder: Path, status: str, reason: str = "") -> None:
    """Record ``running``, ``done`` or ``failed``, with the one-line reason of a failure."""
    write_json(folder / "status.json", {"status": status, **({"reason": reason} if reason else {})})


def read_status(folder: Path) -> dict[str, Any]:
    """A run folder's ``status`` and ``reason``; ``missing`` when it has none yet."""
    path = folder / "status.json"
    return read_json(path) if path.exists() else {"status": "missing"}
