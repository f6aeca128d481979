"""What to explain, checked before torch is imported."""

from dataclasses import dataclass
from pathlib import Path

from fer_lightning.inference.face_options import FaceOptions, check_pictures_folder
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_inside

DEFAULT_OUT = Path("explained")


@dataclass(frozen=True)
class ExplanationRequest(FaceOptions):
    """The options of the ``explain`` command.

    Attributes:
        checkpoint: a run's ``checkpoints/best.ckpt``.
        inputs: images and folders; with ``test_set``, ``key=value`` of the run's configuration.
        test_set: mean maps of the model's own test images.
        class_name: the class to explain; None for the predicted one of each face.
        out: folder for the pictures.
    """

    checkpoint: Path
    inputs: list[str]
    test_set: bool = False
    class_name: str | None = None
    out: Path = DEFAULT_OUT

    def check(self) -> None:
        """Refuse contradictory options.

        Raises:
            UserError: an option of single faces with ``test_set``, no input without it, or an input in ``out``.
        """
        if self.out == DEFAULT_OUT:
            check_inside(self.out, Path.cwd())
        if not (self.inputs or self.test_set):
            raise UserError("no image given: name images or folders, or give --test-set for the model's test images")
        for option, value in (("class", self.class_name), ("faces", self.faces), ("detector", self.detector)):
            if value and self.test_set:
                given = f"--{option}" if value is True else f"--{option} {value}"
                raise UserError(f"{given}: --test-set explains every class of the test images; leave it out")
        if not self.test_set:
            check_pictures_folder("--out", self.out, self.inputs)
