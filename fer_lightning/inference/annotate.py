"""Draw boxes and predictions into pictures and videos."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_lightning.inference.detect import Box
from fer_lightning.inference.pictures import Picture, Source, short_stem
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_inside, replace_file

LEAST_SIDE = 320
"""Pixels of the shorter side below which a picture is enlarged, so that labels fit."""
MOST_SIDE = 4096
"""Largest number of pixels of the longer side after enlarging."""
LETTERS = 1 / 28
"""Height of a letter, as a share of the picture's shorter side."""
CAMERA_RATE = 10.0
"""Frames per second of a recorded camera."""
LONGEST_PAUSE = 5.0
"""Longest pause without a frame, in seconds, that a recording keeps; longer pauses are shortened to it."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE = (80, 220, 255)
_INK = (20, 20, 20)


def annotate(image: np.ndarray, labels: Sequence[tuple[Box | None, str]]) -> np.ndarray:
    """Draw boxes with labels.

    Args:
        image: uint8, (H, W) or (H, W, 3) in the order blue, green, red.
        labels: each a box and its text; text without a box is drawn in the upper left corner.

    Returns:
        uint8, (H', W', 3): small pictures are enlarged by an integer factor.
    """
    factor = max(1, min(math.ceil(LEAST_SIDE / min(image.shape[:2])), MOST_SIDE // max(image.shape[:2])))
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    if factor > 1:
        canvas = cv2.resize(canvas, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    letter = LETTERS * min(canvas.shape[:2])
    thick = max(1, round(letter / 6))
    boxes = [(Box(*(factor * value for value in box)) if box else None, text) for box, text in labels]
    for box, _ in boxes:
        if box is not None:
            cv2.rectangle(canvas, box[:2], (box.x + box.width - 1, box.y + box.height - 1), _INK, thick + 2)
            cv2.rectangle(canvas, box[:2], (box.x + box.width - 1, box.y + box.height - 1), _LINE, thick)
    for box, text in boxes:  # after all boxes, so that no box crosses a label
        _write_label(canvas, text, box or Box(0, 0, 0, 0), letter, thick)
    return canvas


def _write_label(canvas: np.ndarray, text: str, box: Box, letter: float, thick: int) -> None:
    """Write text on a filled rectangle above a box, or inside its upper edge when there is no room above."""
    scale = letter / cv2.getTextSize("H", _FONT, 1.0, 1)[0][1]
    stroke = max(1, round(thick * 0.7))
    (width, height), below = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = max(2, round(letter / 3))
    plate_width, plate_height = width + 2 * pad, height + below + 2 * pad
    left = max(0, min(box.x, canvas.shape[1] - plate_width))
    top = box.y - plate_height if box.y >= plate_height else box.y
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), _LINE, cv2.FILLED)
    cv2.putText(canvas, text, (left + pad, top + pad + height), _FONT, scale, _INK, stroke, cv2.LINE_AA)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an image file atomically, in the format of its suffix.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, cv2.imencode(path.suffix, image)[1].tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None


class VideoFile:
    """An MP4 written to a temporary file and renamed when it is closed with ``keep``.

    Args:
        path: ends in ``.mp4``.
        rate: frames per second.
        keep_time: repeat or skip frames so that the video plays in real time, as a camera needs.
    """

    def __init__(self, path: Path, rate: float, keep_time: bool) -> None:
        self._path, self._rate, self._keep_time = path, rate, keep_time
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
        self._writer: Any = None
        self._size = (0, 0)
        self._written = 0
        self._skipped = 0.0
        self._last = 0.0

    def add(self, image: np.ndarray, seconds: float) -> None:
        """Add a frame, uint8 (H, W, 3), shown from ``seconds`` on; all are resized to the first.

        Raises:
            UserError: the file cannot be written.
        """
        if self._writer is None:
            self._size = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2)  # MPEG-4 needs even sides
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._part.unlink(missing_ok=True)  # what a killed process left
                self._part.touch(exist_ok=False)  # follows no link
            except OSError as error:
                raise UserError(f"{self._path}: cannot be written ({error.strerror}); choose another folder") from None
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, codec, self._rate, self._size)
            if not self._writer.isOpened():
                self._part.unlink(missing_ok=True)
                raise UserError(f"{self._path}: this OpenCV cannot write MP4; use --draw with images only")
        times = 1
        if self._keep_time:
            self._skipped += max(0.0, seconds - self._last - LONGEST_PAUSE)
            self._last = seconds
            times = round((seconds - self._skipped) * self._rate) + 1 - self._written
        frame = image if image.shape[1::-1] == self._size else cv2.resize(image, self._size)
        for _ in range(times):
            self._writer.write(frame)
        self._written += max(0, times)

    def close(self, keep: bool) -> None:
        """Close the file and keep or delete it."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if keep:
                self._part.replace(self._path)
            self._part.unlink(missing_ok=True)


class Drawings:
    """Annotated copies of pictures and videos below a folder, which is made on the first write.

    Args:
        folder: to write to.
        every: distance in frames between two frames of a video that are drawn.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        self._used: set[Path] = set()
        self._video: VideoFile | None = None
        self._source: Source | None = None

    def add(self, source: Source, picture: Picture, labels: Sequence[tuple[Box | None, str]]) -> None:
        """Draw ``labels`` as ``annotate`` does; frames of a video must come in order.

        Raises:
            UserError: the folder cannot be written to.
        """
        if picture.image is None:
            return
        image = annotate(picture.image, labels)
        if not source.moves:
            suffix = source.name.suffix.lower()
            self.close(keep=True)
            write_picture(self._free(source.name.with_suffix(suffix if suffix in (".jpg", ".jpeg") else ".png")), image)
            return
        if source is not self._source or self._video is None:
            self.close(keep=True)
            live = source.kind == "camera"
            rate = CAMERA_RATE if live or not picture.rate > 0 else picture.rate / self._every
            self._source = source
            self._video = VideoFile(self._free(source.name.with_suffix(".mp4")), rate, keep_time=live)
        self._video.add(image, picture.seconds or 0.0)

    def close(self, keep: bool) -> None:
        """Close the current video and keep or delete it."""
        if self._video is not None:
            self._video.close(keep)
            self._video = None

    def _free(self, name: Path) -> Path:
        """An unused path in the folder; inputs from two folders may have the same name."""
        name = name.with_stem(short_stem(name.stem))
        number, free = 1, name
        while free in self._used:
            number += 1
            free = name.with_stem(f"{name.stem}-{number}")
        self._used.add(free)
        check_inside((self._folder / free).parent, self._folder)
        return self._folder / free
