"""Which process of a run this is, which devices it may use, and how much a core works on; imports no torch."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fer_lightning.runtime.errors import UserError


def is_first_process() -> bool:
    """Whether this is the process of a run that prints and writes; from the launchers' variables, without torch."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(rank) or 0) for rank in ranks)


def device_count(devices: Any) -> int | None:
    """Number of requested devices per node; None where only Lightning can determine it (``auto``, ``-1``).

    Raises:
        UserError: for anything but a count, a list of indices or ``auto``.
    """
    if isinstance(devices, list) or OmegaConf.is_list(devices):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return None
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    try:
        return int(str(devices))
    except ValueError:
        raise UserError(f"trainer.devices={devices}: must be a number, auto, or a list such as [0,1]") from None


def visible_gpus() -> int | None:
    """Number of CUDA GPUs this process may use, without importing torch; None where that is unknown."""
    masked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if masked is not None and masked.strip() in ("", "-1"):
        return 0
    nodes = [node for node in Path("/dev").glob("nvidia*") if node.name.removeprefix("nvidia").isdigit()]
    if not nodes:
        other = not sys.platform.startswith("linux") or Path("/dev/dxg").exists() or Path("/dev/kfd").exists()
        return None if other else 0
    return min(len(nodes), len(masked.split(","))) if masked else len(nodes)


_IN_CACHE = 2**17
"""Numbers that a core changes at once. Whole batches of colour images at 96 px are two to three times as slow."""


def parts_in_cache(count: int, size: int) -> Iterator[slice]:
    """Parts of a batch small enough that a processor core works on one without leaving its cache.

    Args:
        count: items in the batch.
        size: numbers in an item.
    """
    few = max(1, _IN_CACHE // size)
    return (slice(start, start + few) for start in range(0, count, few))


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, mallopt(3)."""


def keep_freed_memory() -> None:
    """Let this process keep the memory that a batch frees, and the next one takes.

    glibc returns large blocks at once, so that each batch on a CPU would clear its pages anew. Nothing is done where
    the C library is another one.
    """
    with suppress(AttributeError, TypeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
