"""What a user points at, one picture at a time: image files, folders of them, videos, a camera.

A file that cannot be read becomes a ``Picture`` that says why, so that a batch goes on.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_lightning.data.archives import MAX_PIECE
from fer_lightning.data.images import IMAGE_SUFFIXES, decode
from fer_lightning.runtime.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".gif")

MISSING = "does not exist"

# A video is cut short when it ends this far before its header says; headers may be a little wrong.
_SHARE_LEFT = 0.1
_SECONDS_LEFT = 1.0

_SILENT = 0  # OpenCV's LOG_LEVEL_SILENT


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        path: a file, or ``camera 0``.
        kind: ``image``, ``video``, ``camera``; ``none`` for what can be none of them.
        name: relative path that a result of it may be stored under.
        problem: of ``none``, the reason.
        camera: its number.
    """

    path: Path
    kind: str
    name: Path
    problem: str = ""
    camera: int = -1

    @property
    def moves(self) -> bool:
        """Whether it has frames."""
        return self.kind in ("video", "camera")


@dataclass(frozen=True)
class Picture:
    """A decoded image or frame, or the reason why there is none.

    Attributes:
        image: uint8, (H, W) gray or (H, W, 3) in the order blue, green, red; None with a ``problem``.
        problem: why it could not be read.
        frame: of a video or camera, counted from 0.
        seconds: since the start of the video, or since the camera was opened.
        rate: of a video or camera, frames per second as it says itself, or 0.
    """

    image: np.ndarray | None
    problem: str = ""
    frame: int | None = None
    seconds: float | None = None
    rate: float = 0.0


def list_sources(paths: Sequence[str]) -> list[Source]:
    """What is meant by the paths of a command line.

    Folders are searched to any depth for files with an image's suffix; hidden ones are left out. A whole number that
    is no file is a camera.

    Raises:
        UserError: none of the paths exists, or a camera is not alone.
    """
    if any(_is_camera(path) for path in paths):
        if len(paths) > 1:
            raise UserError(f"{' '.join(paths)}: a camera never ends; give its number alone")
        return [Source(Path(f"camera {paths[0]}"), "camera", Path(f"camera_{int(paths[0])}"), camera=int(paths[0]))]
    sources = [source for path in paths for source in _below(Path(path))]
    if all(source.problem == MISSING for source in sources):
        raise UserError(
            f"{', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}: does not exist; give images, "
            "folders, a video or a camera's number"
        )
    return sources


def read(source: Source, every: int = 1) -> Iterator[Picture]:
    """The pictures of a source, each read when it is asked for.

    Args:
        source: one of ``list_sources``.
        every: of a video's or camera's frames only each n-th.

    Raises:
        UserError: a camera that cannot be opened. Anything else that goes wrong is a ``Picture`` with a ``problem``.
    """
    if source.kind == "none":
        yield Picture(None, source.problem)
    elif source.kind == "image":
        yield _read_image(source.path)
    elif source.kind == "video":
        yield from _read_video(source.path, every)
    else:
        capture = _open(source.camera)
        if not capture.isOpened():
            raise UserError(
                f"{source.path}: cannot be opened; is it plugged in, free, and this its number? (0 is the first)"
            )
        yield from camera_frames(capture, every)


def camera_frames(capture: Any, every: int) -> Iterator[Picture]:
    """Frames of an opened camera until Ctrl-C, or until it is unplugged; a second Ctrl-C interrupts at once."""
    stopped = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    start, rate = time.monotonic(), capture.get(cv2.CAP_PROP_FPS)
    try:
        number = 0
        while not stopped and capture.grab():
            if number % every == 0:
                found, image = capture.retrieve()
                if not found:
                    break
                yield Picture(image, frame=number, seconds=time.monotonic() - start, rate=rate)
            number += 1
        if number == 0 and not stopped:
            yield Picture(None, "the camera gave no picture")
    finally:
        signal.signal(signal.SIGINT, before)
        capture.release()


def _is_camera(path: str) -> bool:
    return path.isascii() and path.isdigit() and not Path(path).exists()


def _below(path: Path) -> list[Source]:
    try:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)) and file.is_file())
            images = [Source(file, "image", file.relative_to(path)) for file in found]
            nothing = f"no images in this folder ({', '.join(IMAGE_SUFFIXES)})"
            return images or [Source(path, "none", Path(path.name), nothing)]
        if not path.exists():
            return [Source(path, "none", Path(path.name), MISSING)]
        if not path.is_file():
            return [Source(path, "none", Path(path.name), "is no file")]
    except OSError as error:
        return [Source(path, "none", Path(path.name), f"cannot be read ({error.strerror})")]
    return [Source(path, "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", Path(path.name))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _read_image(path: Path) -> Picture:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PIECE + 1)
        return Picture(decode(data, "this file"))
    except UserError as error:
        return Picture(None, str(error))
    except OSError as error:
        return Picture(None, f"cannot be read ({error.strerror})")


def _read_video(path: Path, every: int) -> Iterator[Picture]:
    capture = _open(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS) or 0.0
    length = capture.get(cv2.CAP_PROP_FRAME_COUNT) / rate if rate > 0 else 0.0
    number, seconds = 0, 0.0
    try:
        while capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 or (number / rate if rate > 0 else 0.0)
            if number % every == 0:
                found, image = capture.retrieve()
                if not found:
                    break
                yield Picture(image, frame=number, seconds=seconds, rate=rate)
            number += 1
    finally:
        capture.release()
    if number == 0:
        yield Picture(None, "is not a video that can be read: replace or remove it")
    elif length - seconds > max(_SECONDS_LEFT, _SHARE_LEFT * length):
        yield Picture(None, f"is damaged or cut short: ends at {seconds:.1f} of {length:.1f} s")


def _open(what: str | int) -> Any:
    # What OpenCV and FFmpeg print about a damaged file is said in one line by whoever opened it.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    levels: Any = getattr(cv2.utils, "logging", cv2)  # moved there after OpenCV 4.12
    before = levels.getLogLevel()
    levels.setLogLevel(_SILENT)
    try:
        return cv2.VideoCapture(what) if isinstance(what, int) else cv2.VideoCapture(what, cv2.CAP_FFMPEG)
    except cv2.error:
        return cv2.VideoCapture()
    finally:
        levels.setLogLevel(before)
