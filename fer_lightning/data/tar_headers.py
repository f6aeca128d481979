"""The extended headers of a tar, checked before ``tarfile`` reads them.

``tarfile`` looks for records with expressions that need minutes for a small archive made for it (CVE-2024-6232).
"""

import re
import tarfile
from typing import IO

BLOCK = 512
"""Bytes of a header; the text of an extended one follows in whole blocks."""

PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

_LONG_NUMBER = re.compile(rb"[0-9]{100}")
"""Digits that no header needs; for a run of them, ``tarfile`` takes the square of its length."""

_RECORD = re.compile(rb"([0-9]{1,10}) [^=\n]{1,1024}=")
"""The beginning of a record, ``length keyword=value``; attributes of files have keywords of up to 255 bytes."""


class CheckedHeaders:
    """A stream for ``tarfile`` that checks the records of each extended header when it is read.

    Args:
        stream: of the archive, at its beginning.

    Attributes:
        listing: headers are read; False while members are, whose bytes are not checked.

    Raises:
        tarfile.ReadError: a header holds anything but records of the lengths that they state.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self.listing = True
        self._stream = stream
        self._last = b""  # type of the header before, whose text is read next

    def read(self, size: int = -1) -> bytes:
        """Read, and check what follows the header of an extended one."""
        data = self._stream.read(size)
        if not self.listing:
            return data
        if self._last in PAX:
            check_records(data)
        is_text = self._last in (*PAX, *LONG_NAMES)
        self._last = b"" if is_text or len(data) != BLOCK else data[156:157]
        return data


def check_records(text: bytes) -> None:
    """Check that the text of an extended header is records alone, without long numbers, in linear time.

    Raises:
        tarfile.ReadError: it is not.
    """
    text = text.rstrip(b"\0")
    if _LONG_NUMBER.search(text):
        raise tarfile.ReadError("an extended header has a number of more than 100 digits")
    place = 0
    while place < len(text):
        record = _RECORD.match(text, place)
        end = place + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(text):
            raise tarfile.ReadError("an extended header does not consist of records")
        place = end
