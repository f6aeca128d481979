"""Any labelled images: layouts, classes, forms, and what is refused."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from archives import encode, write_folder, write_tar, write_zip
from command_line import TINY, Outcome
from legs import every_third

from fer_lightning.data import archives, fer2013, folder, layouts, splits
from fer_lightning.data.classes import as_emotions, group_classes, read_mapping
from fer_lightning.data.faces import EMOTIONS, USAGES, ImageForm
from fer_lightning.data.synthetic import draw
from fer_lightning.evaluation.scorecard import make_scorecard, scorecard_line
from fer_lightning.runtime.errors import UserError

DRAWN = draw(210, difficulty=0.3)
KINDS = {"cat": 3, "dog": 4, "Bird house": 5}
"""Classes that are no emotions, and whose drawn faces stand for them."""

RUN = (*(word for word in TINY if not word.startswith("data")), "data.batch_size=8", "data=folder")


def pictures(label: int, count: int, color: bool = False, side: int = 48) -> list[bytes]:
    faces = DRAWN.images[DRAWN.labels == label][:count]
    assert len(faces) == count
    images = [np.stack([255 - face, face, face // 2], axis=-1) if color else face for face in faces]
    return [encode(cv2.resize(image, (side, side))) for image in images]


def tree(top: str = "", counts: tuple[int, ...] = (16, 14, 12), **form: object) -> dict[str, bytes]:
    return {
        f"{top}{name}/{number:02}.png": picture
        for (name, label), count in zip(KINDS.items(), counts, strict=True)
        for number, picture in enumerate(pictures(label, count, **form))  # type: ignore[arg-type]
    }


def with_parts(names: tuple[str, ...] = ("train", "val", "test")) -> dict[str, bytes]:
    """Every image is in one part."""
    files = tree()
    places = {path: names[number % 4 % len(names)] for number, path in enumerate(files)}
    return {f"{places[path]}/{path}": content for path, content in files.items()}


def table(rows: list[tuple[str, ...]], header: str = "path,label,split") -> bytes:
    return "\n".join([header, *(",".join(row) for row in rows)]).encode()


@pytest.fixture
def train(cli: Callable[..., Outcome], tmp_path: Path) -> Callable[..., dict]:
    """Train on a folder; returns ``metrics.json``."""

    def call(*overrides: str) -> dict:
        outcome = cli(*RUN, "hydra.run.dir=run", *overrides)
        assert outcome.code == 0, outcome.err
        return json.loads((tmp_path / "run" / "metrics.json").read_text())

    return call


class TestLayouts:
    @pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
    def test_classes_alone(self, tmp_path, write):
        suffix = {write_folder: "", write_zip: ".zip", write_tar: ".tar.gz"}[write]
        faces = folder.load(str(write(tree("deep/down/"), tmp_path / f"faces{suffix}")))
        assert faces.classes == ("Bird house", "cat", "dog")
        assert faces.count() == [12, 16, 14]
        assert not faces.usage.any()
        assert list(faces.ids) == sorted(faces.ids)
        assert faces.form == ImageForm(48, False)

    @pytest.mark.parametrize(
        "names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "Valid")]
    )
    def test_parts(self, tmp_path, names):
        faces = folder.load(str(write_folder(with_parts(names), tmp_path / "faces")))
        assert set(faces.usage) == {0, 1, 3} if len(names) == 3 else {0, 1}

    @pytest.mark.parametrize("form", ["beside the images", "alone", "in a zip", "tabs"])
    def test_table(self, tmp_path, form):
        files = {f"img/{path.replace('/', '_')}": content for path, content in tree().items()}
        parts = ("train", "train", "val", "test")
        rows = [(path, path.split("/")[1].split("_")[0], parts[n % 4]) for n, path in enumerate(files)]
        text = table(rows)
        if form == "tabs":
            text = text.replace(b",", b"\t")
        name = "labels.tsv" if form == "tabs" else "labels.csv"
        write = write_zip if form == "in a zip" else write_folder
        place = write({**files, name: text}, tmp_path / ("faces.zip" if form == "in a zip" else "faces"))
        faces = folder.load(str(place / name if form == "alone" else place))
        assert faces.classes == ("Bird house", "cat", "dog")
        assert len(faces) == len(files)
        assert set(faces.usage) == {0, 1, 3}

    def test_table_without_parts_has_training_images_alone(self, tmp_path):
        files = tree()
        rows = [(path, path.split("/")[0]) for path in files]
        place = write_folder({**files, "labels.csv": table(rows, "Image,Emotion")}, tmp_path / "faces")
        assert not folder.load(str(place)).usage.any()

    def test_the_column_that_is_read_is_named_where_two_could_be(self, tmp_path, caplog):
        caplog.set_level("INFO")
        rows = [(path, path.split("/")[0], str(n % 2)) for n, path in enumerate(tree())]
        place = write_folder({**tree(), "labels.csv": table(rows, "path,label,class")}, tmp_path / "faces")
        assert folder.load(str(place)).classes == ("Bird house", "cat", "dog")
        assert "its label is read from the column label, not class" in caplog.text

    def test_a_folder_inside_of_a_table_is_refused(self, tmp_path):
        files = tree()
        rows = [(path, path.split("/")[0]) for path in files]
        place = write_folder({**files, "labels.csv": table(rows, "path,label")}, tmp_path / "faces")
        with pytest.raises(
            UserError, match=r"labels\.csv/cat: a table holds no folder: give data\.path=\S+labels\.csv$"
        ):
            folder.load(str(place / "labels.csv" / "cat"))

    def test_order_of_reading_does_not_matter(self, tmp_path):
        one = folder.load(str(write_zip(dict(reversed(tree().items())), tmp_path / "a.zip")))
        other = folder.load(str(write_folder(tree(), tmp_path / "a")))
        assert one.data_hash == other.data_hash
        np.testing.assert_array_equal(one.images, other.images)

    def test_rafdb_with_its_list(self, tmp_path, caplog):
        files, lines = {}, []
        for number, (code, label) in enumerate([("1", 5), ("4", 3), ("6", 0), ("7", 6)] * 2, start=1):
            part = "train" if number <= 4 else "test"
            lines.append(f"{part}_{number:05}.jpg {code}")
            files[f"basic/Image/aligned/{part}_{number:05}_aligned.jpg"] = pictures(label, 1, color=True, side=100)[0]
        files["basic/EmoLabel/list_patition_label.txt"] = "\n".join([*lines, lines[0]]).encode()
        files["basic/Image/aligned/train_00009_aligned.jpg"] = b""
        with caplog.at_level("INFO"):
            faces = layouts.rafdb(str(write_folder(files, tmp_path / "raf")), color=True, image_size=100)
        assert faces.classes == ("angry", "happy", "surprise", "neutral")
        assert faces.count(faces.usage == 0) == faces.count(faces.usage == 3) == [1, 1, 1, 1]
        assert faces.form == ImageForm(100, True)
        assert "Class counts differ from those of RAF-DB (train: surprise 1 instead of 1,290" in caplog.text
        assert "list_patition_label.txt; ignored 1 images that it does not list" in caplog.text

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"copy/train_00001_aligned.jpg": b""}, "have one name, and the list no folders: remove one"),
            ({"other/list_patition_label.txt": b"train_00001.jpg 5"}, "holds several lists of labels"),
            ({"list_patition_label.txt": b"trian_00001.jpg 5"}, "line 1: must be a file of train or test and a label"),
            (
                {"list_patition_label.txt": b"train_00001.jpg 5\ntrain_00001.jpg 6"},
                "line 2: .*listed before with another",
            ),
        ],
        ids=["a name in two folders", "two lists", "another prefix", "two labels"],
    )
    def test_a_list_of_rafdb_that_is_unclear(self, tmp_path, change, message):
        files = {"aligned/train_00001_aligned.jpg": b"", "list_patition_label.txt": b"train_00001.jpg 5"}
        with pytest.raises(UserError, match=message):
            layouts.rafdb(str(write_zip({**files, **change}, tmp_path / "raf.zip")))

    def test_rafdb_with_an_endless_list(self, tmp_path):
        files = {"Image/aligned/a_aligned.jpg": b"", "list_patition_label.txt": bytes(layouts.MAX_LIST + 1)}
        with pytest.raises(UserError, match="has more than 4,194,304 bytes: give RAF-DB's own list"):
            layouts.rafdb(str(write_zip(files, tmp_path / "raf.zip")))

    def test_rafdb_with_its_list_read_as_any_folder(self, tmp_path):
        files = {"aligned/train_00001_aligned.jpg": b"", "list_patition_label.txt": b"train_00001.jpg 5"}
        with pytest.raises(
            UserError, match=r"list_patition_label\.txt is RAF-DB's list of labels: read it with data=rafdb"
        ):
            folder.load(str(write_zip(files, tmp_path / "raf.zip")))

    def test_rafdbs_list_itself_is_no_table(self, tmp_path):
        files = {"aligned/train_00001_aligned.jpg": b"", "list_patition_label.txt": b"train_00001.jpg 5"}
        with pytest.raises(UserError, match="is RAF-DB's list of labels: give its folder, with data=rafdb"):
            folder.load(str(write_folder(files, tmp_path / "raf") / "list_patition_label.txt"))

    def test_a_table_without_parts_takes_those_of_the_folders(self, tmp_path, caplog):
        files = with_parts(("train", "val"))
        rows = [(name, name.split("/")[1]) for name in files]
        files["metadata.csv"] = table(rows, "file_name,label")
        with caplog.at_level("INFO"):
            faces = folder.load(str(write_folder(files, tmp_path / "a")))
        assert set(faces.usage) == {0, 1}
        assert "has no column of parts; they are those of the folders" in caplog.text
        rows[0] = ("loose.png", rows[0][1])
        files["loose.png"] = pictures(6, 1)[0]
        files["metadata.csv"] = table(rows, "file_name,label")
        with pytest.raises(UserError, match=r"loose\.png is in no folder such as train or test, and other images are"):
            folder.load(str(write_folder(files, tmp_path / "b")))

    def test_parquet_files_of_the_hub(self, tmp_path):
        files = {"data/train-00000-of-00001.parquet": b"PAR1", "README.md": b""}
        with pytest.raises(UserError, match=r"parquet files such as data/train-00000-of-00001\.parquet are not read"):
            folder.load(str(write_folder(files, tmp_path / "hub")))

    def test_rafdb_as_folders(self, tmp_path):
        files = {
            f"{part}/{code}/{n}.png": pictures(3, 3)[n]
            for part in ("train", "test")
            for code in "1234567"
            for n in (0, 1)
        }
        faces = layouts.rafdb(str(write_folder(files, tmp_path / "raf")))
        assert faces.classes == EMOTIONS

    @pytest.mark.parametrize("codes", ["0123456", "1234567"])
    def test_rafdb_in_folders_of_other_numbers_is_said(self, tmp_path, codes, caplog):
        files = {f"{code}/{code}.png": pictures(3, 1)[0] for code in codes}
        faces = layouts.rafdb(str(write_folder(files, tmp_path / "raf")))
        warned = any("numbers of the data set are 1 to 7, and the folders 0 are" in each for each in caplog.messages)
        assert warned == ("0" in faces.classes) == ("0" in codes)

    @pytest.mark.parametrize("classes", [7, 8])
    def test_affectnet(self, tmp_path, classes):
        files = {f"{part}/{code}/{part}.png": pictures(3, 1)[0] for part in ("train", "val") for code in range(classes)}
        faces = layouts.affectnet(str(write_folder(files, tmp_path / "affect")))
        assert faces.classes == (*EMOTIONS, "contempt")[:classes]
        assert set(faces.usage) == {0, 1}

    def test_affectnet_of_seven_emotions_has_the_counts_of_seven(self, tmp_path, caplog):
        files = {f"train/{code}/a.png": pictures(3, 1)[0] for code in range(7)}
        with caplog.at_level("INFO"):
            layouts.affectnet(str(write_folder(files, tmp_path / "affect")))
        assert "contempt" not in caplog.text

    def test_images_of_the_hugging_face_hub(self, tmp_path):
        """``metadata.csv`` in the folder of each part, with the images beside it."""
        files = {f"{part}/{n}.png": pictures(3, 7)[n] for part in ("train", "validation") for n in range(7)}
        rows = [(f"{n}.png", str(n)) for n in range(7)]
        tables = {f"{part}/metadata.csv": table(rows, "file_name,label") for part in ("train", "validation")}
        place = str(write_folder({**files, **tables}, tmp_path / "hub"))
        faces = layouts.affectnet(place)
        assert (faces.classes, faces.count()) == (EMOTIONS, [2] * 7)
        codes = [int(name.split("/")[1][0]) for name in faces.ids]
        assert [EMOTIONS[label] for label in faces.labels] == [layouts.AFFECTNET_CODES[str(code)] for code in codes]
        assert [str(name).split("/")[0] for name in faces.ids] == [
            ("train", "validation")[part] for part in faces.usage
        ]
        assert folder.load(place).classes == tuple("0123456")

    def test_parts_are_no_classes(self, tmp_path):
        files = {f"{part}/{n}.png": pictures(3, 7)[n] for part in ("train", "validation") for n in range(7)}
        place = str(write_folder(files, tmp_path / "parts"))
        for load in (layouts.affectnet, folder.load):
            with pytest.raises(UserError, match=r"in folders of parts \(train, validation\) and in none of a class"):
                load(place)

    @pytest.mark.parametrize("hard", [False, True])
    def test_a_link_to_an_image_of_another_part_is_refused(self, tmp_path, hard):
        place = write_folder(with_parts(), tmp_path / "faces")
        image = next((place / "train").rglob("*.png"))
        link = place / "test" / image.parent.name / "link.png"
        if hard:
            link.hardlink_to(image)
        else:
            link.symlink_to(image)
        with pytest.raises(UserError, match="are one file in two parts: remove one of them"):
            folder.load(str(place))

    @pytest.mark.parametrize(
        ("folders", "message"), [(("1", "class001"), "1 and class001 are one class"), (("class", "1"), "")]
    )
    def test_folders_of_one_number_are_not_merged(self, tmp_path, folders, message):
        place = str(write_folder({f"{name}/a.png": pictures(3, 1)[0] for name in folders}, tmp_path / "affect"))
        if message:
            with pytest.raises(UserError, match=message):
                layouts.affectnet(place)
        else:
            assert layouts.affectnet(place).classes == ("class", "happy")

    def test_ck48(self, tmp_path):
        names = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
        files = {f"CK+48/{name}/S010_00{n}.png": pictures(3, 2)[n] for name in names for n in (0, 1)}
        faces = layouts.ck48(str(write_folder(files, tmp_path / "ck")))
        assert faces.classes == ("angry", "disgust", "fear", "happy", "sad", "surprise", "contempt")

    def test_jaffe(self, tmp_path, caplog):
        codes = ("AN", "DI", "FE", "HA", "NE", "SA", "SU")
        files = {f"jaffe/KA.{code}{n}.{n}.tiff": pictures(3, 3, side=256)[n] for code in codes for n in (1, 2)}
        with caplog.at_level("INFO"):
            faces = layouts.jaffe(str(write_folder({**files, "jaffe/note.png": pictures(3, 1)[0]}, tmp_path / "j")))
        assert faces.classes == EMOTIONS
        assert faces.count() == [2] * 7
        assert "Ignored 1 images with other names" in caplog.text


def read_order(monkeypatch):
    """Names in the order in which the members of tars are opened."""
    opened, before = [], archives.Tar.open
    monkeypatch.setattr(archives.Tar, "open", lambda self, name: (opened.append(name), before(self, name))[1])
    return opened


@pytest.mark.parametrize("layout", ["table", "rafdb"])
def test_a_tar_is_read_in_its_own_order(tmp_path, monkeypatch, layout):
    if layout == "table":
        files = tree()
        rows = [(path, path.split("/")[0]) for path in reversed(files)]
        files["labels.csv"], load = table(rows, "path,label"), folder.load
    else:
        files = {f"{part}_{n:05}.jpg": pictures(3, 4)[n] for part in ("train", "test") for n in range(4)}
        lines = [f"{name} {4 + n % 2}" for n, name in enumerate(files)]
        files["list_patition_label.txt"], load = "\n".join(reversed(lines)).encode(), layouts.rafdb
    opened = read_order(monkeypatch)
    load(str(write_tar(files, tmp_path / "faces.tar.gz")))
    assert [name for name in opened if name.endswith(("png", "jpg"))] == list(files)[:-1]


class TestClasses:
    def test_emotions_are_recognised_only_where_all_are(self):
        assert as_emotions(["anger", "Happiness", "contempt"]) == {
            "anger": "angry",
            "Happiness": "happy",
            "contempt": "contempt",
        }
        assert as_emotions(["AN", "HA", "SU"]) == {"AN": "angry", "HA": "happy", "SU": "surprise"}
        assert as_emotions(["anger", "cat"]) == {}
        assert as_emotions(["happy", "joy"]) == {}, "two of them are one emotion: kept apart"

    def test_order(self):
        assert group_classes(["10", "9", "cat 2", "cat 10"])[0] == ("cat 2", "cat 10", "9", "10")
        assert group_classes(["neutral", "sadness", "anger"])[0] == ("angry", "sad", "neutral")

    def test_mapping_renames_merges_and_leaves_out(self):
        mapping = {
            "happy": "positive",
            "surprise": "positive",
            "anger": "negative",
            "fear": "negative",
            "neutral": None,
        }
        classes, classes_of = group_classes(["Happy", "surprise", "anger", "fear", "neutral"], mapping)
        assert classes == ("negative", "positive")
        assert classes_of == {
            "Happy": "positive",
            "surprise": "positive",
            "anger": "negative",
            "fear": "negative",
            "neutral": None,
        }

    def test_numbers_with_a_mapping_are_emotions_in_their_order(self):
        classes, _ = group_classes(["1", "2", "3"], {"1": "surprise", "2": "fear", "3": "disgust"})
        assert classes == ("disgust", "fear", "surprise")

    def test_only(self):
        assert group_classes(["anger", "sadness", "joy"], only=["sad", "happiness"])[0] == ("sad", "happy")
        with pytest.raises(UserError, match=r"data\.only: the data have no class sat \(did you mean sad\?\)"):
            group_classes(["angry", "sad"], only=["sat"])

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["Cat", "cat"], "the classes Cat and cat differ in case alone"),
            (["caf\u00e9", "cafe\u0301"], "differ in how accents are encoded alone"),
            (["0", "1", "1.0"], "the classes 1 and 1.0 differ in how a number is written alone"),
            ([" lead", "b"], "without spaces at the ends; rename it"),
            (["a" * 61, "b"], "cannot name a class"),
            (["a\x1b[31m", "b"], "cannot name a class"),
        ],
    )
    def test_names_that_are_refused(self, names, message):
        with pytest.raises(UserError, match=message):
            group_classes(names)


class TestRuns:
    def test_gray(self, train, tmp_path):
        write_folder(tree(), tmp_path / "faces")
        metrics = train("data.path=faces")
        assert list(metrics["train/class_counts"]) == ["Bird house", "cat", "dog"]
        assert sum(metrics["train/class_counts"].values()) + metrics["test/n"] + metrics["val/n"] == 42
        predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
        assert {"p_Bird house", "p_cat", "p_dog"} < set(predictions)
        assert set(predictions["label"]) <= {"Bird house", "cat", "dog"}
        assert set(predictions["usage"]) == {"train"}
        assert "(faces, " in scorecard_line(make_scorecard(metrics))

    def test_evaluate_refuses_what_trained_the_model(self, train, tmp_path):
        from fer_lightning import evaluate

        write_folder(tree(), tmp_path / "faces")
        write_folder({**tree(), "cat/new.png": pictures(6, 1)[0]}, tmp_path / "more")
        train("data.path=faces")
        for words, message in (
            (["data=folder", "data.path=faces"], r"data\.path=faces: has the images that trained this model; leave"),
            (["data.path=more"], "not those that trained this model, and its test images were cut from them"),
        ):
            with pytest.raises(UserError, match=message):
                evaluate.main(["run/checkpoints/best.ckpt", *words])

    @pytest.mark.parametrize("backend", every_third(["batched", "albumentations"]))
    def test_colour_mixed_and_augmented(self, train, tmp_path, backend):
        write_zip(tree(color=True, side=60), tmp_path / "faces.zip")
        words = ("augment=strong", f"augment.backend={backend}", "imbalance=cmo")
        metrics = train("data.path=faces.zip", "data.color=true", *words, "figures=true")
        assert np.isfinite(metrics["test/nll"])
        from fer_lightning.model.classifier import EmotionClassifier

        model = EmotionClassifier.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
        assert (model.classes, model.form) == (("Bird house", "cat", "dog"), ImageForm(60, True))
        assert model.in_channels == 3
        from fer_lightning import evaluate

        write_folder(tree(), tmp_path / "gray")
        evaluate.main(["run/checkpoints/best.ckpt", "data=folder", "data.path=gray", "--out", "again"])
        assert json.loads((tmp_path / "again" / "metrics.json").read_text())["test/n"] == 42
        assert cv2.imread(str(tmp_path / "run" / "mistakes.png")) is not None

    @pytest.mark.nightly
    def test_two_classes(self, train, tmp_path):
        write_folder(tree(), tmp_path / "faces")
        metrics = train("data.path=faces", "data.only=[dog,cat]", "imbalance=weighted")
        assert list(metrics["train/class_counts"]) == ["dog", "cat"]

    @pytest.mark.nightly
    def test_three_emotions_of_drawn_faces(self, cli, tmp_path):
        outcome = cli(*TINY, "data.only=[happy,sad,neutral]", "hydra.run.dir=run")
        assert outcome.code == 0, outcome.err
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert list(metrics["train/class_counts"]) == ["happy", "sad", "neutral"]

    @pytest.mark.nightly
    def test_scores_again_from_the_checkpoint(self, train, tmp_path, monkeypatch):
        from fer_lightning import evaluate

        write_folder(tree(), tmp_path / "faces")
        metrics = train("data.path=faces")
        evaluate.main(["run/checkpoints/best.ckpt", "--out", "again"])
        again = json.loads((tmp_path / "again" / "metrics.json").read_text())
        assert {key: again[key] for key in metrics if key.startswith("test/")} == {
            key: metrics[key] for key in metrics if key.startswith("test/")
        }


BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "a class with one image": (
        {**tree(), "rare/a.png": pictures(0, 1)[0]},
        ": 1 image of rare; each class needs two or more",
    ),
    "classes that differ in case": (
        {**tree(), "Cat/a.png": pictures(0, 1)[0]},
        "the classes Cat and cat differ in case alone",
    ),
    "one class": ({f"cat/{n}.png": p for n, p in enumerate(pictures(3, 9))}, "one class only, cat"),
    "a test class that training lacks": (
        {**with_parts(), "test/rare/a.png": pictures(0, 1)[0], "test/rare/b.png": pictures(0, 1)[0]},
        "no training image of rare, which other parts have",
    ),
    "both layouts": ({**tree(), **with_parts()}, "holds both train|val|test/<class>/ (such as "),
    "listed and missing": (
        {**tree(), "l.csv": table([("gone.png", "cat", "train")])},
        "row 1: gone.png is not there",
    ),
    "in two parts": (
        {**tree(), "l.csv": table([("cat/00.png", "cat", "train"), ("cat/00.png", "cat", "test")])},
        "row 2: cat/00.png is listed before with another part",
    ),
    "with two labels": (
        {**tree(), "l.csv": table([("cat/00.png", "cat", "train"), ("cat/00.png", "dog", "train")])},
        "row 2: cat/00.png is listed before with another label",
    ),
    "without a label": ({**tree(), "l.csv": table([("cat/00.png", "", "train")])}, "row 1: its label is empty"),
    "a comma in a path": (
        {**tree(), "l.csv": table([("cat/00.png", "cat", "train"), ("dog/00.png", "dog", "train,", "x")])},
        "row 2: 5 columns, and the first line names 3: put a text that holds the separator in quotes",
    ),
    "a quote that is not closed": (
        {**tree(), "l.csv": b'path,label,note\ncat/00.png,cat,"open\ndog/00.png,dog,ok\n'},
        "l.csv, after row 0: cannot be read (unexpected end of data): close each quote",
    ),
    "a quote that another row closes": (
        {**tree(), "l.csv": b'path,label,note\ncat/00.png,cat,ok\ncat/01.png,cat,"a\ndog/00.png,dog,"b\n'},
        "l.csv, after row 1: cannot be read (',' expected after '\"'): close each quote",
    ),
    "a quote that a later row closes": (
        {**tree(), "l.csv": b'path,label,note\ncat/00.png,cat,ok\ncat/01.png,cat,"a\ndog/00.png,dog,b"\n'},
        "l.csv, row 2: a cell has several lines: close each quote, and write a row as one line",
    ),
    "a row that is cut short": (
        {**tree(), "l.csv": b"path,label\ncat/00.png\n"},
        "row 1: 1 column, and 2 are needed",
    ),
    "an unknown part": (
        {**tree(), "l.csv": table([("cat/00.png", "cat", "dev")])},
        "row 1: split 'dev'; accepted: train",
    ),
    "a column twice": (
        {**tree(), "l.csv": b"path,label,label\ncat/00.png,cat,dog\n"},
        "l.csv has the column label twice: remove or rename one of them",
    ),
    "not UTF-8": ({**tree(), "l.csv": b"path,label\ncat/00.png,c\xe4t\n"}, "l.csv is not UTF-8 text with columns"),
    "an image that is none": ({**tree(), "cat/x.png": b"GIF"}, "cat/x.png is not an image that can be read"),
}


@pytest.mark.parametrize("case", every_third(BAD))
def test_bad_data_end_in_one_line(cli, tmp_path, case):
    files, message = BAD[case]
    write_folder(files, tmp_path / "faces")
    outcome = cli(*RUN, "data.path=faces", "hydra.run.dir=run")
    assert outcome.code == 2
    assert message in outcome.error
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("files", "words", "message"),
    every_third(
        [
            (
                {**tree(color=True), "cat/x.png": pictures(0, 1)[0]},
                ["data.color=true"],
                "1 of 43 images are gray (the first: cat/x.png)",
            ),
            (tree(), ["data.image_size=8"], "data.image_size=8: must be from 16 to 1024 pixels"),
            (tree(), ["data.only=[cat,dgo]"], "data.only: the data have no class dgo (did you mean dog?)"),
            (tree(), ["data.classes=no.yaml"], "data.classes=no.yaml: cannot be read"),
            (tree(), ["data.only=[cat]"], "one class only, cat"),
        ]
    ),
    ids=["mixed colour", "image size", "only", "mapping", "one class"],
)
def test_bad_settings_end_in_one_line(cli, tmp_path, files, words, message):
    write_folder(files, tmp_path / "faces")
    outcome = cli(*RUN, "data.path=faces", *words, "hydra.run.dir=run")
    assert outcome.code == 2
    assert message in outcome.error


def test_gray_and_colour_mixed_are_refused_unless_all_are_converted(tmp_path):
    place = write_folder({**tree(color=True), "cat/x.png": pictures(0, 1)[0]}, tmp_path / "faces")
    cache = {"cache_dir": str(tmp_path / "cache")}
    assert folder.load(str(place), color=False, **cache).form == ImageForm(48, False)
    message = "gray images \\(such as cat/x.png\\) and colour ones \\(such as .*data.color=false .* data.color=true"
    with pytest.raises(UserError, match=message):  # in spite of the cached ones
        folder.load(str(place), **cache)


@pytest.mark.parametrize("text", ["cat: x\ncat: y\ndog: x\n", '{"cat": "x", "cat": "y", "dog": "x"}'])
def test_a_class_that_is_mapped_twice_is_refused(tmp_path, text):
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(UserError, match=r"classes\.yaml: 'cat' is there twice; keep one line"):
        read_mapping(tmp_path / "classes.yaml")


def test_a_file_name_that_is_not_utf8_is_refused(cli, tmp_path):
    place = write_folder(tree(), tmp_path / "faces")
    (place / "cat" / "00.png").rename(os.fsdecode(bytes(place / "cat") + b"/caf\xe9.png"))
    outcome = cli(*RUN, "data.path=faces", "data.cache_dir=cache", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "is not UTF-8: rename the file" in outcome.error
    assert not (tmp_path / "cache").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "checkpoints").exists()


class TestPersons:
    @pytest.mark.parametrize(
        ("load", "name", "person"),
        [
            (layouts.ck48, "{emotion}/S{number:03}_004_00000017.png", slice(0, 4)),
            (layouts.jaffe, "K{letter}.{code}1.39.png", slice(0, 2)),
        ],
    )
    def test_a_person_is_in_one_part(self, tmp_path, caplog, load, name, person):
        drawn = iter(encode(face) for face in DRAWN.images)
        files = {
            name.format(emotion=emotion, code=code, number=number, letter=letter): next(drawn)
            for number, letter in enumerate("ABCDEFGHIJKL")
            for emotion, code in (("happy", "HA"), ("sad", "SA"), ("fear", "FE"))
        }
        with caplog.at_level("INFO"):
            faces = load(str(write_folder(files, tmp_path / "faces")))
        assert "keep each of 12 persons in one part" in caplog.text
        split = splits.official(faces, seed=1)
        who = np.array([Path(str(name)).name[person] for name in faces.ids])
        parts = [set(who[rows]) for rows in (split.train, split.val, split.tests["test"])]
        assert sum(map(len, parts)) == 12
        assert all(parts)
        fold = splits.kfold(faces, seed=0, folds=4)
        assert not set(who[fold.train]) & set(who[fold.tests["test"]])
        with pytest.raises(UserError, match="12 persons, each in one fold"):
            splits.kfold(faces, seed=0, folds=13)

    def test_other_persons_are_other_data(self, tmp_path):
        hashes = []
        for shown in ("ABCDEF", "ABCDEE", "ABCDEF"):
            folder = tmp_path / str(len(hashes))
            drawn = iter(encode(face) for face in DRAWN.images)
            files = {
                f"{emotion}/S{ord(letter):03}_00{number}_00000017.png": next(drawn)
                for emotion in ("happy", "sad")
                for number, letter in enumerate(shown)
            }
            hashes.append(layouts.ck48(str(write_folder(files, folder))).data_hash)
        assert hashes[0] == hashes[2] != hashes[1]


def test_counts_of_parts(tmp_path):
    faces = folder.load(str(write_folder(tree(), tmp_path / "faces")))
    split = splits.official(faces, seed=0)
    assert splits.count_parts(faces, split).startswith("Bird house 10+1+1, cat ")
    many = replace(faces, classes=(*faces.classes, *(f"class {n}" for n in range(18))))
    assert splits.count_parts(many, split).startswith("train 0 to ")


def test_files_that_are_left_out_are_counted(tmp_path, caplog):
    extra = {"cat/x.gif": b"GIF89a", "dog/deep/y.HEIC": b"", "dog/notes": b"", "README": b"", ".old/cat/a.png": b""}
    caplog.set_level("INFO")
    litter = {".git/cat/a.png": b"", "cat/.DS_Store": b"", "fish/.DS_Store": b""}
    place = write_folder(
        tree() | extra | litter | {"list.csv": table([("cat/00.png", "dog")], "a,b")}, tmp_path / "faces"
    )
    (place / "bird").mkdir()
    folder.load(str(place))
    assert "Ignored 3 files that are not images (.gif, .heic, no ending)" in caplog.text
    assert "Ignored hidden folders: .old" in caplog.messages
    assert "Ignored empty folders: bird, fish" in caplog.messages
    assert "Ignored list.csv: its first line does not name the columns path and label, in UTF-8" in caplog.messages


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_other_spellings_of_a_members_path_are_the_same_place(tmp_path, caplog, write):
    caplog.set_level("INFO")
    files = tree()
    odd = {
        path.replace("cat/", "./cat/.//") if n % 2 else f".//{path}": data
        for n, (path, data) in enumerate(files.items())
    }
    hidden = {
        "./.old/a.png": b"",
        "cat/.new/x/a.png": b"",
        ".git/x.png": b"",
        "__MACOSX/._a.png": b"",
        "cat/._b.png": b"",
    }
    place = write(odd | hidden, tmp_path / ("faces.zip" if write is write_zip else "faces.tar.gz"))
    assert folder.load(str(place)).ids.tolist() == sorted(files)
    assert "Ignored hidden folders: .old, cat/.new" in caplog.messages


def test_folders_that_are_too_deep_are_named(tmp_path, caplog):
    place = write_folder({**tree(), "a/b/c/d/e/f/g/h.png": b""}, tmp_path / "faces")
    folder.load(str(place))
    assert "Ignored folders more than 5 levels deep: a/b/c/d/e/f" in caplog.messages


def test_a_folder_that_cannot_be_read_is_named(cli, tmp_path, monkeypatch):
    write_folder(with_parts(), tmp_path / "faces")
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("test/cat"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    outcome = cli(*RUN, "data.path=faces", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "faces/test/cat cannot be read (Permission denied): allow it, or remove the folder" in outcome.error


def test_paths_that_are_too_long_for_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_lightning.data.images.MAX_ID_CHARACTERS", 42 * 100)
    files = tree()
    files[f"cat/{'x' * 100}.png"] = files.pop("cat/00.png")
    with pytest.raises(
        UserError, match=r"the path cat/x+\.\.\. has 108 characters, too many beside 42 images: shorten it"
    ):
        folder.load(str(write_zip(files, tmp_path / "faces.zip")))


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_more_pixels_than_photographs_of_that_size_have(tmp_path, monkeypatch, write):
    monkeypatch.setattr("fer_lightning.data.images.FREE_PIXELS", 2**18)
    blank = encode(np.zeros((2048, 2048), np.uint8))
    files = {**tree(), **{f"cat/blank{number}.png": blank for number in range(20)}}
    place = str(write(files, tmp_path / ("faces.zip" if write is write_zip else "faces")))
    with pytest.raises(
        UserError, match=r"the images up to cat/blank\d+\.png have [\d,]+ pixels, too many for [\d,]+ bytes"
    ):
        folder.load(place)
    folder.load(str(write(tree(side=400), tmp_path / ("good.zip" if write is write_zip else "good"))))


@pytest.mark.parametrize("form", ["an image", "a zip", "a zip in the place of another"])
def test_data_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch, form):
    files = tree()
    place = write_folder(files, tmp_path / "a") if form == "an image" else write_zip(files, tmp_path / "a.zip")
    read = folder.read_images

    def read_and_change(*arguments):
        images = read(*arguments)
        if form == "an image":
            (place / "cat/00.png").write_bytes(files["dog/00.png"])
        elif form == "a zip":
            place.write_bytes(place.read_bytes() + b"x")
        else:
            write_zip(files, tmp_path / "new.zip").replace(place)
        return images

    monkeypatch.setattr(folder, "read_images", read_and_change)
    with pytest.raises(UserError, match="was changed while it was read"):
        folder.load(str(place), cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*/meta.json"))


def test_private_test_and_test_are_one_part(tmp_path):
    files = tree()
    rows = [(path, path.split("/")[0], ("train", "PrivateTest", "test")[n % 3]) for n, path in enumerate(files)]
    faces = folder.load(str(write_folder({**files, "labels.csv": table(rows)}, tmp_path / "faces")))
    assert set(faces.usage) == {0, 3}


def test_a_misspelt_name_of_the_mapping_is_seen(caplog):
    group_classes(["cat", "dog"], {"cat": "pet", "cats": "pet", "dgo": "pet"})
    assert caplog.messages == ["data.classes names classes that the data do not have: cats, dgo (did you mean dog?)"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("angry", "anger", "sad"), "anger and angry may be one emotion"),
        (("joy", "happiness", "rage"), "happiness and joy may be one emotion, and are read as 2 classes"),
        (("cat", "anger", "joy"), ""),
        (("angry", "sad"), ""),
    ],
)
def test_two_names_of_one_emotion_are_said(names, message, caplog):
    assert len(group_classes(names)[0]) == len(names)
    assert len(caplog.messages) == bool(message)
    assert message in "".join(caplog.messages)


def test_gray_images_become_colour_where_both_are_asked_for(tmp_path):
    place = str(write_folder({**tree(color=True), "cat/x.png": pictures(0, 1)[0]}, tmp_path / "faces"))
    faces = folder.load(place, color=folder.ANY_COLOR, image_size=48)
    gray = faces.images[list(faces.ids).index("cat/x.png")]
    np.testing.assert_array_equal(gray, np.stack([DRAWN.images[DRAWN.labels == 0][0]] * 3))
    with pytest.raises(UserError, match="1 of 43 images are gray"):
        folder.load(place, color=True, image_size=48)


def test_the_home_folder_of_nobody_is_one_line(tmp_path):
    place = str(write_folder(tree(), tmp_path / "faces"))
    for load in (folder.load, fer2013.load):
        with pytest.raises(UserError, match=r"data\.path=~nobody-here/faces does not exist: give"):
            load("~nobody-here/faces", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"data\.classes=~nobody-here/c\.yaml: cannot be read \(No such file"):
        folder.load(place, "~nobody-here/c.yaml")


def test_a_link_to_nothing_is_named(tmp_path):
    (write_folder(tree(), tmp_path / "faces") / "cat" / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"cat/lost\.png cannot be read: No such file or directory"):
        folder.load(str(tmp_path / "faces"))


def test_parts_of_other_data_than_fer2013_have_plain_names(tmp_path):
    faces = folder.load(str(write_folder(with_parts(), tmp_path / "faces")))
    assert set(np.array(faces.parts)[faces.usage]) == {"train", "val", "test"}
    assert DRAWN.parts == USAGES


def test_a_set_that_does_not_fit_the_disk_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3e8})())
    monkeypatch.setattr("fer_lightning.data.cache.RESERVE", 0)
    files = write_folder(tree(), tmp_path / "faces")
    folder.load(str(files))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1e5})())
    with pytest.raises(UserError, match=r"the images need 0\.0 GB in .*: give data\.cache_dir=DIR on another disk"):
        folder.load(str(files), image_size=96)


class TestZipNames:
    @pytest.mark.parametrize(
        ("written", "expected"),
        [("étoile rouge".encode(), "étoile rouge"), ("Größe".encode(), "Größe"), (b"caf\x82", "café")],
        ids=["UTF-8", "umlaut", "cp437"],
    )
    def test_a_name_without_the_flag_of_utf8(self, tmp_path, written, expected):
        stand_in = "x" * len(written)
        path = write_zip({f"{stand_in}/a.png": b"1", f"{stand_in}/b.png": b"2"}, tmp_path / "a.zip")
        path.write_bytes(path.read_bytes().replace(stand_in.encode(), written))
        opened = archives.Zip(path)
        assert opened.names() == [f"{expected}/a.png", f"{expected}/b.png"]
        assert opened.open(f"{expected}/b.png").read() == b"2"

    def test_a_name_with_the_flag(self, tmp_path):
        assert archives.Zip(write_zip({"Größe/é.png": b"1"}, tmp_path / "a.zip")).names() == ["Größe/é.png"]


@pytest.mark.parametrize("color", [False, True])
def test_all_broken_images_are_named_in_one_line(tmp_path, color):
    bad = {f"cat/bad{number}.png": b"no image" for number in range(7)}
    place = write_folder({**tree(color=True), **bad}, tmp_path / "faces")
    message = r"cat/bad0.png is not an image .* and so cat/bad1.png, cat/bad2.png, .*, cat/bad4.png and 2 more$"
    with pytest.raises(UserError, match=message):
        folder.load(str(place), color=color, cache_dir=str(tmp_path / "cache"))
