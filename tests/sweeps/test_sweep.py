"""Sweeps in real processes: isolation of jobs, failures, several devices, interruption."""

import json
import signal
from pathlib import Path

import pandas as pd
import pytest
from command_line import TINY, processes_in
from legs import every_third
from sweeps import ENDLESS, status_of, statuses, sweep, training, wait_for
from wandb_file import read_offline_runs

from fer_lightning.config.safety import CONF_DIR


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_one_device_two_devices_and_a_failing_job_are_isolated(forked, tmp_path):
    """The sweep that goes silently wrong when jobs share a process: 1 device, then 2, with a failure between."""
    sizes = [word for word in TINY if "images" not in word] + ["data.source.images=400,1"]
    outcome = forked("-m", "trainer.devices=1,2", *sizes, "hydra.sweep.dir=sweep", timeout=240)
    assert outcome.code == 1
    jobs = {path.name: path for path in (tmp_path / "sweep").iterdir() if path.name[0].isdigit()}
    assert [status_of(jobs[name])["status"] for name in sorted(jobs)] == ["done", "failed", "done", "failed"]
    assert "data.source.images=1" in status_of(jobs["1-none-seed0"])["reason"]
    one, two = metrics_of(jobs["0-none-seed0"]), metrics_of(jobs["2-none-seed0"])
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["train/steps"] == two["train/steps"] == 288 // 32, "the global batch is the same"
    assert one["test/n"] == two["test/n"] == len(pd.read_csv(jobs["2-none-seed0"] / "predictions.csv"))
    assert outcome.json["jobs"] == 4
    assert outcome.json["failed"] == ["1-none-seed0", "3-none-seed0"]
    assert "failed: 1-none-seed0: data.source.images=1" in outcome.out
    assert len(list(tmp_path.rglob("sweep.json"))) == 1, "no rank may start a sweep of its own"


@pytest.mark.nightly
def test_the_summary_compares_methods_and_keeps_overrides(forked, tmp_path):
    """Config folders, Hydra overrides and settings of the sweep reach every job."""
    mine = tmp_path / "mine" / "imbalance"
    mine.mkdir(parents=True)
    (mine / "gentle.yaml").write_text(
        (CONF_DIR / "imbalance" / "focal.yaml").read_text().replace("name: focal", "name: gentle")
    )
    outcome = forked(
        "--config-dir=mine", "-m", *TINY, "imbalance=none,gentle", "tags=[a,'b c']", "hydra.sweep.dir='a sweep'",
        "+hydra.job.env_set.FER_TEST=1", "logger=wandb",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err + outcome.out
    assert outcome.json["failed"] == []
    report = tmp_path / outcome.json["report"]
    table = pd.read_csv(report / "summary.csv")
    assert set(table["method"]) == {"none", "gentle"}
    runs = [run for job in sorted((tmp_path / "a sweep").glob("?-*")) for run in read_offline_runs(job)]
    assert [run.tags[0] for run in runs] == ["none", "gentle"], "one W&B run per job"
    assert len({run.group for run in runs}) == 1
    assert runs[0].group.endswith("-a sweep")
    for run in runs:
        assert run.config["tags"] == ["a", "b c"]
    assert "SYNTHETIC" in outcome.out
    assert "job 2 of 2 done" in outcome.out
    assert " left" in outcome.out
    for name in ("report.md", "method_bars.png", "confusion_matrices.png"):
        assert (report / name).stat().st_size > 0


def test_a_mistake_in_every_job_ends_non_zero(forked, tmp_path):
    outcome = forked("-m", *TINY, "optim.lr=-1,-2", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    failed = ["0-none-seed0", "1-none-seed0"]
    assert outcome.json == {"sweep": "sweep", "jobs": 2, "failed": failed, "unfinished": [], "report": None}


@pytest.mark.parametrize(
    ("words", "message"),
    every_third(
        [
            pytest.param(
                ("jobs_per_device=0",), "error: jobs_per_device=0: must be at least 1", marks=pytest.mark.nightly
            ),
            (
                ("imbalance=none,focal", "optim.lr=-1"),
                "error: optim.lr=-1.0: must be positive",
            ),
            (
                ("imbalance=crt,lws", "imbalance.first_stage=nowhere"),
                "error: imbalance.first_stage=nowhere: no such run or checkpoint",
            ),
            (("imbalance=crt,lws", "imbalance.first_stag=x"), "error: imbalance.first_stag: no such key"),
            (
                ("hydra/launcher=parallel", "hydra.launcher.n_jobs=0"),
                "error: hydra.launcher.n_jobs=0: must be at least 1",
            ),
            (
                ("hydra/launcher=parallel", "hydra.launcher.batch_size=0"),
                "error: hydra.launcher.batch_size=0: must be at least 1, or auto",
            ),
            (
                ("hydra/launcher=parallel", "hydra.launcher.timeout=1"),
                "error: hydra.launcher.timeout=1.0: must be null here; leave it out",
            ),
            (
                ("hydra/launcher=parallel", "hydra.launcher.prefer=x"),
                "error: hydra.launcher.prefer=x: must be processes here; leave it out",
            ),
            (("hydra/launcher=parallel", "hydra.launcher.n_jobs=abc"), "error: hydra.launcher.n_jobs=abc: Value 'abc'"),
        ]
    ),
)
def test_a_mistake_of_every_job_is_reported_once(cli, tmp_path, words, message):
    outcome = cli("-m", *TINY, "seed=0,1", *words, "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    assert outcome.error.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_different_mistakes_do_not_refuse_the_sweep(cli, tmp_path):
    outcome = cli("-m", *TINY, "seed=0", "optim.lr=-1,-2", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert len(outcome.json["failed"]) == 2
    assert "[sweep] will fail: 0-none-seed0: optim.lr=-1.0: must be" in outcome.out.split("job 1 of 2")[0]


def test_devices_that_are_no_number_refuse_no_parallel_sweep(cli, tmp_path):
    """How many jobs run at a time depends on those without a mistake."""
    parallel = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=1")
    outcome = cli("-m", *TINY, *parallel, "trainer.devices=abc,def", "hydra.sweep.dir=sweep")
    assert (outcome.code, len(outcome.json["failed"])) == (1, 2), outcome.err
    assert "[sweep] will fail: 0-none-seed0: trainer.devices=abc: must be a number" in outcome.out


@pytest.mark.nightly
@pytest.mark.parametrize("words", [["seed=0,1", "-m", "optim.lr=-1,-2"], ["seed=0,1", "optim.lr=-1,-2", "--multirun"]])
def test_options_may_stand_anywhere(cli, tmp_path, words):
    outcome = cli(*TINY, *words, f"--config-dir={tmp_path}", "hydra.sweep.dir=sweep")
    assert len(outcome.json["failed"]) == 4


@pytest.mark.parametrize(
    ("words", "message"), [(["--nonsense"], "unrecognized arguments: --nonsense"), (["--cfg", "jobs"], "'jobs'")]
)
def test_unknown_options_are_refused_in_one_line(cli, words, message):
    outcome = cli(*words, *TINY)
    assert outcome.code == 2
    assert message in outcome.error
    assert "usage" not in outcome.err


def test_an_unknown_choice_refuses_the_sweep_in_one_line(forked, tmp_path):
    outcome = forked("-m", "imbalance=none,focul")
    assert outcome.code == 2
    assert "imbalance=focul: no such choice" in outcome.error
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_no_process_behind(tmp_path):
    folder = tmp_path / "sweep"
    with sweep(tmp_path, *TINY, "trainer.devices=2", ENDLESS, "seed=0,1", "hydra.sweep.dir=sweep") as running:
        wait_for(lambda: training(folder))
        assert len(processes_in(tmp_path)) >= 3
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 75
        wait_for(lambda: processes_in(tmp_path) == [], 20)
    assert statuses(folder) == ["interrupted"], "the second job was never started"
    printed = (tmp_path / "terminal").read_text()
    assert "[sweep] not started: 1 of 2 jobs" in printed
    assert "[sweep] run the remaining jobs with: python -m fer_lightning.sweep resume sweep" in printed
