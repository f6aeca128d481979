"""Hydra's launchers: which one runs a sweep, how many jobs at a time, and how many CPU threads each job gets."""

import os
from collections.abc import Sequence

from omegaconf import DictConfig

from fer_lightning.runtime.errors import UserError
from fer_lightning.sweeps import devices, job

THREADS = "FER_LIGHTNING_THREADS"
"""Environment variable: CPU threads of each job of a parallel sweep, unless the user has set them."""


def is_serial(choices: DictConfig) -> bool:
    """Whether jobs run one after another, given ``hydra.runtime.choices``."""
    return choices["hydra/launcher"] == "basic"


def is_parallel(launcher: DictConfig) -> bool:
    """Whether jobs run in worker processes of this machine, given ``hydra.launcher``."""
    return "n_jobs" in launcher


def is_queued(launcher: DictConfig) -> bool:
    """Whether jobs are submitted to a scheduler, given ``hydra.launcher``."""
    return "submitit_folder" in launcher


FIXED = {
    "backend": None,
    "prefer": "processes",
    "require": None,
    "timeout": None,
    "pre_dispatch": "2*n_jobs",
    "max_nbytes": None,
    "mmap_mode": "r",
}
"""Options of joblib's launcher that a sweep needs as they are."""


def check_parallel(launcher: DictConfig) -> None:
    """Check the options of a parallel launcher.

    Raises:
        UserError: ``n_jobs`` is neither positive nor -1, ``batch_size`` neither positive nor ``auto``, or another
            option is changed that has to be as it is.
    """
    for key, value in FIXED.items():
        if launcher.get(key, value) != value:
            shown = "null" if value is None else value
            raise UserError(f"hydra.launcher.{key}={launcher[key]}: must be {shown} here; leave it out")
    size = str(launcher.get("batch_size", "auto"))
    if size != "auto" and not (size.isdecimal() and int(size) > 0):
        raise UserError(f"hydra.launcher.batch_size={size}: must be at least 1, or auto")
    if launcher.n_jobs < 1 and launcher.n_jobs != -1:
        raise UserError(
            f"hydra.launcher.n_jobs={launcher.n_jobs}: must be at least 1, or -1 for as many as this machine holds"
        )


def set_job_count(config: DictConfig, trainers: Sequence[DictConfig]) -> None:
    """Set how many jobs run at a time (``n_jobs``) and how many CPU threads each has (``THREADS``).

    Args:
        config: the composed multirun; its ``hydra.launcher.n_jobs`` is replaced.
        trainers: the ``trainer`` group of each planned job; empty for sweepers that choose jobs as they run.
    """
    from joblib import cpu_count  # type: ignore[import-untyped]

    needs = [devices.need(trainer) for trainer in trainers or [config.trainer]]
    launcher = config.hydra.launcher
    if launcher.n_jobs < 1:
        launcher.n_jobs = devices.jobs_at_once(needs, config.jobs_per_device, cpu_count())
    if trainers:
        launcher.n_jobs = min(launcher.n_jobs, len(trainers))
    if not any(variable in os.environ for variable in job.THREAD_VARIABLES):
        os.environ[THREADS] = str(max(1, cpu_count() // launcher.n_jobs))
