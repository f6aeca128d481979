"""Second stages on kept features: the same as on images, shared between runs, with a backbone that stays as it was."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY
from omegaconf import OmegaConf

from fer_lightning.config.augment import Strengths
from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split
from fer_lightning.evaluation.probabilities import PooledFeatures, predict, predict_pooled
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.device_batches import Batch, EpochEntries, FeatureBatches
from fer_lightning.loading.randomness import entry_seed
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.training.feature_cache import backbone_digest, keep_features

FIRST = (*TINY, "data.source.images=300", "model.head.dropout=0.0")
CPU = torch.device("cpu")
PROBABILITIES = [f"p_{name}" for name in ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def first(trained_once) -> Path:
    return trained_once(*FIRST)


@pytest.fixture
def model(first: Path) -> EmotionClassifier:
    return EmotionClassifier.load(first / "checkpoints" / "best.ckpt")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 48, 48), dtype=np.uint8)


def settings(**changes: Any) -> Any:
    cfg = {
        "data": {"cache_dir": None},
        "imbalance": {"first_stage": "first", "feature_views": 4, "second_stage": {"trains": "head"}},
        "model": {"first_image_size": None},
        "augment": {"backend": "batched"},
        "test": True,
        "trainer": {"precision": "auto", "limit_train_batches": None, "fast_dev_run": False, "max_epochs": 3},
    }
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{key}={value}" for key, value in changes.items()]))


def parts(images: np.ndarray, **strengths: float) -> tuple[Any, Split]:
    """A data module as far as it is asked, and its split."""
    faces = SimpleNamespace(images=images, data_hash="hash", form=Faces)
    split = Split(np.arange(0, 20), np.arange(20, 30), {"test": np.arange(30, 40), "test_dedup": np.arange(32, 40)})
    augmentation = BatchedAugmentation(Strengths(**strengths), 48)
    return SimpleNamespace(faces=faces, split=split, augmentation=augmentation, mix=None), split


@pytest.mark.slow
def test_probabilities_from_kept_features_have_the_same_bits(model, images, caplog):
    datamodule, split = parts(images)
    caplog.set_level("INFO")
    kept = keep_features(settings(), model, datamodule, split, CPU)
    assert kept is not None
    np.testing.assert_array_equal(kept.scored.rows, np.arange(20, 40))
    assert kept.train is not None
    assert kept.train.shape[:2] == (1, 20)
    expected = predict(model, images[20:], CPU)
    np.testing.assert_array_equal(predict_pooled(model, kept.scored.at(np.arange(20, 40)), CPU), expected)
    assert kept.of(model) is kept.scored
    keep_features(settings(test=False), model, datamodule, replace(split, tests={"val": split.val}), CPU)
    assert [line for line in caplog.messages if line.startswith("computing")] == [
        f"computing the features of {images}, 1 view(s) of each"
        for images in ("20 validation and test images", "20 training images", "10 validation images")
    ]
    with torch.no_grad():
        next(model.network.parameters()).add_(1)
    assert kept.of(model) is None


@pytest.mark.slow
def test_views_are_those_of_the_augmentation(model, images):
    datamodule, split = parts(images, hflip=0.5, rotate=10.0)
    kept = keep_features(settings(), model, datamodule, split, CPU)
    assert kept is not None
    assert kept.train is not None
    assert len(kept.train) == 3, "no more views than epochs"
    assert not np.allclose(kept.train[0], kept.train[1])
    augmentation = datamodule.augmentation
    changes = augmentation.sample(entry_seed(0, 2, split.train.astype(np.uint64)))
    with torch.inference_mode():
        expected = model.pooled(augmentation(torch.from_numpy(images[:20]), changes, model.image_size))
    np.testing.assert_array_equal(kept.train[2], expected.numpy())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"imbalance.feature_views": 0}, ""),
        ({"imbalance.first_stage": "null"}, ""),
        ({"model.first_image_size": 32}, "model.first_image_size=32"),
        ({"trainer.limit_train_batches": 2}, "trainer.limit_train_batches=2"),
        ({"mix": True}, "imbalance/mix"),
    ],
    ids=str,
)
def test_without_them_the_reason_is_logged(images, caplog, changes, reason):
    datamodule, split = parts(images)
    datamodule.mix = changes.pop("mix", None)
    caplog.set_level("INFO")
    nothing: Any = None
    assert keep_features(settings(**changes), nothing, datamodule, split, CPU) is None
    assert [record.getMessage() for record in caplog.records] == (
        [f"{reason}: features are computed in every step, and not kept"] if reason else []
    )


def test_a_batch_of_features_is_a_function_of_its_position():
    features = np.arange(3 * 10 * 2, dtype=np.float32).reshape(3, 10, 2)
    targets = np.arange(10)
    indices = torch.tensor([4, 4, 7, 1, 9, 4])
    batches = FeatureBatches(features, targets, 5, CPU, CPU)
    values, labels = batches(Batch(EpochEntries(2, indices, torch.arange(6)), 0, 6))
    assert torch.equal(labels, indices)
    rest, _ = batches(Batch(EpochEntries(2, indices[3:], torch.arange(3, 6)), 1, 3))
    assert torch.equal(values[4:], rest)
    views = torch.stack(
        [(torch.from_numpy(features[:, index]) == value).all(1) for index, value in zip(indices, values, strict=True)]
    )
    assert torch.equal(views.sum(1), torch.ones(6, dtype=torch.int64))
    many = torch.zeros(600, dtype=torch.int64)
    shown, _ = batches(Batch(EpochEntries(0, many, torch.arange(600)), 0, 600))
    assert (torch.bincount((shown[:, 0] / 20).long(), minlength=3) > 150).all()


def test_rows_are_found_by_image():
    pooled = PooledFeatures(np.array([2, 5, 9]), np.array([[2.0], [5.0], [9.0]], np.float32))
    assert pooled.at(np.array([9, 2])).tolist() == [[9.0], [2.0]]


def test_the_digest_is_of_the_backbone_alone(model):
    before = backbone_digest(model.network)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(1)
    assert backbone_digest(model.network) == before
    statistics = next(name for name, _ in model.network.named_buffers() if name.endswith("running_mean"))
    model.network.get_buffer(statistics).add_(1)
    assert backbone_digest(model.network) != before


@pytest.mark.slow
def test_equals_training_on_images_and_is_shared(cli, first, tmp_path, monkeypatch):
    """Without augmentation; another method and another seed compute no features, and the backbone stays as it was."""
    stage = (*FIRST, f"imbalance.first_stage={first}", "trainer.max_epochs=2")
    for name, views in (("images", 0), ("features", 4)):
        outcome = cli(*stage, "imbalance=crt", f"imbalance.feature_views={views}", f"hydra.run.dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err
    assert "computing the features of" in outcome.out
    one, other = weights(tmp_path / "images"), weights(tmp_path / "features")
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
    tables = [pd.read_csv(tmp_path / name / "predictions.csv")[PROBABILITIES] for name in ("images", "features")]
    np.testing.assert_allclose(*tables, atol=1e-4)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("images", "features")]
    assert [each["first_stage/feature_views"] for each in metrics] == [None, 1]
    saved_twice = [(tmp_path / name / "checkpoints" / "previous.ckpt").exists() for name in ("images", "features")]
    assert saved_twice == [True, False]

    monkeypatch.setattr(EmotionClassifier, "pooled", lambda *arguments: pytest.fail("features were computed again"))
    outcome = cli(*stage, "imbalance=marc", "seed=7", f"hydra.run.dir={tmp_path / 'marc'}")
    assert outcome.code == 0, outcome.err
    before, after = weights(first, "best"), weights(tmp_path / "marc")
    assert {key for key in before if not torch.equal(before[key], after[key])} == set()
    assert {key for key in after if key not in before} == {
        "network.classifier.4.margin.scale",
        "network.classifier.4.margin.shift",
    }
    marc = json.loads((tmp_path / "marc" / "metrics.json").read_text())
    assert marc["train/class_counts"] == metrics[0]["train/class_counts"]
    monkeypatch.undo()

    # Folded: an ordinary checkpoint that gives the reported scores on images.
    folded = EmotionClassifier.load(tmp_path / "marc" / "checkpoints" / "best.ckpt")
    assert type(folded.head[-1]) is torch.nn.Linear
    assert weights(tmp_path / "marc", "best").keys() == before.keys()


@pytest.mark.nightly
@pytest.mark.parametrize("devices", [1, 2])
def test_evaluate_gives_the_same_scores(forked, first, tmp_path, devices):
    """From images, of a checkpoint that was trained and scored on kept features of augmented views."""
    stage = [*FIRST, f"imbalance.first_stage={first}", "trainer.max_epochs=2", "augment=light", "seed=3"]
    outcome = forked(*stage, "imbalance=los", f"trainer.devices={devices}", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["first_stage/feature_views"] == 2
    again = forked(str(tmp_path / "run" / "checkpoints" / "best.ckpt"), module="fer_lightning.evaluate")
    assert again.code == 0, again.err
    scores = {key: value for key, value in again.json.items() if key.startswith("test/")}
    assert scores == {key: metrics[key] for key in scores}
