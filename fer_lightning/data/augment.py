"""Random changes of training images that depend on nothing but the image and a number."""

import os
import random
from collections.abc import Sequence

# Must be set before the import, which otherwise asks PyPI for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

from fer_lightning.errors import UserError

# At 48x48 OpenCV's threads cost more than they bring, and they fight the loader's workers for the cores.
cv2.setNumThreads(0)

ERASE_ASPECT = (0.5, 2.0)
"""Range of width / height of an erased rectangle."""


class Augmentation:
    """Flip, move, relight and partly hide an image.

    In this order: horizontal flip; rotation, translation and scaling in one bilinear warp with mirrored
    borders; contrast and brightness; a rectangle of one random gray (Zhong et al. 2020, "Random Erasing Data
    Augmentation"). A knob of 0 leaves its step out; with all at 0 the image passes unchanged.

    Args:
        hflip: probability of a horizontal flip.
        rotate: largest angle in degrees, to either side.
        translate: largest shift in either direction, as a fraction of the side.
        scale: largest relative change of size; 0.1 gives 0.9 to 1.1.
        brightness: largest shift, as a fraction of 255.
        contrast: largest relative change of the factor on all pixels; 0.3 gives 0.7 to 1.3.
        erase: probability of erasing a rectangle.
        erase_area: smallest and largest share of the image that it covers.

    Raises:
        UserError: for a knob out of range.
    """

    def __init__(
        self,
        hflip: float,
        rotate: float,
        translate: float,
        scale: float,
        brightness: float,
        contrast: float,
        erase: float,
        erase_area: Sequence[float],
    ) -> None:
        fractions = {
            "hflip": hflip,
            "translate": translate,
            "scale": scale,
            "brightness": brightness,
            "contrast": contrast,
            "erase": erase,
        }
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name}={value} is out of range: it must be from 0 to 1")
        if not 0 <= rotate <= 180:
            raise UserError(f"augment.rotate={rotate} is out of range: it must be from 0 to 180 degrees")
        if scale == 1:
            raise UserError("augment.scale=1 would shrink faces to nothing: it must be below 1")
        if len(erase_area) != 2 or not 0 < erase_area[0] <= erase_area[1] <= ERASE_ASPECT[0]:
            raise UserError(
                f"augment.erase_area={list(erase_area)} is out of range: give the smallest and the largest "
                f"share of the image, above 0 and at most {ERASE_ASPECT[0]}, for example [0.02,0.2]"
            )
        steps: list[A.BasicTransform] = []
        if hflip:
            steps.append(A.HorizontalFlip(p=hflip))
        if rotate or translate or scale:
            steps.append(
                A.Affine(
                    rotate=(-rotate, rotate),
                    translate_percent=(-translate, translate),
                    scale=(1 - scale, 1 + scale),
                    keep_ratio=True,
                    border_mode=cv2.BORDER_REFLECT_101,
                    p=1,
                )
            )
        if brightness or contrast:
            steps.append(A.RandomBrightnessContrast(brightness, contrast, p=1))
        if erase:
            area = (erase_area[0], erase_area[1])
            steps.append(A.Erasing(scale=area, ratio=ERASE_ASPECT, fill="random_uniform", p=erase))
        self.pipeline = A.Compose(steps) if steps else None

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return the augmented image, a pure function of both arguments.

        Args:
            image: uint8, (H, W); not written to.
            seed: 0 or more, as from ``draw_seed``.

        Returns:
            uint8, (H, W); ``image`` itself where nothing was changed.
        """
        if self.pipeline is None:
            return image
        # One state shared by all steps: set_random_seed would start every step from the same numbers, so that
        # a flipped image, for example, would always be one that was turned to the left.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.pipeline(image=image)["image"]


def draw_seed(seed: int, epoch: int, position: int) -> int:
    """Return the augmentation seed, in [0, 2^64), of one entry of one epoch.

    Neighbouring arguments give unrelated seeds, and no two positions of an epoch the same one. The mixing
    function is SplitMix64's (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").
    """
    state = 0
    for part in (seed, epoch, position):
        state = (state + part + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


_MASK = 2**64 - 1
