"""On-disk cache of parsed data sets, stored as NumPy arrays and keyed by the content of their source."""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import filelock
import numpy as np
import platformdirs

from fer_lightning.data.archives import Folder, open_file
from fer_lightning.data.faces import Faces

log = logging.getLogger(__name__)

FORMAT = 2
"""Increment whenever parsing or the stored arrays change, so that older entries are rebuilt."""


def default_cache_dir() -> Path:
    """Default folder of the cache: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("fer_lightning"))


def content_key(container: Path | Folder, names: Sequence[str] = ()) -> str:
    """Hex digest of a file's bytes, or of the paths in a folder and the bytes of the files ``names`` of it.

    Names, sizes and times do not tell two folders apart: tar, rsync and cp keep times, and uncompressed images of one
    size have one length.
    """
    if isinstance(container, Path):
        with open_file(container) as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    digest = hashlib.blake2b("\0".join(container.names()).encode(errors="surrogateescape"), digest_size=16)
    for name in names:
        with container.open(name) as stream:
            digest.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
    return digest.hexdigest()


def cached(key: str, build: Callable[[], Faces], cache_dir: Path) -> Faces:
    """Return the faces stored under ``key``; build and store them first if there are none.

    Safe for concurrent processes: one builds, the others wait for it. Entries are written atomically; a damaged or
    outdated one is rebuilt. If the folder cannot be written, the faces are built without being stored.

    Args:
        key: name of the entry, from ``content_key``.
        build: builds the faces if they are not stored; its exceptions propagate.
        cache_dir: folder of the entries, created if missing.

    Returns:
        Faces whose images, (N, 48, 48), are a read-only memory map, or plain arrays if they could not be stored.
    """
    entry = cache_dir / key
    # First without the lock: entries are renamed into place when complete, and the folder may be read-only.
    faces = _read(entry)
    if faces is not None:
        return faces
    lock = filelock.FileLock(cache_dir / f"{key}.lock")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("Cache folder %s cannot be used (%s): parsing without it", cache_dir, error)
        return build()
    with held:
        faces = _read(entry, report=True)
        if faces is not None:
            return faces
        faces = build()
        try:
            _write(entry, faces)
        except OSError as error:
            log.warning("Parsed images could not be cached in %s (%s)", cache_dir, error)
            return faces
        return _read(entry) or faces


def _read(entry: Path, report: bool = False) -> Faces | None:
    """The stored faces, or None if there is no usable entry."""
    if not entry.is_dir():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text())
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, not {FORMAT}")
        for name in ("images.npy", "index.npz"):
            if _crc32(entry / name) != meta[name]:
                raise ValueError(f"{name} has the wrong checksum")
        images = np.load(entry / "images.npy", mmap_mode="r")
        with np.load(entry / "index.npz") as index:
            return Faces(
                images=images,
                labels=index["labels"],
                usage=index["usage"],
                ids=index["ids"],
                twins=index["twins"],
                kind=meta["kind"],
                data_hash=meta["data_hash"],
                synthetic=meta["synthetic"],
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if report:
            log.info("Cached images in %s are unusable (%s): rebuilding them", entry, error)
        return None


def _write(entry: Path, faces: Faces) -> None:
    """Store the faces atomically as ``entry``; the caller holds the lock."""
    for leftover in entry.parent.glob(f".{entry.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    building = entry.parent / f".{entry.name}-{os.getpid()}"
    try:
        building.mkdir()
        np.save(building / "images.npy", faces.images)
        np.savez(
            building / "index.npz",
            labels=faces.labels,
            usage=faces.usage,
            ids=faces.ids,
            twins=faces.twins,
        )
        meta = {
            "format": FORMAT,
            "kind": faces.kind,
            "data_hash": faces.data_hash,
            "synthetic": faces.synthetic,
            "images.npy": _crc32(building / "images.npy"),
            "index.npz": _crc32(building / "index.npz"),
        }
        (building / "meta.json").write_text(json.dumps(meta, indent=1))
        if entry.exists():
            shutil.rmtree(entry)
        building.rename(entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
