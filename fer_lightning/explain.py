"""Where a model looks: ``python -m fer_lightning.explain CHECKPOINT PATH... [--out FOLDER]``.

One picture for each face: the face, what in it speaks for the answer, and the probabilities of the seven emotions. With
``--test-set`` the mean map of each emotion over the model's own test images, and a check that the maps show what the
model uses. How the maps are made, and why so: ``inference/saliency.py``.
"""

import argparse
import io
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fer_lightning.config import command_line
from fer_lightning.config import schema as schema
from fer_lightning.config.command_line import Parser
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file

if TYPE_CHECKING:  # imported where it is used: --help and mistakes need not wait for torch
    import torch
    from matplotlib.figure import Figure

    from fer_lightning.inference.pictures import Source
    from fer_lightning.model.classifier import EmotionClassifier
    from fer_lightning.predict import Found

log = logging.getLogger(__name__)

CHUNK = 64
"""Images that are read, and pictures that are drawn, at a time."""


def main(arguments: list[str] | None = None) -> None:
    """Show where a model looks, in single faces or in the mean over its test images."""
    parser = Parser(prog="python -m fer_lightning.explain", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="PATH",
        help="images, or folders of them to any depth; with --test-set key=value of the run's configuration, such as "
        "data.path=fer2013.zip",
    )
    parser.add_argument("--test-set", action="store_true", help="mean maps of the model's own test images")
    parser.add_argument("--faces", action="store_true", help="find the faces; without it an image is a cropped face")
    yunet = "find them with YuNet from this file, instead of OpenCV's Haar cascade"
    parser.add_argument("--detector", type=Path, metavar="FILE.onnx", help=yunet)
    parser.add_argument("--emotion", choices=EMOTIONS, help="what to explain; default: the model's answer")
    parser.add_argument(
        "--out", type=Path, default=Path("explained"), help="folder for the pictures; default: explained"
    )
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if parsed.test_set:
        for option in ("emotion", "faces", "detector"):
            if given := getattr(parsed, option):
                told = f"--{option}" if given is True else f"--{option} {given}"
                raise UserError(f"{told}: --test-set explains every emotion of the test faces; leave it out")
        _explain_test_set(parsed.checkpoint, parsed.inputs, parsed.out)
    elif parsed.inputs:
        _explain_files(parsed)
    else:
        raise UserError("no image given: name images or folders, or give --test-set for the model's test images")


def _explain_files(parsed: argparse.Namespace) -> None:
    """Write a picture for each face, and print a table of them; what cannot be read is told there."""
    from fer_lightning import predict
    from fer_lightning.evaluation.probabilities import pick_device
    from fer_lightning.evaluation.scorecard import describe
    from fer_lightning.inference import detect, pictures, saliency  # noqa: F401  it tells when captum is missing
    from fer_lightning.model.classifier import EmotionClassifier

    sources = [_still(source) for source in pictures.list_sources(parsed.inputs)]
    cut: predict.Cut = predict.whole_with_a_note()
    searches = parsed.faces or parsed.detector is not None
    if searches:
        detect.check_detector(parsed.detector)
        cut = partial(predict.cut_faces, detector=parsed.detector)
    model = EmotionClassifier.load(parsed.checkpoint)
    _make(parsed.out)
    device = pick_device("auto")
    columns = ("image", *(["face"] if searches else []), "answer", "probability", "picture")
    table = Table(*(Column(name, overflow="fold") for name in columns))
    answered: set[str] = set()
    taken: set[str] = set()
    failed = 0
    found = predict.find(sources, cut)
    while chunk := list(itertools.islice(found, CHUNK)):
        failed += sum(not item.faces for item in chunk)
        for path, face, answer, *more in _explain(model, chunk, parsed.emotion, parsed.out, taken, device):
            table.add_row(*map(escape, (path, *([face] if searches else []), answer, *more)))
            answered |= {answer} & set(EMOTIONS)
    card = model.hparams["scorecard"]
    console = Console()
    console.print(table)
    only = answered.pop() if len(answered) == 1 else None
    console.print(f"this model: {describe(card, only)}; probabilities {_calibration(card)}", highlight=False)
    predict.end(failed, len(sources))


def _still(source: "Source") -> "Source":
    """The same input, or for one that moves the reason why it is not explained."""
    if not source.moves:
        return source
    return replace(source, kind="none", problem=f"is a {source.kind}: give pictures of it, or take predict")


def _explain(
    model: "EmotionClassifier",
    found: list["Found"],
    emotion: str | None,
    out: Path,
    taken: set[str],
    device: "torch.device",
) -> Iterator[tuple[str, str, str, str, str]]:
    """Draw every face of some pictures; yields the rows of the table."""
    from fer_lightning.evaluation.probabilities import classify
    from fer_lightning.evaluation.scorecard import describe
    from fer_lightning.inference import saliency, saliency_figures
    from fer_lightning.inference.answers import NO_FACE

    card = model.hparams["scorecard"]
    images = [face for item in found for _, face in item.faces]
    probabilities = classify(model, np.stack(images), device) if images else np.empty((0, len(EMOTIONS)))
    answers = probabilities.argmax(axis=1)
    explained = np.full(len(images), EMOTIONS.index(emotion)) if emotion else answers
    maps: Any = saliency.saliency_maps(model, np.stack(images), explained, device) if images else ()
    faces = iter(zip(images, maps, probabilities, explained, answers, strict=True))
    for item in found:
        path = str(item.source.path)
        if not item.faces:
            yield path, "", "-", "-", item.picture.problem or NO_FACE
        for number, ((box, _), each) in enumerate(zip(item.faces, faces, strict=False), start=1):
            image, heat, chances, shown, best = each
            answer, confidence = EMOTIONS[best], f"{100 * chances[best]:.0f} %"
            caption = f"{_shorten(item.source.path.name)} · probabilities {_calibration(card)} · {describe(card)}"
            figure = saliency_figures.explained_face(
                image, heat, chances, int(shown), f"{answer} {confidence}", caption
            )
            picture = out / _free_name(item.source.path.stem, taken)
            _save(figure, picture)
            yield path, "" if box is None else str(number), answer, confidence, str(picture)


def _calibration(card: Mapping[str, Any] | None) -> str:
    return "calibrated on validation" if (card or {}).get("temperature") else "not calibrated"


def _explain_test_set(checkpoint: Path, overrides: list[str], out: Path) -> None:
    """Write ``saliency.png`` and ``saliency.npz``, and print how far the maps show what the model uses."""
    from fer_lightning.evaluation.checkpoint_split import load_split, what_was_scored
    from fer_lightning.evaluation.probabilities import pick_device
    from fer_lightning.inference import saliency, saliency_figures
    from fer_lightning.model.classifier import EmotionClassifier
    from fer_lightning.presentation.words import caption

    model = EmotionClassifier.load(checkpoint)
    cfg, faces, split = load_split(model, overrides)
    test = split.tests["test"]
    _make(out)
    found = saliency.explain_test_set(
        model, faces.images[test], faces.labels[test], pick_device(cfg.trainer.accelerator)
    )
    chosen = f"{found.right.sum():,} of {found.total.sum():,} test faces, those classified correctly"
    subtitle = f"{caption(what_was_scored(checkpoint, cfg, faces))} · mean over {chosen}"
    figure = saliency_figures.mean_maps(
        found.faces, found.maps, found.right, found.total, "What speaks for each emotion", subtitle
    )
    _save(figure, out / "saliency.png")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, emotions=np.array(EMOTIONS), maps=found.maps, faces=found.faces, right=found.right, total=found.total
    )
    replace_file(out / "saliency.npz", buffer.getbuffer())
    areas = ", ".join(f"{name} {area:.3f}" for name, area in found.deletion.items())
    log.info("%s: %s and %s", chosen, out / "saliency.png", out / "saliency.npz")
    log.info(
        "deletion AUC over %d faces (the probability while pixels are hidden, lower is better): %s",
        found.checked,
        areas,
    )
    print(json.dumps({"checkpoint": str(checkpoint), "faces": found.checked, "deletion_auc": found.deletion}))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror}); choose another folder") from None


def _save(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    replace_file(path, buffer.getbuffer())


def _shorten(name: str, length: int = 32) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _free_name(stem: str, taken: set[str]) -> str:
    """A file name for a picture that no other picture of this call has, on any file system."""
    numbers = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    name = next(name for name in numbers if name.lower() not in taken)
    taken.add(name.lower())
    return f"{name}.png"


if __name__ == "__main__":
    command_line.run_tool(main)
