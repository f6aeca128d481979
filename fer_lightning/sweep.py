"""``python -m fer_lightning.sweep``: ``status DIR`` prints the state of a sweep, ``resume DIR`` resumes it."""

from pathlib import Path

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.sweeps.progress import show
from fer_lightning.sweeps.resume import resume


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and call the chosen action."""
    parser = Parser(prog="python -m fer_lightning.sweep", description="Inspect or resume a sweep.")
    commands = parser.add_subparsers(dest="command", required=True)
    status_parser = commands.add_parser("status", help="print the state of its jobs")
    resume_parser = commands.add_parser("resume", help="run the jobs that are missing, failed or unfinished")
    for command in (status_parser, resume_parser):
        command.add_argument("folder", type=Path, metavar="DIR", help="the sweep's folder")
    resume_parser.add_argument("--anyway", action="store_true", help="even if the code or the configuration changed")
    given = parser.parse_args(arguments)
    if given.command == "status":
        show(given.folder)
    else:
        resume(given.folder, given.anyway)


if __name__ == "__main__":
    run_tool(main)
