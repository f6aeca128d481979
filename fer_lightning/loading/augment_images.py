"""Random changes of training images, one at a time, by albumentations: ``augment.backend=albumentations``."""

import os
import random

# Must be set before the import, which otherwise queries PyPI for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

from fer_lightning.config.augment import ERASE_ASPECT, Strengths

# At 48x48 OpenCV's threads cost more time than they save, and they compete with the loader's workers for cores.
cv2.setNumThreads(0)


class Augmentation:
    """Flip, warp, relight and erase part of an image; see ``Strengths``.

    Rotation, translation and scaling are one bilinear warp with mirrored borders. With all strengths at 0 the image
    passes unchanged.

    Args:
        strengths: what is done, and how strongly.
    """

    def __init__(self, strengths: Strengths) -> None:
        s = strengths
        steps: list[A.BasicTransform] = []
        if s.hflip:
            steps.append(A.HorizontalFlip(p=s.hflip))
        if s.moves:
            steps.append(
                A.Affine(
                    rotate=(-s.rotate, s.rotate),
                    translate_percent=(-s.translate, s.translate),
                    scale=(1 - s.scale, 1 + s.scale),
                    keep_ratio=True,
                    border_mode=cv2.BORDER_REFLECT,
                    p=1,
                )
            )
        if s.relights:
            steps.append(A.RandomBrightnessContrast(s.brightness, s.contrast, p=1))
        if s.erase:
            area = (s.erase_area[0], s.erase_area[1])
            steps.append(A.Erasing(scale=area, ratio=ERASE_ASPECT, fill="random_uniform", p=s.erase))
        self.pipeline = A.Compose(steps) if steps else None

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return the augmented image, a pure function of both arguments.

        Args:
            image: uint8, (H, W) or (H, W, 3); not written to.
            seed: 0 or more, as from ``entry_seed``.

        Returns:
            uint8, of the same shape; ``image`` itself where nothing was changed.
        """
        if self.pipeline is None:
            return image
        # One state shared by all steps: set_random_seed would start every step from the same numbers, so that
        # a flipped image, for example, would always be one that was turned to the left.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.pipeline(image=image)["image"]
