"""Text of unknown origin in a document: markdown, HTML and CSV show it and do not act on it.

Names of methods, models, files, folders and settings, and reasons of failures, may come from a run folder, an archive
or a checkpoint that somebody else made. Each writer of a format uses the function here.
"""

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from fer_lightning.presentation.printable import printable

_MARKDOWN = re.compile(
    r"[\\`*{}\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)/|(?<=www)\.|^[-+](?=[-+\s]|$)|^\d+(?=[.)](?:\s|$))"
)
"""What could begin emphasis, code, a link, an image, a table cell, a formula, a list or a heading.

An underscore within a word could not.
"""

_CODE = re.compile(r"[^`<>&|\\\[\]]+")
"""Text that stays within backticks, in a table too, and that no reader takes for HTML."""

_BEFORE_FORMULA = r"(?=[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20])"
# A spreadsheet may take semicolons and tabs for the ends of cells, whatever the file's own separator.
_FORMULA = re.compile(rf"(?:^|(?<=[;\t\r\n])){_BEFORE_FORMULA}")
_GUARDED = re.compile(rf"(?:^|(?<=[;\t\r\n]))'{_BEFORE_FORMULA}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|-|[-+]?inf")


def to_markdown(text: object) -> str:
    """Text as markdown shows it literally, on one line, also within a table or a heading."""
    plain = html.escape(" ".join(printable(text, keep="\n\t").split()), quote=False)
    return _MARKDOWN.sub(lambda found: _escape_markdown(found[0]), plain)


def _escape_markdown(found: str) -> str:
    # A number at the start would begin a list only with the dot or bracket after it, which stays.
    return f"&#{ord(found[0])};{found[1:]}" if found[0].isdigit() else f"\\{found}"


def to_code(text: object) -> str:
    """Text as markdown shows it in a fixed font; in the font of its surroundings where it could end that."""
    plain = " ".join(printable(text, keep="\n\t").split())
    return f"`{plain}`" if _CODE.fullmatch(plain) else to_markdown(plain)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of markdown: the first row is its head, the first column is left-aligned, the others are right-aligned.

    Args:
        rows: of markdown, each entry escaped already.
    """
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def to_html(text: object) -> str:
    """Text as HTML shows it literally, also as the value of an attribute."""
    return html.escape(printable(text, keep="\n"))


def without_tags(text: object) -> str:
    """Text for a viewer that may or may not read HTML: only what would begin a tag is escaped."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(text, keep="\n"))


def to_csv(value: Any) -> Any:
    """A value for a CSV file: an apostrophe is put before what a spreadsheet would run as a formula.

    Numbers, and texts that are numbers, stay as they are.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub("'", value)


def from_csv(value: Any) -> Any:
    """The value that ``to_csv`` was given."""
    return _GUARDED.sub("", value) if isinstance(value, str) else value


def table_to_csv(table: pd.DataFrame) -> str:
    """A table as CSV with line feeds, its texts and headings as by ``to_csv``."""
    return change_texts(table, to_csv).to_csv(index=False, lineterminator="\n")


def table_from_csv(table: pd.DataFrame) -> pd.DataFrame:
    """A table that was read from ``table_to_csv``'s file, with the texts and headings that were written."""
    return change_texts(table, from_csv)


def change_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The same table with each text and heading changed; columns of numbers keep their type."""
    texts = [place for place, kind in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    changed = table.copy(deep=False)
    for place in texts:
        column = table.iloc[:, place]
        known = {value: change(value) for value in column.unique() if isinstance(value, str)}
        if any(value != new for value, new in known.items()):
            changed.isetitem(place, [known[value] if isinstance(value, str) else value for value in column])
    changed.columns = pd.Index([change(name) if isinstance(name, str) else name for name in table.columns])
    return changed
