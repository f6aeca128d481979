"""On-disk cache of computed arrays, keyed by all that they depend on; the entries are laid out as ``cache``'s."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np

from fer_lightning.data.cache import RESERVE, crc32, start_entry

log = logging.getLogger(__name__)

FORMAT = 1
"""Increment whenever the files of an entry change, so that older entries are computed again."""

VALUES, META = "values.npy", "meta.json"


def cached_array(key: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], cache_dir: Path) -> np.ndarray:
    """Return the float32 array stored under ``key``; compute and store it first if there is none.

    Safe for concurrent processes: one computes, the others wait for it. Entries appear whole or not at all; a damaged
    one is computed again. Without a folder to write to, or room in it, the array is computed in memory.

    Args:
        key: name of the entry: a digest of all that determines the values.
        shape: of the array.
        fill: writes the values into an empty array. Its exceptions propagate.
        cache_dir: folder of the entries, created if missing.

    Returns:
        A read-only memory map, which processes share, or a plain array if it could not be stored.
    """
    entry = cache_dir / key
    stored = _read(entry, shape)  # first without the lock: the folder may be read-only
    if stored is not None:
        return stored
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        size, free = 4 * math.prod(shape), shutil.disk_usage(cache_dir).free
        if size + RESERVE > free:
            raise OSError(f"{size / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
        held = filelock.FileLock(cache_dir / f"{key}.lock").acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("Cache folder %s cannot be used (%s): computing without it", cache_dir, error)
        return _in_memory(shape, fill)
    with held:
        stored = _read(entry, shape)
        if stored is not None:
            return stored
        building = start_entry(entry)
        try:
            try:
                values = np.lib.format.open_memmap(building / VALUES, mode="w+", dtype=np.float32, shape=shape)
            except OSError as error:
                log.warning("Features could not be cached in %s (%s)", cache_dir, error)
                return _in_memory(shape, fill)
            fill(values)
            values.flush()
            stored = _store(entry, building, shape)
            return values if stored is None else stored
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _in_memory(shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    values = np.empty(shape, np.float32)
    fill(values)
    return values


def _store(entry: Path, building: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Rename a complete entry into place; the caller holds the lock. None where that fails."""
    try:
        with (building / VALUES).open("rb") as stream:
            os.fsync(stream.fileno())
        (building / META).write_text(json.dumps({"format": FORMAT, VALUES: crc32(building / VALUES)}))
        if entry.exists():
            shutil.rmtree(entry)
        building.rename(entry)
    except OSError as error:
        log.warning("Features could not be cached in %s (%s)", entry.parent, error)
        return None
    return _read(entry, shape)


def _read(entry: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The stored array, or None if there is no usable entry."""
    if not all((entry / name).is_file() for name in (META, VALUES)):  # a pipe would block
        return None
    try:
        meta = json.loads((entry / META).read_text())
        values = np.load(entry / VALUES, mmap_mode="r")
        intact = meta == {"format": FORMAT, VALUES: crc32(entry / VALUES)}
        intact = intact and (values.shape, values.dtype) == (shape, np.float32)
    except (OSError, EOFError, ValueError) as error:
        log.info("Cached features in %s are unusable (%s): computing them again", entry, error)
        return None
    if not intact:
        log.info("Cached features in %s are damaged: computing them again", entry)
    return values if intact else None
