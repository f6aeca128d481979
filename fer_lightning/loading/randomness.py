"""Random numbers that are pure functions of (seed, epoch, position), for one image or for a whole epoch at once."""

from typing import Any

import numpy as np

_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15


def entry_seed(seed: Any, epoch: int, position: Any) -> Any:
    """Return the seed, in [0, 2^64), of one entry of one epoch, or uint64 (n,) of n entries.

    Neighbouring arguments give unrelated seeds, and no two positions of an epoch the same one. The mixing
    function is SplitMix64's (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").

    Args:
        seed: 0 or more; or uint64, (n,).
        epoch: 0 or more.
        position: 0 or more; or uint64, (n,).
    """
    state: Any = 0
    for part in (seed, epoch, position):
        state = _mixed((state + part + _STEP) & _MASK)
    return state


def uniforms(seeds: np.ndarray, columns: int) -> np.ndarray:
    """Return ``columns`` numbers in [0, 1) for each seed: float32, (n, columns), from the seed alone.

    Args:
        seeds: uint64, (n,), as from ``entry_seed``.
        columns: how many of each.
    """
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_STEP)
    hashes = _mixed(seeds[:, None] + steps)
    return (hashes >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mixed(state: Any) -> Any:
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
    return state ^ state >> 31
