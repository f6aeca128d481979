"""A checkpoint scored again: the same numbers to the last digit, and nothing that it must not do."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import image_files, tiny_faces, write_zip
from command_line import TINY
from legs import every_third

from fer_lightning import evaluate
from fer_lightning.__main__ import main
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.from_config import split_faces
from fer_lightning.data.splits import official, paper
from fer_lightning.data.synthetic import draw
from fer_lightning.evaluation import checkpoint_split, scorecard
from fer_lightning.evaluation import probabilities as inference
from fer_lightning.evaluation import score as scoring
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.metrics.predictions import probability_columns
from fer_lightning.model.checkpoint import StoredModel, read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json

MKDIR = {"_target_": "os.mkdir", "path": "sprung"}
SCORED = ("test/", "test_dedup/", "val/")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_zip(image_files(tiny_faces()), tmp_path_factory.mktemp("data") / "archive.zip")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive) -> Path:
    """The run folder of a model trained on files; shared, so not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    settings = [setting for setting in TINY if not setting.startswith("data")]
    files = ("data=fer2013", f"data.path={archive}", f"data.cache_dir={folder / 'cache'}", "data.batch_size=14")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = ["fer_lightning", *settings, *files, "optim.lr=0.01", "trainer.max_epochs=3", "hydra.run.dir=run"]
        patch.setattr(sys, "argv", run)
        main()
    return folder / "run"


@pytest.fixture
def score(capfd) -> Callable[..., str]:
    """The tool in this process; returns what it prints."""

    def call(run: Path, *arguments: str) -> str:
        capfd.readouterr()
        evaluate.main([str(run / "checkpoints" / "best.ckpt"), *arguments])
        return capfd.readouterr().out

    return call


def scores(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if key.startswith(SCORED)}


class TestTheSameNumbers:
    def test_a_run_folder_stands_for_its_checkpoint(self, trained, capfd):
        evaluate.main([str(trained)])
        whole = capfd.readouterr().out
        evaluate.main([str(trained / "checkpoints" / "best.ckpt")])
        assert capfd.readouterr().out == whole
        with pytest.raises(UserError, match="not a run folder"):
            evaluate.main([str(trained / "checkpoints")])

    def test_the_runs_own_split_is_made_once(self, trained, monkeypatch):
        made = []
        monkeypatch.setattr(
            checkpoint_split, "split_faces", lambda cfg, faces: made.append(cfg.seed) or split_faces(cfg, faces)
        )
        model = EmotionClassifier.load(trained / "checkpoints" / "best.ckpt")
        checkpoint_split.load_split(model, [])
        assert made == [0]
        checkpoint_split.load_split(model, ["split.val_fraction=0.3"])
        assert made == [0, 0, 0]

    def test_every_score_equals_the_runs_to_the_last_digit(self, trained, score, tmp_path):
        out = score(trained, "--out", str(tmp_path / "again"))
        before, again = read_json(trained / "metrics.json"), read_json(tmp_path / "again" / "metrics.json")
        assert len(again) > 3 * 25
        assert scores(again) == scores(before)
        headline = json.loads(out.splitlines()[-1])
        assert headline["test/f1_macro"] == before["test/f1_macro"]
        assert headline["checkpoint"] == str(trained / "checkpoints" / "best.ckpt")
        assert (tmp_path / "again" / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()

    def test_curves_of_another_model_are_not_drawn(self, trained, score, tmp_path):
        (tmp_path / "metrics.csv").write_text("epoch\nnonsense\n")
        score(trained, "--out", str(tmp_path))
        assert (tmp_path / "confusion_matrix.png").exists()
        assert not (tmp_path / "curves.png").exists()

    def test_without_out_nothing_is_written(self, trained, score):
        # In one process with the run, its log file is still listening.
        files = [path for path in trained.rglob("*") if path.name != "train.log"]
        before = {path: path.stat().st_mtime_ns for path in files}
        score(trained)
        assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.name != "train.log"} == before

    @pytest.mark.nightly
    def test_training_leaves_no_trace_in_them(self, trained, score, tmp_path):
        torch.manual_seed(99)
        np.random.seed(99)
        score(trained, "--out", str(tmp_path / "again"))
        assert scores(read_json(tmp_path / "again" / "metrics.json")) == scores(read_json(trained / "metrics.json"))


class TestPriorOptions:
    def test_sets_and_prior_beside_the_plain_scores(self, trained, score, tmp_path):
        out = score(trained, "--set", "0.5", "--prior", "uniform", "--out", str(tmp_path / "again"))
        before, again = read_json(trained / "metrics.json"), read_json(tmp_path / "again" / "metrics.json")
        assert (before["set_level"], again["set_level"]) == (0.9, 0.5)
        assert before["test/set_size"] > again["test/set_size"]
        assert again["test/f1_macro"] == before["test/f1_macro"]
        assert again["prior/disgust"] == pytest.approx(1 / 7)
        assert {"test_prior/nll", "test_dedup_prior/f1_macro"} <= set(again)
        assert "prior uniform: " in out
        assert (tmp_path / "again" / "predictions_prior.csv").exists()

    def test_a_checkpoint_without_validation_scores_gets_them(self, trained, score, tmp_path):
        """From the validation images of its own split: to the last digit what the run would have stored."""
        content = read_checkpoint(trained / "checkpoints" / "best.ckpt")
        card = content["hyper_parameters"]["scorecard"]
        fewer = {key: value for key, value in card.items() if not key.startswith(("conformal", "prior/"))}
        (tmp_path / "checkpoints").mkdir()
        copied = Path(shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "checkpoints"))
        scorecard.store(StoredModel.read(copied), fewer)
        score(tmp_path, "--store")
        stored = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["hyper_parameters"]["scorecard"]
        assert stored == card
        with pytest.raises(UserError, match=r"--store=split\.val_fraction=0\.3: leave it out"):
            score(tmp_path, "--store", "split.val_fraction=0.3")


class TestOtherImages:
    @pytest.mark.nightly
    def test_moved_but_equal_images_are_the_same(self, trained, archive, score, tmp_path):
        moved = shutil.copy(archive, tmp_path / "moved.zip")
        out = score(trained, f"data.path={moved}", "--out", str(tmp_path / "again"))
        assert "unknown whether" not in out
        assert scores(read_json(tmp_path / "again" / "metrics.json")) == scores(read_json(trained / "metrics.json"))

    def test_changed_images_are_announced(self, trained, score, tmp_path, caplog):
        other = write_zip(image_files(tiny_faces(private=3, seed=1)), tmp_path / "other.zip")
        with caplog.at_level("INFO"):
            out = score(trained, f"data.path={other}")
        assert "it is unknown whether any of these images trained the model" in caplog.text
        assert "the images or labels are not those of the run" in caplog.text
        assert json.loads(out.splitlines()[-1])["test/n"] == 21

    def test_missing_archive_is_reported(self, trained, score):
        with pytest.raises(UserError, match=r"data\.path=gone\.zip does not exist"):
            score(trained, "data.path=gone.zip")

    @pytest.mark.nightly
    def test_another_split_of_the_same_images(self, trained, score, tmp_path):
        score(trained, "split.val_fraction=0.3", "--out", str(tmp_path / "cut"))
        score(trained, "--out", str(tmp_path / "own"))
        cut, own = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cut", "own"))
        assert cut["test/n"] == own["test/n"] == 14
        assert cut["val/n"] != own["val/n"]

    @pytest.mark.slow
    def test_images_that_trained_the_model_are_no_test(self, cli, score, tmp_path):
        assert cli(*TINY, "split=kfold", "split.folds=3", f"hydra.run.dir={tmp_path / 'fold'}").code == 0
        with pytest.raises(UserError, match="test images trained or selected this model"):
            score(tmp_path / "fold", "split.fold=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    every_third(
        [
            (["optim.lrr=1"], "optim.lrr: no such key (did you mean optim.lr?)"),
            (["data.source.pth=x"], "data.source.pth: no such key (did you mean data.source.path?)"),
            (
                ["optim.lr=3"],
                "optim.lr=3: describes the trained model and cannot be changed; accepted are",
            ),
            (["model.name=resnet18"], "model.name=resnet18: describes the trained model"),
            (["split.name=paper"], "split.name=paper: describes the trained model"),
            (["imbalance.name=focal"], "imbalance.name=focal: describes the trained model"),
            (["split.val_fraction=["], "cannot be read as key=value"),
            (["split.val_fraction=2"], "split.val_fraction=2: must lie between 0 and 1"),
            (["split._target_=os.system"], "split._target_=os.system: is not code of this project"),
            (["trainer.accelerator=abacus"], "trainer.accelerator=abacus"),
            (["--set", "90"], "--set 90.0: must lie between 0 and 1, such as 0.9"),
            (["--prior", "unifrom"], "--prior unifrom: no such file; give uniform, training, estimated"),
        ]
    ),
)
def test_mistakes_are_one_line(trained, score, arguments, message):
    with pytest.raises(UserError) as caught:
        score(trained, *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_real_process_ends_in_one_line_and_code_2(forked):
    outcome = forked("nothing.ckpt", module="fer_lightning.evaluate")
    assert outcome.code == 2
    assert outcome.error == "error: nothing.ckpt: no such checkpoint; give a run's checkpoints/best.ckpt"


class TestDevice:
    def test_cpu_is_the_cpu(self):
        assert inference.pick_device("cpu") == torch.device("cpu")

    def test_auto_is_what_there_is(self):
        there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        assert inference.pick_device("auto") == torch.device(there)

    @pytest.mark.parametrize("name", every_third(["gpu", "cuda"]))
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_missing_gpu_is_reported(self, trained, score, name):
        with pytest.raises(UserError, match=f"trainer.accelerator={name}: .*use trainer.accelerator=cpu"):
            score(trained, f"trainer.accelerator={name}")


class TestUntrustedCheckpoint:
    """Its configuration chooses data, and must not choose code."""

    @pytest.fixture
    def forge(self, trained, tmp_path, monkeypatch) -> Callable[..., Path]:
        """A run folder whose checkpoint was changed."""
        monkeypatch.chdir(tmp_path)

        def call(**changed: dict) -> Path:
            checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
            config = checkpoint["hyper_parameters"]["config"]
            config["split"] = changed.get("split", config["split"])
            config["data"]["source"] = changed.get("source", config["data"]["source"])
            (tmp_path / "forged" / "checkpoints").mkdir(parents=True)
            torch.save(checkpoint, tmp_path / "forged" / "checkpoints" / "best.ckpt")
            return tmp_path / "forged"

        return call

    @pytest.mark.parametrize(
        "node",
        every_third(
            [
                MKDIR,
                {"_target_": "fer_lightning.sweeps.hook.os.mkdir", "path": "sprung"},
                {"_target_": "fer_lightning.data.fer2013.load", "path": MKDIR},
                {"_target_": "fer_lightning.data.fer2013.load", "_args_": [MKDIR]},
                {"_target_": "fer_lightning.data.fer2013.load", "path": "x", "_recursive_": True, "cache_dir": MKDIR},
            ]
        ),
        ids=["elsewhere", "through this package", "nested", "nested in a list", "recursive"],
    )
    def test_data_source_is_not_executed(self, score, forge, tmp_path, node):
        forged = forge(source=node)
        with pytest.raises((UserError, TypeError)):
            score(forged)
        assert not (tmp_path / "sprung").exists()

    def test_split_is_not_executed(self, score, forge, tmp_path):
        forged = forge(split={"_target_": "os.mkdir", "path": "sprung", "name": "official"})
        with pytest.raises(UserError, match=r"split\._target_=os\.mkdir: is not code of this project"):
            score(forged)
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.nightly
    def test_forging_works(self, trained, score, forge, archive, tmp_path):
        """The counterpart: only what the node says keeps the forged checkpoints above from being scored."""
        score(forge(source={"_target_": "fer_lightning.data.fer2013.load", "path": str(archive)}), "--out", "again")
        assert scores(read_json(tmp_path / "again" / "metrics.json")) == scores(read_json(trained / "metrics.json"))


class TestPrediction:
    @pytest.fixture
    def model(self) -> EmotionClassifier:
        torch.manual_seed(0)
        head = {"hidden": [8], "activation": "ReLU", "batch_norm": True, "dropout": 0.5}
        arguments = {"name": "test_efficientnet", "weights": "none", "in_channels": 1, "image_size": 48}
        more = {"stem_stride": 2, "drop_path": 0.5, "head": head, "freeze_epochs": 0}
        return EmotionClassifier({**arguments, **more}, {}, [1] * 7, {}, {})

    def test_probabilities_of_every_image_whatever_the_batches(self, model):
        images = np.random.default_rng(0).integers(0, 256, (inference.BATCH_SIZE + 3, 48, 48), dtype=np.uint8)
        probabilities = inference.predict(model.train(), images, torch.device("cpu"))
        assert (probabilities.shape, probabilities.dtype) == ((inference.BATCH_SIZE + 3, 7), np.float64)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
        with torch.inference_mode():
            last = model.eval()(torch.from_numpy(images[-3:])).double().softmax(dim=1).numpy()
        np.testing.assert_allclose(probabilities[-3:], last, atol=1e-6)

    def test_batches_of_large_images_are_small_on_a_cpu(self):
        cpu, gpu = torch.device("cpu"), torch.device("cuda")
        assert [inference.batch_size(size, cpu) for size in (32, 48, 96, 224, 480)] == [256, 256, 64, 16, 16]
        assert inference.batch_size(224, gpu) == inference.BATCH_SIZE

    def test_scored_channels_last(self, model):
        """As in training: slower otherwise."""
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last)
            for weight in model.network.parameters()
            if weight.ndim == 4
        )

    def test_broken_weights_are_reported(self, model):
        with torch.no_grad():
            model.network.conv_stem.weight.mul_(float("nan"))
        with pytest.raises(UserError, match="the model's probabilities are NaN"):
            inference.predict(model, np.zeros((2, 48, 48), np.uint8), torch.device("cpu"))

    def test_every_set_is_scored_on_its_own_images(self, model):
        faces = draw(400)
        split = paper(faces, 0, val_fraction=0.2)
        evaluation = scoring.evaluate(model, faces, split, torch.device("cpu"))
        sets = {**split.tests, "val": split.val}
        arms = {f"test_{arm}{dedup}" for arm in ("large", "balanced") for dedup in ("", "_dedup")}
        assert set(sets) == {"test", "test_dedup", "val"} | arms
        for name, indices in sets.items():
            alone = classification_metrics(
                inference.predict(model, faces.images[indices], torch.device("cpu")),
                faces.labels[indices],
                EMOTIONS,
                f"{name}/",
            )
            for key, value in alone.items():
                assert evaluation.metrics[key] == pytest.approx(value, abs=1e-6), key

    def test_one_row_of_predictions_for_each_test_image(self, model):
        faces = tiny_faces()
        images = faces.images.copy()
        training, private = (np.flatnonzero(faces.usage == USAGES.index(name)) for name in ("Training", "PrivateTest"))
        images[private[0]] = images[training[0]]  # a twin in training
        faces = Faces.from_arrays(images, faces.labels, faces.usage, faces.ids, "tiny")
        rows = scoring.evaluate(model, faces, official(faces, 0), torch.device("cpu")).predictions
        assert rows["id"].tolist() == faces.ids[private].tolist()
        assert rows["label"].tolist() == [EMOTIONS[label] for label in faces.labels[private]]
        assert set(rows["usage"]) == {"PrivateTest"}
        assert rows["test_dedup"].tolist() == [0] + [1] * (len(private) - 1)
        assert rows["twin_group"].tolist() == faces.twins[private].tolist()
        best = rows[probability_columns(EMOTIONS)].to_numpy().argmax(axis=1)
        assert rows["prediction"].tolist() == [EMOTIONS[label] for label in best]
