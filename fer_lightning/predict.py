"""Emotions of faces in images, folders, a video or a camera: ``python -m fer_lightning.predict CHECKPOINT PATH...``.

Exit code: 0 when every input was answered; 100 plus the number of inputs that were not, at most 125 (unreadable, or
without a face under ``--faces``); 2 for a mistake in the command; 130 after Ctrl-C, except with a camera, which it
ends in good order.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.data.images import as_face, may_be_a_crop
from fer_lightning.inference import answers, detect, pictures
from fer_lightning.inference.annotate import Drawings
from fer_lightning.inference.answers import NO_FACE, OK, Row
from fer_lightning.inference.detect import Box
from fer_lightning.inference.pictures import Picture, Source
from fer_lightning.runtime.errors import UserError

if TYPE_CHECKING:  # imported where it is used: --help and mistakes need not wait for torch
    import torch

BATCH = 256
"""Faces that are classified at once; a picture without any counts as one."""
PENDING = 2**28
"""Bytes of pictures kept for drawing that end a batch before that."""

FAILED, MOST_FAILED = 100, 125
"""Exit codes; shells give their own meaning to those above."""

Cut = Callable[[np.ndarray], list[tuple[Box | None, np.ndarray]]]
"""From a picture, uint8, to its faces: each a box, None when it is the whole picture, and uint8 (48, 48)."""


@dataclass(frozen=True)
class Found:
    """A picture, and the faces cut from it."""

    source: Source
    picture: Picture
    faces: list[tuple[Box | None, np.ndarray]]


def whole(image: np.ndarray) -> list[tuple[Box | None, np.ndarray]]:
    """A picture that is one cropped face; its middle square."""
    return [(None, as_face(image))]


def cut_faces(image: np.ndarray, detector: Path | None = None) -> list[tuple[Box | None, np.ndarray]]:
    """The faces in a photograph, from left to right."""
    return [(box, as_face(detect.crop_face(image, box))) for box in detect.find_faces(image, detector)]


def find(sources: Iterable[Source], cut: Cut, every: int = 1, keep: bool = False) -> Iterator[Found]:
    """The pictures of all sources, in order, each with its faces.

    Args:
        sources: from ``pictures.list_sources``.
        cut: finds the faces.
        every: of a video only each n-th frame.
        keep: whether the pictures are still needed after that.
    """
    for source in sources:
        for picture in pictures.read(source, every):
            faces = [] if picture.image is None else cut(picture.image)
            yield Found(source, picture if keep else replace(picture, image=None), faces)


def answer(
    found: Iterable[Found], classify_faces: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Found, list[Row]]]:
    """The rows of each picture, at least one, in order; batched, except a camera's.

    Args:
        found: from ``find``.
        classify_faces: from uint8 (n, 48, 48) to probabilities (n, 7).
    """
    batch: list[Found] = []
    faces = pixels = 0
    for item in found:
        batch.append(item)
        faces += max(1, len(item.faces))
        pixels += 0 if item.picture.image is None else item.picture.image.nbytes
        if faces >= BATCH or pixels >= PENDING or item.source.kind == "camera":
            yield from _answer(batch, classify_faces)
            batch, faces, pixels = [], 0, 0
    yield from _answer(batch, classify_faces)


def _answer(
    batch: list[Found], classify_faces: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Found, list[Row]]]:
    faces = [face for item in batch for _, face in item.faces]
    probabilities = iter(classify_faces(np.stack(faces)) if faces else ())
    for item in batch:
        at = (str(item.source.path), item.picture.frame, item.picture.seconds)
        rows = [
            Row(*at, None if box is None else number, box, OK, next(probabilities))
            for number, (box, _) in enumerate(item.faces, start=1)
        ]
        yield item, rows or [Row(*at, None, None, item.picture.problem or NO_FACE, None)]


def main(arguments: list[str] | None = None) -> None:
    """Say which emotion each face shows, and how often this model is right."""
    parsed = _parse(arguments)
    try:
        with ExitStack() as stack:
            failed, total = _run(parsed, stack)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the rows has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    end(failed, total)


def end(failed: int, total: int) -> None:
    """End the program where inputs failed, saying how many."""
    if failed:
        print(f"{failed} of {total} inputs failed", file=sys.stderr)
        raise SystemExit(min(FAILED + failed, MOST_FAILED))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m fer_lightning.predict",
        description=main.__doc__,
        epilog="Exit code: 0 when every input was answered, 100 + the number of inputs that were not (at most 125), "
        "2 for a mistake in the command. Ctrl-C ends a camera in good order.",
    )
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image, a folder of them to any depth, a video, a camera's number"
    )
    parser.add_argument("--faces", action="store_true", help="find the faces; without it an image is a cropped face")
    yunet = "find them with YuNet from this file, instead of OpenCV's Haar cascade"
    parser.add_argument("--detector", type=Path, metavar="FILE.onnx", help=yunet)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--format", choices=("table", "csv", "jsonl"), default="table", help="of what is printed")
    where.add_argument("--out", type=Path, metavar="FILE", help="write FILE.csv or FILE.jsonl instead of printing")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write annotated pictures and videos to this folder")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video only each N-th frame; default: 1")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    parsed = parser.parse_args(arguments)
    if not parsed.checkpoint.is_file():  # said again by who reads it, but only after torch is imported
        raise UserError(f"{parsed.checkpoint}: no such checkpoint; give a run's checkpoints/best.ckpt")
    if parsed.every < 1:
        raise UserError(f"--every {parsed.every}: must be 1 or more")
    if parsed.out is not None and parsed.out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {parsed.out}: the name must end in .csv or .jsonl")
    if parsed.draw is not None:
        _check_drawings(parsed.draw, parsed.paths)
    parsed.faces = parsed.faces or parsed.detector is not None
    return parsed


def _check_drawings(folder: Path, paths: list[str]) -> None:
    """Keep drawings away from what they are drawn from.

    Raises:
        UserError: ``folder`` is a file, or the inputs are there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--draw {folder}: is a file; give a folder")
    there = folder.resolve()
    for path in map(Path, paths):
        given = path.resolve()
        if there == given.parent or (given.is_dir() and there.is_relative_to(given)):
            raise UserError(f"--draw {folder}: {path} is read there; choose a folder outside")


def _run(parsed: argparse.Namespace, stack: ExitStack) -> tuple[int, int]:
    """Answer everything; the number of inputs without an answer, and of all."""
    sources = pictures.list_sources(parsed.paths)
    if parsed.faces:
        detect.check_detector(parsed.detector)
    from fer_lightning.evaluation.probabilities import classify
    from fer_lightning.model.classifier import EmotionClassifier

    device = _pick_device(parsed.device)
    model = EmotionClassifier.load(parsed.checkpoint)
    card = model.hparams["scorecard"]
    moves = any(source.moves for source in sources)

    for_people = parsed.out is None and parsed.format == "table"
    write = _open_output(parsed, card, moves, stack)
    drawings = None
    if parsed.draw is not None:
        drawings = Drawings(parsed.draw, parsed.every)
        stack.push(lambda kind, error, trace: drawings.close(keep=error is None))

    cut: Cut = (lambda image: cut_faces(image, parsed.detector)) if parsed.faces else whole_with_a_note()
    answered: set[int] = set()
    broken: set[int] = set()  # a video that ends too early is among both
    about = None
    found = find(sources, cut, parsed.every, keep=drawings is not None)
    for item, rows in answer(found, lambda faces: classify(model, faces, device)):
        if rows[0].status == OK:
            answered.add(id(item.source))
        if item.picture.problem:
            broken.add(id(item.source))
        if for_people and not moves and len(sources) == len(rows) == 1 and rows[0].status == OK:
            about = rows[0].emotion
            print(f"{rows[0].path}: {', '.join(rows[0].ranked()[:3])}")
        else:
            write(rows)
        if drawings is not None:
            labels = [(row.box, row.ranked()[0] if row.status == OK else row.status) for row in rows]
            drawings.add(item.source, item.picture, labels)

    _tell(card, about, sys.stdout if for_people else sys.stderr)
    return sum(id(source) in broken or id(source) not in answered for source in sources), len(sources)


def _tell(card: Mapping[str, Any] | None, emotion: str | None, stream: IO[str]) -> None:
    """How good the model is, and what its probabilities are."""
    from fer_lightning.evaluation.scorecard import describe

    temperature = (card or {}).get("temperature")
    calibration = "not calibrated" if temperature is None else f"calibrated (temperature {temperature:.2f})"
    lines = [f"this model: {describe(card, emotion)}", f"probabilities: {calibration}"]
    if card and emotion is None:
        lines.append("recall: the share of an emotion's test images that this model finds")
    print("\n".join(lines), file=stream, flush=True)


def whole_with_a_note() -> Cut:
    """``whole``, which says once what it does to a photograph."""
    told = False

    def cut(image: np.ndarray) -> list[tuple[Box | None, np.ndarray]]:
        nonlocal told
        height, width = image.shape[:2]
        if not told and not may_be_a_crop(image):
            told = True
            print(
                f"note: a picture of {width}x{height} pixels is taken as one cropped face, its middle square; "
                "--faces finds the faces in a photograph",
                file=sys.stderr,
                flush=True,
            )
        return whole(image)

    return cut


def _pick_device(name: str) -> "torch.device":
    from fer_lightning.evaluation.probabilities import pick_device

    try:
        return pick_device(name)
    except UserError:
        raise UserError(f"--device {name}: this machine has no such device; use --device cpu") from None


def _open_output(
    parsed: argparse.Namespace, card: Mapping[str, Any] | None, moves: bool, stack: ExitStack
) -> answers.Write:
    if parsed.out is not None:
        stream = stack.enter_context(_whole_file(parsed.out))
        return (answers.csv_writer if parsed.out.suffix == ".csv" else answers.jsonl_writer)(stream, card)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if parsed.format != "table":
        return (answers.csv_writer if parsed.format == "csv" else answers.jsonl_writer)(sys.stdout, card)
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    return answers.table_writer(console, card, times=moves, boxes=parsed.faces)


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name when all is written; nothing is left after an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    run_tool(main)
