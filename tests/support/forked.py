"""Real processes of the command line, forked from one that has imported torch and Lightning once.

A fresh interpreter spends some nine seconds of processor time on imports. Tests whose subject is the start of a
process (the import path, what is imported, environment variables of Python) take a fresh one instead.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["cv2", "matplotlib.pyplot", "fer_lightning.__main__", "fer_lightning.sweeps.hook", "fer_lightning.training.run"]
)


class Forked:
    """``python -m <module> <arguments>`` in ``folder``, with the part of ``subprocess.Popen`` that the tests use.

    It leads a session of its own, and prints both streams to ``stdout``, or to the two files where they are given.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        module: str = "fer_lightning",
        files: tuple[Path, Path] | None = None,
    ) -> None:
        with tempfile.TemporaryDirectory() as place:
            pipe = Path(place, "stdout")
            if files is None:
                os.mkfifo(pipe)
            self._process = SERVER.Process(
                target=_run_module, args=(module, arguments, folder, environment, files or (pipe, pipe))
            )
            self._process.start()
            assert self._process.pid
            self.pid = self._process.pid
            self.stdout: IO[str] | None = pipe.open() if files is None else None

    @property
    def returncode(self) -> int | None:
        """Negative for the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        assert self.stdout is not None
        text = self.stdout.read()
        self.wait(timeout)
        return text, None

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self._process.kill()


def _run_module(
    module: str, arguments: list[str], folder: Path, environment: dict[str, str], files: tuple[Path, Path]
) -> None:
    os.setsid()
    opened = {path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in set(files)}
    for number, path in zip((1, 2), files, strict=True):
        os.dup2(opened[path], number)
    for descriptor in opened.values():
        os.close(descriptor)
    for number in (1, 2):
        stream = os.fdopen(os.dup(number), "w", buffering=1)
        setattr(sys, "stdout" if number == 1 else "stderr", stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.current_process().name = "MainProcess"
    code: int | str | None = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    finally:
        # As a Python process ends; multiprocessing's own order would wait for loky's workers for ever.
        threading._shutdown()
        atexit._run_exitfuncs()
    sys.exit(code)
