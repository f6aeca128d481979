"""How strongly training images are changed: the keys of the ``augment`` group, the same for both backends."""

from dataclasses import dataclass, field

from fer_lightning.runtime.errors import UserError

ERASE_ASPECT = (0.5, 2.0)
"""Range of width / height of an erased rectangle."""


@dataclass
class Strengths:
    """Changes to a training image, applied in this order; a strength of 0 skips the step.

    Attributes:
        hflip: probability of a horizontal flip.
        rotate: largest angle in degrees, to either side.
        translate: largest shift in either direction, as a fraction of the side; whole pixels of the 48.
        scale: largest relative change of size; 0.1 gives 0.9 to 1.1.
        brightness: largest shift, as a fraction of 255.
        contrast: largest relative change of the factor on all pixels; 0.3 gives 0.7 to 1.3.
        erase: probability of hiding a rectangle under one random gray (Zhong et al. 2020, "Random Erasing Data
            Augmentation").
        erase_area: smallest and largest fraction of the image that it covers.

    Raises:
        UserError: a value is out of range.
    """

    hflip: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    erase: float = 0.0
    erase_area: list[float] = field(default_factory=lambda: [0.02, 0.2])

    def __post_init__(self) -> None:
        for name in ("hflip", "translate", "scale", "brightness", "contrast", "erase"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name}={value} is out of range: it must be from 0 to 1")
        if not 0 <= self.rotate <= 180:
            raise UserError(f"augment.rotate={self.rotate} is out of range: it must be from 0 to 180 degrees")
        if self.scale == 1:
            raise UserError("augment.scale=1 would shrink faces to no pixels: it must be below 1")
        area = self.erase_area
        if len(area) != 2 or not 0 < area[0] <= area[1] <= ERASE_ASPECT[0]:
            raise UserError(
                f"augment.erase_area={list(area)} is out of range: give the smallest and the largest "
                f"fraction of the image, above 0 and at most {ERASE_ASPECT[0]}, for example [0.02,0.2]"
            )

    @property
    def moves(self) -> bool:
        """Whether images are rotated, shifted or scaled."""
        return bool(self.rotate or self.translate or self.scale)

    @property
    def relights(self) -> bool:
        """Whether brightness or contrast change."""
        return bool(self.brightness or self.contrast)

    @property
    def changes(self) -> bool:
        """Whether anything is done to an image."""
        return bool(self.hflip or self.moves or self.relights or self.erase)
