"""List the methods against class imbalance: ``python -m fer_lightning.methods [NAME|--full|--markdown]``."""

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.imbalance.catalog import print_methods


def main(arguments: list[str] | None = None) -> None:
    """List the methods against class imbalance, or print one of them with its settings."""
    parser = Parser(prog="python -m fer_lightning.methods", description=main.__doc__)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("name", nargs="?", help="print this method in full")
    one.add_argument("--full", action="store_true", help="print description, formula and source of every method")
    one.add_argument("--markdown", action="store_true", help="print the table as docs/methods.md has it")
    given = parser.parse_args(arguments)
    print_methods(given.name, given.full, given.markdown)


if __name__ == "__main__":
    run_tool(main)
