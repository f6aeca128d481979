"""The Hydra callback around a multirun: lock, plan and progress first; the comparison and the failures last."""

import atexit
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.command_line import fail, report_bug
from fer_lightning.config.hydra_keys import check_file_names, check_named
from fer_lightning.config.interpolations import bounded
from fer_lightning.config.messages import explain
from fer_lightning.config.schema import check_names
from fer_lightning.config.secrets import check_secrets
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_no_links, write_json
from fer_lightning.runtime.folder_lock import lock_folder
from fer_lightning.runtime.run_folder import RESUMABLE
from fer_lightning.sweeps import halving, job, launchers, slurm
from fer_lightning.sweeps.folder import MAX_RECORD, Job, describe_changes, read_sweep, request_stop, sweep_record
from fer_lightning.sweeps.plan import find_mistakes, plan
from fer_lightning.sweeps.progress import Progress
from fer_lightning.sweeps.resume import resume_command, status_command, without_folder
from fer_lightning.sweeps.summary import summarise

log = logging.getLogger(__name__)


class SweepLifecycle(Callback):
    """Hydra callback that starts, watches, stops and summarises a multirun.

    Args:
        anyway: resume a sweep although its code or configuration changed.
    """

    def __init__(self, anyway: bool = False) -> None:
        self.anyway = anyway
        self.stopped_by: int | None = None
        self.lock: filelock.BaseFileLock | None = None
        self.progress: Progress | None = None
        self.handlers: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return SweepLifecycle, (self.anyway,)  # launchers pickle it with every job, which needs no other attribute

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        job.stop_with_parent()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher = config.hydra.launcher
        try:
            folder = _sweep_folder(config)
            if launchers.is_queued(launcher):
                slurm.prepare_submission()
            jobs = plan(config, folder)
            if launchers.is_parallel(launcher):
                launchers.check_parallel(launcher)
            # Jobs of a cluster see other machines than this one.
            mistakes = {} if launchers.is_queued(launcher) else find_mistakes(jobs)
            if halving.is_search(config.hydra.sweeper):
                halving.check_search(config.hydra, jobs, mistakes)
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(folder)
            try:
                self._start(config, folder, jobs, mistakes)
            except BaseException:
                self.lock.release()
                raise
        except UserError as error:  # Hydra only warns of a callback's exceptions, but lets SystemExit pass
            fail(error)
        except (HydraException, OmegaConfBaseException) as error:
            fail(explain(error))
        except OSError as error:
            fail(f"{error.filename or 'a file'}: {error.strerror}; choose another folder with hydra.sweep.dir=FOLDER")
        except Exception as error:
            report_bug(error)

    def _start(
        self, config: DictConfig, folder: Path, jobs: dict[Job, DictConfig], mistakes: Mapping[Job, str]
    ) -> None:
        check_no_links(folder)
        good = {job: composed for job, composed in jobs.items() if job not in mistakes}
        if launchers.is_parallel(config.hydra.launcher) and (good or not jobs):
            launchers.set_job_count(config, [composed.trainer for composed in good.values()])
        record_start(folder, jobs, self.anyway)
        if halving.is_search(config.hydra.sweeper):
            halving.begin(folder, config.hydra.sweeper, next(iter(good.values())))
        (folder / ".stop").unlink(missing_ok=True)
        # The job itself records what it was run with; Hydra would write that before it is known whether it is run.
        config.hydra.overrides.hydra.append("hydra.output_subdir=null")
        os.environ[job.PARENT] = str(os.getpid())
        if launchers.is_queued(config.hydra.launcher):
            slurm.discard_results(folder)
            slurm.ask_for_no_gpus(config, [composed.trainer for composed in jobs.values()])
        for signum in (signal.SIGINT, signal.SIGTERM):
            self.handlers[signum] = signal.signal(signum, lambda signum, frame: self._stop(config, folder, signum))
        for planned, mistake in mistakes.items():
            print(printable(f"[sweep] will fail: {planned.folder.name}: {mistake}"), flush=True)
        self.progress = Progress(
            folder, redrawn=sys.stdout.isatty() and not launchers.is_serial(config.hydra.runtime.choices)
        )
        atexit.register(self.progress.stop)  # restores the terminal's cursor
        self.progress.start()

    def _stop(self, config: DictConfig, folder: Path, signum: int) -> None:
        name = signal.Signals(signum).name
        if launchers.is_queued(config.hydra.launcher):
            print(printable(f"[sweep] {name}: its jobs stay in the queue; see {status_command(folder)}"), flush=True)
            raise SystemExit(RESUMABLE if signum == signal.SIGTERM else 130)
        seconds = job.GRACE_SECONDS if self.stopped_by is None else 0.0
        self.stopped_by = self.stopped_by or signum
        request_stop(folder, seconds, name)
        what = f"its jobs have {seconds:.0f} s to save" if seconds else "its jobs are killed"
        print(f"[sweep] {name}: {what}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        os.environ.pop(job.PARENT, None)
        os.environ.pop(launchers.THREADS, None)
        assert self.progress is not None
        assert self.lock is not None
        self.progress.stop()
        try:
            folder = Path(config.hydra.sweep.dir)
            search = halving.read_search(folder) if halving.is_search(config.hydra.sweeper) else None
            code = summarise(folder, self.stopped_by, search)
        except Exception as error:  # Hydra would turn it into a warning and exit 0
            log.exception("the sweep's summary failed")
            raise SystemExit(1) from error
        finally:
            (Path(config.hydra.sweep.dir) / ".stop").unlink(missing_ok=True)
            self.lock.release()
        if code:
            raise SystemExit(code)


def _sweep_folder(config: DictConfig) -> Path:
    """The sweep's folder, of a configuration that may name one.

    Raises:
        UserError: jobs would change their working directory, or a name holds a secret or leads elsewhere.
    """
    if config.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true: paths are relative to the folder you start in; leave it false")
    with bounded():
        check_named(config.hydra.sweep.dir, "hydra.sweep.dir")
        folder, name = Path(config.hydra.sweep.dir), str(config.hydra.job.name)
        check_names(config.name, config.imbalance.get("name"))
        check_file_names(name, config.hydra.output_subdir)
    check_secrets([("hydra.sweep.dir", str(folder)), ("hydra.job.name", name)])
    return folder


def record_start(folder: Path, jobs: dict[Job, DictConfig], anyway: bool) -> None:
    """Write ``sweep.json`` at a sweep's first start; later, check that nothing changed that would mix results.

    Args:
        folder: the sweep's folder; exists.
        jobs: the planned jobs with their configurations.
        anyway: accept changes.

    Raises:
        UserError: code, configuration or jobs changed since the first start.
    """
    record = sweep_record(jobs, folder, sys.argv[1:])
    if len(json.dumps(record, indent=1)) > MAX_RECORD:
        raise UserError(f"the settings of its {len(jobs):,} jobs are too long for sweep.json; give fewer values")
    is_new = not (folder / "sweep.json").exists()
    then = {} if is_new else read_sweep(folder)
    if (difference := describe_changes(then or record, record, jobs)) and not anyway:
        as_started = without_folder(sys.argv[1:]) == without_folder(then.get("argv", []))
        remedy = f"resume it anyway: {resume_command(folder)} --anyway"
        if not as_started:
            remedy = f"resume it as it was started: {resume_command(folder)}"
        raise UserError(f"{folder}: {difference}, which would mix results; choose another hydra.sweep.dir, or {remedy}")
    if "jobs" not in then:
        if not is_new:
            print(printable(f"[sweep] {folder / 'sweep.json'} was damaged and is written anew"), flush=True)
        write_json(folder / "sweep.json", record)
