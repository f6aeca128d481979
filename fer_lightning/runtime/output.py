"""Standard output that may fail, on a full disk or a closed pipe, without ending the work that prints to it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Output:
    """A stream that drops what it cannot write, and keeps the first error.

    Args:
        stream: the text stream to write to.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text; drop it after the first failure."""
        try:
            if self.error is None:
                self.stream.write(text)
        except OSError as error:
            self.error = error
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            if self.error is None:
                self.stream.flush()
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def tolerant_output() -> Iterator[Output]:
    """Let nothing in the block fail because standard output cannot be written."""
    before, output = sys.stdout, Output(sys.stdout)
    sys.stdout = output
    try:
        yield output
    finally:
        output.flush()
        sys.stdout = before
        if output.error is not None:
            # Its buffer still holds the text, which Python would fail to write again at its end.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, before.fileno())
            os.close(null)
