"""Runs on MLflow, read back from its own database; nothing here needs a network."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Outcome
from dashboards import finished_run, logger
from PIL import Image

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.runtime import mlflow_run, provenance
from fer_lightning.runtime.errors import UserError, without_login
from fer_lightning.runtime.mlflow_run import OpenRun
from fer_lightning.training import mlflow_logger, tracking
from fer_lightning.training.mlflow_logger import SafeMlflowLogger

mlflow = pytest.importorskip("mlflow")
PASSWORD = "mightily-secret"
DEAD = f"http://somebody:{PASSWORD}@127.0.0.1:9"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    for name, value in mlflow_run.DEFAULTS.items():  # so that what is set here ends with the test
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs; its tables take seconds to make."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(mlflow_run.database(file)).search_experiments()
    return file


@pytest.fixture
def client(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Of the working directory's own database, which is MLflow's default."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, "mlflow.db")
    yield mlflow.MlflowClient(mlflow_run.database(Path("mlflow.db")))
    assert "MLFLOW_TRACKING_URI" not in os.environ, "the server must not leak into later runs"


def open_run(**changes: Any) -> SafeMlflowLogger:
    (opened,) = tracking.build_loggers({**logger("mlflow"), **changes}, Path("run"))
    assert isinstance(opened, SafeMlflowLogger)
    return opened


def runs(client: Any) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(ids, order_by=["attributes.start_time"])


def history(client: Any, run: Any, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


@pytest.mark.slow
def test_everything_is_there(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "fer2013-2026-11-22")
    opened = open_run()
    for step in (10, 20):
        opened.log_metrics({"epoch": step // 10, "val/f1_macro": step / 100, "lr-SGD": 0.1}, step=step)
    opened.finalize("success")
    metrics, predictions, images = finished_run(Path("run"))
    tracking.log_results([opened], metrics, predictions, images, Path("run"))
    tracking.finish([opened], failed=False)
    tracking.finish([opened], failed=False)

    (run,) = runs(client)
    assert client.get_experiment(run.info.experiment_id).name == "fer_lightning"
    assert (run.info.run_name, run.info.status) == ("focal-efficientnet_b0-seed3", "FINISHED")
    wanted = {"method": "focal", "model": "efficientnet_b0", "split": "official", "data": "fer2013", "seed": "3"}
    wanted |= {"tags": "pilot, focal", "sweep": "fer2013-2026-11-22", "data_hash": metrics["data_hash"]}
    assert wanted.items() <= run.data.tags.items()
    assert run.data.tags["git_commit"] == provenance.git_commit()
    params = run.data.params
    assert (params["seed"], params["imbalance.loss.gamma"], params["optim.lr"]) == ("3", "2.0", "0.001")
    assert params["environment.torch"] == provenance.environment()["torch"]

    assert history(client, run, "val/f1_macro") == [(10, 0.1), (20, 0.2)]
    assert run.data.metrics["lr-SGD"] == 0.1
    assert run.data.metrics["test/recall/fear"] == metrics["test/recall/fear"]
    assert "test_dedup/recall/disgust" not in run.data.metrics, "it is None"

    kept = Path(client.download_artifacts(run.info.run_id, ""))
    for picture in tracking.FIGURES:
        assert (kept / f"{picture}.png").read_bytes() == Path("run", f"{picture}.png").read_bytes()
    assert json.loads((kept / "metrics.json").read_text()) == metrics
    table = json.loads((kept / "per_class.json").read_text())
    assert table["columns"] == ["emotion", "training images", "test images", "recall", "precision", "f1"]
    assert [row[0] for row in table["data"]] == list(EMOTIONS)
    table = json.loads((kept / "confident_mistakes.json").read_text())
    assert table["columns"][:5] == ["face", "id", "label", "prediction", "confidence"]
    assert len(table["data"]) == 24
    face, name, *_ = table["data"][0]
    with Image.open(kept / face["filepath"]) as shown:
        np.testing.assert_array_equal(np.asarray(shown)[::3, ::3], images[int(name.removeprefix("image_")) - 50])


@pytest.mark.slow
def test_a_resumed_run_continues_without_gaps_or_doubles(client: Any, tmp_path: Path) -> None:
    parts = [("auto", [0, 5, 10]), ("auto", [5, 10, 15]), (str(tmp_path / "run" / "last.ckpt"), [20])]
    for number, (resume, steps) in enumerate(parts):
        trainer = {"max_epochs": 2 + number, "devices": 1}
        opened = open_run(resume=resume, trainer=trainer)
        assert client.get_run(opened.run.run_id).info.status == "RUNNING"
        for step in steps:
            opened.log_metrics({"epoch": step // 5, "val/f1_macro": step / 100}, step=step)
        tracking.finish([opened], failed=number == 0)
    (run,) = runs(client)
    assert history(client, run, "val/f1_macro") == [(step, step / 100) for step in (0, 5, 10, 15, 20)]
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.max_epochs"] == "2"
    assert run.data.tags["resumed.trainer.max_epochs"] == "4", "MLflow does not let parameters change"


@pytest.mark.slow
def test_other_runs_are_new_ones(client: Any, tmp_path: Path) -> None:
    """Another start in the folder, the resumption of another folder's run, and one that the server has no more."""
    first = open_run().run.run_id
    assert Path("run", mlflow_run.RUN_ID_FILE).read_text().strip() == first
    second = open_run().run.run_id
    third = open_run(resume=str(tmp_path / "other")).run.run_id
    client.delete_run(third)
    fourth = open_run(resume="auto").run.run_id
    Path("run", mlflow_run.RUN_ID_FILE).write_text("0" * 32)
    fifth = open_run(resume="auto").run.run_id
    assert len({first, second, third, fourth, fifth}) == 5


@pytest.mark.parametrize(
    "place", ["ftp://example.org/x", "file:///elsewhere", "file://host/x", "/elsewhere", "file:../up", "sub/../.."]
)
def test_a_database_of_the_working_directory_sends_no_files_elsewhere(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=place))
    with pytest.raises(OSError, match="would copy files to"):
        mlflow_run._check_artifacts(run, tmp_path)
    mlflow_run._check_artifacts(run, None)
    run.info.artifact_uri = (tmp_path / "mlruns" / "a b").as_uri()
    mlflow_run._check_artifacts(run, tmp_path)


@pytest.mark.slow
def test_a_dead_server_leaves_the_run_in_its_own_folder(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("run").mkdir()
    shutil.copy(empty, Path("run", "mlflow.db"))
    with caplog.at_level(logging.INFO):
        opened = open_run()
        opened.log_metrics({"val/f1_macro": 0.5}, step=1)
        tracking.finish([opened], failed=True)
    assert "MLflow failed" in caplog.text
    assert "; the run is logged to run/mlflow.db" in caplog.text
    assert PASSWORD not in caplog.text
    (run,) = runs(mlflow.MlflowClient(mlflow_run.database(Path("run", "mlflow.db"))))
    assert (run.info.status, history(opened.run.client, run, "val/f1_macro")) == ("FAILED", [(1, 0.5)])
    assert os.environ["MLFLOW_TRACKING_URI"] == DEAD


def test_where_nothing_can_be_written_the_run_has_no_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(mlflow_run, "_open", refuse)
    assert tracking.build_loggers(logger("mlflow"), tmp_path) == []
    assert "the run is not logged there" in caplog.text


class FlakyClient:
    """Keeps what it is sent while ``works``."""

    def __init__(self) -> None:
        self.works, self.rows, self.status = True, [], ""

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        if not self.works:
            raise OSError(f"no answer from {DEAD}")
        self.rows += [(metric.key, metric.step, metric.value) for metric in metrics]

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


def test_numbers_of_an_outage_are_sent_after_it(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    client, now = FlakyClient(), [1000.0]
    clock = SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(mlflow_logger, "time", clock)
    opened = SafeMlflowLogger(OpenRun(client, "http://127.0.0.1:9", "1", last_step=0))
    for step in range(6):
        client.works = step not in (2, 3)
        now[0] += 40
        opened.log_metrics({"loss": step / 10}, step=step)
        if step == 3:
            assert len(client.rows) == 1, "neither sent nor tried again within a minute"
    assert client.rows == [("loss", step, step / 10) for step in range(1, 6)]
    assert caplog.text.count("MLflow failed (no answer from http://127.0.0.1:9)") == 1
    client.works = False
    opened.log_metrics({"loss": 0.6}, step=6)
    tracking.finish([opened], failed=False)
    assert client.status == "", "no further request to a server that does not answer"


def test_names_as_mlflow_takes_them() -> None:
    assert mlflow_run.key("test/recall/angry") == "test/recall/angry"
    assert mlflow_run.key("data.classes.ärger (1)") == "data.classes.ärger _1_"
    assert mlflow_run.key("../a//b") == "a/b"
    assert mlflow_run.key("") == mlflow_run.key("..") == "_"
    assert len(mlflow_run.key("x" * 999)) == 250
    assert without_login(f"{DEAD}/api failed") == "http://127.0.0.1:9/api failed"
    assert without_login("what?\nhttp://h/?token=abc/api (url: /?token=abc/api)") == "what?\nhttp://h/?... (url: /?...)"


@pytest.mark.parametrize("variable", ["MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_DISABLE_TELEMETRY"])
def test_what_mlflow_does_not_accept_in_the_environment_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(UserError, match=rf"^logger=mlflow: .*{variable}.*; correct that variable"):
        tracking.build_loggers(logger("mlflow"), tmp_path)


def test_a_missing_driver_of_the_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    monkeypatch.setattr(mlflow_logger.mlflow_run, "start", refuse)
    with pytest.raises(UserError, match="MLflow needs psycopg2, which is not installed"):
        tracking.build_loggers(logger("mlflow"), tmp_path)


def test_missing_mlflow_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(mlflow_logger.mlflow_run, "start", refuse)
    with pytest.raises(UserError, match=r"pip install 'fer_lightning\[mlflow\]'"):
        tracking.build_loggers(logger("mlflow"), tmp_path)


@pytest.mark.slow
def test_a_dead_server_does_not_stop_a_run(
    cli: Callable[..., Outcome], empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run through the command line, with a password in the server's address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"token-{PASSWORD}")
    (tmp_path / "run").mkdir()
    shutil.copy(empty, tmp_path / "run" / "mlflow.db")
    outcome = cli(*TINY, "logger=mlflow", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "MLflow failed" in outcome.out + outcome.err
    (run,) = runs(mlflow.MlflowClient(mlflow_run.database(tmp_path / "run" / "mlflow.db")))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/f1_macro"] == metrics["test/f1_macro"]
    assert run.data.params["imbalance.name"] == metrics["imbalance"]
    assert len(history(mlflow.MlflowClient(mlflow_run.database(tmp_path / "run" / "mlflow.db")), run, "val/loss")) == 1
    texts = [outcome.out.encode(), outcome.err.encode()]
    texts += [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(PASSWORD.encode() in text for text in texts)
