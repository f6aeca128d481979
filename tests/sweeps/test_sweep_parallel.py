"""Parallel sweeps: GPUs of the jobs, progress, and the state after a signal or a kill."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import joblib
import pytest
from command_line import TINY, processes_in
from omegaconf import OmegaConf
from sweeps import ENDLESS, rank_one, status_of, statuses, sweep, training, wait_for

from fer_lightning.runtime.folder_lock import lock_folder
from fer_lightning.runtime.run_folder import write_status
from fer_lightning.sweeps import devices, folder, job, launchers, progress
from fer_lightning.sweeps.devices import Need

PARALLEL = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")


@pytest.fixture
def slots_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def acquire(need: Need, per_device: int = 1) -> dict[str, int] | None:
    """Try once."""
    give_up = iter((False, True))
    return devices.acquire(need, per_device, lambda: next(give_up))


@pytest.mark.parametrize(
    ("given", "masked", "expected"),
    [
        (1, None, Need(1, ("0", "1", "2", "3"))),
        (2, "4,5,6,7", Need(2, ("4", "5", "6", "7"))),
        ("auto", None, Need(4, ("0", "1", "2", "3"))),
        (-1, "GPU-a,GPU-b", Need(2, ("GPU-a", "GPU-b"))),
        ([1, 3], "4,5,6,7", Need(2, ("5", "7"), named=True)),
        ("1,3", None, Need(2, ("1", "3"), named=True)),
    ],
)
def test_a_job_needs_what_its_trainer_names(monkeypatch, given, masked, expected):
    monkeypatch.setattr(devices, "visible_gpus", lambda: 2 if masked == "GPU-a,GPU-b" else 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if masked:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", masked)
    assert devices.need(OmegaConf.create({"accelerator": "auto", "devices": given})) == expected
    on_cpu = devices.need(OmegaConf.create({"accelerator": "cpu", "devices": 2}))
    assert on_cpu == Need(2, ())


GPUS = tuple(map(str, range(8)))


@pytest.mark.parametrize(
    ("needs", "per_device", "cores", "expected"),
    [
        ([Need(1, GPUS)], 1, 4, 8),
        ([Need(2, GPUS)], 1, 4, 4),
        ([Need(1, GPUS)], 3, 4, 24),
        ([Need(3, GPUS)], 1, 4, 2),
        ([Need(1, GPUS), Need(2, GPUS)], 1, 4, 8),
        ([Need(1, ("0",), named=True), Need(1, ("1",), named=True)], 1, 4, 2),
        ([Need(8, GPUS)], 1, 64, 1),
        ([Need(1, ())], 1, 4, 4),
        ([Need(1, ()), Need(2, ())], 1, 4, 2),
        ([Need(2, ())], 1, 1, 1),
    ],
)
def test_number_of_jobs_at_once(needs, per_device, cores, expected):
    assert devices.jobs_at_once(needs, per_device, cores) == expected


def test_a_gpu_is_free_again_when_its_job_has_ended(slots_folder):
    """The slot belongs to the job's process: it outlives the process that started the job."""
    slots = acquire(Need(1, ("0",)))
    running = subprocess.Popen(["sleep", "60"], pass_fds=list(slots.values()))
    devices.release(slots)
    try:
        assert acquire(Need(1, ("0",))) is None
        assert list(acquire(Need(1, ("0", "1")))) == ["1"]
    finally:
        running.kill()
        running.wait()
    assert list(acquire(Need(1, ("0",)))) == ["0"]


def test_slots_are_acquired_all_or_none(slots_folder):
    first = acquire(Need(1, ("0", "1")))
    assert acquire(Need(2, ("0", "1"))) is None
    assert list(acquire(Need(1, ("0", "1")))) == ["1"], "the job that got one of two released it"
    devices.release(first)


def test_jobs_share_a_gpu_only_with_the_same_jobs_per_device(slots_folder):
    pair = Need(1, ("0", "1"))
    assert [list(acquire(pair, per_device=2)) for _ in range(4)] == [["0"], ["1"], ["0"], ["1"]], "spread out first"
    assert acquire(pair, per_device=2) is None
    assert list(acquire(Need(1, ("2",)), per_device=2)) == ["2"]
    assert acquire(Need(1, ("2",)), per_device=1) is None
    assert list(acquire(Need(1, ("3",)), per_device=1)) == ["3"]
    assert acquire(Need(1, ("3",)), per_device=2) is None


@pytest.mark.slow
def test_large_and_small_jobs_all_run_and_never_share_a_gpu(slots_folder):
    """Two-GPU jobs among one-GPU jobs: no deadlock, no GPU used twice, no job waits for ever."""
    busy: list[str] = []
    met: list[str] = []
    ended: list[int] = []
    guard = threading.Lock()

    def run(count: int) -> None:
        slots = devices.acquire(Need(count, ("0", "1")), 1, lambda: False)
        with guard:
            met.extend(set(busy) & set(slots))
            busy.extend(slots)
        time.sleep(0.05)
        with guard:
            for gpu in slots:
                busy.remove(gpu)
        devices.release(slots)
        ended.append(count)

    jobs = [threading.Thread(target=run, args=(count,), daemon=True) for count in (1, 2, 1, 2, 1)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join(30)
    assert sorted(ended) == [1, 1, 1, 2, 2]
    assert met == []


def test_the_environment_of_a_job(monkeypatch, tmp_path):
    inherited = {"LOCAL_RANK": "0", "SLURM_NTASKS": "4", "OMP_NUM_THREADS": "16", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    for name, value in {**inherited, "MINE": "kept"}.items():
        monkeypatch.setenv(name, value)
    env = job.environment(tmp_path / "sweeps" / "today", ["2", "3"], 4)
    assert "LOCAL_RANK" not in env
    assert "SLURM_NTASKS" not in env, "Lightning would believe that srun started it"
    assert (env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("2,3", "4", "4")
    assert (env["MINE"], env["WANDB_RUN_GROUP"]) == ("kept", "sweeps-today")
    assert env["PYTHONSAFEPATH"] == "1", "it imports nothing from its working directory"
    untouched = job.environment(tmp_path, [], None)
    assert (untouched["CUDA_VISIBLE_DEVICES"], untouched["OMP_NUM_THREADS"]) == ("0,1,2,3", "16")


@pytest.mark.parametrize(
    ("given", "set_by_user", "at_once", "threads"),
    [(-1, None, 3, "2"), (2, None, 2, "4"), (50, None, 3, "2"), (-1, "8", 3, None)],
)
def test_cpu_threads_are_divided_unless_the_user_set_them(monkeypatch, given, set_by_user, at_once, threads):
    """Eight cores, three jobs of two processes; the threads are those of a job."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    for name in (*job.THREAD_VARIABLES, launchers.THREADS):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    trainer = {"accelerator": "cpu", "devices": 2}
    master = OmegaConf.create({"hydra": {"launcher": {"n_jobs": given}}, "trainer": trainer, "jobs_per_device": 1})
    launchers.set_job_count(master, [OmegaConf.create(trainer)] * 3)
    assert master.hydra.launcher.n_jobs == at_once
    assert os.environ.get(launchers.THREADS) == threads


@pytest.mark.parametrize(
    ("code", "asked", "status", "reason"),
    [
        (-9, False, "failed", "killed by SIGKILL (out of memory?)"),
        (137, False, "failed", "killed by SIGKILL (out of memory?)"),
        (-11, False, "failed", "killed by SIGSEGV"),
        (3, False, "failed", "the process ended with code 3 before it could record the reason"),
        (-15, True, "interrupted", "stopped by the sweep before it could save"),
    ],
)
def test_the_sweep_records_the_end_of_a_killed_job(tmp_path, code, asked, status, reason):
    write_status(tmp_path, "running")
    job.record_end(tmp_path, code, asked)
    assert status_of(tmp_path) == {"status": status, "reason": reason}


def test_a_recorded_end_is_kept(tmp_path):
    write_status(tmp_path, "interrupted", "stopped by SIGTERM", step=12)
    job.record_end(tmp_path, 75, True)
    assert status_of(tmp_path) == {"status": "interrupted", "reason": "stopped by SIGTERM", "step": 12}


def test_a_job_that_does_not_stop_is_killed_with_all_its_processes_in(tmp_path):
    script = "trap '' TERM; sleep 61.25 & echo $! > child; sleep 61.25"
    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, start_new_session=True)
    wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip(), 10)
    until = time.time() + 1
    assert job.wait(process, lambda: until)
    assert process.returncode == -9
    child = Path("/proc", (tmp_path / "child").read_text().strip())
    wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2], 5)


def make_sweep(folder: Path, count: int) -> list[Path]:
    jobs = [folder / f"{number}-job" for number in range(count)]
    for path in jobs:
        path.mkdir(parents=True)
    plan = [{"folder": path.name, "overrides": [f"seed={number}"]} for number, path in enumerate(jobs)]
    (folder / "sweep.json").write_text(json.dumps({"jobs": plan}))
    return jobs


def test_the_view_shows_counts_epochs_reasons_and_time_left(tmp_path, capsys):
    done, half, failed, _ = make_sweep(tmp_path, 4)
    since = time.time() - 60
    write_status(done, "done")
    write_status(half, "running")
    (half / ".hydra").mkdir()
    (half / ".hydra" / "config.yaml").write_text("trainer:\n  max_epochs: 4\n")
    (half / "metrics.csv").write_text("epoch\n0\n1\n")
    write_status(failed, "failed", "optim.lr=-1: must be positive")
    states = folder.job_states(tmp_path, live=True)
    assert progress.headline(states, since) == (
        "4 jobs: 1 done, 1 running, 1 failed, 1 waiting; about 36 s left"  # 2.5 jobs in 60 s, 1.5 to go
    )
    progress.show(tmp_path)
    shown = capsys.readouterr().out
    assert "interrupted" in shown, "nobody holds its lock: it was killed"
    assert "optim.lr=-1: must be positive" in shown
    with lock_folder(half), lock_folder(tmp_path):
        progress.show(tmp_path)
    assert "epoch 2/4" in capsys.readouterr().out


def test_without_a_terminal_there_is_a_line_for_every_change(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.05)
    first, second = make_sweep(tmp_path, 2)
    write_status(first, "failed", "last time")
    shown = progress.Progress(tmp_path, redrawn=False)
    shown.start()
    time.sleep(0.1)
    write_status(first, "running")
    wait_for(lambda: shown.printed[first].status == "running", 10)
    write_status(first, "done")
    write_status(second, "failed", "bad luck")
    shown.stop()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[sweep] job 1 of 2: seed=0"
    assert lines[1].startswith("[sweep] job 1 of 2 done in 0 s; 2 jobs: 1 done, 1 ")
    assert lines[2].startswith("[sweep] job 2 of 2 failed: bad luck; ")
    assert len(lines) == 3


@pytest.mark.nightly
def test_a_terminal_shows_one_redrawn_table(tmp_path):
    """In a pseudo-terminal, by a real sweep whose jobs all fail at once."""
    terminal, inside = os.openpty()
    line = [sys.executable, "-m", "fer_lightning", "-m", *PARALLEL, *TINY, "optim.lr=-1,-2", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=inside, stderr=inside, env={**os.environ, "TERM": "xterm"})
    os.close(inside)
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 1
    assert b"2 jobs: 2 failed" in shown
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1, "the cursor comes back"
    assert b"[sweep] job 1" not in shown


@pytest.mark.slow
def test_parallel_jobs_write_separate_output(forked, tmp_path):
    """Loader workers included, which joblib's own processes could not start (hydra #964); a failing job stops none."""
    outcome = forked(
        "-m", *PARALLEL, *TINY, "data.num_workers=1", "data.source.images=400,1,420",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert outcome.code == 1, outcome.out + outcome.err
    folder = tmp_path / "sweep"
    assert statuses(folder) == ["done", "failed", "done"]
    assert outcome.json["failed"] == ["1-none-seed0"]
    assert "epoch 1/1" not in outcome.out
    for name in ("0-none-seed0", "2-none-seed0"):
        assert (folder / name / "output.log").read_text().count("epoch 1/1") == 1
    assert "2 running" in outcome.out or outcome.out.index("job 2 of 3:") < outcome.out.index("job 1 of 3 done")
    assert "[sweep] failed: 1-none-seed0: data.source.images=1" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "to_group", "code"),
    [("SIGTERM", False, 75), pytest.param("SIGINT", True, 130, marks=pytest.mark.nightly)],
)
def test_after_a_signal_every_job_saves_and_the_sweep_resumes(forked, tmp_path, signum, to_group, code):
    """Ctrl-C in a terminal reaches the workers, too."""
    folder = tmp_path / "sweep"
    with sweep(tmp_path, *PARALLEL, *TINY, "trainer.max_epochs=12", "seed=0,1,2", "hydra.sweep.dir=sweep") as running:
        wait_for(lambda: len(training(folder)) == 2)
        (os.killpg if to_group else os.kill)(running.pid, getattr(signal, signum))
        assert running.wait(90) == code
        wait_for(lambda: processes_in(tmp_path) == [], 20)
    printed = (tmp_path / "terminal").read_text()
    assert "Traceback" not in printed
    assert "not started: 1 of 3 jobs" in printed
    assert "python -m fer_lightning.sweep resume sweep" in printed
    assert statuses(folder) == ["interrupted", "interrupted"]
    outcome = forked("resume", "sweep", module="fer_lightning.sweep")
    assert outcome.code == 0, outcome.out + outcome.err
    assert statuses(folder) == ["done"] * 3
    for name in ("0-none-seed0", "1-none-seed1"):
        rows = (folder / name / "metrics.csv").read_text().splitlines()
        assert len(rows) == 13, "every epoch once"
        assert (folder / name / "output.log").read_text().count("epoch 1/12") == 1, "it resumed"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param("basic", marks=pytest.mark.nightly), "parallel"])
def test_when_the_sweep_is_killed_its_jobs_save_and_end(tmp_path, launcher):
    folder = tmp_path / "sweep"
    with sweep(tmp_path, f"hydra/launcher={launcher}", *TINY, ENDLESS, "seed=0,1", "hydra.sweep.dir=sweep") as running:
        wait_for(lambda: training(folder))
        running.kill()
        wait_for(lambda: processes_in(tmp_path) == [], 60)
    assert set(statuses(folder)) == {"interrupted"}


@pytest.mark.slow
def test_a_killed_rank_ends_its_job_alone(tmp_path):
    """Within a minute, with nothing left behind; and the next job runs."""
    folder = tmp_path / "sweep"
    two = ("trainer.devices=2", "trainer.max_epochs=500,1")
    with sweep(tmp_path, *TINY, *two, "hydra/launcher=parallel", "hydra.sweep.dir=sweep") as running:
        wait_for(lambda: training(folder))
        os.kill(rank_one(tmp_path), signal.SIGKILL)
        wait_for(lambda: status_of(folder / "0-none-seed0")["status"] == "failed", 60)
        assert running.wait(400) == 1
        wait_for(lambda: processes_in(tmp_path) == [], 20)
    assert statuses(folder) == ["failed", "done"]
    assert "[sweep] failed: 0-none-seed0: " in (tmp_path / "terminal").read_text()


@pytest.mark.slow
def test_a_killed_job_is_reported_and_run_again(forked, tmp_path):
    folder = tmp_path / "sweep"
    with sweep(tmp_path, *PARALLEL, *TINY, "trainer.max_epochs=6", "seed=0,1", "hydra.sweep.dir=sweep") as running:
        wait_for(lambda: len(training(folder)) == 2)
        victims = [pid for pid in processes_in(tmp_path) if os.getsid(pid) == pid and pid != running.pid]
        os.kill(min(victims), signal.SIGKILL)
        assert running.wait(400) == 1
    assert sorted(statuses(folder)) == ["done", "failed"]
    assert "killed by SIGKILL (out of memory?)" in (tmp_path / "terminal").read_text()
    assert forked("resume", "sweep", module="fer_lightning.sweep").code == 0
    assert statuses(folder) == ["done", "done"]
