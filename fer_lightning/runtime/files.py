"""Files written whole or not at all."""

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


def replace_file(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write a file so that it appears whole, even after a power failure, by the one process that writes it.

    Args:
        path: of the file.
        content: its bytes.
        keep: where the file before goes; nowhere when None.
    """
    temporary = path.with_name(f".{path.name}.part")  # what a killed process left is written over
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
