"""The extended headers of a tar, checked before ``tarfile`` reads them.

``tarfile`` looks for records with expressions that need minutes for a small archive made for it (CVE-2024-6232), keeps
a copy of the global ones for each member, and takes any amount of them.
"""

import re
import tarfile
from pathlib import Path
from typing import IO

from fer_lightning.data.members import UNPACK
from fer_lightning.runtime.errors import UserError

BLOCK = 512
"""Bytes of a header; the text of an extended one follows in whole blocks."""

PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

MAX_TEXT = 2**19
"""Maximum bytes of an extended header; attributes of files have up to 2^16."""

MAX_TEXTS = 2**28
"""Maximum bytes of all extended headers; 300,000 members with their times have 3e7."""

MAX_RECORDS = 2**22
"""Maximum records of all extended headers; 300,000 members with their times have 1e6."""

MAX_GLOBAL_RECORDS = 100
"""Maximum records of all global headers, each of which ``tarfile`` looks at for each member; Git writes one."""

_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{100}")
"""Digits that no header needs; for a run of them, ``tarfile`` takes the square of its length."""

_RECORD = re.compile(rb"([0-9]{1,10}) ([^=\n]{1,1024})=")
"""The beginning of a record, ``length keyword=value``; attributes of files have keywords of up to 255 bytes."""

_SPARSE = b"GNU.sparse."
"""The beginning of the keywords of a sparse file."""


class CheckedHeaders:
    """A stream for ``tarfile`` that checks the records of each extended header when it is read.

    Args:
        stream: of the archive, at its beginning.
        path: of the archive, for error messages.

    Attributes:
        listing: headers are read; False while members are, whose bytes are not checked.

    Raises:
        tarfile.ReadError: a header holds anything but records of the lengths that they state.
        UserError: a header is too long, they are too long together, or one is that of a sparse file: ``tarfile`` would
            read its map, of any length.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self.listing = True
        self._stream, self._path = stream, path
        self._last = b""  # type of the header before, whose text is read next
        self._bytes = self._records = self._global_records = 0

    def read(self, size: int = -1) -> bytes:
        """Read, and check what follows the header of an extended one."""
        if not self.listing:
            return self._stream.read(size)
        is_text = self._last in (*PAX, *LONG_NAMES)
        if is_text and size > MAX_TEXT:
            raise self._too_much(f"an extended header has {size:,} bytes", f"{MAX_TEXT:,}")
        data = self._stream.read(size)
        if is_text:
            self._count(data.rstrip(b"\0"))
        self._last = b"" if is_text or len(data) != BLOCK else data[156:157]
        if self._last == tarfile.GNUTYPE_SPARSE:
            raise self._sparse()
        return data

    def _count(self, text: bytes) -> None:
        keywords = check_records(text) if self._last in PAX else []
        if any(keyword.startswith(_SPARSE) for keyword in keywords):
            raise self._sparse()
        self._bytes += len(text)
        self._records += len(keywords)
        self._global_records += len(keywords) if self._last == tarfile.XGLTYPE else 0
        for number, limit, what in (
            (self._bytes, MAX_TEXTS, "bytes"),
            (self._records, MAX_RECORDS, "records"),
            (self._global_records, MAX_GLOBAL_RECORDS, "records for all members"),
        ):
            if number > limit:
                raise self._too_much(f"its extended headers have {number:,} {what} so far", f"{limit:,}")

    def _too_much(self, what: str, limit: str) -> UserError:
        return UserError(f"{self._path}: {what}, and at most {limit} are read; nothing was unpacked; {UNPACK}")

    def _sparse(self) -> UserError:
        return UserError(f"{self._path}: a member is a sparse file; nothing was unpacked; get the data elsewhere")


def check_records(text: bytes) -> list[bytes]:
    """Check that the text of an extended header is records alone, without long numbers, in linear time.

    Returns:
        The keywords of the records.

    Raises:
        tarfile.ReadError: it is not.
    """
    if _LONG_NUMBER.search(text):
        raise tarfile.ReadError("an extended header has a number of more than 100 digits")
    place, keywords = 0, []
    while place < len(text):
        record = _RECORD.match(text, place)
        end = place + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(text):
            raise tarfile.ReadError("an extended header does not consist of records")
        keywords.append(record[2])
        place = end
    return keywords
