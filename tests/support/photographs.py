"""A real photograph for tests without a data set: the one shipped with matplotlib."""

from pathlib import Path

import cv2
import matplotlib
import numpy as np

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
"""Rear Admiral Grace Hopper, 512 x 600, in colour; a work of the US Navy, in the public domain."""

EYES = ((205, 190), (305, 190))
"""Positions of her eyes, x and y."""


def portrait() -> np.ndarray:
    """The photograph: uint8, (600, 512, 3), in BGR order."""
    return cv2.imread(str(PORTRAIT))


def group(*widths: int) -> np.ndarray:
    """Copies of the portrait side by side on a gray background, with the given widths in pixels."""
    people = [
        cv2.resize(portrait(), (width, round(width * 600 / 512)), interpolation=cv2.INTER_AREA) for width in widths
    ]
    background = np.full((max(len(person) for person in people), sum(widths), 3), 128, np.uint8)
    left = 0
    for person in people:
        background[: len(person), left : left + person.shape[1]] = person
        left += person.shape[1]
    return background


def landscape(height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth picture without a face."""
    return np.tile(np.linspace(40, 200, width, dtype=np.uint8)[None, :, None], (height, 1, 3))
