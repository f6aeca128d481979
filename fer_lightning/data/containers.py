"""The files of a folder, a zip or a tar behind one small interface."""

import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

from fer_lightning.errors import UserError

MAX_DEPTH = 4
"""Folders are searched this deep: a wrongly given home folder must not be walked to its end."""

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


class Container(Protocol):
    """Named files that can be opened one at a time."""

    path: Path
    form: str

    def names(self) -> list[str]:
        """Paths of all files, relative, with forward slashes, in the order that reads fastest."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """The bytes of one of ``names()``."""
        ...


class Folder:
    """The files below a folder."""

    form = "folder"

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Paths of the visible files, sorted."""
        found = []
        for folder, folders, files in os.walk(self.path, followlinks=True):
            below = Path(folder).relative_to(self.path)
            deep_enough = len(below.parts) + 1 >= MAX_DEPTH
            folders[:] = [] if deep_enough else [name for name in folders if not _is_litter(name)]
            found += [(below / name).as_posix() for name in files if not _is_litter(name)]
        return sorted(found)

    def open(self, name: str) -> IO[bytes]:
        """Open a file below the folder."""
        return open(self.path / name, "rb")


class Zip:
    """The files of a zip archive."""

    form = "zip"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self._members = {}
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/")
            if info.is_dir() or any(_is_litter(part) for part in name.split("/")):
                continue
            if info.flag_bits & 1:
                raise UserError(f"{path} is protected by a password: unpack it and give the folder")
            self._members[name] = info

    def names(self) -> list[str]:
        """Paths of the visible members, in the archive's order."""
        return list(self._members)

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        return self._zip.open(self._members[name])


class Tar:
    """The files of a tar archive, compressed or not."""

    form = "tar"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path)  # noqa: SIM115 (open as long as its members are read)
        self._members = {}
        for member in self._tar:
            name = member.name.removeprefix("./")
            if member.isfile() and not any(_is_litter(part) for part in name.split("/")):
                self._members[name] = member

    def names(self) -> list[str]:
        """Paths of the visible members, in the archive's order."""
        return list(self._members)

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        return cast(IO[bytes], self._tar.extractfile(self._members[name]))


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what the archive readers raise on a damaged or unreadable file into one clear line.

    Raises:
        UserError: the file is damaged, cut short or may not be read.
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
        raise UserError(f"{path} is damaged or cut short ({_one_line(error)}): download it again") from error
    except (struct.error, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or packed in an unknown way ({_one_line(error)})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or _one_line(error)}") from error


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
