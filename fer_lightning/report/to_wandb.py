"""A comparison as one W&B run."""

import logging
import os
from pathlib import Path

import pandas as pd

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.presentation.escapes import change_texts, to_csv, without_tags
from fer_lightning.presentation.printable import printable
from fer_lightning.report import notes, sections, sentences
from fer_lightning.report.protocol import protocol
from fer_lightning.runtime import wandb_run

log = logging.getLogger(__name__)


def log_report(comparison: Comparison, out: Path, project: str, entity: str | None = None) -> None:
    """Log a comparison as one W&B run of type ``report``: its tables, pictures, page and sentences.

    Whatever fails there is a warning.

    Args:
        comparison: the comparison.
        out: the report folder, already written; an offline run is kept in it.
        project: W&B project; must exist or be one's own to make.
        entity: user or team; None is the default of the account.
    """
    import wandb

    with wandb_run.only_warn(f"the report is complete in {out} all the same"), wandb_run.files_kept_in(out / "wandb"):
        run = wandb_run.start(
            wandb_run.mode(),
            project=project,
            entity=entity,
            group=os.environ.get("WANDB_RUN_GROUP"),
            job_type="report",
            name=f"report-{out.absolute().parent.name}",
            tags=[
                "report",
                *dict.fromkeys(printable(run.metrics["imbalance"])[:64] or "-" for run in comparison.runs),
            ],
            config={heading: without_tags(text) for heading, text in protocol(comparison).items()},
            dir=out,
        )
        try:
            frames = {
                "summary": comparison.summary,
                "differences": comparison.differences,
                "mcnemar": comparison.mcnemar,
                "ranks": comparison.ranks.mean,
                "per_class": comparison.per_class,
                "calibration": comparison.calibration,
                "cost": comparison.cost,
                "ceiling": comparison.ceiling,
                "paper": comparison.paper,
                "findings": pd.DataFrame({"sentence": _sentences(comparison)}),
            }
            means = comparison.summary[comparison.summary["test_set"] == comparison.test_set]
            scores = {f"{row['metric']}/{row['method']}": row["mean"] for row in means.to_dict("records")}
            run.summary.update({without_tags(name): score for name, score in scores.items()})
            run.log({path.stem: wandb.Image(str(path)) for path in sorted(out.glob("*.png"))}, commit=False)
            run.log({"page": wandb.Html(str(out / "report.html"))}, commit=False)
            # Last, because tables alone need the server.
            run.log({name: wandb.Table(dataframe=_shown(frame)) for name, frame in frames.items() if frame is not None})
        finally:
            if run.offline:
                log.info("W&B runs offline; upload later with: %s", wandb_run.upload_command(run))
            run.finish()
            wandb.teardown()  # an offline run's finish() returns before its file is complete


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table, its texts safe for W&B's page and for the CSV files that it exports."""
    return change_texts(frame, lambda text: to_csv(without_tags(text)))


def _sentences(comparison: Comparison) -> list[str]:
    """All sentences and notes of the report, in reading order."""
    parts = [sentence for part in sections.sections(comparison) for sentence in (*part.sentences, *part.notes)]
    return [sentences.answer(comparison), *parts, *notes.on_protocol(comparison)]
