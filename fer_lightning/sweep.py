"""A sweep: every job in a process of its own, failures kept apart, one table at the end.

Lightning starts the further ranks of a job with this process's command line. Inside a Hydra multirun that line is the
whole sweep, and its environment variables leak into the next job, so results go silently wrong (Lightning #11300).
Here the sweep's process imports no torch; each job runs as one plain ``python -m fer_lightning`` in its own process
group and folder, and is read back from its files.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fer_lightning import config
from fer_lightning.errors import UserError
from fer_lightning.run_folder import read_json, read_status, write_json, write_status

log = logging.getLogger(__name__)

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
SWEEP_ONLY = (
    "hydra.mode",
    "hydra.sweep",
    "hydra.run.dir",
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra/sweeper",
)
GRACE_SECONDS = 10.0


def run_job(cfg: DictConfig) -> float:
    """Run one job of a multirun in a fresh process; failures are recorded in its folder, never raised.

    Returns:
        Its ``val/f1_macro`` for sweepers that optimise, NaN when it failed.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweep = read_json(folder.parent / "sweep.json")
    number = f"[sweep] job {hydra.job.num + 1} of {sweep['jobs']}"
    _say(f"{number}: {' '.join(hydra.overrides.task)}")
    write_status(folder, "running")
    started = time.monotonic()
    try:
        config.validate(cfg, hydra.runtime.choices)
        code = _wait(subprocess.Popen(_command(hydra, folder), env=_environment(folder), start_new_session=True))
        if read_status(folder)["status"] == "running":
            write_status(folder, "failed", f"the process ended with code {code} before it could say why")
    except UserError as error:
        write_status(folder, "failed", str(error))
    except BaseException:
        write_status(folder, "failed", "interrupted")
        raise
    status = read_status(folder)
    reason = f": {status['reason']}" if status.get("reason") else ""
    took = _duration(time.monotonic() - started)
    _say(f"{number} {status['status']} in {took}{reason}{_time_left(folder.parent, sweep)}")
    if status["status"] != "done" or not (folder / "metrics.json").exists():  # fast_dev_run tests nothing
        return math.nan
    value = read_json(folder / "metrics.json").get("val/f1_macro")
    return math.nan if value is None else value


class Summary(Callback):
    """Hydra callback around a multirun: counts its jobs first, prints the comparison and the failures last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        jobs = 1
        for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
            jobs *= len(list(override.sweep_iterator())) if override.is_sweep_override() else 1
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "sweep.json",
            {"jobs": jobs, "started": time.time(), "overrides": list(config.hydra.overrides.task)},
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            code = summarise(Path(config.hydra.sweep.dir))
        except Exception as error:  # Hydra would turn it into a warning and exit 0
            log.exception("the sweep's summary failed")
            raise SystemExit(1) from error
        if code:
            raise SystemExit(code)


def summarise(folder: Path) -> int:
    """Print the comparison of a sweep's finished jobs, its failures, and one JSON line.

    Returns:
        0, or 1 when a job failed.
    """
    jobs = job_folders(folder)
    failed = {job: read_status(job).get("reason", "") for job in jobs if read_status(job)["status"] != "done"}
    report = None
    tested = [job for job in jobs if job not in failed and (job / "metrics.json").exists()]
    if tested:
        from fer_lightning.compare import compare

        report = folder / "report"
        compare(tested, report)
    for job, reason in failed.items():
        _say(f"[sweep] failed: {job.name}: {reason} ({job})")
    line = {
        "sweep": str(folder),
        "jobs": len(jobs),
        "failed": [job.name for job in failed],
        "report": report and str(report),
    }
    print(json.dumps(line), flush=True)
    return 1 if failed else 0


def job_folders(sweep: Path) -> list[Path]:
    """The job folders of a sweep, in job order."""
    folders = [path.parent for path in sweep.glob("*/status.json")]
    return sorted(
        folders,
        key=lambda path: (
            int(path.name.split("-")[0]) if path.name.split("-")[0].isdigit() else 0,
            path.name,
        ),
    )


def _command(hydra: Any, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "fer_lightning", "--config-name", hydra.job.config_name]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            command += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path) != config.CONF_DIR:
            command += ["--config-path", source.path]
    command += list(hydra.overrides.task)
    command += [line for line in hydra.overrides.hydra if not line.lstrip("+~").startswith(SWEEP_ONLY)]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*command, f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null", "hydra.mode=RUN"]


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in DISTRIBUTED_VARIABLES}
    return {"WANDB_RUN_GROUP": f"{folder.parent.parent.name}-{folder.parent.name}", **kept}


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a job; on Ctrl-C, SIGTERM or any error end its whole process group, so that no rank is orphaned."""

    def stop(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        return process.wait()
    except BaseException:
        _kill(process, signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("job %s did not end within %.0f s and is killed", process.pid, GRACE_SECONDS)
        raise
    finally:
        _kill(process, signal.SIGKILL)
        signal.signal(signal.SIGTERM, previous)


def _kill(process: subprocess.Popen[bytes], signum: int) -> None:
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return


def _time_left(folder: Path, sweep: dict[str, Any]) -> str:
    ended = sum(read_status(job)["status"] != "running" for job in job_folders(folder))
    left = sweep["jobs"] - ended
    if left <= 0:
        return ""
    return f"; about {_duration((time.time() - sweep['started']) / ended * left)} left"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, flush=True)
