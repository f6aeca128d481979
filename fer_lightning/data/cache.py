"""On-disk cache of parsed data sets, stored as NumPy arrays and keyed by the content of their source."""

import hashlib
import json
import logging
import math
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import platformdirs

from fer_lightning.data.archives import MAX_PIECE, Container, Folder, open_file
from fer_lightning.data.cache_entries import RESERVE, crc32, flush_to_disk, read_or_build
from fer_lightning.data.faces import Faces, channels_first, channels_last
from fer_lightning.data.members import MAX_ARCHIVE
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import check_not_sparse, read_json

log = logging.getLogger(__name__)

FORMAT = 5
"""Increment whenever parsing or the stored arrays change, so that older entries are rebuilt."""

MAX_SIDE = 1024
"""Maximum pixels of a side of stored images."""

IMAGES, INDEX, META = "images.npy", "index.npz", "meta.json"


def default_cache_dir() -> Path:
    """Default folder of the cache: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("fer_lightning"))


Allocate = Callable[[tuple[int, ...]], np.ndarray]
"""Makes the array that images are read into, uint8 of a given shape, stored as ``channels_last`` has it: a file of the
cache, so that memory does not limit a set."""


def content_key(container: Path | Container, names: Sequence[str] = (), reading: str = "") -> str:
    """Hex digest of a file's bytes, or of the paths in a folder and the bytes of the files ``names`` of it.

    ``reading`` says how the files are read: equal content read in two ways has two entries.

    Names, sizes and times do not tell two folders apart: tar, rsync and cp keep times, and uncompressed images of one
    size have one length.

    Raises:
        UserError: a file is larger than what is read of its kind; its bytes would take hours.
    """
    if not isinstance(container, Folder):
        path = container if isinstance(container, Path) else container.path
        with open_file(path) as stream:
            _check_size(path, stream, MAX_ARCHIVE)
            content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        content.update(reading.encode(errors="surrogateescape"))
        return content.hexdigest()
    listed = "\0".join([*container.names(), *([reading] if reading else [])])
    digest = hashlib.blake2b(digest_size=16)
    digest.update(listed.encode(errors="surrogateescape"))
    for name in names:
        with container.open(name) as stream:
            _check_size(container.path / name, stream, MAX_PIECE)
            digest.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
    return digest.hexdigest()


def _check_size(path: Path, stream: IO[bytes], limit: int) -> None:
    size = os.fstat(stream.fileno()).st_size
    if size > limit:
        raise UserError(f"{path} has {size:,} bytes, and at most {limit:,} are read: remove it, or give another file")


def cached(key: str, build: Callable[[Allocate], Faces], cache_dir: Path) -> Faces:
    """Return the faces stored under ``key``; build and store them first if there are none, see ``read_or_build``.

    Args:
        key: name of the entry, from ``content_key``.
        build: builds the faces if they are not stored; may read the images into an array from ``Allocate``. Its
            exceptions propagate.
        cache_dir: folder of the entries, created if missing.

    Returns:
        Faces whose images are a read-only memory map, or a plain array if they could not be stored.

    Raises:
        UserError: the disk has no room for the images.
    """
    entry = cache_dir / key
    return read_or_build(
        entry,
        lambda report: _read(entry, report),
        lambda folder: build(_in_memory if folder is None else partial(_in_file, folder)),
        _write,
    )


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return channels_first(np.empty(_stored(shape), np.uint8))


def _stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array of images in memory and in a file."""
    return shape if len(shape) == 3 else (shape[0], *shape[2:], shape[1])


def _in_file(building: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Images of this shape in a file of the entry; in memory where the folder cannot be written.

    Raises:
        UserError: the disk has no room for them.
    """
    size = math.prod(shape)
    free = shutil.disk_usage(building.parent).free
    if size + RESERVE > free and size > RESERVE:
        raise UserError(
            f"the images need {size / 1e9:.1f} GB in {building.parent}, which has {free / 1e9:.1f} GB free: give "
            "data.cache_dir=DIR on another disk, or a smaller data.image_size"
        )
    try:
        images = np.lib.format.open_memmap(building / IMAGES, mode="w+", dtype=np.uint8, shape=_stored(shape))
        with (building / IMAGES).open("r+b") as file:
            # Now, not when a page is written: a full disk would then end the process.
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return channels_first(images)
    except (OSError, AttributeError):  # AttributeError: not on every system
        (building / IMAGES).unlink(missing_ok=True)
        return _in_memory(shape)


def _read(entry: Path, report: bool) -> Faces | None:
    """The stored faces, or None if there is no usable entry."""
    if not entry.is_dir():
        return None
    try:
        if not all((entry / name).is_file() for name in (META, IMAGES, INDEX)):  # a pipe would block
            raise ValueError("a file is missing")
        meta = read_json(entry / META)
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, not {FORMAT}")
        with warnings.catch_warnings(action="ignore"):  # of a header that it doubts and reads
            images = channels_first(np.load(entry / IMAGES, mmap_mode="r"))
        # An entry may come from somebody else, with data.cache_dir: what it claims is bounded before it is read.
        check_not_sparse(entry / IMAGES)
        check_not_sparse(entry / INDEX)
        if max(images.shape[1:], default=0) > MAX_SIDE:
            raise ValueError(f"its images have more than {MAX_SIDE} pixels a side")
        if meta.pop(META) != _checksum(meta):
            raise ValueError(f"{META} has the wrong checksum")
        if crc32(entry / INDEX) != meta[INDEX]:
            raise ValueError(f"{INDEX} has the wrong checksum")
        with zipfile.ZipFile(entry / INDEX) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError(f"{INDEX} is compressed")
        with np.load(entry / INDEX) as index:
            faces = Faces(
                images=images,
                labels=index["labels"],
                usage=index["usage"],
                ids=index["ids"],
                twins=index["twins"],
                kind=meta["kind"],
                data_hash=meta["data_hash"],
                synthetic=meta["synthetic"],
                classes=tuple(meta["classes"]),
            )
        # What is recorded as its hash must be its hash.
        if not faces.is_intact():
            raise ValueError("its images or labels are not those of its hash")
        return faces
    except Exception as error:  # NumPy's readers raise many types on damaged files, also for lack of memory
        if report:
            log.info("Cached images in %s are unusable (%s): rebuilding them", entry, one_line(error)[:200])
        return None


def _write(building: Path, faces: Faces) -> None:
    if (building / IMAGES).exists():  # the images were read into it
        flush_to_disk(building / IMAGES)
    else:
        np.save(building / IMAGES, channels_last(faces.images))
    np.savez(building / INDEX, labels=faces.labels, usage=faces.usage, ids=faces.ids, twins=faces.twins)
    meta = {
        "format": FORMAT,
        "kind": faces.kind,
        "data_hash": faces.data_hash,
        "synthetic": faces.synthetic,
        "classes": faces.classes,
        INDEX: crc32(building / INDEX),
    }
    (building / META).write_text(json.dumps({**meta, META: _checksum(meta)}, indent=1))


def _checksum(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
