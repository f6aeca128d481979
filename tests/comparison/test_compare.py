"""Comparing runs, on run folders written here with known predictions."""

import gc
import html
import io
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import Outcome
from comparisons import all_notes, all_sentences
from rich.console import Console
from run_folders import SKILLS, TEST_COUNTS, write_run, write_sweep
from wandb_file import read_offline_runs

from fer_lightning.compare import main
from fer_lightning.comparison import statistics
from fer_lightning.comparison.analysis import METRICS, TESTED, Comparison, analyse, analyse_folders
from fer_lightning.comparison.runs import find_runs, read_runs
from fer_lightning.config.command_line import run_tool
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.report import paper, protocol, sentences
from fer_lightning.report.write import compare_and_report, compare_sweep
from fer_lightning.runtime import mlflow_run
from fer_lightning.runtime.errors import UserError

LARGE = tuple(8 * count for count in TEST_COUNTS)


@pytest.fixture(autouse=True, scope="module")
def _old_objects_apart() -> Iterator[None]:
    """statsmodels collects garbage at every correction: 0.4 s each beside a loaded torch."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _few_resamples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = statistics.bootstrap_scores.__defaults__
    assert defaults
    assert defaults[0] == statistics.RESAMPLES
    monkeypatch.setattr(statistics.bootstrap_scores, "__defaults__", (300, *defaults[1:]))


def quiet() -> Console:
    return Console(width=160, record=True, file=io.StringIO())


def words(text: str) -> str:
    return " ".join(text.split())


def compared(folder: Path, **options: Any) -> Comparison:
    runs, skipped = read_runs(find_runs([folder]))
    assert not skipped
    return analyse(runs, **options)


def scores_of(folder: Path, method: str, key: str) -> list[float]:
    files = sorted(folder.glob(f"*-{method}-seed*/metrics.json"))
    return [json.loads(file.read_text())[key] for file in files]


def test_class_weights_of_all_runs_stand_in_report_and_terminal(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", 1, settings={"imbalance.loss.weights": {"disgust": 5}})
    console = quiet()
    compare_and_report([tmp_path / "sweep"], tmp_path / "report", console)
    report = tmp_path / "report"
    for text in (console.export_text(), (report / "report.md").read_text(), (report / "report.html").read_text()):
        assert "none disgust=5" in text


@pytest.mark.nightly
def test_everything_is_written(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", 3)
    console = quiet()
    c = compare_and_report([tmp_path / "sweep"], tmp_path / "report", console)
    written = {file.name for file in (tmp_path / "report").iterdir()}
    assert {"summary.csv", "differences.csv", "report.md", "report.html"} <= written
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "report" / "summary.csv"), c.summary)
    report = (tmp_path / "report" / "report.md").read_text()
    pictures = re.findall(r"\]\((.+?\.png)\)", report)
    assert pictures
    assert set(pictures) <= written
    shown = words(console.export_text())
    for text in (protocol.key(c), *sentences.highlights(c)):
        assert words(text) in shown
    whole = html.unescape(words(report).replace("\\", ""))
    for text in (*all_sentences(c), *all_notes(c)):
        assert words(text) in whole
    assert protocol.key(c) == "FER-2013 · split official · test n = 360"
    assert protocol.protocol(c)["seeds"] == "0, 1, 2"
    assert protocol.protocol(c)["budget"] == "equal optimizer steps"
    assert protocol.protocol(c)["training steps"] == "1,200"


def test_summary_has_mean_deviation_and_t_interval(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 3))
    assert set(c.summary["metric"]) == set(METRICS)
    assert set(c.summary["test_set"]) == {"test", "test_dedup"}
    assert len(c.summary) == 2 * 4 * len(METRICS)
    for row in c.summary.to_dict("records"):
        values = scores_of(tmp_path / "sweep", row["method"], f"{row['test_set']}/{row['metric']}")
        mean, deviation, low, high = statistics.t_interval(np.array(values))
        low, high = np.clip([low, high], 0, np.inf if row["metric"] == "nll" else 1)
        found = [row[key] for key in ("mean", "sd", "low", "high")]
        assert found == pytest.approx([mean, deviation, low, high])
        assert row["seeds"] == 3


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 3))
    assert c.baselines == dict.fromkeys(c.rows, "none")
    assert list(c.rows) == ["none", "undersample", "weighted", "focal"]
    table = c.differences.set_index(["test_set", "method", "metric"])
    assert len(table) == 2 * 3 * len(TESTED)
    for (test_set, method, metric), row in table.iterrows():
        gaps = np.subtract(*(scores_of(tmp_path / "sweep", each, f"{test_set}/{metric}") for each in (method, "none")))
        assert row["difference"] == pytest.approx(gaps.mean())
        assert row["low"] < row["difference"] < row["high"]
        assert row["p"] <= row["p_holm"] <= 3 * row["p"] + 1e-12
        assert row["pairs"] == 3
    assert table.loc[("test", "undersample", "accuracy"), "p_holm"] < 0.05


def test_sentences_say_which_is_real(tmp_path: Path) -> None:
    skills = {"none": (0.5, 0.1), "focal": (0.8, 0.7), "weighted": (0.5, 0.1)}
    c = compared(write_sweep(tmp_path / "sweep", 5, skills, counts=LARGE))
    row = c.differences.query("test_set == 'test' and method == 'focal' and metric == 'f1_macro'").iloc[0]
    by, *ends = (f"{100 * row[key]:.1f}" for key in ("difference", "low", "high", "low_all", "high_all"))
    evidence = "95 % CI {} to {}, simultaneous {} to {}; Holm p < 0.001".format(*ends)
    assert f"focal beats none in macro F1 by {by} points ({evidence})." in all_sentences(c)
    assert sentences.answer(c).startswith("focal wins: its macro F1 of ")
    assert "and every other of the 3 methods" in sentences.answer(c)
    assert any(
        re.match(
            r"Inconclusive: the difference to none in accuracy, in points with 95 % CI: weighted \S+ \(.+ to .+\)", line
        )
        for line in all_sentences(c)
    )
    assert any("48 images of disgust: one of them is 2.1 points of its recall" in line for line in all_sentences(c))
    assert not any("One seed" in line for line in all_sentences(c))


def test_winner_that_is_not_clear() -> None:
    means = {"a": 0.6, "b": 0.59, "c": 0.4}
    columns = ["first", "second", "difference", "low", "high", "low_all", "high_all", "p_holm"]
    clear = [("a", "c", 0.2, 0.15, 0.25, 0.14, 0.26, 1e-6), ("b", "c", 0.19, 0.15, 0.23, 0.14, 0.24, 1e-6)]
    pairs = pd.DataFrame([("a", "b", 0.01, -0.01, 0.03, -0.02, 0.04, 0.3), *clear], columns=columns)
    sentence = sentences.winner(means, pairs, seeds=3)
    assert sentence == (
        "No clear winner: a has the highest macro F1, 60.0 %, 1.0 points above b (95 % CI -1.0 to 3.0, simultaneous "
        "-2.0 to 4.0; Holm p = 0.300 over all 3 pairs), so it cannot be distinguished from b."
    )
    turned = pd.DataFrame([("b", "a", -0.01, -0.03, 0.01, -0.04, 0.02, 0.3), *clear], columns=columns)
    assert sentences.winner(means, turned, seeds=3) == sentence
    one = sentences.winner(means, pairs.assign(difference=0.004), seeds=1)
    assert "0.4 points above b over the seeds that both have; with one seed that ranks these models" in one, (
        "of the seeds in common"
    )
    one = sentences.winner(means, pairs.assign(difference=-0.004), seeds=1)
    assert "60.0 %, though b has no lower one with its seed; with one seed" in one
    unknown = pairs.assign(**dict.fromkeys(columns[2:], np.nan))
    assert "cannot be distinguished from b and c" in sentences.winner(means, unknown, seeds=3)


def test_a_trade_and_twins_are_reported() -> None:
    def row(test_set: str, metric: str, gap: float, p: float) -> dict[str, Any]:
        numbers = {"difference": gap, "low": gap - 0.01, "high": gap + 0.01, "p": p, "p_holm": p, "pairs": 3}
        together = {"low_all": gap - 0.01, "high_all": gap + 0.01}
        return {"test_set": test_set, "method": "focal", "metric": metric, **numbers, **together}

    frame = pd.DataFrame([row("test", "f1_macro", 0.03, 0.01), row("test", "accuracy", -0.02, 0.01)])
    lines = sentences.against_baseline(frame, {"focal": "none"}, "test")
    assert lines[1] == "focal is worse than none in accuracy by 2.0 points (95 % CI 1.0 to 3.0; Holm p = 0.010)."
    assert lines[2].startswith("focal trades accuracy (-2.0 points to none) for macro F1 (+3.0 points)")
    for p, start in ((0.01, "Without the test images that have"), (0.4, "Inconclusive: the change of the difference")):
        changes = pd.DataFrame([row("test_dedup", "f1_macro", -0.02, p)])
        (line,) = sentences.on_twins(changes, {"focal": "none"}, has_twins=True)
        assert line.startswith(start)
        assert "-2.0" in line


def test_twins_change_a_difference_on_the_same_resamples(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 3))
    gaps = c.differences[c.differences["metric"] == "f1_macro"].set_index(["test_set", "method"])["difference"]
    changes = c.twin_changes.set_index("method")
    assert set(changes.index) == {"undersample", "weighted", "focal"}
    for method, row in changes.iterrows():
        assert row["difference"] == pytest.approx(gaps["test_dedup", method] - gaps["test", method])
    # Most images are in both sets, so the change is known much better than either difference.
    widths = c.differences[c.differences["metric"] == "f1_macro"].groupby("test_set")[["low", "high"]].mean()
    spans = widths["high"] - widths["low"]
    assert (changes["high"] - changes["low"]).mean() < spans.min()


def test_one_seed_has_intervals_from_images_only(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep"))
    assert c.summary["sd"].isna().all()
    assert c.differences["low"].notna().all()
    assert len(c.ranks.mean) == 0
    assert any("One seed cannot rank methods" in line for line in all_sentences(c))
    assert any("the variance of training is left out" in note for note in all_notes(c))


def test_likelihood_is_the_recorded_one_in_both_tables(tmp_path: Path) -> None:
    """Packed predictions are rounded, and a probability rounded to 0 costs 87 nats."""
    folder = write_run(tmp_path / "0", "focal")
    pd.read_csv(folder / "predictions.csv").to_csv(folder / "predictions.csv", index=False, float_format="%.6g")
    metrics = json.loads((folder / "metrics.json").read_text())
    recorded = metrics["test/nll"] + 1e-4
    (folder / "metrics.json").write_text(json.dumps({**metrics, "test/nll": recorded}))
    c = compared(tmp_path)
    assert c.calibration["nll"].tolist() == [recorded]
    assert c.summary.query("test_set == 'test' and metric == 'nll'")["mean"].tolist() == [recorded]


@pytest.mark.parametrize(
    "score",
    ["f1_macro", "balanced_accuracy", "worst_recall", "nll", "ece", "accuracy", "recall/sad", "precision/happy"],
)
@pytest.mark.parametrize("name", ["test", "test_dedup"])
def test_scores_that_are_not_those_of_the_predictions_are_left_out(tmp_path: Path, score: str, name: str) -> None:
    folder = write_run(tmp_path / "0", "focal")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, f"{name}/{score}": metrics[f"{name}/{score}"] + 0.01}))
    with pytest.raises(UserError, match=rf"predictions.csv has {name}/{score} of .*, metrics.json one of"):
        analyse_folders([tmp_path])


def test_probabilities_that_contradict_the_predictions_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", "focal")
    table = pd.read_csv(folder / "predictions.csv")
    chances = [column for column in table if column.startswith("p_")]
    table[chances] = table[chances].to_numpy()[:, ::-1]
    table.to_csv(folder / "predictions.csv", index=False)
    with pytest.raises(UserError, match="predictions that are not the most probable class"):
        analyse_folders([tmp_path])


def test_one_run_is_described(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "focal")
    c = compared(tmp_path)
    assert c.baselines == {}
    assert len(c.differences) == len(c.mcnemar) == len(c.ranks.mean) == len(c.pairs) == 0
    assert sentences.answer(c) == "There is one method only, so there is nothing to compare it with."
    compare_and_report([tmp_path], tmp_path / "out", quiet())


@pytest.mark.nightly
def test_two_methods_and_twenty_two(tmp_path: Path) -> None:
    two = compared(write_sweep(tmp_path / "two", 3, {name: SKILLS[name] for name in ("none", "focal")}))
    assert np.allclose(two.differences["p"], two.differences["p_holm"])
    assert len(two.ranks.mean) == 2 * len(TESTED)
    skills = {"none": (0.6, 0.3)} | {f"m{k}": (0.5 + 0.01 * k, 0.3) for k in range(21)}
    many = compared(write_sweep(tmp_path / "many", 2, skills))
    assert len(many.differences) == 2 * 21 * len(TESTED)
    assert many.ranks.blocks == 2
    assert any("Two seeds are too few" in note for note in all_notes(many))


@pytest.mark.nightly
def test_full_size_takes_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 3589)
    answers = [np.where(rng.random(3589) < 0.7, labels, rng.integers(0, 7, 3589)) for _ in range(220)]
    start = time.perf_counter()
    found = statistics.bootstrap_scores([labels] * 220, answers, [np.arange(3589)] * 220, 7, 1000)
    assert found.shape == (1000, 220, 3)
    assert time.perf_counter() - start < 20


def test_ranks_are_over_seeds(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 3))
    values = pd.DataFrame({name: scores_of(tmp_path / "sweep", name, "test/f1_macro") for name in c.rows})
    found = c.ranks.mean[c.ranks.mean["metric"] == "f1_macro"].set_index("method")["mean_rank"]
    assert found.to_dict() == pytest.approx(values.rank(axis=1, ascending=False).mean().to_dict())
    assert c.ranks.blocks == 3
    assert c.ranks.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 3)), rel=1e-3)


def test_mcnemar_takes_majority_votes(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", 3)
    c = compared(tmp_path / "sweep")
    right = {}
    for method in ("none", "focal"):
        tables = [pd.read_csv(file) for file in sorted((tmp_path / "sweep").glob(f"*-{method}-*/predictions.csv"))]
        mean = sum(table[[f"p_{emotion}" for emotion in EMOTIONS]].to_numpy() for table in tables)
        right[method] = []
        for place, label in enumerate(tables[0]["label"]):
            given = Counter(table["prediction"][place] for table in tables)
            best = max(given, key=lambda name: (given[name], mean[place][EMOTIONS.index(name)]))
            right[method].append(best == label)
    expected = statistics.exact_mcnemar(np.array(right["focal"]), np.array(right["none"]))
    row = c.mcnemar.set_index("method").loc["focal"]
    found = (row["only_method_right"], row["only_baseline_right"])
    # Three runs of even probability that answer three different things have no majority: either may decide.
    assert found == pytest.approx(expected[:2], abs=8)
    assert (c.mcnemar["p_holm"] >= c.mcnemar["p"]).all()


def test_classes_confusion_calibration_and_cost(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 3))
    focal = c.per_class[c.per_class["method"] == "focal"].set_index("class")
    for emotion, n in zip(EMOTIONS, TEST_COUNTS, strict=True):
        values = scores_of(tmp_path / "sweep", "focal", f"test/recall/{emotion}")
        assert focal.loc[emotion, "recall"] == pytest.approx(np.mean(values))
        assert focal.loc[emotion, "recall_sd"] == pytest.approx(np.std(values, ddof=1))
        assert focal.loc[emotion, "n"] == n
    assert c.confusion["focal"].sum(axis=1).tolist() == [3 * n for n in TEST_COUNTS]
    calibration = c.calibration.set_index("method").loc["focal"]
    for key in ("nll", "ece"):
        assert calibration[key] == pytest.approx(np.mean(scores_of(tmp_path / "sweep", "focal", f"test/{key}")))
        assert calibration[f"{key}_scaled"] != calibration[key]
    assert calibration["temperature"] == 1.5
    counts = c.reliability.groupby(["method", "scaled"])["count"].sum()
    assert set(counts) == {3 * 360}
    assert c.cost.set_index("method").loc["focal", ["seconds", "steps"]].tolist() == [61.0, 1200.0]


def test_no_temperature_no_scaling(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 2, temperature=None))
    assert c.calibration["nll_scaled"].isna().all()
    assert c.calibration["nll"].notna().all()
    assert not c.reliability["scaled"].any()
    assert any("No run has a temperature" in note for note in all_notes(c))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"data_hash": "other"}, "data hash (abc; other)"),
        ({"split": "kfold"}, "split (official; kfold)"),
        ({"data": "synthetic", "synthetic": True}, "data (fer2013; synthetic)"),
        ({"labels": "ferplus"}, "labels (fer; ferplus)"),
        ({"counts": (10,) * 7}, "test images (test) (360; 70, "),
        ({"counts": (*TEST_COUNTS[:5], 41, 64)}, "test images (test) (360; 360, 359 of them the same"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    write_run(tmp_path / "runs/0", "none")
    write_run(tmp_path / "runs/1", "focal", **other)
    with pytest.raises(UserError, match=re.escape(f"runs/0 and runs/1 cannot be compared: they differ in {what}")):
        compare_and_report([tmp_path / "runs"], tmp_path / "out", quiet())
    assert not (tmp_path / "out").exists()


def test_at_a_sweeps_end_a_refusal_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(tmp_path / "0", "none"), write_run(tmp_path / "1", "focal", data_hash="other")]
    assert compare_sweep(folders, tmp_path / "report") == (None, False)
    assert capsys.readouterr().out.startswith("[sweep] no comparison: ")
    assert compare_sweep(folders[:1], tmp_path / "report") == (tmp_path / "report", True)
    (folders[1] / "predictions.csv").unlink()
    assert compare_sweep(folders, tmp_path / "report") == (tmp_path / "report", False)


def paper_sets(seed: int) -> dict[str, np.ndarray]:
    """A seed's own cut of a pool of 720 images: a large test set, and a balanced one within it."""
    counts = tuple(2 * count for count in TEST_COUNTS)
    large = np.flatnonzero(np.random.default_rng(seed).random(sum(counts)) < 0.5)
    labels = np.repeat(np.arange(7), counts)[large]
    balanced = np.concatenate([large[labels == k][:3] for k in range(7)])
    return {"test_large": large, "test_balanced": balanced, "test_large_dedup": large[4:], "test_dedup": large[4:]}


def write_paper(folder: Path, seeds: int) -> Path:
    counts = tuple(2 * count for count in TEST_COUNTS)
    for seed in range(seeds):
        sets = paper_sets(seed)
        for number, method in enumerate(("undersample", "weighted_bce", "focal")):
            balanced = method == "undersample"
            own = {**sets, "test": sets["test_balanced" if balanced else "test_large"]}
            if balanced:
                own |= {"test_dedup": own["test"][1:], "test_large_dedup": sets["test_large"][2:]}
            options: dict[str, Any] = {
                "budget": "epochs",
                "temperature": None,
                "train/steps": 206 if balanced else 1432,
            }
            write_run(
                folder / f"{number}-{method}-seed{seed}",
                method,
                seed,
                counts=counts,
                images=sets["test_large"],
                sets=own,
                split="paper",
                settings={"split.subset": "balanced" if balanced else "large"},
                **options,
            )
    return folder


@pytest.mark.nightly
def test_the_papers_split_is_compared_on_its_large_test_set(tmp_path: Path) -> None:
    c = compared(write_paper(tmp_path / "runs", 3))
    assert c.test_set == "test_large"
    assert set(c.summary["test_set"]) == {"test_large", "test_balanced", "test_large_dedup"}
    assert set(c.differences["test_set"]) == {"test_large", "test_large_dedup"}
    assert c.differences["low"].notna().all()
    assert len(c.mcnemar) == 0
    assert c.paper is not None
    theirs = c.paper.set_index("method")
    assert theirs["paper_accuracy"].to_dict() == {"undersample": 0.494286, "weighted_bce": 0.498982, "focal": 0.558316}
    assert theirs["test_set"].tolist() == ["test_balanced", "test_large", "test_large"]
    assert theirs.loc["undersample", "n"] == 21
    values = [
        json.loads(file.read_text())["test_balanced/accuracy"]
        for file in (tmp_path / "runs").glob("*-undersample-*/metrics.json")
    ]
    assert theirs.loc["undersample", "mean"] == pytest.approx(np.mean(values))
    honest = " ".join(paper.compare_with_paper(c))
    assert "two different test sets, single runs, no baseline" in honest
    assert "Our data are a cut of the paper's" in honest
    assert "3 seeds, each with a sample and split of its own" in honest
    notes = " ".join(all_notes(c))
    assert "differences are taken from undersample" in notes
    assert "Each seed or fold has test images of its own" in notes
    assert re.search(r"Two seeds share \d+ % of their test images and, by the protocol, about 51 %", notes)
    assert "a choice by these results is a choice on PrivateTest too" in notes
    assert "unequal numbers of optimizer steps (206; 1,432)" in notes
    assert "test_large_dedup differs between them" in notes
    assert protocol.protocol(c)["budget"] == "equal epochs"
    compare_and_report([tmp_path / "runs"], tmp_path / "out", quiet())


def test_test_sets_of_their_own_are_refused_outside_such_splits(tmp_path: Path) -> None:
    write_paper(tmp_path / "runs", 2)
    for name, old, new in (
        ("metrics.json", '"paper"', '"official"'),
        (".hydra/config.yaml", "name: paper", "name: official"),
    ):
        for file in (tmp_path / "runs").glob(f"*/{name}"):
            file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"differ in test images \(test\)"):
        compared(tmp_path / "runs")


def test_runs_that_disagree_about_the_twins_are_refused(tmp_path):
    folders = [write_run(tmp_path / name, name) for name in ("none", "focal")]
    file = folders[1] / "predictions.csv"
    pd.read_csv(file).assign(twin_group=0).to_csv(file, index=False)
    with pytest.raises(UserError, match=r"differ in twins of the test images \(.*with another twin_group\)"):
        analyse_folders(folders)


def test_a_seed_with_other_images_for_one_method_is_refused(tmp_path: Path) -> None:
    write_paper(tmp_path / "runs", 2)
    folder = tmp_path / "runs" / "2-focal-seed1"
    file, config = folder / "metrics.json", folder / ".hydra" / "config.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seed": 0}))
    config.write_text(config.read_text().replace("seed: 1", "seed: 0"))
    runs = [run for run in read_runs(find_runs([tmp_path / "runs"]))[0] if run.folder.name != "2-focal-seed0"]
    with pytest.raises(UserError, match=r"cannot be compared: they differ in test images \(test_large\)"):
        analyse(runs)


def test_folds_are_repeats_of_one_experiment(tmp_path: Path) -> None:
    places = np.array_split(np.random.default_rng(0).permutation(360), 3)
    for fold, mine in enumerate(places):
        for method in ("none", "focal"):
            sets = {"test": np.sort(mine), "test_dedup": np.sort(mine)}
            settings = {"split.fold": fold}
            write_run(tmp_path / f"{method}{fold}", method, images=mine, sets=sets, split="kfold", settings=settings)
    c = compared(tmp_path)
    assert protocol.key(c).endswith("3 folds")
    assert c.summary["seeds"].unique().tolist() == [3]
    assert c.differences["pairs"].unique().tolist() == [3]
    assert protocol.protocol(c)["seeds"] == "0, folds 0, 1, 2"


@pytest.mark.nightly
def test_drawn_faces_are_announced(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", data="synthetic", synthetic=True)
    console = quiet()
    c = compare_and_report([tmp_path / "sweep"], tmp_path / "report", console)
    assert c.synthetic
    shown = console.export_text()
    assert shown.index("SYNTHETIC DATA") < shown.index("undersample")
    assert "On drawn, not real, faces: " in words(shown)
    assert "SYNTHETIC DATA" in (tmp_path / "report" / "report.md").read_text()


def test_a_varied_setting_makes_a_row_and_not_a_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "none", "none")
    for gamma in (1.0, 2.0):
        settings = {"imbalance.loss.gamma": gamma}
        write_run(tmp_path / str(gamma), "focal", skill=0.5 + gamma / 10, settings=settings)
    c = compared(tmp_path)
    assert list(c.rows) == ["none", "focal gamma=1.0", "focal gamma=2.0"]
    assert set(c.differences["method"]) == {"focal gamma=1.0", "focal gamma=2.0"}


def test_each_model_has_its_own_baseline(tmp_path: Path) -> None:
    for model in ("efficientnet_b0", "tf_efficientnetv2_b0"):
        for method in ("focal", "none"):
            skill = 0.5 if model == "efficientnet_b0" else 0.8
            write_run(tmp_path / f"{model}-{method}", method, skill=skill, model=model)
    c = compared(tmp_path)
    assert list(c.rows) == [f"{method} {model}" for method in ("none", "focal") for model in c_models(c)]
    assert c.baselines == {name: f"none {name.split()[1]}" for name in c.rows}
    gaps = c.differences.query("test_set == 'test' and metric == 'accuracy'")["difference"]
    assert len(gaps) == 2
    assert (gaps.abs() < 0.15).all()  # the models themselves are 0.3 apart


def c_models(c: Comparison) -> list[str]:
    return list(dict.fromkeys(members[0].metrics["model"] for members in c.rows.values()))


def test_a_setting_of_all_methods_pairs_each_with_its_own_baseline(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        for method in ("none", "focal"):
            write_run(tmp_path / f"{method}{rate}", method, skill=0.5 + rate, settings={"optim.lr": rate})
    c = compared(tmp_path)
    assert c.compared_with == {"focal lr=0.1": "none lr=0.1", "focal lr=0.2": "none lr=0.2"}
    assert set(c.differences["method"]) == {"focal lr=0.1", "focal lr=0.2"}
    assert (c.differences.query("metric == 'accuracy'")["difference"].abs() < 0.09).all()
    alone = compared(tmp_path, baseline="none lr=0.1")
    assert set(alone.differences["method"]) == {"none lr=0.2", "focal lr=0.1", "focal lr=0.2"}


def test_the_baseline_can_be_chosen(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", 2)
    c = compared(tmp_path / "sweep", baseline="focal")
    assert set(c.baselines.values()) == {"focal"}
    assert next(iter(c.rows)) == "focal"
    assert set(c.differences["method"]) == {"none", "undersample", "weighted"}
    with pytest.raises(UserError, match=r"baseline ldam: .* accepted: none, undersample, weighted, focal"):
        compared(tmp_path / "sweep", baseline="ldam")


@pytest.mark.slow
def test_unpaired_seeds_are_left_out_and_reported(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"none{seed}", "none", seed)
    for seed in (1, 2, 7):
        write_run(tmp_path / f"focal{seed}", "focal", seed)
    write_run(tmp_path / "weighted9", "weighted", 9)
    c = compared(tmp_path)
    pairs = c.differences.groupby("method")["pairs"].first()
    assert pairs.to_dict() == {"focal": 2, "weighted": 0}
    lost = c.differences[c.differences["method"] == "weighted"]
    assert lost[["difference", "low", "p", "p_holm"]].isna().all(axis=None)
    assert len(c.ranks.mean) == 0
    notes = " ".join(all_notes(c))
    assert "weighted and none share no seed" in notes
    assert "between focal and none is over the 2 seeds that both have" in notes
    assert "unequal numbers of seeds (1 to 3)" in notes
    compare_and_report([tmp_path], tmp_path / "out", quiet())


@pytest.mark.nightly
def test_a_class_without_test_images(tmp_path: Path) -> None:
    counts = (*TEST_COUNTS[:1], 0, *TEST_COUNTS[2:])
    write_sweep(tmp_path / "sweep", 2, counts=counts)
    console = quiet()
    c = compare_and_report([tmp_path / "sweep"], tmp_path / "out", console)
    assert c.per_class[c.per_class["class"] == "disgust"]["recall"].isna().all()
    assert c.differences["difference"].notna().all()
    assert any("no image of disgust: nothing is known" in line for line in all_sentences(c))


@pytest.mark.slow
def test_undefined_scores_stay_undefined(tmp_path: Path) -> None:
    for seed in range(2):
        empty = {f"test_dedup/{metric}": None for metric in METRICS}
        sets = {"test": np.arange(360), "test_dedup": np.array([], np.int64)}
        for method in ("none", "focal"):
            write_run(tmp_path / f"{method}{seed}", method, seed, sets=sets, **empty)
    c = compare_and_report([tmp_path], tmp_path / "out", quiet())
    assert c.summary.query("test_set == 'test_dedup'")["mean"].isna().all()
    assert c.differences.query("test_set == 'test_dedup'")["difference"].isna().all()
    assert c.differences.query("test_set == 'test'")["p"].notna().all()


def test_methods_that_never_differ(tmp_path: Path) -> None:
    for seed in range(3):
        first, second = (write_run(tmp_path / f"{name}{seed}", name, seed) for name in ("none", "focal"))
        (second / "predictions.csv").write_text((first / "predictions.csv").read_text())
        its, own = (json.loads((folder / "metrics.json").read_text()) for folder in (first, second))
        scores = {key: value for key, value in its.items() if key.startswith("test")}
        (second / "metrics.json").write_text(json.dumps({**own, **scores}))
    c = compared(tmp_path)
    assert (c.differences["p"] == 1).all()
    assert (c.mcnemar["p"] == 1).all()
    assert sentences.answer(c).startswith("none and focal have the same macro F1")


def test_what_differs_between_methods_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "none")
    write_run(tmp_path / "1", "focal", settings={"optim.lr": 0.01}, git_commit="5678-dirty")
    notes = all_notes(compared(tmp_path))
    assert "Not the same in all runs: optim.lr." in notes
    assert "The runs come from different versions of the code: 1234, 5678-dirty." in notes


def test_unfinished_runs_are_left_out_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", "none")
    failed, running, torn, cut, empty, odd = (write_run(tmp_path / f"runs/{k}", "focal", seed=k) for k in range(1, 7))
    (failed / "status.json").write_text(json.dumps({"status": "failed", "reason": "loss is nan in epoch 1"}))
    (running / "status.json").write_text(json.dumps({"status": "running"}))
    (torn / "metrics.json").write_text('{"test/n": 36')
    lines = (cut / "predictions.csv").read_text().splitlines()
    (cut / "predictions.csv").write_text("\n".join(lines[:100]))
    (empty / "metrics.json").unlink()
    (odd / "predictions.csv").write_text("\n".join(lines).replace(",fear,", ",anger,"))
    c = compare_and_report([tmp_path / "runs"], tmp_path / "out", quiet())
    assert list(c.rows) == ["none"]
    report = words((tmp_path / "out" / "report.md").read_text()).replace("\\", "")
    for reason in (
        "failed: loss is nan in epoch 1",
        "metrics.json: damaged, not JSON",
        "predictions.csv has 99 rows of test but test/n is 360",
        "no metrics.json",
        "'anger' is not one of angry, disgust",
    ):
        assert reason in report
    assert re.search(r"runs/2: running", report)


@pytest.mark.slow
def test_ceiling_by_ferplus_votes(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", "none")
    table = pd.read_csv(tmp_path / "runs/0/predictions.csv")
    columns = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt", "unknown", "nf")
    votes = pd.DataFrame(0, index=range(len(table)), columns=list(columns))
    votes["neutral"] = 10  # everyone sees a neutral face everywhere
    votes.insert(0, "path", table["id"])
    votes.to_csv(tmp_path / "votes.csv", index=False)
    c = compare_and_report([tmp_path / "runs"], tmp_path / "out", quiet(), votes=tmp_path / "votes.csv")
    assert c.ceiling is not None
    ceiling = c.ceiling.set_index("class")
    assert ceiling["agreement"].to_dict() == {emotion: float(emotion == "neutral") for emotion in EMOTIONS}
    assert ceiling["n"].tolist() == list(TEST_COUNTS)
    write_run(tmp_path / "other/0", "none", labels="ferplus")
    with pytest.raises(UserError, match="labels=ferplus"):
        compared(tmp_path / "other", votes=tmp_path / "votes.csv")


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "sweep")
    main([str(tmp_path / "sweep"), "--baseline", "focal"])
    assert str(tmp_path / "sweep" / "report" / "report.html") in capsys.readouterr().out.replace("\n", "")
    main([str(tmp_path / "sweep")])  # the report folder is not taken for a run
    write_run(tmp_path / "sweep" / "9-z", data_hash="other")
    for arguments, message in (
        (["nowhere"], "nowhere is not a folder"),
        (["sweep"], "differ in data hash (abc; other)"),
        (["sweep/0-none-seed0", "--baseline", "x"], "baseline x: no run has"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            run_tool(lambda given=arguments: main([str(tmp_path / given[0]), *given[1:]]))
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


@pytest.mark.nightly
def test_the_report_names_places_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_sweep(tmp_path / "outputs" / "sweep") / "sweep.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    compare_and_report(find_runs([Path("outputs/sweep")]), Path("report"), quiet())
    text = (tmp_path / "report" / "report.md").read_text()
    assert "`python -m fer_lightning.compare outputs/sweep --out report`" in text
    assert str(tmp_path) not in text


def test_a_link_in_place_of_the_report_is_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"report: is a link that points outside"):
        compare_and_report([tmp_path / "run"], None, quiet())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run folder in"):
        compare_and_report([tmp_path / "empty"], tmp_path / "out", quiet())
    folder = write_run(tmp_path / "runs/0")
    (folder / "status.json").write_text(json.dumps({"status": "failed", "reason": "no such file"}))
    with pytest.raises(UserError, match=r"no run can be compared \(1 found\).*failed: no such file"):
        compare_and_report([tmp_path / "runs"], tmp_path / "out", quiet())
    metrics = json.loads((write_run(tmp_path / "runs/1") / "metrics.json").read_text())
    untested = {key.replace("test/", "val/"): value for key, value in metrics.items()}
    (tmp_path / "runs/1/metrics.json").write_text(json.dumps(untested))
    with pytest.raises(UserError, match=r"\(2 found\); .*/runs/1: not tested \(test=false\); .* in trials.csv"):
        compare_and_report([tmp_path / "runs"], tmp_path / "out", quiet())


@pytest.mark.nightly
def test_comparing_needs_no_torch() -> None:
    code = "import sys, fer_lightning.compare; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.nightly
def test_the_report_is_one_wandb_run(tmp_path: Path, forked: Callable[..., Outcome]) -> None:
    write_sweep(tmp_path / "sweep", 2, {name: SKILLS[name] for name in ("none", "focal")})
    done = forked("sweep", "--wandb", "faces", module="fer_lightning.compare", WANDB_MODE="offline")
    assert done.code == 0, done.err
    assert "wandb sync" in done.err + done.out
    (run,) = read_offline_runs(tmp_path / "sweep" / "report")
    assert run.project == "faces"
    assert run.exit_code == 0
    assert "focal" in run.tags
    columns, rows = run.table("differences")
    written = pd.read_csv(tmp_path / "sweep" / "report" / "differences.csv")
    assert columns == list(written.columns)
    assert len(rows) == len(written) == 6
    assert run.file("method_bars").exists()
    assert run.file("page").read_text().lstrip().lower().startswith("<!doctype html>")
    assert any(key.startswith("f1_macro/focal") for key in run.summary)


@pytest.mark.slow
def test_a_sweep_that_logs_to_wandb_logs_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [
        write_run(tmp_path / str(seed), "focal", seed, settings={"logger.project": "faces", "logger.entity": None})
        for seed in range(2)
    ]
    (folders[0] / "wandb").mkdir()
    logged = []
    monkeypatch.setattr("fer_lightning.report.to_wandb.log_report", lambda *given: logged.append(given))
    compare_sweep(folders, tmp_path / "report")
    ((_, out, project, entity),) = logged
    assert (out, project, entity) == (tmp_path / "report", "faces", None)


@pytest.mark.parametrize(
    "logger", [None, "csv", ["a"], {"project": 5, "entity": {"a": "b"}}, {"project": "${none}", "entity": None}]
)
def test_a_damaged_logger_of_a_run_costs_the_upload_alone(logger, tmp_path: Path, capsys) -> None:
    folders = [write_run(tmp_path / str(seed), "focal", seed) for seed in range(2)]
    (folders[0] / "wandb").mkdir()
    file = folders[0] / ".hydra" / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "logger": logger}))
    assert compare_sweep(folders, tmp_path / "report")[0] == tmp_path / "report"
    assert f"[sweep] not logged to W&B: {file}: damaged" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_sweep_that_logs_to_mlflow_logs_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name, value in mlflow_run.DEFAULTS.items():
        monkeypatch.setenv(name, value)
    database = mlflow_run.database(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    settings = {"logger.project": "faces", "logger.entity": None}
    methods = ("none", "focal")
    folders = [write_run(tmp_path / f"{name}{k}", name, k, settings=settings) for name in methods for k in range(2)]
    (folders[0] / mlflow_run.RUN_ID_FILE).write_text("0" * 32)
    compare_sweep(folders, tmp_path / "report")
    client = mlflow.MlflowClient(database)
    (run,) = client.search_runs([client.get_experiment_by_name("faces").experiment_id])
    assert (run.info.status, run.data.tags["report"], run.data.tags["methods"]) == ("FINISHED", "true", "none, focal")
    assert any(key.startswith("f1_macro/focal") for key in run.data.metrics)
    kept = Path(client.download_artifacts(run.info.run_id, ""))
    assert (kept / "report.html").read_bytes() == (tmp_path / "report" / "report.html").read_bytes()
    assert (kept / "method_bars.png").exists()
    table = json.loads((kept / "differences.json").read_text())
    assert table["columns"] == list(pd.read_csv(tmp_path / "report" / "differences.csv").columns)


def test_every_pair_of_rows_has_one_estimate(tmp_path: Path) -> None:
    c = compared(write_sweep(tmp_path / "sweep", 2))
    assert list(zip(c.pairs["first"], c.pairs["second"], strict=True)) == list(combinations(c.rows, 2))
    assert c.pairs["p_holm"].tolist() == pytest.approx(statistics.holm(c.pairs["p"]).tolist())
    assert (c.pairs["seeds"] == 2).all()


def test_the_command_in_a_report_names_the_runs_that_were_given(tmp_path: Path) -> None:
    """A sweep's folder stands for its jobs; the folder above other runs may hold further ones, or a whole disk."""
    runs = [write_run(tmp_path / "runs" / str(seed), "none", seed) for seed in range(4)]
    compare_and_report(runs, tmp_path / "out", quiet())
    assert all(str(run) in (tmp_path / "out" / "report.md").read_text() for run in runs)
    (tmp_path / "runs" / "sweep.json").write_text("{}")
    compare_and_report(runs, tmp_path / "out", quiet())
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"fer_lightning.compare {tmp_path / 'runs'} " in text
    compare_and_report([*runs[:3], write_run(tmp_path / "other", "none", 4)], tmp_path / "out", quiet())
    assert str(tmp_path / "other") in (tmp_path / "out" / "report.md").read_text()
