"""Comparing runs, on run folders written here with known predictions."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from fer_lightning.compare import RESAMPLES, bootstrap_f1, compare, main
from fer_lightning.config import run_tool
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.metrics import classification_metrics, confusion_matrix, macro_f1
from fer_lightning.runs import find_runs, read_run, read_runs

TEST_COUNTS = (49, 6, 53, 88, 59, 42, 63)
TRAIN_COUNTS = dict(zip(EMOTIONS, (3995, 436, 4097, 7215, 4830, 3171, 4965), strict=True))

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a finished run folder; ``skill`` is the share of images that are right, disgust apart."""

    def write(
        name: str,
        imbalance: str = "none",
        seed: int = 0,
        skill: float = 0.6,
        rare_skill: float = 0.3,
        counts: tuple[int, ...] = TEST_COUNTS,
        settings: dict[str, Any] | None = None,
        **metrics: Any,
    ) -> Path:
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        rng = np.random.default_rng([seed, *map(ord, imbalance)])
        labels = np.repeat(np.arange(7), counts)
        right = rng.random(len(labels)) < np.where(labels == 1, rare_skill, skill)
        predictions = np.where(right, labels, (labels + rng.integers(1, 7, len(labels))) % 7)
        probabilities = 0.3 / 7 + 0.7 * np.eye(7)[predictions]
        scores = {
            **classification_metrics(probabilities, labels),
            **classification_metrics(probabilities[5:], labels[5:], "test_dedup/"),
            "train/seconds": 60.0 + seed,
            "train/class_counts": TRAIN_COUNTS,
            "epoch": 2,
            "seed": seed,
            "imbalance": imbalance,
            "model": "efficientnet_b0",
            "split": "official",
            "data": "fer2013",
            "data_hash": "abc",
            "synthetic": False,
            "git_commit": "1234",
            **metrics,
        }
        named = np.array(EMOTIONS)
        table = pd.DataFrame(
            {
                "id": [f"test/{named[k]}/PrivateTest_{i}.jpg" for i, k in enumerate(labels)],
                "usage": "PrivateTest",
                "label": named[labels],
                "prediction": named[predictions],
                **{f"p_{emotion}": probabilities[:, k] for k, emotion in enumerate(EMOTIONS)},
                "twin_group": np.arange(len(labels)),
                "test_dedup": 1,
            }
        )
        table.to_csv(folder / "predictions.csv", index=False)
        (folder / "metrics.json").write_text(json.dumps(scores))
        (folder / "status.json").write_text(json.dumps({"status": "done"}))
        config: dict[str, Any] = {
            "seed": seed,
            "name": "x",
            "imbalance": {"name": imbalance, "loss": {"_target_": "L"}},
            "optim": {"lr": 0.001},
        }
        for key, value in (settings or {}).items():
            group, knob = key.rsplit(".", 1)
            node = config
            for part in group.split("."):
                node = node.setdefault(part, {})
            node[knob] = value
        OmegaConf.save(config, folder / ".hydra" / "config.yaml")
        return folder

    return write


def sweep(write_run: WriteRun, seeds: int = 1, **common: Any) -> None:
    skills = {"none": (0.6, 0.0), "undersample": (0.45, 0.6), "weighted": (0.56, 0.5), "focal": (0.61, 0.2)}
    for seed in range(seeds):
        for number, (method, (skill, rare)) in enumerate(skills.items()):
            write_run(f"sweep/{seed * 4 + number}-{method}-seed{seed}", method, seed, skill, rare, **common)


def quiet() -> Console:
    return Console(width=160, record=True, file=io.StringIO())


def words(text: str) -> str:
    return " ".join(text.split())


def test_one_seed_table_and_report(write_run: WriteRun, tmp_path: Path) -> None:
    sweep(write_run)
    console = quiet()
    frame = compare([tmp_path / "sweep"], tmp_path / "report", console)

    assert frame["method"].tolist() == ["none", "undersample", "weighted", "focal"]
    assert frame["seeds"].tolist() == [1, 1, 1, 1]
    for _, row in frame.iterrows():
        metrics = json.loads(next((tmp_path / "sweep").glob(f"*-{row.method}-*/metrics.json")).read_text())
        assert row["accuracy"] == metrics["test/accuracy"]
        assert row["f1_macro"] == metrics["test/f1_macro"]
        assert row["test_dedup/f1_macro"] == metrics["test_dedup/f1_macro"]
        assert metrics[f"test/recall/{row['worst_class']}"] == metrics["test/worst_recall"]
        assert row["f1_macro_low"] < row["f1_macro"] < row["f1_macro_high"]
    assert frame["accuracy_sd"].isna().all()
    assert np.isnan(frame["f1_macro_difference"][0])
    np.testing.assert_allclose(frame["f1_macro_difference"][1:], frame["f1_macro"][1:] - frame["f1_macro"][0])
    assert (frame["f1_macro_difference_low"][1:] < frame["f1_macro_difference"][1:]).all()

    shown = words(console.export_text())
    assert "One seed cannot rank methods" in shown
    assert "SYNTHETIC" not in shown
    assert "FER-2013 · split official · test n = 360" in shown
    report = (tmp_path / "report" / "report.md").read_text()
    pictures = re.findall(r"\]\((.+?\.png)\)", report)
    assert sorted(pictures) == [
        "class_distribution.png",
        "confusion_matrices.png",
        "method_bars.png",
        "recall_by_class.png",
    ]
    for picture in pictures:
        assert matplotlib.image.imread(tmp_path / "report" / picture).shape[0] > 300
    best = frame.loc[frame["accuracy"].idxmax(), "accuracy"]
    assert f"**{best:.3f}**" in report
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "report" / "comparison.csv"), frame, check_dtype=False)


def test_several_seeds_give_mean_and_sample_deviation(write_run: WriteRun, tmp_path: Path) -> None:
    sweep(write_run, seeds=3)
    console = quiet()
    frame = compare([tmp_path / "sweep"], tmp_path / "report", console).set_index("method")
    values = [
        json.loads(file.read_text())["test/f1_macro"] for file in (tmp_path / "sweep").glob("*-focal-*/metrics.json")
    ]
    assert len(values) == frame.loc["focal", "seeds"] == 3
    assert frame.loc["focal", "f1_macro"] == pytest.approx(np.mean(values))
    assert frame.loc["focal", "f1_macro_sd"] == pytest.approx(np.std(values, ddof=1))
    assert frame.loc["focal", "f1_macro_difference_pairs"] == 3
    assert frame.loc["none", "worst_class"] == "disgust"
    shown = words(console.export_text())
    assert "One seed" not in shown
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in shown


def test_bootstrap_agrees_with_theory_and_pairs_runs(write_run: WriteRun) -> None:
    """With equal classes and equal recalls macro F1 is close to accuracy, whose error is binomial."""
    good, better = (
        read_run(write_run(name, name, skill=skill, rare_skill=skill, counts=(300,) * 7))
        for name, skill in (("a", 0.6), ("b", 0.8))
    )
    scores = bootstrap_f1([good, better, good])
    assert scores.shape == (RESAMPLES, 3)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])
    whole = macro_f1(confusion_matrix(good.labels, good.predictions))
    assert scores[:, 0].mean() == pytest.approx(whole, abs=0.003)
    assert scores[:, 0].std() == pytest.approx(np.sqrt(0.6 * 0.4 / 2100), rel=0.15)
    np.testing.assert_array_equal(scores, bootstrap_f1([good, better, good]))


@pytest.mark.parametrize(
    "other", [{"data_hash": "other"}, {"split": "paper"}, {"data": "synthetic", "synthetic": True}]
)
def test_what_is_not_comparable_is_in_separate_tables(
    write_run: WriteRun, tmp_path: Path, other: dict[str, Any]
) -> None:
    write_run("runs/0", "none")
    write_run("runs/1", "focal", **other)
    console = quiet()
    frame = compare([tmp_path / "runs"], tmp_path / "out", console)
    assert frame["table"].tolist() == [0, 1]
    assert frame["f1_macro_difference"].isna().all() if "f1_macro_difference" in frame else True
    assert "separate tables" in words(console.export_text())
    assert (tmp_path / "out" / "0" / "method_bars.png").exists()
    assert (tmp_path / "out" / "1" / "method_bars.png").exists()


def test_another_number_of_test_images_is_another_table(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "none")
    write_run("runs/1", "undersample", counts=(10,) * 7)
    assert compare([tmp_path / "runs"], tmp_path / "out", quiet())["table"].tolist() == [0, 1]


def test_folds_are_repeats_of_one_experiment(write_run: WriteRun, tmp_path: Path) -> None:
    for fold in range(3):
        counts = (49 + fold, *TEST_COUNTS[1:])
        write_run(f"runs/{fold}", "focal", counts=counts, split="kfold", settings={"split.fold": fold})
    frame = compare([tmp_path / "runs"], tmp_path / "out", quiet())
    assert frame["seeds"].tolist() == [3]
    assert "f1_macro_low" not in frame


def test_drawn_faces_are_announced_everywhere(write_run: WriteRun, tmp_path: Path) -> None:
    sweep(write_run, data="synthetic", synthetic=True)
    console = quiet()
    compare([tmp_path / "sweep"], tmp_path / "report", console)
    shown = console.export_text()
    assert shown.index("SYNTHETIC DATA") < shown.index("undersample")
    assert "say nothing about FER-2013" in words(shown)
    assert "SYNTHETIC DATA" in (tmp_path / "report" / "report.md").read_text().splitlines()[2]


def test_a_varied_knob_makes_a_row_and_not_a_seed(write_run: WriteRun, tmp_path: Path) -> None:
    for number, gamma in enumerate((1.0, 2.0)):
        write_run(f"runs/{number}", "focal", skill=0.5 + gamma / 10, settings={"imbalance.loss.gamma": gamma})
    frame = compare([tmp_path / "runs"], tmp_path / "out", quiet())
    assert frame["method"].tolist() == ["focal gamma=1.0", "focal gamma=2.0"]
    assert frame["seeds"].tolist() == [1, 1]


def test_models_are_named_when_there_are_several(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "none")
    write_run("runs/1", "none", model="tf_efficientnetv2_b0")
    frame = compare([tmp_path / "runs"], tmp_path / "out", quiet())
    assert frame["method"].tolist() == ["none efficientnet_b0", "none tf_efficientnetv2_b0"]


def test_settings_that_differ_between_methods_are_told(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "none")
    write_run("runs/1", "focal", settings={"optim.lr": 0.01}, git_commit="5678-dirty")
    console = quiet()
    compare([tmp_path / "runs"], tmp_path / "out", console)
    shown = words(console.export_text())
    assert "Not the same in all runs: optim.lr." in shown
    assert "different versions of the code: 1234, 5678-dirty" in shown


def test_a_repeated_run_is_no_second_seed(write_run: WriteRun, tmp_path: Path) -> None:
    old, new = write_run("a/0", "focal"), write_run("b/0", "focal", skill=0.5)
    os.utime(old / "metrics.json", (1, 1))
    runs, skipped = read_runs(find_runs([tmp_path / "a", tmp_path / "b"]))
    assert [run.folder for run in runs] == [new]
    assert "newer" in skipped[old]


def test_unfinished_runs_are_left_out_with_the_reason(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "none")
    failed, running, torn, cut, empty, odd = (write_run(f"runs/{k}", "focal", seed=k) for k in range(1, 7))
    (failed / "status.json").write_text(json.dumps({"status": "failed", "reason": "loss is nan in epoch 1"}))
    (running / "status.json").write_text(json.dumps({"status": "running"}))
    (torn / "metrics.json").write_text('{"test/n": 36')
    lines = (cut / "predictions.csv").read_text().splitlines()
    (cut / "predictions.csv").write_text("\n".join(lines[:100]))
    (empty / "metrics.json").unlink()
    (odd / "predictions.csv").write_text("\n".join(lines).replace(",fear,", ",anger,"))
    console = quiet()
    frame = compare([tmp_path / "runs"], tmp_path / "out", console)
    assert frame["method"].tolist() == ["none"]
    shown = words(console.export_text())
    for reason in (
        "failed: loss is nan in epoch 1",
        "3: damaged json",
        "predictions.csv has 99 rows but test/n is 360",
        "no metrics.json",
        "'anger' is not one of angry, disgust",
    ):
        assert reason in shown
        assert reason in words((tmp_path / "out" / "report.md").read_text())
    assert re.search(r"runs/2: running", shown)


def test_metrics_that_lack_something_are_named(write_run: WriteRun) -> None:
    folder = write_run("0", "none", data_hash=None)
    with pytest.raises(ValueError, match=r"metrics\.json lacks data_hash"):
        read_run(folder)


def test_runs_are_found_in_number_order_and_once(write_run: WriteRun, tmp_path: Path) -> None:
    for name in ("10-none-seed1", "2-focal-seed0", "0-none-seed0"):
        write_run(f"sweep/{name}", seed=int(name.split("-")[0]))
    found = find_runs([tmp_path / "sweep", tmp_path / "sweep" / "2-focal-seed0"])
    assert [folder.name for folder in found] == ["0-none-seed0", "2-focal-seed0", "10-none-seed1"]


def test_a_picture_survives_scores_of_zero(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "none", rare_skill=0.0)
    write_run("runs/1", "focal", rare_skill=0.0)
    frame = compare([tmp_path / "runs"], tmp_path / "out", quiet())
    assert frame["worst_recall"].tolist() == [0.0, 0.0]
    assert (tmp_path / "out" / "method_bars.png").stat().st_size > 5000


def test_command_line(write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(write_run)
    main([str(tmp_path / "sweep")])
    assert str(tmp_path / "sweep" / "report" / "report.md") in capsys.readouterr().out.replace("\n", "")
    main([str(tmp_path / "sweep")])  # the report folder is not taken for a run
    with pytest.raises(SystemExit, match="2"):
        run_tool(lambda: main([str(tmp_path / "nowhere")]))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere is not a folder" in error


def test_nothing_to_compare(write_run: WriteRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run folder in"):
        compare([tmp_path / "empty"], tmp_path / "out", quiet())
    folder = write_run("runs/0")
    (folder / "status.json").write_text(json.dumps({"status": "failed", "reason": "no such file"}))
    with pytest.raises(UserError, match=r"none of the 1 runs is finished.*failed: no such file"):
        compare([tmp_path / "runs"], tmp_path / "out", quiet())


def test_comparing_needs_no_torch() -> None:
    code = "import sys, fer_lightning.compare; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
