"""Several trained models as one: ``python -m fer_lightning.ensemble RUN RUN... [key=value ...] [--out FILE.ckpt]``.

The checkpoint that it writes gives the mean of the members' calibrated probabilities, and every command takes it like
any other.
"""

import logging
from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool


def main(arguments: list[str] | None = None) -> None:
    """Write the mean of several models' probabilities as one checkpoint, and score it on their test set."""
    parser = Parser(prog="python -m fer_lightning.ensemble", description=main.__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of finished runs, or checkpoints, that share classes, images, data and split; also key=value of "
        "their configuration, such as data.path=fer2013.zip",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("ensemble.ckpt"), metavar="FILE.ckpt", help="default: ensemble.ckpt"
    )
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from fer_lightning.evaluation.ensemble import write_ensemble  # imports torch: not for --help and usage errors

    write_ensemble(parsed.runs, parsed.out)


if __name__ == "__main__":
    run_tool(main)
