"""The file of a checkpoint or of weights, checked before ``torch.load`` reads it into memory."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import IO

from fer_lightning.model.pickle_check import check_pickle
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import check_not_sparse

MAX_PICKLE = 2**22
"""Maximum bytes of everything but tensors, each million of which takes seconds to check; a long run has some 10**5."""

OLD_PICKLES = 5
"""Pickles at the beginning of a file as torch wrote it before 1.6: versions, content, keys of tensors."""

END, LOCATOR = 22, 20
"""Bytes of the end of a zip, and of what precedes it in a large one."""


def check_archive(path: Path) -> None:
    """Check that a file is a zip as torch writes it, whose parts are intact, before anything reads it into memory.

    Raises:
        UserError: it would take more memory than the file has bytes, or has holes.
        zipfile.BadZipFile: it is not a zip, or damaged, or torch would read another one in it.
    """
    check_file(path)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if not _begins_as_zip(file) or _directory(file) != archive.start_dir:
            raise zipfile.BadZipFile("its directory is not where its end says")
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise UserError(f"{path}: is compressed, which no checkpoint is, and is not unpacked")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise UserError(f"{path}: claims to hold more than the file does, and is not read")
        names = {part.filename.lower() for part in parts}  # torch looks them up without regard to case
        if len(names) < len(parts):
            raise zipfile.BadZipFile("it holds a name twice")
        pickles = [part for part in parts if part.filename.lower().endswith(".pkl")]
        if sum(part.file_size for part in pickles) > MAX_PICKLE:
            raise UserError(f"{path}: holds more than {MAX_PICKLE:,} bytes besides its tensors, and is not read")
        if damaged := archive.testzip():  # torch does not verify the checksums
            raise zipfile.BadZipFile(f"{damaged} has the wrong checksum")
        for part in pickles:
            try:
                check_pickle(archive.read(part))
            except ValueError as error:
                raise UserError(f"{path}: damaged, {one_line(error)}; give a run's checkpoints/best.ckpt") from None


def check_file(path: Path) -> None:
    """Check that all of a file is on the disk.

    Raises:
        UserError: it has holes, which would take any amount of memory.
    """
    try:
        check_not_sparse(path)
    except ValueError as error:
        raise UserError(f"{path}: damaged, {error}; give another file") from None


def is_zip(path: Path) -> bool:
    """Whether torch takes a file for a zip, by its first bytes."""
    with path.open("rb") as file:
        return _begins_as_zip(file)


def check_old_format(path: Path) -> None:
    """Check the pickles of a file as torch wrote it before 1.6, before anything reads it into memory.

    Raises:
        UserError: it has holes.
        ValueError: it is not such a file, or would take more memory than it has bytes.
    """
    check_file(path)
    with path.open("rb") as file:
        beginning = file.read(MAX_PICKLE)
    if _is_tar(beginning[: tarfile.BLOCKSIZE]):
        raise ValueError("it is a tar, as torch wrote before 0.2; load it there, and save it again")
    pickles = io.BytesIO(beginning)
    for _ in range(OLD_PICKLES):
        check_pickle(pickles)


def _is_tar(header: bytes) -> bool:
    """Whether torch takes a file for a tar; ``tarfile`` would unpack it, and read names of any length."""
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _begins_as_zip(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def _directory(file: IO[bytes]) -> int | None:
    """Where the end of a zip says that its directory begins; None where two ends say different things.

    ``zipfile`` corrects the place if anything precedes the zip, and torch does not: they would read different ones.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END - LOCATOR))
    locator, end = file.read(LOCATOR) if size >= END + LOCATOR else b"", file.read(END)
    if len(end) < END or end[:4] != b"PK\x05\x06":  # with a comment, which torch does not write
        return None
    place = int(struct.unpack("<I", end[16:20])[0])
    if locator[:4] != b"PK\x06\x07":
        return place
    file.seek(struct.unpack("<Q", locator[8:16])[0])
    record = file.read(56)
    if len(record) < 56 or record[:4] != b"PK\x06\x06":
        return None
    large = int(struct.unpack("<Q", record[48:56])[0])
    return large if place in (large, 0xFFFFFFFF) else None
