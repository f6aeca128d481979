"""Read inputs one picture at a time: image files, folders of them, videos, a camera.

A file that cannot be read becomes a ``Picture`` with the reason, so that the other inputs are still processed.
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
from fer_lightning.data.images import FREE_PIXELS, IMAGE_SUFFIXES, decode
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import walk

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".gif")

OTHER_IMAGES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".ppm", ".pnm", ".pbm", ".svg", ".psd", ".ico", ".pcx"),
    *(".dds", ".exr", ".hdr", ".xbm", ".xpm", ".apng", ".dng", ".cr2", ".nef", ".arw"),
)
"""Suffixes of images that cannot be read; in a folder they are reported, and other files are ignored."""

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *OTHER_IMAGES)

MISSING = "does not exist"

MAX_STEM = 200
"""Maximum bytes that the name of a file takes over from its input; with numbers and endings, a system has 255."""

MAX_FRAME = 7680 * 4320
"""Maximum pixels of a frame of a video: 8K. A GIF of 43 bytes may claim 65,535 x 65,535."""

PIXELS_PER_BYTE = 16384
"""Maximum pixels of all frames of a video for each byte of the file, above ``FREE_PIXELS``.

Clips of faces have up to 1,500, and pictures that rarely change more; a GIF of blank frames has millions.
"""

FORMATS = ("mov", "matroska", "avi", "gif", "mpeg", "mpegvideo", "mpegts", "m4v", "asf")
"""FFmpeg's names of the containers of ``VIDEO_SUFFIXES``. Playlists and sequences name other files, or the network."""

_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_ONLY_THE_FILE = f"format_whitelist;{','.join(FORMATS)}|protocol_whitelist;file"

# A video that ends this long before the duration in its header is reported as cut short; headers are inexact.
_MISSING_SHARE = 0.1
_MISSING_SECONDS = 1.0

_SILENT = 0  # OpenCV's LOG_LEVEL_SILENT


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        path: a file, or ``camera 0``.
        kind: ``image``, ``video`` or ``camera``; ``none`` for an input that cannot be read.
        name: relative path for output files.
        problem: the reason, for ``none``.
        camera: number of the camera.
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
    """A decoded image or frame, or the reason why it could not be read.

    Attributes:
        image: uint8, (H, W) gray or (H, W, 3) in the order blue, green, red; None with a ``problem``.
        problem: the reason; empty when the image was read.
        frame: of a video or camera, counted from 0.
        seconds: since the start of the video, or since the camera was opened.
        rate: frames per second that the video or camera reports, or 0.
    """

    image: np.ndarray | None
    problem: str = ""
    frame: int | None = None
    seconds: float | None = None
    rate: float = 0.0


def list_sources(paths: Sequence[str]) -> list[Source]:
    """Resolve the paths of a command line.

    Folders are searched recursively for files with an image suffix; hidden ones are skipped, and videos and images of
    other kinds become inputs that cannot be read. A number that is not a file is a camera.

    Raises:
        UserError: none of the paths exists, or a camera is given with other inputs.
    """
    if any(_is_camera(path) for path in paths):
        if len(paths) > 1:
            raise UserError(f"{' '.join(paths)}: a camera must be the only input; give its number alone")
        return [Source(Path(f"camera {paths[0]}"), "camera", Path(f"camera_{int(paths[0])}"), camera=int(paths[0]))]
    sources = [source for path in paths for source in _resolve(Path(path))]
    if all(source.problem == MISSING for source in sources):
        raise UserError(
            f"{', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}: does not exist; give files or "
            "folders that exist"
        )
    return sources


def read(source: Source, every: int = 1) -> Iterator[Picture]:
    """Read the pictures of a source lazily.

    Args:
        source: one of ``list_sources``.
        every: use every n-th frame of a video or camera.

    Raises:
        UserError: a camera that cannot be opened. Other failures are reported as a ``Picture`` with a ``problem``.
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
                f"{source.path}: cannot be opened; check that it is connected, not in use, and has this number "
                "(the first is 0)"
            )
        yield from camera_frames(capture, every)


def camera_frames(capture: Any, every: int) -> Iterator[Picture]:
    """Read an opened camera until Ctrl-C or until it is disconnected; a second Ctrl-C interrupts immediately."""
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
                retrieved, image = capture.retrieve()
                if not retrieved:
                    break
                yield Picture(image, frame=number, seconds=time.monotonic() - start, rate=rate)
            number += 1
        if number == 0 and not stopped:
            yield Picture(None, "the camera returned no picture")
    finally:
        signal.signal(signal.SIGINT, before)
        capture.release()


def _is_camera(path: str) -> bool:
    return path.isascii() and path.isdigit() and not Path(path).exists()


def _resolve(path: Path) -> list[Source]:
    try:
        if path.is_dir():
            problem = f"no images in this folder ({', '.join(IMAGE_SUFFIXES)})"
            return sorted(_below(path), key=lambda source: source.path) or [
                Source(path, "none", Path(path.name), problem)
            ]
        if not path.exists():
            return [Source(path, "none", Path(path.name), MISSING)]
        if not path.is_file():
            return [Source(path, "none", Path(path.name), "is not a regular file")]
    except OSError as error:
        return [Source(path, "none", Path(path.name), f"cannot be read ({error.strerror})")]
    return [Source(path, "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", Path(path.name))]


def _below(top: Path) -> Iterator[Source]:
    """The images below a folder, and what cannot be read; hidden files and folders are left out."""
    closed: list[OSError] = []
    for place, folders, files in walk(top, closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))):
            problem = "is a link to a folder, which is not followed: give the folder itself"
            yield Source(path, "none", path.relative_to(top), problem)
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                yield _in_folder(path, path.relative_to(top))
    for error in closed:
        path = Path(error.filename)
        name = Path(path.name) if path == top else path.relative_to(top)
        yield Source(path, "none", name, f"cannot be read ({error.strerror})")


def short_stem(stem: str) -> str:
    """The beginning of a name without its ending, in at most ``MAX_STEM`` bytes, for a file that is called after it."""
    while len(os.fsencode(stem)) > MAX_STEM:
        stem = stem[:-1]
    return stem


def _in_folder(file: Path, name: Path) -> Source:
    suffix = file.suffix.lower()
    if not file.is_file():
        return Source(file, "none", name, "is not a regular file" if file.exists() else MISSING)
    if suffix in IMAGE_SUFFIXES:
        return Source(file, "image", name)
    if suffix in VIDEO_SUFFIXES:
        return Source(file, "none", name, "is a video within a folder: give it by its own path")
    return Source(file, "none", name, f"is an image of another kind: convert it to one of {', '.join(IMAGE_SUFFIXES)}")


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
    try:
        str(path).encode()
        size = path.stat().st_size
    except UnicodeEncodeError:  # OpenCV ends the process
        yield Picture(None, "has a name that is not UTF-8, which OpenCV cannot open: rename it")
        return
    except OSError as error:
        yield Picture(None, f"cannot be read ({error.strerror})")
        return
    capture = _open_video(path)
    rate = capture.get(cv2.CAP_PROP_FPS) or 0.0
    length = capture.get(cv2.CAP_PROP_FRAME_COUNT) / rate if rate > 0 else 0.0
    number, seconds, pixels = 0, 0.0, 0
    problem = _problem_of_sides(capture)
    try:
        while not problem and capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 or (number / rate if rate > 0 else 0.0)
            pixels += _pixels(capture)
            if pixels > FREE_PIXELS + PIXELS_PER_BYTE * size:
                problem = (
                    f"has too many pixels for {size:,} bytes, {pixels:,} in the first {number + 1:,} frames: "
                    "make its frames fewer or smaller"
                )
                break
            if number % every == 0:
                retrieved, image = capture.retrieve()
                if not retrieved:
                    break
                problem = _problem_of_sides(capture)  # a stream may change its size
                if problem:
                    break
                yield Picture(image, frame=number, seconds=seconds, rate=rate)
            number += 1
    finally:
        capture.release()
    if problem:
        yield Picture(None, problem)
    elif number == 0:
        yield Picture(None, "is not a readable video: replace or remove it")
    elif length - seconds > max(_MISSING_SECONDS, _MISSING_SHARE * length):
        yield Picture(None, f"is damaged or cut short: ends at {seconds:.1f} of {length:.1f} s")


def _pixels(capture: Any) -> int:
    return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)) * int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def _problem_of_sides(capture: Any) -> str:
    if _pixels(capture) <= MAX_FRAME:
        return ""
    sides = "x".join(f"{capture.get(side):.0f}" for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    return f"has frames of {sides} pixels, more than {MAX_FRAME:,}: reduce them"


def _open_video(path: Path) -> Any:
    own = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = f"{_ONLY_THE_FILE}|{own}" if own else _ONLY_THE_FILE
    try:
        return _open(f"file:{os.path.abspath(path)}")  # FFmpeg takes "concat:" or "http:" of a bare name for a protocol
    finally:
        del os.environ[_OPTIONS]
        if own is not None:
            os.environ[_OPTIONS] = own


def _open(path_or_number: str | int) -> Any:
    # Silence OpenCV and FFmpeg; the caller reports a damaged file in one line.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    levels: Any = getattr(cv2.utils, "logging", cv2)  # moved there after OpenCV 4.12
    before = levels.getLogLevel()
    levels.setLogLevel(_SILENT)
    try:
        return (
            cv2.VideoCapture(path_or_number)
            if isinstance(path_or_number, int)
            else cv2.VideoCapture(path_or_number, cv2.CAP_FFMPEG)
        )
    except cv2.error:
        return cv2.VideoCapture()
    finally:
        levels.setLogLevel(before)
