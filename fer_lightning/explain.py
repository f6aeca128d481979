"""Saliency maps of a model: ``python -m fer_lightning.explain CHECKPOINT PATH... [--out FOLDER]``.

Draws one picture per face: the face, its saliency map, and the probabilities of all classes. With ``--test-set``
it draws the mean map of each class over the model's own test images, and measures how faithful the maps are. The
method is described in ``inference/saliency.py``.
"""

import logging
from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.inference.explanation_request import ExplanationRequest
from fer_lightning.inference.face_options import add_face_options
from fer_lightning.runtime.run_folder import checkpoint_file


def main(arguments: list[str] | None = None) -> None:
    """Draw saliency maps, of single images or faces, or as means over the model's test images."""
    parser = Parser(prog="python -m fer_lightning.explain", description=main.__doc__)
    parser.add_argument("checkpoint", type=checkpoint_file, help="a run's folder, or its checkpoints/best.ckpt")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="PATH",
        help="images, or folders (searched recursively); with --test-set, key=value of the run's configuration, such "
        "as data.path=fer2013.zip",
    )
    parser.add_argument("--test-set", action="store_true", help="mean maps of the model's own test images")
    add_face_options(parser)
    parser.add_argument(
        "--class", "--emotion", dest="class_name", metavar="NAME", help="class to explain; default: the predicted one"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("explained"), help="folder for the pictures; default: explained"
    )
    request = ExplanationRequest(**vars(parser.parse_intermixed_args(arguments)))
    request.check()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from fer_lightning.inference.explanation import explain  # imports torch: not for --help and usage errors

    explain(request)


if __name__ == "__main__":
    run_tool(main)
