"""A comparison as one MLflow run."""

import os
from pathlib import Path

import pandas as pd

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.presentation.escapes import without_tags
from fer_lightning.report import dashboard
from fer_lightning.report.protocol import protocol
from fer_lightning.runtime import mlflow_run


def log_report(comparison: Comparison, out: Path, experiment: str) -> None:
    """Log a comparison as one MLflow run with the tag ``report``: its tables, pictures, page, scores and sentences.

    Whatever fails there is a warning.

    Args:
        comparison: the comparison.
        out: the report folder, already written; it keeps the run where the server cannot be reached.
        experiment: MLflow experiment.
    """
    methods = dict.fromkeys(run.metrics["imbalance"] for run in comparison.runs)
    tags = {"report": "true", "methods": without_tags(", ".join(map(str, methods)))}
    tags |= {"sweep": group} if (group := os.environ.get("WANDB_RUN_GROUP")) else {}
    params = {heading: without_tags(text) for heading, text in protocol(comparison).items()}
    run = mlflow_run.start(experiment, f"report-{out.absolute().parent.name}", tags, params, out, earlier=None)
    if run is None:
        return
    with mlflow_run.only_warn(f"the report is complete in {out} all the same"):
        for name, value in dashboard.scores(comparison).items():
            if not pd.isna(value):
                run.client.log_metric(run.run_id, mlflow_run.key(name), float(value))
        for file in [*sorted(out.glob("*.png")), out / "report.html"]:
            run.client.log_artifact(run.run_id, str(file))
        for name, table in dashboard.tables(comparison).items():
            mlflow_run.log_table(run, name, table)
        run.client.set_terminated(run.run_id, "FINISHED")
