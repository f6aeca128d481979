"""Face detection: the Haar cascade that OpenCV 4 ships, or YuNet from a file that the user provides.

``find_faces``, ``crop_face`` and ``data.images.as_face`` turn a photograph into the input of a model. Nothing is
downloaded.
"""

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fer_lightning.runtime.errors import UserError

CASCADE = "haarcascade_frontalface_alt2.xml"
SCALE_STEP = 1.1
"""Ratio between successive face sizes in the search."""
MIN_NEIGHBORS = 4
"""Overlapping detections required for a face; single ones are mostly texture."""
SMALLEST = 1 / 20
"""Side of the smallest face searched for, as a fraction of the picture's shorter side."""
WINDOW = 20
"""Side in pixels of the cascade's window: it detects no smaller face."""

YUNET_SCORE = 0.7
"""Smallest confidence of a face."""
YUNET_SIDE = 640
"""Pixels that the longer side is reduced to: YuNet was trained on faces of about 10 to 300 pixels."""
YUNET_STRIDES = (8, 16, 32)
YUNET_WIDTHS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
"""Numbers of each output for a cell of a stride; the outputs are called ``cls_8`` to ``kps_32``."""
YUNET_SECONDS = 60.0
"""Longest time for reading the file and running it once, which take less than one."""
YUNET_MEMORY = 2**31
"""Largest number of bytes for that, on Linux; networks of YuNet's size take less than a tenth."""
FARTHEST = 1e6
"""Pixels from the corner that no coordinate of a face reaches."""

_TRY = """
import contextlib, sys
with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has none, and a smaller limit may be set
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]),) * 2)
import cv2, numpy
cv2.setNumThreads(1)
net = cv2.dnn.readNetFromONNX(sys.argv[1])
net.setInput(numpy.zeros((1, 3, int(sys.argv[2]), int(sys.argv[2])), numpy.float32))
net.forward(sys.argv[4:])
"""

MARGIN = 0.04
"""Margin on each side of the square around a box, as a fraction of its side; FER-2013's crops are wider than boxes."""

_LOCK = threading.Lock()


class Box(NamedTuple):
    """A face's box inside a picture, in pixels from the upper left corner."""

    x: int
    y: int
    width: int
    height: int


def find_faces(image: np.ndarray, detector: Path | None = None) -> list[Box]:
    """Detect frontal faces.

    Args:
        image: uint8, (H, W) gray or (H, W, 3) in the order blue, green, red.
        detector: a file with YuNet (``face_detection_yunet_*.onnx`` of the OpenCV model zoo); None for Haar.

    Returns:
        The boxes, from left to right; empty when no face is found.

    Raises:
        UserError: this OpenCV lacks the detector, or the file is not YuNet.
    """
    with _LOCK:  # OpenCV's detectors store the picture during the search
        boxes = _haar_boxes(image) if detector is None else _yunet_boxes(image, detector)
    inside = [_clip(box, image.shape) for box in boxes]
    return sorted(box for box in inside if min(box[2:]) > 0)


def check_detector(detector: Path | None = None) -> None:
    """Load a detector to report its problems early.

    Raises:
        UserError: as ``find_faces`` does.
    """
    find_faces(np.zeros((64, 64, 3), np.uint8), detector)


def crop_face(image: np.ndarray, box: Box) -> np.ndarray:
    """Crop the square around a face with ``MARGIN``, framed similarly to FER-2013's faces.

    Outside the picture the edge pixels are repeated.

    Args:
        image: uint8, (H, W) or (H, W, 3).
        box: from ``find_faces``.

    Returns:
        uint8, (side, side) or (side, side, 3).
    """
    side = max(1, round(max(box.width, box.height) * (1 + 2 * MARGIN)))
    left, top = round(box.x + (box.width - side) / 2), round(box.y + (box.height - side) / 2)
    height, width = image.shape[:2]
    inside = image[max(0, top) : top + side, max(0, left) : left + side]
    edges = (max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width))
    return cv2.copyMakeBorder(inside, *edges, cv2.BORDER_REPLICATE) if any(edges) else inside


def _clip(box: Box, shape: tuple[int, ...]) -> Box:
    left, top = max(0, box.x), max(0, box.y)
    right, bottom = min(shape[1], box.x + box.width), min(shape[0], box.y + box.height)
    return Box(left, top, right - left, bottom - top)


@functools.cache
def _haar() -> Any:
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    path = os.path.join(folder, CASCADE)
    if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(path):
        raise UserError(
            f"OpenCV {cv2.__version__} has no Haar cascades for face detection: "
            "pip install 'opencv-python-headless<5', or give YuNet with --detector FILE.onnx"
        )
    return cv2.CascadeClassifier(path)


def _haar_boxes(image: np.ndarray) -> list[Box]:
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    smallest = max(WINDOW, round(SMALLEST * min(gray.shape)))
    found = _haar().detectMultiScale(
        gray, scaleFactor=SCALE_STEP, minNeighbors=MIN_NEIGHBORS, minSize=(smallest, smallest)
    )
    return [Box(*(int(value) for value in row)) for row in found]


@functools.cache
def _yunet(path: Path) -> Any:
    if not hasattr(cv2, "FaceDetectorYN"):
        raise UserError(f"OpenCV {cv2.__version__} cannot run YuNet: pip install 'opencv-python-headless<5'")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give YuNet, face_detection_yunet_2023mar.onnx of the OpenCV model zoo")
    _try_yunet(path)
    try:
        return cv2.FaceDetectorYN.create(str(path), "", (YUNET_SIDE, YUNET_SIDE), score_threshold=YUNET_SCORE)
    except cv2.error:
        raise _not_yunet(path) from None


def _try_yunet(path: Path) -> None:
    """Run the file once in a process of its own: OpenCV's reader of ONNX crashes on some damaged files.

    Raises:
        UserError: it fails, or takes more than ``YUNET_SECONDS`` or ``YUNET_MEMORY``.
    """
    # -P: nothing is imported from the working directory
    numbers = (str(YUNET_SIDE), str(YUNET_MEMORY))
    line = [sys.executable, "-P", "-c", _TRY, os.path.abspath(path), *numbers, *_yunet_outputs()]
    nothing = subprocess.DEVNULL
    one = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads take memory on import
    try:
        code = subprocess.run(
            line, stdin=nothing, stdout=nothing, stderr=nothing, timeout=YUNET_SECONDS, env=one
        ).returncode
    except subprocess.TimeoutExpired:
        raise _not_yunet(path) from None
    if code:
        raise _not_yunet(path)


def _yunet_outputs() -> list[str]:
    return [f"{name}_{stride}" for name in YUNET_WIDTHS for stride in YUNET_STRIDES]


@functools.cache
def _yunet_network(path: Path) -> Any:
    return cv2.dnn.readNetFromONNX(str(path))


@functools.cache
def _check_outputs(path: Path, width: int, height: int) -> None:
    """Check the sizes of the outputs, which OpenCV's detector reads without a look at them."""
    network = _yunet_network(path)
    network.setInput(np.zeros((1, 3, height, width), np.float32))
    outputs = network.forward(_yunet_outputs())
    sizes = [
        height // stride * (width // stride) * numbers for numbers in YUNET_WIDTHS.values() for stride in YUNET_STRIDES
    ]
    if any(out.size != size or out.dtype != np.float32 for out, size in zip(outputs, sizes, strict=True)):
        raise _not_yunet(path)


def _not_yunet(path: Path) -> UserError:
    return UserError(f"{path}: is not YuNet; give face_detection_yunet_2023mar.onnx of the OpenCV model zoo")


def _yunet_boxes(image: np.ndarray, path: Path) -> list[Box]:
    detector = _yunet(path)
    color = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    height, width = color.shape[:2]
    scale = min(1.0, YUNET_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(color, size, interpolation=cv2.INTER_AREA) if scale < 1 else color
    detector.setInputSize(size)
    last = YUNET_STRIDES[-1]
    try:
        _check_outputs(path, *(-(-side // last) * last for side in size))  # the detector pads so
        _, found = detector.detect(small)
    except cv2.error:
        raise _not_yunet(path) from None
    if found is not None and not (np.abs(found[:, :4]) < FARTHEST).all():
        raise _not_yunet(path)
    back = (width / size[0], height / size[1]) * 2
    return [Box(*np.rint(row[:4] * back).astype(int).tolist()) for row in (() if found is None else found)]
