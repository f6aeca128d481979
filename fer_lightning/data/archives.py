"""Uniform read access to the files of a folder, a zip or a tar.

Archives are untrusted. Nothing is unpacked to disk. Members with paths outside the archive are refused anyway, and so
are archives that unpack to more than ``MAX_ARCHIVE`` bytes: the sizes in the headers are checked, and for tar and gzip
files also the number of bytes read.
"""

import bz2
import gzip
import io
import logging
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from fer_lightning.data.members import (
    MAX_ARCHIVE,
    MAX_MEMBERS,
    UNPACK,
    in_gib,
    is_hidden,
    is_litter,
    safe_members,
)
from fer_lightning.data.tar_headers import CheckedHeaders
from fer_lightning.data.xz import open_xz
from fer_lightning.runtime.errors import UserError, one_line

log = logging.getLogger(__name__)

MAX_DEPTH = 6
"""Depth to which folders are searched, so that a home folder given by mistake is not walked completely."""

MAX_FOLDERS = 20_000
"""Maximum number of folders below a folder; links may lead to the same ones again and again."""

MAX_PIECE = 2**25
"""Maximum bytes of a single read, and of an image file."""

END_RECORD = 22
"""Bytes at the end of a zip, without its comment."""

UTF8_FLAG = 0x800
"""The bit of a zip member's flags that says that its name is UTF-8."""

_PACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": open_xz}


class Container(Protocol):
    """Named files that can be opened one at a time.

    Attributes:
        path: of the folder or archive.
        form: what it is: folder, zip or tar.
        hidden: folders in it that are left out, besides those of Git and Jupyter.
    """

    path: Path
    form: str
    hidden: list[str]

    def names(self) -> list[str]:
        """Relative paths of all files, with forward slashes, in the order that is fastest to read."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open one of ``names()`` as a binary stream."""
        ...

    def is_current(self) -> bool:
        """Whether the archive that was opened is still the one at its path."""
        ...


class Folder:
    """The files below a folder; see ``Container``.

    Attributes:
        empty: folders below it that hold nothing.
        deep: folders below it that are too deep to be searched.

    Raises:
        UserError: a folder cannot be read, or there are too many.
    """

    form = "folder"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hidden: list[str] = []
        self.empty: list[str] = []
        self.deep: list[str] = []
        self._names = sorted(self._list())

    def _list(self) -> Iterator[str]:
        folders_seen = files_seen = 0
        for folder, folders, files in os.walk(self.path, onerror=_refuse_unreadable, followlinks=True):
            below = Path(folder).relative_to(self.path)
            deep_enough = len(below.parts) + 1 >= MAX_DEPTH
            hidden = [name for name in folders if is_hidden(name)]
            self.hidden += [(below / name).as_posix() for name in hidden]
            if not folders and all(map(is_litter, files)):
                self.empty.append(below.as_posix())
            folders[:] = [name for name in folders if not is_litter(name)]
            if deep_enough:
                self.deep += [(below / name).as_posix() for name in folders]
                folders.clear()
            folders_seen, files_seen = folders_seen + 1, files_seen + len(files)
            if folders_seen > MAX_FOLDERS or files_seen > MAX_MEMBERS:
                raise UserError(
                    f"{self.path} has more than {MAX_FOLDERS:,} folders or {MAX_MEMBERS:,} files below it: "
                    "give the folder that holds the images"
                )
            yield from ((below / name).as_posix() for name in files if not is_litter(name))

    def names(self) -> list[str]:
        """Paths of the visible files, sorted."""
        return self._names

    def open(self, name: str) -> io.BufferedReader:
        """Open a file below the folder."""
        return open_file(self.path / name)

    def is_current(self) -> bool:
        """True: its files are opened one by one."""
        return True


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): allow it, or remove the folder")


class _Archive:
    path: Path
    _members: Mapping[str, Any]
    _file: IO[bytes]
    hidden: list[str]

    def names(self) -> list[str]:
        """Paths of the visible members, in the archive's order."""
        return list(self._members)

    def is_current(self) -> bool:
        """Whether the archive that was opened is still the one at its path."""
        return self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())


class Zip(_Archive):
    """The files of a zip archive."""

    form = "zip"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path)  # open while this lives
        self._zip = zipfile.ZipFile(self._file)
        self._check_end()
        self._members, self.hidden = safe_members(path, self._list())

    def _list(self) -> Iterator[tuple[str, int, bool, zipfile.ZipInfo]]:
        members = self._zip.infolist()
        if (before := min((info.header_offset for info in members), default=0)) > 0:
            raise UserError(f"{self.path} has {before:,} bytes before its first member, such as another zip: {UNPACK}")
        for info in members:
            if info.flag_bits & 1 and not info.is_dir():
                raise UserError(f"{self.path} is protected by a password: unpack it and give the folder")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile unpacks others, such as bzip2, without a limit: one read may take all memory.
                raise UserError(f"{self.path} is packed in another way than Deflate: {UNPACK}")
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if packed on a system without file modes
            yield _zip_name(info), info.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR), info

    def _check_end(self) -> None:
        """Check that nothing follows: of two zips in one file, zipfile reads the first where the second is cut."""
        self._file.seek(-len(self._zip.comment) - END_RECORD, os.SEEK_END)
        if self._file.read(4) != b"PK\x05\x06":
            raise zipfile.BadZipFile("data after its end")

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        return self._zip.open(self._members[name])


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name; macOS and some Linux programs write UTF-8 without the flag that says so."""
    if info.flag_bits & UTF8_FLAG or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")  # zipfile has decoded it as cp437
    except UnicodeError:
        return info.filename


class Tar(_Archive):
    """The files of a tar archive, compressed or not."""

    form = "tar"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = cast(IO[bytes], unpacked(path, MAX_ARCHIVE))  # open while this lives
        self._headers = CheckedHeaders(self._file, path)
        # "r:" because tarfile would otherwise decompress further layers itself, without a limit.
        self._tar = tarfile.open(fileobj=cast(IO[bytes], self._headers), mode="r:")  # noqa: SIM115 - open while this lives
        self._members, self.hidden = safe_members(path, self._list())

    def _list(self) -> Iterator[tuple[str, int, bool, tarfile.TarInfo]]:
        for member in self._tar:
            name = f"{member.name}/" if member.isdir() else member.name
            plain = (member.isfile() and not member.issparse()) or member.isdir()
            member.pax_headers = {}  # each member has a copy of the global ones
            yield name, 0 if member.isdir() else member.size, plain, member
        self._headers.listing = False
        self._check_end()

    def _check_end(self) -> None:
        """Check that zeros alone follow the last member: tarfile takes a damaged header, or any cut, for the end."""
        stream = self._file
        stream.seek(self._tar.offset)
        zeros = 0
        while piece := stream.read(MAX_PIECE):
            if piece.strip(b"\0"):
                raise tarfile.ReadError(f"data after its end, {self._tar.offset:,} bytes from its beginning")
            zeros += len(piece)
        if zeros < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no mark of its end, so that files may be missing")

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        return cast(IO[bytes], self._tar.extractfile(self._members[name]))


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file; a pipe or a device would block, or never end.

    Raises:
        UserError: it is anything else.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file: replace or remove it")
    return open(descriptor, "rb")


def unpacked(path: Path, limit: int) -> "Limited":
    """Open a file as a stream of at most ``limit`` bytes, decompressing gzip, bzip2 or xz."""
    with open_file(path) as stream:
        start = stream.read(6)
    opener = next((opener for magic, opener in _PACKERS.items() if start.startswith(magic)), open_file)
    return Limited(opener(path), path, limit)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, compressed or not."""
    with unpacked(path, MAX_PIECE) as stream:
        try:
            return stream.read(512)[257:262] == b"ustar"
        except (OSError, EOFError, zlib.error, lzma.LZMAError):  # left to the reader of another format to report
            return False


class Limited(io.RawIOBase):
    """A stream that delivers at most ``limit`` bytes, whatever the headers of its file state.

    Raises:
        UserError: on a read beyond ``limit`` or of more than ``MAX_PIECE`` bytes at once.
    """

    def __init__(self, stream: IO[bytes], path: Path, limit: int) -> None:
        self._stream, self._path, self._limit = stream, path, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_PIECE:  # a size from a header that cannot be trusted
            raise UserError(f"{self._path} is damaged or made to fill the memory: one part claims {size} bytes")
        return super().read(size) or b""

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        if self.tell() > self._limit:
            raise UserError(
                f"{self._path} unpacks to more than {in_gib(self._limit)}, the limit for an archive: {UNPACK}"
            )
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def log_left_out(container: Container) -> None:
    """Log the folders whose files are not among the names of a container."""
    empty, deep = (container.empty, container.deep) if isinstance(container, Folder) else ([], [])
    for kind, folders in (("hidden", container.hidden), ("empty", empty)):
        if folders:
            log.info("Ignored %s folders: %s", kind, ", ".join(sorted(folders)[:5]))
    if deep:
        log.warning("Ignored folders more than %d levels deep: %s", MAX_DEPTH - 1, ", ".join(sorted(deep)[:5]))


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Convert the errors of the archive readers into a one-line ``UserError``.

    Raises:
        UserError: the file is damaged, truncated or cannot be read.
    """
    try:
        yield
    except (
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
    ) as error:
        raise UserError(f"{path} is damaged or cut short ({one_line(error)}): download it again") from error
    except (struct.error, ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or packed in an unknown way ({one_line(error)}): get it again") from error
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or one_line(error)}") from error
