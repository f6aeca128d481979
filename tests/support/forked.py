"""``ForkedProcess`` with the streams of ``subprocess.Popen``, for tests that need a real process.

Tests whose subject is the start of a process (the import path, what is imported, environment variables of Python) take
a fresh interpreter instead.
"""

import os
from pathlib import Path

from fer_lightning.runtime.forked import ForkedProcess


class Forked(ForkedProcess):
    """``python -m <module> <arguments>`` that prints both streams to ``stdout``, or to the two files where given."""

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        module: str = "fer_lightning",
        files: tuple[Path, Path] | None = None,
    ) -> None:
        self.stdout = None
        if files is None:
            read, write = os.pipe()
            output = [write]
            self.stdout = os.fdopen(read)
        else:
            output = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in files]
        try:
            super().__init__(module, arguments, folder, environment, (output[0], output[-1]))
        finally:
            for descriptor in output:
                os.close(descriptor)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        assert self.stdout is not None
        text = self.stdout.read()
        self.wait(timeout)
        return text, None
