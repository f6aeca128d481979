"""The scripts behind docs/results.md: what they sweep, what they pack, and the page made of it."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from archives import image_files, tiny_faces, write_zip

from fer_lightning.imbalance.catalog import read_methods

SCRIPTS = Path(__file__).parent.parent / "benchmarks" / "results"


def script(name: str, *arguments: object, code: int = 0) -> str:
    command = [sys.executable, SCRIPTS / name, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_every_method_is_in_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import run

    assert set(run.ALL.split(",")) == set(read_methods())


@pytest.mark.nightly
def test_a_mistake_stays_one_line(tmp_path):
    where = ("--data", tmp_path / "fer2013.zip", "--work", tmp_path, "--out", tmp_path / "packed")
    output = script("run.py", "tune", *where, "--rehearse", "model.image_sise=96", code=2)
    assert output.startswith("error: model.image_sise: no such key")
    assert "Traceback" not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would be measured")
@pytest.mark.nightly
def test_what_was_not_measured_is_an_error(tmp_path):
    output = script("run.py", "speed", "--data", tmp_path / "fer2013.zip", "--out", tmp_path, code=1)
    assert output.splitlines()[-1] == "error: not measured: throughput, accuracy"


@pytest.mark.nightly
def test_speed_is_measured_once(tmp_path):
    data = write_zip(image_files(tiny_faces(60, 8, 8)), tmp_path / "fer2013.zip")
    command = ("run.py", "speed", "--data", data, "--rehearse", "--out", tmp_path)
    script(*command)
    lines = (tmp_path / "speed.jsonl").read_text()
    assert [json.loads(line)["part"] for line in lines.splitlines()] == ["throughput", "accuracy"]
    script(*command)
    assert (tmp_path / "speed.jsonl").read_text() == lines
    script("page.py", tmp_path / "speed.jsonl", "--out", tmp_path / "docs")
    assert "time to accuracy" in (tmp_path / "docs" / "results.md").read_text()


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_from_the_sweep_to_the_page(tmp_path):
    data = write_zip(image_files(tiny_faces(60, 8, 8)), tmp_path / "fer2013.zip")
    common = ("--data", data, "--model", "test_efficientnet", "--rehearse", "--out", tmp_path / "packed")
    script("run.py", "tune", *common, "--work", tmp_path / "first")
    output = script("run.py", "strongest", *common, "--work", tmp_path / "first")
    assert json.loads(output.strip().splitlines()[-1])["finished"] == 2
    archives = sorted((tmp_path / "packed").glob("*.tar.xz"))
    with tarfile.open(tmp_path / "packed" / "strongest-1.tar.xz") as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    kept = {"metrics.json", "predictions.csv", "tta/metrics.json", ".hydra/config.yaml"}
    assert {f"1-none-seed1/{name}" for name in kept} <= set(names)
    assert not [name for name in names if name.endswith(".ckpt")]
    assert (tmp_path / "packed" / "strongest.fp16.safetensors").stat().st_size < 16 * 2**20

    # On another machine: nothing is done twice.
    output = script(
        "run.py",
        "strongest",
        *common,
        "--work",
        tmp_path / "second",
        "--packed",
        tmp_path / "packed/strongest-1.tar.xz",
    )
    assert "[sweep] job" not in output
    assert json.loads(output.strip().splitlines()[-1])["finished"] == 2

    refused = script("page.py", *archives, code=1)
    assert "rehearsals, whose numbers mean nothing" in refused
    script("page.py", *archives, "--out", tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "**A rehearsal: these numbers mean nothing.**" in page
    assert "- Bar: accuracy without test-time augmentation at least 71.0 %. **Missed**" in page
    assert "| test_ten_crop | accuracy |" in page
    assert "2 settings; all in [trials.csv]" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "docs" / "results" / "tune" / "trials.csv").exists()
