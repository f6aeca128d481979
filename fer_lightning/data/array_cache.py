"""On-disk cache of computed arrays, keyed by all that they depend on."""

import contextlib
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fer_lightning.data.cache_entries import RESERVE, crc32, flush_to_disk, read_or_build
from fer_lightning.runtime.errors import one_line
from fer_lightning.runtime.files import check_not_sparse, read_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Increment whenever the files of an entry change, so that older entries are computed again."""

VALUES, META = "values.npy", "meta.json"

MAX_HEADER = 1024
"""Bytes of ``values.npy`` besides its values."""


def cached_array(key: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], cache_dir: Path) -> np.ndarray:
    """Return the float32 array stored under ``key``; compute and store it first if there is none.

    As ``read_or_build``; without a folder to write to, or room in it, the array is computed in memory.

    Args:
        key: name of the entry: a digest of all that determines the values.
        shape: of the array.
        fill: writes the values into an empty array. Its exceptions propagate.
        cache_dir: folder of the entries, created if missing.

    Returns:
        A read-only memory map, which processes share, or a plain array if it could not be stored.
    """
    entry = cache_dir / key

    def build(folder: Path | None) -> np.ndarray:
        values = _allocate(folder, shape)
        fill(values)
        return values

    return read_or_build(entry, lambda report: _read(entry, shape, report), build, _write)


def _allocate(folder: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file of the entry; in memory where the folder cannot be written, or has no room for it."""
    if folder is not None:
        with contextlib.suppress(OSError):
            if 4 * math.prod(shape) + RESERVE <= shutil.disk_usage(folder).free:
                return np.lib.format.open_memmap(folder / VALUES, mode="w+", dtype=np.float32, shape=shape)
    return np.empty(shape, np.float32)


def _write(building: Path, values: np.ndarray) -> None:
    if not isinstance(values, np.memmap):
        raise OSError(f"no room for {values.nbytes / 1e9:.1f} GB, or not writable")
    values.flush()
    flush_to_disk(building / VALUES)
    (building / META).write_text(json.dumps({"format": FORMAT, VALUES: crc32(building / VALUES)}))


def _read(entry: Path, shape: tuple[int, ...], report: bool) -> np.ndarray | None:
    """The stored array, or None if there is no usable entry."""
    if not all((entry / name).is_file() for name in (META, VALUES)):  # a pipe would block
        return None
    try:
        meta = read_json(entry / META)
        with warnings.catch_warnings(action="ignore"):  # of a header that it doubts and reads
            values: np.ndarray = np.load(entry / VALUES, mmap_mode="r")
        # Before its bytes are read: it may come from somebody else, and claim any number of them.
        fits = (values.shape, values.dtype) == (shape, np.float32)
        check_not_sparse(entry / VALUES)
        fits = fits and (entry / VALUES).stat().st_size <= values.nbytes + MAX_HEADER
        if not fits or meta != {"format": FORMAT, VALUES: crc32(entry / VALUES)}:
            raise ValueError("its values are not those of its checksum and shape")
        return values
    except Exception as error:  # NumPy's reader raises many types on damaged files, also for lack of memory
        if report:
            log.info("Cached features in %s are unusable (%s): computing them again", entry, one_line(error)[:200])
        return None
