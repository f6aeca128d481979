"""Files written whole or not at all."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


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
        keep: where the previous file is moved to; None to discard it.
    """
    temporary = path.with_name(f".{path.name}.part")  # overwrites what a killed process left
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


def replace_file_by(path: Path, write: Callable[[BinaryIO], Any], keep: Path | None = None) -> None:
    """As ``replace_file``, for content that a library writes to an open file, such as ``torch.save``.

    Args:
        path: of the file; its folder is created where it is missing.
        write: called with a binary file in memory: on a full disk, libraries raise errors that hide the reason.
        keep: where the previous file is moved to; None to discard it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    write(buffer)
    replace_file(path, buffer.getbuffer(), keep)
