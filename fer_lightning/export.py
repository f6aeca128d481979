"""A trained model for other programs: ``python -m fer_lightning.export CHECKPOINT --format onnx``.

The file takes pictures and answers calibrated probabilities: preprocessing and softmax are inside
(``inference/deploy.py``).
It is opened again and must answer every test image as PyTorch does; otherwise nothing is written.
"""

import argparse
import importlib.util
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fer_lightning.config import command_line
from fer_lightning.config import schema as schema
from fer_lightning.config.command_line import Parser
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file

if TYPE_CHECKING:
    from fer_lightning.data.faces import Faces
    from fer_lightning.data.splits import Split
    from fer_lightning.deploy.formats import Answer
    from fer_lightning.model.classifier import EmotionClassifier

log = logging.getLogger(__name__)

SUFFIXES = {
    "onnx": ".onnx",
    "torchscript": ".torchscript.pt",
    "exported_program": ".pt2",
    "safetensors": ".safetensors",
}
INT8_SUFFIX = ".int8.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TOLERANCE = 1e-4
"""Largest difference of a probability between an exported file and PyTorch."""

PHOTO_SIZE = (160, 120)
"""Width and height of the colour pictures that the preprocessing is checked with.

The middle square is 5/2 of a face: every gray level is a multiple of 1/25 before it is rounded, never halfway between
two, where libraries differ.
"""
PHOTOS = 32

DRAWN_FACES = 400
BATCH_SIZE = 256


@dataclass(frozen=True)
class Parity:
    """How far the answers of an exported file are from PyTorch's.

    Attributes:
        images: how many were compared.
        max_difference: largest difference of a probability.
        other_answers: images whose most probable emotion is another one.
    """

    images: int
    max_difference: float
    other_answers: int


def compare(expected: np.ndarray, found: np.ndarray) -> Parity:
    """Compare probabilities, both (n, 7)."""
    others = int((expected.argmax(axis=1) != found.argmax(axis=1)).sum())
    return Parity(len(expected), float(np.abs(expected - found).max()), others)


def main(arguments: list[str] | None = None) -> None:
    """Export a checkpoint with preprocessing, calibrated softmax and metadata, and check it against PyTorch."""
    parser = Parser(prog="python -m fer_lightning.export", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of the run's configuration, such as data.path=fer2013.zip, where the test images are now",
    )
    parser.add_argument("--format", choices=SUFFIXES, required=True)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: exports/MODEL.SUFFIX in the run folder")
    parser.add_argument(
        "--int8", action="store_true", help="convolutions in int8, calibrated on validation images (onnx only)"
    )
    parser.add_argument(
        "--drawn-faces", action="store_true", help="check on drawn faces, where the test images are not at hand"
    )
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fer_lightning").setLevel(logging.INFO)  # not onnxscript's and timm's, which say much
    suffix = INT8_SUFFIX if parsed.int8 else SUFFIXES[parsed.format]
    _check(parsed, suffix)

    from fer_lightning.model.classifier import EmotionClassifier

    model = EmotionClassifier.load(parsed.checkpoint)
    out = parsed.out or _beside(parsed.checkpoint) / f"{model.hparams['model']['name']}{suffix}"
    faces, split = _drawn() if parsed.drawn_faces else _own(model, parsed.overrides)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"model{suffix}"
        result = export(model, parsed.format, parsed.int8, faces, split, file)
        content = file.read_bytes()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, content)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from error
    print(json.dumps({"format": parsed.format, "file": str(out), "bytes": len(content), **result}))


def _check(parsed: argparse.Namespace, suffix: str) -> None:
    """Refuse what cannot be, before anything is loaded."""
    if parsed.int8 and parsed.format != "onnx":
        raise UserError(f"--int8 with --format {parsed.format}: only onnx is quantised; use --format onnx")
    if parsed.int8 and parsed.drawn_faces:
        raise UserError(
            "--int8 with --drawn-faces: int8 is calibrated on the run's own validation images; leave one out"
        )
    if parsed.overrides and parsed.drawn_faces:
        raise UserError(f"{parsed.overrides[0]} with --drawn-faces: no data are read; leave one out")
    if parsed.out is not None and (not parsed.out.name.endswith(suffix) or parsed.out.is_dir()):
        raise UserError(f"--out {parsed.out}: must be a file whose name ends in {suffix}")
    missing = [name for name in ONNX_PACKAGES if parsed.format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx: {missing[0]} is not installed; pip install 'fer_lightning[export]'")


def _beside(checkpoint: Path) -> Path:
    """The folder for a checkpoint's exports: in its run folder, where it has one."""
    folder = checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "exports"


def _own(model: "EmotionClassifier", overrides: list[str]) -> "tuple[Faces, Split]":
    from fer_lightning.evaluation.checkpoint_split import load_split

    try:
        _, faces, split = load_split(model, overrides)
    except UserError as error:
        hint = "" if overrides else "; or check on drawn faces, with --drawn-faces"
        raise UserError(f"{error}{hint}") from error
    return faces, split


def _drawn() -> "tuple[Faces, Split]":
    from fer_lightning.data.splits import official
    from fer_lightning.data.synthetic import draw

    log.info("checked on drawn faces, not on the test images")
    faces = draw(DRAWN_FACES)
    return faces, official(faces, 0)


def export(
    model: "EmotionClassifier", name: str, int8: bool, faces: "Faces", split: "Split", file: Path
) -> dict[str, Any]:
    """Write an exported file, check it, and print what was found.

    Args:
        model: the trained classifier.
        name: a key of ``SUFFIXES``.
        int8: quantise the ONNX file, with the validation images of the split.
        faces: whose test images are compared.
        split: of ``faces``.
        file: the file to write.

    Returns:
        ``parity`` (test images) and ``parity_photos`` (colour pictures of another size) as ``Parity``; for int8 also
        ``int8``, see ``_quantize``.

    Raises:
        UserError: the file answers otherwise than PyTorch does, or there are no images to calibrate int8 on.
    """
    from fer_lightning.data.images import as_face
    from fer_lightning.deploy.formats import open_again, write
    from fer_lightning.deploy.graph import as_colour, describe
    from fer_lightning.evaluation.probabilities import pick_device, predict
    from fer_lightning.metrics.calibration import apply_temperature

    if int8 and not len(split.val):
        raise UserError("--int8: this run has no validation images to calibrate on; give split.val_fraction=0.1")
    description = describe(model)
    temperature = description["temperature"] or 1.0
    if description["temperature"] is None:
        log.info("not calibrated: the checkpoint has no temperature, so the probabilities are the plain softmax")
    written = file.with_name("float.onnx") if int8 else file
    write(model, temperature, description, name, written)
    answer = open_again(name, written, model, temperature)

    tested = faces.images[split.tests["test"]]
    photos = _photos(tested[:PHOTOS])
    found = _answers(answer, as_colour(tested))
    pairs = {
        "parity": (tested, found),
        "parity_photos": (np.stack([as_face(photo[..., ::-1]) for photo in photos]), _answers(answer, photos)),
    }
    parities = {
        key: compare(apply_temperature(predict(model, images, pick_device("cpu")), temperature), answered)
        for key, (images, answered) in pairs.items()
    }
    _print_parity(parities, "drawn" if faces.synthetic else "test")
    worst = max(parities.values(), key=lambda parity: parity.max_difference)
    if not all(parity.max_difference <= TOLERANCE for parity in parities.values()):  # NaN is not
        raise UserError(
            f"--format {name}: the file answers otherwise than PyTorch (a probability by {worst.max_difference:.2g}, "
            f"at most {TOLERANCE:g} is accepted); nothing was written; try another format"
        )
    result: dict[str, Any] = {key: asdict(parity) for key, parity in parities.items()}
    if int8:
        result["int8"] = _quantize(written, file, description, faces, split, found)
    return result


def calibration_images(faces: "Faces", split: "Split") -> np.ndarray:
    """Some validation images, always the same: uint8, (n, 48, 48)."""
    from fer_lightning.deploy.int8 import CALIBRATION_IMAGES

    return faces.images[np.sort(np.random.default_rng(0).permutation(split.val)[:CALIBRATION_IMAGES])]


def _quantize(
    source: Path, target: Path, description: dict[str, Any], faces: "Faces", split: "Split", float_answers: np.ndarray
) -> dict[str, Any]:
    """Write the int8 file and print what it costs.

    Returns:
        ``calibration_images``; ``parity`` with the float32 file on the test images; ``scores``: accuracy and macro F1
        on ``test`` and ``test_dedup``, of ``float32`` and of ``int8``. It also goes into the file's metadata.
    """
    from fer_lightning.deploy.formats import open_onnx, set_description
    from fer_lightning.deploy.graph import as_colour
    from fer_lightning.deploy.int8 import quantize
    from fer_lightning.metrics.classification import classification_metrics

    calibration = calibration_images(faces, split)
    quantize(source, target, calibration)
    test = split.tests["test"]
    answers = {"float32": float_answers, "int8": _answers(open_onnx(target), as_colour(faces.images[test]))}
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in ("test", "test_dedup"):
        rows = np.isin(test, split.tests[name])
        scores[name] = {
            kind: {
                score: classification_metrics(probabilities[rows], faces.labels[test[rows]], "")[score]
                for score in ("accuracy", "f1_macro")
            }
            for kind, probabilities in answers.items()
        }
    cost = {
        "calibration_images": len(calibration),
        "parity": asdict(compare(answers["float32"], answers["int8"])),
        "scores": scores,
    }
    set_description(target, {**description, "int8": cost})
    _print_cost(cost)
    return cost


def _answers(answer: "Answer", pictures: np.ndarray) -> np.ndarray:
    """Probabilities of any number of pictures, (n, 7)."""
    starts = range(0, len(pictures), BATCH_SIZE)
    return np.concatenate([answer(np.ascontiguousarray(pictures[start : start + BATCH_SIZE])) for start in starts])


def _photos(faces: np.ndarray) -> np.ndarray:
    """Colour pictures from gray faces (n, 48, 48): uint8, (n, H, W, 3), wider or higher than the face."""
    import cv2

    larger = np.stack([cv2.resize(face, PHOTO_SIZE, interpolation=cv2.INTER_CUBIC) for face in faces])
    return np.rint(larger[..., None] * np.array([1.0, 0.8, 0.65])).astype(np.uint8)


def _print_parity(parities: dict[str, Parity], source: str) -> None:
    names = {
        "parity": f"{source} images",
        "parity_photos": f"in colour, {PHOTO_SIZE[0]}x{PHOTO_SIZE[1]}",
    }
    table = Table("compared with PyTorch", "images", "largest difference of a probability", "other answers")
    for key, parity in parities.items():
        table.add_row(names[key], f"{parity.images:,}", f"{parity.max_difference:.1e}", str(parity.other_answers))
    Console().print(table)


def _print_cost(cost: dict[str, Any]) -> None:
    table = Table("int8 costs", "accuracy", "float32", "macro F1", "float32")
    for name, scores in cost["scores"].items():
        cells = (scores[kind][score] for score in ("accuracy", "f1_macro") for kind in ("int8", "float32"))
        table.add_row(name, *("-" if cell is None else f"{100 * cell:.2f} %" for cell in cells))
    Console().print(table)
    parity = cost["parity"]
    same = 100 * (1 - parity["other_answers"] / parity["images"])
    print(
        f"int8 gives the answer of float32 for {same:.1f} % of the test images; calibrated on "
        f"{cost['calibration_images']} validation images"
    )


if __name__ == "__main__":
    command_line.run_tool(main)
