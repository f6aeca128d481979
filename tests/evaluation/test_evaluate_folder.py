"""A checkpoint scored on any labelled folder, and with test-time augmentation, through the command line."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from archives import encode, write_folder, write_tar, write_zip
from command_line import TINY
from legs import every_third

from fer_lightning import evaluate
from fer_lightning.data import classes, folder
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.data.synthetic import draw
from fer_lightning.evaluation import probabilities as inference
from fer_lightning.evaluation.scorecard import store
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json

DRAWN = draw(168)


def files_of(names: dict[str, str] | None = None, top: str = "", without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Path -> PNG of the drawn faces, in folders called by emotion or as ``names`` says."""
    named = names or {}
    return {
        f"{top}{named.get(EMOTIONS[label], EMOTIONS[label])}/{number:03}.png": encode(image)
        for number, (image, label) in enumerate(zip(DRAWN.images, DRAWN.labels, strict=True))
        if EMOTIONS[label] not in without
    }


@pytest.fixture(scope="module")
def trained(trained_once) -> Path:
    """The run folder of a tiny model; shared, so not to be changed."""
    return trained_once(*TINY)


@pytest.fixture
def score(trained, tmp_path, caplog) -> Callable[..., dict]:
    """The tool in this process; returns what its ``metrics.json`` holds."""

    def call(*arguments: str) -> dict:
        out = tmp_path / "scores"
        with caplog.at_level("INFO"):
            evaluate.main([str(trained / "checkpoints" / "best.ckpt"), "--out", str(out), *arguments])
        return read_json(out / "metrics.json")

    return call


class TestLoad:
    @pytest.mark.parametrize("top", ["", "faces/", "data/faces/"])
    def test_folder_zip_and_tar_hold_the_same(self, tmp_path, top):
        files = files_of(top=top)
        forms = (
            write_folder(files, tmp_path / "tree"),
            write_zip(files, tmp_path / "tree.zip"),
            write_tar(files, tmp_path / "tree.tar.gz"),
        )
        sets = [folder.load(str(path)) for path in forms]
        assert len({faces.data_hash for faces in sets}) == 1
        assert sets[0].classes == EMOTIONS
        by_id = {name: image for name, image in zip(sets[0].ids, sets[0].images, strict=True)}
        for number, (image, label) in enumerate(zip(DRAWN.images, DRAWN.labels, strict=True)):
            np.testing.assert_array_equal(by_id[f"{top}{EMOTIONS[label]}/{number:03}.png"], image)

    def test_any_size_and_colour_becomes_a_face(self, tmp_path, caplog):
        image = cv2.cvtColor(cv2.resize(DRAWN.images[0], (96, 96), interpolation=cv2.INTER_NEAREST), cv2.COLOR_GRAY2BGR)
        write_folder({"happy/a.PNG": encode(image), "happy/b.png": encode(DRAWN.images[1])}, tmp_path / "tree")
        with caplog.at_level("INFO"):
            faces = folder.load(str(tmp_path / "tree"), color=False)
        np.testing.assert_array_equal(faces.images[0], DRAWN.images[0])
        assert "Converted 1 images" in caplog.text

    @pytest.mark.parametrize("name", ["classes.yaml", "classes.json"])
    def test_mapping_names_emotions_and_leaves_out(self, tmp_path, name, caplog):
        image = encode(DRAWN.images[0])
        tree = write_folder({"0/a.png": image, "no/a.png": image, "SAD/a.png": image, "x/a.png": image}, tmp_path / "t")
        mapping = (
            '{"0": "angry", "no": "Neutral", "X": null}' if name.endswith("json") else "0: angry\nno: Neutral\nX:\n"
        )
        (tmp_path / name).write_text(mapping)
        with caplog.at_level("INFO"):
            faces = folder.load(str(tree), str(tmp_path / name))
        assert faces.classes == ("angry", "sad", "neutral")
        assert [(str(i), faces.classes[n]) for i, n in zip(faces.ids, faces.labels, strict=True)] == [
            ("0/a.png", "angry"),
            ("SAD/a.png", "sad"),
            ("no/a.png", "neutral"),
        ]
        assert "Left out 1 images of 4" in caplog.text

    @pytest.mark.parametrize("form", ["zip", "tar.gz", "folder"])
    def test_one_tree_of_several(self, tmp_path, form):
        face = encode(DRAWN.images[0])
        files = {"set/one/sad/a.png": face, "set/one/happy/b.png": face, "set/two/happy/c.png": face}
        write = {"zip": write_zip, "tar.gz": write_tar, "folder": write_folder}[form]
        given = write(files, tmp_path / f"faces.{form}")
        with pytest.raises(UserError) as several:
            folder.load(str(given))
        assert f"such as data.path={given}/set/two" in str(several.value)
        faces = folder.load(f"{given}/set/one")
        assert [faces.classes[label] for label in faces.labels] == ["happy", "sad"]
        with pytest.raises(UserError, match=r"set/three"):
            folder.load(f"{given}/set/three")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"sad/a.png": b"GIF"}, "sad/a.png is not an image that can be read: replace or remove it"),
            ({"sad/a.png": b""}, "sad/a.png is empty: replace or remove it"),
            ({"a/sad/a.png": b"", "b/sad/a.png": b""}, "(in a, b): give one of them, such as data.path="),
            ({"a.png": b"", "b.png": b""}, "no image in a folder of a class: 2 images lie in no folder; give a folder"),
            ({"sad/notes.md": b""}, "no image in a folder of a class: give a folder, .zip"),
        ],
    )
    def test_mistakes_in_the_data_are_one_line(self, tmp_path, files, message):
        tree = write_folder(files, tmp_path / "tree")
        with pytest.raises(UserError) as caught:
            folder.load(str(tree))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("anger: a/b", "'anger': 'a/b' is not a valid class name; give a word, or null"),
            ("anger: [angry]", "'anger': ['angry'] is not a valid class name"),
            ("anger", "not a mapping; write a line for each class"),
            ("a: [", "not a mapping; write a line for each class"),
            (r'a: "\ud800"', "not a mapping; write a line for each class"),
            ('a: &x [*x, "\\u0041"]', "not a mapping; write a line for each class"),
            (None, "cannot be read (No such file or directory)"),
        ],
    )
    def test_mistakes_in_the_mapping_are_one_line(self, tmp_path, content, message):
        if content is not None:
            (tmp_path / "classes.yaml").write_text(content)
        with pytest.raises(UserError) as caught:
            classes.read_mapping(tmp_path / "classes.yaml")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


class TestFolder:
    @pytest.mark.slow
    def test_scores_pictures_and_predictions(self, trained, score, tmp_path, caplog):
        tree = write_folder(files_of(), tmp_path / "tree")
        metrics = score("data=folder", f"data.path={tree}")
        rows = pd.read_csv(tmp_path / "scores" / "predictions.csv")
        assert len(rows) == metrics["test/n"] == len(DRAWN)
        assert metrics["data"] == "folder tree"
        assert "it is unknown whether any of these images trained the model" in caplog.text
        model = EmotionClassifier.load(trained / "checkpoints" / "best.ckpt")
        expected = classification_metrics(
            inference.predict(model, DRAWN.images, torch.device("cpu")), DRAWN.labels, EMOTIONS
        )
        for key, value in expected.items():
            assert metrics[key] == pytest.approx(value, abs=1e-6), key
        for name in ("confusion_matrix", "mistakes", "class_distribution"):
            assert cv2.imread(str(tmp_path / "scores" / f"{name}.png")) is not None

    @pytest.mark.slow
    def test_missing_emotions_are_no_scores(self, score, tmp_path, capfd):
        tree = write_folder(files_of(without=("disgust", "fear")), tmp_path / "tree")
        metrics = score("data=folder", f"data.path={tree}")
        assert metrics["test/recall/disgust"] is metrics["test/recall/fear"] is None
        present = [metrics[f"test/recall/{name}"] for name in EMOTIONS if name not in ("disgust", "fear")]
        assert metrics["test/balanced_accuracy"] == pytest.approx(np.mean(present))
        assert [line.split()[3] for line in capfd.readouterr().out.splitlines() if "disgust" in line] == ["-"]

    @pytest.mark.slow
    def test_mapping_file(self, score, tmp_path):
        tree = write_folder(files_of({"angry": "rage"}), tmp_path / "tree")
        (tmp_path / "classes.yaml").write_text("rage: angry\n")
        metrics = score("data=folder", f"data.path={tree}", f"data.classes={tmp_path / 'classes.yaml'}")
        assert metrics["test/n"] == len(DRAWN)

    @pytest.mark.nightly
    def test_arguments_in_any_order(self, score, tmp_path):
        tree = write_folder(files_of(), tmp_path / "tree")
        assert score(f"data.path={tree}", "data=folder", "--tta", "flip")["test_flip/n"] == len(DRAWN)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        every_third(
            [
                (["data=folder"], "data.path is missing; give data.path=DIR"),
                (["data=folder", "data.path=gone"], "data.path=gone does not exist"),
                (
                    ["data=folders"],
                    "data=folders: no such choice; data is one of: affectnet, ck48, fer2013, ferplus8, folder, jaffe",
                ),
                (["data=folder", "data.source._target_=os.mkdir"], "data.source._target_=os.mkdir: is not code of"),
                (["data=folder", "data.pth=x"], "data.pth: no such key"),
                (["split=kfold"], "split=kfold: a whole group cannot be replaced"),
            ]
        ),
    )
    def test_mistakes_are_one_line_and_write_nothing(self, score, tmp_path, arguments, message):
        with pytest.raises(UserError) as caught:
            score(*arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "scores").exists()

    def test_a_runs_own_folder_is_not_overwritten(self, trained):
        with pytest.raises(UserError, match="holds a run, whose own scores would be overwritten"):
            evaluate.main([str(trained / "checkpoints" / "best.ckpt"), "--out", str(trained)])

    @pytest.mark.nightly
    def test_other_choices_of_data_keep_the_split(self, score):
        metrics = score("data=synthetic", "data.source.images=300")
        assert (metrics["data"], metrics["split"]) == ("synthetic", "official")
        assert metrics["val/n"] > 0

    def test_real_process_ends_in_one_line(self, trained, forked, tmp_path):
        write_folder({"rage/a.png": encode(DRAWN.images[0])}, tmp_path / "tree")
        checkpoint = str(trained / "checkpoints" / "best.ckpt")
        outcome = forked(checkpoint, "data=folder", "data.path=tree", module="fer_lightning.evaluate")
        assert outcome.code == 2
        assert outcome.error.startswith("error: the data have the classes rage, and the model knows angry, disgust")

    @pytest.mark.nightly
    def test_classes_that_only_one_of_both_has(self, score, tmp_path, caplog):
        """Both numbers: an answer outside the shared classes is a mistake, or is not asked for."""
        files = files_of({"angry": "contempt", "fear": "anger"}, without=("disgust",))
        metrics = score("data=folder", f"data.path={write_folder(files, tmp_path / 'tree')}")
        assert "Classes matched: angry, happy, sad, surprise, neutral" in caplog.text
        assert "Left out, the model does not know them: contempt (" in caplog.text
        assert "Known to the model and not in the data: disgust, fear" in caplog.text
        assert metrics["test_shared/n"] == metrics["test/n"] < len(DRAWN)
        assert metrics["test_shared/accuracy"] >= metrics["test/accuracy"]
        assert "test_shared/recall/disgust" not in metrics


@pytest.mark.nightly
class TestBesideTheTest:
    def test_augmented_scores_stand_beside_the_plain_ones(self, trained, score):
        run = read_json(trained / "metrics.json")
        metrics = score("--tta", "flip,ten_crop")
        for name in ("test", "test_dedup", "val"):
            assert metrics[f"{name}/nll"] == run[f"{name}/nll"]
        nll = {metrics[f"{name}/nll"] for name in ("test", "test_flip", "test_ten_crop")}
        assert len(nll) == 3
        assert metrics["test_flip/n"] == metrics["test_dedup_ten_crop/n"] == metrics["test/n"]

    def test_augmented_predictions_have_files_of_their_own(self, trained, tmp_path):
        out = tmp_path / "scores"
        evaluate.main([str(trained / "checkpoints" / "best.ckpt"), "--tta", "flip", "--out", str(out)])
        plain, flipped = (pd.read_csv(out / f"predictions{suffix}.csv") for suffix in ("", "_flip"))
        assert (list(plain), list(plain["id"])) == (list(flipped), list(flipped["id"]))
        assert not np.allclose(plain["p_happy"], flipped["p_happy"])
        right = (flipped["prediction"] == flipped["label"])[flipped["test"] == 1].mean()
        assert right == pytest.approx(read_json(out / "metrics.json")["test_flip/accuracy"])
        assert (out / "confusion_matrix_flip.png").exists()

    def test_an_unknown_augmentation_is_refused(self, trained):
        with pytest.raises(UserError, match="--tta=flop: must be flip or ten_crop, or both: flip,ten_crop"):
            evaluate.main([str(trained / "checkpoints" / "best.ckpt"), "--tta", "flip,flop"])

    def test_calibrated_scores_use_the_stored_temperature(self, trained, score, tmp_path):
        run = read_json(trained / "metrics.json")
        metrics = score()
        assert metrics["temperature"] == run["temperature"]
        assert metrics["test/nll_calibrated"] == run["test/nll_calibrated"] != run["test/nll"]
        checkpoint = tmp_path / "best.ckpt"
        checkpoint.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
        store(StoredModel.read(checkpoint), {"temperature": 20.0})
        evaluate.main([str(checkpoint), "--out", str(tmp_path / "hot")])
        assert read_json(tmp_path / "hot" / "metrics.json")["test/nll_calibrated"] == pytest.approx(np.log(7), abs=0.02)

    @pytest.mark.nightly
    def test_without_a_temperature_there_are_none(self, trained, tmp_path):
        checkpoint = tmp_path / "best.ckpt"
        checkpoint.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
        store(StoredModel.read(checkpoint), {})
        tree = write_folder(files_of(), tmp_path / "tree")
        evaluate.main([str(checkpoint), "data=folder", f"data.path={tree}", "--out", str(tmp_path / "none")])
        metrics = read_json(tmp_path / "none" / "metrics.json")
        assert metrics["temperature"] is None
        assert not [key for key in metrics if key.endswith("_calibrated")]


@pytest.mark.nightly
@pytest.mark.real
def test_private_test_as_a_folder_scores_as_the_split_does(trained, real_archive, tmp_path, capfd):
    """The same images by two ways: the archive's official split, and their files sorted into folders."""
    with zipfile.ZipFile(real_archive) as archive:
        names = [name for name in archive.namelist() if "PrivateTest" in name]
        write_folder({name.split("/", 1)[1]: archive.read(name) for name in names}, tmp_path / "tree")
    checkpoint, outs = str(trained / "checkpoints" / "best.ckpt"), []
    for choice in (["data=fer2013", f"data.path={real_archive}"], ["data=folder", f"data.path={tmp_path / 'tree'}"]):
        outs.append(tmp_path / f"out{len(outs)}")
        evaluate.main([checkpoint, *choice, "--out", str(outs[-1])])
    split, tree = (read_json(out / "metrics.json") for out in outs)
    assert tree["test/n"] == 3589
    for key in (key for key in tree if key.startswith("test/")):
        assert tree[key] == pytest.approx(split[key], abs=1e-6), key
