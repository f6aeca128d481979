"""Reading run folders back."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from run_folders import TEST_COUNTS, write_run

from fer_lightning.api.run import Run
from fer_lightning.comparison.analysis import analyse_folders
from fer_lightning.comparison.runs import FIRST_STAGE, find_runs, read_run, read_runs
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.evaluation.artifacts import write_tables
from fer_lightning.evaluation.score import print_table
from fer_lightning.presentation.escapes import table_to_csv


def test_a_run_is_read_in_the_order_of_ids(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", "focal", seed=3, settings={"split.fold": 2})
    run = read_run(folder)
    table = pd.read_csv(folder / "predictions.csv").set_index("id")
    assert list(run.ids) == sorted(table.index)
    named = table.loc[run.ids]
    assert (named["p_happy"].to_numpy() == run.probabilities[:, 3]).all()
    assert (run.twins == named["twin_group"].to_numpy()).all()
    assert {name: int(member.sum()) for name, member in run.members.items()} == {"test": 360, "test_dedup": 355}
    assert run.repeat == (3, "2")
    expected = {"data": "fer2013", "data hash": "abc", "labels": "fer", "split": "official"}
    assert run.protocol == {"classes": ", ".join(EMOTIONS), **expected}


def test_ids_like_formulas_are_read_back(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    table = pd.read_csv(folder / "predictions.csv", dtype={"id": str})
    table["id"] = "=1+" + table["id"]
    (folder / "predictions.csv").write_text(table_to_csv(table))
    assert "\n'=1+" in (folder / "predictions.csv").read_text()
    assert list(read_run(folder).ids) == sorted(table["id"])


CLASHING = ("n", "steps", "NA", "null", "nan", "7", "test")


def test_classes_may_have_names_that_mean_something_elsewhere(tmp_path: Path) -> None:
    """``n`` and ``steps`` are scores too, pandas reads NA and null as missing and 7 as a number."""
    folder, names = write_run(tmp_path / "0"), dict(zip(EMOTIONS, CLASHING, strict=True))
    before = read_run(folder)
    for file in (folder / "metrics.json", folder / "predictions.csv"):
        text = file.read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        file.write_text(text)
    after = read_run(folder)
    assert after.classes == tuple(names.values())
    np.testing.assert_array_equal(np.sort(after.predictions), np.sort(before.predictions))
    table = Run(folder).predictions
    assert set(table["label"]) == set(names.values())
    print_table(after.metrics, after.classes)


@pytest.mark.parametrize("column", ["test", "twin_group"])
def test_missing_columns_are_named(column: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    table = pd.read_csv(folder / "predictions.csv")
    table.drop(columns=column).to_csv(folder / "predictions.csv", index=False)
    with pytest.raises(ValueError, match=rf"predictions\.csv lacks {column}"):
        read_run(folder)


@pytest.mark.parametrize("name", ["status.json", "metrics.json", "predictions.csv", ".hydra/config.yaml"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no {Path(name).name}"):
        read_run(folder)


def test_a_first_stage_of_its_own_makes_no_other_experiment(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / str(seed), "crt", seed, settings={"imbalance.first_stage": f"none-{seed}/best.ckpt"})
        for seed in range(2)
    ]
    assert read_run(folders[0]).settings == read_run(folders[1]).settings
    trained = read_run(write_run(tmp_path / "2", "crt", settings={"imbalance.first_stage": None}))
    assert trained.settings != read_run(folders[0]).settings
    file = folders[1] / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "first_stage/imbalance": "mixup"}))
    assert read_run(folders[1]).settings["imbalance.first_stage"] == "mixup"


def test_a_run_that_contradicts_the_others_about_the_images_is_left_out(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    file = folders[1] / "predictions.csv"
    pd.read_csv(file).assign(twin_group=0).to_csv(file, index=False)
    runs, skipped = read_runs(folders)
    assert [run.folder for run in runs] == [folders[0], folders[2]]
    assert "are not those of the other runs" in skipped[folders[1]]


ODD_IDS = ["=1+{}", " {}", "NA{}", "{}.0", "a\x1b[31m{}", "a\x00{}", "déjà{}", 'a,"{}', "a;=b\t{}", "'{}"]


@pytest.mark.parametrize("odd", ODD_IDS)
def test_a_damaged_id_leaves_the_run_out_and_not_the_comparison(tmp_path: Path, odd: str) -> None:
    folders = [write_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    for folder in folders:
        metrics = json.loads((folder / "metrics.json").read_text())
        table = pd.read_csv(folder / "predictions.csv", dtype={"id": str})
        table["id"] = [odd.format(name) for name in table["id"]]
        write_tables(folder, metrics, SimpleNamespace(predictions=table, augmented={}))
    assert len(read_runs(folders)[0]) == 3
    file = folders[1] / "predictions.csv"
    content = file.read_bytes()
    place = content.index(b"\n") + 3
    for damaged in (content[:place] + b"\0" + content[place:], content[:place] + b"Z" + content[place + 1 :]):
        file.write_bytes(damaged)
        runs, skipped = read_runs(folders)
        assert [run.folder for run in runs] == [folders[0], folders[2]]
        assert skipped[folders[1]]


def test_a_test_set_that_the_predictions_lack_is_named(tmp_path: Path) -> None:
    """It would be missing in the whole comparison."""
    folder = write_run(tmp_path / "run")
    file = folder / "predictions.csv"
    pd.read_csv(file).drop(columns="test_dedup").to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"predictions\.csv lacks test_dedup, of which metrics\.json has scores"):
        read_run(folder)


def test_values_given_as_the_seed_are_the_seed(tmp_path: Path) -> None:
    """A fold is a number; another setting that follows the seed makes each run a setting of its own."""
    given = {"split.fold": "${seed}", "optim.weight_decay": "${seed}", "imbalance.second_stage.seed": "${seed}"}
    runs = [read_run(write_run(tmp_path / str(seed), seed=seed, settings=given)) for seed in range(2)]
    assert [run.repeat for run in runs] == [(0, "0"), (1, "1")]
    assert [run.settings["optim.weight_decay"] for run in runs] == ["0", "1"]
    assert {run.settings["imbalance.second_stage.seed"] for run in runs} == {"${seed}"}


def test_a_first_stage_that_was_replaced_is_no_other_seed(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / str(number), "crt", seed, settings={FIRST_STAGE: f"none-{path}"}, first_stage_hash=digest)
        for number, (seed, path, digest) in enumerate([(0, "a", "1" * 32), (1, "a", "2" * 32), (2, "b", "3" * 32)])
    ]
    runs, skipped = read_runs(folders)
    assert [run.folder for run in runs] == [folders[0], folders[2]]
    assert skipped == {folders[1]: "its first stage has other weights than that of 0, with the same path"}


def test_a_repeated_run_is_no_second_seed(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "a/0", "focal"), write_run(tmp_path / "b/0", "focal", skill=0.5)
    os.utime(old / "metrics.json", (1, 1))
    runs, skipped = read_runs(find_runs([tmp_path / "a", tmp_path / "b"]))
    assert [run.folder for run in runs] == [new]
    assert "newer" in skipped[old]


def test_a_setting_that_is_null_is_like_one_that_is_not_there(tmp_path: Path) -> None:
    """Files of another version may lack it: with the same seed they are no second one."""
    given = [{"split.total": None}, {}, {"split.total": "None"}]
    folders = [write_run(tmp_path / f"{n}/0", settings=settings) for n, settings in enumerate(given)]
    runs, skipped = read_runs(folders)
    assert (len(runs), len(skipped)) == (1, 2)


def test_a_copy_under_another_seed_is_no_second_seed(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "0", seed=0), write_run(tmp_path / "1", seed=1)]
    (folders[1] / "predictions.csv").write_bytes((folders[0] / "predictions.csv").read_bytes())
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    (folders[1] / "metrics.json").write_text(json.dumps({**first, "seed": second["seed"]}))
    runs, skipped = read_runs(folders)
    assert [run.folder for run in runs] == folders[:1]
    assert skipped == {folders[1]: "its predictions are those of 0 to the last digit: no other seed"}


def test_training_images_that_contradict_those_of_the_same_split(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "0"), write_run(tmp_path / "1", "focal")]
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    metrics["train/class_counts"]["disgust"] += 1
    (folders[1] / "metrics.json").write_text(json.dumps(metrics))
    runs, skipped = read_runs(folders)
    assert [run.folder for run in runs] == folders[:1]
    assert skipped[folders[1]].startswith("its train/class_counts are not those of 0")


def test_other_initial_weights_are_another_setting(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(seed), seed=seed, weights_hash=str(seed) * 32) for seed in (0, 1)]
    assert [run.settings["model.weights_hash"] for run in read_runs(folders)[0]] == ["0" * 12, "1" * 12]


def test_metrics_that_lack_something_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.json lacks data_hash, labels"):
        read_run(write_run(tmp_path / "0", data_hash=None, labels=None))


def test_predictions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", **{"test_dedup/n": 12})
    with pytest.raises(ValueError, match=r"355 rows of test_dedup but test_dedup/n is 12"):
        read_run(folder)
    table = pd.read_csv(folder / "predictions.csv")
    table.drop(columns="p_sad").to_csv(folder / "predictions.csv", index=False)
    with pytest.raises(ValueError, match=r"predictions\.csv lacks p_sad"):
        read_run(folder)
    folder = write_run(tmp_path / "1")
    table.assign(p_sad=np.nan).to_csv(folder / "predictions.csv", index=False)
    with pytest.raises(ValueError, match="not numbers"):
        read_run(folder)
    (folder / "predictions.csv").write_text("")
    with pytest.raises(ValueError, match="No columns"):
        read_run(folder)


def test_scores_that_are_undefined_are_read(tmp_path: Path) -> None:
    counts = (*TEST_COUNTS[:1], 0, *TEST_COUNTS[2:])
    folder = write_run(tmp_path / "0", counts=counts)
    assert json.loads((folder / "metrics.json").read_text())["test/recall/disgust"] is None
    assert read_run(folder).metrics["test/f1_macro"] > 0


def test_runs_are_found_in_number_order_and_once(tmp_path: Path) -> None:
    for name in ("10-none-seed1", "2-focal-seed0", "0-none-seed0"):
        write_run(tmp_path / "sweep" / name, seed=int(name.split("-")[0]))
    found = find_runs([tmp_path / "sweep", tmp_path / "sweep" / "2-focal-seed0"])
    assert [folder.name for folder in found] == ["0-none-seed0", "2-focal-seed0", "10-none-seed1"]


def test_a_baseline_has_the_training_images_of_its_rows(tmp_path: Path) -> None:
    """Where one at the same ratio is missing, there is no difference to one at another ratio."""
    for method, ratio in (("none", 1), ("weighted", 1), ("weighted", 5)):
        write_run(tmp_path / f"{method}-{ratio}", method, settings={"split.ratio": ratio})
    comparison = analyse_folders([tmp_path])
    baselines = {name: base for name, base in comparison.baselines.items() if name != base}
    assert baselines == {"weighted ratio=1": "none ratio=1"}


def test_rows_name_what_thins_their_images(tmp_path: Path) -> None:
    """A headline over two ratios would be read as a difference of the methods."""
    write_run(tmp_path / "none", "none")
    write_run(tmp_path / "weighted", "weighted", settings={"split.ratio": 4})
    comparison = analyse_folders([tmp_path])
    assert set(comparison.rows) == {"none", "weighted ratio=4"}
    assert set(comparison.compared_with) == set()


def test_an_arm_of_the_paper_with_a_subset_of_its_own_has_a_baseline(tmp_path: Path) -> None:
    for method, subset in (("none", "large"), ("undersample", "balanced")):
        write_run(tmp_path / method, method, settings={"split.subset": subset})
    assert set(analyse_folders([tmp_path]).baselines.values()) == {"none"}
