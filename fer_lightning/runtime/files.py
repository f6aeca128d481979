"""Files written whole or not at all, never through a link, and read as far as they can be trusted."""

import errno
import io
import itertools
import json
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fer_lightning.runtime.errors import UserError

MAX_BYTES = 64 << 20
"""Size above which a text file is not one of this project's, but for example a device or a damaged file."""

MAX_JSON = 4 << 20
"""The same for JSON, which takes up to forty times its size in memory."""

MAX_PATH = 4095
"""Bytes of a path on Linux."""

MAX_NAME = 255
"""Bytes of a name in it."""

MAX_BITS = 128
"""Maximum bits of a whole number in a file of unknown origin, as NumPy's random state has; 1025 do not fit a float."""

WRITTEN = (".json", ".csv", ".png", ".ckpt", ".log", ".yaml")
"""Suffixes of the files of a run folder."""

OVERWRITTEN = (".log", ".yaml", ".csv", ".png", ".md", ".html")
"""Suffixes of files that are written in place, and not by ``replace_file``."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as ``replace_file``; several processes may, such as a sweep and its job."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    _replace(path, text.encode(), path.with_name(f".{path.name}.{os.getpid()}"), keep=None)


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged, not a JSON object, has a key twice, is not a regular file, or larger than ``limit``.
    """
    try:
        text = read_bytes(path, limit).decode("utf-8")
        content = json.loads(text, parse_int=_whole_number, object_pairs_hook=_once)
        check_characters(text, content)
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, numbers of 5000 digits
        raise UserError(f"{path}: damaged, not JSON ({_reason(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, not a JSON object")
    return content


def check_characters(text: str, content: Any) -> None:
    r"""Check that what was read from JSON or YAML has no half of a character (``"\ud800"``), which cannot be written.

    The halves that stand for the bytes of a file name that is not UTF-8 are accepted.

    Raises:
        ValueError: it has one.
    """
    if "\\u" in text.lower():
        json.dumps(content, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file; returns at once for a pipe or a device, which would block or never end.

    Raises:
        FileNotFoundError: there is none.
        UserError: not a regular file, larger than ``limit`` bytes, or not readable.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"{str(path)!r}: cannot be read ({_reason(error)})") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path}: is not a regular file")
    pieces: list[bytes] = []
    size = os.fstat(file).st_size
    with os.fdopen(file, "rb", buffering=0) as opened:
        while size <= limit:
            try:
                piece = opened.read(1 << 20)
            except OSError as error:  # of the disk, or a file such as /proc/self/mem
                raise UserError(f"{path}: cannot be read ({_reason(error)})") from None
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size = max(size, sum(map(len, pieces)))
    raise UserError(f"{path}: has {size} bytes, more than {limit}; it is damaged")


def check_not_sparse(path: Path) -> None:
    """Refuse a file of holes, which takes any time to read; file systems that compress need less than a file's size.

    Raises:
        ValueError: less than a sixteenth of it is on the disk.
    """
    state = path.stat()
    if 0 < 16 * 512 * getattr(state, "st_blocks", 0) < state.st_size:
        raise ValueError(f"{path.name} claims {state.st_size:,} bytes, and has few on the disk")


def replace_file(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write a file so that it appears whole, even after a power failure, by the one process that
    writes it; a link in its place is replaced, not followed.

    Args:
        path: of the file.
        content: its bytes.
        keep: where the previous file is moved to; None to discard it.
    """
    _replace(path, content, path.with_name(f".{path.name}.part"), keep)


def _replace(path: Path, content: bytes | memoryview, temporary: Path, keep: Path | None) -> None:
    try:
        temporary.unlink(missing_ok=True)  # what a killed process left
    except OSError:  # a folder
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:  # exclusive: opens no link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_file_by(path: Path, write: Callable[[BinaryIO], Any], keep: Path | None = None) -> None:
    """As ``replace_file``, for content that a library writes to an open file, such as ``torch.save``.

    Args:
        path: of the file; its folder is created where it is missing.
        write: called with a binary file in memory: on a full disk, libraries raise errors that hide the reason.
        keep: where the previous file is moved to; None to discard it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    write(buffer)
    replace_file(path, buffer.getbuffer(), keep)


def as_path(value: object, name: str) -> Path:
    """A path that a caller gave.

    Raises:
        UserError: something else, or what no system takes for a path, which ``Path`` does only when it is used.
    """
    if not isinstance(value, str | Path):
        raise UserError(f"{name}={value!r}: must be a path")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:  # half of a character
        encoded = b"\0"
    longest = max(map(len, encoded.split(os.fsencode(os.sep))))
    if b"\0" in encoded or len(encoded) > MAX_PATH or longest > MAX_NAME:
        accepted = f"a path of at most {MAX_PATH} bytes, {MAX_NAME} in a name, no null characters"
        raise UserError(f"{name}={str(value)[:80]!r}: must be {accepted}")
    return Path(value)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, where it is missing.

    Raises:
        UserError: it cannot be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made as a folder ({error.strerror}); give another one") from None


def walk(folder: Path, onerror: Callable[[OSError], Any] | None = None) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk``, for folders of any depth: that of Python 3.11 ends in a RecursionError at about a thousand.

    Args:
        folder: where it begins; a link is followed here alone.
        onerror: called with the error of a folder that cannot be listed, as its ``filename``.

    Yields:
        A folder, and the names of its folders and of its files; names taken from the former are not entered.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            if onerror is not None:
                onerror(error)
            continue
        yield place, folders, files
        below = [os.path.join(place, name) for name in folders]
        waiting += [path for path in reversed(below) if not os.path.islink(path)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def check_no_links(folder: Path, deep: bool = True) -> None:
    """Check that nothing in a folder points outside of it, before it is written to: it may be somebody else's.

    W&B links its latest run and its logs, submitit its submission scripts: links in ``wandb`` and ``.submitit`` that
    stay in the folder are left alone, and so are those from one W&B run's logs to W&B's own log files, as the next run
    has a folder of its own. A file with a second name (a hard link) that this project appends to or
    overwrites gets a copy of its own.

    Args:
        folder: exists.
        deep: also look into its folders.

    Raises:
        UserError: naming the link, a folder in place of a file, or a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); allow it, or choose another folder")

    home = real_path(folder)
    for place, folders, names in itertools.islice(walk(folder, refuse), None if deep else 1):
        for name in (*folders, *names):
            path = Path(place, name)
            kind = path.lstat()
            if stat.S_ISLNK(kind.st_mode):
                inside = path.relative_to(folder).parts[:-1]
                is_log = inside[-3:-2] == ("wandb",) and inside[-1] == "logs"
                if is_log and re.fullmatch(r"core-debug-\w+\.log", real_path(path).name):
                    continue
                if {"wandb", ".submitit"}.intersection(inside) and real_path(path).is_relative_to(home):
                    continue
                raise UserError(
                    f"{path}: is a link, and nothing is written through one; replace the link with its target, "
                    "or choose another folder"
                )
            if stat.S_ISDIR(kind.st_mode) and path.suffix in WRITTEN:
                raise UserError(f"{path}: is a folder in place of a file; remove it, or choose another folder")
            if stat.S_ISREG(kind.st_mode) and kind.st_nlink > 1 and path.suffix in OVERWRITTEN:
                replace_file(path, read_bytes(path))
            elif not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
                raise UserError(f"{path}: is neither a file nor a folder; remove it, or choose another folder")


def real_path(path: str | Path) -> Path:
    """The absolute path with its links followed; unlike ``Path.resolve``, it raises nothing for a link to itself."""
    return Path(os.path.realpath(path))


def expanded(path: str | Path) -> Path:
    """The path with the home folder for ``~``; unlike ``Path.expanduser``, it leaves the name of an unknown user."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a null character in the name
        return Path(path)


def check_inside(path: Path, folder: Path) -> None:
    """Check that a path in a folder, which may be somebody else's, does not point outside of it.

    Raises:
        UserError: it is a link, or lies below one, that points outside.
    """
    if not real_path(path).is_relative_to(real_path(folder)):
        raise UserError(f"{path}: is a link that points outside {folder}; replace the link with its target")


def _whole_number(digits: str) -> int:
    number = int(digits)
    if number.bit_length() > MAX_BITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of a JSON object; which of two with one name counts depends on the program that reads them."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:40]!r} occurs twice")
    return content


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or errno.errorcode.get(error.errno or 0, "unknown error")
    return " ".join(str(error).split())[:100] or type(error).__name__
