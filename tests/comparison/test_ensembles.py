"""``compare --ensemble``: the mean of the seeds' probabilities as one model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import SKILLS, write_run, write_sweep

from fer_lightning.compare import main
from fer_lightning.comparison import statistics
from fer_lightning.comparison.analysis import Comparison, analyse_folders
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.report import pictures
from fer_lightning.report.markdown import markdown
from fer_lightning.report.page import render
from fer_lightning.runtime.errors import UserError

TWO = {name: SKILLS[name] for name in ("none", "weighted")}


@pytest.fixture(autouse=True, scope="module")
def _few_resamples() -> Iterator[None]:
    defaults = statistics.bootstrap_scores.__defaults__
    assert defaults
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics.bootstrap_scores, "__defaults__", (300, *defaults[1:]))
        yield


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"), 3, TWO)


@pytest.fixture(scope="module")
def plain(sweep: Path) -> Comparison:
    return analyse_folders([sweep])


@pytest.fixture(scope="module")
def more(sweep: Path) -> Comparison:
    return analyse_folders([sweep], ensemble=True)


def column(frame: pd.DataFrame, test_set: str, method: str, name: str = "mean") -> dict[str, float]:
    chosen = frame[(frame["test_set"] == test_set) & (frame["method"] == method)]
    return dict(zip(chosen["metric"], chosen[name], strict=True))


def direct(sweep: Path, method: str, test_set: str) -> dict[str, Any]:
    tables = [pd.read_csv(file) for file in sorted(sweep.glob(f"*-{method}-seed*/predictions.csv"))]
    assert len(tables) == 3
    tables = [table[table[test_set] == 1] for table in tables]
    mean = sum(table[[f"p_{name}" for name in EMOTIONS]].to_numpy() for table in tables) / len(tables)
    labels = [EMOTIONS.index(name) for name in tables[0]["label"]]
    return classification_metrics(mean, labels, EMOTIONS, "")


@pytest.mark.parametrize("test_set", ["test", "test_dedup"])
@pytest.mark.parametrize("method", TWO)
def test_scores_are_those_of_the_mean_of_the_recorded_probabilities(
    sweep: Path, more: Comparison, method: str, test_set: str
) -> None:
    c = more
    assert c.ensembles is not None
    expected = direct(sweep, method, test_set)
    for metric, value in column(c.ensembles, test_set, method).items():
        assert value == pytest.approx(expected[metric], abs=1e-12), metric
    assert set(column(c.ensembles, test_set, method, "seeds").values()) == {3}
    for metric in ("accuracy", "balanced_accuracy", "f1_macro"):
        low, high = (column(c.ensembles, test_set, method, name)[metric] for name in ("low", "high"))
        assert low < expected[metric] < high
    assert np.isnan(column(c.ensembles, test_set, method, "low")["nll"])


def test_the_interval_is_that_of_the_images() -> None:
    value, n = 0.7, 1000
    drawn = np.random.default_rng(0).binomial(n, value, 20_000) / n
    low, high = statistics.image_interval(value, drawn)
    half = 1.96 * np.sqrt(value * (1 - value) / n)
    assert (low, high) == pytest.approx((value - half, value + half), abs=5e-4)
    assert np.isnan(statistics.image_interval(1.0, np.ones(9))).all()
    assert np.isnan(statistics.image_interval(1.0, np.empty(0))).all()


def test_nothing_else_of_a_comparison_changes(plain: Comparison, more: Comparison) -> None:
    assert plain.ensembles is None
    for name in ("summary", "pairs", "differences", "mcnemar", "per_class", "calibration", "reliability", "cost"):
        pd.testing.assert_frame_equal(getattr(plain, name), getattr(more, name))
    assert list(plain.rows) == list(more.rows)


def test_without_the_option_a_report_has_the_same_bytes_but_for_the_section(
    plain: Comparison, more: Comparison
) -> None:
    before, after = markdown(plain, []), markdown(more, [])
    start, end = after.index("## Ensembles"), after.index("## Differences")
    assert after[:start] + after[end:] == before
    assert "none (ensemble)" in after[start:end]
    assert "nsemble" not in before
    assert "nsemble" not in render(plain)
    assert "weighted (ensemble)" in render(more)


def test_command_line(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "write_pictures", lambda *_: [])
    main([str(sweep), "--ensemble", "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    assert "none (ensemble)" in out
    assert "weighted (ensemble)" in out
    summary = pd.read_csv(tmp_path / "report" / "summary.csv")
    assert set(summary["method"]) == {"none", "weighted", "none (ensemble)", "weighted (ensemble)"}
    expected = direct(sweep, "none", "test")["f1_macro"]
    assert column(summary, "test", "none (ensemble)")["f1_macro"] == pytest.approx(expected, abs=1e-12)
    assert summary[summary["method"] == "none (ensemble)"]["sd"].isna().all()
    differences = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert set(differences["method"]) == {"weighted"}
    assert "--ensemble" in (tmp_path / "report" / "report.md").read_text()


def test_a_method_of_one_seed_has_none(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", 2, {"none": (0.6, 0.3)})
    write_run(tmp_path / "sweep" / "single", "focal")
    c = analyse_folders([tmp_path / "sweep"], ensemble=True)
    assert c.ensembles is not None
    assert set(c.ensembles["method"]) == {"none"}


def test_what_has_no_ensemble_is_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path / "one", 1, TWO)
    with pytest.raises(UserError, match=r"ensemble: each method has one run, .* two or more seeds"):
        analyse_folders([tmp_path / "one"], ensemble=True)
    for seed in (0, 1):
        images = np.arange(seed * 100, 200 + seed * 100)
        sets = {"test": images, "test_dedup": images[5:]}
        write_run(tmp_path / "folds" / str(seed), seed=seed, images=images, sets=sets, split="kfold")
    with pytest.raises(UserError, match="ensemble: with split=kfold these runs have test images of their own"):
        analyse_folders([tmp_path / "folds"], ensemble=True)


def test_without_twins_of_any_member(tmp_path: Path) -> None:
    """Seeds of other training images: an image counts where no member has its twin."""
    images = np.arange(360)
    for seed, dropped in ((0, 5), (1, 40)):
        write_run(tmp_path / str(seed), seed=seed, sets={"test": images, "test_dedup": images[dropped:]})
    c = analyse_folders([tmp_path], ensemble=True)
    assert c.ensembles is not None
    tables = [pd.read_csv(tmp_path / str(seed) / "predictions.csv").iloc[40:] for seed in (0, 1)]
    mean = sum(table[[f"p_{name}" for name in EMOTIONS]].to_numpy() for table in tables) / 2
    right = mean.argmax(axis=1) == [EMOTIONS.index(name) for name in tables[0]["label"]]
    assert column(c.ensembles, "test_dedup", "none")["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
