"""Test-time augmentation: several views of each image, whose probabilities are averaged.

Probabilities are averaged, not logits, over the ten crops of Krizhevsky et al. (2012), section 4.1. Published results
above 73 % on FER-2013 use them (such as Khaireddin and Chen 2021, 73.28 %).
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms import functional  # type: ignore[import-untyped]

CROP_SIZE = 44
"""Side of a crop of a 48x48 image, in pixels; the model resizes crops to its input as it does whole images."""

Views = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, H, W) -> views of all of them, each (B, h, w)."""


def plain(images: Tensor) -> tuple[Tensor, ...]:
    """The images themselves."""
    return (images,)


def flip(images: Tensor) -> tuple[Tensor, ...]:
    """The images and their mirrors: two views (B, H, W)."""
    return images, functional.hflip(images)


def ten_crop(images: Tensor) -> tuple[Tensor, ...]:
    """Four corners and the centre, and their mirrors: ten views (B, ``CROP_SIZE``, ``CROP_SIZE``)."""
    return tuple(functional.ten_crop(images, [CROP_SIZE, CROP_SIZE]))


VIEWS: dict[str, Views] = {"flip": flip, "ten_crop": ten_crop}
"""By the name in the results: ``test_flip/accuracy``."""
