"""The command line, called in this process (fast) or in a real one (sweeps, several devices)."""

import functools
import gc
import hashlib
import os
import tempfile

# Read by OpenMP, huggingface_hub and matplotlib when they are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "fer_lightning_tests_matplotlib"))

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from command_line import Outcome
from forked import Forked


@pytest.fixture(autouse=True, scope="session")
def _draw_faces_once() -> None:
    """Many tests train on the same drawn faces."""
    from fer_lightning.data import synthetic

    synthetic.draw = functools.lru_cache(maxsize=8)(synthetic.draw)  # type: ignore[assignment]


def pytest_collection_finish() -> None:
    """What the imports made stays to the end; every collection of garbage would go through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may depend on, or write to, the developer's own accounts and caches."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """``python -m fer_lightning ...`` without the start of a process; runs in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        from fer_lightning.__main__ import main

        monkeypatch.setattr(sys, "argv", ["fer_lightning", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """The folder of a finished run with the given overrides, made once for all tests that ask for the same ones.

    Shared between the processes of pytest-xdist too, so nothing in it may be changed: copy it first.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "trained_once"
    shared.mkdir(exist_ok=True)

    def train(*overrides: str) -> Path:
        from fer_lightning.__main__ import main

        folder = shared / hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:16]
        with filelock.FileLock(f"{folder}.lock"):
            if not (folder / "metrics.json").exists():
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir(shared)
                    patch.setattr(sys, "argv", ["fer_lightning", *overrides, f"hydra.run.dir={folder}"])
                    main()
        return folder

    return train


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Outcome]:
    """``python -m <module> ...`` as a real process in ``tmp_path``, with the start and the imports of Python."""

    def call(*arguments: str, module: str = "fer_lightning", timeout: float = 500, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def forked(tmp_path: Path) -> Callable[..., Outcome]:
    """``process`` without the seconds of its imports: a real process, forked from one that has made them."""

    def call(*arguments: str, module: str = "fer_lightning", timeout: float = 500, **environment: str) -> Outcome:
        with tempfile.TemporaryDirectory() as place:
            streams = Path(place, "out"), Path(place, "err")
            run = Forked(list(arguments), tmp_path, {**os.environ, **environment}, module, streams)
            try:
                code = run.wait(timeout)
            finally:
                run.kill()
            return Outcome(code, *(stream.read_text() for stream in streams))

    return call


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a memory file system of a given size; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "mounted"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"mounting needs root: {done.stderr.strip() if done else 'no mount command'}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # its train.log is still open


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The user's cache folder for tests on real images, which are parsed once."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "real_cache"


@pytest.fixture
def real_archive(monkeypatch: pytest.MonkeyPatch, real_cache: Path) -> Path:
    path = os.environ.get("FER2013_PATH")
    if not path:
        pytest.skip("FER2013_PATH is not set: give the Kaggle archive fer2013.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(real_cache))
    return Path(path)


@pytest.fixture
def real_weights() -> Path:
    path = os.environ.get("FER_WEIGHTS")
    if not path:
        pytest.skip("FER_WEIGHTS is not set: give a file of tf_efficientnetv2_b0's ImageNet weights")
    return Path(path)
