"""Stopping on a signal without losing anything; imports nothing heavy, so that it works from the first second.

SIGTERM (a scheduler's preemption, ``kill``, ``timeout``), SIGUSR1 and SIGUSR2 (a scheduler's warning before its time
limit) ask a run to stop. While there are training steps to save, the wish is only noted, and ``LastCheckpoint`` acts
on it after the step that is being made; at any other time it ends the run at once.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from fer_lightning.runtime.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

SECONDS_TO_END = 5.0
"""How long the first process of a stopped run waits for the others."""

_signal: int | None = None
_since = 0.0
_deferred = False
_on_the_way_out = False


def listen() -> None:
    """Take the signals over; again after Lightning has put its own handlers in place."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, _note)


def ignore() -> None:
    """Be deaf: loader workers leave the signals to the process that started them, whom a group-wide one hits too."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def reset() -> None:
    """Begin a new run in this process."""
    global _signal, _deferred, _on_the_way_out
    _signal, _deferred, _on_the_way_out = None, False, False


def defer(on: bool) -> None:
    """From now on only note a signal (True), or let it end the run at once (False)."""
    global _deferred
    _deferred = on


def requested() -> bool:
    """Whether a signal has come."""
    return _signal is not None


def raise_interrupted(why: str = "") -> NoReturn:
    """End the run; later signals cannot disturb its way out.

    Raises:
        Interrupted: always.
    """
    global _on_the_way_out
    _on_the_way_out = True
    raise Interrupted(reason() + why)


def seconds_since() -> float:
    """Seconds since the signal came; 0 when none has."""
    return time.monotonic() - _since if requested() else 0.0


def reason() -> str:
    """What stopped the run, in a few words."""
    return "stopped by " + ("a signal to another of its processes" if _signal is None else signal.Signals(_signal).name)


def end_with_parent() -> None:
    """End this process within seconds of its parent's death, however that came about.

    For the further processes of a run: with the first one gone, they would wait in a collective operation for ever.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end_with_parent").start()


def _note(signum: int, frame: FrameType | None) -> None:
    global _signal, _since
    if _signal is None:
        _signal, _since = signum, time.monotonic()
    if not _deferred and not _on_the_way_out:
        raise_interrupted()
