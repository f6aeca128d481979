"""Sweep folders that are damaged or of unknown origin, and command lines that make no sensible sweep."""

import json
import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
from command_line import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legs import every_third
from omegaconf import OmegaConf

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import write_json
from fer_lightning.runtime.run_folder import RESUMABLE, read_status, write_status
from fer_lightning.sweeps import hook, slurm, summary
from fer_lightning.sweeps.folder import Job, job_states, read_jobs, read_sweep, sweep_record
from fer_lightning.sweeps.progress import show
from fer_lightning.sweeps.resume import resume

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "..", "/x", "-m", "seed=1", "a\nb"]),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.sampled_from(["folder", "overrides"]), children, max_size=2)
    ),
    max_leaves=4,
)
RECORDS = st.dictionaries(st.sampled_from(["argv", "cwd", "jobs", "code", "git_commit"]), ANY)


@FEW
@given(st.binary(max_size=30) | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_any_sweep_json_is_read_or_one_line(tmp_path, content):
    (tmp_path / "sweep.json").write_bytes(content)
    assert all(job.folder.is_relative_to(tmp_path) and ".." not in job.folder.parts for job in read_jobs(tmp_path))
    job_states(tmp_path, live=False)
    show(tmp_path)
    with suppress(UserError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "execve", lambda *arguments: None)
        resume(tmp_path, anyway=False)


def test_a_folder_named_by_half_of_a_character_is_one_line(tmp_path, capfd):
    jobs = [{"folder": "0-\ud800", "overrides": []}]
    (tmp_path / "sweep.json").write_text(json.dumps({"argv": ["-m"], "jobs": jobs}))
    show(tmp_path)
    assert "sweep.json: damaged, not JSON" in capfd.readouterr().err


def test_a_job_outside_of_the_sweep_is_not_looked_at(tmp_path):
    (tmp_path / "victim").mkdir()
    write_status(tmp_path / "victim", "running")
    (tmp_path / "sweep").mkdir()
    jobs = [{"folder": "../victim", "overrides": []}]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"argv": ["-m"], "jobs": jobs}))
    assert read_jobs(tmp_path / "sweep") == []
    show(tmp_path / "sweep")
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["seed=1"], "it has no -m"),
        (["-m", "--experimental-rerun=x"], "--experimental-rerun=x: may not be in a recorded command line"),
        (["-m", "hydra.launcher.setup=[module load cuda]"], "hydra.launcher.setup=module load cuda: is only taken"),
        (["-m", 'tags=["${oc.env:DATABASE_URL}"]'], "may not read this environment variable"),
        (["-m", "name=${oc.env:DATABASE_URL}"], "name=${oc.env:DATABASE_URL}: may not read"),
        (["-m", "hydra.run.dir=/x"], "hydra.run.dir=/x: is only taken"),
        (["-m", "optim@hydra.callbacks.x=sgd"], "optim=hydra.callbacks.x: is only taken"),
        (["-m", "~hydra.callbacks.validate"], "hydra.callbacks.validate=None: is only taken"),
        ("-m", "is damaged"),
    ],
)
def test_a_recorded_command_line_says_no_more_than_a_file_may(tmp_path, argv, named):
    (tmp_path / "sweep.json").write_text(json.dumps({"argv": argv}))
    with pytest.raises(UserError, match=r"type the") as refusal:
        resume(tmp_path, anyway=False)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    every_third(
        [
            (["imbalance=none,none"], "imbalance=none: job 1 would be the same run as job 0"),
            (["seed=range(0,5,0)"], "seed=range(0,5,0): is not a range"),
            (
                ["optim.lr=interval(0,1)"],
                "optim.lr=interval(0,1): is a continuous range, and this sweep runs every value",
            ),
            (["seed=shuffle(range(4))"], "seed=shuffle(range(4)): is in another order each time"),
            (["seed=range(1000000000)"], "seed=range(1000000000): makes more than 10000 jobs"),
            (["imbalance=glob(zz*)"], "imbalance=glob(zz*): no value"),
            (["hydra.sweep.subdir=../x"], "hydra.sweep.subdir=../x: points outside the sweep's folder"),
            (["hydra.job.chdir=true"], "hydra.job.chdir=true: paths are relative to the folder you start in"),
            (["imbalance=glob(*focal*)", "optim.lr=-1"], "optim.lr=-1.0: must be positive"),
        ]
    ),
)
def test_a_sweep_that_makes_no_sense_is_refused_in_one_line(cli, tmp_path, overrides, message):
    outcome = cli("-m", *TINY, *overrides)
    assert outcome.code == 2
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.weight_decay=0,0.0"], "optim.weight_decay=0.0: job 1 would be the same run as job 0"),
        (["resume=null,auto"], "resume=auto: job 1 would be the same run as job 0"),
        (["pause_after_epochs=1", "trainer.max_epochs=2"], "pause_after_epochs=1: pauses the jobs of a sweep again"),
        (["seed=range(nan,2)"], "seed=range(nan,2): is not a range (its numbers must be finite); give values"),
        (["+hydra.sweeper.params={seed: 3}"], "+hydra.sweeper.params={seed: 3}: only a file may set it; give the keys"),
        (
            ["hydra/sweeper=halving", "optim.lr=-1,-2", "trainer.check_val_every_n_epoch=null"],
            "trainer.check_val_every_n_epoch",
        ),
    ],
)
def test_what_would_mislead_a_sweep_is_refused_in_one_line(cli, tmp_path, overrides, message):
    outcome = cli("-m", *TINY, *overrides)
    assert (outcome.code, message in outcome.error) == (2, True), outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("character", ["\u00a0", "\u200b", "\udcff"], ids=["space", "zero width", "not UTF-8"])
def test_characters_that_do_not_print_damage_no_sweep(tmp_path, capsys, monkeypatch, character):
    folder = tmp_path / f"my{character}sweep"
    folder.mkdir()
    argv, jobs = ["-m", f"tags=['{character}']"], [{"folder": f"0{character}", "overrides": [f"tags=[{character}]"]}]
    write_json(folder / "sweep.json", {"argv": argv, "jobs": jobs})
    assert (read_sweep(folder)["argv"], read_sweep(folder)["jobs"]) == (argv, jobs)
    monkeypatch.setattr(os, "execve", lambda *arguments: None)
    resume(folder, anyway=False)
    show(folder)
    assert summary.summarise(folder) == RESUMABLE
    printed = capsys.readouterr()
    assert "damaged" not in printed.err
    assert character == "\u00a0" or character not in printed.out
    jobs[0]["overrides"] = ["tags=[\x1b]"]
    write_json(folder / "sweep.json", {"argv": argv, "jobs": jobs})
    assert "jobs" not in read_sweep(folder)


def test_jobs_that_are_not_known_are_no_success(tmp_path, capsys):
    """Those that were not started may be missing; the same command line, with the same code, lists them anew."""
    job = Job(0, tmp_path / "0", ("seed=0",))
    record = sweep_record({job: OmegaConf.create()}, tmp_path, ["-m"])
    write_json(tmp_path / "sweep.json", {**record, "jobs": "lost"})
    assert summary.summarise(tmp_path) == 1
    assert "sweep.json: its jobs are not known, so there may be more than these" in capsys.readouterr().out
    hook.record_start(tmp_path, {job: OmegaConf.create()}, anyway=False)
    assert read_jobs(tmp_path) == [job]


@pytest.mark.parametrize("folders", [("0", "0"), ("0", "./0"), ("0", "2")])
def test_jobs_listed_under_the_folders_of_others(folders, tmp_path):
    """Of one folder twice, a job would be missing from the report; those of another folder are another sweep."""
    jobs = {Job(k, tmp_path / str(k), (f"seed={k}",)): OmegaConf.create() for k in range(2)}
    record = sweep_record(jobs, tmp_path, ["-m"])
    listed = [{**job, "folder": name} for job, name in zip(record["jobs"], folders, strict=True)]
    write_json(tmp_path / "sweep.json", {**record, "jobs": listed})
    if folders == ("0", "2"):
        with pytest.raises(UserError, match="job 1 was in the folder 2 and is in 1, which would mix results"):
            hook.record_start(tmp_path, jobs, anyway=False)
    else:
        assert "jobs" not in read_sweep(tmp_path)
        hook.record_start(tmp_path, jobs, anyway=False)
        assert read_jobs(tmp_path) == list(jobs)


def test_a_refused_comparison_is_no_success(tmp_path, monkeypatch):
    jobs = [{"folder": "0", "overrides": []}]
    (tmp_path / "sweep.json").write_text(json.dumps({"argv": ["-m"], "jobs": jobs}))
    (tmp_path / "0").mkdir()
    write_status(tmp_path / "0", "done")
    (tmp_path / "0" / "metrics.json").write_text('{"test/accuracy": 1.0}')
    for answer in ((None, False), (tmp_path / "report", False)):  # refused; a finished run was left out
        monkeypatch.setattr("fer_lightning.report.write.compare_sweep", lambda folders, out, answer=answer: answer)
        assert summary.summarise(tmp_path) == 1
    (tmp_path / "0" / "metrics.json").write_text("{")
    assert summary.summarise(tmp_path) == 1


def test_a_damaged_sweep_json_can_be_written_anew(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text('{"argv": [')
    assert read_sweep(tmp_path) == {}
    assert "only the jobs that were started are known" in capsys.readouterr().err
    assert job_states(tmp_path, live=False) == []


class TestSlurm:
    @pytest.mark.parametrize(("typed", "accelerators", "gpus"), [([], ["cpu"], None), ([], ["cpu", "gpu"], 1),
                             (["hydra.launcher.gpus_per_node=1"], ["cpu"], 1)])  # fmt: skip
    def test_jobs_on_the_cpu_ask_for_no_gpus(self, typed, accelerators, gpus):
        config = OmegaConf.create({"hydra": {"launcher": {"gpus_per_node": 1}, "overrides": {"hydra": typed}}})
        slurm.ask_for_no_gpus(config, [SimpleNamespace(accelerator=each) for each in accelerators])
        assert config.hydra.launcher.gpus_per_node == gpus

    @pytest.mark.parametrize("code", [-signal.SIGUSR2, RESUMABLE])
    def test_a_job_that_is_stopped_before_it_writes_its_status_is_requeued(self, code, tmp_path, monkeypatch):
        """By the default action of the signal, or by its own handler, which it has before it records anything."""
        requeued = []
        monkeypatch.setattr(slurm, "requeue", requeued.append)
        write_status(tmp_path, "running")
        with pytest.raises(SystemExit, match=str(RESUMABLE)):
            slurm.settle(tmp_path, code, [signal.SIGUSR2])
        assert requeued == [tmp_path]
        assert read_status(tmp_path)["reason"] == "stopped by SIGUSR2 before it had started"

    def test_pickles_of_earlier_submissions_are_not_loaded(self, tmp_path):
        for name in ("7_0_result.pkl", "7_submitted.pkl"):
            (tmp_path / ".submitit" / "7").mkdir(parents=True, exist_ok=True)
            (tmp_path / ".submitit" / "7" / name).touch()
        slurm.discard_results(tmp_path)
        assert [path.name for path in (tmp_path / ".submitit" / "7").iterdir()] == ["7_submitted.pkl"]


def test_a_bug_while_a_sweep_starts_prints_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("MY_API_KEY", "q4wertyuiop")

    def plan(*given):
        raise RuntimeError("q4wertyuiop")

    monkeypatch.setattr(hook, "_sweep_folder", plan)
    with pytest.raises(SystemExit) as ended:
        hook.SweepLifecycle().on_multirun_start(OmegaConf.create({"hydra": {"launcher": {}}}))
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "RuntimeError: ..." in error
    assert "q4wertyuiop" not in error
