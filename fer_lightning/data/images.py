"""Decode image files into the form of a set's images, which models are trained on."""

import io
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from fer_lightning.data import archives, pnm
from fer_lightning.data.faces import ImageForm
from fer_lightning.presentation.printable import printable
from fer_lightning.presentation.words import listed
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm")
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
GRAY_MODES = ("L", "1", "LA", "I", "I;16", "I;16B")
"""Pillow's modes of gray images."""

FLOATS = "F"
"""Pillow's mode of an image of floats, of which nothing says what white is: OpenCV makes a blank one of most."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a broken image is reported here, by its name

MAX_PIXELS = 2**26
"""Maximum pixels of an image: more than a common camera has, few enough to decode in memory."""

TOO_LARGE = (2**16, 2**16)
"""Sides of an image that is not decoded."""

MAX_SCANS = 64
"""Maximum scans of a JPEG, of which a progressive one has about ten: each, however short, takes time for all pixels."""

MAX_SEGMENTS = 1024
"""Maximum segments of a JPEG, each of up to 64 KiB."""

MAX_PADDING = 1024
"""Maximum bytes between two segments, which Pillow reads one by one."""

FREE_PIXELS, PIXELS_PER_BYTE = 2**31, 256
"""Maximum pixels of all images of a set: so many, and so many more for each byte of the archive or of the files.

Photographs have 1 to 50 pixels per byte; a blank PNG has 1,000, and in a zip 100,000.
"""

MAX_ID_CHARACTERS = 2**28
"""Maximum characters of the ids of a set, each counted as long as the longest one, as NumPy stores them."""

SAMPLED = 200
"""Images whose size is looked at where none is given."""

SHOWN = 5
"""Files that cannot be read, named in one line."""

SMALLEST_SIDE, LARGEST_SIDE = 16, 224
"""Sides in pixels that colour images are stored with where none is given."""

CROP_SIDE, CROP_RATIO = 512, 1.25
"""Largest side in pixels, and largest ratio of the sides, of an image that is taken for a cropped face."""


def decode(data: bytes, where: str) -> np.ndarray:
    """Decode an image file and apply its EXIF orientation.

    Args:
        data: content of the file.
        where: name of the file in error messages.

    Returns:
        uint8: (H, W) for a gray image, (H, W, 3) in the order blue, green, red for any other.

    Raises:
        UserError: the data are empty, damaged, not an image, or too large.
    """
    # OpenCV decodes a truncated JPEG without an error and fills the rest with gray; the end marker is missing then.
    truncated = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data
    sides, mode = _header(data)
    pixels = math.prod(sides)
    if len(data) > archives.MAX_PIECE or pixels > MAX_PIXELS:
        raise UserError(f"{where} is too large for an image of a face: replace or remove it")
    flags = cv2.IMREAD_GRAYSCALE if mode in GRAY_MODES else cv2.IMREAD_COLOR
    image = None
    if pixels and not truncated and mode != FLOATS:
        is_pnm = data[:2] in pnm.KINDS
        image = pnm.decode_pnm(data, sides) if is_pnm else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        reason = "is empty" if not data else "is cut short" if truncated else "is not an image that can be read"
        raise UserError(f"{where} {reason}: replace or remove it")
    return image


def read_images(
    container: archives.Container,
    names: Sequence[str],
    places: Sequence[int] | np.ndarray,
    form: ImageForm,
    out: np.ndarray,
    one_kind: bool = False,
    gray_too: bool = False,
) -> np.ndarray:
    """Decode files to one form and log how many had another size or colour.

    Args:
        container: folder or archive with the files.
        names: files in the container's own order, because a compressed tar is only fast to read forwards.
        places: (n,), where each image goes.
        form: of the images.
        out: uint8, (n, *form.shape), filled and returned.
        one_kind: refuse a set of both gray and colour images.
        gray_too: convert gray images to colour, which are refused otherwise where the form has colour.

    Raises:
        UserError: as ``decode``, after all files were tried; a gray image where colour is asked for; both kinds; or too
            many pixels for the size of the files. Names the files.
    """
    converted = gray = pixels = 0
    packed = 0 if container.form == "folder" else container.path.stat().st_size
    first_gray = first_colour = ""
    broken: list[str] = []
    problem = ""
    for name, place in zip(names, places, strict=True):
        data = _read_file(container, name)
        packed += len(data) if container.form == "folder" else 0
        try:
            image = decode(data, f"{container.path}: {name}")
            pixels += math.prod(image.shape[:2])
        except UserError as error:
            image = None
            pixels += claimed if (claimed := math.prod(_header(data)[0])) <= MAX_PIXELS else 0  # others: not decoded
            problem = problem or str(error)
            broken.append(name)
        _check_pixels(f"{container.path}: the images up to {name}", pixels, packed)
        if image is None:
            continue
        out[place] = as_face(image, form)
        converted += image.shape[:2] != (form.size, form.size) or (image.ndim == 3) != form.color
        if image.ndim == 2:
            gray, first_gray = gray + 1, first_gray or name
        else:
            first_colour = first_colour or name
        if one_kind and first_gray and first_colour:
            raise _both_kinds(container, first_gray, first_colour)
    _check_broken(problem, broken)
    if form.color and gray and not gray_too:
        raise UserError(
            f"{container.path}: {gray:,} of {len(names):,} images are gray (the first: {first_gray}): data.color=true "
            "needs colour images; use data.color=false, or leave them out"
        )
    if converted:
        log.info("Converted %d images of another size or colour to %s", converted, form)
    return out


def _both_kinds(container: archives.Container, gray: str, colour: str) -> UserError:
    return UserError(
        f"{container.path} has gray images (such as {gray}) and colour ones (such as {colour}): use "
        "data.color=false to convert all to gray, or leave the gray ones out and use data.color=true"
    )


def _check_pixels(which: str, pixels: int, packed: int) -> None:
    if pixels > FREE_PIXELS + PIXELS_PER_BYTE * packed:
        raise UserError(
            f"{which} have {pixels:,} pixels, too many for {packed:,} bytes: reduce them to the size that is needed"
        )


def _check_broken(problem: str, broken: Sequence[str]) -> None:
    if broken:
        named = [*broken[1:SHOWN], *([f"{len(broken) - SHOWN:,} more"] if len(broken) > SHOWN else [])]
        raise UserError(f"{problem}; and so {listed(named)}" if named else problem)


def typical_side(container: archives.Container, names: Sequence[str]) -> int:
    """Median of the shorter sides of some images, in pixels: at most ``LARGEST_SIDE``."""
    some = np.unique(np.linspace(0, len(names) - 1, SAMPLED).astype(int))
    sides = []
    for k in some:
        shape = _header(_read_file(container, names[k]))[0]
        if 0 < math.prod(shape) <= MAX_PIXELS:  # read_images names all that are broken
            sides.append(min(shape))
    return int(min(LARGEST_SIDE, max(SMALLEST_SIDE, np.median(sides)))) if sides else LARGEST_SIDE


def _read_file(container: archives.Container, name: str) -> bytes:
    with container.open(name) as stream:
        return stream.read(archives.MAX_PIECE + 1)


def image_ids(container: archives.Container, paths: Sequence[str]) -> np.ndarray:
    """Ids of images: their paths, with escapes for control characters and for bytes that are not UTF-8.

    Raises:
        UserError: two images would have the same id, or an id is too long for their number; names it.
    """
    ids = [printable(path) for path in paths]
    longest = max(ids, key=len, default="")
    if len(longest) * len(ids) > MAX_ID_CHARACTERS:
        raise UserError(
            f"{container.path}: the path {longest[:80]}... has {len(longest):,} characters, too many beside "
            f"{len(ids):,} images: shorten it"
        )
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise UserError(f"{container.path}: two files are called {twice}: rename one of them")
    return np.array(ids)


def may_be_a_crop(image: np.ndarray) -> bool:
    """Whether an image, uint8 (H, W) or (H, W, 3), is small and square enough to be a cropped face."""
    height, width = image.shape[:2]
    return max(height, width) <= min(CROP_SIDE, CROP_RATIO * min(height, width))


def as_face(image: np.ndarray, form: ImageForm) -> np.ndarray:
    """Convert an image of one face to the size and colour that a model was trained on.

    The image is cropped to its central square and resized. It is reduced to the resolution of the training images even
    for a network with a larger input, because they were upscaled too.

    Args:
        image: uint8, (H, W) gray or (H, W, 3) in the order blue, green, red.
        form: of the training images.

    Returns:
        uint8, of the form's shape; ``image`` itself if it already has this form and is gray.
    """
    if form.color:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
        return np.moveaxis(_square(image, form.size), 2, 0)
    return _square(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image, form.size)


def as_picture(image: np.ndarray) -> np.ndarray:
    """A set's image, (H, H) or (3, H, H), as it is drawn: (H, H) gray or (H, H, 3) red, green, blue."""
    return image if image.ndim == 2 else np.ascontiguousarray(np.moveaxis(image, 0, -1))


def _square(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    if height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape[:2] == (size, size):
        return image
    shrinks = image.shape[0] > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_END, _SCAN = b"\xd9", b"\xda"


def _is_slow_jpeg(data: bytes) -> bool:
    """Whether reading a JPEG would take long for its size: too many scans or segments, or too much between them."""
    if not data.startswith(b"\xff\xd8"):
        return False
    position, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        end = len(data) if scans else min(len(data), position + MAX_PADDING)
        marker = _JPEG_MARKER.search(data, position, end)
        if marker is None or marker[1] == _END:
            return end < len(data) and marker is None
        scans += marker[1] == _SCAN
        if scans > MAX_SCANS:
            return True
        position = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
    return True


def _header(data: bytes) -> tuple[tuple[int, int], str]:
    """Width, height and mode from the header, read before decoding allocates memory.

    Returns:
        Sides of 0 if not an image, and more than ``MAX_PIXELS`` for one that would take long to read.
    """
    if _is_slow_jpeg(data):
        return TOO_LARGE, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            # Pillow reads the comments of a PGM file byte by byte.
            header = data[:MAX_PADDING] if data.startswith(b"P") else data
            with Image.open(io.BytesIO(header), formats=IMAGE_FORMATS) as image:
                return image.size, image.mode
        except Image.DecompressionBombError:
            return TOO_LARGE, ""
        except Exception:  # Pillow's parsers raise many types on damaged files
            return (0, 0), ""
