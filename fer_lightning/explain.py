"""Where a model looks: ``python -m fer_lightning.explain CHECKPOINT PATH... [--out FOLDER]``.

One picture for each face: the face, what in it speaks for the answer, and the probabilities of the seven emotions. With
``--test-set`` the mean map of each emotion over the model's own test images, and a check that the maps show what the
model uses. How the maps are made, and why so: ``saliency.py``.
"""

import argparse
import io
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fer_lightning import config as schema
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.run_folder import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

CHUNK = 64
"""Images that are read, and pictures that are drawn, at a time."""


def main(arguments: list[str] | None = None) -> None:
    """Show where a model looks, in single faces or in the mean over its test images."""
    parser = argparse.ArgumentParser(prog="python -m fer_lightning.explain", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="PATH",
        help="images of one face each, or folders of them; with --test-set key=value of the run's configuration, such "
        "as data.path=fer2013.zip",
    )
    parser.add_argument("--test-set", action="store_true", help="mean maps of the model's own test images")
    parser.add_argument("--emotion", choices=EMOTIONS, help="what to explain; default: the model's answer")
    parser.add_argument(
        "--out", type=Path, default=Path("explained"), help="folder for the pictures; default: explained"
    )
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if parsed.test_set:
        if parsed.emotion:
            raise UserError(f"--emotion {parsed.emotion}: --test-set explains every emotion; leave it out")
        _explain_test_set(parsed.checkpoint, parsed.inputs, parsed.out)
    elif parsed.inputs:
        _explain_files(
            parsed.checkpoint, find_images([Path(text) for text in parsed.inputs]), parsed.emotion, parsed.out
        )
    else:
        raise UserError("no image given: name images or folders, or give --test-set for the model's test images")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The image files that are given, or are anywhere in the folders given, each once.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    from fer_lightning.data.images import IMAGE_SUFFIXES

    def is_image(file: Path, folder: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file()

    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: does not exist; give images or folders of images")
        files = sorted(file for file in path.rglob("*") if is_image(file, path)) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
        found |= dict.fromkeys(files)
    return list(found)


def _explain_files(checkpoint: Path, files: list[Path], emotion: str | None, out: Path) -> None:
    """Write a picture for each file, and print a table of them; what cannot be read is told there."""
    from fer_lightning import saliency, saliency_figures
    from fer_lightning.evaluate import pick_device, predict
    from fer_lightning.model import EmotionClassifier
    from fer_lightning.scorecard import describe
    from fer_lightning.statistics import scale

    model = EmotionClassifier.load(checkpoint)
    card = model.hparams["scorecard"] or {}
    temperature, device = card.get("temperature"), pick_device("auto")
    said = "calibrated on validation" if temperature else "not calibrated"
    _make(out)
    table = Table(*(Column(name, overflow="fold") for name in ("image", "answer", "probability", "picture")))
    answered: set[str] = set()
    taken: set[str] = set()
    failed = 0
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        faces, reasons = _read_faces(chunk)
        failed += len(reasons)
        rows = {file: ("-", "-", reason) for file, reason in reasons.items()}
        if faces:
            images = np.stack(list(faces.values()))
            probabilities = scale(predict(model, images, device), temperature or 1.0)
            answers = probabilities.argmax(axis=1)
            explained = np.full(len(images), EMOTIONS.index(emotion)) if emotion else answers
            maps = saliency.saliency_maps(model, images, explained, device)
            for number, file in enumerate(faces):
                answer, confidence = EMOTIONS[answers[number]], f"{100 * probabilities[number].max():.0f} %"
                figure = saliency_figures.explained_face(
                    images[number],
                    maps[number],
                    probabilities[number],
                    int(explained[number]),
                    f"{answer} {confidence}",
                    f"{_shorten(file.name)} · probabilities {said} · {describe(card)}",
                )
                picture = out / _free_name(file.stem, taken)
                _save(figure, picture)
                rows[file] = (answer, confidence, str(picture))
                answered.add(answer)
        for file in chunk:
            table.add_row(*map(escape, (str(file), *rows[file])))
    console = Console()
    console.print(table)
    console.print(
        f"this model: {describe(card, answered.pop() if len(answered) == 1 else None)}; probabilities {said}",
        highlight=False,
    )
    if failed:
        schema.fail(f"{failed} of {len(files)} images could not be read", code=1)


def _explain_test_set(checkpoint: Path, overrides: list[str], out: Path) -> None:
    """Write ``saliency.png`` and ``saliency.npz``, and print how far the maps show what the model uses."""
    from fer_lightning import saliency, saliency_figures
    from fer_lightning.evaluate import load_split, pick_device, what_was_scored
    from fer_lightning.figures import caption
    from fer_lightning.model import EmotionClassifier

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


def _read_faces(files: Sequence[Path]) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """The faces in image files, uint8 (48, 48), and for those that cannot be read, why."""
    from fer_lightning.data.images import as_face, decode, may_be_a_crop

    faces, reasons = {}, {}
    photographs = 0
    for file in files:
        try:
            image = decode(file.read_bytes(), "it")
            photographs += not may_be_a_crop(image)
            faces[file] = as_face(image)
        except UserError as error:
            reasons[file] = str(error)
        except OSError as error:
            reasons[file] = f"it cannot be read ({error.strerror})"
    if photographs:
        log.info(
            "note: %d of the pictures look like photographs; of each the middle square is taken as one face, "
            "predict --faces finds the faces in them",
            photographs,
        )
    return faces, reasons


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
    schema.run_tool(main)
