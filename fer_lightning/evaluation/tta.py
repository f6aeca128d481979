"""Test-time augmentation: several views of each image, whose probabilities are averaged.

Probabilities are averaged, not logits, over the ten crops of Krizhevsky et al. (2012), section 4.1. Published results
above 73 % on FER-2013 use them (such as Khaireddin and Chen 2021, 73.28 %).
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms import functional  # type: ignore[import-untyped]

CROP = 44 / 48
"""Side of a crop, as a share of the image's; the model resizes crops to its input as it does whole images."""

Views = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, H, W) or (B, 3, H, W) -> views of all of them, each (B, h, w) or (B, 3, h, w)."""


def plain(images: Tensor) -> tuple[Tensor, ...]:
    """The images themselves."""
    return (images,)


def flip(images: Tensor) -> tuple[Tensor, ...]:
    """The images and their mirrors: two views."""
    return images, functional.hflip(images)


def ten_crop(images: Tensor) -> tuple[Tensor, ...]:
    """Four corners and the centre, and their mirrors: ten views with sides of ``CROP``."""
    side = round(CROP * images.shape[-1])
    return tuple(functional.ten_crop(images, [side, side]))


VIEWS: dict[str, Views] = {"flip": flip, "ten_crop": ten_crop}
"""By the name in the results: ``test_flip/accuracy``."""
