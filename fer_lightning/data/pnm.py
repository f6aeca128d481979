"""PGM and PPM files, of which OpenCV ignores what white is, and Pillow needs a minute for some of a few megabytes."""

import math
import re
import warnings

import numpy as np

KINDS = (b"P2", b"P3", b"P5", b"P6")
"""First bytes of the files: text and bytes, each gray and colour."""

MAX_WHITE = 65535
"""Largest number for white that the formats have."""

_COMMENT = rb"#[^\r\n]*"
_BETWEEN = rb"(?:\s|" + _COMMENT + rb"[\r\n])+"
_HEADER = re.compile(rb"P[2356]" + (_BETWEEN + rb"([0-9]{1,10})") * 3 + rb"\s")


def decode_pnm(data: bytes, sides: tuple[int, int]) -> np.ndarray | None:
    """Decode a file of one of ``KINDS``, in linear time.

    Args:
        data: content of the file.
        sides: width and height in pixels, as another reader of the header has them.

    Returns:
        uint8: (H, W) for a gray image, (H, W, 3) in the order blue, green, red; None where the file is damaged or cut
        short, or its header is not that of ``sides``.
    """
    header = _HEADER.match(data)
    width, height, white = map(int, header.groups()) if header else (0, 0, 0)
    if header is None or (width, height) != sides or not 0 < white <= MAX_WHITE:
        return None
    shape = (height, width) if data[:2] in (b"P2", b"P5") else (height, width, 3)
    try:
        if data[:2] in (b"P2", b"P3"):
            values = _numbers(data[header.end() :], math.prod(shape))
        else:
            values = np.frombuffer(data, np.uint8 if white < 256 else ">u2", math.prod(shape), header.end())
            values = np.minimum(values, white)
        image = _levels(white, len(shape) == 2)[values].reshape(shape)
    except (ValueError, IndexError, DeprecationWarning):  # too few numbers, or too large ones
        return None
    return image if image.ndim == 2 else image[:, :, ::-1].copy()


def _numbers(text: bytes, count: int) -> np.ndarray:
    """The first numbers of a text with comments.

    Raises:
        ValueError: a word is none, or one is negative; older versions of NumPy raise a DeprecationWarning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        values = np.fromstring(re.sub(_COMMENT, b" ", text), np.int64, sep=" ")[:count]
    if (values < 0).any():
        raise ValueError("negative")
    return values


def _levels(white: int, gray: bool) -> np.ndarray:
    """The level of each number from 0 to ``white``: uint8. Deep gray is rounded to 16 bits first, as Pillow does."""
    shares = np.arange(white + 1) / white
    if gray and white > 255:
        return (np.round(shares * MAX_WHITE).astype(np.float32) / 257).round().astype(np.uint8)
    return np.round(shares * 255).astype(np.uint8)
