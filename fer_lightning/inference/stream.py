"""From inputs to answers, one picture at a time: read pictures, extract their faces, classify the faces in batches."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fer_lightning.data.faces import ImageForm
from fer_lightning.data.images import as_face, may_be_a_crop
from fer_lightning.inference import detect, pictures
from fer_lightning.inference.answers import NO_FACE, OK, Row
from fer_lightning.inference.detect import Box
from fer_lightning.inference.pictures import Picture, Source

BATCH_FACES = 256
"""Faces classified at once; a picture without a face counts as one."""
MAX_PENDING_BYTES = 2**28
"""Bytes of pictures kept for drawing; a batch ends early when it holds as many."""

FAILED, MOST_FAILED = 100, 125
"""Exit codes: base and maximum; shells reserve higher ones."""

Faces = list[tuple[Box | None, np.ndarray]]
"""Faces of a picture: the box, None for the whole picture, and of the model's form."""

Extract = Callable[[np.ndarray], Faces]
"""Extracts the faces of a picture, uint8 (H, W) or (H, W, 3)."""


@dataclass(frozen=True)
class PictureFaces:
    """A picture and the faces extracted from it."""

    source: Source
    picture: Picture
    faces: Faces


def detected_faces(image: np.ndarray, form: ImageForm, detector: Path | None) -> Faces:
    """Detect the faces in a photograph, from left to right."""
    return [(box, as_face(detect.crop_face(image, box), form)) for box in detect.find_faces(image, detector)]


def central_face_with_note(form: ImageForm, about_faces: bool) -> Extract:
    """Take the central square of a picture; the first that looks like a photograph is noted on stderr."""
    noted = False
    hint = "; --faces detects the faces in a photograph" if about_faces else ""

    def extract(image: np.ndarray) -> Faces:
        nonlocal noted
        height, width = image.shape[:2]
        if not noted and not may_be_a_crop(image):
            noted = True
            print(
                f"note: only the central square of a picture of {width}x{height} pixels is used{hint}",
                file=sys.stderr,
                flush=True,
            )
        return [(None, as_face(image, form))]

    return extract


def extract_faces(
    sources: Iterable[Source], extract: Extract, every: int = 1, keep: bool = False
) -> Iterator[PictureFaces]:
    """Read the pictures of all sources in order and extract their faces.

    Args:
        sources: from ``pictures.list_sources``.
        extract: extracts the faces of one picture.
        every: use every n-th frame of a video or camera.
        keep: keep the decoded pictures, which drawing needs.
    """
    for source in sources:
        for picture in pictures.read(source, every):
            faces = [] if picture.image is None else extract(picture.image)
            yield PictureFaces(source, picture if keep else replace(picture, image=None), faces)


def classify_pictures(
    extracted: Iterable[PictureFaces], classify_faces: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[PictureFaces, list[Row]]]:
    """Classify faces in batches; a camera's frames one at a time.

    Args:
        extracted: from ``extract_faces``.
        classify_faces: from images (n, ...) to probabilities (n, C).

    Yields:
        Each picture in order, with a row per face, or one row that says why there is none.
    """
    batch: list[PictureFaces] = []
    faces = pending = 0
    for item in extracted:
        batch.append(item)
        faces += max(1, len(item.faces))
        pending += 0 if item.picture.image is None else item.picture.image.nbytes
        if faces >= BATCH_FACES or pending >= MAX_PENDING_BYTES or item.source.kind == "camera":
            yield from _classify_batch(batch, classify_faces)
            batch, faces, pending = [], 0, 0
    yield from _classify_batch(batch, classify_faces)


def _classify_batch(
    batch: list[PictureFaces], classify_faces: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[PictureFaces, list[Row]]]:
    faces = [face for item in batch for _, face in item.faces]
    probabilities = iter(classify_faces(np.stack(faces)) if faces else ())
    for item in batch:
        origin = (str(item.source.path), item.picture.frame, item.picture.seconds)
        rows = [
            Row(*origin, None if box is None else number, box, OK, next(probabilities))
            for number, (box, _) in enumerate(item.faces, start=1)
        ]
        yield item, rows or [Row(*origin, None, None, item.picture.problem or NO_FACE, None)]


def exit_if_failed(failed: int, total: int) -> None:
    """Report how many inputs failed and exit with 100 plus that number, at most 125; return when none did."""
    if failed:
        print(f"{failed} of {total} inputs failed", file=sys.stderr)
        raise SystemExit(min(FAILED + failed, MOST_FAILED))
