"""``fl.train``: the command line's run in this process, which is left as it was."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from command_line import TINY, only_run
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from legs import every_third
from omegaconf import OmegaConf

import fer_lightning as fl
from fer_lightning.runtime import signals
from fer_lightning.runtime.errors import Interrupted
from fer_lightning.runtime.signals import SIGNALS

MEASURED = ("train/seconds", "train/images_per_second")


def scores(metrics):
    return {key: value for key, value in metrics.items() if key not in MEASURED}


def state():
    """What Hydra keeps of a process, and what else a run sets up."""
    resolvers = [OmegaConf.has_resolver(name) for name in ("now", "hydra", "python_version")]
    root = logging.getLogger()
    return (
        *(GlobalHydra.instance().hydra, HydraConfig.instance().cfg, VersionBase.instance().getbase()),
        *(JobRuntime.instance().get("name"), resolvers, os.getcwd(), threading.active_count()),
        *(root.level, list(root.handlers), logging.getLogger("fer_lightning").level),
        [signal.getsignal(number) for number in SIGNALS],
    )


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Calls of a stand-in for the training, (cfg, folder, handlers of SIGTERM); and the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def run(cfg, folder):
        calls.append((cfg, folder, signal.getsignal(signal.SIGTERM)))
        logging.getLogger("fer_lightning.training.run").info("trained in %s", folder.name)
        (folder / "status.json").write_text('{"status": "done"}')

    monkeypatch.setattr("fer_lightning.training.run.run", run)
    return calls


def test_the_same_numbers_and_files_as_the_command_line(run, cli, tmp_path):
    assert cli(*TINY).code == 0
    typed = only_run(tmp_path)
    assert scores(run.metrics) == scores(json.loads((typed / "metrics.json").read_text()))
    assert (run.folder / "predictions.csv").read_bytes() == (typed / "predictions.csv").read_bytes()
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in (run.folder, typed)]
    assert names[0] == names[1]
    for name in ("config.yaml", "overrides.yaml"):
        assert (run.folder / ".hydra" / name).read_text() == (typed / ".hydra" / name).read_text()
    ours, theirs = (
        OmegaConf.to_container(OmegaConf.load(folder / ".hydra/hydra.yaml")) for folder in (run.folder, typed)
    )
    for part in (ours, theirs):
        for key in ("runtime", "overrides"):
            part["hydra"].pop(key)
        part["hydra"]["run"].pop("dir")
    assert ours == theirs
    logs = [
        re.sub(r"^\[.*?\]|[\d.]+ s\b|/\S+", "", (folder / "train.log").read_text(), flags=re.M)
        for folder in (run.folder, typed)
    ]
    assert logs[0] == logs[1]


@pytest.mark.nightly
def test_once_more_in_another_thread(run, tmp_path):
    results: list[fl.Run] = []
    thread = threading.Thread(target=lambda: results.append(fl.train(TINY, folder=tmp_path / "run")))
    thread.start()
    thread.join()
    assert scores(results[0].metrics) == scores(run.metrics)


def test_one_run_at_a_time(trained, monkeypatch):
    def run(cfg, folder):
        with pytest.raises(fl.UserError, match="this process is training a run already; wait for it"):
            fl.train(TINY)
        (folder / "status.json").touch()

    monkeypatch.setattr("fer_lightning.training.run.run", run)
    fl.train(TINY)


def test_a_run_holds_its_metrics_and_predictions(run):
    assert run.status == "done"
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text())
    assert isinstance(run.predictions, pd.DataFrame)
    assert len(run.predictions) == run.metrics["test/n"]
    right = (run.predictions["label"] == run.predictions["prediction"]).mean()
    assert right == pytest.approx(run.metrics["test/accuracy"])
    assert repr(fl.Run(str(run.folder))) == f"Run({str(run.folder)!r})"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"id\n1,2\n", b"id" + b"," * 300_000 + b"\n"])
def test_damaged_predictions_are_one_line(run, tmp_path, content):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "predictions.csv").write_bytes(content)
    with pytest.raises(fl.UserError, match=r"predictions\.csv: damaged \("):
        _ = fl.Run(tmp_path / "run").predictions


@pytest.mark.parametrize(
    "given",
    [
        {"overrides": ["seed=" + "9" * 5000]},
        {"overrides": ["seed=" + "[" * 3000 + "]" * 3000]},
        {"folder": "a\0"},
        {"folder": "x" * 5000},
    ],
)
def test_what_cannot_be_read_is_one_line(given):
    with pytest.raises(fl.UserError) as caught:
        fl.train(**given)
    assert len(str(caught.value)) < 400


def test_resuming_a_finished_run_changes_nothing(run, capfd):
    before = dict(run.metrics)
    again = fl.train([*TINY, "resume=auto"], folder=run.folder)
    assert {key: value for key, value in scores(again.metrics).items()} == scores(before)


def test_nothing_is_left_behind(trained, tmp_path):
    before = state()
    fl.train(TINY)
    with pytest.raises(fl.UserError):
        fl.train(["imbalance=focl"])
    assert state() == before


def test_the_callers_own_hydra_continues(trained, tmp_path):
    (tmp_path / "mine.yaml").write_text("value: 3\nwhen: ${now:%Y}\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        before = state()
        fl.train(TINY)
        assert state() == before
        assert compose("mine").value == 3


def test_hydra_of_this_process_stays_unguarded():
    """In a process that never ran a command: the caller's own configurations may call the caller's own code."""
    code = (
        "import fer_lightning as fl\nfrom hydra._internal import hydra\n"
        "try: fl.train(['imbalance=focl'])\nexcept fl.UserError: print(hydra.ConfigLoaderImpl.__name__)\n"
        "from hydra._internal.sources_registry import SourcesRegistry\n"
        "print(SourcesRegistry.instance().types['file'].__qualname__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["ConfigLoaderImpl", "FileConfigSource"], done.stderr


@pytest.mark.slow
def test_folders(trained, tmp_path):
    assert fl.train(TINY).folder.parent == tmp_path / "outputs" / "synthetic"
    assert fl.train([*TINY, "name=mine"]).folder.parent == tmp_path / "outputs" / "mine"
    assert fl.train([*TINY, "hydra.run.dir=typed"]).folder == tmp_path / "typed"
    assert fl.train(TINY, folder="given here").folder == tmp_path / "given here"
    assert [folder for _, folder, _ in trained][2:] == [tmp_path / "typed", tmp_path / "given here"]
    assert "hydra" not in trained[0][0]
    with pytest.raises(fl.UserError, match="holds a run already"):
        fl.train(TINY, folder="typed")
    (tmp_path / "file").touch()
    with pytest.raises(fl.UserError, match=r"file/run: cannot be made as a folder \(Not a directory\); give another"):
        fl.train(TINY, folder="file/run")


REFUSED = {
    "imbalance=focl": "imbalance=focl: no such choice (did you mean focal?)",
    "imbalance.loss.gama=1": "imbalance.loss.gama: no such key (did you mean imbalance.loss.gamma?)",
    "optim.lr=fast": "optim.lr=fast: must be a number",
    "optim.lr=-1": "optim.lr=-1",
    "nonsense": "nonsense: must be key=value",
    "seed=0,1": "seed=0,1: several values make several runs; call this once for each, or sweep with",
    "imbalance=none,focal": "imbalance=none,focal: several values make several runs",
    "-m": "-m: options belong to the command line",
    "--cfg=job": "--cfg=job: options belong to the command line",
    "hydra.mode=MULTIRUN": "hydra.mode=MULTIRUN: belongs to the command line; of Hydra's keys give only hydra.run.dir",
    "hydra/launcher=parallel": "hydra/launcher=parallel: belongs to the command line",
    "+hydra.job.env_set.A=1": "+hydra.job.env_set.A=1: belongs to the command line",
    "hydra.job.chdir=true": "hydra.job.chdir=true: belongs to the command line",
    "hydra/job_logging=default": "hydra/job_logging=default: belongs to the command line",
    "trainer.devices=2": "trainer.devices=2: several devices need several processes",
    "trainer.num_nodes=2": "trainer.num_nodes=2: several nodes need several processes",
    "trainer.fast_dev_run=true": "trainer.fast_dev_run=True: a rehearsal has no results to return",
    "+callbacks.mine._target_=os.system": "os.system",
    "hydra.run.dir=other": "hydra.run.dir=other: the folder is given twice",
}


@pytest.mark.parametrize("override", every_third(REFUSED))
def test_mistakes_are_raised_in_one_line_and_leave_nothing(override, trained, tmp_path, capfd):
    folder = tmp_path / "run"
    with pytest.raises(fl.UserError, match=re.escape(REFUSED[override])) as refused:
        fl.train([*TINY, "imbalance=focal", override], folder=folder)
    assert "\n" not in str(refused.value)
    assert (list(tmp_path.iterdir()), trained) == ([], [])
    assert capfd.readouterr() == ("", "")


def test_overrides_that_are_no_list_of_strings(trained):
    for overrides in ("imbalance=focal", [3], [("imbalance", "focal")], {"imbalance": "focal"}):
        with pytest.raises(fl.UserError, match="must be a list of strings; give a list such as"):
            fl.train(overrides)  # type: ignore[arg-type]
    with pytest.raises(fl.UserError, match="folder=3: must be a path"):
        fl.train(TINY, folder=3)  # type: ignore[arg-type]


def test_one_of_several_processes_is_refused(trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(fl.UserError, match="this process is one of several that torchrun or srun started"):
        fl.train(TINY)


def test_a_run_that_fails_raises_and_is_recorded(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(fl.UserError, match=r"missing\.zip"):
        fl.train(["data.path=missing.zip", "model.weights=none"], folder=folder)
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    assert "missing.zip" in (folder / "train.log").read_text() or fl.Run(folder).status == "failed"


def test_logging_that_the_caller_configured_is_kept(trained, caplog, capfd):
    with caplog.at_level(logging.INFO):
        fl.train(TINY, folder="run")
    assert "trained in run" in caplog.messages
    assert capfd.readouterr().out == ""  # pytest's handlers count as a configuration
    assert re.search(r"\]\[fer_lightning.training.run\]\[INFO\] trained in run$", Path("run/train.log").read_text())


def test_a_level_that_the_caller_chose_is_kept(trained):
    package = logging.getLogger("fer_lightning")
    package.setLevel(logging.WARNING)
    try:
        fl.train(TINY, folder="run")
        assert package.level == logging.WARNING
        assert Path("run/train.log").read_text() == ""
    finally:
        package.setLevel(logging.NOTSET)


def test_messages_are_printed_where_logging_is_not_configured(trained, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    fl.train(TINY, folder="run")
    assert capsys.readouterr().out == "trained in run\n"


@pytest.fixture
def default_handlers():
    """Those of a new process; a command that was run in this one has left its own."""
    before = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_signals_stop_the_run_and_are_given_back(trained, monkeypatch, default_handlers):
    signals.reset()
    fl.train(TINY)
    assert callable(trained[0][2])
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 3

    def run(cfg, folder):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("fer_lightning.training.run.run", run)
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
        fl.train(TINY, folder="run")
    assert "resume=auto and folder='" in stopped.value.__notes__[0]
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 3
    signals.reset()
