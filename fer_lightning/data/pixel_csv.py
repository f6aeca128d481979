"""The competition's csv files: one image per row, with its 2,304 pixel values in one field."""

import csv
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from fer_lightning.data.faces import EMOTIONS, IMAGE_SIZE, USAGES, Faces, emotion_index
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

PIXELS = IMAGE_SIZE * IMAGE_SIZE
COLUMNS = {"emotion": ("emotion", "label"), "pixels": ("pixels", "pixel"), "usage": ("usage", "split")}
"""Columns, and the names that copies give them."""
USAGE_NAMES = {
    "training": 0,
    "train": 0,
    "publictest": 1,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "privatetest": 2,
    "test": 3,
    "testing": 3,
}
"""Values of the column Usage and names of folders in lower case -> index into ``USAGES``."""
DELIMITERS = ",;\t|"
REMEDY = "correct the row, or download the file again"
MAX_LINE = 2**17
"""Maximum characters per line; 2,304 pixel values need fewer than 10,000."""


def read_pixel_csv(stream: IO[bytes], source: str, packing: str = "") -> Faces:
    """Read ``fer2013.csv`` or ``icml_face_data.csv``: columns emotion, pixels, Usage in any order and case.

    Labels may be numbers, also as ``3.0``, or names; fields may be separated by semicolons, tabs or bars. Without the
    column Usage, as in the competition's ``train.csv``, all images are Training.

    Args:
        stream: the uncompressed bytes.
        source: name of the file in error messages.
        packing: compression or archive format ("zip"), added to ``Faces.kind``; empty for a plain file.

    Returns:
        Faces in the file's order, with ids ``row N`` where N counts data rows from 1.

    Raises:
        UserError: the file is not such a csv, or a row is not an image; names the row.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    # Limit the length of a line, to bound memory; a longer one fails the checks of its row.
    lines = iter(lambda: text.readline(MAX_LINE), "")
    first = _first_line(lines, source)
    delimiter = max(DELIMITERS, key=first.count)
    rows = _rows(csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True), source)
    header = [name.strip().lower() for name in next(rows, [])]
    if not header:
        raise UserError(f"{source} is empty: give fer2013.csv or icml_face_data.csv")
    places = _find_columns(header, source)

    images, labels, usage = [], [], []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        check_is_line(row, where)
        if len(row) != len(header):
            raise UserError(
                f"{where}: {len(row)} of {len(header)} columns; the file is cut short or damaged: download it again"
            )
        images.append(_pixels(row[places["pixels"]], where))
        labels.append(_label(row[places["emotion"]], where))
        usage.append(_usage(row[places["usage"]], where) if "usage" in places else 0)
    if not images:
        raise UserError(f"{source} has a header but no rows: download it again")
    layout = "csv without Usage"
    if "usage" in places:
        layout = "fer2013.csv" if places["pixels"] < places["usage"] else "icml_face_data.csv"
    return Faces.from_arrays(
        np.stack(images),
        np.array(labels),
        np.array(usage),
        np.array([f"row {number}" for number in range(1, len(images) + 1)]),
        kind=f"{layout} ({packing})" if packing else layout,
    )


def has_columns(stream: IO[bytes]) -> bool:
    """Whether the first line of a file names the columns emotion and pixels."""
    first = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace").readline(MAX_LINE)
    header = {name.strip(" \"'\r\n").lower() for name in first.split(max(DELIMITERS, key=first.count))}
    return all(header.intersection(COLUMNS[column]) for column in ("emotion", "pixels"))


def check_is_line(row: Sequence[str], where: str) -> None:
    """Check that a row is one line: a quote that a later row closes makes the rows between them a part of its cell.

    Raises:
        UserError: a cell has several lines.
    """
    text = "".join(row)
    if "\n" in text or "\r" in text:
        raise UserError(f"{where}: a cell has several lines: close each quote, and write a row as one line")


def _first_line(lines: Iterator[str], source: str) -> str:
    """The first line that is not blank; empty at the end of the file."""
    try:
        return next((line for line in lines if line.strip()), "")
    except UnicodeDecodeError as error:
        raise _unreadable(source, error) from error


def _rows(reader: Iterator[list[str]], source: str) -> Iterator[list[str]]:
    """Yield the non-blank rows; raise ``UserError`` for binary content."""
    try:
        yield from (row for row in reader if row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> UserError:
    return UserError(f"{source} is neither an archive nor a csv that can be read ({error}): download it again")


def _find_columns(header: list[str], source: str) -> dict[str, int]:
    """Column -> its place in the header; without ``usage`` where there is none."""
    places = {
        column: header.index(name) for column, names in COLUMNS.items() for name in reversed(names) if name in header
    }
    missing = [column for column in ("emotion", "pixels") if column not in places]
    if missing:
        raise UserError(
            f"{source} has no column {' and no column '.join(missing)}: its first line must name"
            " emotion, pixels and Usage, as in fer2013.csv or icml_face_data.csv"
        )
    if twice := next((header[place] for place in places.values() if header.count(header[place]) > 1), None):
        raise UserError(f"{source} has the column {twice} twice: remove or rename one of them")
    for column, place in places.items():
        others = [name for name in COLUMNS[column] if name in header and name != header[place]]
        if others:
            log.info("%s: its %s is read from the column %s, not %s", source, column, header[place], ", ".join(others))
    return places


def _pixels(text: str, where: str) -> np.ndarray:
    text = text.strip().removeprefix("[").removesuffix("]").replace(",", " ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # older numpy only warns on unparsable text
            if "." in text:
                values = np.fromstring(text, dtype=np.float64, sep=" ")
            else:
                values = np.fromstring(text, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        values = np.array([np.nan])
    if not np.array_equal(values, np.floor(values)):
        raise UserError(f"{where}: the pixels hold something other than whole numbers; {REMEDY}")
    if len(values) != PIXELS:
        needed = f"{PIXELS} ({IMAGE_SIZE} x {IMAGE_SIZE}) are needed"
        raise UserError(f"{where}: {len(values)} pixel values; {needed}; {REMEDY}")
    if values.min() < 0 or values.max() > 255:
        wrong = values[(values < 0) | (values > 255)][0]
        raise UserError(f"{where}: pixel value {wrong}; accepted: 0 to 255; {REMEDY}")
    return values.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE)


def _label(text: str, where: str) -> int:
    label = emotion_index(text)
    if label is None:
        names = ", ".join(f"{number} {name}" for number, name in enumerate(EMOTIONS))
        raise UserError(f"{where}: emotion {text.strip()[:40]!r}; accepted: {names}; {REMEDY}")
    return label


def _usage(text: str, where: str) -> int:
    usage = USAGE_NAMES.get(text.strip().lower())
    if usage is None:
        raise UserError(f"{where}: unknown Usage {text.strip()[:40]!r}; accepted: {', '.join(USAGES)}; {REMEDY}")
    return usage
