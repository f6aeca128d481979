"""Several models as one checkpoint: its probabilities, its files, what is refused, what other commands do with it."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import TINY
from legs import every_third
from omegaconf import OmegaConf

import fer_lightning as fl
from fer_lightning import card, ensemble, evaluate
from fer_lightning.config.compose import compose_config
from fer_lightning.config.settings import to_plain
from fer_lightning.data.faces import EMOTIONS, Faces
from fer_lightning.data.splits import official
from fer_lightning.data.synthetic import draw
from fer_lightning.deploy.export import export_checkpoint
from fer_lightning.deploy.graph import Deployable, as_colour, export_metadata
from fer_lightning.deploy.int8 import first_convolutions
from fer_lightning.deploy.request import ExportRequest
from fer_lightning.evaluation.checkpoint_split import common_split
from fer_lightning.evaluation.ensemble import join
from fer_lightning.evaluation.probabilities import classify, predict
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.model.checkpoint import StoredModel, read_checkpoint, write_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.training.first_stage import load_first_stage

CPU = torch.device("cpu")
TEMPERATURES = (1.5, 0.8)


@pytest.fixture(scope="module")
def faces() -> Faces:
    return draw(400)


def untrained(faces: Faces, seed: int, temperature: float | None, *overrides: str) -> EmotionClassifier:
    """A model of random weights, as a run leaves it, with logits large enough to differ."""
    cfg = compose_config([*TINY, f"seed={seed}", *overrides])
    torch.manual_seed(seed)
    model = EmotionClassifier(
        to_plain(cfg.model),
        to_plain(cfg.optim),
        [1] * 7,
        to_plain(cfg, resolve=False),
        {"data_hash": faces.data_hash},
        scorecard=None if temperature is None else {"temperature": temperature},
        form={"size": 48, "color": False},
    )
    with torch.no_grad():
        model.head[-1].weight *= 20
    return model.eval()


def save(model: EmotionClassifier, path: Path) -> Path:
    write_checkpoint(path, {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)})
    return path


@pytest.fixture(scope="module")
def members(faces: Faces) -> list[EmotionClassifier]:
    """Of other networks, input sizes and stem strides."""
    other = ("model.name=test_resnet", "model.image_size=64", "model.stem_stride=null")
    return [untrained(faces, 0, TEMPERATURES[0]), untrained(faces, 1, TEMPERATURES[1], *other)]


@pytest.fixture(scope="module")
def files(members: list[EmotionClassifier], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("members")
    return [save(member, folder / f"{number}.ckpt") for number, member in enumerate(members)]


@pytest.fixture(scope="module")
def written(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ensemble") / "new" / "both.ckpt"
    ensemble.main([*map(str, files), "-o", str(out)])
    return out


@pytest.fixture
def expected(members: list[EmotionClassifier], faces: Faces) -> np.ndarray:
    """The mean of the members' calibrated probabilities of the first images."""
    each = zip(members, TEMPERATURES, strict=True)
    return np.mean([apply_temperature(predict(model, faces.images[:40], CPU), t) for model, t in each], axis=0)


class TestProbabilities:
    def test_they_are_the_mean_of_the_calibrated_ones(self, written, faces, expected):
        model = EmotionClassifier.load(written)
        np.testing.assert_allclose(predict(model, faces.images[:40], CPU), expected, atol=1e-6)
        assert len(np.unique(expected.argmax(axis=1))) > 1

    def test_logits_are_the_log_of_the_mean(self, written, faces, expected):
        with torch.inference_mode():
            logits = EmotionClassifier.load(written)(torch.from_numpy(faces.images[:40]))
        np.testing.assert_allclose(logits.exp().numpy(), expected, atol=1e-6)

    def test_a_probability_of_zero_keeps_its_logarithm(self, members, faces):
        models = copy.deepcopy(members)
        with torch.no_grad():
            for model in models:
                model.head[-1].bias[0] = -1000.0
            logits = join(models)(torch.from_numpy(faces.images[:4]))
        assert torch.isfinite(logits).all()
        assert (logits[:, 0] < -500).all()

    def test_a_model_without_temperature_counts_as_it_is(self, members, faces):
        plain, calibrated = copy.deepcopy(members)
        plain.hparams["scorecard"] = None
        images = faces.images[:8]
        mean = (predict(plain, images, CPU) + apply_temperature(predict(calibrated, images, CPU), 0.8)) / 2
        np.testing.assert_allclose(predict(join([plain, calibrated]), images, CPU), mean, atol=1e-6)


class TestTheCheckpoint:
    def test_it_holds_plain_values_and_the_members_as_they_were(self, written, members):
        torch.load(written, weights_only=True)
        model = EmotionClassifier.load(written)
        for copied, member in zip(model.members, members, strict=True):
            for key, tensor in member.state_dict().items():
                assert torch.equal(copied.state_dict()[key], tensor)

    def test_its_scorecard_has_its_own_scores(self, written, faces):
        model = EmotionClassifier.load(written)
        scores = model.hparams["scorecard"]
        test = official(faces, 0).tests["test"]
        plain = predict(model, faces.images[test], CPU)
        direct = classification_metrics(plain, faces.labels[test], EMOTIONS, "test/")
        assert {key: scores[key] for key in direct} == direct
        assert scores["temperature"] > 0
        assert scores["model"] == "ensemble of 2: test_efficientnet, test_resnet"
        assert (scores["seed"], scores["imbalance"], scores["data"]) == ("0, 1", "none", "synthetic")
        np.testing.assert_allclose(
            classify(model, faces.images[:9], CPU),
            apply_temperature(predict(model, faces.images[:9], CPU), scores["temperature"]),
        )

    @pytest.mark.slow
    def test_evaluate_gives_the_same_digits(self, written, capsys, tmp_path):
        evaluate.main([str(written), "--out", str(tmp_path / "again")])
        headline = json.loads(capsys.readouterr().out.splitlines()[-1])
        scores = EmotionClassifier.load(written).hparams["scorecard"]
        assert {key: scores[key] for key in headline if key != "checkpoint"} == {
            key: value for key, value in headline.items() if key != "checkpoint"
        }
        metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
        assert metrics["model"] == "ensemble of 2: test_efficientnet, test_resnet"

    def test_the_python_api_and_the_card_read_it(self, written, faces, capsys):
        classifier = fl.load(written, device="cpu")
        assert classifier.calibrated
        assert len(classifier.predict(faces.images[:3])) == 3
        card.main([str(written)])
        text = capsys.readouterr().out
        assert "Mean of the calibrated probabilities of 2 networks: `test_efficientnet` of timm at 48 pixels" in text
        assert "`test_resnet` of timm at 64 pixels" in text
        assert "2; learning rate and what follows are the first one" in text

    def test_metadata_of_an_export_name_every_member(self, written):
        metadata = export_metadata(EmotionClassifier.load(written))
        assert [each["model"]["name"] for each in metadata["model"]["members"]] == ["test_efficientnet", "test_resnet"]
        assert [each["temperature"] for each in metadata["model"]["members"]] == list(TEMPERATURES)
        json.dumps(metadata)

    def test_older_checkpoints_and_new_runs_have_no_members(self, files):
        assert "members" not in torch.load(files[0], weights_only=True)["hyper_parameters"]
        assert read_checkpoint(files[0])["hyper_parameters"]["members"] is None
        assert EmotionClassifier.load(files[0]).members == []


def test_maps_are_the_mean_of_the_members_maps(members, faces):
    saliency = pytest.importorskip("fer_lightning.inference.saliency")
    images, classes = faces.images[:3], np.array([0, 3, 6])
    mean = np.mean([saliency.saliency_maps(model, images, classes, CPU) for model in members], axis=0)
    maps = saliency.saliency_maps(join(members), images, classes, CPU)
    np.testing.assert_allclose(maps, mean / mean.max(axis=(1, 2), keepdims=True), atol=1e-6)
    assert maps.dtype == np.float32


class TestExport:
    def test_the_graph_gives_the_mean_too(self, written, faces):
        model = EmotionClassifier.load(written)
        pictures = torch.from_numpy(as_colour(faces.images[:6]))
        with torch.inference_mode():
            answers = Deployable(model, 1.7)(pictures)
        expected = apply_temperature(predict(model, faces.images[:6], CPU), 1.7)
        np.testing.assert_allclose(answers.numpy(), expected, atol=1e-5)

    @pytest.mark.nightly
    def test_onnx_and_int8(self, written, tmp_path, capsys):
        out = tmp_path / "both.int8.onnx"
        export_checkpoint(ExportRequest(written, "onnx", [], out, int8=True))
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["parity"]["max_difference"] < 1e-4
        assert out.exists()

    def test_weights_of_one_network_are_refused(self, written):
        with pytest.raises(UserError, match=r"--format safetensors: holds the weights of one network"):
            export_checkpoint(ExportRequest(written, "safetensors", []))

    def test_the_first_convolutions_of_each_network_stay_in_float32(self):
        def node(kind: str, name: str, source: str) -> Any:
            return SimpleNamespace(op_type=kind, name=name, input=[source, f"{name}.weight"], output=[name])

        chains = [[f"{network}{place}" for place in range(4)] for network in "ab"]
        nodes = [node("Mul", "images", "in")]
        for one, other in zip(*chains, strict=True):  # one node of each in turn
            for name in (one, other):
                before = "images" if name.endswith("0") else f"{name[0]}{int(name[1]) - 1}"
                nodes.append(node("Conv", name, before))
        graph = SimpleNamespace(node=nodes)
        assert first_convolutions(graph, 2) == ["a0", "b0", "a1", "b1"]
        assert first_convolutions(graph, 1) == ["a0", "b0"]


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "reason"),
        every_third(
            [
                (["0.ckpt"], "1 run given: an ensemble has 2 to 100"),
                (["0.ckpt", "0.ckpt"], r"0\.ckpt: is given twice"),
                (
                    ["0.ckpt", "1.ckpt", "split.val_fraction=0.3"],
                    r"split\.val_fraction=0\.3: an ensemble is scored on its",
                ),
                (["0.ckpt", "1.ckpt", "-o", "e.onnx"], r"--out e\.onnx: must be a file whose name ends in \.ckpt"),
                (["0.ckpt", "1.ckpt", "-o", "0.ckpt"], r"--out 0\.ckpt: exists and is not overwritten"),
                (["0.ckpt", "none.ckpt"], r"none\.ckpt: no such checkpoint"),
                (["0.ckpt", "."], r"\.: this run is missing; give the folders of finished runs"),
            ]
        ),
    )
    def test_requests(self, files, monkeypatch, words, reason):
        monkeypatch.chdir(files[0].parent)
        with pytest.raises(UserError, match=reason):
            ensemble.main(words)

    def test_a_folder_with_an_equals_sign_is_a_run(self, files, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copy(files[0], tmp_path / "lr=0.1.ckpt")
        with pytest.raises(UserError, match=r"b/lr=0\.2\.ckpt: no such checkpoint"):
            ensemble.main(["lr=0.1.ckpt", "b/lr=0.2.ckpt"])

    @pytest.mark.parametrize(
        ("change", "reason"),
        every_third(
            [
                (lambda hyper: hyper.update(classes=[f"c{k}" for k in range(7)]), "its classes differ from those of"),
                (
                    lambda hyper: hyper.update(form={"size": 64, "color": False}),
                    r"its images differ .*\(64x64 gray; 48x48 gray",
                ),
                (
                    lambda hyper: hyper["provenance"].update(data_hash="other"),
                    r"its data differ from those of .*\(other;",
                ),
                (lambda hyper: hyper["config"]["split"].update(val_fraction=0.2), "its settings of the split differ"),
            ]
        ),
        ids=["classes", "images", "data", "split"],
    )
    def test_members_that_do_not_fit(self, files, tmp_path, change, reason):
        content = read_checkpoint(files[1])
        change(content["hyper_parameters"])
        write_checkpoint(tmp_path / "other.ckpt", content)
        with pytest.raises(UserError, match=reason):
            ensemble.main([str(files[0]), str(tmp_path / "other.ckpt"), "-o", str(tmp_path / "e.ckpt")])
        assert not (tmp_path / "e.ckpt").exists()

    def test_the_same_weights_twice(self, files, tmp_path):
        copy = shutil.copy(files[0], tmp_path / "copy.ckpt")
        with pytest.raises(UserError, match=r"copy\.ckpt: has the same weights as .*0\.ckpt; give each model once"):
            ensemble.main([str(files[0]), str(copy), "-o", str(tmp_path / "e.ckpt")])

    def test_an_ensemble_of_ensembles(self, files, written, tmp_path):
        with pytest.raises(UserError, match=r"both\.ckpt: is an ensemble; give its members"):
            ensemble.main([str(files[0]), str(written), "-o", str(tmp_path / "e.ckpt")])

    def test_folds_that_trained_on_each_others_test_images(self, faces):
        split = official(faces, 0)
        other = replace(split, tests={**split.tests, "test": split.val})
        with pytest.raises(UserError, match="the members were tested on different images"):
            common_split([split, other])

    def test_as_a_first_stage(self, written, members, faces):
        cfg = OmegaConf.create({"imbalance": {"first_stage": str(written)}})
        with pytest.raises(UserError, match=r"both\.ckpt: is an ensemble, which has no last layer of its own"):
            load_first_stage(members[0], cfg, StoredModel.read(written), faces.data_hash)


def test_validation_images_are_those_that_trained_no_member(faces):
    splits = [official(faces, seed, val_fraction=0.4) for seed in (0, 1)]
    common = common_split(splits)
    assert 0 < len(common.val) < len(splits[0].val)
    for split in splits:
        assert set(common.val) <= set(split.val)
        assert not set(common.val) & set(split.train)
        assert set(common.tests["test_dedup"]) <= set(split.tests["test_dedup"])
    assert common_split(splits[:1]) is splits[0]


def members_of(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda hyper: change(hyper["members"])


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one member": (members_of(lambda each: each.pop()), "it does not have 2 to 100 members"),
    "members of text": (lambda hyper: hyper.update(members="ab"), "it does not have 2 to 100 members"),
    "a member of text": (lambda hyper: hyper.update(members=["a", "b"]), "a member lacks hyper-parameters"),
    "a member with more": (members_of(lambda each: each[0].update(evil=1)), "or has unknown ones"),
    "a nested one": (members_of(lambda each: each[0].update(members=[each[1]] * 2)), "a member is an ensemble"),
    "other classes": (
        members_of(lambda each: each[0].update(classes=list("abcdefg"))),
        "its members have other classes",
    ),
    "other images": (members_of(lambda each: each[0].update(form=None)), "its members have images of other sizes"),
    "a temperature of 0": (
        members_of(lambda each: each[0]["scorecard"].update(temperature=0.0)),
        "its temperature is 0",
    ),
    "a larger network": (
        members_of(lambda each: each[0]["model"].update(name="efficientnet_b0")),
        "weights, and the",
    ),
    "another network": (
        members_of(lambda each: each.reverse()),
        "has .* weights, and the checkpoint only|not fit together",
    ),
    "no mapping": (members_of(lambda each: each[0].update(model=3)), "its hyper-parameter model is not a mapping"),
}


@pytest.mark.parametrize("case", every_third(DAMAGED))
def test_a_damaged_ensemble_is_refused_in_one_line(written, tmp_path, case):
    change, reason = DAMAGED[case]
    content = torch.load(written, weights_only=True)
    content["hyper_parameters"] = copy.deepcopy(content["hyper_parameters"])
    change(content["hyper_parameters"])
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=reason) as caught:
        EmotionClassifier.load(tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value)
