"""Export a checkpoint: write the file, check it against PyTorch, put it in place."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fer_lightning.data.faces import Faces, ImageForm
from fer_lightning.data.images import as_face, as_picture
from fer_lightning.data.splits import Split, official
from fer_lightning.data.synthetic import draw
from fer_lightning.deploy import check
from fer_lightning.deploy.formats import open_exported, open_onnx, set_metadata, write
from fer_lightning.deploy.graph import as_colour, export_metadata
from fer_lightning.deploy.int8 import calibration_images, quantize
from fer_lightning.deploy.request import ExportRequest
from fer_lightning.evaluation.checkpoint_split import load_split
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_inside, replace_file

log = logging.getLogger(__name__)

DRAWN_FACES = 400
SCORES = ("accuracy", "f1_macro")


def export_checkpoint(request: ExportRequest) -> None:
    """Export a checkpoint, print how it compares with PyTorch, and print one line of JSON.

    Raises:
        UserError: the checkpoint, the data or the output cannot be used, or the file differs from PyTorch.
    """
    model = EmotionClassifier.load(request.checkpoint)
    if model.members and request.format == "safetensors":
        raise UserError(
            "--format safetensors: holds the weights of one network, and this is an ensemble; use --format onnx or "
            "exported_program, or export its members"
        )
    name = "ensemble" if model.members else model.hparams["model"]["name"]
    out = request.out or default_folder(request.checkpoint) / f"{name}{request.suffix}"
    faces, split = _drawn_faces(model.form) if request.drawn_faces else _own_faces(model, request.overrides)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"model{request.suffix}"
        result = export(model, request.format, request.int8, faces, split, file)
        content = file.read_bytes()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, content)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from error
    print(json.dumps({"format": request.format, "file": str(out), "bytes": len(content), **result}))


def default_folder(checkpoint: Path) -> Path:
    """``exports`` in the run folder, or beside a checkpoint without one.

    Raises:
        UserError: it is a link to another place.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    check_inside(folder / "exports", folder)
    return folder / "exports"


def _own_faces(model: EmotionClassifier, overrides: list[str]) -> tuple[Faces, Split]:
    try:
        _, faces, split = load_split(model, overrides)
    except UserError as error:
        hint = "" if overrides else "; or compare on drawn faces, with --drawn-faces"
        raise UserError(f"{error}{hint}") from error
    return faces, split


def _drawn_faces(form: ImageForm) -> tuple[Faces, Split]:
    log.info("compared on drawn faces, not on the test images")
    faces = draw(DRAWN_FACES)
    images = np.stack([as_face(as_picture(image), form) for image in faces.images])
    faces = Faces.from_arrays(images, faces.labels, faces.usage, faces.ids, faces.kind, synthetic=True)
    return faces, official(faces, 0)


def export(model: EmotionClassifier, format: str, int8: bool, faces: Faces, split: Split, file: Path) -> dict[str, Any]:
    """Write an exported file, compare it with PyTorch, and print the result.

    Args:
        model: the trained classifier.
        format: a key of ``SUFFIXES``.
        int8: quantise the ONNX file, calibrated on the validation images of the split.
        faces: data whose test images are compared.
        split: of ``faces``.
        file: the file to write.

    Returns:
        ``parity`` (test images) and ``parity_photos`` (colour pictures of another size) as ``Parity``; for int8 also
        ``int8``, see ``_quantize``.

    Raises:
        UserError: the file's probabilities differ from PyTorch's, or there are no images to calibrate int8 on.
    """
    if int8 and not len(split.val):
        hint = (
            "give split.val_fraction=0.1"
            if len(split.train)
            else "leave out data=..., so that the run's own split is used; data.path=... says where its images are"
        )
        raise UserError(f"--int8: there are no validation images to calibrate on; {hint}")
    metadata = export_metadata(model)
    temperature = metadata["temperature"] or 1.0
    if metadata["temperature"] is None:
        log.info("not calibrated: the checkpoint has no temperature, so the probabilities are the plain softmax")
    written = file.with_name("float.onnx") if int8 else file
    write(model, temperature, metadata, format, written)
    predictor = open_exported(format, written, model, temperature)
    parities, answers = check.check_parity(model, temperature, predictor, faces.images[split.tests["test"]])
    check.print_parities(parities, "drawn" if faces.synthetic else "test")
    if not all(parity.within_tolerance for parity in parities.values()):
        worst = max(parity.max_difference for parity in parities.values())
        raise UserError(
            f"--format {format}: the file gives other probabilities than PyTorch (difference {worst:.2g}, accepted: "
            f"at most {check.TOLERANCE:g}); nothing was written; try another format"
        )
    result: dict[str, Any] = {name: asdict(parity) for name, parity in parities.items()}
    if int8:
        result["int8"] = _quantize(written, file, metadata, faces, split, answers)
    return result


def _quantize(
    source: Path, target: Path, metadata: dict[str, Any], faces: Faces, split: Split, float_answers: np.ndarray
) -> dict[str, Any]:
    """Write the int8 file and print what it costs.

    Returns:
        ``calibration_images``; ``parity`` with the float32 file on the test images; ``scores``: accuracy and macro F1
        on ``test`` and ``test_dedup``, of ``float32`` and of ``int8``. It is also stored in the file's metadata.
    """
    calibration = calibration_images(faces, split)
    quantize(source, target, calibration, len(metadata["model"].get("members", ())) or 1)
    test = split.tests["test"]
    answers = {"float32": float_answers, "int8": check.predict_all(open_onnx(target), as_colour(faces.images[test]))}
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in ("test", "test_dedup"):
        rows = np.isin(test, split.tests[name])
        metrics = {
            kind: classification_metrics(probabilities[rows], faces.labels[test[rows]], faces.classes, "")
            for kind, probabilities in answers.items()
        }
        scores[name] = {kind: {score: values[score] for score in SCORES} for kind, values in metrics.items()}
    cost = {
        "calibration_images": len(calibration),
        "parity": asdict(check.parity(answers["float32"], answers["int8"])),
        "scores": scores,
    }
    set_metadata(target, {**metadata, "int8": cost})
    _print_cost(cost)
    return cost


def _print_cost(cost: dict[str, Any]) -> None:
    table = Table("set", "accuracy, int8", "float32", "macro F1, int8", "float32")
    for name, scores in cost["scores"].items():
        cells = (scores[kind][score] for score in SCORES for kind in ("int8", "float32"))
        table.add_row(name, *("-" if cell is None else f"{100 * cell:.2f} %" for cell in cells))
    Console().print(table)
    parity = cost["parity"]
    same = 100 * (1 - parity["other_answers"] / parity["images"])
    print(
        f"int8 predicts the same class as float32 for {same:.1f} % of the test images; calibrated on "
        f"{cost['calibration_images']} validation images"
    )
