"""Draw saliency maps of the faces in images, or mean maps over a model's own test images."""

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fer_lightning.config.messages import did_you_mean
from fer_lightning.data.faces import class_noun
from fer_lightning.evaluation.checkpoint_split import load_split, what_was_scored
from fer_lightning.evaluation.probabilities import classify, pick_device
from fer_lightning.evaluation.scorecard import scorecard_line
from fer_lightning.inference import detect, pictures, saliency, saliency_figures, stream
from fer_lightning.inference.answers import NO_FACE
from fer_lightning.inference.explanation_request import ExplanationRequest
from fer_lightning.inference.stream import PictureFaces
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.plotting import write_figure
from fer_lightning.presentation.printable import printable
from fer_lightning.presentation.words import caption, cut
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file_by

log = logging.getLogger(__name__)

CHUNK = 64
"""Pictures read and drawn at a time."""


class TableRow(NamedTuple):
    """One line of the printed table."""

    image: str
    face: str
    answer: str
    probability: str
    picture: str


def explain(request: ExplanationRequest) -> None:
    """Draw saliency maps: of single faces, or as means over the model's own test images."""
    if request.test_set:
        explain_test_set(request.checkpoint, request.inputs, request.out)
    else:
        explain_inputs(request)


def explain_inputs(request: ExplanationRequest) -> None:
    """Write a picture for each face and print a table of them; exit with a code above 100 when some inputs failed.

    Raises:
        UserError: no input exists, the detector or checkpoint cannot be used, or the folder cannot be made.
    """
    detects, class_name, out = request.detects, request.class_name, request.out
    sources = [_refuse_video(source) for source in pictures.list_sources(request.inputs)]
    if detects:
        detect.check_detector(request.detector)
    model = EmotionClassifier.load(request.checkpoint)
    extract = stream.central_face_with_note(model.form, model.about_faces)
    if detects:
        extract = partial(stream.detected_faces, form=model.form, detector=request.detector)
    if class_name is not None and class_name not in model.classes:
        hint = did_you_mean(class_name, list(model.classes))
        raise UserError(f"--class {class_name}: this model knows {', '.join(model.classes)}{hint}")
    _make_folder(out)
    explainer = _Explainer(model, class_name, out, pick_device("auto"), set())
    columns = ("image", *(["face"] if detects else []), "answer", "probability", "picture")
    table = Table(*(Column(name, overflow="fold") for name in columns))
    predicted: set[str] = set()
    failed = 0
    extracted = stream.extract_faces(sources, extract)
    while chunk := list(itertools.islice(extracted, CHUNK)):
        failed += sum(not item.faces for item in chunk)
        for row in explainer.explain_faces(chunk):
            cells = row if detects else (row.image, *row[2:])
            table.add_row(*(escape(printable(cell)) for cell in cells))
            predicted |= {row.answer} & set(model.classes)
    card = model.hparams["scorecard"]
    console = Console()
    console.print(table)
    only_answer = predicted.pop() if len(predicted) == 1 else None
    console.print(
        f"this model: {scorecard_line(card, only_answer)}; probabilities {_calibration(card)}", highlight=False
    )
    stream.exit_if_failed(failed, len(sources))


def _refuse_video(source: pictures.Source) -> pictures.Source:
    """The same input; a video or camera becomes an input that cannot be read, with the reason."""
    if not source.moves:
        return source
    return replace(source, kind="none", problem=f"is a {source.kind}: give single images, or use predict")


@dataclass(frozen=True)
class _Explainer:
    """Writes pictures of saliency maps with one model.

    Attributes:
        model: moved to ``device``.
        class_name: the class to explain; None for the predicted one.
        out: folder for the pictures.
        device: where to compute.
        taken: names of the pictures written so far.
    """

    model: EmotionClassifier
    class_name: str | None
    out: Path
    device: torch.device
    taken: set[str]

    def explain_faces(self, items: list[PictureFaces]) -> Iterator[TableRow]:
        """Write the picture of every face of some pictures; yields the rows of the table."""
        card = self.model.hparams["scorecard"]
        images = [face for item in items for _, face in item.faces]
        maps: Any = ()
        probabilities = np.empty((0, len(self.model.classes)))
        if images:
            probabilities = classify(self.model, np.stack(images), self.device)
        predicted = probabilities.argmax(axis=1)
        classes = self.model.classes
        explained = np.full(len(images), classes.index(self.class_name)) if self.class_name else predicted
        if images:
            maps = saliency.saliency_maps(self.model, np.stack(images), explained, self.device)
        faces = iter(zip(images, maps, probabilities, explained, predicted, strict=True))
        for item in items:
            path = item.source.path
            if not item.faces:
                yield TableRow(str(path), "", "-", "-", item.picture.problem or NO_FACE)
            for number, ((box, _), face) in enumerate(zip(item.faces, faces, strict=False), start=1):
                image, heat, chances, shown, best = face
                answer, confidence = classes[best], f"{100 * chances[best]:.0f} %"
                subtitle = f"{cut(path.name, 32)} · probabilities {_calibration(card)} · {scorecard_line(card)}"
                figure = saliency_figures.explained_face(
                    image, heat, classes, chances, int(shown), f"{answer} {confidence}", subtitle
                )
                picture = self.out / _free_name(pictures.short_stem(path.stem), self.taken)
                _save(figure, picture)
                yield TableRow(str(path), "" if box is None else str(number), answer, confidence, str(picture))


def _calibration(card: Mapping[str, Any] | None) -> str:
    return "calibrated on validation" if (card or {}).get("temperature") else "not calibrated"


def explain_test_set(checkpoint: Path, overrides: list[str], out: Path) -> None:
    """Write ``saliency.png`` and ``saliency.npz`` of a model's test images, and print the deletion areas.

    Args:
        checkpoint: a run's ``checkpoints/best.ckpt``.
        overrides: ``key=value`` of the run's configuration.
        out: folder for both files.

    Raises:
        UserError: the checkpoint or data cannot be used, or no test image is classified correctly.
    """
    model = EmotionClassifier.load(checkpoint)
    cfg, faces, split = load_split(model, overrides)
    test = split.tests["test"]
    _make_folder(out)
    result = saliency.explain_test_set(
        model, faces.images[test], faces.labels[test], pick_device(cfg.trainer.accelerator)
    )
    noun = class_noun(model.classes)
    images = "faces" if model.about_faces else "images"
    chosen = f"{result.right.sum():,} of {result.total.sum():,} test {images}, those classified correctly"
    subtitle = f"{caption(what_was_scored(checkpoint, cfg, faces, split))} · mean over {chosen}"
    figure = saliency_figures.mean_maps(result, model.classes, f"Mean saliency map of each {noun}", subtitle)
    _save(figure, out / "saliency.png")
    replace_file_by(out / "saliency.npz", lambda file: _save_arrays(file, model.classes, result))
    areas = ", ".join(f"{name} {area:.3f}" for name, area in result.deletion.items())
    log.info("%s: wrote %s and %s", chosen, out / "saliency.png", out / "saliency.npz")
    log.info(
        "deletion AUC over %d %s (mean probability while pixels are blurred, lower is better): %s",
        result.checked,
        images,
        areas,
    )
    print(json.dumps({"checkpoint": str(checkpoint), "images": result.checked, "deletion_auc": result.deletion}))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror}); choose another folder") from None


def _save(figure: Figure, path: Path) -> None:
    replace_file_by(path, lambda file: write_figure(figure, file))


def _save_arrays(file: BinaryIO, classes: Sequence[str], result: saliency.MeanMaps) -> None:
    np.savez_compressed(
        file, classes=np.array(classes), maps=result.maps, faces=result.faces, right=result.right, total=result.total
    )


def _free_name(stem: str, taken: set[str]) -> str:
    """A file name that no other picture of this call has; case is ignored, as some file systems do."""
    numbers = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    name = next(name for name in numbers if name.lower() not in taken)
    taken.add(name.lower())
    return f"{name}.png"
