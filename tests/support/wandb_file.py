"""Read an offline W&B run back: LevelDB log framing around protobuf records.

wandb writes this file and has no public reader for it.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one ``offline-run-*`` folder holds; history and summary are flat (``curves.path``)."""

    folder: Path
    name: str = ""
    project: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    exit_code: int | None = None

    def column(self, key: str) -> list[Any]:
        """The values that were logged under ``key``, in order."""
        return [row[key] for row in self.history if key in row]

    def file(self, key: str) -> Path:
        """The file behind a picture or table that was logged under ``key``."""
        (path,) = self.column(f"{key}.path")
        return self.folder / "files" / path

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table; a picture in it is a dictionary whose ``path`` ``picture`` takes."""
        content = json.loads(self._artifact(key)[f"{key}.table.json"].read_text())
        return content["columns"], content["data"]

    def picture(self, key: str, path: str) -> Path:
        """The file of a picture in a table."""
        return self._artifact(key)[path]

    def _artifact(self, key: str) -> dict[str, Path]:
        (files,) = (files for name, files in self.artifacts.items() if name.endswith(f"-{key}"))
        return files


def read_offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs below ``folder``, oldest first."""
    files = sorted(folder.rglob("run-*.wandb"), key=lambda file: file.stat().st_mtime)
    return [read_offline_run(file) for file in files]


def read_offline_run(file: Path) -> OfflineRun:
    """Read one ``run-<id>.wandb``."""
    run = OfflineRun(file.parent)
    for record in _records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                run.name, run.project = record.run.display_name, record.run.project
                run.group, run.tags = record.run.run_group, list(record.run.tags)
                run.config |= _items(record.run.config.update)
            case "config":
                run.config |= _items(record.config.update)
            case "history":
                run.history.append(_items(record.history.item))
            case "summary":
                run.summary |= _items(record.summary.update)
            case "artifact":
                files = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
                run.artifacts[record.artifact.name] = files
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[Any]:
    magic, number = struct.unpack("<4sH", content[:6])
    assert (magic, number) == (b":W&B", 0xBEE1), "not a W&B file"
    place, parts = HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", content[place : place + HEADER])
        if kind == 0 and length == 0:
            break
        data = content[place + HEADER : place + HEADER + length]
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum, "damaged W&B file"
        place += HEADER + length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
