"""Which method wins, by how much, and is the difference real: ``python -m fer_lightning.compare RUN_OR_SWEEP...``.

It reads run folders only, so it loads no models and needs no torch. Runs are compared only if they share data, labels,
split and test images; rows are methods, repeats are seeds (or folds), and methods are paired by them.
"""

import logging
from collections.abc import Sequence

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.report.write import compare_and_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(
        prog="python -m fer_lightning.compare",
        description="Which method wins, by how much, and is the difference real: tables, tests, pictures and a page.",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN_OR_SWEEP_FOLDER", help="folders of runs or of sweeps")
    parser.add_argument("--out", help="report folder (default: report/ in the first folder)")
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="what differences are taken from (default: the method none, or the first where no run has it)",
    )
    parser.add_argument("--ferplus-votes", metavar="FILE", help="FER+ votes: how far raters agree with the labels")
    parser.add_argument(
        "--ensemble", action="store_true", help="add a row per method: the mean of its seeds' probabilities"
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="log the report to this W&B project as well")
    parser.add_argument("--mlflow", metavar="EXPERIMENT", help="log the report to this MLflow experiment as well")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    compare_and_report(
        options.folders,
        options.out,
        baseline=options.baseline,
        votes=options.ferplus_votes,
        wandb_project=options.wandb,
        ensemble=options.ensemble,
        mlflow_experiment=options.mlflow,
    )


if __name__ == "__main__":
    run_tool(main)
