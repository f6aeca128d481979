"""A sweep's folder: ``sweep.json``, written once at the start, and the state of each job, read from its files.

Reading never needs the sweep's process: a sweep that was killed, or that SLURM runs, reads like any other.
"""

import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fer_lightning.config.hydra_keys import stays_inside
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.config.settings import flatten, may_change_results
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.presentation.printable import has_control_characters, printable
from fer_lightning.presentation.words import natural_key
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_bytes, read_json, walk, write_json
from fer_lightning.runtime.folder_lock import in_use
from fer_lightning.runtime.provenance import git_commit
from fer_lightning.runtime.run_folder import read_status

MAX_JOBS = 10_000

MAX_RECORD = 16 << 20
"""Bytes of ``sweep.json`` that are read."""

NOT_A_SETTING = ("seed", "resume", "test", "name", "tags")
"""Overrides that are not searched over; jobs that differ in the seed alone are one setting."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as planned.

    Attributes:
        number: Hydra's ``hydra.job.num``, from 0.
        folder: its run folder.
        overrides: its part of the command line.
    """

    number: int
    folder: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        job: which job.
        status: ``waiting``, ``running``, ``done``, ``failed`` or ``interrupted``; of a search, see ``halving``, also
            ``paused`` (until others have trained as far) and ``stopped`` (others train on).
        reason: why it failed or stopped, one line.
        epochs: finished epochs.
        of_epochs: ``trainer.max_epochs``; 0 while unknown.
        changed: when its status last changed, seconds since 1970; 0 for one that waits.
    """

    job: Job
    status: str
    reason: str = ""
    epochs: int = 0
    of_epochs: int = 0
    changed: float = 0.0

    @property
    def fraction_done(self) -> float:
        """Finished part of the job, from 0 to 1."""
        if self.status in ("done", "failed", "stopped"):
            return 1.0
        return min(1.0, self.epochs / self.of_epochs) if self.of_epochs else 0.0


def sweep_record(jobs: Mapping[Job, DictConfig], folder: Path, argv: list[str]) -> dict[str, Any]:
    """The content of ``sweep.json``."""
    return {
        "argv": argv,
        "cwd": str(Path.cwd()),
        "jobs": [{"folder": str(job.folder.relative_to(folder)), "overrides": list(job.overrides)} for job in jobs],
        "code": code_hash(),
        "git_commit": git_commit(),
        "started": time.time(),
    }


def code_hash() -> str:
    """A hash over the package's modules and configuration files."""
    digest = hashlib.blake2b(digest_size=16)
    for root, pattern in ((Path(__file__).parent.parent, "*.py"), (CONF_DIR, "*.yaml")):
        for path in sorted(root.rglob(pattern)):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def check_is_sweep(folder: Path) -> None:
    """Check that a sweep was started in the folder.

    Raises:
        UserError: it has no ``sweep.json``.
    """
    if not (folder / "sweep.json").exists():
        raise UserError(f"{folder}: no sweep was started here (there is no sweep.json); give a sweep's folder")


def read_sweep(folder: Path) -> dict[str, Any]:
    """The valid part of ``sweep.json``: ``argv``, ``cwd``, ``jobs``, ``code``, ``git_commit``; each may be missing.

    The file may be damaged, or somebody else's: a job's folder must lie within the sweep's.

    Raises:
        UserError: the folder is not a sweep's.
    """
    check_is_sweep(folder)
    try:
        content = read_json(folder / "sweep.json", MAX_RECORD)
    except UserError as error:
        print(printable(f"{error}; only the jobs that were started are known"), file=sys.stderr, flush=True)
        return {}
    read = {key: content[key] for key in ("cwd", "code", "git_commit") if isinstance(content.get(key), str)}
    argv, jobs = content.get("argv"), content.get("jobs")
    if _is_words(argv):
        read["argv"] = argv
    if isinstance(jobs, list) and len(jobs) <= MAX_JOBS and all(map(_is_job, jobs)) and _have_own_folders(jobs):
        read["jobs"] = jobs
    elif jobs is not None:
        message = "its jobs are damaged; only those that were started are known"
        print(printable(f"{folder / 'sweep.json'}: {message}"), file=sys.stderr, flush=True)
    return read


def _is_words(words: Any) -> bool:
    """Whether this is a list of at most ``MAX_JOBS`` words that a command line could hold."""
    if not isinstance(words, list) or len(words) > MAX_JOBS:
        return False
    texts = [word for word in words if isinstance(word, str) and len(word) <= 10_000]
    return len(texts) == len(words) and not any(map(has_control_characters, texts))


def _is_job(job: Any) -> bool:
    name = job.get("folder") if isinstance(job, dict) else None
    return _is_words([name]) and stays_inside(str(name)) and _is_words(job.get("overrides"))


def _have_own_folders(jobs: Sequence[Mapping[str, Any]]) -> bool:
    return len({os.path.normpath(job["folder"]) for job in jobs}) == len(jobs)


def read_jobs(folder: Path) -> list[Job]:
    """The planned jobs of a sweep, in order; those found on disk for a sweeper that chose jobs as it ran.

    Raises:
        UserError: the folder is not a sweep's.
    """
    if planned := read_sweep(folder).get("jobs"):
        return [Job(number, folder / job["folder"], tuple(job["overrides"])) for number, job in enumerate(planned)]
    run_folders = [Path(place) for place, _, files in walk(folder) if "status.json" in files]
    run_folders.sort(key=lambda path: natural_key(str(path)))
    return [Job(number, path) for number, path in enumerate(run_folders)]


def job_states(folder: Path, live: bool) -> list[JobState]:
    """Read the state of each job.

    Args:
        folder: the sweep's folder.
        live: the sweep's own process is running; if not, a running job whose folder is not locked was killed.
    """
    return [_job_state(job, live) for job in read_jobs(folder)]


def describe_changes(then: Mapping[str, Any], now: Mapping[str, Any], jobs: Mapping[Job, DictConfig]) -> str:
    """Describe what would mix the results of two experiments if this sweep resumed; empty if nothing.

    Args:
        then: ``read_sweep`` of the sweep's folder.
        now: ``sweep_record`` of this command line.
        jobs: its jobs, as composed now.
    """
    if then.get("code") != now["code"]:
        old, new = then.get("git_commit"), now["git_commit"]
        where = f"commit {old}, with changes that are not committed" if old == new else f"commit {old}, now {new}"
        return f"the code changed since it was started ({where})"
    for job, composed in jobs.items():
        file = job.folder / ".hydra" / "config.yaml"
        try:
            written = read_yaml(file) if file.exists() else {}
        except UserError as error:
            return str(error)
        changes = list(_changes(flatten(written), flatten(composed))) if written else []  # empty: killed while writing
        if changes:
            return f"{job.folder.name}: {'; '.join(changes)}"
    if "jobs" not in then:  # damaged; what was started is as it was
        return ""
    was, would_be = ([_settings(job["overrides"]) for job in record["jobs"]] for record in (then, now))
    if len(was) != len(would_be):
        return f"it has {len(was)} jobs, and this command line has {len(would_be)}"
    for number, (old, new) in enumerate(zip(was, would_be, strict=True)):
        if old != new:
            before, after = (" ".join(line for line in a if line not in b) for a, b in ((old, new), (new, old)))
            return f"job {number} was '{before}' and is '{after}'"
    for number, (was_in, is_in) in enumerate(zip(then["jobs"], now["jobs"], strict=True)):
        if os.path.normpath(was_in["folder"]) != is_in["folder"]:
            return f"job {number} was in the folder {was_in['folder']} and is in {is_in['folder']}"
    return ""


def request_stop(folder: Path, seconds: float, signal_name: str) -> None:
    """Ask all running jobs of this sweep to save and end within ``seconds``; no further job is started."""
    write_json(folder / ".stop", {"deadline": time.time() + seconds, "signal": signal_name})


def stop_deadline(folder: Path) -> float | None:
    """When the jobs must have ended, seconds since 1970; None while none must."""
    try:
        deadline = read_json(folder / ".stop").get("deadline")
    except FileNotFoundError:
        return None
    except UserError:
        return 0.0
    return float(deadline) if isinstance(deadline, int | float) and math.isfinite(deadline) else 0.0


def _job_state(job: Job, live: bool) -> JobState:
    changed, status = -1.0, {"status": "missing"}
    while changed != (changed := _changed(job.folder)):  # the job may write a new status between the two readings
        status = read_status(job.folder)
    if status["status"] == "missing":
        return JobState(job, "waiting")
    name, reason = status["status"], status.get("reason", "")
    if name == "running" and not live and not in_use(job.folder):
        name, reason = "interrupted", "killed"
    if name == "interrupted" and "pause_after_epochs" in status:
        name, reason = "paused", f"after epoch {status['pause_after_epochs']}"
    try:
        epochs = max(0, read_bytes(job.folder / "metrics.csv").count(b"\n") - 1)
        config = read_bytes(job.folder / ".hydra" / "config.yaml")
    except (FileNotFoundError, UserError):  # it has just started, or they are damaged
        epochs, config = 0, b""
    planned = re.search(rb"^  max_epochs: (\d{1,9})$", config, re.MULTILINE)
    return JobState(job, name, reason, epochs, int(planned.group(1)) if planned else 0, changed)


def _changed(folder: Path) -> float:
    """When the status of a run was written, in seconds; 0 without one."""
    try:
        return (folder / "status.json").stat().st_mtime
    except OSError:
        return 0.0


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in filter(may_change_results, dict.fromkeys([*old, *new])):
        if key not in new or key not in old:
            yield f"{key} was {'set' if key in old else 'not set'} and is {'set' if key in new else 'not set'}"
        elif old[key] != new[key] and not (_is_nan(old[key]) and _is_nan(new[key])):
            yield f"{key} was {json.dumps(old[key], default=str)} and is {json.dumps(new[key], default=str)}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _settings(overrides: list[str]) -> list[str]:
    return [line for line in overrides if may_change_results(line.lstrip("+~").split("=")[0])]
