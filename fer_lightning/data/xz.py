"""Read .xz files in bounded memory; ``lzma.open`` takes as much as their headers ask for, up to 4 GiB."""

import io
import lzma
import os
from pathlib import Path
from typing import Any

from fer_lightning.data.members import UNPACK
from fer_lightning.runtime.errors import UserError

MAX_MEMORY = 2**28
"""Bytes of memory to unpack with; what ``xz -9`` has packed needs 7e7."""

_PIECE = 2**16


def open_xz(path: Path) -> io.BufferedReader:
    """Open an .xz file of one or several streams to read what they hold, one after the other.

    Raises:
        UserError: when it is read: unpacking it takes more than ``MAX_MEMORY`` bytes.
        lzma.LZMAError: when it is read: it is damaged, or something else follows a stream.
        EOFError: when it is read: it is cut short.
    """
    return io.BufferedReader(_Unpacked(path))


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - see close
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._place, self._packed = 0, b""
        self._stream = _new_stream()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place before the end; backwards, all before it is unpacked again."""
        target = offset + (self._place if whence == os.SEEK_CUR else 0)
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("from the end")
        if target < self._place:
            self._begin()
        while self._place < target and self.read(min(_PIECE, target - self._place)):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and self._has_stream():
            if self._stream.needs_input and not self._packed:
                self._packed = self._file.read(_PIECE)
                if not self._packed:
                    raise EOFError("a stream has no end")
            data = self._unpack(len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _has_stream(self) -> bool:
        """Go on to the next stream at the end of one; False at the end of the last."""
        if not self._stream.eof:
            return True
        packed = self._stream.unused_data
        while not (packed := packed.lstrip(b"\0")):  # zeros may lie between streams
            packed = self._file.read(_PIECE)
            if not packed:
                return False
        self._packed, self._stream = packed, _new_stream()
        return True

    def _unpack(self, size: int) -> bytes:
        packed, self._packed = self._packed, b""
        try:
            return self._stream.decompress(packed, size)
        except lzma.LZMAError as error:
            if "limit" in str(error):
                limit = f"{MAX_MEMORY >> 20} MiB"
                raise UserError(f"{self._path} needs more than {limit} of memory to be unpacked: {UNPACK}") from None
            raise

    def close(self) -> None:
        self._file.close()
        super().close()


def _new_stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
