"""Export a trained model for other programs: ``python -m fer_lightning.export CHECKPOINT --format onnx``.

The exported file takes pictures and returns calibrated probabilities: preprocessing and softmax are part of it
(``deploy/graph.py``). It is reopened and must give PyTorch's probabilities on every test image; otherwise nothing is
written.
"""

import logging
from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.deploy.request import SUFFIXES, ExportRequest
from fer_lightning.runtime.run_folder import checkpoint_file


def main(arguments: list[str] | None = None) -> None:
    """Export a trained model as one file, and compare it with PyTorch on the test images."""
    parser = Parser(prog="python -m fer_lightning.export", description=main.__doc__)
    parser.add_argument("checkpoint", type=checkpoint_file, help="a run's folder, or its checkpoints/best.ckpt")
    parser.add_argument(
        "overrides", nargs="*", help="key=value of the run's configuration, such as data.path=fer2013.zip"
    )
    parser.add_argument("--format", choices=SUFFIXES, required=True, help="format of the file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: exports/MODEL.SUFFIX in the run folder")
    parser.add_argument(
        "--int8", action="store_true", help="quantise convolutions, calibrated on validation images (onnx only)"
    )
    parser.add_argument(
        "--drawn-faces", action="store_true", help="compare on drawn faces, when the test images are not available"
    )
    request = ExportRequest(**vars(parser.parse_intermixed_args(arguments)))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fer_lightning").setLevel(logging.INFO)  # the package only: onnxscript and timm log too much
    request.check()

    from fer_lightning.deploy.export import export_checkpoint  # imports torch: not for --help and usage errors

    export_checkpoint(request)


if __name__ == "__main__":
    run_tool(main)
