"""Corruptions of face images at five strengths, after Hendrycks & Dietterich 2019 (arXiv:1903.12261).

The kinds and strengths are chosen for small images: lengths are shares of the side, so that a strength means the same
at every size. Random numbers depend on the seed, the kind and the image alone: every model sees the same corrupted
images, and the strengths of a kind share their noise and the place of the occlusion.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

STRENGTHS = (1, 2, 3, 4, 5)

Corrupt = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


def blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur; ``sigma`` is a share of the side."""
    return cv2.GaussianBlur(image, (0, 0), sigma * image.shape[0], borderType=cv2.BORDER_REFLECT)


def noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, independent in each pixel and channel; ``deviation`` is a share of the range of values."""
    noisy = image + 255 * deviation * rng.standard_normal(image.shape)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def darkness(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Less light: every value times ``factor``, rounded to whole values again."""
    return np.rint(factor * image).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Compressed as a JPEG of this quality, 1 to 100."""
    in_order = image if image.ndim == 2 else image[..., ::-1]  # OpenCV's order is blue, green, red
    data = cv2.imencode(".jpg", in_order, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded: Any = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return decoded if image.ndim == 2 else decoded[..., ::-1]


def occlusion(image: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A gray square over a share ``area`` of the image, anywhere in it."""
    side = round(area**0.5 * image.shape[0])
    top, left = np.rint(rng.random(2) * (image.shape[0] - side)).astype(int)
    covered = image.copy()
    covered[top : top + side, left : left + side] = 128
    return covered


def low_resolution(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Reduced by ``factor`` and enlarged again."""
    side = image.shape[0]
    small = cv2.resize(image, (max(1, round(side / factor)),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)


KINDS: dict[str, tuple[Corrupt, Sequence[float]]] = {
    "blur": (blur, (0.01, 0.02, 0.03, 0.04, 0.06)),
    "noise": (noise, (0.02, 0.04, 0.08, 0.12, 0.18)),
    "darkness": (darkness, (0.7, 0.5, 0.35, 0.2, 0.1)),
    "jpeg": (jpeg, (25, 18, 15, 10, 7)),
    "occlusion": (occlusion, (0.05, 0.1, 0.2, 0.3, 0.4)),
    "low_resolution": (low_resolution, (1.5, 2, 3, 4, 6)),
}
"""Name of a kind -> its function and the amount of each strength.

JPEG's are those of ImageNet-C; its noise is too strong for small images.
"""


def corrupt(images: np.ndarray, rows: np.ndarray, kind: str, strength: int, seed: int = 0) -> np.ndarray:
    """Corrupt some images of a set.

    Args:
        images: uint8, (N, H, H) gray or (N, 3, H, H) red, green, blue; the set.
        rows: (n,), the images to corrupt.
        kind: a key of ``KINDS``.
        strength: 1 to 5.
        seed: of the noise and the places.

    Returns:
        uint8, (n, H, H) or (n, 3, H, H).
    """
    apply, amounts = KINDS[kind]
    amount, number = amounts[strength - 1], list(KINDS).index(kind)
    corrupted = np.empty((len(rows), *images.shape[1:]), np.uint8)
    for place, row in enumerate(rows):
        rng = np.random.default_rng([seed, number, int(row)])
        image = images[row] if images.ndim == 3 else np.ascontiguousarray(np.moveaxis(images[row], 0, -1))
        result = apply(image, amount, rng)
        corrupted[place] = result if images.ndim == 3 else np.moveaxis(result, -1, 0)
    return corrupted
