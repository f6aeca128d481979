"""Which members of an archive are read: names, kinds and sizes that are refused, and files that are left out."""

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from fer_lightning.runtime.errors import UserError

MAX_FILE = 2**30
"""Maximum bytes of one unpacked file; ``fer2013.csv`` has 3e8."""

MAX_ARCHIVE = 2**32
"""Maximum total bytes of an unpacked archive; the competition's largest has 8e8."""

MAX_MEMBERS = 1_000_000
"""Maximum number of members of an archive, or files of a folder; Kaggle's has 35,887, AffectNet 291,651."""

MAX_NAME = 4096
"""Maximum characters of a member's name, as of a path on Linux."""

MAX_NAMES = 2**28
"""Maximum characters of the names of all members together; AffectNet's have 1e7."""

UNPACK = "unpack it and give the folder or file"
_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "lost+found"}
_TOOLS = {".git", ".ipynb_checkpoints"}

T = TypeVar("T")


def safe_members(path: Path, found: Iterable[tuple[str, int, bool, T]]) -> tuple[dict[str, T], list[str]]:
    """Map names with forward slashes to the visible files among (name, bytes, is file or folder, member).

    Returns:
        The files; and the hidden folders that hold others.

    Raises:
        UserError: a member points out of the archive, is a link or device, is too large, or has no name, one that is
            too long, or that of another file or folder; there are too many, or their names are too long together; names
            the first.
    """
    members: dict[str, T] = {}
    hidden: dict[str, None] = {}
    total = characters = 0
    for number, (raw, size, plain, member) in enumerate(found):
        given = raw.replace("\\", "/")
        parts = [part for part in given.split("/") if part not in ("", ".")]
        name = "/".join(parts)
        total, characters = total + size, characters + len(raw)
        remedy = "get the data elsewhere"
        if len(raw) > MAX_NAME:
            reason, remedy = f"has a name of {len(raw):,} characters, and at most {MAX_NAME:,} are read", UNPACK
        elif ".." in parts or given.startswith("/") or re.match("[A-Za-z]:", name):
            reason = "points out of the archive"
        elif not plain:
            reason = "is a link, a device or a sparse file"
        elif not 0 <= size <= MAX_FILE:
            reason, remedy = f"claims {in_gib(size)}, and at most {in_gib(MAX_FILE)} are read", UNPACK
        elif total > MAX_ARCHIVE:
            limit = f"and at most {in_gib(MAX_ARCHIVE)} of an archive are read"
            reason, remedy = f"is one too many: {number + 1:,} members so far claim {in_gib(total)}, {limit}", UNPACK
        elif characters > MAX_NAMES:
            limit = f"and at most {MAX_NAMES:,} are read"
            reason, remedy = f"is one too many: the names so far have {characters:,} characters, {limit}", UNPACK
        elif number >= MAX_MEMBERS:
            reason, remedy = f"is one too many: at most {MAX_MEMBERS:,} members are read", "give a smaller archive"
        elif size > 0 and (given.endswith("/") or not parts):
            reason = "has the content of a file and not the name of one"
        elif name in members:  # which of the two counts depends on the program that unpacks them
            reason = "occurs twice"
        else:
            reason = ""
        if reason:
            raise UserError(f"{path}: member {raw[:200]!r} {reason}; nothing was unpacked; {remedy}")
        if given.endswith("/") or not parts:
            continue
        litter = next((place for place, part in enumerate(parts) if is_litter(part)), None)
        if litter is None:
            members[name] = member
        elif litter < len(parts) - 1 and is_hidden(parts[litter]):
            hidden["/".join(parts[: litter + 1])] = None
    _check_no_folder(path, members)
    return members, list(hidden)


def _check_no_folder(path: Path, names: Iterable[str]) -> None:
    """Refuse a file that is called as a folder of others: one of them would be lost when they are unpacked."""
    ordered = sorted(name.replace("/", "\0") for name in names)  # files of a folder follow its own name
    for name, following in pairwise(ordered):
        if following.startswith(f"{name}\0"):
            raise UserError(
                f"{path}: member {name.replace(chr(0), '/')[:200]!r} is a file and a folder of others; nothing was "
                "unpacked; get the data elsewhere"
            )


def is_hidden(name: str) -> bool:
    """Whether a folder is left out as its name begins with a dot, besides those of Git and Jupyter."""
    return name.startswith(".") and name not in _TOOLS


def is_litter(name: str) -> bool:
    """Whether a file or folder is one that systems and programs leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def in_gib(count: int) -> str:
    """A number of bytes in GiB."""
    return f"{count / 2**30:,.1f} GiB"
