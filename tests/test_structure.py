"""The structure of the package: what may import what, what lies at the top level, how long a function may be."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fer_lightning").rglob("*.py"))
COMMANDS = {
    "audit",
    "card",
    "compare",
    "demo",
    "ensemble",
    "evaluate",
    "explain",
    "export",
    "methods",
    "predict",
    "sweep",
}
LONGEST = 60


def test_no_import_runs_upwards_or_in_a_circle(capsys, monkeypatch):
    """The contracts of pyproject.toml; nothing imports a command."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS, (
        capsys.readouterr().out
    )


def test_the_contract_notices_an_import_of_a_command(tmp_path):
    """In a process of its own, since this one has imported the package."""
    shutil.copytree(ROOT / "fer_lightning", tmp_path / "fer_lightning")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "fer_lightning" / "runtime" / "files.py").write_text(
        "def f():\n    from fer_lightning import compare\n"
    )
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
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
