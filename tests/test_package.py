"""What is shipped: the wheel with its configuration, the constraints, the commands."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from command_line import COMMANDS, TINY
from packaging.requirements import Requirement

from fer_lightning.config import command_line

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_config_and_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"fer_lightning/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for path in (ROOT / "fer_lightning").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    assert "fer_lightning/py.typed" in names


@pytest.mark.nightly
def test_an_installed_wheel_trains(wheel, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    work = tmp_path / "work"
    work.mkdir()
    where = "import fer_lightning.config.safety as c; print(c.CONF_DIR)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run([sys.executable, "-c", where], env=environment, cwd=work, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "fer_lightning" / "conf")
    run = [sys.executable, "-m", "fer_lightning", *TINY, "hydra.run.dir=run"]
    done = subprocess.run(run, env=environment, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "run" / "metrics.json").exists()


def test_constraints_satisfy_every_direct_dependency():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    for text in [*project["dependencies"], *extras]:
        requirement = Requirement(text)
        if requirement.name != "fer_lightning":  # its other extras
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), text


def test_every_dependency_has_its_reason():
    """A bound nobody can explain is a bound nobody dares to lift."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    assert block is not None
    assert all(" # " in line for line in block.group(1).splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_option_is_reported_in_one_line(name, monkeypatch, capsys):
    """Not after argparse's many lines of usage."""
    monkeypatch.setattr(sys, "argv", [name, "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        command_line.run_tool(importlib.import_module(f"fer_lightning.{name}").main)
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(" --help lists the options")


def test_the_commands_are_all_there():
    found = {path.stem for path in (ROOT / "fer_lightning").glob("*.py") if "run_tool(" in path.read_text()}
    assert found - {"__main__"} == set(COMMANDS)
