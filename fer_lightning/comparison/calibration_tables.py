"""How far the methods' probabilities can be trusted, as they are and scaled by the temperature of each run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.comparison.rows import Rows
from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.metrics import calibration


def calibration_table(rows: Rows, test_set: str) -> pd.DataFrame:
    """Likelihood and calibration errors, before and after scaling, as in ``Comparison.calibration``.

    Before scaling they are those of ``metrics.json`` where it has them, as in ``Comparison.summary``: a table of
    predictions may have been rounded since, and a probability rounded to 0 costs 87 nats.
    """
    errors: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "nll": calibration.nll,
        "ece": calibration.calibration_error,
        "classwise_ece": calibration.classwise_calibration_error,
    }
    records = []
    for name, members in rows.items():
        temperatures = [run.number("temperature") for run in members]
        record: dict[str, Any] = {"method": name, "temperature": float(np.mean(temperatures))}
        for key, error in errors.items():
            recorded = [run.number(f"{test_set}/{key}") for run in members]
            known = not np.isnan(recorded).any()
            record[key] = np.mean(
                recorded if known else [error(*_answers(run, test_set, scaled=False)) for run in members]
            )
            known = not np.isnan(temperatures).any()
            values = [error(*_answers(run, test_set, scaled=True)) for run in members] if known else [np.nan]
            record[f"{key}_scaled"] = np.mean(values)
        records.append(record)
    return pd.DataFrame(records)


def reliability_table(rows: Rows, test_set: str) -> pd.DataFrame:
    """Confidence and accuracy by bin, all seeds together, as in ``Comparison.reliability``."""
    frames = []
    edges = np.linspace(0, 1, calibration.CALIBRATION_BINS + 1)
    for name, members in rows.items():
        known = all(run.metrics.get("temperature") is not None for run in members)
        for scaled in (False, True) if known else (False,):
            answers = [_answers(run, test_set, scaled) for run in members]
            probabilities, labels = (np.concatenate(part) for part in zip(*answers, strict=True))
            confidence, accuracy, count = calibration.reliability(probabilities, labels)
            columns = {"bin_low": edges[:-1], "bin_high": edges[1:], "confidence": confidence, "accuracy": accuracy}
            frames.append(pd.DataFrame({"method": name, "scaled": scaled, **columns, "count": count}))
    return pd.concat(frames, ignore_index=True)


def _answers(run: FinishedRun, test_set: str, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, NaN when there is no temperature to scale with, and labels."""
    member = run.members[test_set]
    probabilities = run.probabilities[member]
    if scaled:
        probabilities = calibration.apply_temperature(probabilities, run.number("temperature"))
    return probabilities, run.labels[member]
