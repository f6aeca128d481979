"""A CSV or TSV that names images and their labels: ``path,label[,split]``."""

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from fer_lightning.data.pixel_csv import DELIMITERS, MAX_LINE, USAGE_NAMES, check_is_line
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "filepath", "img", "pth", "name"),
    "label": ("label", "class", "emotion", "expression", "target"),
    "split": ("split", "usage", "subset", "set", "partition"),
}
"""Columns, and the names that data sets give them."""

MAX_ROWS = 2_000_000


class LabelledFile(NamedTuple):
    """A row: the file's path, its label, and its part (index into ``USAGES``; 0 without a column of splits)."""

    path: str
    label: str
    usage: int


def has_label_columns(first_line: str) -> bool:
    """Whether the first line of a file names the columns of such a table."""
    header = header_names(first_line, _delimiter(first_line))
    return all(set(COLUMNS[column]) & set(header) for column in ("path", "label"))


def read_label_table(stream: IO[bytes], source: str, names: Sequence[str], folder: str) -> list[LabelledFile]:
    """Read the table and find its files.

    Args:
        stream: the table.
        source: its name in error messages.
        names: the files that there are.
        folder: of the table; paths are relative to it, or to the top.

    Raises:
        UserError: no such table; a row with more columns than the first line names, or without a file, label or part;
            a file that does not exist, or is listed twice with another label or part. Names the row.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    lines = iter(lambda: text.readline(MAX_LINE), "")
    try:
        first = next((line for line in lines if line.strip()), "")
        delimiter = _delimiter(first)
        header = header_names(first, delimiter)
        places = _places(header, source)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        rows = complete_rows(reader, source)
        files = list(_rows(rows, len(header), places, source, set(names), folder))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not UTF-8 text with columns ({error}): write path,label[,split]") from None
    return files if "split" in places else _in_parts(files, source)


def _in_parts(files: list[LabelledFile], source: str) -> list[LabelledFile]:
    """Take the parts from the folders, as train/a.png, where each path is in one; for a table that names none."""
    found = []
    for file in files:
        above = (name.lower() for name in PurePosixPath(file.path).parts[:-1])
        found.append(next((USAGE_NAMES[name] for name in above if name in USAGE_NAMES), None))
    parts = set(found) - {None}
    if len(parts) > 1 and None in found:
        outside = files[found.index(None)].path
        raise UserError(
            f"{source}: {outside} is in no folder such as train or test, and other images are: add a column split"
        )
    if len(parts) < 2:
        return files
    log.info("%s: has no column of parts; they are those of the folders", source)
    return [file._replace(usage=part) for file, part in zip(files, found, strict=True) if part is not None]


def complete_rows(reader: Iterator[list[str]], source: str, skip_empty: bool = True) -> Iterator[list[str]]:
    """The rows that are not blank; an open quote would make the rows after it a part of its cell.

    Args:
        reader: a ``csv.reader`` that is strict.
        source: of the rows, for error messages.
        skip_empty: leave out rows whose cells are all empty, not blank lines alone.

    Raises:
        UserError: a quote is not closed, or a cell has several lines; names the row.
    """
    number = 0
    try:
        for row in reader:
            if any(cell.strip() for cell in row) or (row and not skip_empty):
                number += 1
                check_is_line(row, f"{source}, row {number}")
                yield row
    except csv.Error as error:
        raise UserError(
            f"{source}, after row {number}: cannot be read ({error}): close each quote, and double those inside"
        ) from None


def _rows(
    rows: Iterator[list[str]], columns: int, places: dict[str, int], source: str, names: set[str], folder: str
) -> Iterator[LabelledFile]:
    seen: dict[str, LabelledFile] = {}
    width = max(places.values()) + 1
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if number > MAX_ROWS:
            raise UserError(f"{source} has more than {MAX_ROWS:,} rows: give a smaller table")
        if len(row) < width:
            raise UserError(f"{where}: {len(row)} column{'s' * (len(row) > 1)}, and {width} are needed")
        if any(cell.strip() for cell in row[columns:]):  # a path with a comma shifts the columns after it
            raise UserError(
                f"{where}: {len(row)} columns, and the first line names {columns}: put a text that holds the separator "
                "in quotes"
            )
        given = {column: row[place].strip() for column, place in places.items()}
        for column in ("path", "label"):
            if not given[column]:
                raise UserError(f"{where}: its {column} is empty: fill it in, or remove the row")
        path = _find(given["path"], names, folder)
        if path is None:
            what = f"{where}: {given['path'][:120]} is not there"
            raise UserError(f"{what}: give paths relative to the table, below its folder")
        found = LabelledFile(path, given["label"], _usage(given.get("split"), where))
        if path in seen and seen[path] != found:
            what = "part" if seen[path].label == found.label else "label"
            raise UserError(f"{where}: {path} is listed before with another {what}: keep one of the rows")
        if path not in seen:
            seen[path] = found
            yield found


def _find(path: str, names: set[str], folder: str) -> str | None:
    plain = path.replace("\\", "/")
    candidates = (str(PurePosixPath(folder, plain)), str(PurePosixPath(plain)))
    return next((name for name in candidates if name in names), None)


def _usage(text: str | None, where: str) -> int:
    if text is None:
        return 0
    usage = USAGE_NAMES.get(text.lower())
    if usage is None:
        raise UserError(f"{where}: split {text[:40]!r}; accepted: train, val, test")
    return usage


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


def header_names(line: str, delimiter: str) -> list[str]:
    """The names of the columns in the first line of a table, in lower case."""
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]


def _places(header: list[str], source: str) -> dict[str, int]:
    places = {
        column: header.index(name) for column, names in COLUMNS.items() for name in reversed(names) if name in header
    }
    missing = [column for column in ("path", "label") if column not in places]
    if missing:
        raise UserError(f"{source} has no column {' and no column '.join(missing)}: its first line must be path,label")
    for column, place in places.items():
        if header.count(header[place]) > 1:
            raise UserError(f"{source} has the column {header[place]} twice: remove or rename one of them")
        others = [name for name in COLUMNS[column] if name in header and name != header[place]]
        if others:
            log.info("%s: its %s is read from the column %s, not %s", source, column, header[place], ", ".join(others))
    return places
