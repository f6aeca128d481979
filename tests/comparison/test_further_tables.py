"""Further scores, risk-coverage curves and sets of classes in a comparison and its report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from comparisons import made_up
from run_folders import write_run

from fer_lightning.comparison.further_tables import further_table, risk_table, sets_table
from fer_lightning.comparison.rows import Rows
from fer_lightning.comparison.runs import read_runs
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.names import FURTHER
from fer_lightning.report import further_tables, pictures
from fer_lightning.report.markdown import markdown


def rows_of(*folders: Path) -> Rows:
    """A row per folder; each is read alone, since equal runs would be left out."""
    return {folder.name: read_runs([folder])[0] for folder in folders}


def test_an_older_run_has_the_same_further_scores(tmp_path: Path) -> None:
    """Its ``metrics.json`` lacks them; its predictions give them to the last digit."""
    new, old = write_run(tmp_path / "new"), write_run(tmp_path / "old")
    metrics = json.loads((old / "metrics.json").read_text())
    stripped = {key: value for key, value in metrics.items() if key.partition("/")[2] not in FURTHER}
    assert len(stripped) < len(metrics)
    (old / "metrics.json").write_text(json.dumps(stripped))
    table = further_table(rows_of(new, old), "test").pivot(index="metric", columns="method", values="mean")
    assert list(table["new"]) == list(table["old"])
    for metric in FURTHER:
        assert table.loc[metric, "new"] == pytest.approx(metrics[f"test/{metric}"], rel=1e-12)


def test_the_curve_ends_in_the_error_of_all_images(tmp_path: Path) -> None:
    rows = rows_of(write_run(tmp_path / "new"))
    risks = risk_table(rows, "test")
    accuracy = rows["new"][0].number("test/accuracy")
    assert risks["risk"].iloc[-1] == pytest.approx(1 - accuracy)
    assert risks["coverage"].is_monotonic_increasing


def test_sets_of_runs_that_recorded_them(tmp_path: Path) -> None:
    recorded = {"set_level": 0.9, "test/set_coverage": 0.9, "test/set_size": 2.5}
    recorded |= {f"test/set_coverage/{emotion}": 0.9 for emotion in EMOTIONS}
    rows = rows_of(write_run(tmp_path / "new", **recorded), write_run(tmp_path / "old"))
    (row,) = sets_table(rows, "test").to_dict("records")
    assert (row["method"], row["level"], row["coverage"], row["size"]) == ("new", 0.9, 0.9, 2.5)
    assert sets_table(rows_of(tmp_path / "old"), "test").empty


def test_the_report_shows_all_three() -> None:
    c = made_up(3, 2)
    text = markdown(c, ["risk_coverage.png"])
    assert "### Further scores (mean ± deviation)" in text
    assert "AURC: mean error over all shares of answered images" in text
    assert "## Selective prediction" in text
    assert "![Selective prediction](risk_coverage.png)" in text
    assert "such sets hold the label of 90 % of new images of each emotion" in text


def test_less_is_better_for_the_area_and_the_size() -> None:
    c = made_up(3, 1)
    table = further_tables.further(c)
    assert table is not None
    best = {heading: [row[0].text for row in table.rows if row[k].best] for k, heading in enumerate(table.headings)}
    assert (best["AURC"], best["MCC"]) == (["none"], ["weighted"])
    sets = further_tables.sets(c)
    assert sets is not None
    assert [row[0].text for row in sets.rows if row[2].best] == ["none"]


def test_without_these_numbers_nothing_is_shown() -> None:
    empty = pd.DataFrame()
    c = made_up(2, 1, further=empty, risks=empty, sets=empty)
    assert (further_tables.further(c), further_tables.selective(c), further_tables.sets(c)) == (None, None, None)
    assert "risk_coverage.png" not in pictures._ranks_and_reliability(c)
    assert "Selective" not in markdown(c, [])


def test_a_score_that_no_seed_has_is_a_dash() -> None:
    c = made_up(2, 1)
    assert c.further is not None
    frame = c.further.assign(mean=np.where(c.further["metric"] == "auroc_macro", np.nan, c.further["mean"]))
    table = further_tables.further(made_up(2, 1, further=frame))
    assert table is not None
    assert {row[3].text for row in table.rows} == {"-"}
