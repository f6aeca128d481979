"""The competition's csv files: one image per row, with its 2,304 pixel values in one field."""

import csv
import io
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np

from fer_lightning.data.faces import EMOTIONS, IMAGE_SIZE, USAGES, Faces
from fer_lightning.runtime.errors import UserError

PIXELS = IMAGE_SIZE * IMAGE_SIZE
COLUMNS = ("emotion", "pixels", "usage")
CSV_USAGES = USAGES[:3]
MAX_LINE = 2**17
"""Maximum characters per line; 2,304 pixel values need fewer than 10,000."""


def read_pixel_csv(stream: IO[bytes], source: str, packing: str = "") -> Faces:
    """Read ``fer2013.csv`` or ``icml_face_data.csv``: columns emotion, pixels, Usage in any order and case.

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
    rows = _rows(csv.reader(iter(lambda: text.readline(MAX_LINE), "")), source)
    header = [name.strip().lower() for name in next(rows, [])]
    if not header:
        raise UserError(f"{source} is empty: give fer2013.csv or icml_face_data.csv")
    _check_header(header, source)
    emotion_at, pixels_at, usage_at = (header.index(column) for column in COLUMNS)
    usages = {name.lower(): number for number, name in enumerate(CSV_USAGES)}

    images, labels, usage = [], [], []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if len(row) != len(header):
            raise UserError(
                f"{where}: {len(row)} of {len(header)} columns; the file is cut short or damaged: download it again"
            )
        images.append(_pixels(row[pixels_at], where))
        labels.append(_label(row[emotion_at], where))
        name = row[usage_at].strip()
        if name.lower() not in usages:
            raise UserError(f"{where}: unknown Usage {name[:40]!r}; accepted are {', '.join(CSV_USAGES)}")
        usage.append(usages[name.lower()])
    if not images:
        raise UserError(f"{source} has a header but no rows: download it again")
    layout = "fer2013.csv" if header.index("pixels") < header.index("usage") else "icml_face_data.csv"
    return Faces.from_arrays(
        np.stack(images),
        np.array(labels),
        np.array(usage),
        np.array([f"row {number}" for number in range(1, len(images) + 1)]),
        kind=f"{layout} ({packing})" if packing else layout,
    )


def _rows(reader: Iterator[list[str]], source: str) -> Iterator[list[str]]:
    """Yield the non-blank rows; raise ``UserError`` for binary content."""
    try:
        yield from (row for row in reader if row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{source} is neither an archive nor a csv that can be read ({error})") from error


def _check_header(header: list[str], source: str) -> None:
    missing = [column for column in COLUMNS if column not in header]
    if missing == ["usage"]:
        raise UserError(
            f"{source} has no Usage column (the competition's train.csv has none), so PublicTest and"
            " PrivateTest cannot be separated: give fer2013.csv or icml_face_data.csv"
        )
    if missing:
        raise UserError(
            f"{source} has no column {' and no column '.join(missing)}: its first line must name"
            " emotion, pixels and Usage, as in fer2013.csv or icml_face_data.csv"
        )


def _pixels(text: str, where: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # older numpy only warns on unparsable text
            values = np.fromstring(text, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise UserError(f"{where}: the pixels hold something that is no whole number") from None
    if len(values) != PIXELS:
        raise UserError(f"{where}: {len(values)} pixel values; {PIXELS} ({IMAGE_SIZE} x {IMAGE_SIZE}) are needed")
    if values.min() < 0 or values.max() > 255:
        wrong = values[(values < 0) | (values > 255)][0]
        raise UserError(f"{where}: pixel value {wrong}; accepted are 0 to 255")
    return values.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE)


def _label(text: str, where: str) -> int:
    names = ", ".join(f"{number} {name}" for number, name in enumerate(EMOTIONS))
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < len(EMOTIONS):
        raise UserError(f"{where}: emotion {text.strip()[:40]!r}; accepted are {names}")
    return label
