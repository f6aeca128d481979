"""Shared by all commands: parser, one-line errors, exit codes."""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fer_lightning.config import safety
from fer_lightning.config.messages import explain
from fer_lightning.config.secrets import without_secrets
from fer_lightning.presentation.printable import escape_messages, format_traceback, printable, shortened
from fer_lightning.runtime import imports
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.output import tolerant_output, tolerate_errors_of_stderr
from fer_lightning.runtime.processes import is_first_process
from fer_lightning.runtime.version import __version__


class Parser(argparse.ArgumentParser):
    """argparse with ``--version``, that reports mistakes as one-line ``UserError``s."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument("--version", action="version", version=f"fer_lightning {__version__}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def fail(error: Exception | str, code: int = 2) -> None:
    """Print one line to stderr and exit."""
    if is_first_process():  # the other processes of a run find the same mistake
        print(shortened(printable(without_secrets(f"error: {error}"))), file=sys.stderr)
    raise SystemExit(code)


CORRECTABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ESTALE),
)
"""Errors of a file or its path that the user can correct."""


def run_tool(main: Callable[[], None], prints_results: bool = True) -> None:
    """Run a command with the safety checks: user mistakes end in one line and code 2, bugs keep their traceback.

    Args:
        main: the command.
        prints_results: standard output that cannot be written is an error, and one that its reader has closed ends the
            command without a message; False for a command that writes to a folder, which only warns.
    """
    tolerate_errors_of_stderr()
    if not _has_working_directory():
        fail("the working directory does not exist any more; change to one that does")
    safety.guard_hydra()
    escape_messages(hide=without_secrets)
    os.environ.update(imports.environment())
    with tolerant_output(needs_reader=prints_results) as output:
        try:
            with one_line_errors():
                main()
        except SystemExit as end:
            if end.code:
                raise
            output.needs_reader = True  # what --help or --version prints
        output.flush()
        if output.error is not None:
            text = f"standard output could not be written ({output.error.strerror})"
            if output.needs_reader:
                fail(f"{text}; free space, or print to another file", code=1)
            print(f"warning: {text}; the results are in the run folder", file=sys.stderr)


def _has_working_directory() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line for a mistake of the user's, and with a traceback for a bug."""
    try:
        yield
    except UserError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        fail(explain(error))
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except OSError as error:
        made = any(frame.name in ("mkdir", "makedirs") for frame in traceback.extract_tb(error.__traceback__))
        if not made and error.errno not in CORRECTABLE:
            report_bug(error)
        what = f"{error.filename or 'a file'}: cannot be {'created' if made else 'used'}"
        fail(f"{what} ({error.strerror}); choose another place")
    except Exception as error:
        report_bug(error)


def report_bug(error: Exception) -> NoReturn:
    """Print the traceback of a bug, without secrets, and exit with code 1."""
    print(format_traceback(error, hide=without_secrets), end="", file=sys.stderr)
    raise SystemExit(1)
