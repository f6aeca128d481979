"""The results that the paper reports, compared with those of the runs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fer_lightning.comparison.rows import Rows

ACCURACY = {
    "undersample": ("test_balanced", 0.494286),
    "weighted_bce": ("test_large", 0.498982),
    "weighted": ("test_large", 0.498982),
    "focal": ("test_large", 0.558316),
}
"""Method -> test set (519 of 1,050; 3,675 and 4,112 of 7,365 fit its digits), accuracy."""

TRAINING_IMAGES = {"large": 17182, "balanced": 2450}
"""Training images of the paper's protocol: its weighted and focal arms, its undersampled one."""


def beside_ours(rows: Rows, summary: pd.DataFrame, sizes: Mapping[str, float]) -> pd.DataFrame:
    """The paper's accuracies and those of the runs.

    Args:
        rows: row -> its runs.
        summary: as in ``Comparison``.
        sizes: test set -> images in it.

    Returns:
        As ``Comparison.paper``; empty when none of the methods is the paper's.
    """
    accuracies = summary[summary["metric"] == "accuracy"].to_dict("records")
    table = {(row["method"], row["test_set"]): row for row in accuracies}
    records = []
    for name, members in rows.items():
        test_set, accuracy = ACCURACY.get(members[0].metrics["imbalance"], ("", np.nan))
        if (name, test_set) in table:
            ours = table[name, test_set]
            records.append(
                (
                    name,
                    test_set,
                    accuracy,
                    float(ours["mean"]),
                    float(ours["low"]),
                    float(ours["high"]),
                    sizes[test_set],
                )
            )
    return pd.DataFrame(records, columns=["method", "test_set", "paper_accuracy", "mean", "low", "high", "n"])
