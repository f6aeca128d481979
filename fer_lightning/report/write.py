"""Compare run folders and write the report: tables as files, pictures, ``report.md`` and ``report.html``."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from fer_lightning.comparison import ensembles
from fer_lightning.comparison.analysis import Comparison, analyse_folders
from fer_lightning.comparison.runs import REPEATED, find_runs
from fer_lightning.config.interpolations import bounded
from fer_lightning.config.safety import recorded
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.evaluation.run_files import LONGEST_TEXT
from fer_lightning.presentation.escapes import table_to_csv
from fer_lightning.presentation.printable import printable, shortened
from fer_lightning.report import page, pictures, terminal, to_mlflow, to_wandb
from fer_lightning.report.markdown import markdown
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_inside, check_no_links, make_folder, real_path
from fer_lightning.runtime.mlflow_run import RUN_ID_FILE

log = logging.getLogger(__name__)

MAX_SKIPPED = 8
"""Skipped folders that are named on the screen."""


def compare_and_report(
    run_dirs: Sequence[str | Path],
    out: str | Path | None,
    console: Console | None = None,
    baseline: str | None = None,
    votes: str | Path | None = None,
    wandb_project: str | None = None,
    ensemble: bool = False,
    mlflow_experiment: str | None = None,
) -> Comparison:
    """Compare the finished runs at or below ``run_dirs`` and write a report.

    Writes ``summary.csv``, ``differences.csv``, ``report.md`` with its pictures, and ``report.html`` into ``out``.
    Folders of unfinished, failed or damaged runs are named with the reason.

    Args:
        run_dirs: folders of runs or of sweeps.
        out: the report folder, made when missing; None is ``report`` in the first folder.
        console: where the scores are printed; None prints to standard output.
        baseline: as for ``analyse``.
        votes: as for ``analyse``.
        wandb_project: where the report is logged as well.
        ensemble: as for ``analyse``.
        mlflow_experiment: where the report is logged as well.

    Raises:
        UserError: as ``analyse_folders``.
    """
    console = console or terminal.default_console()
    if out is None:
        out = Path(run_dirs[0]) / "report"
        check_inside(out, Path(run_dirs[0]))  # a run of somebody else's
    elif Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    elif (Path(out) / "status.json").exists():
        raise UserError(f"--out {out}: is a run's folder, whose pictures the report would replace; give another folder")
    comparison = analyse_folders(run_dirs, baseline, votes, ensemble)
    terminal.print_comparison(comparison, console)
    _log_skipped(comparison)
    options = {"--out": out, "--baseline": baseline, "--ferplus-votes": votes}
    words = [word for key, value in options.items() if value for word in (key, str(value))]
    write_report(comparison, Path(out), _command(run_dirs, [*words, *["--ensemble"] * ensemble]))
    console.print(f"Report: {Path(out) / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    if wandb_project:
        to_wandb.log_report(comparison, Path(out), wandb_project)
    if mlflow_experiment:
        to_mlflow.log_report(comparison, Path(out), mlflow_experiment)
    return comparison


def _log_skipped(c: Comparison) -> None:
    """Name the folders that were left out, as many as fit on a screen; the report names all."""
    for folder, reason in list(c.skipped.items())[:MAX_SKIPPED]:
        log.warning("left out of the comparison: %s: %s", shortened(str(folder), 300), reason)
    if len(c.skipped) > MAX_SKIPPED:
        log.warning("... and %d more, see the report", len(c.skipped) - MAX_SKIPPED)


def write_report(c: Comparison, out: Path, command: str | None = None) -> None:
    """Write the files of a report into ``out``, which is made when missing; ``command`` is named in it."""
    make_folder(out)
    check_no_links(out, deep=False)
    (out / "summary.csv").write_text(table_to_csv(_summary(c)), encoding="utf-8")
    (out / "differences.csv").write_text(table_to_csv(c.differences), encoding="utf-8")
    for name, frame in (("further.csv", c.further), ("sets.csv", c.sets)):
        if frame is not None and len(frame):
            (out / name).write_text(table_to_csv(frame), encoding="utf-8")
    names = pictures.write_pictures(c, out)
    (out / "report.md").write_text(markdown(c, names, command), encoding="utf-8")
    (out / "report.html").write_text(page.render(c, command), encoding="utf-8")


def _summary(c: Comparison) -> pd.DataFrame:
    """The methods, then their ensembles."""
    if c.ensembles is None:
        return c.summary
    marked = c.ensembles.assign(method=c.ensembles["method"].map(ensembles.label))
    return pd.concat([c.summary, marked], ignore_index=True)


def _command(run_dirs: Sequence[str | Path], options: Sequence[str]) -> str:
    """The command line that makes the report again, with paths from the working directory."""
    places = run_dirs
    above = {real_path(each).parent for each in run_dirs}
    # A sweep passes its jobs one by one; other folders are not searched, which may be large.
    if len(run_dirs) > 3 and len(above) == 1 and (sweep := above.pop()).joinpath("sweep.json").exists():
        places = [sweep] if set(find_runs([sweep])) == {real_path(each) for each in run_dirs} else run_dirs
    shown = [
        place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place for place in map(Path, places)
    ]
    return f"python -m fer_lightning.compare {shlex.join([*map(str, shown), *options])}"


def compare_sweep(folders: Sequence[Path], out: Path) -> tuple[Path | None, bool]:
    """Compare a sweep's tested runs at its end, in W&B or MLflow too when they log there.

    Returns:
        The report folder (None, and a line with the reason, when the runs cannot be compared), and whether it has all
        runs.
    """
    try:
        comparison = compare_and_report(folders, out)
    except UserError as error:
        print(printable(f"[sweep] no comparison: {error}"), flush=True)
        return None, False
    for trace, name in (("wandb", "W&B"), (RUN_ID_FILE, "MLflow")):
        logged = next((run.folder for run in comparison.runs if (run.folder / trace).exists()), None)
        if logged is None:
            continue
        try:
            project, entity = _dashboard_of(logged / ".hydra" / "config.yaml")
            if trace == RUN_ID_FILE:
                _report_to_mlflow(comparison, out, project)
            else:
                to_wandb.log_report(comparison, out, project, entity)
        except UserError as error:
            print(printable(f"[sweep] not logged to {name}: {error}"), flush=True)
    return out, all(reason.startswith(REPEATED) for reason in comparison.skipped.values())


def _dashboard_of(file: Path) -> tuple[str, str | None]:
    """Project and entity of the logger in a run's configuration.

    Raises:
        UserError: it has none.
    """
    try:
        config = recorded({"logger": read_yaml(file)["logger"]}, str(file))
        with bounded():
            logger: Any = OmegaConf.to_container(config.logger, resolve=True)
        project, entity = logger["project"], logger["entity"]
    except FileNotFoundError:
        raise UserError(f"{file}: is missing") from None
    except (AttributeError, KeyError, OmegaConfBaseException, TypeError, ValueError):
        raise UserError(f"{file}: damaged, it has no logger with a project") from None
    for name in (project, *([] if entity is None else [entity])):
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_TEXT:
            raise UserError(f"{file}: damaged, logger.project or logger.entity is no name")
    return project, entity


def _report_to_mlflow(comparison: Comparison, out: Path, experiment: str) -> None:
    try:
        to_mlflow.log_report(comparison, out, experiment)
    except ModuleNotFoundError:  # the runs of a cluster had it
        print("[sweep] not logged to MLflow: it is not installed; pip install 'fer_lightning[mlflow]'", flush=True)
