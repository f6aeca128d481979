"""The GPUs of each job of a parallel sweep: at most ``jobs_per_device`` jobs use a GPU at a time.

A GPU has ``jobs_per_device`` slots. A slot is a locked file in a folder of this user, so that all sweeps of a user on
one machine share the slots. The job's process inherits the lock: the kernel frees it when the last process that holds
it has ended, for whatever reason.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import OmegaConf

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.processes import device_count, visible_gpus

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Need:
    """The devices that a job needs.

    Attributes:
        count: how many.
        gpus: ids of the GPUs to choose from; empty for a job on the CPU.
        named: ``trainer.devices`` is a list of GPUs, which the run indexes among all visible ones.
    """

    count: int
    gpus: tuple[str, ...]
    named: bool = False


def need(trainer: Any) -> Need:
    """The devices that a job with this ``trainer`` group needs on this machine."""
    gpus = gpu_ids() if trainer.accelerator != "cpu" else ()
    devices = OmegaConf.to_container(trainer.devices) if OmegaConf.is_list(trainer.devices) else trainer.devices
    count = device_count(devices)
    if not gpus:
        return Need(count or 1, ())
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, list):
        chosen = tuple(gpus[int(index)] for index in devices if int(index) < len(gpus))
        return Need(len(devices), chosen if len(chosen) == len(devices) else (), named=True)
    return Need(min(count or len(gpus), len(gpus)), gpus)


def gpu_ids() -> tuple[str, ...]:
    """Ids of the visible GPUs, as in ``CUDA_VISIBLE_DEVICES``; a single one if they cannot be counted without torch."""
    given = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    count = visible_gpus()
    if count is None:
        return tuple(given) or ("0",)
    return tuple(given[:count]) if given else tuple(map(str, range(count)))


def jobs_at_once(needs: Sequence[Need], per_device: int, cores: int) -> int:
    """How many jobs this machine can run at a time: all its GPUs in use, or a core for every CPU process."""
    limits = []
    gpus = {gpu for need in needs for gpu in need.gpus}
    if gpus:  # a job waits for free GPUs, so the smallest need limits
        limits.append(len(gpus) * per_device // min(need.count for need in needs if need.gpus))
    if any(not need.gpus for need in needs):  # no job waits for free cores, so the largest need limits
        limits.append(cores // max(need.count for need in needs if not need.gpus))
    return max(1, min(limits))


def acquire(need: Need, per_device: int, give_up: Callable[[], bool]) -> dict[str, int] | None:
    """Wait until all GPUs that a job needs have a free slot at once, and lock these slots.

    Returns:
        GPU id -> the open file that holds the slot: pass it to the job's process, and close it when that has ended.
        None when ``give_up()`` returned true.
    """
    if not need.gpus:
        return {}
    folder = _folder()
    # Only one of the jobs that wait for the same GPUs may try: otherwise small jobs could block a large one forever.
    queue = folder / f"turn-{hashlib.blake2b(' '.join(sorted(need.gpus)).encode(), digest_size=8).hexdigest()}"
    turn = None
    try:
        while not give_up():
            turn = _acquire(queue) if turn is None else turn
            if turn is not None:
                slots = _free_slots(folder, need.gpus, need.count, per_device)
                if len(slots) == need.count:
                    return slots
                release(slots)  # two jobs that each hold half of what they need would wait forever
            time.sleep(POLL_SECONDS)
        return None
    finally:
        if turn is not None:
            os.close(turn)


def release(slots: dict[str, int]) -> None:
    """Close this process's files of the slots."""
    for slot in slots.values():
        os.close(slot)


def _free_slots(folder: Path, gpus: Sequence[str], count: int, per_device: int) -> dict[str, int]:
    slots: dict[str, int] = {}
    for number in range(per_device):  # the first slot of every GPU before any second one
        for gpu in gpus:
            if gpu not in slots and len(slots) < count:
                slot = _slot(folder, gpu, number, per_device)
                if slot is not None:
                    slots[gpu] = slot
    return slots


def _slot(folder: Path, gpu: str, number: int, per_device: int) -> int | None:
    name = f"gpu-{quote(gpu, safe='')}"
    slot = _acquire(folder / f"{name}.{number}-of-{per_device}")
    if slot is None:
        return None
    for other in folder.glob(f"{name}.*"):
        if not other.name.endswith(f"-of-{per_device}"):  # a sweep with another jobs_per_device
            probe = _acquire(other)
            if probe is None:
                os.close(slot)
                return None
            os.close(probe)
    return slot


def _acquire(path: Path) -> int | None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"fer_lightning-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder
