"""Classify the faces of all inputs, and write rows and annotated copies."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from rich.console import Console

from fer_lightning.evaluation.prior_options import ESTIMATED, PriorOptions, PriorRequest, describe_prior
from fer_lightning.inference import answers, detect, pictures, stream, tracks
from fer_lightning.inference.annotate import Drawings
from fer_lightning.inference.answers import OK, Answerer, Row
from fer_lightning.inference.face_options import FaceOptions, check_pictures_folder
from fer_lightning.inference.pictures import Source
from fer_lightning.metrics import conformal
from fer_lightning.presentation.printable import printable
from fer_lightning.presentation.words import listed
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import make_folder

if TYPE_CHECKING:
    from fer_lightning.model.classifier import EmotionClassifier

MAX_SMOOTHING = 60
"""Seconds."""


RECORDS = ("predictions.csv", "metrics.csv")
"""Tables that a run writes to its folder."""


@dataclass(frozen=True)
class PredictionRequest(FaceOptions, PriorRequest):
    """The options of the ``predict`` command; without a level there are no sets.

    Attributes:
        checkpoint: a run's ``checkpoints/best.ckpt``.
        paths: images, folders, videos, or a camera's number.
        format: ``table``, ``csv`` or ``jsonl``.
        out: file to write the rows to instead of printing them.
        draw: folder for annotated copies.
        every: use every n-th frame of a video.
        smooth: seconds over which the probabilities of a face in a video are smoothed; 0 for none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    checkpoint: Path
    paths: list[str]
    format: str = "table"
    out: Path | None = None
    draw: Path | None = None
    every: int = 1
    smooth: float = 0.5
    device: str = "auto"

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
    with ExitStack() as stack:
        failed, total = _predict(request, stack)
    stream.exit_if_failed(failed, total)


def _check(request: PredictionRequest) -> None:
    if not request.checkpoint.is_file():  # checked again on reading, but that is after torch is imported
        raise UserError(f"{request.checkpoint}: no such checkpoint; give a run's checkpoints/best.ckpt")
    if request.every < 1:
        raise UserError(f"--every {request.every}: must be 1 or more")
    if not 0 <= request.smooth <= MAX_SMOOTHING:
        raise UserError(f"--smooth {request.smooth}: must be 0 to {MAX_SMOOTHING} seconds")
    request.prior_options.check()
    if request.out is not None and request.out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {request.out}: the name must end in .csv or .jsonl")
    if request.out is not None and request.out.name in RECORDS and (request.out.parent / "status.json").exists():
        raise UserError(f"--out {request.out}: is the run's own record; choose another name")
    if request.draw is not None:
        check_pictures_folder("--draw", request.draw, request.paths)


def _predict(request: PredictionRequest, stack: ExitStack) -> tuple[int, int]:
    """Classify every input; returns the number of failed inputs and of all."""
    sources = pictures.list_sources(request.paths)
    if request.prior == ESTIMATED and any(source.kind == "camera" for source in sources):
        raise UserError(
            "--prior estimated: takes all images before the first answer, and a camera never ends; give the shares"
        )
    if request.detects:
        detect.check_detector(request.detector)
    # Not before here: usage errors are reported without the import time of torch.
    from fer_lightning.evaluation.probabilities import classify, pick_device
    from fer_lightning.model.classifier import EmotionClassifier

    device = pick_device(request.device, "--device {}")
    model = EmotionClassifier.load(request.checkpoint)
    extract = (
        partial(stream.detected_faces, form=model.form, detector=request.detector)
        if request.detects
        else stream.central_face_with_note(model.form, model.about_faces)
    )

    def classify_all(keep: bool) -> Iterator[tuple[stream.PictureFaces, list[Row]]]:
        extracted = stream.extract_faces(sources, extract, request.every, keep)
        return stream.classify_pictures(extracted, lambda faces: classify(model, faces, device))

    tracked = any(source.moves for source in sources)
    answerer = _answerer(request, model, tracked, lambda: classify_all(keep=False))
    write = _open_output(request, answerer, stack)
    drawings = _open_drawings(request, stack)
    classified: set[int] = set()
    damaged: set[int] = set()  # a video cut short is in both
    only_answer = None
    for followed in tracks.follow(classify_all(keep=drawings is not None), request.smooth):
        item, rows = followed.item, followed.rows
        if rows[0].status == OK:
            classified.add(id(item.source))
        if item.picture.problem:
            damaged.add(id(item.source))
        if request.prints_table and _is_single_face(sources, rows):
            only_answer = answerer.answer(rows[0])
            print(printable(f"{rows[0].path}: {', '.join(answerer.ranked(rows[0])[:3])}"))
            if answerer.level is not None:
                print(f"{100 * answerer.level:g} % set: {', '.join(answerer.set_of(rows[0]) or ())}")
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


def _answerer(
    request: PredictionRequest,
    model: "EmotionClassifier",
    tracked: bool,
    classify_all: Callable[[], Iterator[tuple[stream.PictureFaces, list[Row]]]],
) -> Answerer:
    """What the answers are about: for an estimated prior, all inputs are classified once before.

    Raises:
        UserError: the checkpoint holds no scores of validation images, or the file of a prior cannot be used.
    """
    card, options = model.hparams["scorecard"], request.prior_options
    answerer = Answerer(model.classes, card, tracked)
    if options == PriorOptions():
        return answerer
    from fer_lightning.evaluation.prior_scores import find_reference, find_shares

    reference = find_reference(model, request.checkpoint, options)
    if options.level is not None:
        answerer = replace(answerer, level=options.level, thresholds=reference.scores.thresholds(options.level))
    if options.prior is None:
        return answerer

    def answers_of_all() -> np.ndarray:
        known = [row.probabilities for _, rows in classify_all() for row in rows if row.probabilities is not None]
        return np.stack(known) if known else np.empty((0, len(model.classes)))

    shares, estimate = find_shares(model, reference, options, answers_of_all)
    print(printable(describe_prior(options.prior, shares, model.classes, estimate)), file=sys.stderr, flush=True)
    return replace(answerer, priors=(reference.prior, shares))


def _is_single_face(sources: list[Source], rows: list[Row]) -> bool:
    return len(sources) == len(rows) == 1 and not sources[0].moves and rows[0].status == OK


def _print_model_quality(answerer: Answerer, answer: str | None, file: IO[str]) -> None:
    """Print the model's test scores, and whether its probabilities are calibrated."""
    from fer_lightning.evaluation.scorecard import scorecard_line

    card = answerer.card
    temperature = (card or {}).get("temperature")
    calibration = "not calibrated" if temperature is None else f"calibrated (temperature {temperature:.2f})"
    lines = [f"this model: {scorecard_line(card, answer)}", f"probabilities: {calibration}"]
    if answerer.level is not None:
        lines.append(_describe_sets(answerer))
    if card and answer is None:
        lines.append(f"recall: share of the test images of this {answerer.noun} that the model classifies correctly")
    print("\n".join(lines), file=file, flush=True)


def _describe_sets(answerer: Answerer) -> str:
    """What the sets promise, what they reached on test images, and which classes are in all of them."""
    assert answerer.level is not None
    assert answerer.thresholds is not None
    card, level = answerer.card or {}, answerer.level
    line = f"sets: hold the true {answerer.noun} of {100 * level:g} % of the images of each {answerer.noun}"
    if card.get("set_level") == level and card.get("test/set_coverage") is not None:
        line += (
            f"; of the test images {100 * card['test/set_coverage']:.1f} %, with {card['test/set_size']:.2f} on average"
        )
    always = [name for name, limit in zip(answerer.classes, answerer.thresholds, strict=True) if np.isinf(limit)]
    if always:
        needed = conformal.images_needed(level)
        line += f"; {listed(always)} in all of them, because {100 * level:g} % takes {needed:,} validation images each"
    return line


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
    if request.format != "table":
        return (answers.csv_writer if request.format == "csv" else answers.jsonl_writer)(sys.stdout, answerer)
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    return answers.table_writer(console, answerer, times=answerer.tracked, boxes=request.detects)


@contextmanager
def _atomic_text_file(path: Path) -> Iterator[IO[str]]:
    """A text file written row by row that gets its name when it is complete; an error leaves nothing behind."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.unlink(missing_ok=True)  # what a killed process left
        with part.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
