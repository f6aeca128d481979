"""The process of a job: ``python -m fer_lightning`` in a process group of its own, watched until it has ended."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fer_lightning.config import safety
from fer_lightning.runtime import imports, slurm_task
from fer_lightning.runtime.forked import ForkedProcess
from fer_lightning.runtime.run_folder import RESUMABLE, read_status, write_status

PARENT = "FER_LIGHTNING_PARENT"
"""Environment variable: id of the parent process; this process stops when the parent has ended."""

GRACE_SECONDS = 30.0
"""How long a job may take to save after it was asked to stop, in seconds."""

POLL_SECONDS = 0.25

DISTRIBUTED_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "GROUP_RANK",
    "RANK",
    "PL_GLOBAL_SEED",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SWEEP_ONLY = (
    "hydra.mode",
    "hydra.sweep",
    "hydra.run.dir",
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.output_subdir",
    "hydra.callbacks.summary",
)


def command(hydra: Any, folder: Path, resume: bool, pause: int | None = None) -> list[str]:
    """The command line of a job: the sweep's, with this job's overrides and folder.

    Args:
        hydra: ``HydraConfig`` of the job.
        folder: the job's run folder.
        resume: resume from the checkpoints in the folder.
        pause: epochs after which it pauses; None to train to the end.
    """
    line = [sys.executable, "-m", "fer_lightning", "--config-name", hydra.job.config_name]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            line += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != safety.CONF_DIR:
            line += ["--config-path", source.path]
    line += list(hydra.overrides.task)
    line += [override for override in hydra.overrides.hydra if not override.lstrip("+~").startswith(SWEEP_ONLY)]
    line += ["resume=auto"] if resume else []
    line += [f"pause_after_epochs={pause}"] if pause is not None else []
    if slurm_task.inside() and not slurm_task.first_task():
        line.append("hydra.output_subdir=null")  # one of the tasks writes it
    return [*line, f"hydra.run.dir={quoted(folder)}", "hydra.mode=RUN"]


def quoted(path: Path) -> str:
    """Quote a path for Hydra's override grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def environment(sweep: Path, gpus: Sequence[str], threads: int | None) -> dict[str, str]:
    """The environment of a job.

    Args:
        sweep: the sweep's folder.
        gpus: the GPUs it may use; all visible ones when empty.
        threads: CPU threads of each of its processes; unchanged when None.
    """
    kept = {**os.environ, **imports.environment()}
    if not slurm_task.inside():  # outside a SLURM job, Lightning would take these for the variables of srun
        foreign = [key for key in kept if key in DISTRIBUTED_VARIABLES or key.startswith("SLURM_")]
        for key in foreign:
            del kept[key]
    if gpus:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if threads is not None:
        kept |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    group = sweep.absolute()
    return {"WANDB_RUN_GROUP": f"{group.parent.name}-{group.name}", **kept, PARENT: str(os.getpid())}


Process = subprocess.Popen[bytes] | ForkedProcess


def start(line: list[str], env: dict[str, str], log: Path | None, keep_open: Sequence[int], fork: bool) -> Process:
    """Start a job.

    Args:
        line: its command line.
        env: its environment.
        log: the file of its output; the terminal when None.
        keep_open: file descriptors that stay open until it ends.
        fork: from a process that has imported torch, which all jobs without a GPU share; in place of a fresh one.
    """
    if log is None:
        return _start(line, env, (1, 2), keep_open, fork)
    with log.open("ab") as output:
        return _start(line, env, (output.fileno(), output.fileno()), keep_open, fork)


def _start(
    line: list[str], env: dict[str, str], output: tuple[int, int], keep_open: Sequence[int], fork: bool
) -> Process:
    if fork:
        assert not keep_open
        return ForkedProcess(line[2], line[3:], Path.cwd(), env, output)
    return subprocess.Popen(
        line, env=env, start_new_session=True, pass_fds=keep_open, stdout=output[0], stderr=output[1]
    )


def wait(process: Process, deadline: Callable[[], float | None]) -> bool:
    """Wait until a job has ended, and kill all processes that it leaves.

    As soon as ``deadline()`` returns a time, SIGTERM asks the job's first process to save and stop (it stops the
    others); what still runs at that time is killed.

    Returns:
        Whether it was asked to stop.
    """
    stop_requested = False
    try:
        while process.poll() is None:
            until = deadline()
            if until is not None and time.time() > until:
                break
            if until is not None and not stop_requested:
                process.terminate()
                stop_requested = True
            time.sleep(POLL_SECONDS)
    finally:
        _kill_group(process.pid)
        process.wait()
    return stop_requested


def record_end(folder: Path, code: int, stop_requested: bool) -> None:
    """Complete ``status.json`` for a process that could not write it; a finished status is kept.

    Args:
        folder: the job's run folder.
        code: the return code, negative for a signal.
        stop_requested: the sweep had asked it to stop.
    """
    if read_status(folder)["status"] != "running":
        return
    if stop_requested or code == RESUMABLE:
        reason = "stopped by the sweep before it could save" if stop_requested else "stopped"
        write_status(folder, "interrupted", reason)
        return
    signum = -code if code < 0 else code - 128 if code in (128 + signal.SIGKILL, 128 + signal.SIGTERM) else None
    if signum is None:
        write_status(folder, "failed", f"the process ended with code {code} before it could record the reason")
        return
    hint = " (out of memory?)" if signum == signal.SIGKILL else ""
    write_status(folder, "failed", f"killed by {signal.Signals(signum).name}{hint}")


def forward_signals(process: Process) -> list[int]:
    """Forward a scheduler's signals to the job; returns the list to which received signals are appended."""
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        process.send_signal(signum)

    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(signum, forward)
    return received


def stop_with_parent() -> None:
    """In a job: save and stop when the process that started it has ended, for whatever reason."""
    parent = os.environ.get(PARENT)
    if parent is None or os.getsid(0) != os.getpid():  # not a job of a sweep, or one of a job's further processes
        return

    forked_by = multiprocessing.parent_process()  # os.getppid() is then the process that was forked

    def watch() -> None:
        while str(os.getppid()) == parent if forked_by is None else forked_by.is_alive():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        _kill_group(os.getpgrp())

    threading.Thread(target=watch, daemon=True, name="stop_with_parent").start()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
