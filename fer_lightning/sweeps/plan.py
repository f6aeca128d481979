"""The jobs that a command line of ``-m`` asks for, and their mistakes, before the first one starts."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from fer_lightning.config.hydra_keys import check_file_names
from fer_lightning.config.interpolations import as_hydras
from fer_lightning.config.schema import validate
from fer_lightning.config.secrets import check_secrets
from fer_lightning.config.settings import flatten, without_hydra
from fer_lightning.runtime.errors import UserError, require
from fer_lightning.runtime.run_folder import read_status
from fer_lightning.sweeps.folder import MAX_JOBS, Job


def plan(master: DictConfig, folder: Path) -> dict[Job, DictConfig]:
    """Plan the jobs of Hydra's own sweeper, each with its configuration; none for sweepers that choose as they run.

    Args:
        master: the composed configuration of the whole multirun.
        folder: the sweep's folder.

    Raises:
        HydraException: a job cannot be composed.
        UserError: two jobs would share a folder or be the same run, or jobs would pause.
    """
    _check_finishes(master)
    if not master.hydra.sweeper._target_.endswith((".BasicSweeper", ".SuccessiveHalving")):
        return {}
    given = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
    grid = _grid([*given, *master.hydra.overrides.task])
    jobs: dict[Job, DictConfig] = {}
    folders: dict[Path, Job] = {}
    same: dict[str, Job] = {}
    for number, overrides in enumerate(itertools.product(*grid.values())):
        composed = _compose(master, number, overrides)
        job = Job(number, folder / _job_folder(composed), overrides)
        if folders.setdefault(job.folder, job) is not job:
            raise UserError(f"hydra.sweep.subdir: two jobs would share {job.folder}; start it with ${{hydra:job.num}}")
        _check_finishes(composed)
        if (twin := same.setdefault(_identity(composed), job)) is not job:
            swept = [value for key, value in zip(grid, overrides, strict=True) if len(grid[key]) > 1]
            raise UserError(
                f"{' '.join(swept)}: job {number} would be the same run as job {twin.number}; give each value once"
            )
        jobs[job] = composed
    return jobs


def find_mistakes(jobs: Mapping[Job, DictConfig]) -> dict[Job, str]:
    """Jobs that are not done and whose configuration is refused, with the reason.

    Raises:
        UserError: all jobs have the same mistake, and are not all done.
    """
    mistakes: dict[Job, str] = {}
    for job, composed in jobs.items():
        try:
            validate(without_hydra(composed), composed.hydra.runtime.choices, composed.hydra.searchpath)
        except UserError as mistake:
            mistakes[job] = str(mistake)
    waiting = {job: mistake for job, mistake in mistakes.items() if read_status(job.folder)["status"] != "done"}
    if waiting and len(mistakes) == len(jobs) and len(set(mistakes.values())) == 1:
        raise UserError(next(iter(waiting.values())))
    return waiting


def _job_folder(composed: DictConfig) -> str:
    """The name of a job's folder within the sweep's.

    Raises:
        UserError: it would lie elsewhere, or its name would hold a secret.
    """
    with as_hydras(composed):
        name = str(composed.hydra.sweep.subdir)
        check_file_names(str(composed.hydra.job.name), composed.hydra.output_subdir, name)
    check_secrets([("hydra.sweep.subdir", name)])
    return name


def _compose(master: DictConfig, number: int, overrides: tuple[str, ...]) -> DictConfig:
    composed: DictConfig = GlobalHydra.instance().config_loader().load_sweep_config(master, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
        composed.hydra.job.id = str(number)
    return composed


def _check_finishes(composed: DictConfig) -> None:
    pause = composed.get("pause_after_epochs")
    accepted = "pauses the jobs of a sweep again whenever it is resumed; leave it out (hydra/sweeper=halving sets it)"
    require(pause is None, "pause_after_epochs", pause, accepted)


def _identity(composed: DictConfig) -> str:
    """What a job is; equal for jobs that differ in how the same number is written.

    Jobs may repeat each other under a name or tags of their own.
    """
    settings = flatten(without_hydra(composed))
    if settings.get("resume") == "auto":
        settings["resume"] = None  # as of every job of a sweep that has a checkpoint
    return json.dumps(
        {key: float(value) if type(value) is int else value for key, value in settings.items()},
        default=str,
        sort_keys=True,
    )


def _grid(lines: list[str]) -> dict[str, list[str]]:
    """The overrides of each key, from which every job gets one.

    Raises:
        HydraException: a line that cannot be parsed.
        UserError: a range without steps, a random order, or more than ``MAX_JOBS`` jobs.
    """
    grid: dict[str, list[str]] = {}
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    for override in parser.parse_overrides(lines):
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: is a continuous range, and this sweep runs every value; give values, such as "
                f"{key}=0.1,0.2 or {key}=range(1,4), or a sweeper that chooses them, such as hydra/sweeper=optuna "
                "(pip install hydra-optuna-sweeper)"
            )
        if override.is_sweep_override() and getattr(override.value(), "shuffle", False):
            raise UserError(
                f"{override.input_line}: is in another order each time, and jobs keep their number; leave out shuffle"
            )
        try:
            values = override.sweep_string_iterator() if override.is_sweep_override() else None
            chosen = values or [override.get_value_element_as_str()]
            grid[key] = [f"{key}={value}" for value in itertools.islice(chosen, MAX_JOBS + 1)]
        except (ValueError, TypeError, ArithmeticError) as error:  # of a range, whose values Hydra makes one by one
            given = str(override.input_line)[:80]
            reason = "its numbers must be finite" if isinstance(error, ArithmeticError) else error
            raise UserError(f"{given}: is not a range ({reason}); give values, such as {key}=1,2") from None
        if math.prod(map(len, grid.values())) > MAX_JOBS:
            raise UserError(f"{str(override.input_line)[:80]}: makes more than {MAX_JOBS} jobs; give fewer values")
        if not grid[key]:
            raise UserError(f"{override.input_line}: no value; give one, such as {key}=1, or leave it out")
    return grid
