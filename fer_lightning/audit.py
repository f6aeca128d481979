"""Find leakage between splits, or wrong labels: ``python -m fer_lightning.audit data.path=FILE [key=value ...]``.

Reports identical images, nearly identical ones, identical images with different labels, and blank ones; writes
``audit.csv`` and a sheet of examples, ``audit.png``. With ``--label-errors SWEEP_FOLDER`` it lists instead the images
whose labels are probably wrong, by the runs of a cross-validation: ``label_errors.csv`` and ``label_errors.png``.
"""

import logging
from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.report.audit import audit
from fer_lightning.runtime.files import check_inside

DEFAULT_OUT = Path("outputs/audit")


def main(arguments: list[str] | None = None) -> None:
    """Find duplicates, conflicting labels and blank images in a data set, or the labels that are probably wrong."""
    parser = Parser(prog="python -m fer_lightning.audit", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="data.path=FILE, or other key=value as for a run")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the table and the picture")
    parser.add_argument(
        "--correlation",
        type=float,
        default=0.95,
        help="correlation of two images at half their size from which on they are near duplicates (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--label-errors",
        action="append",
        metavar="SWEEP_FOLDER",
        help="list the labels that are probably wrong, by the runs of a sweep with split=kfold 'split.fold=range(5)'; "
        "may be given several times",
    )
    parser.add_argument(
        "--votes", metavar="FILE", help="FER+ votes: precision and recall of the list (with --label-errors)"
    )
    options = vars(parser.parse_intermixed_args(arguments))
    if options["out"] == DEFAULT_OUT:
        check_inside(DEFAULT_OUT, Path.cwd())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    audit(**options)


if __name__ == "__main__":
    run_tool(main)
