"""A comparison as one W&B run."""

import logging
import os
from pathlib import Path

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.presentation.escapes import without_tags
from fer_lightning.presentation.printable import printable
from fer_lightning.report import dashboard
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
            run.summary.update(dashboard.scores(comparison))
            run.log({path.stem: wandb.Image(str(path)) for path in sorted(out.glob("*.png"))}, commit=False)
            run.log({"page": wandb.Html(str(out / "report.html"))}, commit=False)
            # Last, because tables alone need the server.
            run.log({name: wandb.Table(dataframe=frame) for name, frame in dashboard.tables(comparison).items()})
        finally:
            if run.offline:
                log.info("W&B runs offline; upload later with: %s", wandb_run.upload_command(run))
            run.finish()
            wandb.teardown()  # an offline run's finish() returns before its file is complete
