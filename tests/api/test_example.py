"""The example runs as it stands, and a type checker knows all that it and ``public_types.py`` use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "python_api.py"


@pytest.mark.slow
def test_the_example_runs_and_prints_what_it_explains(tmp_path):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for shown in (
        "epoch 2/2",
        "macro F1 0.",
        "p_disgust",
        "imbalance=focl: no such choice (did you mean focal?)",
        "balanced_accuracy",
        "difference",
        "Classifier('",
        "(3, 7)",
        "face.png",
        "this model finds",
        "probabilities are calibrated: True",
    ):
        assert shown in done.stdout
    assert len(list((tmp_path / "outputs" / "demo").glob("*/metrics.json"))) == 2


def test_the_examples_cells_are_a_notebooks():
    cells = EXAMPLE.read_text().split("# %%")
    assert cells[0] == ""
    assert sum(cell.startswith(" [markdown]") for cell in cells) > 5
    for cell in cells[1:]:
        if cell.startswith(" [markdown]"):
            assert all(line.startswith("#") for line in cell.splitlines()[1:] if line)


@pytest.mark.nightly
def test_the_public_surface_is_typed(tmp_path):
    """Strictly, and as a project sees it that only installed the package: ``py.typed`` is found."""
    files = [str(EXAMPLE), str(Path(__file__).with_name("public_types.py"))]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", *files]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "MYPYPATH": ""}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout
