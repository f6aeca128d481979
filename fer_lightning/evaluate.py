"""Exact scores of a trained model: ``python -m fer_lightning.evaluate CHECKPOINT``."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.presentation import words
from fer_lightning.runtime.errors import UserError, require
from fer_lightning.runtime.files import write_json

if TYPE_CHECKING:  # imported where it is used: --help and mistakes need not wait for torch
    from fer_lightning.data.faces import Faces
    from fer_lightning.data.splits import Split
    from fer_lightning.evaluation.score import Evaluation

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Score a checkpoint on the test sets of its own split, on changed data, or on any labelled folder of images."""
    parser = Parser(
        prog="python -m fer_lightning.evaluate",
        description=main.__doc__,
        epilog="Any images: data=folder data.path=DIR, of <emotion>/<image>; for other folder names data.classes=FILE, "
        "a YAML or JSON file of folder: emotion.",
    )
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "overrides", nargs="*", help="key=value of the run's configuration, such as data.path=fer2013.zip"
    )
    parser.add_argument(
        "--tta",
        metavar="flip,ten_crop",
        default="",
        help="test-time augmentation, one or both, as results of their own (test_flip/..., test_ten_crop/...)",
    )
    parser.add_argument("--out", type=Path, help="folder for metrics, predictions and pictures; default: print only")
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if parsed.out is not None:
        _check_out(parsed.out)

    from fer_lightning.evaluation.checkpoint_split import load_split, what_was_scored
    from fer_lightning.evaluation.probabilities import pick_device
    from fer_lightning.evaluation.score import evaluate, headline, print_table
    from fer_lightning.evaluation.tta import VIEWS
    from fer_lightning.model.classifier import EmotionClassifier

    augmentations = list(dict.fromkeys(name for name in parsed.tta.split(",") if name))
    for name in augmentations:
        require(name in VIEWS, "--tta", name, f"must be {' or '.join(VIEWS)}, or both: {','.join(VIEWS)}")
    model = EmotionClassifier.load(parsed.checkpoint)
    cfg, faces, split = load_split(model, parsed.overrides)
    card = model.hparams["scorecard"] or {}
    device = pick_device(cfg.trainer.accelerator)
    evaluation = evaluate(model, faces, split, device, card.get("temperature"), augmentations)
    print_table({**evaluation.metrics, "synthetic": faces.synthetic})
    if parsed.out is not None:
        _write(
            parsed.out,
            {**evaluation.metrics, **what_was_scored(parsed.checkpoint, cfg, faces)},
            evaluation,
            faces,
            split,
        )
    print(json.dumps({"checkpoint": str(parsed.checkpoint), **headline(evaluation.metrics)}))


def _check_out(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={folder}: is a file; give a folder")
    if (folder / "status.json").exists():
        raise UserError(f"--out={folder}: holds a run, whose own scores would be overwritten; give another folder")


def _write(folder: Path, metrics: dict[str, Any], evaluation: "Evaluation", faces: "Faces", split: "Split") -> None:
    from fer_lightning.data.faces import count_classes
    from fer_lightning.evaluation import figures
    from fer_lightning.metrics.predictions import reported

    test = split.tests["test"]
    subtitle = words.caption(metrics)
    pictures = figures.of_test(reported(evaluation.predictions), faces.images[test], "Confusion matrix", subtitle)
    counts = {"test": count_classes(faces.labels[test])}
    pictures["class_distribution"] = figures.class_distribution(counts, "Images per class", subtitle)
    for name, predictions in evaluation.augmented.items():
        drawn = figures.of_test(reported(predictions), faces.images[test], f"Confusion matrix, {name}", subtitle)
        pictures |= {f"{key}_{name}": figure for key, figure in drawn.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"": evaluation.predictions, **{f"_{name}": found for name, found in evaluation.augmented.items()}}
    for suffix, table in tables.items():
        table.to_csv(folder / f"predictions{suffix}.csv", index=False)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png")
    write_json(folder / "metrics.json", metrics)
    files = ", ".join(f"predictions{suffix}.csv" for suffix in tables)
    log.info("wrote metrics.json, %s and %d pictures to %s", files, len(pictures), folder)


if __name__ == "__main__":
    run_tool(main)
