"""``fl.compare``: which method wins over finished runs, by how much, and whether the difference is real."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from fer_lightning.api.run import Run
from fer_lightning.comparison.analysis import Comparison, analyse_folders
from fer_lightning.presentation.printable import shortened
from fer_lightning.report import terminal
from fer_lightning.report.write import write_report
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import as_path

RunOrFolder = str | Path | Run


def compare(
    runs: RunOrFolder | Sequence[RunOrFolder],
    *,
    baseline: str | None = None,
    votes: str | Path | None = None,
    ensemble: bool = False,
    out: str | Path | None = None,
    show: bool = False,
) -> Comparison:
    """Compare methods over the seeds of finished runs, as ``python -m fer_lightning.compare`` does.

    Args:
        runs: runs of ``fl.train``, run folders, sweep folders, or a list of any of them.
        baseline: imbalance method that differences are taken from; default ``none`` where there is one, else the first.
        votes: a file of FER+ votes, for how far raters agree with the labels.
        ensemble: score the mean of the probabilities of each method's seeds, too; see ``Comparison.ensembles``.
        out: a folder for the report (``report.html``, ``report.md``, pictures, tables); None writes nothing.
        show: whether to print the scores.

    Returns:
        The comparison; among its DataFrames are ``summary``, ``differences`` and ``per_class``.

    Raises:
        UserError: no finished run, runs on other images, splits or labels, no such baseline, or ``out`` is no folder.

    Warns:
        UserWarning: a run was left out, because it is not finished or repeats another one.

    Examples:
        >>> comparison = fl.compare([run, "outputs/sweeps/demo"], out="report")
        >>> comparison.differences.query("metric == 'f1_macro'")
    """
    given = [runs] if isinstance(runs, str | Path | Run) else runs
    if not isinstance(given, Sequence) or not all(isinstance(run, str | Path | Run) for run in given) or not given:
        raise UserError(f"runs={shortened(repr(runs))}: must be runs, folders of runs or sweeps, or a list of these")
    folders = [run.folder if isinstance(run, Run) else as_path(run, "runs") for run in given]
    report = None if out is None else as_path(out, "out")
    file = None if votes is None else as_path(votes, "votes")
    comparison = analyse_folders(folders, baseline, file, ensemble)
    for folder, reason in comparison.skipped.items():
        warnings.warn(f"left out of the comparison: {folder}: {reason}", stacklevel=2)
    if show:
        terminal.print_comparison(comparison, terminal.default_console())
    if report is not None:
        write_report(comparison, report)
    return comparison
