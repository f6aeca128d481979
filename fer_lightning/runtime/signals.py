"""Stopping on a signal without losing anything; imports nothing heavy, so that it works from the first second.

SIGTERM (a scheduler's preemption, ``kill``, ``timeout``), SIGUSR1 and SIGUSR2 (a scheduler's warning before its time
limit) ask a run to stop. During training the signal is only recorded, and ``LastCheckpoint`` saves and stops after the
current step; at any other time it ends the run at once.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from fer_lightning.runtime.errors import Interrupted, Paused

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

SECONDS_TO_END = 5.0
"""How long the first process of a stopped run waits for the others."""

_signal: int | None = None
_since = 0.0
_deferred = False
_ending = False


def listen() -> None:
    """Install the handlers; again after Lightning has installed its own."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, _record)


def ignore() -> None:
    """Ignore stop signals in loader workers; the parent handles them."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def reset() -> None:
    """Forget earlier signals, before a new run in this process."""
    global _signal, _deferred, _ending
    _signal, _deferred, _ending = None, False, False


def defer(on: bool) -> None:
    """From now on only record a signal (True), or let it end the run at once (False)."""
    global _deferred
    _deferred = on


def requested() -> bool:
    """Whether a signal was received."""
    return _signal is not None


def raise_interrupted(why: str = "") -> NoReturn:
    """End the run; later signals are ignored while it ends.

    Raises:
        Interrupted: always.
    """
    global _ending
    _ending = True
    raise Interrupted(reason() + why)


def raise_paused(epochs: int) -> NoReturn:
    """End a run that ``pause_after_epochs`` limits to ``epochs``; signals are ignored while it ends.

    Raises:
        Paused: always.
    """
    global _ending
    _ending = True
    raise Paused(epochs)


def seconds_since() -> float:
    """Seconds since the signal was received; 0 without one."""
    return time.monotonic() - _since if requested() else 0.0


def reason() -> str:
    """What stopped the run, in a few words."""
    return "stopped by " + ("a signal to another of its processes" if _signal is None else signal.Signals(_signal).name)


def end_with_parent() -> None:
    """End this process within seconds after its parent has ended, for any reason.

    For the further processes of a run: without the first one they would wait in a collective operation forever.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end_with_parent").start()


def _record(signum: int, frame: FrameType | None) -> None:
    global _signal, _since
    if _signal is None:
        _signal, _since = signum, time.monotonic()
    if not _deferred and not _ending:
        raise_interrupted()
