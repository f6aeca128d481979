"""SLURM: requeueing by the tasks of a job, and how the submitting process waits for its jobs.

``hydra/launcher=slurm`` (hydra-submitit-launcher) submits a sweep as one job array. SLURM starts one task for each
device of a job; in each, ``run_job`` starts one process of the run, and Lightning joins these to one group.
"""

import logging
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, walk, write_json
from fer_lightning.runtime.run_folder import RESUMABLE, read_status, write_status
from fer_lightning.runtime.slurm_task import first_task, tasks

log = logging.getLogger(__name__)

GRACE_SECONDS = 15.0
"""How long the first process may take to record why a run failed before the job is ended, in seconds."""

POLL_SECONDS = 10.0
"""Interval at which the submitting process checks for a job's result and for the job in the queue, in seconds."""


def settle(folder: Path, code: int, signals: Sequence[int]) -> None:
    """After this task's process of a run has ended: requeue the job, or end it when its other tasks would hang.

    SIGUSR1 and SIGUSR2 announce the job's time limit: it is requeued. SIGTERM comes from ``scancel``, or from a
    preemption, after which SLURM requeues the job itself.

    Args:
        folder: the run folder.
        code: the process's return code.
        signals: the signals that this task received.

    Raises:
        SystemExit: so that the job ends without a result, with which the submitting process would count it as over.
    """
    if first_task():
        # By the signal itself, or by the run's own handler, which it has before it records anything.
        stopped = -code in signals or (code == RESUMABLE and signals)
        if stopped and read_status(folder)["status"] == "running":
            name = signal.Signals(signals[0]).name
            write_status(folder, "interrupted", f"stopped by {name} before it had started", step=0)
        if read_status(folder)["status"] == "interrupted":
            if signals and signal.SIGTERM not in signals:
                requeue(folder)
            raise SystemExit(RESUMABLE)
    elif code not in (0, RESUMABLE) and not _has_ended(folder):
        reason = f"process {os.environ['SLURM_PROCID']} of {tasks()} ended with code {code}"
        write_status(folder, "failed", reason)
        raise SystemExit(1)  # srun then ends the other tasks: SLURM_KILL_BAD_EXIT


def requeue(folder: Path) -> None:
    """Put this job back into the queue, to resume in ``folder``; fail it if it made no progress since the last time."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the plain id of one of an array's jobs is that of the array, too
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format(**os.environ)
    record = folder / "requeued.json"
    try:
        before = read_json(record)
    except (FileNotFoundError, UserError):
        before = None
    now = {"job": job, "step": read_status(folder).get("step") or 0}
    if now == before:
        reason = f"requeued, and stopped again at step {now['step']}; raise hydra.launcher.timeout_min"
        write_status(folder, "failed", reason, step=now["step"])
        return
    write_json(record, now)
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if answer.returncode:
        log.warning("SLURM job %s cannot be requeued: %s", job, answer.stderr.strip())
    else:
        log.info("SLURM job %s is requeued at step %d", job, now["step"])


def discard_results(sweep: Path) -> None:
    """Remove the results of earlier submissions, pickles that submitit would load for a job of the same number."""
    for place, _, files in walk(sweep / ".submitit"):
        for name in files:
            if name.endswith("_result.pkl"):
                Path(place, name).unlink()


def ask_for_no_gpus(config: DictConfig, trainers: Sequence[DictConfig]) -> None:
    """Submit jobs that all run on the CPU without a request for GPUs, which some clusters refuse.

    Args:
        config: the composed multirun; its ``hydra.launcher.gpus_per_node`` is replaced.
        trainers: the ``trainer`` group of each planned job; empty for sweepers that choose jobs as they run.
    """
    typed = any("gpus_per_node" in line for line in config.hydra.overrides.hydra)
    if not typed and all(trainer.accelerator == "cpu" for trainer in trainers or [config.trainer]):
        config.hydra.launcher.gpus_per_node = None


def prepare_submission() -> None:
    """Patch submitit: report refusals in one line, wait by SLURM's queue, and survive lost jobs.

    submitit asks the accounting (``sacct``) whether a job without a result is over. Without accounting it waits for a
    cancelled job forever; with accounting it raises, and the sweep ends without its table.

    Raises:
        UserError: SLURM's commands are missing.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("hydra/launcher=slurm: no sbatch and srun here; start the sweep on a machine of the cluster")
    from hydra.core.utils import JobReturn, JobStatus
    from submitit.core.utils import FailedJobError
    from submitit.slurm import slurm

    class SlurmJob(slurm.SlurmJob):
        def results(self) -> list[Any]:
            first = self.task(0)
            queued = True
            while queued and not first.paths.result_pickle.exists():
                queued = _is_queued(self.job_id)
                time.sleep(POLL_SECONDS)  # also after the job has left the queue: files of other machines appear late
            outcome, result = "lost", "it left the queue without a result"
            if first.paths.result_pickle.exists():
                outcome, result = first._get_outcome_and_result()
            if outcome == "success":
                return [result]
            log.warning("SLURM job %s: %s", self.job_id, result)  # its progress is in its folder
            return [JobReturn(status=JobStatus.COMPLETED, _return_value=math.nan)]

    class SlurmExecutor(slurm.SlurmExecutor):
        job_class = SlurmJob

        def _submit_command(self, command: str) -> Any:
            try:
                job = super()._submit_command(command)
            except FailedJobError as error:
                message = " ".join(str(error).replace("sbatch: error: ", "").split())
                hint = "ask for what the cluster has: hydra.launcher.partition, .gpus_per_node (null: none) and so on"
                raise UserError(f"hydra/launcher=slurm: refused ({message}); {hint}") from error
            print(f"[sweep] SLURM job {job.job_id}", flush=True)
            return job

    slurm.SlurmJob, slurm.SlurmExecutor = SlurmJob, SlurmExecutor  # type: ignore[misc]


def _is_queued(job: str) -> bool:
    """Whether a job waits or runs; also true while SLURM does not answer."""
    answer = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True)
    return bool(answer.stdout.strip()) if answer.returncode == 0 else "Invalid job id" not in answer.stderr


def _has_ended(folder: Path) -> bool:
    """Whether the first process records within ``GRACE_SECONDS`` how the run ended."""
    until = time.monotonic() + GRACE_SECONDS
    while read_status(folder)["status"] == "running":
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True
