"""The options of ``python -m fer_lightning``: Hydra's, with mistakes reported in one line."""

import importlib
import os
import re
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser as hydra_parser

from fer_lightning.config.messages import as_setting
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.output import need_reader


def replace_parser(version: str) -> None:
    """Accept options between overrides, report unknown ones in one line, and print this project's version."""

    def refuse(message: str) -> NoReturn:
        option = re.match(r"unrecognized arguments: (--?[\w.]+)", message)
        setting = f"; settings have no dashes, such as {as_setting(option[1])}" if option else ""
        raise UserError(f"{message}{setting}; python -m fer_lightning --help lists the options")

    def get_args_parser() -> Any:
        parser: Any = hydra_parser()

        def parse_args(*arguments: Any) -> Any:
            given = parser.parse_intermixed_args(*arguments)
            _check_options(given)
            if given.cfg or given.info or given.help or given.hydra_help or given.shell_completion:
                need_reader()
            return given

        parser.parse_args = parse_args
        parser.error = refuse
        replacing = parser.add_argument_group(conflict_handler="resolve")
        replacing.add_argument("--version", action="version", version=f"fer_lightning {version}")
        return parser

    hydra_main: Any = importlib.import_module("hydra.main")  # hydra.main is its function
    hydra_main.get_args_parser = get_args_parser


def _check_options(given: Any) -> None:
    """Refuse options that Hydra would answer with a traceback.

    Raises:
        UserError: two options that exclude each other, ``--resolve`` alone, or the shell's own query typed by hand.
    """
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    chosen = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(given, mode)]
    if len(chosen) > 1:
        raise UserError(f"{' '.join(chosen)}: exclude each other; give one of them, such as --cfg job without -m")
    if given.resolve and not (given.cfg or given.help):
        raise UserError("--resolve: shows values with --cfg; give --cfg job --resolve")
    if given.shell_completion and "COMP_LINE" not in os.environ and any("query=" in word for word in given.overrides):
        raise UserError("--shell-completion query=...: is for the shell; give -sc install=bash, zsh or fish")
