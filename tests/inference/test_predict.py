"""Predictions through the command line: rows, statuses, exit codes, files, pictures and videos."""

import csv
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from archives import encode
from command_line import TINY, Outcome
from photographs import EYES, PORTRAIT, group, landscape, portrait

from fer_lightning import predict
from fer_lightning.config import command_line
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.data.synthetic import draw
from fer_lightning.evaluation import probabilities as inference
from fer_lightning.evaluation.reference import stored_calibration
from fer_lightning.inference import pictures, prediction, stream
from fer_lightning.inference.answers import OK, Answerer
from fer_lightning.metrics import conformal, prior
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.model.classifier import EmotionClassifier

FACES = draw(400, seed=5).images[:12]


@pytest.fixture
def checkpoint(trained_once) -> Path:
    """A model trained on drawn faces; shared, so do not change it."""
    return trained_once(*TINY) / "checkpoints" / "best.ckpt"


@pytest.fixture
def tool(checkpoint, capfd, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """The command with its guard, in this process and in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, model: Path = checkpoint) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            command_line.run_tool(lambda: predict.main([str(model), *arguments]))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def objects_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, path.suffix))
    return path


def film(path: Path, frames: list[np.ndarray], rate: float = 10) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        found, frame = capture.read()
        if not found:
            return frames
        frames.append(frame)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two faces, one of them in a deep subfolder; three damaged images, a text file, and a hidden image."""
    folder = tmp_path / "mixed"
    save(folder / "a.png", FACES[0])
    save(folder / "deep" / "er" / "than" / "others" / "b.png", FACES[1])
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cut.jpg").write_bytes(encode(portrait(), ".jpg")[:9000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    save(folder / ".hidden.png", FACES[2])
    return folder


class TestRows:
    @pytest.mark.slow
    def test_calibrated_probabilities_of_the_model(self, tool, checkpoint, tmp_path):
        for number, face in enumerate(FACES):
            save(tmp_path / "faces" / f"{number:02}.png", face)
        outcome = tool("faces", "--format", "jsonl")
        assert outcome.code == 0
        rows = objects_of(outcome.out)
        assert [row["path"] for row in rows] == [f"faces/{number:02}.png" for number in range(len(FACES))]

        model = EmotionClassifier.load(checkpoint)
        card = model.hparams["scorecard"]
        raw = inference.predict(model, FACES, torch.device("cpu"))
        expected = apply_temperature(raw, card["temperature"])
        assert not np.allclose(expected, raw, atol=1e-3), "a temperature of 1 would prove nothing"
        given = np.array([[row[f"p_{emotion}"] for emotion in EMOTIONS] for row in rows])
        np.testing.assert_allclose(given, expected, atol=1e-6)
        for row, probabilities in zip(rows, expected, strict=True):
            best = EMOTIONS[probabilities.argmax()]
            assert (row["status"], row["emotion"]) == (OK, best)
            assert row["confidence"] == pytest.approx(probabilities.max(), abs=1e-6)
            assert row["model_recall"] == pytest.approx(card[f"test/recall/{best}"], abs=1e-6)
            assert row["face"] is row["x"] is row["frame"] is row["time"] is None

    def test_a_bad_file_costs_its_own_row_only(self, tool, mixed):
        outcome = tool("mixed", "gone.png", "mixed/notes.txt", "--format", "csv")
        rows = rows_of(outcome.out)
        assert tuple(rows[0]) == Answerer(EMOTIONS, None).columns
        assert {row["path"]: row["status"].split(":")[0] for row in rows} == {
            "mixed/a.png": "ok",
            "mixed/broken.jpg": "this file is not an image that can be read",
            "mixed/cut.jpg": "this file is cut short",
            "mixed/deep/er/than/others/b.png": "ok",
            "mixed/empty.png": "this file is empty",
            "gone.png": "does not exist",
            "mixed/notes.txt": "this file is not an image that can be read",
        }
        assert len(rows) == 7
        assert all((row["emotion"] != "") == (row["status"] == "ok") for row in rows)
        assert outcome.err.splitlines()[-1] == "5 of 7 inputs failed"
        assert outcome.code == 100 + 5

    def test_what_is_no_file_in_a_folder_is_reported(self, tool, tmp_path):
        save(tmp_path / "p" / "a.png", FACES[0])
        os.mkfifo(tmp_path / "p" / "f.png")
        (tmp_path / "p" / "gone.png").symlink_to(tmp_path / "nowhere")
        (tmp_path / "p" / "d.png").mkdir()
        outcome = tool("p", "--format", "csv")
        rows = {row["path"]: row["status"] for row in rows_of(outcome.out)}
        assert rows == {"p/a.png": "ok", "p/f.png": "is not a regular file", "p/gone.png": "does not exist"}
        assert outcome.code == 102

    def test_folders_that_are_not_entered_are_reported(self, tool, tmp_path, monkeypatch):
        save(tmp_path / "p" / "a.png", FACES[0])
        for name in ("closed", ".hidden", "elsewhere"):
            save((tmp_path / name if name == "elsewhere" else tmp_path / "p" / name) / "b.png", FACES[0])
        (tmp_path / "p" / "link").symlink_to(tmp_path / "elsewhere")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        outcome = tool("p", "--format", "csv")
        assert {row["path"]: row["status"] for row in rows_of(outcome.out)} == {
            "p/a.png": "ok",
            "p/closed": "cannot be read (Permission denied)",
            "p/link": "is a link to a folder, which is not followed: give the folder itself",
        }
        assert outcome.code == 102

    def test_a_folder_of_any_depth(self, tool, tmp_path):
        deep = tmp_path / "p"
        lowest = deep.joinpath(*["a"] * 1200)
        subprocess.run(["mkdir", "-p", lowest], check=True)
        save(lowest / "a.png", FACES[0])
        (row,) = rows_of(tool("p", "--format", "csv").out)
        assert row["status"] == "ok"
        subprocess.run(["rm", "-rf", deep], check=True)

    def test_a_folder_without_images_is_reported(self, tool, tmp_path):
        (tmp_path / "bare").mkdir()
        save(tmp_path / "face.png", FACES[0])
        outcome = tool("bare", "face.png", "--format", "jsonl")
        bare, face = objects_of(outcome.out)
        assert bare["status"].startswith("no images in this folder (.jpg, .jpeg, .jfif, .png")
        assert face["status"] == "ok"
        assert outcome.code == 101

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_file_is_reported(self, tool, tmp_path):
        save(tmp_path / "face.png", FACES[0]).chmod(0)
        assert (
            objects_of(tool("face.png", "--format", "jsonl").out)[0]["status"] == "cannot be read (Permission denied)"
        )

    def test_many_failures_stay_below_the_shells_own_codes(self, tool, tmp_path):
        save(tmp_path / "face.png", FACES[0])
        outcome = tool("face.png", *(f"gone{number}.png" for number in range(40)), "--format", "csv")
        assert outcome.code == 125
        assert outcome.err.splitlines()[-1] == "40 of 41 inputs failed"

    def test_more_faces_than_a_batch(self, tool, checkpoint, monkeypatch, tmp_path):
        monkeypatch.setattr(stream, "BATCH_FACES", 5)
        for number, face in enumerate(FACES):
            save(tmp_path / "faces" / f"{number:02}.png", face)
        in_batches = objects_of(tool("faces", "--format", "jsonl").out)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        at_once = objects_of(tool("faces", "--format", "jsonl").out)
        assert [row["path"] for row in in_batches] == [row["path"] for row in at_once]
        for one, other in zip(in_batches, at_once, strict=True):
            assert one["p_happy"] == pytest.approx(other["p_happy"], abs=2e-6)

    def test_names_of_any_kind(self, tool, tmp_path):
        names = ["[bold]x[/bold].png", "a,b\nc.png", "ü 😀.png"]
        for name in names:
            save(tmp_path / name, FACES[0])
        assert [row["path"] for row in objects_of(tool(*names, "--format", "jsonl").out)] == names
        table = csv.DictReader(tool(*names, "--format", "csv").out.splitlines(True))
        assert [row["path"] for row in table] == [name.replace("\n", "\\n") for name in names]
        assert "[bold]x[/bold].png" in tool(*names).out


class TestForPeople:
    def test_one_face_beside_the_models_own_scores(self, tool, checkpoint, tmp_path):
        save(tmp_path / "face.png", FACES[0])
        outcome = tool("face.png")
        answer, model, calibration = outcome.out.splitlines()
        emotion = answer.removeprefix("face.png: ").split()[0]
        card = EmotionClassifier.load(checkpoint).hparams["scorecard"]
        assert emotion in EMOTIONS
        assert f"test accuracy {100 * card['test/accuracy']:.1f} %" in model
        assert f"recall of {emotion} {100 * card[f'test/recall/{emotion}']:.0f} %" in model
        assert "drawn faces" in model
        assert calibration == f"probabilities: calibrated (temperature {card['temperature']:.2f})"
        assert outcome.err == ""

    def test_a_table_of_several(self, tool, mixed, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        out = tool("mixed").out
        assert out.splitlines()[0].split() == ["path", "emotion", "or", "recall"]
        assert sum(line.startswith("path ") for line in out.splitlines()) == 1
        assert "mixed/broken.jpg: this file is not an image that can be read: replace or remove it\n" in out
        assert out.splitlines()[-3].startswith("this model: test accuracy")

    def test_machine_formats_stay_readable_by_machines(self, tool, mixed):
        for form, read in (("csv", rows_of), ("jsonl", objects_of)):
            outcome = tool("mixed/a.png", "--format", form)
            assert [row["status"] for row in read(outcome.out)] == ["ok"]
            assert "this model: test accuracy" in outcome.err

    def test_a_model_that_was_never_tested(self, tool, checkpoint, tmp_path):
        content = torch.load(checkpoint, weights_only=True)
        content["hyper_parameters"]["scorecard"] = None
        torch.save(content, tmp_path / "untested.ckpt")
        save(tmp_path / "face.png", FACES[0])
        out = tool("face.png", model=tmp_path / "untested.ckpt").out
        assert "the model was never tested (its checkpoint has no scorecard)" in out
        assert "probabilities: not calibrated" in out
        (row,) = objects_of(tool("face.png", "--format", "jsonl", model=tmp_path / "untested.ckpt").out)
        raw = inference.predict(EmotionClassifier.load(checkpoint), FACES[:1], torch.device("cpu"))
        assert row["confidence"] == pytest.approx(raw.max(), abs=1e-6)
        assert row["model_recall"] is None

    def test_a_photograph_used_as_a_face_is_noted_once(self, tool, tmp_path):
        save(tmp_path / "a.png", portrait())
        save(tmp_path / "b.png", portrait())
        save(tmp_path / "c.png", FACES[0])
        assert tool("a.png", "b.png").err.count("--faces detects the faces") == 1
        assert tool("c.png").err == ""


class TestPriorOptions:
    def test_sets_and_priors_of_rows(self, tool, checkpoint, tmp_path):
        for number, face in enumerate(FACES[:4]):
            save(tmp_path / "faces" / f"{number}.png", face)
        model = EmotionClassifier.load(checkpoint)
        calibrated = inference.classify(model, FACES[:4], torch.device("cpu"))
        _, reference = stored_calibration(model)
        (tmp_path / "shares.csv").write_text("".join(f"{name},{k}\n" for k, name in enumerate(EMOTIONS)))
        shares = np.arange(7) / 21
        outcome = tool("faces", "--format", "jsonl", "--set", "0.7", "--prior", "shares.csv")
        rows = objects_of(outcome.out)
        given = np.array([[row[f"p_{name}"] for name in EMOTIONS] for row in rows])
        np.testing.assert_allclose(given, prior.shift(calibrated, reference.prior, shares), atol=1e-6)
        inside = conformal.prediction_sets(calibrated, reference.scores.thresholds(0.7))
        assert [set(row["set_0.7"]) for row in rows] == [set(np.array(EMOTIONS)[held]) for held in inside]
        assert "prior shares.csv: neutral 29 %" in outcome.err
        assert "sets: hold the true emotion of 70 % of the images of each emotion" in outcome.err
        (row,) = rows_of(tool("faces/0.png", "--format", "csv", "--set", "0.7").out)
        assert row["set_0.7"].split(" | ") == rows[0]["set_0.7"]

    def test_an_estimated_prior_comes_from_all_images(self, tool, checkpoint, tmp_path):
        for number, face in enumerate(FACES[:4]):
            save(tmp_path / "faces" / f"{number}.png", face)
        outcome = tool("faces", "--format", "jsonl", "--prior", "estimated")
        assert "(from 4 images; too few for a steady estimate, which takes 140)" in outcome.err
        assert "set_0.9" not in objects_of(outcome.out)[0]

    def test_one_face(self, tool, tmp_path):
        save(tmp_path / "face.png", FACES[0])
        _, line, *_ = tool("face.png", "--set", "0.99").out.splitlines()
        assert line.startswith("99 % set: ")

    def test_a_table(self, tool, mixed):
        assert tool("mixed", "--set", "0.9").out.splitlines()[0].split() == [
            "path",
            "emotion",
            "recall",
            "90",
            "%",
            "set",
        ]

    def test_a_checkpoint_without_validation_scores_and_a_camera(self, tool, checkpoint, tmp_path):
        content = torch.load(checkpoint, weights_only=True)
        card = content["hyper_parameters"]["scorecard"]
        fewer = {key: value for key, value in card.items() if not key.startswith(("conformal", "prior/"))}
        content["hyper_parameters"]["scorecard"] = fewer
        torch.save(content, tmp_path / "fewer.ckpt")
        save(tmp_path / "face.png", FACES[0])
        outcome = tool("face.png", "--set", "0.9", model=tmp_path / "fewer.ckpt")
        assert outcome.code == 2
        assert "holds no scores of validation images" in outcome.err
        assert "--store data.path=DATA" in outcome.err
        outcome = tool("0", "--prior", "estimated")
        assert (outcome.code, "a camera never ends" in outcome.err) == (2, True)


class TestFaces:
    def test_one_row_for_each_face_and_one_for_none(self, tool, tmp_path):
        save(tmp_path / "in" / "group.png", group(256, 512))
        save(tmp_path / "in" / "landscape.png", landscape())
        save(tmp_path / "in" / "portrait.jpg", portrait())
        outcome = tool("in", "--faces", "--format", "jsonl")
        rows = objects_of(outcome.out)
        assert [(Path(row["path"]).stem, row["face"], row["status"]) for row in rows] == [
            ("group", 1, "ok"),
            ("group", 2, "ok"),
            ("landscape", None, "no face"),
            ("portrait", 1, "ok"),
        ]
        found = rows[-1]
        for x, y in EYES:
            assert found["x"] < x < found["x"] + found["width"]
            assert found["y"] < y < found["y"] + found["height"]
        assert rows[0]["x"] < rows[1]["x"], "from left to right"
        assert outcome.code == 101
        assert outcome.err.splitlines()[-1] == "1 of 3 inputs failed"

    def test_the_face_and_not_the_picture_is_answered(self, tool, tmp_path):
        save(tmp_path / "portrait.png", portrait())
        save(tmp_path / "turned.png", cv2.copyMakeBorder(portrait(), 0, 500, 0, 700, cv2.BORDER_REPLICATE))
        near, far = objects_of(tool("portrait.png", "turned.png", "--faces", "--format", "jsonl").out)
        assert abs(near["x"] - far["x"]) < 20
        assert near["emotion"] == far["emotion"]
        assert near["confidence"] == pytest.approx(far["confidence"], abs=0.1)

    def test_no_face_in_a_single_picture(self, tool, tmp_path):
        save(tmp_path / "landscape.png", landscape())
        outcome = tool("landscape.png", "--faces")
        assert "no face" in outcome.out
        assert outcome.code == 101

    @pytest.mark.real
    def test_real_faces(self, tool, real_archive, tmp_path):
        with zipfile.ZipFile(real_archive) as archive:
            names = sorted(name for name in archive.namelist() if "test/happy/PrivateTest" in name)[:20]
            for name in names:
                (tmp_path / "in").mkdir(exist_ok=True)
                (tmp_path / "in" / Path(name).name).write_bytes(archive.read(name))
        rows = objects_of(tool("in", "--format", "jsonl").out)
        assert [row["status"] for row in rows] == ["ok"] * 20
        assert np.isclose([sum(row[f"p_{emotion}"] for emotion in EMOTIONS) for row in rows], 1, atol=1e-5).all()


class TestFiles:
    @pytest.mark.parametrize(("name", "read"), [("rows.csv", rows_of), ("rows.jsonl", objects_of)])
    def test_rows_into_a_file(self, tool, mixed, tmp_path, name, read):
        outcome = tool("mixed", "--out", name)
        assert len(read((tmp_path / name).read_text())) == 5
        assert outcome.out == ""
        assert "this model: test accuracy" in outcome.err
        assert outcome.code == 103
        assert {path.name for path in tmp_path.iterdir()} == {"mixed", name}

    def test_an_error_leaves_neither_rows_nor_video(self, tool, monkeypatch, tmp_path):
        save(tmp_path / "in" / "face.png", FACES[0])
        film(tmp_path / "clip.mp4", [portrait()] * 3)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(prediction.Drawings, "add", interrupt)
        outcome = tool("in", "clip.mp4", "--out", "rows.csv", "--draw", "drawn")
        assert outcome.code == 130
        assert outcome.error == "error: interrupted"
        assert {path.name for path in tmp_path.iterdir()} == {"in", "clip.mp4"}


@pytest.mark.parametrize("name", ["predictions.csv", "metrics.csv"])
def test_a_runs_own_records_are_not_overwritten(tool, tmp_path, name):
    save(tmp_path / "face.png", FACES[0])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    outcome = tool("face.png", "--out", f"run/{name}")
    assert outcome.code == 2
    assert outcome.error == f"error: --out run/{name}: is the run's own record; choose another name"


class TestDrawings:
    def test_box_and_words_in_colour(self, tool, tmp_path):
        save(tmp_path / "in" / "portrait.png", portrait())
        (row,) = objects_of(tool("in", "--faces", "--draw", "drawn", "--format", "jsonl").out)
        drawn = cv2.imread(str(tmp_path / "drawn" / "portrait.png"))
        assert drawn.shape == portrait().shape
        changed = (drawn != portrait()).any(axis=2)
        left, top, right, bottom = row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"]
        for x, y in ((left, (top + bottom) // 2), (right - 1, (top + bottom) // 2), ((left + right) // 2, bottom - 1)):
            assert changed[y, x]
        assert not changed[(top + bottom) // 2, left + 20 : right - 20].any()
        assert not changed[bottom + 10 :].any()
        assert changed[top - 30 : top - 5, left : left + 100].mean() > 0.9, "a filled label above the box"

    def test_nothing_is_written_through_a_linked_folder(self, tool, tmp_path):
        save(tmp_path / "in" / "sub" / "face.png", FACES[0])
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "drawn").mkdir()
        (tmp_path / "drawn" / "sub").symlink_to(tmp_path / "elsewhere")
        outcome = tool("in", "--draw", "drawn")
        assert outcome.code == 2
        assert outcome.error == (
            "error: drawn/sub: is a link that points outside drawn; replace the link with its target"
        )
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_nothing_is_written_through_links_of_temporary_names(self, tool, tmp_path):
        """A killed process may leave such a name, and somebody else may make one."""
        film(tmp_path / "clip.mp4", [portrait()] * 2)
        own = tmp_path / "own"
        own.write_text("mine")
        (tmp_path / "drawn").mkdir()
        for name in (f".rows.csv.{os.getpid()}", f"drawn/.clip.{os.getpid()}.mp4"):
            (tmp_path / name).symlink_to(own)
        assert tool("clip.mp4", "--out", "rows.csv", "--draw", "drawn").code == 0
        assert own.read_text() == "mine"
        assert not (tmp_path / "rows.csv").is_symlink()
        assert len(frames_of(tmp_path / "drawn" / "clip.mp4")) == 2
        (tmp_path / f".rows.csv.{os.getpid()}").mkdir()
        assert "rows.csv: cannot be written" in tool("clip.mp4", "--out", "rows.csv").error

    def test_a_name_that_is_as_long_as_a_system_has_is_cut(self, tool, tmp_path):
        for letter in "ab":
            save(tmp_path / "in" / f"{'x' * 250}{letter}.png", FACES[0])
        assert tool("in", "--draw", "drawn").code == 0
        names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
        assert names == [f"{'x' * 200}-2.png", f"{'x' * 200}.png"]

    def test_small_gray_faces_are_enlarged(self, tool, tmp_path):
        save(tmp_path / "in" / "face.png", FACES[0])
        assert tool("in", "--draw", "drawn").code == 0
        drawn = cv2.imread(str(tmp_path / "drawn" / "face.png"))
        assert drawn.shape == (336, 336, 3)

    def test_folders_are_kept_and_equal_names_numbered(self, tool, tmp_path):
        for folder in ("one/deep", "two/deep"):
            save(tmp_path / folder / "face.jpg", FACES[0])
            save(tmp_path / folder / "face.bmp", FACES[1])
        assert tool("one", "two", "--draw", "drawn").code == 0
        drawn = {path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.*")}
        assert drawn == {f"deep/{name}" for name in ("face.jpg", "face.png", "face-2.jpg", "face-2.png")}

    @pytest.mark.parametrize("folder", ["in", "in/drawn", "."])
    def test_never_among_the_inputs(self, tool, tmp_path, folder):
        save(tmp_path / "in" / "face.png", FACES[0])
        before = (tmp_path / "in" / "face.png").read_bytes()
        outcome = tool("in", "--draw", folder)
        assert outcome.code == 2
        assert "is read from there; choose a folder outside" in outcome.error
        assert (tmp_path / "in" / "face.png").read_bytes() == before

    def test_a_folder_that_cannot_be_made(self, tool, tmp_path):
        save(tmp_path / "in" / "face.png", FACES[0])
        (tmp_path / "file").write_text("")
        assert "is a file; give a folder" in tool("in", "--draw", "file").error
        assert "cannot be written" in tool("in", "--draw", "file/below").error


class TestVideo:
    @pytest.fixture
    def clip(self, tmp_path) -> Path:
        """Six frames of the portrait, the third without a face."""
        here, gone = portrait(), landscape(600, 512)
        return film(tmp_path / "clip.mp4", [here, here, gone, here, here, here], rate=5)

    def test_rows_of_each_frame(self, tool, clip):
        outcome = tool("clip.mp4", "--faces", "--format", "jsonl")
        rows = objects_of(outcome.out)
        assert [row["frame"] for row in rows] == list(range(6))
        assert [row["time"] for row in rows] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        assert [row["status"] for row in rows] == ["ok", "ok", "no face", "ok", "ok", "ok"]
        assert outcome.code == 0, "a video is one input, and it was answered"

    def test_each_second_frame_and_an_annotated_copy_of_the_same_length(self, tool, clip, tmp_path):
        assert tool("clip.mp4", "--faces", "--every", "2", "--draw", "drawn").code == 0
        assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["clip.mp4"]
        frames = frames_of(tmp_path / "drawn" / "clip.mp4")
        capture = cv2.VideoCapture(str(tmp_path / "drawn" / "clip.mp4"))
        assert (len(frames), capture.get(cv2.CAP_PROP_FPS)) == (3, 2.5)
        assert frames[0].shape == (600, 512, 3)
        assert (np.abs(frames[0].astype(int) - portrait()) > 100).any(axis=2).sum() > 1000, "box and words"

    @pytest.mark.parametrize("width", [80, 160])
    def test_a_table_that_fits_the_terminal(self, tool, clip, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = tool("clip.mp4", "--faces", "--every", "2").out.splitlines()
        assert max(map(len, lines[:4])) <= width
        assert [line.split()[:4] for line in lines[1:4]] == [
            ["clip.mp4", "0.00", "s", "1"],
            ["clip.mp4", "0.40", "s", "no"],
            ["clip.mp4", "0.80", "s", "1"],
        ]
        assert ("  or  " in lines[0]) == (width == 160)

    def test_pictures_waiting_to_be_drawn_on_are_bounded(self, tool, clip, monkeypatch, tmp_path):
        monkeypatch.setattr(stream, "MAX_PENDING_BYTES", portrait().nbytes)
        sizes = []
        classify = inference.classify
        monkeypatch.setattr(
            inference, "classify", lambda model, faces, d: sizes.append(len(faces)) or classify(model, faces, d)
        )
        assert tool("clip.mp4", "--draw", "drawn").code == 0
        assert sizes == [1] * 6
        assert len(frames_of(tmp_path / "drawn" / "clip.mp4")) == 6

    def test_no_video_and_half_of_one(self, tool, tmp_path):
        frames = [np.random.default_rng(k).integers(0, 255, (240, 320, 3), dtype=np.uint8) for k in range(40)]
        writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
        for frame in frames:
            writer.write(frame)
        writer.release()
        data = (tmp_path / "whole.avi").read_bytes()
        (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
        (tmp_path / "none.mp4").write_bytes(b"no video" * 100)
        outcome = tool("whole.avi", "half.avi", "none.mp4", "--every", "10", "--format", "jsonl")
        rows = objects_of(outcome.out)
        by_path = {name: [row["status"] for row in rows if row["path"] == name] for name in ("whole.avi", "half.avi")}
        assert by_path["whole.avi"] == ["ok"] * 4
        assert by_path["half.avi"][:2] == ["ok", "ok"]
        assert by_path["half.avi"][-1].startswith("is damaged or cut short: ends at ")
        assert rows[-1]["status"] == "is not a readable video: replace or remove it"
        assert outcome.err.splitlines()[-1] == "2 of 3 inputs failed"
        assert outcome.code == 102


class TestCamera:
    def test_missing_camera_is_reported(self, tool):
        outcome = tool("97")
        assert outcome.code == 2
        assert outcome.error.startswith("error: camera 97: cannot be opened; check that it is connected")

    def test_alone(self, tool, tmp_path):
        save(tmp_path / "face.png", FACES[0])
        assert "give its number alone" in tool("0", "face.png").error

    def test_a_file_of_that_name_is_no_camera(self, tool, tmp_path):
        (tmp_path / "7").write_bytes(encode(FACES[0]))
        assert tool("7").out.startswith("7: ")

    def test_control_c_ends_it_with_what_there_is(self, tool, monkeypatch, tmp_path):
        """The capture reads a file, since test machines have no camera; everything else is real."""
        film(tmp_path / "camera.mp4", [portrait()] * 30)
        monkeypatch.setattr(pictures, "_open", lambda number: cv2.VideoCapture(str(tmp_path / "camera.mp4")))
        seen = []
        classify = inference.classify

        def interrupted(*arguments):
            seen.append(1)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return classify(*arguments)

        monkeypatch.setattr(inference, "classify", interrupted)
        before = signal.getsignal(signal.SIGINT)
        outcome = tool("0", "--faces", "--out", "rows.csv", "--draw", "drawn")
        assert outcome.code == 0
        rows = rows_of((tmp_path / "rows.csv").read_text())
        assert [(row["path"], row["frame"], row["status"]) for row in rows] == [
            ("camera 0", str(frame), "ok") for frame in range(3)
        ]
        assert len(frames_of(tmp_path / "drawn" / "camera_0.mp4")) >= 1
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_recording_runs_as_fast_as_what_it_shows(self, tmp_path):
        video = prediction.Drawings(tmp_path, every=1)
        camera = pictures.Source(Path("camera 0"), "camera", Path("camera_0"), camera=0)
        for seconds in (0.0, 0.5, 0.52, 1.0, 3601.0):  # the machine slept for an hour
            video.add(camera, pictures.Picture(portrait(), frame=0, seconds=seconds, rate=30.0), [(None, "happy")])
        video.close(keep=True)
        assert len(frames_of(tmp_path / "camera_0.mp4")) == 10 + 1 + 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.png", "gone"], "gone.png, gone: does not exist; give files or folders that exist"),
        (["face.png", "--every", "0"], "--every 0: must be 1 or more"),
        (["face.png", "--out", "rows.txt"], "--out rows.txt: the name must end in .csv or .jsonl"),
        (["face.png", "--out", "face.png/rows.csv"], "face.png: cannot be made as a folder (File exists)"),
        (["face.png", "--detector", "gone.onnx"], "gone.onnx: no such file; give YuNet"),
        (["face.png", "--detector", "face.png"], "face.png: is not YuNet"),
    ],
)
def test_mistakes_are_one_line(tool, tmp_path, arguments, message):
    save(tmp_path / "face.png", FACES[0])
    outcome = tool(*arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert {path.name for path in tmp_path.iterdir()} == {"face.png"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_device_is_reported(tool, tmp_path):
    save(tmp_path / "face.png", FACES[0])
    assert tool("face.png", "--device", "cuda").error == (
        "error: --device cuda: this machine has no such device; accepted are auto, cpu, cuda and mps; use --device cpu"
    )


class TestProcess:
    @pytest.mark.nightly
    def test_help_and_mistakes_need_no_torch(self, tmp_path):
        code = "import sys; from fer_lightning import predict\ntry: predict.run_tool(predict.main)\n"
        code += "except SystemExit: pass\nprint('torch' in sys.modules)"
        for arguments in (
            ["--help"],
            ["gone.ckpt", "face.png"],
            [__file__, "gone.png"],
            [__file__, "0", "--every", "0"],
        ):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.stdout.splitlines()[-1] == "False"

    def test_no_checkpoint(self, process, tmp_path):
        save(tmp_path / "face.png", FACES[0])
        outcome = process("nothing.ckpt", "face.png", module="fer_lightning.predict")
        assert outcome.code == 2
        assert outcome.error == "error: nothing.ckpt: no such checkpoint; give a run's checkpoints/best.ckpt"

    def test_a_whole_command(self, forked, checkpoint, tmp_path):
        save(tmp_path / "in" / "portrait.png", portrait())
        (tmp_path / "in" / "broken.png").write_bytes(b"")
        outcome = forked(str(checkpoint), "in", str(PORTRAIT), "--faces", module="fer_lightning.predict")
        assert outcome.code == 101
        assert outcome.err == "1 of 3 inputs failed\n"
        assert outcome.out.count("145, 99, 239, 239") == 2
