"""Sweeps on a real SLURM of two nodes, which ``.ci/slurm`` starts (``make test-slurm``), and the rules of its tasks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import TINY

SMALL = ("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.sweep.subdir=${hydra:job.num}")


class Sweep:
    """A sweep that waits for its SLURM jobs in a process of its own."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder = folder / "sweep"
        self.output = folder / f"output{len(list(folder.glob('output*')))}.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until(self, holds: Callable[[], object], seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until or (self.process.poll() is not None and not holds()):
                pytest.fail(f"{self.output.read_text()}\n{_squeue()}\n{self.logs()}")
            time.sleep(0.2)

    def job(self, number: int) -> str:
        """SLURM's id of a job of the sweep."""
        self.wait_until(lambda: "[sweep] SLURM job" in self.output.read_text())
        match = re.search(r"SLURM job (\d+)", self.output.read_text())
        assert match is not None
        return f"{match.group(1)}_{number}"

    def status(self, number: int) -> dict:
        file = self.folder / str(number) / "status.json"
        return json.loads(file.read_text()) if file.exists() else {"status": "missing"}

    def says(self, number: int, text: str) -> bool:
        """Whether the run of a job has logged a text."""
        file = self.folder / str(number) / "train.log"
        return file.exists() and text in file.read_text()

    def logs(self) -> str:
        files = [*self.folder.rglob("output.log"), *self.folder.rglob("*_log.out")]
        return "\n".join(f"== {file}\n{file.read_text()[-3000:]}" for file in sorted(files))

    def end(self, seconds: float = 500) -> tuple[int, dict]:
        """The sweep's exit code and its last line."""
        self.wait_until(lambda: self.process.poll() is not None, seconds)
        last = self.output.read_text().strip().splitlines()[-1]
        assert last.startswith("{"), f"{self.output.read_text()}\n{self.logs()}"
        return self.process.returncode, json.loads(last)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Start ``python -m fer_lightning -m hydra/launcher=slurm ...``; ended with the test."""
    assert _run("sinfo", "--noheader").strip(), "no SLURM answers; make test-slurm starts one"
    started: list[Sweep] = []

    def start(*overrides: str, command: tuple[str, ...] = ()) -> Sweep:
        command = command or (
            "fer_lightning", "-m", "hydra/launcher=slurm", *TINY, *SMALL, "hydra.sweep.dir=sweep", *overrides,
        )  # fmt: skip
        started.append(Sweep(tmp_path, *command))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
    _run("scancel", "--me")


@pytest.mark.slurm
def test_faults_of_one_job_leave_the_others_running(sweep):
    """What goes wrong in one job leaves the others alone, and the sweep ends."""
    running = sweep(
        "trainer.num_nodes=2", "trainer.max_epochs=8", "data.source.images=1,400,401,402",
        "hydra.launcher.array_parallelism=1",
    )  # fmt: skip
    _run("scancel", running.job(3))
    running.wait_until(lambda: running.says(1, "epoch 1/8"))
    [victim] = _processes(running.folder / "1", task=1)
    os.kill(victim, signal.SIGKILL)
    running.wait_until(lambda: running.status(1)["status"] != "running", 60)
    running.wait_until(lambda: not _processes(running.folder / "1"), 60)
    code, line = running.end()
    assert (code, line["failed"], line["unfinished"]) == (1, ["0", "1"], ["3"]), running.logs()
    assert "data.source.images=1" in running.status(0)["reason"]
    assert "process" in running.status(1)["reason"]
    assert running.status(2)["status"] == "done"
    assert json.loads((running.folder / "2" / "metrics.json").read_text())["devices"] == 2


@pytest.mark.slurm
def test_requeued_and_cancelled_jobs_resume_to_the_same_weights(sweep, tmp_path):
    running = sweep(
        "tags=[requeued],[cancelled],[undisturbed]", "trainer.devices=2", "trainer.max_epochs=8",
        "hydra.launcher.timeout_min=30", "hydra.launcher.partition=main",
    )  # fmt: skip
    running.wait_until(lambda: running.says(0, "epoch 1/8"))
    _run("scancel", "--signal=USR1", running.job(0))
    running.wait_until(lambda: running.says(1, "epoch 1/8"))
    _run("scancel", running.job(1))
    code, line = running.end()
    assert (code, line["failed"], line["unfinished"]) == (75, [], ["1"]), running.logs()
    _assert_submitted_with(
        running.folder, "array=0-2%3", "time=30", "partition=main", "ntasks-per-node=2", "nodes=1", "requeue",
        "signal=USR2@120",
    )  # fmt: skip
    assert json.loads((running.folder / "0" / "requeued.json").read_text())["step"] > 0
    assert running.says(0, "resuming from")
    assert not (running.folder / "1" / "requeued.json").exists()
    assert running.status(1)["status"] == "interrupted"
    assert running.status(1)["step"] > 0
    done = (running.folder / "2" / "metrics.json").stat().st_mtime_ns

    code, line = sweep(command=("fer_lightning.sweep", "resume", "sweep")).end()
    assert (code, line["jobs"], line["failed"], line["unfinished"]) == (0, 3, [], []), running.logs()
    assert (tmp_path / line["report"] / "summary.csv").exists()
    assert running.says(1, "resuming from")
    assert (running.folder / "2" / "metrics.json").stat().st_mtime_ns == done, "a finished job is left alone"
    expected = _weights(running.folder / "2")
    metrics = json.loads((running.folder / "2" / "metrics.json").read_text())
    assert metrics["devices"] == 2
    assert metrics["train/steps"] == 8 * 288 // 32, "the global batch is that of one device"
    assert metrics["test/n"] == len(pd.read_csv(running.folder / "2" / "predictions.csv"))
    for number in (0, 1):
        weights = _weights(running.folder / str(number))
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
        for file in ("metrics.csv", "predictions.csv"):
            written = (running.folder / str(number) / file).read_text()
            if file == "predictions.csv":
                assert written == (running.folder / "2" / file).read_text()
            else:
                assert list(pd.read_csv(running.folder / str(number) / file)["epoch"]) == list(range(8))


@pytest.mark.slurm
def test_the_time_limit_requeues_until_there_is_no_progress(sweep):
    """One job trains past its limit and finishes in a later turn; one never comes to its first step."""
    running = sweep(
        "seed=0,1", "trainer.max_epochs=100000", "trainer.max_time={seconds:50}",
        "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=1",
    )  # fmt: skip
    for turn in (1, 2):
        running.wait_until(lambda turn=turn: _starts(running, 1) == turn and _processes(running.folder / "1"))
        _run("scancel", "--signal=USR2", running.job(1))
        running.wait_until(lambda: running.status(1)["status"] in ("interrupted", "failed"))
    running.wait_until(lambda: (running.folder / "0" / "requeued.json").exists())
    _run("scontrol", "update", f"JobId={running.job(0)}", "TimeLimit=9")  # one turn more is enough
    code, line = running.end()
    assert (code, line["failed"], line["unfinished"]) == (1, ["1"], []), running.logs()
    assert "stopped again at step 0; raise hydra.launcher.timeout_min" in running.status(1)["reason"]
    assert running.status(0)["status"] == "done"
    assert json.loads((running.folder / "0" / "requeued.json").read_text())["step"] > 0
    epochs = list(pd.read_csv(running.folder / "0" / "metrics.csv")["epoch"])
    assert epochs == list(range(len(epochs))), "every epoch once, across the turns"


@pytest.mark.slurm
def test_a_refusal_by_slurm_is_one_line(sweep, process):
    outcome = process("-m", "hydra/launcher=slurm", *TINY, *SMALL, "hydra.launcher.partition=nowhere")
    assert outcome.code == 2
    assert "invalid partition specified: nowhere" in outcome.error
    assert "hydra.launcher.partition" in outcome.error


def test_without_slurm_the_sweep_is_refused(forked, tmp_path):
    outcome = forked("-m", "hydra/launcher=slurm", *TINY, PATH=str(tmp_path))
    assert outcome.code == 2
    assert "no sbatch" in outcome.error


def _assert_submitted_with(sweep: Path, *flags: str) -> None:
    [script] = sweep.rglob("*_submission.sh")
    lines = script.read_text().splitlines()
    assert [flag for flag in flags if f"#SBATCH --{flag}" not in lines] == []


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _squeue() -> str:
    return _run("squeue", "--all")


def _starts(running: Sweep, number: int) -> int:
    """How often SLURM has started a job of the sweep."""
    logs = running.folder.glob(f".submitit/*_{number}/*_0_log.out")
    return sum(log.read_text().count("Starting with JobEnvironment") for log in logs)


def _processes(folder: Path, task: int | None = None) -> list[int]:
    """The processes of a run that SLURM's tasks, or one of them, have started."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"hydra.run.dir='{folder}'".encode() in (entry / "cmdline").read_bytes():
                environment = (entry / "environ").read_bytes().split(b"\0")
                if task is None or f"SLURM_PROCID={task}".encode() in environment:
                    pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
