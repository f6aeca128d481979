"""``fl.load``: what it takes, and that every form of an image gives the same answer."""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fer_lightning as fl
from fer_lightning.data.faces import ImageForm
from fer_lightning.data.images import as_face
from fer_lightning.evaluation.probabilities import classify
from fer_lightning.evaluation.reference import from_card
from fer_lightning.metrics import conformal, prior
from fer_lightning.metrics.calibration import apply_temperature


@pytest.fixture(scope="module")
def color() -> np.ndarray:
    """A colour image, red-green-blue, that is neither square nor of the model's size."""
    return np.random.default_rng(0).integers(0, 256, (60, 52, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path, color) -> list[Path]:
    paths = [tmp_path / name for name in ("a.png", "b/gray.png")]
    for path, image in zip(paths, (color, color[..., 0]), strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return paths


def test_a_checkpoint_its_run_folder_and_the_run_are_the_same_model(run, classifier):
    image = np.full((48, 48), 90, np.uint8)
    expected = classifier.predict(image).probabilities
    for source in (run.checkpoint, str(run.checkpoint), run.folder, str(run.folder)):
        loaded = fl.load(source, device="cpu")
        assert np.array_equal(loaded.predict(image).probabilities, expected)
        assert loaded.checkpoint == run.checkpoint


def test_the_scorecard_is_that_of_the_run(run, classifier):
    assert classifier.scorecard["test/accuracy"] == run.metrics["test/accuracy"]
    assert classifier.scorecard["temperature"] == run.metrics["temperature"]
    assert classifier.calibrated
    assert repr(classifier).startswith(f"Classifier({str(run.checkpoint)!r}): test accuracy ")


def test_predictions_are_those_of_the_run_and_calibrated(run, classifier):
    """On the run's own test images, found in its data again."""
    from fer_lightning.data.synthetic import draw

    faces = draw(images=400, seed=0)
    rows = {name: place for place, name in enumerate(faces.ids.tolist())}
    images = faces.images[[rows[name] for name in run.predictions["id"]]]
    prediction = classifier.predict(images)
    assert prediction.labels == run.predictions["prediction"].tolist()
    columns = [f"p_{name}" for name in classifier.classes]
    expected = apply_temperature(run.predictions[columns].to_numpy(), run.metrics["temperature"])
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-6)


def test_all_forms_of_one_image_give_the_same_answer(files, color, classifier):
    expected = classify(classifier.model, as_face(color[..., ::-1], ImageForm())[None], torch.device("cpu"))
    images = [files[0], str(files[0]), Image.fromarray(color), color, color[None], [color], (Image.fromarray(color),)]
    for image in images:
        assert np.array_equal(classifier.predict(image).probabilities, expected)


def test_gray_images(files, color, classifier):
    gray = color[..., 0]
    expected = classifier.predict(gray).probabilities
    assert expected.shape == (1, len(classifier.classes))
    for image in (files[1], Image.fromarray(gray), gray[None], [gray], np.repeat(gray[..., None], 3, axis=2)):
        assert np.array_equal(classifier.predict(image).probabilities, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_pillow_image_of_any_mode_of_8_bits(mode, color, classifier):
    image = Image.fromarray(color).convert(mode)
    plain = image.convert("L" if mode in ("1", "L", "LA") else "RGB")
    assert np.array_equal(classifier.predict(image).probabilities, classifier.predict(np.asarray(plain)).probabilities)


def test_a_pillow_image_is_turned_as_its_orientation_says(tmp_path, color, classifier):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(color).save(tmp_path / "turned.png", exif=exif)
    from_file = classifier.predict(tmp_path / "turned.png").probabilities
    with Image.open(tmp_path / "turned.png") as image:
        assert np.array_equal(classifier.predict(image).probabilities, from_file)
    assert np.array_equal(classifier.predict(np.rot90(color, -1)).probabilities, from_file)


def test_batches_and_folders_keep_the_order(files, color, classifier):
    first, second = color, 255 - color
    expected = np.concatenate([classifier.predict(image).probabilities for image in (first, second)])
    for images in (np.stack([first, second]), [first, second]):
        prediction = classifier.predict(images)
        assert prediction.names == ["0", "1"]
        np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-7)
    in_folder = classifier.predict(files[0].parent)
    assert in_folder.names == [str(path) for path in files]
    mixed = classifier.predict([files[1], color])
    assert mixed.names == [str(files[1]), "1"]
    np.testing.assert_allclose(mixed.probabilities[0], in_folder.probabilities[1], atol=1e-7)


def test_what_a_prediction_holds(color, classifier):
    prediction = classifier.predict(np.stack([color, 255 - color, color]))
    assert len(prediction) == 3
    assert prediction.probabilities.dtype == np.float64
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1)
    assert prediction.labels == [prediction.classes[k] for k in prediction.probabilities.argmax(axis=1)]
    assert np.array_equal(prediction.confidence, prediction.probabilities.max(axis=1))
    frame = prediction.to_frame()
    assert list(frame) == ["image", "label", "confidence", *(f"p_{name}" for name in classifier.classes)]
    assert frame["label"].tolist() == prediction.labels


def test_sets_and_shifted_probabilities(color, classifier):
    images = np.stack([color, 255 - color, color[::-1]])
    plain = classifier.predict(images)
    assert (plain.level, plain.sets, plain.prior) == (None, None, None)
    reference = from_card(classifier.scorecard, classifier.classes)
    assert reference is not None
    shares = {name: float(k) for k, name in enumerate(classifier.classes)}
    answer = classifier.predict(images, level=0.7, prior=shares)
    expected = np.arange(7) / 21
    np.testing.assert_allclose(answer.prior, expected)
    np.testing.assert_allclose(answer.probabilities, prior.shift(plain.probabilities, reference.prior, expected))
    assert answer.labels == [answer.classes[k] for k in answer.probabilities.argmax(axis=1)]
    held = conformal.prediction_sets(plain.probabilities, reference.scores.thresholds(0.7))
    assert [set(each) for each in answer.sets] == [set(np.array(classifier.classes)[row]) for row in held]
    assert answer.to_frame()["set_0.7"].tolist() == answer.sets
    assert "set_0.7" not in plain.to_frame()


def test_an_estimated_prior_and_one_of_a_file(tmp_path, color, classifier):
    with pytest.warns(UserWarning, match="from 2 images; too few for a steady estimate") as warned:
        estimated = classifier.predict([color, 255 - color], prior="estimated")
    assert warned[0].filename == __file__
    assert estimated.prior.sum() == pytest.approx(1)
    (tmp_path / "shares.csv").write_text("".join(f"{name},1\n" for name in classifier.classes))
    from_file, uniform = (classifier.predict(color, prior=each) for each in (tmp_path / "shares.csv", "uniform"))
    assert np.array_equal(from_file.probabilities, uniform.probabilities)
    with pytest.warns(UserWarning, match="from 0 images"):
        assert len(classifier.predict([], level=0.9, prior="estimated")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 90}, "level=90: must lie between 0 and 1, such as 0.9"),
        ({"level": "0.9"}, "level='0.9': must lie between 0 and 1"),
        ({"prior": "unifrom"}, "prior='unifrom': no such file; give uniform, training, estimated"),
        ({"prior": "a" * 300}, "must be a path of at most 4095 bytes, 255 in a name"),
        ({"prior": 0.5}, "prior=0.5: is not a prior; give uniform, training, estimated, a JSON or CSV file"),
        ({"prior": {"hapy": 1.0}}, "prior={'hapy': 1.0}: 'hapy' is not a class of the model (did you mean happy?)"),
    ],
)
def test_levels_and_priors_that_are_none(options, message, color, classifier):
    with pytest.raises(fl.UserError, match=re.escape(message)):
        classifier.predict(color, **options)


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 48, 48), np.uint8), np.zeros((0, 48, 48, 3), np.uint8)])
def test_no_images_give_no_answers(nothing, classifier):
    prediction = classifier.predict(nothing)
    assert prediction.labels == []
    assert prediction.confidence.shape == (0,)
    assert prediction.probabilities.shape == (0, len(classifier.classes))
    assert isinstance(prediction.to_frame(), pd.DataFrame)


def cut_image() -> Image.Image:
    """A Pillow image of half a file, which is decoded where it is used."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)).save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()[: file.tell() // 2]))


REFUSED = {
    "floats": (np.zeros((48, 48)), "array of float64 (48, 48): must be uint8 with values 0..255"),
    "int64": (np.zeros((2, 48, 48), int), "array of int64 (48, 48): must be uint8"),
    "one axis": (np.zeros(48, np.uint8), "array of uint8 (48,): not one image (H, W) or (H, W, 3); give a path"),
    "channels first": (np.zeros((2, 3, 48, 48), np.uint8), "(3, 48, 48): not one image"),
    "alpha": (np.zeros((2, 48, 48, 4), np.uint8), "(48, 48, 4): not one image"),
    "alpha of one": (np.zeros((48, 48, 4), np.uint8), "(48, 48, 4): not one image"),
    "one channel": (np.zeros((48, 48, 1), np.uint8), "(48, 48, 1): not one image"),
    "five axes": (np.zeros((1, 1, 48, 48, 3), np.uint8), "(1, 1, 48, 48, 3): not one image"),
    "no pixels": (np.zeros((0, 48), np.uint8), "has no pixels"),
    "a tensor": (torch.zeros(48, 48, dtype=torch.uint8), "torch.Tensor: not an image; give a path"),
    "a number": (3, "int: not an image; give a path"),
    "numbers": ([[1, 2], [3, 4]], "image 0 of the list: list: not an image"),
    "a batch in a list": (
        [np.zeros((2, 48, 48), np.uint8)],
        "image 0 of the list: array of uint8 (2, 48, 48): not one",
    ),
    "the second": ([np.zeros((48, 48), np.uint8), None], "image 1 of the list: NoneType: not an image"),
    "16 bits": (Image.new("I;16", (48, 48)), "Pillow image of mode I;16: give 8 bits per channel"),
    "half of a file": (
        [cut_image()],
        "image 0 of the list: Pillow image of mode RGB: cannot be decoded (image file is",
    ),
    "no file": ("missing.png", "missing.png: "),
    "a null character": ("a\0b.png", "images='a\\x00b.png': must be a path of at most"),
    "a null character in a list": (["a\0b.png"], "image 0 of the list: path='a\\x00b.png': must be a path of at most"),
    "half of a character": ("\ud800.png", "images='\\ud800.png': must be a path of at most"),
    "a long name": (["a" * 300], "must be a path of at most 4095 bytes, 255 in a name"),
    "a video": (Path("clip.mp4"), "clip.mp4: is a video; use python -m fer_lightning.predict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_inputs_are_refused_in_one_line(case, classifier):
    images, message = REFUSED[case]
    with pytest.raises(fl.UserError, match=re.escape(message)) as refused:
        classifier.predict(images)
    assert "\n" not in str(refused.value)


def test_a_damaged_file_and_an_empty_folder_are_refused(tmp_path, files, classifier):
    damaged = files[0].parent / "c.png"
    damaged.write_bytes(files[0].read_bytes()[:40])
    with pytest.raises(fl.UserError, match=re.escape(f"{damaged}: this file is")):
        classifier.predict(files[0].parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(fl.UserError, match="no images in this folder"):
        classifier.predict(tmp_path / "empty")
    with pytest.raises(fl.UserError, match=r"image 0 of the list: .*: is a folder"):
        classifier.predict([tmp_path])


def test_a_photograph_is_answered_with_a_warning(classifier):
    with pytest.warns(UserWarning, match="1 of 2 images do not have the size or shape of a cropped face") as warned:
        assert len(classifier.predict([np.zeros((48, 48), np.uint8), np.zeros((480, 640, 3), np.uint8)])) == 2
    assert warned[0].filename == __file__


def test_an_image_as_opencv_reads_it_needs_its_colours_turned(files, color, classifier):
    from_file = classifier.predict(files[0]).probabilities
    image = cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB)
    assert np.array_equal(classifier.predict(image).probabilities, from_file)


def test_what_is_no_model_is_refused(tmp_path, run):
    with pytest.raises(fl.UserError, match="no such checkpoint; give"):
        fl.load(tmp_path / "missing.ckpt")
    with pytest.raises(fl.UserError, match="not a run folder"):
        fl.load(tmp_path)
    with pytest.raises(fl.UserError, match="not a checkpoint, or a damaged one"):
        fl.load(run.folder / "metrics.json")
    with pytest.raises(
        fl.UserError, match=re.escape("device='tpu': this machine has no such device; accepted are auto, cpu, cuda")
    ):
        fl.load(run, device="tpu")
    with pytest.raises(fl.UserError, match="source=3: must be a checkpoint, a run folder, or a run"):
        fl.load(3)  # type: ignore[arg-type]
    for given in ("a" * 300, "a/" + "é" * 128, "a\0b"):
        with pytest.raises(fl.UserError, match=r"source='a.*': must be a path of at most"):
            fl.load(given)
        with pytest.raises(fl.UserError, match=r"folder='a.*': must be a path of at most"):
            fl.Run(given)
    with pytest.raises(fl.UserError, match="folder=None: must be a path"):
        fl.Run(None)  # type: ignore[arg-type]


def test_a_run_without_a_best_checkpoint_is_read_from_its_last(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "status.json").write_text('{"status": "failed", "reason": "disk full"}')
    with pytest.raises(fl.UserError, match=r"has no checkpoint \(the run is failed\); resume it"):
        fl.load(tmp_path)
    with pytest.raises(fl.UserError, match=r"has no metrics.json \(the run is failed: disk full\); resume it"):
        _ = fl.Run(tmp_path).metrics
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(run.checkpoint.read_bytes())
    assert fl.load(tmp_path).checkpoint == last
