"""Exported files: PyTorch's probabilities, their metadata, and nothing left behind when they differ."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from archives import image_files, write_zip
from command_line import TINY, Outcome

from fer_lightning import export
from fer_lightning.__main__ import main
from fer_lightning.config.command_line import run_tool
from fer_lightning.data import fer2013
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces, ImageForm
from fer_lightning.data.images import as_face
from fer_lightning.data.splits import official, whole
from fer_lightning.data.synthetic import draw
from fer_lightning.deploy import check, formats, graph, int8
from fer_lightning.deploy.export import default_folder
from fer_lightning.deploy.export import export as export_model
from fer_lightning.deploy.request import SUFFIXES
from fer_lightning.evaluation import scorecard
from fer_lightning.evaluation.probabilities import predict
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json

CPU = torch.device("cpu")
TEMPERATURE = 0.6


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """An archive of drawn faces."""
    drawn = draw(400)
    names = [
        f"{'train' if usage == 0 else 'test'}/{EMOTIONS[label]}/{USAGES[usage]}_{number}.jpg"
        for number, (label, usage) in enumerate(zip(drawn.labels, drawn.usage, strict=True))
    ]
    files = image_files(dataclasses.replace(drawn, ids=np.array(names)))
    return write_zip(files, tmp_path_factory.mktemp("data") / "archive.zip")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive) -> Path:
    """The run folder of a model trained on files; shared. Its temperature makes calibration visible in the results."""
    folder = tmp_path_factory.mktemp("trained")
    settings = [setting for setting in TINY if not setting.startswith("data")]
    files = ("data=fer2013", f"data.path={archive}", f"data.cache_dir={folder / 'cache'}", "data.batch_size=28")
    more = ("optim.lr=0.01", "trainer.max_epochs=3", "imbalance=weighted", "hydra.run.dir=run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fer_lightning", *settings, *files, *more])
        main()
    checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
    card = EmotionClassifier.load(checkpoint).hparams["scorecard"]
    scorecard.store(StoredModel.read(checkpoint), {**card, "temperature": TEMPERATURE})
    return folder / "run"


def call(trained: Path, *arguments: str) -> dict[str, Any]:
    """Run the command in this process; returns its last line of output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        export.main([str(trained / "checkpoints" / "best.ckpt"), *arguments])
    return json.loads(out.getvalue().splitlines()[-1])


class Exported(dict[str, dict[str, Any]]):
    """The command's result for each format asked for, exported to the default path."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run

    def __missing__(self, name: str) -> dict[str, Any]:
        self[name] = call(self.run, "--format", name)
        return self[name]


@pytest.fixture(scope="module")
def exported(trained) -> Exported:
    return Exported(trained)


@pytest.fixture(scope="module")
def quantized(trained) -> dict[str, Any]:
    return call(trained, "--format", "onnx", "--int8")


@pytest.fixture(scope="module")
def model(trained) -> EmotionClassifier:
    return EmotionClassifier.load(trained / "checkpoints" / "best.ckpt")


@pytest.fixture(scope="module")
def faces(archive, tmp_path_factory) -> Faces:
    return fer2013.load(str(archive), str(tmp_path_factory.mktemp("cache")))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth colour picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def expected(model: EmotionClassifier, photos: np.ndarray) -> np.ndarray:
    """Calibrated probabilities of RGB pictures, computed as other commands do."""
    gray = np.stack([as_face(np.ascontiguousarray(picture[..., ::-1]), ImageForm()) for picture in photos])
    return apply_temperature(predict(model, gray, CPU), TEMPERATURE)


FORMATS = [pytest.param(name, marks=[pytest.mark.nightly] * (name == "exported_program")) for name in SUFFIXES]


@pytest.mark.slow
class TestEveryFormat:
    @pytest.mark.parametrize("name", FORMATS)
    def test_file_is_beside_the_run_and_equals_pytorch_on_every_test_image(self, trained, exported, faces, name):
        result = exported[name]
        assert result["file"] == str(trained / "exports" / f"test_efficientnet{SUFFIXES[name]}")
        assert Path(result["file"]).stat().st_size == result["bytes"]
        assert result["parity"]["images"] == len(official(faces, 0).tests["test"]) == 56
        assert result["parity"]["max_difference"] <= check.TOLERANCE
        assert result["parity"]["other_answers"] == 0
        assert result["parity_photos"]["max_difference"] <= check.TOLERANCE

    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize(("batch", "height", "width"), [(1, 48, 48), (3, 120, 200), (2, 36, 36)])
    def test_any_batch_and_any_size(self, exported, model, name, batch, height, width):
        photos = np.stack([photo(height, width, seed) for seed in range(batch)])
        predict_file = formats.open_exported(name, Path(exported[name]["file"]), model, TEMPERATURE)
        found = predict_file(photos)
        assert found.dtype == np.float32
        # Enlarging may round a gray level the other way, which moves a probability a little.
        tolerance = 1e-4 if height >= 48 else 2e-2
        np.testing.assert_allclose(found, expected(model, photos), atol=tolerance)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)

    def test_nothing_but_the_file_is_left(self, trained, exported):
        names = {Path(result["file"]).name for result in exported.values()}
        assert {path.name for path in (trained / "exports").iterdir()} - {"test_efficientnet.int8.onnx"} == names


@pytest.mark.slow
class TestMetadata:
    def check(self, found: dict[str, Any], trained: Path, given: str = "uint8 (batch, height, width, 3)") -> None:
        metrics = read_json(trained / "metrics.json")
        assert found["class_names"] == list(EMOTIONS)
        assert found["temperature"] == TEMPERATURE
        assert found["scorecard"]["test/f1_macro"] == metrics["test/f1_macro"]
        assert found["provenance"]["data_hash"] == metrics["data_hash"]
        assert found["provenance"]["versions"] == metrics["versions"]
        assert (found["run"]["imbalance"], found["run"]["seed"]) == ("weighted", 0)
        assert found["model"]["name"] == "test_efficientnet"
        assert given in found["input"]

    @staticmethod
    def decode(text: dict[str, str]) -> dict[str, Any]:
        return {key: value if key in ("input", "output") else json.loads(value) for key, value in text.items()}

    def test_onnx(self, trained, exported):
        import onnx

        graph = onnx.load(exported["onnx"]["file"])
        self.check(self.decode({entry.key: entry.value for entry in graph.metadata_props}), trained)
        shape = [size.dim_param or size.dim_value for size in graph.graph.input[0].type.tensor_type.shape.dim]
        assert shape == ["batch", "height", "width", 3]

    @pytest.mark.nightly
    def test_exported_program(self, trained, exported):
        extra = {formats.METADATA_FILE: ""}
        torch.export.load(exported["exported_program"]["file"], extra_files=extra)
        self.check(json.loads(extra[formats.METADATA_FILE]), trained)

    def test_safetensors(self, trained, exported):
        from safetensors import safe_open

        with safe_open(exported["safetensors"]["file"], "pt") as file:
            found = self.decode(file.metadata())
        self.check(found, trained, "float32 (batch, in_channels, image_size, image_size)")
        assert "logits (batch, C)" in found["output"]

    @pytest.mark.parametrize("name", FORMATS)
    def test_no_path_of_this_machine_is_inside(self, exported, name):
        file = Path(exported[name]["file"])
        pieces = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as opened:
                pieces = [opened.read(piece) for piece in opened.namelist() if not piece.endswith(".debug_pkl")]
        here = str(Path(graph.__file__).parent.parent).encode()
        assert not any(here in piece for piece in pieces)


@pytest.mark.slow
class TestElsewhere:
    def test_onnx_needs_no_torch(self, trained, exported, model, tmp_path):
        photos = np.stack([photo(120, 160), photo(120, 160, seed=1)])
        np.save(tmp_path / "photos.npy", photos)
        program = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
[probabilities] = session.run(None, {"images": numpy.load("photos.npy")})
assert "torch" not in sys.modules and "fer_lightning" not in sys.modules
print(json.dumps([names, probabilities.tolist()]))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, exported["onnx"]["file"]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        names, probabilities = json.loads(done.stdout)
        assert names == list(EMOTIONS)
        np.testing.assert_allclose(probabilities, expected(model, photos), atol=1e-4)

    def test_safetensors_is_timms_own_backbone(self, exported, model, faces):
        import timm

        backbone = timm.create_model(
            "test_efficientnet",
            pretrained=True,
            in_chans=1,
            num_classes=0,
            pretrained_cfg_overlay={"file": exported["safetensors"]["file"], "input_size": (1, 48, 48)},
        )
        backbone.eval().to(memory_format=torch.channels_last)  # as the model is: other kernels round differently
        backbone.conv_stem.stride = (1, 1)
        pixels = model.prepare(torch.from_numpy(np.array(faces.images[:5])), 48)
        with torch.inference_mode():
            mine = model.network.forward_head(model.network.forward_features(pixels), pre_logits=True)
            assert mine.std() > 0
            assert torch.equal(backbone(pixels), mine)


class TestPreprocessing:
    @pytest.mark.parametrize("size", [(48, 48), (120, 160), (97, 131), (240, 200), (49, 49), (1080, 1920), (144, 30)])
    def test_as_opencv_does(self, size):
        picture = photo(*size)
        found = graph.as_faces(torch.from_numpy(picture[None]), ImageForm())[0].numpy()
        face = as_face(np.ascontiguousarray(picture[..., ::-1]), ImageForm())
        assert face.std() > 5
        smaller = min(size) < 48
        assert np.abs(found - face).max() <= (1 if smaller else 0)

    def test_halfway_between_two_gray_levels_either_is_right(self):
        picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        found = graph.as_faces(torch.from_numpy(picture[None]), ImageForm())[0].numpy()
        assert np.abs(found - as_face(np.ascontiguousarray(picture[..., ::-1]), ImageForm())).max() <= 1

    def test_gray_faces_are_untouched(self):
        images = np.random.default_rng(0).integers(0, 256, (3, 48, 48), dtype=np.uint8)
        found = graph.as_faces(torch.from_numpy(graph.as_colour(images)), ImageForm())
        assert np.array_equal(found.numpy(), images)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["exported_program", "safetensors"])
def test_another_architecture(name, tmp_path):
    """Three channels, an enlarged input, the published stem, a cosine head with class factors; not calibrated."""
    torch.manual_seed(0)
    head = {"hidden": [8, 8], "activation": "GELU", "batch_norm": False, "dropout": 0.5, "cosine_scale": 9.0}
    architecture = {"name": "test_efficientnet", "weights": "none", "in_channels": 3, "image_size": 64}
    more = {"stem_stride": 2, "drop_path": 0.2, "head": {**head, "class_scale": True}, "freeze_epochs": 0}
    model = EmotionClassifier({**architecture, **more}, {}, [1] * 7, {}, {}).eval()
    faces = draw(400)
    result = export_model(model, name, False, faces, official(faces, 0), tmp_path / f"file{SUFFIXES[name]}")
    assert result["parity"]["images"] > 50
    assert result["parity"]["max_difference"] <= check.TOLERANCE


@pytest.mark.slow
class TestInt8:
    @pytest.mark.nightly
    def test_reported_cost_is_true(self, trained, quantized, faces):
        import onnx

        file = Path(quantized["file"])
        assert file == trained / "exports" / "test_efficientnet.int8.onnx"
        reported = quantized["int8"]["scores"]
        metrics = read_json(trained / "metrics.json")
        for name in ("test", "test_dedup"):
            for score in ("accuracy", "f1_macro"):
                assert reported[name]["float32"][score] == pytest.approx(metrics[f"{name}/{score}"])
        test = official(faces, 0).tests["test"]
        found = formats.open_onnx(file)(graph.as_colour(faces.images[test]))
        again = classification_metrics(found, faces.labels[test], EMOTIONS)
        assert reported["test"]["int8"]["accuracy"] == again["test/accuracy"]
        assert reported["test"]["int8"]["f1_macro"] == again["test/f1_macro"]
        metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert json.loads(metadata["int8"]) == quantized["int8"]
        assert json.loads(metadata["class_names"]) == list(EMOTIONS)

    def test_convolutions_compute_in_int8_and_the_preprocessing_does_not(self, quantized):
        import onnx

        graph = onnx.load(quantized["file"]).graph
        made_by = {name: node.op_type for node in graph.node for name in node.output}
        weights = [made_by.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
        assert weights.count("DequantizeLinear") == len(weights) - int8.FLOAT_CONVOLUTIONS
        products = [node for node in graph.node if node.op_type == "MatMul"]
        assert products
        assert all(made_by.get(name) != "DequantizeLinear" for node in products for name in node.input)

    def test_it_is_near_float32(self, quantized):
        assert quantized["int8"]["calibration_images"] == 56
        parity = quantized["int8"]["parity"]
        assert 0 < parity["max_difference"] < 0.5
        assert parity["other_answers"] <= 0.2 * parity["images"]

    def test_without_validation_images_it_is_refused(self, model, faces, tmp_path):
        split = dataclasses.replace(official(faces, 0), val=np.array([], dtype=np.int64))
        with pytest.raises(UserError, match=r"--int8: there are no validation images .* give split.val_fraction"):
            export_model(model, "onnx", True, faces, split, tmp_path / "model.int8.onnx")
        with pytest.raises(UserError, match=r"leave out data=\.\.\., so that the run's own split is used"):
            export_model(model, "onnx", True, faces, whole(faces), tmp_path / "model.int8.onnx")
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
class TestMistakes:
    def test_file_with_other_probabilities_is_not_written(self, trained, tmp_path, monkeypatch):
        red, green, blue = graph.LUMA
        monkeypatch.setattr(graph, "LUMA", (blue, green, red))  # which gray images do not show
        with pytest.raises(UserError, match=r"gives other probabilities than PyTorch .* nothing was written") as caught:
            call(trained, "--format", "exported_program", "--out", str(tmp_path / "new" / "x.pt2"))
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_existing_file_is_kept(self, trained, tmp_path, monkeypatch):
        (tmp_path / "x.safetensors").write_text("before")
        monkeypatch.setattr(check, "TOLERANCE", -1.0)
        with pytest.raises(UserError, match="nothing was written"):
            call(trained, "--format", "safetensors", "--out", str(tmp_path / "x.safetensors"))
        assert (tmp_path / "x.safetensors").read_text() == "before"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--format", "safetensors", "--int8"], "--int8 with --format safetensors: only onnx can be quantised"),
            (["--format", "onnx", "--int8", "--drawn-faces"], "--int8 with --drawn-faces"),
            (["--format", "onnx", "--out", "x.bin"], "--out x.bin: must be a file whose name ends in .onnx"),
            (["--format", "onnx", "--int8", "--out", "x.onnx"], "must be a file whose name ends in .int8.onnx"),
            (["data.path=x.zip", "--format", "onnx", "--drawn-faces"], "data.path=x.zip with --drawn-faces"),
            (["--format", "safetensors", "data.path=gone.zip"], "data.path=gone.zip does not exist"),
            (["--format", "safetensors", "--out", "/proc/none/x.safetensors"], "choose another file with --out"),
        ],
    )
    def test_one_line(self, trained, arguments, message):
        with pytest.raises(UserError) as caught:
            call(trained, *arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_unknown_format_is_refused_with_the_accepted_ones(self, trained, capsys):
        with pytest.raises(SystemExit) as stopped:
            run_tool(lambda: call(trained, "--format", "torchscript"))
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "invalid choice: 'torchscript'" in line
        assert all(name in line for name in SUFFIXES)

    def test_missing_packages_are_named(self, trained, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else find(name, *more)
        )
        with pytest.raises(UserError, match=r"onnxruntime is not installed; pip install 'fer_lightning\[export\]'"):
            call(trained, "--format", "onnx")
        call(trained, "--format", "safetensors")  # which needs none of them

    def test_drawn_faces_replace_missing_data(self, trained, tmp_path):
        checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
        checkpoint["hyper_parameters"]["config"]["data"]["path"] = "gone.zip"
        (tmp_path / "checkpoints").mkdir()
        torch.save(checkpoint, tmp_path / "checkpoints" / "best.ckpt")
        with pytest.raises(
            UserError, match=r"gone\.zip does not exist.*; or compare on drawn faces, with --drawn-faces"
        ):
            call(tmp_path, "--format", "safetensors")
        assert not (tmp_path / "exports").exists()
        result = call(tmp_path, "--format", "safetensors", "--drawn-faces")
        assert result["parity"]["images"] == 56

    def test_a_process_ends_in_one_line_and_code_2(self, forked: Callable[..., Outcome]):
        outcome = forked("nothing.ckpt", "--format", "safetensors", module="fer_lightning.export")
        assert outcome.code == 2
        assert outcome.error == "error: nothing.ckpt: no such checkpoint; give a run's checkpoints/best.ckpt"

    def test_help_waits_for_no_heavy_import(self):
        program = "import sys, fer_lightning.export; sys.exit(str({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stderr.strip() == "set()"


def test_a_link_in_the_run_folder_is_not_followed(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "exports").symlink_to(tmp_path)
    with pytest.raises(UserError, match="exports: is a link that points outside"):
        default_folder(tmp_path / "run" / "checkpoints" / "best.ckpt")
