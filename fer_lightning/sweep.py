"""A sweep: every job in a process of its own, failures kept apart, gone on with after any end, one table at the end.

Lightning starts the further ranks of a job with this process's command line. Inside a Hydra multirun that line is the
whole sweep, and its environment variables leak into the next job, so results go silently wrong (Lightning #11300).
Here the sweep's process imports no torch; each job runs as one plain ``python -m fer_lightning`` in its own process
group and folder, and is read back from its files. Hydra's launchers only decide where and when ``run_job`` is called:
here one after another, in worker processes (joblib), or in the tasks of a SLURM job (submitit).

``python -m fer_lightning.sweep status DIR`` shows how a sweep stands, ``... resume DIR`` goes on with it.
"""

import atexit
import json
import logging
import math
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.command_line import Parser, fail, run_tool
from fer_lightning.config.safety import check_recorded
from fer_lightning.config.schema import explain, validate
from fer_lightning.runtime import slurm_task
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json
from fer_lightning.runtime.run_folder import RESUMABLE, lock_folder, read_status, write_status
from fer_lightning.sweeps import devices, job, slurm
from fer_lightning.sweeps.folder import (
    Job,
    describe_changes,
    in_use,
    plan,
    refuse_shared_mistake,
    request_stop,
    standings,
    stop_deadline,
    sweep_record,
)
from fer_lightning.sweeps.progress import Progress, in_terminal, show

log = logging.getLogger(__name__)

THREADS = "FER_LIGHTNING_THREADS"
"""Environment variable: CPU threads of each job of a parallel sweep, where the user has not set them."""


def run_job(cfg: DictConfig) -> float:
    """Run one job of a multirun in a fresh process, or find it done; failures are recorded in its folder, never raised.

    Returns:
        Its ``monitor``ed validation score for sweepers that optimise, NaN when it has none.
    """
    hydra = HydraConfig.get()
    folder, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir).absolute()
    leads = not slurm_task.inside() or slurm_task.first_task()
    _leave_signals_to_the_sweep()
    if read_status(folder)["status"] != "done" and not _must_stop(sweep) and (not leads or _is_free(folder, sweep)):
        try:
            _run(cfg, hydra, folder, sweep, leads)
        except Exception as error:  # a full disk, a missing program: this job's misfortune, not the sweep's
            if not isinstance(error, UserError):
                log.exception("job %s", folder.name)
            if leads:
                _record_failure(folder, " ".join(str(error).split()) or type(error).__name__)
    if read_status(folder)["status"] != "done" or not (folder / "metrics.json").exists():  # fast_dev_run tests nothing
        return math.nan
    value = read_json(folder / "metrics.json").get(cfg.monitor)
    return math.nan if value is None else value


def _run(cfg: DictConfig, hydra: Any, folder: Path, sweep: Path, leads: bool) -> None:
    validate(cfg, hydra.runtime.choices)
    parallel = _is_parallel(hydra.launcher)
    need = devices.need(cfg.trainer)
    places = devices.take(need, cfg.jobs_per_device, lambda: _must_stop(sweep)) if parallel else {}
    if places is None:
        return
    try:
        if leads:
            write_status(folder, "running")
        saved = any((folder / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))
        goes_on = cfg.resume is None or saved
        threads = max(1, int(os.environ[THREADS]) // need.count) if parallel and THREADS in os.environ else None
        process = job.start(
            job.command(hydra, folder, goes_on),
            job.environment(sweep, () if need.named else list(places), threads),
            None if _is_serial(hydra.runtime.choices) else folder / "output.log",
            list(places.values()),
        )
        signals = job.forward_signals(process) if slurm_task.inside() else []
        asked = job.wait(process, lambda: _deadline(sweep))
    finally:
        devices.release(places)
    if slurm_task.inside():
        slurm.settle(folder, process.returncode, signals)
    if leads:
        job.record_end(folder, process.returncode, asked)


class Summary(Callback):
    """Hydra callback around a multirun: lock, plan and live view first; the comparison and the failures last.

    Args:
        anyway: go on with a sweep although its code or configuration changed.
    """

    def __init__(self, anyway: bool = False) -> None:
        self.anyway = anyway
        self.stopped_by: int | None = None
        self.lock: filelock.BaseFileLock | None = None
        self.progress: Progress | None = None
        self.handlers: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Summary, (self.anyway,)  # launchers send a copy with every job, which needs none of the rest

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        job.stop_with_parent()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            if _is_queued(config.hydra.launcher):
                slurm.prepare_submission()
            jobs = plan(config, folder)
            if _is_parallel(config.hydra.launcher):
                _check_number_of_jobs(config.hydra.launcher.n_jobs)
            if not _is_queued(config.hydra.launcher):  # its jobs see other machines than this one
                refuse_shared_mistake(jobs)
            folder.mkdir(parents=True, exist_ok=True)
            self._start(config, folder, jobs)
        except UserError as error:  # Hydra only warns of a callback's exceptions, but lets SystemExit pass
            fail(error)
        except (HydraException, OmegaConfBaseException) as error:
            fail(explain(error))
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}; choose another folder with hydra.sweep.dir=FOLDER")
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error

    def _start(self, config: DictConfig, folder: Path, jobs: dict[Job, DictConfig]) -> None:
        self.lock = lock_folder(folder)
        sweep = sweep_record(jobs, folder, sys.argv[1:])
        if not (folder / "sweep.json").exists():
            write_json(folder / "sweep.json", sweep)
        elif (difference := describe_changes(folder, sweep, jobs)) and not self.anyway:
            as_started = _without_folder(sys.argv[1:]) == _without_folder(read_json(folder / "sweep.json")["argv"])
            hint = "with --anyway it goes on all the same:" if as_started else "this goes on with it as it was started:"
            raise UserError(
                f"{folder}: {difference}, which would mix results; choose another hydra.sweep.dir, or "
                f"{hint} {_resume_command(folder)}{' --anyway' if as_started else ''}"
            )
        (folder / ".stop").unlink(missing_ok=True)
        # The job itself records what it was run with; Hydra would write that before it is known whether it is run.
        config.hydra.overrides.hydra.append("hydra.output_subdir=null")
        os.environ[job.PARENT] = str(os.getpid())
        if _is_parallel(config.hydra.launcher):
            _share_out(config, [composed.trainer for composed in jobs.values()])
        for signum in (signal.SIGINT, signal.SIGTERM):
            self.handlers[signum] = signal.signal(signum, lambda signum, frame: self._stop(config, folder, signum))
        self.progress = Progress(folder, redrawn=in_terminal() and not _is_serial(config.hydra.runtime.choices))
        atexit.register(self.progress.stop)  # gives the terminal its cursor back
        self.progress.start()

    def _stop(self, config: DictConfig, folder: Path, signum: int) -> None:
        name = signal.Signals(signum).name
        if _is_queued(config.hydra.launcher):
            _say(f"[sweep] {name}: its jobs stay in the queue; look with: {_tool('status', folder)}")
            raise SystemExit(RESUMABLE if signum == signal.SIGTERM else 130)
        seconds = job.GRACE_SECONDS if self.stopped_by is None else 0.0
        self.stopped_by = self.stopped_by or signum
        request_stop(folder, seconds, name)
        _say(f"[sweep] {name}: " + (f"its jobs have {seconds:.0f} s to save" if seconds else "its jobs are killed"))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        os.environ.pop(job.PARENT, None)
        os.environ.pop(THREADS, None)
        assert self.progress is not None
        assert self.lock is not None
        self.progress.stop()
        try:
            code = summarise(Path(config.hydra.sweep.dir), self.stopped_by)
        except Exception as error:  # Hydra would turn it into a warning and exit 0
            log.exception("the sweep's summary failed")
            raise SystemExit(1) from error
        finally:
            (Path(config.hydra.sweep.dir) / ".stop").unlink(missing_ok=True)
            self.lock.release()
        if code:
            raise SystemExit(code)


def summarise(folder: Path, stopped_by: int | None = None) -> int:
    """Print the comparison of a sweep's finished jobs, what failed, what is left, and one JSON line.

    Args:
        folder: the sweep's folder.
        stopped_by: the signal that ended the sweep early.

    Returns:
        0; 1 when a job failed; 75 when jobs are left to go on with, 130 after Ctrl-C.
    """
    stands = standings(folder, live=False)
    failed = [stand for stand in stands if stand.status == "failed"]
    unfinished = [stand for stand in stands if stand.status not in ("done", "failed")]
    done = [stand.job.folder for stand in stands if stand.status == "done"]
    pages = _pages_about(done, folder, compares=stopped_by is None)
    for stand in [*failed, *unfinished]:
        if stand.status != "waiting":
            _say(f"[sweep] {stand.status}: {stand.job.folder.name}: {stand.reason} ({stand.job.folder})")
    waiting = sum(stand.status == "waiting" for stand in stands)
    if waiting:
        _say(f"[sweep] not started: {waiting} of {len(stands)} jobs")
    if failed or unfinished:
        _say(f"[sweep] run what is left with: {_resume_command(folder)}")
    line = {
        "sweep": str(folder),
        "jobs": len(stands),
        "failed": [stand.job.folder.name for stand in failed],
        "unfinished": [stand.job.folder.name for stand in unfinished],
        "report": None,
        **pages,
    }
    _say(json.dumps(line))
    if unfinished and stopped_by is not None:
        return RESUMABLE if stopped_by == signal.SIGTERM else 130
    return 1 if failed else RESUMABLE if unfinished else 0


def _pages_about(runs: Sequence[Path], folder: Path, compares: bool) -> dict[str, str]:
    """Compare the runs that were tested, unless the sweep was stopped, and rank those that were only validated."""
    scores = {run: read_json(run / "metrics.json") for run in runs if (run / "metrics.json").exists()}
    untested = {run: found for run, found in scores.items() if "test/accuracy" not in found}
    pages = {}
    if compares and (tested := [run for run in scores if run not in untested]):
        from fer_lightning.compare import compare_sweep

        if report := compare_sweep(tested, folder / "report"):
            pages["report"] = str(report)
    if untested:
        from fer_lightning.sweeps.trials import report as rank_trials

        pages["trials"] = str(rank_trials(untested, folder))
    return pages


def resume(folder: Path, anyway: bool) -> None:
    """Start a sweep's recorded command line again, where it was started, in the same folder.

    Raises:
        UserError: the folder is no sweep's, or was started where nothing is any more.
    """
    folder = Path(os.path.abspath(folder))
    if not (folder / "sweep.json").exists():
        raise UserError(f"{folder}: no sweep was started here (there is no sweep.json); give a sweep's folder")
    sweep = read_json(folder / "sweep.json")
    try:
        os.chdir(sweep["cwd"])
    except OSError as error:
        raise UserError(f"{sweep['cwd']}: the sweep was started there, but: {error.strerror}") from None
    argv = _without_folder(sweep["argv"])
    check_recorded(argv)  # a sweep.json from elsewhere is not the user's own voice
    more = [f"hydra.sweep.dir={job.quoted(folder)}"]
    more += ["++hydra.callbacks.summary.anyway=true"] if anyway else []
    sys.argv[1:] = [*argv, *more]

    from fer_lightning.__main__ import main

    main()


def main() -> None:
    """``python -m fer_lightning.sweep``."""
    parser = Parser(prog="python -m fer_lightning.sweep", description="Look after a sweep.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("status", help="print how its jobs stand")
    go_on = commands.add_parser("resume", help="run the jobs that are missing, failed or unfinished")
    for command in (look, go_on):
        command.add_argument("folder", type=Path, metavar="DIR", help="the sweep's folder")
    go_on.add_argument("--anyway", action="store_true", help="also when the code or the configuration changed")
    given = parser.parse_args()
    if given.command == "status":
        show(given.folder)
    else:
        resume(given.folder, given.anyway)


def _check_number_of_jobs(number: int) -> None:
    if number < 1 and number != -1:
        raise UserError(f"hydra.launcher.n_jobs={number}: must be at least 1, or -1 for as many as this machine holds")


def _share_out(config: DictConfig, trainers: list[DictConfig]) -> None:
    """Say how many jobs run at a time, and how many CPU threads each of them has."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    needs = [devices.need(trainer) for trainer in trainers or [config.trainer]]
    launcher = config.hydra.launcher
    if launcher.n_jobs < 1:
        launcher.n_jobs = devices.jobs_at_once(needs, config.jobs_per_device, cpu_count())
    if trainers:
        launcher.n_jobs = min(launcher.n_jobs, len(trainers))
    if not any(variable in os.environ for variable in job.THREAD_VARIABLES):
        os.environ[THREADS] = str(max(1, cpu_count() // launcher.n_jobs))


def _without_folder(argv: list[str]) -> list[str]:
    return [word for word in argv if not word.lstrip("+").startswith("hydra.sweep.dir=")]


def _is_parallel(launcher: DictConfig) -> bool:
    return "n_jobs" in launcher


def _is_queued(launcher: DictConfig) -> bool:
    return "submitit_folder" in launcher


def _is_serial(choices: DictConfig) -> bool:
    return choices["hydra/launcher"] == "basic"


def _record_failure(folder: Path, reason: str) -> None:
    try:
        write_status(folder, "failed", reason)
    except OSError as error:  # a full disk must not end the sweep
        log.warning("%s: status.json could not be written (%s)", folder, error)


def _is_free(folder: Path, sweep: Path) -> bool:
    """Wait for what is left of an earlier attempt to save and end; False when it goes on."""
    until = time.monotonic() + job.GRACE_SECONDS + 10
    while in_use(folder):
        if time.monotonic() > until or _must_stop(sweep):
            return False
        time.sleep(job.POLL_SECONDS)
    return True


def _leave_signals_to_the_sweep() -> None:
    """In a worker process, which a terminal's Ctrl-C and a group-wide SIGTERM reach as well."""
    if os.environ.get(job.PARENT) != str(os.getpid()) and not slurm_task.inside():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda signum, frame: None)


def _must_stop(sweep: Path) -> bool:
    return _deadline(sweep) is not None


def _deadline(sweep: Path) -> float | None:
    """When the job must have ended; in a worker whose sweep is gone, end at once: the job notices and saves."""
    if os.environ.get(job.PARENT) not in (str(os.getpid()), str(os.getppid())) and not slurm_task.inside():
        os._exit(1)
    return stop_deadline(sweep)


def _tool(command: str, folder: Path) -> str:
    return f"python -m fer_lightning.sweep {command} {shlex.quote(str(folder))}"


def _resume_command(folder: Path) -> str:
    return _tool("resume", folder)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_tool(main)
