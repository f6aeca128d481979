"""Searching without looking at the test images."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from command_line import TINY, only_run

from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.report.write import compare_and_report
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json
from fer_lightning.runtime.run_folder import write_status
from fer_lightning.sweeps.run_job import _has_results
from fer_lightning.sweeps.summary import summarise
from fer_lightning.sweeps.trials import check_trial, rank, report


def metrics(accuracy: float, seconds: float = 10.0) -> dict[str, object]:
    scores = {"val/accuracy": accuracy, "val/balanced_accuracy": 0.5, "val/f1_macro": 1 - accuracy, "val/nll": 1.0}
    counts = {"train/class_counts": {"a": 1, "b": 1}}
    return {**scores, **counts, "train/seconds": seconds, "monitor": "val/accuracy"}


def record_overrides(run: Path, *overrides: str) -> None:
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


def test_seeds_form_one_trial_ranked_by_the_monitored_score():
    table = rank(
        [
            (["optim.lr=0.1", "seed=0", "augment=light", "test=false"], metrics(0.5)),
            (["optim.lr=0.2", "seed=0", "augment=light", "test=false"], metrics(0.58, 30)),
            (["optim.lr=0.1", "seed=1", "augment=light", "test=false"], metrics(0.6)),
            (["optim.lr=0.2", "seed=1", "augment=light", "test=false"], metrics(0.56, 10)),
        ]
    )
    assert list(table.columns[:3]) == ["optim.lr", "seeds", "sd"], "what all runs share is no column"
    assert table["optim.lr"].tolist() == ["0.2", "0.1"]
    assert table["seeds"].tolist() == [2, 2]
    assert table["val/accuracy"].tolist() == pytest.approx([0.57, 0.55])
    assert table["sd"].tolist() == pytest.approx([0.02 / 2**0.5, 0.1 / 2**0.5])
    assert table["seconds"].tolist() == [20, 10]


def test_runs_of_different_images_are_not_ranked(tmp_path):
    runs = {tmp_path / str(k): {**metrics(0.5), "data_hash": str(k)} for k in range(2)}
    for run in runs:
        record_overrides(run)
    with pytest.raises(UserError, match=r"0 and 1 had different images \(data_hash\): they cannot be ranked together"):
        report(runs, tmp_path)


def test_a_score_that_those_of_the_classes_rule_out_is_not_ranked(tmp_path):
    record_overrides(tmp_path)
    classes = {"val/f1/a": 0.2, "val/f1/b": 0.4}
    check_trial(tmp_path, {**metrics(0.7), **classes})
    with pytest.raises(UserError, match=r"metrics.json: val/f1_macro is 0\.9\d*, which the scores of its classes"):
        check_trial(tmp_path, {**metrics(0.1), **classes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val/f1_macro": 5.0}, r"val/f1_macro is 5\.0, not a number from 0 to 1"),
        ({"val/f1_macro": math.nan}, "val/f1_macro is nan, not a number"),
        ({"val/f1_macro": True}, "val/f1_macro is True, not a number"),
        ({"val/mcc": -1.5}, r"val/mcc is -1\.5, not a number from -1 to 1"),
        ({"val/nll": -0.5}, r"val/nll is -0\.5, not 0 or more"),
        ({"val/nll": 10**38}, "val/nll is 1000"),
        ({"val/worst_recall": "abc"}, "val/worst_recall is abc, not a number"),
        ({"train/class_counts": None}, "train/class_counts is None"),
        ({"monitor": "val/nll"}, "without the scores of the validation images"),
    ],
)
def test_impossible_scores_are_not_ranked(tmp_path, change, message):
    record_overrides(tmp_path)
    with pytest.raises(UserError, match=message):
        check_trial(tmp_path, {**metrics(0.5), **change})


@pytest.mark.parametrize("overrides", [None, "{a: b}", "[[optim.lr=1]]", "optim.lr=1"])
def test_a_run_whose_settings_are_not_known_is_not_ranked(tmp_path, overrides):
    """Two of them would be taken for two seeds of one setting."""
    if overrides is not None:
        record_overrides(tmp_path)
        (tmp_path / ".hydra" / "overrides.yaml").write_text(overrides)
    with pytest.raises(UserError, match=r"overrides\.yaml: "):
        check_trial(tmp_path, metrics(0.5))


def test_runs_of_different_monitors_are_not_ranked(tmp_path):
    runs = {tmp_path / "0": metrics(0.5), tmp_path / "1": {**metrics(0.5), "monitor": "val/f1_macro"}}
    for run in runs:
        record_overrides(run)
    with pytest.raises(UserError, match="0 was monitored by val/accuracy and 1 by val/f1_macro: they cannot be ranked"):
        report(runs, tmp_path)


def test_a_damaged_run_does_not_stop_the_ranking(tmp_path, capsys):
    jobs = [{"folder": str(number), "overrides": [f"optim.lr={number}"]} for number in range(3)]
    write_json(tmp_path / "sweep.json", {"argv": ["-m"], "jobs": jobs})
    without = {key: value for key, value in metrics(0.5).items() if key != "val/nll"}
    for number, content in enumerate((metrics(0.5), {}, without)):
        record_overrides(tmp_path / str(number), f"optim.lr={number}")
        write_status(tmp_path / str(number), "done")
        write_json(tmp_path / str(number) / "metrics.json", content)
    assert summarise(tmp_path) == 1
    printed = capsys.readouterr().out
    assert printed.count("metrics.json: damaged, without the scores of the validation images") == 2
    assert "1 setting by val/accuracy" in printed
    assert pd.read_csv(tmp_path / "trials.csv")["val/accuracy"].tolist() == [0.5]


@pytest.mark.parametrize(("content", "expected"), [(metrics(0.5), True), ({"test/accuracy": 0.5}, False), ({}, False)])
def test_results_of_a_run_without_a_test_are_its_validation(tmp_path, content, expected):
    record_overrides(tmp_path)
    write_json(tmp_path / "metrics.json", content)
    assert not _has_results(tmp_path, test=False)
    (tmp_path / "predictions.csv").write_text("")
    assert _has_results(tmp_path, test=False) == expected
    assert not _has_results(tmp_path, test=True)


def test_one_setting_is_a_table_of_one_row():
    table = rank([(["seed=0"], metrics(0.5)), (["seed=1"], metrics(0.6))])
    assert (len(table), table["seeds"].item()) == (1, 2)


def test_an_override_that_only_some_runs_have():
    table = rank([(["~callbacks.ema"], metrics(0.5)), (["seed=0", "+model.drop_path=0.1"], metrics(0.6))])
    assert table["model.drop_path"].tolist() == ["0.1", ""]


@pytest.mark.slow
def test_a_trial_does_not_use_the_test_images(cli, tmp_path):
    assert cli(*TINY, "figures=true", "test=false", "trainer.max_epochs=2", "monitor=val/accuracy").code == 0
    run = only_run(tmp_path)
    scores = read_json(run / "metrics.json")
    assert not [key for key in scores if key.startswith("test")]
    assert scores["monitor"] == "val/accuracy"
    curves = pd.read_csv(run / "metrics.csv").dropna(subset=["val/accuracy"]).set_index("epoch")
    assert scores["epoch"] == curves["val/accuracy"].idxmax()
    assert scores["val/accuracy"] == pytest.approx(curves["val/accuracy"].max(), abs=1e-6)
    predictions = pd.read_csv(run / "predictions.csv")
    assert set(predictions["usage"]) == {"PublicTest"}
    assert len(predictions) == scores["val/n"]
    assert (run / "confusion_matrix.png").exists()
    card = read_checkpoint(run / "checkpoints" / "best.ckpt")["hyper_parameters"]["scorecard"]
    assert "test/accuracy" not in card
    with pytest.raises(UserError, match=r"not tested \(test=false\)"):
        compare_and_report([run], tmp_path / "report")


@pytest.mark.nightly
def test_a_search_ends_with_its_ranking(forked, tmp_path):
    sweep = tmp_path / "search"
    outcome = forked("-m", *TINY, "test=false", "optim.lr=0.001,0.01", f"hydra.sweep.dir={sweep}")
    assert outcome.code == 0, outcome.err
    assert "2 settings by val/f1_macro; the test images were not used" in outcome.out
    assert (outcome.json["trials"], outcome.json["report"]) == (str(sweep / "trials.csv"), None)
    table = pd.read_csv(sweep / "trials.csv")
    assert set(table["optim.lr"]) == {0.001, 0.01}
    assert table["val/f1_macro"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["monitor=test/accuracy"], "monitor=test/accuracy: must be one of val/f1_macro"),
        (["split=paper", "test=false"], "test=false: split=paper has no validation set"),
    ],
)
def test_a_search_without_validation_images_is_refused(cli, overrides, message):
    outcome = cli(*TINY, *overrides)
    assert outcome.code == 2
    assert message in outcome.error
