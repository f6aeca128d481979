"""The structure of the package: what may import what, what lies at the top level, how long a function may be."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from command_line import COMMANDS

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fer_lightning").rglob("*.py"))
LONGEST = 60


def lint_imports(folder):
    """In a process of its own: this one has imported the package, and the checker switches its loggers off."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_no_import_runs_upwards_or_in_a_circle():
    """The contracts of pyproject.toml; nothing imports a command."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_the_contract_notices_an_import_of_a_command(tmp_path):
    shutil.copytree(ROOT / "fer_lightning", tmp_path / "fer_lightning")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "fer_lightning" / "runtime" / "files.py").write_text(
        "def f():\n    from fer_lightning import compare\n"
    )
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "fer_lightning.runtime is not allowed to import fer_lightning.compare" in done.stdout


def test_the_top_level_holds_only_what_can_be_typed():
    assert {path.stem for path in MODULES if path.parent.name == "fer_lightning"} == {
        *COMMANDS,
        "__init__",
        "__main__",
    }


def test_no_function_is_longer_than_a_screen():
    """With its docstring; ruff's PLR0913 counts the parameters."""
    functions = [
        (path.relative_to(ROOT).as_posix(), node.name, (node.end_lineno or 0) - node.lineno + 1)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [function for function in functions if function[2] > LONGEST] == []
