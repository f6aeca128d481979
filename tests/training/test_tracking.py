"""Loggers, read back from the files that they write; nothing here needs a network or an account."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from command_line import TINY, Outcome
from dashboards import CFG, config, finished_run, logger
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from wandb_file import read_offline_run, read_offline_runs
from wandb_server import KEY, WandbServer

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.runtime import provenance, wandb_run
from fer_lightning.runtime.errors import UserError
from fer_lightning.training import tracking
from fer_lightning.training.dashboard_tables import picture_column


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.parametrize("text", ["0123456789abcdef", r"\u00301\u0032\u0033456789abcdef"], ids=["plain", "escaped"])
@pytest.mark.parametrize(
    ("kind", "variable"), [("wandb", "WANDB_NOTES"), ("wandb", "WANDB_JOB_TYPE"), ("mlflow", "MLFLOW_RUN_CONTEXT")]
)
def test_a_secret_in_a_variable_of_the_dashboard_is_not_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variable: str, text: str
) -> None:
    monkeypatch.setenv("ACME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv(variable, f'{{"note": "try {text}"}}')
    with pytest.raises(UserError, match=rf"^{variable}: holds the secret ACME_API_KEY"):
        tracking.build_loggers(logger(kind), tmp_path)


class Toy(L.LightningModule):
    """Logs what the real module logs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 7)

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        loss = self.step(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        self.log_dict({"val/loss": self.step(batch), "val/accuracy": 0.5, "val/f1_macro": 0.4})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(loggers: list[Any], epochs: int = 2) -> None:
    rng = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 4, generator=rng), torch.arange(32) % 7)
    trainer = L.Trainer(
        max_epochs=epochs,
        logger=loggers,
        callbacks=[L.pytorch.callbacks.LearningRateMonitor("step")] if loggers else [],
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Toy(), DataLoader(data, batch_size=16), DataLoader(data, batch_size=16))


@pytest.mark.slow
def test_everything_is_on_the_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "fer2013-2026-11-22")
    folder = tmp_path / "run"
    folder.mkdir()
    with caplog.at_level(logging.INFO):
        loggers = tracking.build_loggers(CFG, folder)
    assert [isinstance(each, WandbLogger) for each in loggers] == [True]
    assert f"upload later with: wandb sync {folder / 'wandb' / 'offline-run-'}" in caplog.text
    fit([*loggers, CSVLogger(folder, name="", version="")])
    metrics, predictions, images = finished_run(folder)
    tracking.log_results(loggers, metrics, predictions, images, folder)
    tracking.finish(loggers, failed=False)
    assert wandb.run is None
    assert "WANDB_MODE" not in os.environ, "offline must not leak into later runs"

    (run,) = read_offline_runs(folder)
    assert (run.name, run.project, run.group) == ("focal-efficientnet_b0-seed3", "fer_lightning", "fer2013-2026-11-22")
    assert set(run.tags) == {"focal", "efficientnet_b0", "official", "fer2013", "pilot"}
    assert run.exit_code == 0
    assert {key: run.config[key] for key in CFG} == CFG
    assert run.config["class_counts"] == metrics["train/class_counts"]
    assert run.config["data_hash"] == metrics["data_hash"]
    assert run.config["git_commit"] == provenance.git_commit()
    assert run.config["environment"] == provenance.environment()

    frame = pd.read_csv(folder / "metrics.csv")
    for key in ("train/loss", "val/loss", "val/accuracy", "val/f1_macro"):
        assert len(run.column(key)) == 2
        np.testing.assert_allclose(run.column(key), frame[key].dropna(), rtol=1e-6)
    assert run.column("lr-SGD") == [0.1] * 4

    for key in ("confusion_matrix", "class_distribution", "curves", "mistakes"):
        assert run.file(key).read_bytes() == (folder / f"{key}.png").read_bytes()

    columns, rows = run.table("per_class")
    assert columns == ["emotion", "training images", "test images", "recall", "precision", "f1"]
    assert [row[0] for row in rows] == list(EMOTIONS)
    assert rows[2] == [
        "fear",
        metrics["train/class_counts"]["fear"],
        10,
        *(metrics[f"test/{score}/fear"] for score in ("recall", "precision", "f1")),
    ]

    columns, rows = run.table("confident_mistakes")
    assert columns[:5] == ["face", "id", "label", "prediction", "confidence"]
    assert len(rows) == 24
    assert all(row[2] != row[3] for row in rows)
    for face, name, *_ in rows:
        file = run.picture("confident_mistakes", face["path"])
        assert folder in file.parents, "an offline run needs nothing outside its folder"
        with Image.open(file) as picture:
            shown = np.asarray(picture.convert("L"))[::3, ::3]
        np.testing.assert_array_equal(shown, images[int(name.removeprefix("image_")) - 50])

    for key, value in metrics.items():
        if not isinstance(value, dict):
            assert run.summary[key] == value, key


@pytest.mark.slow
def test_a_failed_run_is_closed_as_failed_and_the_next_is_its_own(tmp_path: Path) -> None:
    for name, failed in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        loggers = tracking.build_loggers(config(seed=ord(name)), tmp_path / name)
        loggers[0].log_metrics({"val/f1_macro": ord(name)}, step=0)
        tracking.finish(loggers, failed)
        tracking.finish(loggers, failed)
    (a,), (b,) = read_offline_runs(tmp_path / "a"), read_offline_runs(tmp_path / "b")
    assert (a.exit_code, b.exit_code) == (1, 0)
    assert (a.column("val/f1_macro"), b.column("val/f1_macro")) == ([97], [98])
    assert (a.config["seed"], b.config["seed"]) == (97, 98)


def test_records_longer_than_a_block_are_read_back(tmp_path: Path) -> None:
    words = {f"key_{k}": "x" * 50 for k in range(2000)}
    loggers = tracking.build_loggers(config(data={**CFG["data"], "words": words}), tmp_path)
    tracking.finish(loggers, failed=False)
    (file,) = tmp_path.rglob("run-*.wandb")
    assert file.stat().st_size > 3 * 32768
    assert read_offline_run(file).config["data"]["words"] == words


def test_csv_and_auto_without_a_login_open_no_dashboard(tmp_path: Path) -> None:
    assert tracking.build_loggers(logger("csv"), tmp_path) == []
    assert tracking.build_loggers(logger("auto"), tmp_path) == []
    fit([])
    assert not list(tmp_path.iterdir()), "an empty list is not Lightning's default logger"


@pytest.mark.parametrize("login", ["WANDB_API_KEY", "netrc"])
def test_auto_is_wandb_with_a_login_and_respects_wandb_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    if login == "netrc":
        file = tmp_path / "netrc"
        file.write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
        file.chmod(0o600)
    else:
        monkeypatch.setenv(login, "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = tracking.build_loggers(logger("auto"), tmp_path / "run")
    tracking.finish(loggers, failed=False)
    assert len(read_offline_runs(tmp_path / "run")) == 1


@pytest.mark.nightly
def test_no_key_never_prompts_even_with_mode_online(tmp_path: Path) -> None:
    """In a terminal (a pty) with WANDB_MODE=online and no key, where ``wandb.init`` alone would wait for an answer."""
    code = (
        "import json, sys; from pathlib import Path; from fer_lightning.training import tracking;"
        "tracking.finish(tracking.build_loggers(json.loads(sys.argv[1]), Path(sys.argv[2])), failed=False)"
    )
    leader, follower = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(CFG), str(tmp_path)],
            env={**os.environ, "WANDB_MODE": "online"},
            stdin=follower,
            stdout=follower,
            stderr=subprocess.PIPE,
            timeout=100,
            check=False,
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 0, done.stderr.decode()
    assert len(read_offline_runs(tmp_path)) == 1


@pytest.mark.slow
def test_an_unreachable_server_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "WANDB_START_SECONDS", 2)
    loggers = tracking.build_loggers(CFG, tmp_path)
    tracking.finish(loggers, failed=False)
    assert "kept offline" in caplog.text
    assert any(run.exit_code == 0 for run in read_offline_runs(tmp_path))


def test_a_refused_key_leaves_an_offline_run_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with WandbServer(accepts_key=False) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        tracking.finish(tracking.build_loggers(CFG, tmp_path), failed=False)
    assert "the run is kept offline" in caplog.text
    assert any(run.exit_code == 0 for run in read_offline_runs(tmp_path))
    captured = capfd.readouterr()
    assert KEY not in caplog.text + captured.out + captured.err
    assert not files_with(KEY, tmp_path)


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def upload(output: str, folder: Path, **environment: str) -> None:
    """Run the ``wandb sync`` commands in the output of a run."""
    commands = re.findall(r"upload .*with: wandb (sync .*)", output)
    assert commands
    for command in commands:
        command = [sys.executable, "-m", "wandb", *shlex.split(command)]
        subprocess.run(command, cwd=folder, env=os.environ | environment, timeout=100, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", pytest.param("offline", marks=pytest.mark.nightly)])
def test_resuming_in_the_same_folder_resumes_the_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """The second part starts at a checkpoint before the end of the first."""
    folder, other = tmp_path / "run", tmp_path / "other"
    parts = [("auto", folder, [0, 5, 10]), ("auto", folder, [5, 10, 15]), (str(folder), folder, [20])]
    parts += [(str(folder / "checkpoints" / "last.ckpt"), folder, [25]), (str(folder), other, [15])]
    with WandbServer() as server, caplog.at_level(logging.INFO, "fer_lightning"):
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_MODE", mode)
        for resume, place, steps in parts:
            loggers = tracking.build_loggers(config(resume=resume), place)
            for step in steps:
                loggers[0].log_metrics({"val/f1_macro": step / 100}, step=step)
            tracking.finish(loggers, failed=False)
        if mode == "offline":
            assert len({file.name for file in folder.rglob("run-*.wandb")}) == 1
            monkeypatch.delenv("WANDB_MODE")
            upload(caplog.text, tmp_path)
    first, second = server.runs.values()
    assert second.column("trainer/global_step") == [15]
    steps = first.column("trainer/global_step")
    if mode == "online":
        assert steps == [0, 5, 10, 15, 20, 25], "nothing is missing and nothing is doubled"
    else:
        assert steps == [0, 5, 10, 5, 10, 15, 20, 25], "offline, W&B does not know what the earlier part has logged"
    assert first.column("val/f1_macro") == [step / 100 for step in steps]
    assert first.exit_code == 0


@pytest.mark.slow
def test_a_file_of_the_working_directory_names_no_server(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own settings do; those of a folder that somebody else made would get the key."""
    with WandbServer() as own, WandbServer() as other:
        for server, folder in ((own, tmp_path / "user"), (other, tmp_path / "wandb")):
            folder.mkdir()
            (folder / "settings").write_text(f"[default]\nbase_url = {server.environment['WANDB_BASE_URL']}\n")
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "user"))
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        outcome = cli(*TINY, "logger=wandb", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert len(own.runs) == 1
    assert not other.runs
    assert "WANDB_BASE_URL" not in os.environ


@pytest.mark.slow
def test_a_resumed_run_resumes_online(
    process: Callable[..., Outcome], cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, "logger=wandb", "figures=true", "hydra.run.dir=run"]
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        first = process(*arguments, "trainer.max_epochs=2")
        second = cli(*arguments, "trainer.max_epochs=3", "resume=auto")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert KEY not in first.out + first.err + second.out + second.err
    assert server.not_understood == []
    (run,) = server.runs.values()
    assert run.exit_code == 0
    curves = pd.read_csv(tmp_path / "run" / "metrics.csv")
    for key in ("train/loss", "val/loss", "val/f1_macro"):
        np.testing.assert_allclose(run.column(key), curves[key], rtol=1e-6)
    steps = run.column("trainer/global_step")
    assert steps == sorted(set(steps)) == run.column("_step")
    assert run.config["trainer"]["max_epochs"] == 3
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert run.summary["test/f1_macro"] == metrics["test/f1_macro"]
    assert {name for name in run.files if name.startswith("media/images/confusion_matrix")}
    assert not files_with(KEY, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["gone", pytest.param("silent", marks=pytest.mark.nightly)])
def test_a_server_that_fails_in_mid_run_changes_nothing_but_a_warning(
    process: Callable[..., Outcome],
    cli: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
) -> None:
    arguments = [*TINY, "figures=true", "trainer.max_epochs=3"]
    # A silent server could also hold up the end of the process.
    call = process if fate == "silent" else cli
    with WandbServer(fails_with=fate) as server, monkeypatch.context() as patch:
        waits = {"WANDB_HTTP_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "2"}
        for name, value in {**waits, **server.environment}.items():
            patch.setenv(name, value)
        outcome = call(*arguments, "logger=wandb", "hydra.run.dir=run")
    assert server.failed.is_set()
    assert all(len(run.history) < 3 and run.exit_code is None for run in server.runs.values())
    assert outcome.code == 0, outcome.err
    output = outcome.out + outcome.err
    (warning,) = [line for line in output.splitlines() if "kept on disk" in line]
    assert "Traceback" not in output
    assert KEY not in output

    assert cli(*arguments, "logger=csv", "hydra.run.dir=reference").code == 0
    run, reference = tmp_path / "run", tmp_path / "reference"
    assert {path.name for path in run.iterdir()} == {path.name for path in reference.iterdir()} | {"wandb"}
    for name in ("metrics.csv", "predictions.csv", "status.json"):
        assert (run / name).read_text() == (reference / name).read_text(), name
    measured, expected = (
        {key: value for key, value in json.loads((folder / "metrics.json").read_text()).items() if "second" not in key}
        for folder in (run, reference)
    )
    assert measured == expected

    with WandbServer() as server:
        upload(warning, tmp_path, **server.environment)
    (synced,) = server.runs.values()
    assert len(synced.column("val/f1_macro")) == 3
    assert synced.summary["test/f1_macro"] == expected["test/f1_macro"]
    assert {name for name in synced.files if name.startswith("media/images/confusion_matrix")}


@pytest.mark.slow
def test_a_dead_wandb_process_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = tracking.build_loggers(CFG, tmp_path)
    results = finished_run(tmp_path)
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(None, 2) for line in listed.splitlines()]
    (service,) = [int(pid) for pid, parent, name in processes if int(parent) == os.getpid() and "wandb-core" in name]
    os.kill(service, signal.SIGKILL)
    while Path(f"/proc/{service}/stat").exists() and " Z " not in Path(f"/proc/{service}/stat").read_text():
        time.sleep(0.05)
    fit(loggers)
    tracking.log_results(loggers, *results, tmp_path)
    tracking.finish(loggers, failed=False)
    assert "this epoch's numbers are missing there" in caplog.text
    assert "tables or results are missing there" in caplog.text
    assert "kept on disk" in caplog.text


@pytest.mark.nightly
def test_our_own_mistakes_are_not_taken_for_wandbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = tracking.build_loggers(CFG, tmp_path)
    metrics, *rest = finished_run(tmp_path)
    del metrics["train/class_counts"]
    with pytest.raises(KeyError, match="class_counts"):
        tracking.log_results(loggers, metrics, *rest, tmp_path)
    tracking.finish(loggers, failed=True)


@pytest.mark.nightly
def test_tensorboard_gets_curves_and_pictures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = tracking.build_loggers(logger("tensorboard"), tmp_path)
    assert [type(each) for each in loggers] == [TensorBoardLogger]
    fit(loggers)
    metrics, predictions, images = finished_run(tmp_path)
    tracking.log_results(loggers, metrics, predictions, images, tmp_path)
    tracking.finish(loggers, failed=False)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("val/f1_macro")) == 2
    assert set(events.Tags()["images"]) == {"confusion_matrix", "class_distribution", "curves", "mistakes"}


def test_missing_tensorboard_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(tracking.TensorBoardLogger, "__init__", refuse)
    with pytest.raises(UserError, match=r"pip install 'fer_lightning\[tensorboard\]'"):
        tracking.build_loggers(logger("tensorboard"), tmp_path)


@pytest.mark.nightly
def test_other_ranks_open_no_run(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from fer_lightning.training import tracking;"
        "loggers = tracking.build_loggers(json.loads(sys.argv[1]), Path(sys.argv[2]));"
        "tracking.finish(loggers, failed=False);"
        "print(tracking.is_first_process(), [type(each).__name__ for each in loggers])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CFG), str(tmp_path)],
        env={**os.environ, "LOCAL_RANK": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False []"
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize(("names", "column"), [(("happy", "sad"), "face"), (("cat", "sad"), "image")])
def test_pictures_are_called_faces_only_of_emotions(names: tuple[str, ...], column: str) -> None:
    predictions = pd.DataFrame({f"p_{name}": [0.5] for name in names})
    assert picture_column(predictions) == column
