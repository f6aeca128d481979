"""Shared by all commands: parser, one-line errors, exit codes."""

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fer_lightning.config import safety
from fer_lightning.config.messages import explain
from fer_lightning.presentation.printable import escape_messages, format_traceback, printable, shortened
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.processes import is_first_process


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as one-line ``UserError``s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def fail(error: Exception | str, code: int = 2) -> None:
    """Print one line to stderr and exit."""
    if is_first_process():  # the other processes of a run find the same mistake
        print(shortened(printable(f"error: {error}")), file=sys.stderr)
    raise SystemExit(code)


def run_tool(main: Callable[[], None]) -> None:
    """Run a command with the safety checks: user mistakes end in one line and code 2, bugs keep their traceback."""
    safety.guard_hydra()
    escape_messages()
    try:
        main()
    except UserError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        fail(explain(error))
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except OSError as error:
        if not any(frame.name in ("mkdir", "makedirs") for frame in traceback.extract_tb(error.__traceback__)):
            _report_bug(error)
        fail(f"{error.filename}: cannot be created ({error.strerror}); choose another folder with hydra.run.dir=FOLDER")
    except Exception as error:
        _report_bug(error)


def _report_bug(error: Exception) -> NoReturn:
    print(format_traceback(error), end="", file=sys.stderr)
    raise SystemExit(1)
