"""Text of unknown origin made safe for a terminal or a log: file names, labels, columns, reasons, error texts.

A control character would set colours, the title or the clipboard of a terminal, or begin a line of its own in a log.
"""

import logging
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

LONGEST = 3000
"""Maximum characters of an error message; a longer one is cut in the middle."""

_CONTROL = {"Cc", "Zl", "Zp"}
_UNSAFE = {*_CONTROL, "Cf", "Cs"}
"""Unicode categories: control characters, invisible formatting such as right-to-left overrides, lone surrogates (bytes
of a file name that are not UTF-8), and separators of lines and paragraphs."""


def printable(text: object, keep: str = "") -> str:
    r"""Replace what does not print by its escape, such as ``\x1b`` or ``\n``; all other text stays.

    Args:
        text: converted by ``str``.
        keep: characters to leave, such as the line feeds of a traceback.
    """
    content = str(text)
    if content.isprintable():
        return content
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in keep and unicodedata.category(character) in _UNSAFE
        else character
        for character in content
    )


def has_control_characters(text: str) -> bool:
    """Whether a text holds a line break or another control character, which no setting and no recorded word may."""
    return any(unicodedata.category(character) in _CONTROL for character in text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Cut a text in the middle: its beginning names what was given, its end what to do."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def escape_messages(hide: Callable[[str], str] = str) -> None:
    """From now on escape what log records and warnings of this process contain, whatever their handlers.

    Args:
        hide: applied to every text, such as one that leaves secrets out.
    """
    _Record.hide = staticmethod(hide)
    if logging.getLogRecordFactory() is not _Record:
        logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _format_warning


def format_traceback(error: BaseException, hide: Callable[[str], str] = str) -> str:
    """The traceback of an exception, with the control characters of its message escaped, after ``hide``."""
    return printable(hide("".join(traceback.format_exception(error))), keep="\n")


class _Record(logging.LogRecord):
    """A log record whose arguments and traceback are escaped; line feeds remain in the text of the program itself."""

    hide: Callable[[str], str] = staticmethod(str)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = format_traceback(self.exc_info[1], self.hide).rstrip("\n")  # handlers take it as it is

    def getMessage(self) -> str:
        arguments = self.args
        if isinstance(arguments, tuple):
            self.args = tuple(_plain(each) for each in arguments)
        try:
            return printable(self.hide(super().getMessage()), keep="\n\t")
        finally:
            self.args = arguments


def _plain(argument: Any) -> Any:
    return printable(argument) if isinstance(argument, str | PurePath | BaseException) else argument


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    return printable(_Record.hide(f"{filename}:{lineno}: {category.__name__}: {message}"), keep="\n") + "\n"
