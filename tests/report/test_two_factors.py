"""A sweep over the method and a setting of all methods, through the command line: every row has its own baseline."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import TINY

from fer_lightning.comparison.analysis import analyse
from fer_lightning.comparison.runs import find_runs, read_runs
from fer_lightning.metrics.classification import confusion_matrix
from fer_lightning.metrics.predictions import class_indices, classes_of
from fer_lightning.presentation.plotting import row_shares
from fer_lightning.report.pictures import confusion_changes


def shares(folder: Path) -> np.ndarray:
    table = pd.read_csv(folder / "predictions.csv")
    labels, predictions = (class_indices(table[name].tolist(), classes_of(table)) for name in ("label", "prediction"))
    return row_shares(confusion_matrix(labels, predictions, 7))


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_each_focal_run_is_compared_with_none_at_its_learning_rate(forked, tmp_path):
    outcome = forked("-m", *TINY, "imbalance=none,focal", "optim.lr=0.0001,0.01", "hydra.sweep.dir=sweep", timeout=500)
    assert outcome.code == 0, outcome.err
    sweep = tmp_path / "sweep"
    runs, skipped = read_runs(find_runs([sweep]))
    assert not skipped
    c = analyse(runs)
    assert c.compared_with == {f"focal lr={rate}": f"none lr={rate}" for rate in ("0.0001", "0.01")}
    folders = {name: members[0].folder for name, members in c.rows.items()}
    assert not np.array_equal(shares(folders["none lr=0.0001"]), shares(folders["none lr=0.01"]))
    for name, change in confusion_changes(c).items():
        np.testing.assert_array_equal(change, shares(folders[name]) - shares(folders[c.baselines[name]]))
    report = (sweep / "report" / "report.md").read_text()
    assert "## Differences to each row's own baseline" in report
