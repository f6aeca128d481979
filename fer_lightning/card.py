"""Write the model card of a run: ``python -m fer_lightning.card RUN``."""

from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.evaluation.model_card import write_model_card


def main(arguments: list[str] | None = None) -> None:
    """Write the model card of a finished run, in Hugging Face's format."""
    parser = Parser(prog="python -m fer_lightning.card", description=main.__doc__)
    parser.add_argument("run", type=Path, help="a run's folder; or a checkpoint, whose card is printed")
    parser.add_argument("--out", type=Path, help="file for the card; default: README.md in the run's folder")
    parser.add_argument("--force", action="store_true", help="overwrite a file that this tool did not write")
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="also upload card, best.ckpt, metrics.json and confusion matrix to the Hugging Face Hub (log in first); a "
        "new repository is private",
    )
    parsed = parser.parse_args(arguments)
    write_model_card(parsed.run, parsed.out, parsed.force, parsed.push)


if __name__ == "__main__":
    run_tool(main)
