"""One job of a multirun: run it in a process of its own, and record its failure instead of raising it."""

import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fer_lightning.config.schema import validate
from fer_lightning.config.secrets import without_secrets
from fer_lightning.runtime import slurm_task
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.folder_lock import in_use
from fer_lightning.runtime.run_folder import read_status, write_status
from fer_lightning.sweeps import devices, halving, job, slurm
from fer_lightning.sweeps.folder import stop_deadline
from fer_lightning.sweeps.launchers import THREADS, is_parallel, is_serial

log = logging.getLogger(__name__)


def run_job(cfg: DictConfig) -> float:
    """Run one job of a multirun in a new process, unless it is done; failures are recorded in its folder, not raised.

    In a search, run it to the end of the present rung, unless it has trained that far or was stopped.

    Returns:
        Its ``monitor``ed validation score for sweepers that optimise, NaN when it has none.
    """
    hydra = HydraConfig.get()
    folder, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir).absolute()
    is_first = not slurm_task.inside() or slurm_task.first_task()
    _ignore_signals_in_worker()
    search = halving.read_search(sweep) if halving.is_search(hydra.sweeper) else None
    done = read_status(folder)["status"] == "done"
    if done and search is None and not cfg.trainer.fast_dev_run and not _has_results(folder, cfg.test):
        log.warning("job %s: is done, but its results are missing or damaged; they are made again", folder.name)
        done = False
    if search is not None:
        done = not search.is_active(hydra.job.num) or search.has_trained(folder)
    if not done and not _must_stop(sweep) and (not is_first or _wait_until_free(folder, sweep)):
        try:
            _run(cfg, hydra, folder, sweep, is_first, None if search is None else search.pause)
        except Exception as error:  # a full disk, a missing program: fails this job, not the sweep
            if not isinstance(error, UserError):
                log.exception("job %s", folder.name)
            if is_first:
                _record_failure(folder, one_line(error))
    if read_status(folder)["status"] != "done" or not (folder / "metrics.json").exists():  # fast_dev_run tests nothing
        return math.nan
    try:
        value: Any = read_json(folder / "metrics.json").get(cfg.monitor)
    except UserError as error:
        log.warning("%s", error)
        return math.nan
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _run(cfg: DictConfig, hydra: Any, folder: Path, sweep: Path, is_first: bool, pause: int | None) -> None:
    validate(cfg, hydra.runtime.choices, hydra.searchpath)
    parallel = is_parallel(hydra.launcher)
    need = devices.need(cfg.trainer)
    slots = devices.acquire(need, cfg.jobs_per_device, lambda: _must_stop(sweep)) if parallel else {}
    if slots is None:
        return
    try:
        if is_first:
            write_status(folder, "running")
        saved = any((folder / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))
        resume = cfg.resume is None or saved
        threads = max(1, int(os.environ[THREADS]) // need.count) if parallel and THREADS in os.environ else None
        process = job.start(
            job.command(hydra, folder, resume, pause),
            job.environment(sweep, () if need.named else list(slots), threads),
            None if is_serial(hydra.runtime.choices) else folder / "output.log",
            list(slots.values()),
            fork=not need.gpus and not slurm_task.inside(),
        )
        signals = job.forward_signals(process) if slurm_task.inside() else []
        stop_requested = job.wait(process, lambda: _deadline(sweep))
    finally:
        devices.release(slots)
    if slurm_task.inside():
        slurm.settle(folder, process.wait(), signals)
    if is_first:
        job.record_end(folder, process.wait(), stop_requested)


def _has_results(folder: Path, test: bool) -> bool:
    """Whether a run has what a comparison needs, or, without a test, the scores of the validation."""
    from fer_lightning.evaluation import run_files  # imports pandas
    from fer_lightning.sweeps import trials

    try:
        if test:
            run_files.read_predictions(folder, run_files.read_metrics(folder))
            return True
        trials.check_trial(folder, read_json(folder / "metrics.json"))
    except (FileNotFoundError, UserError, ValueError):
        return False
    return (folder / "predictions.csv").is_file()


def _record_failure(folder: Path, reason: str) -> None:
    try:
        write_status(folder, "failed", without_secrets(reason))
    except OSError as error:  # a full disk must not end the sweep
        log.warning("%s: status.json could not be written (%s)", folder, error)


def _wait_until_free(folder: Path, sweep: Path) -> bool:
    """Wait for a process of an earlier attempt to save and end; False when it still runs after the grace period."""
    until = time.monotonic() + job.GRACE_SECONDS + 10
    while in_use(folder):
        if time.monotonic() > until or _must_stop(sweep):
            return False
        time.sleep(job.POLL_SECONDS)
    return True


def _ignore_signals_in_worker() -> None:
    """In a worker process, ignore Ctrl-C and a group-wide SIGTERM: the sweep's process stops the jobs."""
    if os.environ.get(job.PARENT) != str(os.getpid()) and not slurm_task.inside():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda signum, frame: None)  # SIG_IGN would be inherited by the job


def _must_stop(sweep: Path) -> bool:
    return _deadline(sweep) is not None


def _deadline(sweep: Path) -> float | None:
    """When the job must have ended. A worker exits if its sweep's process has ended; its job then saves and stops."""
    if os.environ.get(job.PARENT) not in (str(os.getpid()), str(os.getppid())) and not slurm_task.inside():
        os._exit(1)
    return stop_deadline(sweep)
