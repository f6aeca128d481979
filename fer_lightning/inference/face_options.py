"""The options of face detection that ``predict`` and ``explain`` share; read without importing OpenCV."""

import argparse
from dataclasses import dataclass
from pathlib import Path


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
