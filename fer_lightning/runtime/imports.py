"""Where this process and the processes that it starts import from: never the working directory.

``python -m`` puts the working directory in front of everything that is installed, so that a file of a downloaded folder
(``yaml.py``, ``hydra_plugins/``) would run in place of a library. The package imports this module before any
other, and it imports what Python itself has loaded by then.
"""

import os
import sys

TYPE_CHECKING = False  # that of typing, which is not imported here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TRUST = "FER_LIGHTNING_TRUST"
"""Environment variable: comma-separated modules, targets or keys that the user trusts, each with all below it."""

_TRUSTED_FOLDER = "FER_LIGHTNING_TRUSTED_FOLDER"
"""Environment variable for child processes: the folder of the user's own modules."""

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
"""The folder of the package: a checkout, or ``site-packages``."""


def _trusted_words() -> list[str]:
    return [word.strip() for word in os.environ.get(TRUST, "").split(",") if word.strip()]


def trusted(name: str) -> bool:
    """Whether the user trusts a target, or a key below ``hydra``, by ``TRUST``."""
    return any(name == word or name.startswith(f"{word}.") for word in _trusted_words())


def drop_working_directory() -> None:
    """Remove the folder that ``python -m fer_lightning`` put first, unless it is the checkout of this package.

    Modules that the user trusts (``TRUST``) are found there, after all other places, and nothing else is: a library
    looks for modules that may be installed, and for plugins, all over ``sys.path``.
    """
    started_by_module_name = sys.argv[:1] == ["-m"]  # while Python looks for the module to run
    own = os.environ.get(_TRUSTED_FOLDER)
    if started_by_module_name and not sys.flags.safe_path and sys.path[0] != _ROOT:
        own = own or sys.path[0]
        del sys.path[0]
    given = _python_path()
    if any(map(_is_here, given)) and (here := _working_directory()) not in (_ROOT, *map(os.path.normpath, given)):
        sys.path[:] = [path for path in sys.path if path != here]
    if own and _trusted_words() and not any(isinstance(finder, _TrustedModules) for finder in sys.meta_path):
        os.environ[_TRUSTED_FOLDER] = own
        sys.meta_path.append(_TrustedModules(own))


class _TrustedModules:
    """A finder of the modules in a folder that the user trusts by ``TRUST``."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """As ``importlib.abc.MetaPathFinder``."""
        from importlib.machinery import PathFinder

        if path is not None or name not in {word.partition(".")[0] for word in _trusted_words()}:
            return None
        return PathFinder.find_spec(name, [self.folder], target)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return ""


def _python_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")
    return path.split(os.pathsep) if path else []


def _is_here(path: str) -> bool:
    """Whether an entry of PYTHONPATH is the working directory, such as the first one of ``$PYTHONPATH:/folder``.

    Where it is named in full, that is the user's wish.
    """
    return not os.path.isabs(path) and os.path.normpath(path) == "."


def environment() -> dict[str, str]:
    """Environment variables with which a new Python process imports from the same folders as this one."""
    given = [os.path.abspath(path) for path in _python_path() if not _is_here(path)]
    own = [_ROOT] if sys.path[:1] == [_ROOT] and not sys.flags.safe_path else []
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys([*own, *given]))}
