"""Classify the faces of all inputs, and write rows and annotated copies."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console

from fer_lightning.inference import answers, detect, pictures, stream, tracks
from fer_lightning.inference.annotate import Drawings
from fer_lightning.inference.answers import OK, Answerer, Row
from fer_lightning.inference.pictures import Source
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError

MAX_SMOOTHING = 60
"""Seconds."""


@dataclass(frozen=True)
class PredictionRequest:
    """The options of the ``predict`` command.

    Attributes:
        checkpoint: a run's ``checkpoints/best.ckpt``.
        paths: images, folders, videos, or a camera's number.
        faces: detect faces; implied by ``detector``.
        detector: YuNet's file; None for OpenCV's Haar cascade.
        format: ``table``, ``csv`` or ``jsonl``.
        out: file to write the rows to instead of printing them.
        draw: folder for annotated copies.
        every: use every n-th frame of a video.
        smooth: seconds over which the probabilities of a face in a video are smoothed; 0 for none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    checkpoint: Path
    paths: list[str]
    faces: bool = False
    detector: Path | None = None
    format: str = "table"
    out: Path | None = None
    draw: Path | None = None
    every: int = 1
    smooth: float = 0.5
    device: str = "auto"

    @property
    def detects(self) -> bool:
        """Whether faces are detected."""
        return self.faces or self.detector is not None

    @property
    def prints_table(self) -> bool:
        """Whether the rows are printed as a table for people."""
        return self.out is None and self.format == "table"


def predict_inputs(request: PredictionRequest) -> None:
    """Classify all inputs, then exit with a code above 100 when some failed.

    Raises:
        UserError: an option is invalid, or an input or output cannot be used at all.
    """
    _check(request)
    try:
        with ExitStack() as stack:
            failed, total = _predict(request, stack)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    stream.exit_if_failed(failed, total)


def _check(request: PredictionRequest) -> None:
    if not request.checkpoint.is_file():  # checked again on reading, but that is after torch is imported
        raise UserError(f"{request.checkpoint}: no such checkpoint; give a run's checkpoints/best.ckpt")
    if request.every < 1:
        raise UserError(f"--every {request.every}: must be 1 or more")
    if not 0 <= request.smooth <= MAX_SMOOTHING:
        raise UserError(f"--smooth {request.smooth}: must be 0 to {MAX_SMOOTHING} seconds")
    if request.out is not None and request.out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {request.out}: the name must end in .csv or .jsonl")
    if request.draw is not None:
        _check_drawings(request.draw, request.paths)


def _check_drawings(folder: Path, paths: list[str]) -> None:
    """Refuse to draw into a folder that inputs are read from.

    Raises:
        UserError: ``folder`` is a file, or holds inputs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--draw {folder}: is a file; give a folder")
    target = folder.resolve()
    for path in map(Path, paths):
        given = path.resolve()
        if target == given.parent or (given.is_dir() and target.is_relative_to(given)):
            raise UserError(f"--draw {folder}: {path} is read from there; choose a folder outside")


def _predict(request: PredictionRequest, stack: ExitStack) -> tuple[int, int]:
    """Classify every input; returns the number of failed inputs and of all."""
    sources = pictures.list_sources(request.paths)
    if request.detects:
        detect.check_detector(request.detector)
    # Not before here: usage errors are reported without the seconds that torch takes to import.
    from fer_lightning.evaluation.probabilities import classify, pick_device
    from fer_lightning.model.classifier import EmotionClassifier

    device = pick_device(request.device, "--device {}")
    model = EmotionClassifier.load(request.checkpoint)
    answerer = Answerer(model.classes, model.hparams["scorecard"], any(source.moves for source in sources))
    write = _open_output(request, answerer, stack)
    drawings = _open_drawings(request, stack)
    extract = (
        partial(stream.detected_faces, form=model.form, detector=request.detector)
        if request.detects
        else stream.central_face_with_note(model.form)
    )
    classified: set[int] = set()
    damaged: set[int] = set()  # a video cut short is in both
    only_answer = None
    extracted = stream.extract_faces(sources, extract, request.every, keep=drawings is not None)
    classified_pictures = stream.classify_pictures(extracted, lambda faces: classify(model, faces, device))
    for followed in tracks.follow(classified_pictures, request.smooth):
        item, rows = followed.item, followed.rows
        if rows[0].status == OK:
            classified.add(id(item.source))
        if item.picture.problem:
            damaged.add(id(item.source))
        if request.prints_table and _is_single_face(sources, rows):
            only_answer = answerer.answer(rows[0])
            print(printable(f"{rows[0].path}: {', '.join(answerer.ranked(rows[0])[:3])}"))
        else:
            write(rows)
        if drawings is not None:
            drawings.add(item.source, item.picture, [(box, _label(row, answerer)) for box, row in followed.drawn])
    _print_model_quality(answerer, only_answer, sys.stdout if request.prints_table else sys.stderr)
    return sum(id(source) in damaged or id(source) not in classified for source in sources), len(sources)


def _label(row: Row, answerer: Answerer) -> str:
    """What is written at a face: number of its track, where it has a box in a video, and the answer."""
    if row.status != OK:
        return row.status
    return (
        answerer.ranked(row)[0] if row.track is None or row.box is None else f"{row.track}: {answerer.ranked(row)[0]}"
    )


def _is_single_face(sources: list[Source], rows: list[Row]) -> bool:
    return len(sources) == len(rows) == 1 and not sources[0].moves and rows[0].status == OK


def _print_model_quality(answerer: Answerer, answer: str | None, file: IO[str]) -> None:
    """Print the model's test scores, and whether its probabilities are calibrated."""
    from fer_lightning.evaluation.scorecard import scorecard_line

    card = answerer.card
    temperature = (card or {}).get("temperature")
    calibration = "not calibrated" if temperature is None else f"calibrated (temperature {temperature:.2f})"
    lines = [f"this model: {scorecard_line(card, answer)}", f"probabilities: {calibration}"]
    if card and answer is None:
        lines.append(f"recall: share of the test images of this {answerer.noun} that the model classifies correctly")
    print("\n".join(lines), file=file, flush=True)


def _open_drawings(request: PredictionRequest, stack: ExitStack) -> Drawings | None:
    if request.draw is None:
        return None
    drawings = Drawings(request.draw, request.every)
    stack.push(lambda kind, error, trace: drawings.close(keep=error is None))
    return drawings


def _open_output(request: PredictionRequest, answerer: Answerer, stack: ExitStack) -> answers.Write:
    if request.out is not None:
        file = stack.enter_context(_atomic_text_file(request.out))
        return (answers.csv_writer if request.out.suffix == ".csv" else answers.jsonl_writer)(file, answerer)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if request.format != "table":
        return (answers.csv_writer if request.format == "csv" else answers.jsonl_writer)(sys.stdout, answerer)
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    return answers.table_writer(console, answerer, times=answerer.tracked, boxes=request.detects)


@contextmanager
def _atomic_text_file(path: Path) -> Iterator[IO[str]]:
    """A text file written row by row that gets its name when it is complete; an error leaves nothing behind."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        part.unlink(missing_ok=True)
