"""What ``Classifier.predict`` takes, one image at a time, in the form that the models are given."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fer_lightning.inference import pictures
from fer_lightning.inference.pictures import VIDEO_SUFFIXES, Source
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import as_path

Array = npt.NDArray[Any]
OneImage = str | Path | Image.Image | Array
"""A file, a Pillow image, or an array (H, W) or (H, W, 3)."""

Images = OneImage | Sequence[OneImage]
"""One image, several in one array (N, H, W) or (N, H, W, 3), a folder, or a list of single images."""

ACCEPTED = "give a path, a Pillow image, a uint8 array (H, W), (H, W, 3), (N, H, W) or (N, H, W, 3), or a list of these"

GRAY_MODES, DEEP_MODES = ("1", "L", "LA"), ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_images(images: Images) -> Iterator[tuple[str, Array]]:
    """Each image with its name: the path of a file, else its position.

    Args:
        images: see ``Images``. Colour arrays are red, green, blue, as from Pillow.

    Yields:
        The name, and uint8 (H, W) gray or (H, W, 3) in the order blue, green, red.

    Raises:
        UserError: something else, or an image that cannot be read.
    """
    if isinstance(images, list | tuple):
        for number, image in enumerate(images):
            yield from _read_one(image, str(number), f"image {number} of the list: ")
    elif isinstance(images, np.ndarray) and _is_batch(images):
        for number, image in enumerate(images):
            yield str(number), _from_array(image, f"image {number} of the batch {images.shape}: ")
    elif isinstance(images, str | Path) and as_path(images, "images").is_dir():
        for source in pictures.list_sources([str(images)]):
            yield str(source.path), _read_file(source, "")
    else:
        yield from _read_one(images, "0", "")


def _is_batch(array: Array) -> bool:
    return array.ndim == 4 or (array.ndim == 3 and array.shape[-1] > 4)  # 1, 3, 4 are channels


def _read_one(image: Any, position: str, where: str) -> Iterator[tuple[str, Array]]:
    if isinstance(image, str | Path):
        path = as_path(image, f"{where}path")
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise UserError(f"{where}{path}: is a video; use python -m fer_lightning.predict CHECKPOINT VIDEO")
        if path.is_dir():
            raise UserError(f"{where}{path}: is a folder; give the folder alone, or the files in it")
        yield str(path), _read_file(Source(path, "image", Path(path.name)), where)
    elif isinstance(image, Image.Image):
        yield position, _from_pillow(image, where)
    elif isinstance(image, np.ndarray):
        yield position, _from_array(image, where)
    else:
        kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
        raise UserError(f"{where}{kind}: not an image; {ACCEPTED}")


def _read_file(source: Source, where: str) -> Array:
    (picture,) = pictures.read(source)
    if picture.image is None:
        raise UserError(f"{where}{source.path}: {picture.problem}; {ACCEPTED}")
    return picture.image


def _from_pillow(image: Image.Image, where: str) -> Array:
    if image.mode in DEEP_MODES:
        raise UserError(f"{where}Pillow image of mode {image.mode}: give 8 bits per channel, such as mode L or RGB")
    try:
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(upright.convert("L" if image.mode in GRAY_MODES else "RGB"))
    except Exception as error:  # Pillow decodes here, and each of its decoders raises its own
        reason = shortened(one_line(error), 200)
        raise UserError(
            f"{where}Pillow image of mode {image.mode}: cannot be decoded ({reason}); {ACCEPTED}"
        ) from error
    return _from_array(pixels, where)


def _from_array(array: Array, where: str) -> Array:
    given = f"{where}array of {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise UserError(f"{given}: must be uint8 with values 0..255; convert it, such as (255 * x).astype('uint8')")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise UserError(f"{given}: not one image (H, W) or (H, W, 3); {ACCEPTED}, channels last")
    if not array.size:
        raise UserError(f"{given}: has no pixels; leave it out")
    return array if array.ndim == 2 else np.ascontiguousarray(array[..., ::-1])
