"""Standard output that may fail, on a full disk or a closed pipe, without ending the work that prints to it."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

CLOSED_PIPE = 141
"""Exit code when the reader of standard output, such as head, has closed it: what a shell reports after SIGPIPE."""


class Output:
    """A stream that drops what it cannot write, and keeps the first error.

    Args:
        stream: the text stream to write to.
        needs_reader: whether what is printed is the result, so that an error of the stream is one of the process, and a
            pipe that its reader has closed ends it, with ``CLOSED_PIPE``.
    """

    def __init__(self, stream: Any, needs_reader: bool) -> None:
        self.stream = stream
        self.needs_reader = needs_reader
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text; drop it after the first failure."""
        try:
            if self.error is None:
                self.stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write texts, as ``write``."""
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            if self.error is None:
                self.stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.error = error
        if self.needs_reader and error.errno == errno.EPIPE:
            raise SystemExit(CLOSED_PIPE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def need_reader() -> None:
    """From now on what is printed is the result of the process: see ``Output``."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needs_reader = True


def tolerate_errors_of_stderr() -> None:
    """For the rest of the process, let nothing fail because standard error cannot be written."""
    if sys.stderr is None:  # closed by the shell
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    elif not isinstance(sys.stderr, Output):
        sys.stderr = Output(sys.stderr, needs_reader=False)


@contextmanager
def tolerant_output(needs_reader: bool) -> Iterator[Output]:
    """Let nothing in the block fail because standard output, or a character in its encoding, cannot be written.

    For ``needs_reader`` see ``Output``.
    """
    is_closed = sys.stdout is None  # by the shell, as in >&-
    if is_closed:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    before, output = sys.stdout, Output(sys.stdout, needs_reader)
    if hasattr(sys.stdout, "reconfigure"):  # a name may have characters that the terminal's encoding has not
        with suppress(OSError):  # of a pipe, in a process forked from one that writes to a file; it is applied
            sys.stdout.reconfigure(errors="backslashreplace")
    if is_closed:
        output.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout = output
    try:
        yield output
    finally:
        with suppress(SystemExit):
            output.flush()
        sys.stdout = before
        if output.error is not None:
            # Its buffer still holds the text, which Python would fail to write again at its end.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, before.fileno())
            os.close(null)
