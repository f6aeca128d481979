"""The script that keeps the runs behind docs/results.md: what it packs compares and resumes as before."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from archives import image_files, tiny_faces, write_zip

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "results.py"


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_packed_sweep_compares_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    first, second = tmp_path / "first", tmp_path / "second"
    for checkout in (first, second):
        (checkout / "benchmarks").mkdir(parents=True)
        shutil.copy(SCRIPT, checkout / "benchmarks")
        write_zip(image_files(tiny_faces(60, 8, 8)), checkout / "fer2013.zip")
    sweep = "outputs/results/three"
    small = ("data.path=fer2013.zip", "model=test_efficientnet", "trainer.max_epochs=1", "trainer.accelerator=cpu")
    words = ("-m", "fer_lightning", "-m", *small, "figures=false", "logger=csv", "seed=0,1", f"hydra.sweep.dir={sweep}")
    run(*words, cwd=first)
    run("benchmarks/results.py", "pack", sweep, cwd=first)

    file = Path("docs/results/three/runs.tar.xz")
    with tarfile.open(first / file) as archive:
        assert not [name for name in archive.getnames() if name.endswith((".ckpt", ".png", ".log"))]
        assert not [
            member.name
            for member in archive.getmembers()
            if str(tmp_path).encode() in archive.extractfile(member).read()
        ]
    (second / file).parent.mkdir(parents=True)
    shutil.copy(first / file, second / file)
    run("benchmarks/results.py", "unpack", "docs/results/three", cwd=second)
    assert "[sweep] job" not in run("-m", "fer_lightning.sweep", "resume", sweep, cwd=second)
    for checkout in (first, second):
        run("-m", "fer_lightning.compare", sweep, "--out", "report", cwd=checkout)
    assert (second / "report/summary.csv").read_text() == (first / "report/summary.csv").read_text()


@pytest.mark.parametrize("damage", ["cut", "member of another", "link"])
def test_what_was_not_packed_is_not_unpacked(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(SCRIPT, tmp_path / "benchmarks")
    file = tmp_path / "docs" / "results" / "x" / "runs.tar.xz"
    file.parent.mkdir(parents=True)
    with tarfile.open(file, "w:xz") as archive:
        member = tarfile.TarInfo("y/sweep.json" if damage == "member of another" else "x/sweep.json")
        if damage == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:40])
    words = [sys.executable, "benchmarks/results.py", "unpack", "docs/results/x"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "runs.tar.xz: is damaged, or not what pack writes" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_folder_of_searches_is_kept_with_one_table(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(SCRIPT, tmp_path / "benchmarks")
    words = ("-m", "fer_lightning", "-m", "data=synthetic", "data.source.images=200", "model=test_efficientnet")
    words += ("model.weights=none", "trainer.max_epochs=1", "trainer.accelerator=cpu", "figures=false", "logger=csv")
    for knob in ("gamma=1.0,3.0", "alpha=none,inverse"):
        folder = f"hydra.sweep.dir=outputs/results/knobs/{knob.partition('=')[0]}"
        run(*words, "test=false", "imbalance=focal", f"imbalance.loss.{knob}", folder, cwd=tmp_path)
    assert "4 finished runs" in run("benchmarks/results.py", "pack", "outputs/results/knobs", cwd=tmp_path)
    assert len(pd.read_csv(tmp_path / "docs/results/knobs/trials.csv")) == 4


def test_what_was_not_kept_is_one_line():
    done = subprocess.run([sys.executable, SCRIPT, "unpack", "docs/results/ratio"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "docs/results/paper_schedule_large" in done.stderr
