"""Exact scores of a trained model: ``python -m fer_lightning.evaluate CHECKPOINT``."""

import logging
from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.runtime.run_folder import checkpoint_file


def main(arguments: list[str] | None = None) -> None:
    """Score a checkpoint on the test sets of its own split, on changed data, or on any labelled folder of images."""
    parser = Parser(
        prog="python -m fer_lightning.evaluate",
        description=main.__doc__,
        epilog="Any images: data=folder data.path=DIR, of <class>/<image> or a table of labels; for other names "
        "data.classes=FILE, a YAML or JSON file of name: class.",
    )
    parser.add_argument("checkpoint", type=checkpoint_file, help="a run's folder, or its checkpoints/best.ckpt")
    parser.add_argument(
        "overrides", nargs="*", help="key=value of the run's configuration, such as data.path=fer2013.zip"
    )
    parser.add_argument(
        "--tta",
        metavar="flip,ten_crop",
        default="",
        help="test-time augmentation, one or both, as results of their own (test_flip/..., test_ten_crop/...)",
    )
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="score blurred, noisy, dark, compressed, occluded and coarse test images as well, at five strengths",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="corrupt N test images, at random by class; default: all of them"
    )
    parser.add_argument(
        "--set",
        type=float,
        dest="level",
        metavar="LEVEL",
        help="score sets of classes that hold the true class of this share of the images of each class; default: 0.9",
    )
    parser.add_argument(
        "--prior",
        metavar="PRIOR",
        help="score the probabilities for other shares of the classes as well (test_prior/...): uniform, training, "
        "estimated (from the test images, without their labels), or a JSON or CSV file of class and share",
    )
    parser.add_argument("--store", action="store_true", help="add validation scores to a checkpoint without them")
    parser.add_argument("--out", type=Path, help="folder for metrics, predictions and pictures; default: print only")
    options = vars(parser.parse_intermixed_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from fer_lightning.evaluation.rescore import EvaluationRequest, rescore  # imports torch: not for --help

    rescore(EvaluationRequest(**options))


if __name__ == "__main__":
    run_tool(main)
