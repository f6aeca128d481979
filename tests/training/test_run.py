"""Whole runs through the entry: the run folder, its numbers, resume, several processes."""

import hashlib
import json
import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, only_run
from legs import every_nth

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.training.run import _best_checkpoint, quiet_libraries


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_libraries_are_quiet_during_a_run_only(error) -> None:
    names = ("lightning.pytorch", "lightning.fabric", "timm", "huggingface_hub")
    levels, filters = [logging.getLogger(name).level for name in names], list(warnings.filters)
    with pytest.raises(error) if error else nullcontext(), quiet_libraries():
        assert all(logging.getLogger(name).level >= logging.WARNING for name in names)
        with warnings.catch_warnings(record=True) as shown:
            warnings.warn("The 'train_dataloader' does not have many workers", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        assert [str(each.message) for each in shown] == ["something else"]
        if error:
            raise error
    assert [logging.getLogger(name).level for name in names] == levels
    assert list(warnings.filters) == filters


DRAWN = "say nothing about FER-2013"


@pytest.fixture
def finished(cli, tmp_path) -> tuple[Path, dict]:
    outcome = cli(*TINY, "imbalance=weighted", "seed=3", "figures=true")
    assert outcome.code == 0, outcome.err
    return only_run(tmp_path / "outputs"), outcome.json


def test_the_run_folder_holds_the_contract(finished):
    folder, line = finished
    log = (folder / "train.log").read_text()
    assert "Images of each emotion, train + val + test: angry " in log
    assert "Class weights in the loss: angry " in log
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("test", "test_dedup", "val"):
        for key in ("n", "accuracy", "balanced_accuracy", "f1_macro", "worst_recall", "nll", "ece"):
            assert f"{name}/{key}" in metrics
        for emotion in EMOTIONS:
            assert {f"{name}/{score}/{emotion}" for score in ("recall", "precision", "f1")} <= set(metrics)
    for key in (
        "train/seconds",
        "train/images_per_second",
        "train/steps",
        "epoch",
        "data_hash",
        "git_commit",
        "versions",
    ):
        assert key in metrics
    assert (metrics["seed"], metrics["imbalance"], metrics["model"]) == (3, "weighted", "test_efficientnet")
    assert (metrics["split"], metrics["data"], metrics["synthetic"]) == ("official", "synthetic", True)
    assert json.loads((folder / "status.json").read_text()) == {"status": "done"}
    pictures = ("confusion_matrix.png", "class_distribution.png", "curves.png", "mistakes.png")
    for name in (*pictures, ".hydra/config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv"):
        assert (folder / name).stat().st_size > 0
    assert not any(set("=") & set(str(path.relative_to(folder))) for path in folder.rglob("*"))
    assert line["run"] == str(folder)
    assert line["test/f1_macro"] == metrics["test/f1_macro"]


@pytest.mark.slow
def test_predictions_agree_with_the_metrics(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    predictions = pd.read_csv(folder / "predictions.csv")
    assert len(predictions) == metrics["test/n"]
    assert (predictions["label"] == predictions["prediction"]).mean() == pytest.approx(
        metrics["test/accuracy"], abs=1e-12
    )
    probabilities = predictions[[f"p_{emotion}" for emotion in EMOTIONS]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)
    assert predictions["test_dedup"].sum() == metrics["test_dedup/n"]
    assert set(predictions["usage"]) == {"PrivateTest"}


@pytest.mark.nightly
def test_validation_while_training_equals_the_exact_one(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    curves = pd.read_csv(folder / "metrics.csv")
    logged = curves.loc[curves["epoch"] == metrics["epoch"], "val/f1_macro"].dropna().item()
    assert logged == pytest.approx(metrics["val/f1_macro"], abs=1e-6)


@pytest.mark.nightly
def test_drawn_faces_are_called_so(cli):
    outcome = cli(*TINY)
    assert DRAWN in outcome.out


@pytest.mark.nightly
def test_the_same_seed_gives_the_same_weights_and_another_does_not(cli, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli(*TINY, "augment=strong", f"seed={seed}", f"hydra.run.dir={tmp_path / name}").code == 0
        weights.append(EmotionClassifier.load(tmp_path / name / "checkpoints" / "best.ckpt").state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@pytest.mark.parametrize(
    "overrides",
    [
        ["imbalance=focal", "callbacks=ema", "callbacks.ema.decay=0.9"],
        *(
            pytest.param(words.split(), marks=pytest.mark.nightly)
            for words in (
                "imbalance=undersample",
                "imbalance=undersample_redraw",
                "imbalance=oversample augment=light augment.backend=albumentations data.num_workers=1",
                "imbalance=sqrt_sampler optim=sgd optim.layer_decay=0.8 model.freeze_epochs=1 trainer.max_epochs=2",
                "imbalance=class_balanced model.in_channels=3",
                "imbalance=focal imbalance.loss.weights={disgust:5}",
                "imbalance=weighted_bce model.freeze_epochs=1 optim.backbone_lr_scale=0.1",
                "imbalance=none split=paper",
                "imbalance=none split=paper split.subset=balanced split.val_fraction=0.2",
                "imbalance=none split=kfold split.folds=3 split.fold=2",
                "imbalance=none split.val_fraction=0.2 split.train_size=200 callbacks=[ema,early_stopping]",
                "imbalance=none logger=tensorboard trainer.precision=bf16-mixed",
            )
        ),
    ],
    ids=" ".join,
)
def test_every_choice_trains(cli, tmp_path, overrides):
    outcome = cli(*TINY, *overrides)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((only_run(tmp_path / "outputs") / "metrics.json").read_text())
    assert np.isfinite(metrics["test/nll"])
    assert ("val/n" in metrics) == ("split=paper" not in overrides or "split.val_fraction=0.2" in overrides)


@pytest.mark.nightly
def test_resume_starts_after_the_last_epoch(cli, tmp_path):
    three = ["optim.schedule=constant", "optim.warmup_fraction=0"]
    assert cli(*TINY, *three, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'run'}").code == 0
    outcome = cli(*TINY, *three, "trainer.max_epochs=3", "resume=auto", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 0
    assert outcome.out.count("epoch 3/3") == 1
    assert "epoch 2/3" not in outcome.out
    curves = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert curves["val/loss"].notna().sum() == 3


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resumed_weights_are_bit_identical(cli, tmp_path, workers):
    """Order and augmentation of the resumed epoch are its own; workers prefetch before Lightning names the epoch."""
    same = [*TINY, "augment=light", "optim.schedule=constant", "optim.warmup_fraction=0", "model.head.dropout=0"]
    backend = "albumentations" if workers else "batched"
    same += [f"augment.backend={backend}", f"data.num_workers={workers}"]
    assert cli(*same, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path / 'whole'}").code == 0
    assert cli(*same, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'parts'}").code == 0
    assert cli(*same, "trainer.max_epochs=3", "resume=auto", f"hydra.run.dir={tmp_path / 'parts'}").code == 0
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert all(torch.equal(whole["state_dict"][key], parts["state_dict"][key]) for key in whole["state_dict"])


@pytest.mark.nightly
def test_another_folder_remembers_the_best(cli, tmp_path):
    """A run that gets worse in a new folder still tests its best epoch so far."""
    same = [*TINY, "optim.schedule=constant", "optim.warmup_fraction=0", "optim.lr=0.004"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli(*same, "trainer.max_epochs=6", f"hydra.run.dir={first}").code == 0
    best = json.loads((first / "metrics.json").read_text())
    # A best score that cannot be beaten stands for a run that gets worse.
    checkpoint = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    for name, state in checkpoint["callbacks"].items():
        if "f1_macro" in name:
            state["best_model_score"] = torch.tensor(1.0)
            state["best_k_models"] = {path: torch.tensor(1.0) for path in state["best_k_models"]}
            state["kth_value"] = torch.tensor(1.0)
    kept = torch.load(first / "checkpoints" / "best.ckpt", weights_only=True)
    for content, name in ((checkpoint, "last.ckpt"), (kept, "best.ckpt")):
        rows = content["callbacks"]["Curves"]["rows"]
        for row in rows[best["epoch"] : best["epoch"] + 1]:
            row["val/f1_macro"] = 1.0
        torch.save(content, first / "checkpoints" / name)
    moved = tmp_path / "moved"
    first.rename(moved)
    assert cli(*same, "trainer.max_epochs=7", f"resume={moved}", f"hydra.run.dir={second}").code == 0
    metrics = json.loads((second / "metrics.json").read_text())
    assert metrics["epoch"] == best["epoch"]
    assert metrics["val/f1_macro"] == best["val/f1_macro"]


@pytest.mark.parametrize(
    ("changes", "message"),
    every_nth(
        3,
        [
            (["imbalance=focal"], "imbalance.name was 'none' there and cannot become 'focal'"),
            (["split.val_fraction=0.2"], "split.val_fraction was None there"),
            (["seed=1"], "seed was 0 there and cannot become 1"),
            (["data.source.seed=1"], "trained on other images"),
            (["optim.lr=0.1"], "optim.lr was"),
            (["trainer.max_epochs=1"], "it has all 1 epochs"),
            (["data.batch_size=16"], "data.batch_size was 32 there and cannot become 16"),
            (["augment=light"], "augment.name was 'none' there and cannot become 'light'"),
            (["callbacks=ema"], "callbacks.ema._target_ was not set there"),
            (["trainer.precision=bf16-mixed"], "trainer.precision was"),
            (["model.freeze_epochs=1"], "model.freeze_epochs was 0 there and cannot become 1"),
            (["trainer.gradient_clip_val=9"], "trainer.gradient_clip_val was 1.0 there and cannot become 9"),
        ],
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_resuming_another_experiment_is_refused(cli, finished_once, changes, message):
    outcome = cli(*TINY, "trainer.max_epochs=2", f"resume={finished_once}", *changes)
    assert outcome.code == 2
    assert message in outcome.error


@pytest.fixture(scope="module")
def finished_once(trained_once) -> Path:
    return trained_once(*TINY)


@pytest.mark.slow
def test_two_processes_give_an_exact_test_and_the_same_draw(forked, tmp_path):
    outcome = forked(*TINY, "trainer.devices=2", "hydra.run.dir=two", "callbacks=ema")
    assert outcome.code == 0, outcome.err
    assert "error" not in outcome.err.lower()
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    predictions = pd.read_csv(tmp_path / "two" / "predictions.csv")
    assert predictions["id"].is_unique
    assert len(predictions) == metrics["test/n"]
    assert metrics["devices"] == 2
    curves = pd.read_csv(tmp_path / "two" / "metrics.csv")
    logged = curves["val/f1_macro"].dropna().iloc[-1]
    assert logged == pytest.approx(metrics["val/f1_macro"], abs=1e-6), "shards of validation must add up exactly"
    again = forked(str(tmp_path / "two" / "checkpoints" / "best.ckpt"), module="fer_lightning.evaluate")
    assert {key: again.json[key] for key in again.json if key.startswith("test/")} == {
        key: metrics[key] for key in again.json if key.startswith("test/")
    }


@pytest.mark.nightly
@pytest.mark.real
def test_the_paper_line_on_real_faces(cli, tmp_path, real_archive, real_weights):
    outcome = cli(
        f"data.path={real_archive}",
        "imbalance=focal",
        "model=tf_efficientnetv2_b0",
        f"model.weights={real_weights}",
        "model.image_size=48",
        "split.train_size=256",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "logger=csv",
    )
    assert outcome.code == 0, outcome.err
    assert "28,709 Training" in outcome.out
    metrics = json.loads((only_run(tmp_path / "outputs") / "metrics.json").read_text())
    assert metrics["test/n"] == 3589
    assert metrics["synthetic"] is False
    assert sum(metrics["train/class_counts"].values()) == 256


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_compiling_in_place_keeps_the_names_of_the_weights(process, tmp_path):
    outcome = process(*TINY, "model.compile=true", "hydra.run.dir=compiled", timeout=580)
    assert outcome.code == 0, outcome.err
    weights = torch.load(tmp_path / "compiled" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in weights if "_orig_mod" in key]
    EmotionClassifier.load(tmp_path / "compiled" / "checkpoints" / "best.ckpt")


def test_an_empty_best_checkpoint_has_a_way_out(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(UserError, match=r"best\.ckpt: is empty or damaged.*remove it, and resume=auto tests the last"):
        _best_checkpoint(SimpleNamespace(checkpoint_callback=None), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("override", ["trainer.limit_val_batches=0", "trainer.check_val_every_n_epoch=9"])
def test_a_run_without_validation_tests_its_last_epoch(cli, tmp_path, override):
    outcome = cli(*TINY, override)
    assert outcome.code == 0, outcome.err
    assert "no validation has chosen a checkpoint: the last epoch is tested" in outcome.out
    assert outcome.json["test/n"] == 56


@pytest.mark.slow
def test_fer_2013_trains_to_the_numbers_from_before_other_sets_were_read(cli, real_archive, tmp_path):
    """Of commit ``fccbd60``, which knew no other data: to the last digit there, and closely on other CPUs."""
    run = tmp_path / "run"
    outcome = cli(
        *("model=test_efficientnet", "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=csv", "figures=false"),
        *(f"data.path={real_archive}", "data.batch_size=32", "split.train_size=400", "split.val_fraction=0.1"),
        *("imbalance=weighted", "augment=light", "seed=3", f"hydra.run.dir={run}"),
    )
    assert outcome.code == 0, outcome.error
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["data_hash"] == "d01156c0044de51c2f60274e49948205"
    rows = pd.read_csv(run / "predictions.csv", dtype=str)
    lines = rows[["id", "usage", "label", "twin_group", "test_dedup"]].agg(",".join, axis=1)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == "7251005f3fbd18a20f0b79ab58aed9c4"
    curves = pd.read_csv(run / "metrics.csv").iloc[-1]
    assert curves["train/loss"] == pytest.approx(1.9465986490249634, rel=1e-4)
    assert curves["val/loss"] == pytest.approx(1.9613627195358276, rel=1e-4)
    assert metrics["test/nll"] == pytest.approx(1.9410817970256324, rel=1e-4)
