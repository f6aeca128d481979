"""Entries of a cache folder: read, or built beside it by one process and renamed into place."""

import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import filelock

log = logging.getLogger(__name__)

RESERVE = 2**28
"""Bytes that a large entry leaves free on the disk."""

T = TypeVar("T")


def read_or_build(
    entry: Path,
    read: Callable[[bool], T | None],
    build: Callable[[Path | None], T],
    write: Callable[[Path, T], None],
) -> T:
    """Return what an entry holds; build and store it first if there is none.

    Safe for concurrent processes: one builds, the others wait for it. Entries appear whole or not at all; a damaged or
    outdated one is built again, and so is a link in its place: the cache folder may be somebody else's. If the folder
    cannot be written, the content is built without being stored.

    Args:
        entry: folder of the entry; the folder that it is in is created if missing.
        read: returns the content of the entry, None if it is not usable; reports why if its argument is true.
        build: builds the content, where it may use the folder that becomes the entry; None if it is not stored. Its
            exceptions propagate.
        write: writes what of the content is not in this folder yet.

    Returns:
        The content as it was read, or as it was built if it could not be stored.
    """
    # First without the lock: entries are renamed into place when complete, and the folder may be read-only.
    content = None if entry.is_symlink() else read(False)
    if content is not None:
        return content
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(entry.with_name(f"{entry.name}.lock")).acquire()
    except (OSError, NotImplementedError) as error:
        return _build_alone(entry.parent, error, build)
    with held:
        content = None if entry.is_symlink() else read(True)
        if content is not None:
            return content
        try:
            building = _start(entry)
        except OSError as error:
            return _build_alone(entry.parent, error, build)
        try:
            content = build(building)
            try:
                write(building, content)
                _remove(entry)
                building.rename(entry)
            except OSError as error:
                log.warning("%s could not be stored (%s): continuing without it", entry, error)
                return content
            stored = read(False)
            return content if stored is None else stored
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _build_alone(folder: Path, error: Exception, build: Callable[[Path | None], T]) -> T:
    log.warning("Cache folder %s cannot be used (%s): continuing without it", folder, error)
    return build(None)


def _start(entry: Path) -> Path:
    """A new folder in which an entry is built; the caller holds the lock.

    Raises:
        OSError: it cannot be made, or what a killed process left cannot be removed.
    """
    for leftover in entry.parent.glob(f".{entry.name}-*"):
        _remove(leftover)
    building = entry.parent / f".{entry.name}-{secrets.token_hex(8)}"
    building.mkdir()  # an error where something of this name is there: nothing is built in a folder of others
    return building


def _remove(path: Path) -> None:
    """Remove what is there, if anything; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def crc32(path: Path) -> int:
    """Checksum of a file."""
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
