"""The options that ``predict`` and ``explain`` share; read without importing OpenCV."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path


@dataclass(frozen=True, kw_only=True)
class FaceOptions:
    """Whether and how to detect faces.

    Attributes:
        faces: detect faces; implied by ``detector``.
        detector: YuNet's file; None for OpenCV's Haar cascade.
    """

    faces: bool = False
    detector: Path | None = None

    @property
    def detects(self) -> bool:
        """Whether faces are detected."""
        return self.faces or self.detector is not None


def add_face_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``FaceOptions``."""
    parser.add_argument(
        "--faces", action="store_true", help="detect faces; without it each image is taken as one cropped face"
    )
    parser.add_argument(
        "--detector", type=Path, metavar="FILE.onnx", help="detect with YuNet from this file instead of OpenCV's Haar"
    )


def check_pictures_folder(option: str, folder: Path, paths: Sequence[str]) -> None:
    """Refuse to write pictures into a folder that inputs are read from.

    Args:
        option: that names the folder.
        folder: for the pictures.
        paths: of the inputs.

    Raises:
        UserError: ``folder`` is a file, or holds inputs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {folder}: is a file; give a folder")
    target = real_path(folder)
    for path in map(Path, paths):
        given = real_path(path)
        if target == given.parent or (given.is_dir() and target.is_relative_to(given)):
            raise UserError(f"{option} {folder}: {path} is read from there; choose a folder outside")
