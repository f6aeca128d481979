"""The audit of a data set: its duplicates, or the labels that are probably wrong."""

from collections.abc import Sequence
from pathlib import Path

from fer_lightning.data.duplicates_report import audit_duplicates
from fer_lightning.runtime.errors import UserError


def audit(
    overrides: list[str], out: Path, correlation: float, label_errors: Sequence[str] | None, votes: str | None
) -> None:
    """Audit a data set: find its duplicates or, given the runs of a cross-validation, list the doubtful labels.

    Args:
        overrides: of the configuration of a run, such as ``data.path=FILE``.
        out: folder for the table and the picture.
        correlation: threshold of near duplicates.
        label_errors: folders of the runs of a cross-validation; None looks for duplicates.
        votes: FER+ votes to judge the list of labels by.

    Raises:
        UserError: an argument is invalid, or what it names cannot be used.
    """
    if label_errors:
        from fer_lightning.report.label_errors import audit_labels  # duplicates need not wait for it

        audit_labels(label_errors, overrides, out, votes)
        return
    if votes:
        raise UserError(f"--votes={votes}: judges a list of labels; give --label-errors SWEEP_FOLDER as well")
    audit_duplicates(overrides, out, correlation)
