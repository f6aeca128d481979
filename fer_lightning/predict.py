"""Classify faces in images, folders, a video or a camera: ``python -m fer_lightning.predict CHECKPOINT PATH...``.

Exit code: 0 when every input was classified; 100 plus the number of inputs that were not, at most 125 (unreadable, or
without a face under ``--faces``); 2 for a usage error; 130 after Ctrl-C, except with a camera, where Ctrl-C ends the
recording normally.
"""

from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.inference.face_options import add_face_options
from fer_lightning.inference.prediction import PredictionRequest, predict_inputs
from fer_lightning.runtime.run_folder import checkpoint_file


def main(arguments: list[str] | None = None) -> None:
    """Classify images, or the faces in them, and report how accurate the model is."""
    parser = Parser(
        prog="python -m fer_lightning.predict",
        description=main.__doc__,
        epilog="Exit code: 0 when every input was classified, 100 + the number of inputs that were not (at most 125), "
        "2 for a usage error. Ctrl-C ends a camera recording normally.",
    )
    parser.add_argument("checkpoint", type=checkpoint_file, help="a run's folder, or its checkpoints/best.ckpt")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image, folder (searched recursively), video, or a camera's number"
    )
    add_face_options(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--format", choices=("table", "csv", "jsonl"), default="table", help="format of the output")
    output.add_argument("--out", type=Path, metavar="FILE", help="write FILE.csv or FILE.jsonl instead of printing")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write annotated images and videos to this folder")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every N-th frame of a video; default: 1")
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="smooth the probabilities of each face of a video over this time; 0: not at all; default: 0.5",
    )
    parser.add_argument(
        "--set",
        type=float,
        dest="level",
        metavar="LEVEL",
        help="also give the smallest set of classes that holds the true one at this rate, such as 0.9",
    )
    parser.add_argument(
        "--prior",
        metavar="PRIOR",
        help="shares of the classes in the place of use: uniform, training, estimated (from all given images), or a "
        "JSON or CSV file of class and share; default: as the model assumes",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    predict_inputs(PredictionRequest(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    run_tool(main)
