"""Which devices a job of a parallel sweep gets, so that no two jobs meet on one GPU unless they are meant to.

A GPU has ``jobs_per_device`` places. A place is a locked file in a folder of this user's, so that all sweeps of a user
on one machine keep out of each other's way. The lock is handed to the job's process: the kernel frees it when the last
process that has it is gone, however that came about.
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
        gpus: the ids of the GPUs to take them from; none for a job on the CPU.
        named: ``trainer.devices`` is a list of GPUs, which the run itself counts among all that are visible.
    """

    count: int
    gpus: tuple[str, ...]
    named: bool = False


def need(trainer: Any) -> Need:
    """What a job with this ``trainer`` group needs on this machine."""
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
    """The ids of the visible GPUs, as ``CUDA_VISIBLE_DEVICES`` has them; one where they cannot be counted cheaply."""
    given = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    count = visible_gpus()
    if count is None:
        return tuple(given) or ("0",)
    return tuple(given[:count]) if given else tuple(map(str, range(count)))


def jobs_at_once(needs: Sequence[Need], per_device: int, cores: int) -> int:
    """How many of the jobs this machine holds at a time: all its GPUs, or a core for every CPU process, in use."""
    limits = []
    gpus = {gpu for need in needs for gpu in need.gpus}
    if gpus:  # a job waits for free GPUs, so that the smallest may count
        limits.append(len(gpus) * per_device // min(need.count for need in needs if need.gpus))
    if any(not need.gpus for need in needs):  # nothing makes a job wait for a free core: the largest counts
        limits.append(cores // max(need.count for need in needs if not need.gpus))
    return max(1, min(limits))


def take(need: Need, per_device: int, give_up: Callable[[], bool]) -> dict[str, int] | None:
    """Wait until all the GPUs that a job needs are free at once, and take them.

    Returns:
        GPU id to the open file that holds the place: pass it to the job's process, and close it when that has ended.
        None when ``give_up()`` said so.
    """
    if not need.gpus:
        return {}
    folder = _folder()
    # Of the jobs that wait for the same GPUs one has its turn: many small ones could keep a large one waiting for ever.
    queue = folder / f"turn-{hashlib.blake2b(' '.join(sorted(need.gpus)).encode(), digest_size=8).hexdigest()}"
    turn = None
    try:
        while not give_up():
            turn = _lock(queue) if turn is None else turn
            if turn is not None:
                taken = _free_places(folder, need.gpus, need.count, per_device)
                if len(taken) == need.count:
                    return taken
                release(taken)  # who holds on to half of what it needs may wait for ever
            time.sleep(POLL_SECONDS)
        return None
    finally:
        if turn is not None:
            os.close(turn)


def release(taken: dict[str, int]) -> None:
    """Give places back, as far as this process holds them."""
    for place in taken.values():
        os.close(place)


def _free_places(folder: Path, gpus: Sequence[str], count: int, per_device: int) -> dict[str, int]:
    taken: dict[str, int] = {}
    for number in range(per_device):  # the first place of every GPU before any second one
        for gpu in gpus:
            if gpu not in taken and len(taken) < count:
                place = _place(folder, gpu, number, per_device)
                if place is not None:
                    taken[gpu] = place
    return taken


def _place(folder: Path, gpu: str, number: int, per_device: int) -> int | None:
    name = f"gpu-{quote(gpu, safe='')}"
    place = _lock(folder / f"{name}.{number}-of-{per_device}")
    if place is None:
        return None
    for other in folder.glob(f"{name}.*"):
        if not other.name.endswith(f"-of-{per_device}"):  # of a sweep that shares its GPUs differently
            probe = _lock(other)
            if probe is None:
                os.close(place)
                return None
            os.close(probe)
    return place


def _lock(path: Path) -> int | None:
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
        raise UserError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of your own")
    return folder
