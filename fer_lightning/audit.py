"""Find leakage between splits: ``python -m fer_lightning.audit data.path=FILE [key=value ...] [--out FOLDER]``.

Reports identical images, nearly identical ones, identical images with different labels, and blank ones; writes
``audit.csv`` and a sheet of examples, ``audit.png``.
"""

import logging
from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.data.duplicates_report import audit


def main(arguments: list[str] | None = None) -> None:
    """Find duplicates, conflicting labels and blank images in a data set."""
    parser = Parser(prog="python -m fer_lightning.audit", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="data.path=FILE, or other key=value as for a run")
    parser.add_argument("--out", type=Path, default=Path("outputs/audit"), help="folder for audit.csv and audit.png")
    parser.add_argument(
        "--correlation",
        type=float,
        default=0.95,
        help="correlation of two images at half their size from which on they are near duplicates (default: "
        "%(default)s)",
    )
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    audit(parsed.overrides, parsed.out, parsed.correlation)


if __name__ == "__main__":
    run_tool(main)
