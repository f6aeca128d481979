"""A process of the command line, forked from one that has imported torch and Lightning once.

A fresh interpreter spends three to twelve seconds of processor time on these imports. Only for processes that use no
GPU: CUDA cannot be used in a fork of a process that has asked for it.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from multiprocessing import reduction, resource_tracker
from pathlib import Path
from typing import Any

PRELOADED = ("fer_lightning.sweeps.hook", "fer_lightning.training.run", "fer_lightning.imbalance.losses")
"""What the server imports before it forks: what most runs need, and nothing that starts a thread or asks for a GPU."""

_TO_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a terminal or a scheduler sends to a whole group; the server ends when the last process of its has."""


class ForkedProcess:
    """``python -m <module> <arguments>`` in a session of its own, with the part of ``subprocess.Popen`` that is used.

    Args:
        module: what to run.
        arguments: of its command line.
        folder: its working directory.
        environment: all its environment variables.
        output: file descriptors of its two output streams; may be closed when this returns.
    """

    def __init__(
        self, module: str, arguments: list[str], folder: Path, environment: dict[str, str], output: tuple[int, int]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        streams = tuple(map(_Descriptor, output))
        self._process = context.Process(target=_run, args=(module, arguments, folder, environment, streams))
        resource_tracker.ensure_running()  # unblocks signals where it starts one
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_ALL)
        own = dict(os.environ)
        method = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method(None, force=True)  # a worker of joblib passes on one that nobody else knows
        try:
            os.environ.update(environment)  # the server's imports read it
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(own)
            multiprocessing.set_start_method(method, force=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """``returncode``."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s")
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send it SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class _Descriptor:
    """A file descriptor that arrives in the forked process as a number of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (reduction.DupFd(self.number),)


def _receive(sent: Any) -> int:
    number: int = sent.detach()
    return number


def _run(module: str, arguments: list[str], folder: Path, environment: dict[str, str], output: tuple[int, int]) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_ALL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in zip((1, 2), output, strict=True):
        os.dup2(descriptor, number)
    for descriptor in set(output):
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _set_threads(environment)
    sys.argv = [module, *arguments]
    multiprocessing.current_process().name = "MainProcess"
    code: int | str | None = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    finally:
        # As a Python process ends; multiprocessing's own order would wait for loky's workers, which do not end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.exit(code)


def _set_threads(environment: dict[str, str]) -> None:
    """OpenMP has read the variable of the server's environment."""
    import torch

    given = environment.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) not in (0, torch.get_num_threads()):
        torch.set_num_threads(int(given))
