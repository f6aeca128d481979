"""Successive halving: all settings of a grid train a few epochs, and only the best of them continue.

Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", algorithm 1, with
the factor eta of Li et al. 2018, "Hyperband". Each run has the learning rates of its whole ``trainer.max_epochs``,
pauses after the epochs of a rung (``pause_after_epochs``) and resumes from its checkpoint, so that a setting that
reaches the end has the bits of one that never paused. Settings are chosen by validation scores; only runs that reach
the end are tested.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError, check, one_line, require
from fer_lightning.runtime.files import read_bytes, read_json, write_json
from fer_lightning.runtime.run_folder import read_status, write_status
from fer_lightning.sweeps import launchers
from fer_lightning.sweeps.folder import MAX_JOBS, NOT_A_SETTING, Job, read_jobs, read_sweep, stop_deadline

TARGET = "hydra_plugins.fer_lightning.SuccessiveHalving"
"""Name of the sweeper in its configuration: Hydra accepts plugins of the package ``hydra_plugins`` alone."""

RECORD = "halving.json"
"""File of the sweep's folder with the content of ``Search``."""

MAX_CURVES = 4 << 20
"""Bytes of ``metrics.csv`` that are read, enough for 10,000 epochs."""

NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,40})?(e[-+]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Search:
    """The progress of a search.

    Attributes:
        epochs: epochs at the end of each rung; the last are those of the whole training.
        eta: one in so many settings continues after a rung.
        monitor: the validation score that settings are chosen by.
        kept: for each finished rung, the numbers of the jobs that continue.
    """

    epochs: tuple[int, ...]
    eta: int
    monitor: str
    kept: tuple[tuple[int, ...], ...] = ()

    @property
    def rung(self) -> int:
        """The present rung, from 0."""
        return len(self.kept)

    @property
    def pause(self) -> int | None:
        """Epochs after which the jobs of this rung pause; None in the last one."""
        return self.epochs[self.rung] if self.rung < len(self.epochs) - 1 else None

    def is_active(self, job: int) -> bool:
        """Whether a job trains in this rung."""
        return not self.kept or job in self.kept[-1]

    def rung_of(self, job: int) -> int:
        """The last rung that a job trains in, from 0."""
        return sum(job in kept for kept in self.kept)

    def has_trained(self, folder: Path) -> bool:
        """Whether the run in ``folder`` has trained all epochs of this rung."""
        status = read_status(folder)
        paused = status.get("pause_after_epochs", 0)  # not in the status of a run that was resumed
        return status["status"] == "done" or (self.pause is not None and paused >= self.pause)


@dataclass(frozen=True)
class Trial:
    """A setting of the grid, and its jobs, one for each seed."""

    settings: tuple[str, ...]
    jobs: tuple[Job, ...]


def rung_epochs(max_epochs: int, eta: int, rungs: int) -> tuple[int, ...]:
    """Epochs at the end of each rung, ascending: ``max_epochs`` / eta^k, rounded up; equal ones once."""
    return tuple(sorted({-(-max_epochs // eta**k) for k in range(rungs)}))


def select(scores: Sequence[float], eta: int) -> list[int]:
    """Places of the best ``1/eta`` of the scores, rounded down but at least one, never NaN; equal ones in order.

    Args:
        scores: of each setting, higher is better.
        eta: one of so many settings is selected.
    """
    ranked = sorted((place for place, score in enumerate(scores) if not math.isnan(score)), key=lambda i: -scores[i])
    return sorted(ranked[: max(1, len(scores) // eta)])


def trials_of(jobs: Sequence[Job]) -> list[Trial]:
    """The settings of a grid, in order; jobs that differ in the seed alone are one."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        key = (line.lstrip("+~").partition("=")[0] for line in job.overrides)
        settings = tuple(line for name, line in zip(key, job.overrides, strict=True) if name not in NOT_A_SETTING)
        groups.setdefault(settings, []).append(job)
    return [Trial(settings, tuple(members)) for settings, members in groups.items()]


def best_score(folder: Path, monitor: str, epochs: int) -> float:
    """The best validation score of a run's first ``epochs`` epochs, by ``metrics.csv``; NaN without one."""
    try:
        scores = read_scores(folder, monitor)
    except UserError:
        return math.nan
    known = [score for epoch, score in scores.items() if epoch < epochs and not math.isnan(score)]
    return max(known, default=math.nan)


def read_scores(folder: Path, monitor: str) -> dict[int, float]:
    """Epoch, from 0, -> validation score of a run, by ``metrics.csv``, NaN without one; empty without the file.

    Raises:
        UserError: the file is not as a run writes it.
    """
    file, scores = folder / "metrics.csv", {}
    try:
        header, *rows = (line.split(",") for line in read_bytes(file, MAX_CURVES).decode().splitlines())
        check(len(set(header)) == len(header), "a column twice")
        for number, row in enumerate(rows):
            values = dict(zip(header, row, strict=True))
            epoch, text = values["epoch"], values.get(monitor, "")
            check(epoch == str(number), f"epoch {epoch[:40]!r} in place of {number}")
            has_score = text not in ("", "nan")
            check(not has_score or (NUMBER.fullmatch(text) and 0 <= float(text) <= 1), f"{monitor} is {text[:40]!r}")
            scores[number] = float(text) if has_score else math.nan
    except FileNotFoundError:
        return {}
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: damaged ({one_line(error)})") from None
    return scores


def trial_score(trial: Trial, monitor: str, epochs: int) -> float:
    """Mean of ``best_score`` over the seeds of a setting; NaN where one has none or has failed before."""
    scores = [best_score(job.folder, monitor, epochs) for job in trial.jobs]
    return sum(scores) / len(scores)


def spans(numbers: Sequence[int], together: bool) -> list[tuple[int, int]]:
    """First number and end of each row of consecutive numbers, ascending; one from the first to the last ``together``.

    A launcher numbers the jobs that it is given one after another. One that runs jobs side by side gets them at once,
    with those between them that were stopped, which end at once.
    """
    if together:
        return [(numbers[0], numbers[-1] + 1)]
    firsts = [number for number in numbers if number - 1 not in numbers]
    lasts = [number for number in numbers if number + 1 not in numbers]
    return [(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]


def is_search(sweeper: DictConfig) -> bool:
    """Whether ``hydra.sweeper`` is successive halving."""
    return bool(sweeper._target_ == TARGET)


def check_search(hydra: DictConfig, jobs: Mapping[Job, DictConfig], mistakes: Mapping[Job, str]) -> None:
    """Check that a grid can be searched by successive halving.

    Args:
        hydra: the ``hydra`` node of the multirun.
        jobs: the planned jobs with their configurations.
        mistakes: those of them that will fail, with the reason; they are not checked further.

    Raises:
        UserError: settings of the search out of range, or jobs that cannot be paused or have no validation score; all
            jobs have a mistake.
    """
    for key in ("eta", "rungs"):
        value = hydra.sweeper.get(key)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 2
        require(is_count, f"hydra.sweeper.{key}", value, "must be a whole number, at least 2")
    name = "hydra/sweeper=halving"
    if launchers.is_queued(hydra.launcher):
        raise UserError(f"{name}: runs on one machine, not on SLURM; leave hydra/launcher out, or give parallel")
    good = [composed for job, composed in jobs.items() if job not in mistakes]
    if not good:
        raise UserError(next(iter(mistakes.values())))
    if len(trials_of(list(jobs))) < 2:
        raise UserError(f"{name}: has one setting, so nothing to choose; give a key several values, such as a=1,2")
    for key in ("trainer.max_epochs", "monitor"):
        values = {OmegaConf.select(composed, key) for composed in good}
        require(len(values) == 1, key, ", ".join(map(str, values)), f"{name} needs the same for all settings")
    for composed in good:
        first = rung_epochs(composed.trainer.max_epochs, hydra.sweeper.eta, hydra.sweeper.rungs)[0]
        every = composed.trainer.check_val_every_n_epoch
        accepted = f"{name} needs a validation by epoch {first}, the first rung's end"
        require(every <= first, "trainer.check_val_every_n_epoch", every, accepted)
        if composed.split.name == "paper" and composed.split.get("val_fraction") is None:
            raise UserError(f"{name}: split=paper has no validation set; set split.val_fraction=0.1")
        if composed.imbalance.get("adjust") is not None and composed.imbalance.get("first_stage"):
            raise UserError(f"{name}: imbalance={composed.imbalance.name} trains no epochs of its own; leave it out")


def begin(folder: Path, sweeper: DictConfig, config: DictConfig) -> None:
    """Register the sweeper with Hydra, and record the search at its first start.

    Args:
        folder: the sweep's folder; exists.
        sweeper: ``hydra.sweeper``.
        config: of one of the jobs.

    Raises:
        UserError: the search in this folder has other rungs, or selects another share.
    """
    Plugins.instance().class_name_to_class[TARGET] = SuccessiveHalving
    epochs = rung_epochs(config.trainer.max_epochs, sweeper.eta, sweeper.rungs)
    planned = Search(epochs, sweeper.eta, config.monitor)
    before = read_search(folder)
    if before is None or (before.kept and not _is_of(before, trials_of(read_jobs(folder)))):
        before = planned
    if (before.epochs, before.eta, before.monitor) != (planned.epochs, planned.eta, planned.monitor):
        raise UserError(
            f"{folder}: its search has {_rungs(before)}, and this one {_rungs(planned)}; choose another hydra.sweep.dir"
        )
    write_json(folder / RECORD, asdict(before))


def read_search(folder: Path) -> Search | None:
    """The progress of the search in a sweep's folder; None where there is none.

    A damaged record reads as none: the search then decides each rung again, by the same scores.
    """
    try:
        content = read_json(folder / RECORD)
        epochs, eta, monitor, kept = (content[key] for key in ("epochs", "eta", "monitor", "kept"))
        check(isinstance(monitor, str) and monitor.isprintable() and len(monitor) < 100, "monitor")
        check(0 < len(epochs) < 100 and len(kept) < len(epochs), "rungs")
        check(all(_are_counts(each) for each in (epochs, [eta], *kept)) and eta >= 2, "numbers")
        check(all(set(after) <= set(before) for before, after in itertools.pairwise(kept)), "a job that had stopped")
    except (ArithmeticError, FileNotFoundError, KeyError, TypeError, UserError, ValueError):
        return None
    return Search(tuple(epochs), eta, monitor, tuple(map(tuple, kept)))


def _is_of(search: Search, trials: Sequence[Trial]) -> bool:
    """Whether a record keeps settings of a grid, each with all of its seeds, and no more of them than ``select``."""
    left = len(trials)
    for kept in search.kept:
        settings = [trial for trial in trials if trial.jobs[0].number in kept]
        left = max(1, left // search.eta)
        if not 0 < len(settings) <= left or sorted(kept) != sorted(
            job.number for each in settings for job in each.jobs
        ):
            return False
        left = len(settings)
    return True


def finish_rung(folder: Path) -> bool:
    """Select the settings that continue after a rung, and record the others as stopped.

    Args:
        folder: the sweep's folder.

    Returns:
        Whether another rung follows: not while a run has yet to train in this one, after the last one, where no
        setting has a score, or where the settings, the rungs so far or the scores of a run are not known.
    """
    search = read_search(folder)
    if search is None:
        print(printable(f"[sweep] {folder / RECORD}: is missing or damaged; the search ends"), flush=True)
        return False
    if not read_sweep(folder).get("jobs"):
        print(printable(f"[sweep] {folder / 'sweep.json'}: its jobs are not known; the search ends"), flush=True)
        return False
    active = [trial for trial in trials_of(read_jobs(folder)) if search.is_active(trial.jobs[0].number)]
    jobs = [job for trial in active for job in trial.jobs]
    failed = {job for job in jobs if read_status(job.folder)["status"] == "failed"}
    if search.pause is None or not all(job in failed or search.has_trained(job.folder) for job in jobs):
        return False
    for job in jobs:
        if job not in failed and (problem := _lost_scores(job.folder, search.monitor)):
            after = "no rung is decided without it; restore the file, or delete the run's folder to train it again"
            print(printable(f"[sweep] {problem}: {after}"), flush=True)
            return False
    epochs = search.pause
    rung = f"rung {search.rung + 1} of {len(search.epochs)} (epoch {epochs} of {search.epochs[-1]})"
    has_failed = [not failed.isdisjoint(trial.jobs) for trial in active]
    scores = [
        math.nan if lost else trial_score(trial, search.monitor, epochs)
        for trial, lost in zip(active, has_failed, strict=True)
    ]
    kept = select(scores, search.eta)
    if not kept:
        print(f"[sweep] {rung}: no setting has {search.monitor}; the search ends", flush=True)
        return False
    for place, trial in enumerate(active):
        if place in kept:
            continue
        better = sum(score > scores[place] for score in scores)
        score = f"{search.monitor} {scores[place]:.4f}, place {better + 1} of {len(active)}"
        reason = f"by the search after {rung}: " + ("no score" if math.isnan(scores[place]) else score)
        for job in set(trial.jobs) - failed:
            write_status(job.folder, "stopped", reason, pause_after_epochs=epochs)
    numbers = sorted(job.number for place in kept for job in active[place].jobs)
    write_json(folder / RECORD, asdict(replace(search, kept=(*search.kept, tuple(numbers)))))
    best = max(scores[place] for place in kept)
    print(
        f"[sweep] {rung}: {len(kept)} of {len(active)} settings continue to epoch {search.epochs[search.rung + 1]}; "
        f"best {search.monitor} {best:.4f}",
        flush=True,
    )
    return True


def _lost_scores(folder: Path, monitor: str) -> str | None:
    """What is wrong with the ``metrics.csv`` of a run that has trained its rung; None where it has all epochs."""
    try:
        epochs = len(read_scores(folder, monitor))
    except UserError as error:
        return str(error)
    trained = read_status(folder).get("pause_after_epochs", 1)  # not in the status of a run that is done
    return f"{folder / 'metrics.csv'}: has {epochs} epochs of {trained}" if epochs < trained else None


class SuccessiveHalving(Sweeper):
    """Hydra sweeper that launches the grid, and after each rung those of its jobs that continue.

    Args:
        eta: of ``Search``, which ``begin`` records.
        rungs: of ``rung_epochs``.
        max_batch_size: as of Hydra's ``BasicSweeper``.
        params: as of Hydra's ``BasicSweeper``.
    """

    def __init__(self, eta: int, rungs: int, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.grid_settings = max_batch_size, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        # Not a base class, and imported here: Hydra loads the modules of its plugins anew when it lists them.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        self.folder = Path(config.hydra.sweep.dir)
        self.side_by_side = launchers.is_parallel(config.hydra.launcher)
        self.grid = BasicSweeper(*self.grid_settings)
        self.grid.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        returns = list(self.grid.sweep(arguments))
        while stop_deadline(self.folder) is None and finish_rung(self.folder):
            returns += self._launch_active()
        return returns

    def _launch_active(self) -> list[Any]:
        """Launch the jobs of the present rung alone, at the numbers that they have in the grid."""
        assert self.grid.overrides is not None
        assert self.grid.launcher is not None
        search = read_search(self.folder)
        assert search is not None
        jobs = [list(overrides) for batch in self.grid.overrides for overrides in batch]
        returns = []
        for first, end in spans([job for job in range(len(jobs)) if search.is_active(job)], self.side_by_side):
            returns.append(self.grid.launcher.launch(jobs[first:end], initial_job_idx=first))
            _ = [each.return_value for each in returns[-1]]  # raises what a job has raised
        return returns


def _are_counts(numbers: Any) -> bool:
    if not isinstance(numbers, list) or len(numbers) > MAX_JOBS:
        return False
    return all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)


def _rungs(search: Search) -> str:
    return f"rungs at {', '.join(map(str, search.epochs))} epochs by {search.monitor}, eta={search.eta}"
