"""Saliency maps through the command line."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import TINY, Outcome, with_first
from legs import every_third
from photographs import group, landscape

from fer_lightning import audit, explain
from fer_lightning.config import command_line
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.data.synthetic import draw
from fer_lightning.inference import saliency_figures
from fer_lightning.inference.explanation_request import ExplanationRequest
from fer_lightning.inference.saliency import MeanMaps
from fer_lightning.runtime.errors import UserError

PNG = b"\x89PNG"


@pytest.fixture
def checkpoint(trained_once: Callable[..., Path]) -> Path:
    return trained_once(*TINY, "optim.lr=0.01") / "checkpoints" / "best.ckpt"


@pytest.fixture
def tool(
    checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """``python -m fer_lightning.explain CHECKPOINT ...`` in this process and ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            command_line.run_tool(lambda: explain.main([str(checkpoint), *arguments]))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three faces, one of them enlarged and one in a subfolder, and a text file."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    faces = draw(200, seed=3).images
    cv2.imwrite(str(folder / "one.png"), faces[0])
    cv2.imwrite(str(folder / "two.jpg"), cv2.resize(faces[1], (300, 400)))
    cv2.imwrite(str(folder / "below" / "one.png"), faces[2])
    (folder / "notes.txt").write_text("none")
    return folder


class TestFiles:
    def test_one_picture_for_each_image(self, tool, images, tmp_path):
        done = tool("images", "--out", "pictures")
        assert done.code == 0, done.err
        pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert pictures == ["one-2.png", "one.png", "two.png"]
        assert all((tmp_path / "pictures" / name).read_bytes().startswith(PNG) for name in pictures)
        assert all(name in done.out for name in pictures)
        assert "this model: test accuracy" in done.out
        assert "calibrated on validation" in " ".join(done.out.split())

    @pytest.mark.nightly
    def test_pictures_are_of_different_faces_and_of_the_emotion_asked_for(self, tool, images, tmp_path):
        assert tool("images/one.png", "images/two.jpg").code == 0
        one, two = ((tmp_path / "explained" / f"{name}.png").read_bytes() for name in ("one", "two"))
        assert one != two
        changed = 0
        for emotion in EMOTIONS:
            assert tool("images/one.png", "--emotion", emotion, "--out", emotion).code == 0
            changed += (tmp_path / emotion / "one.png").read_bytes() != one
        assert changed == 6, "all but the answer"

    def test_a_broken_image_is_reported_and_the_others_are_explained(self, tool, images, tmp_path):
        (images / "broken[red].png").write_bytes(PNG + b"nothing")
        done = tool("images")
        assert done.code == 101
        assert "1 of 4 inputs failed" in done.err
        assert "is not an image that can be read" in " ".join(done.out.replace("│", " ").split())
        assert "broken[red].png" in done.out.replace("\n", "")
        assert len(list((tmp_path / "explained").iterdir())) == 3

    def test_nothing_but_broken_images(self, tool, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        done = tool("a.png")
        assert done.code == 101
        assert "1 of 1 inputs failed" in done.err

    def test_what_is_missing_moves_or_has_no_face_is_a_row(self, tool, images, tmp_path):
        (tmp_path / "clip.mp4").write_bytes(b"")
        done = tool("gone.png", "images/one.png", "clip.mp4")
        assert done.code == 102
        assert "2 of 3 inputs failed" in done.err
        output = " ".join(done.out.replace("│", " ").split())
        assert "gone.png - - does not exist" in output
        assert "clip.mp4 - - is a video: give single images, or use predict" in output
        assert [path.name for path in (tmp_path / "explained").iterdir()] == ["one.png"]

    def test_a_name_that_is_as_long_as_a_system_has_is_cut(self, tool, images, tmp_path):
        for letter in "ab":
            (images / "two.jpg").with_name(f"{'é' * 125}{letter}.png").write_bytes((images / "one.png").read_bytes())
        done = tool("images", "--out", "pictures")
        assert done.code == 0, done.err
        names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert [name.replace("é" * 100, "long") for name in names] == [
            "one-2.png",
            "one.png",
            "two.png",
            "long-2.png",
            "long.png",
        ]

    def test_each_face_of_a_photograph_is_explained(self, tool, tmp_path):
        cv2.imwrite(str(tmp_path / "two.png"), group(256, 512))
        cv2.imwrite(str(tmp_path / "none.png"), landscape())
        done = tool("two.png", "none.png", "--faces")
        assert done.code == 101, done.err
        assert "no face" in done.out
        assert sorted(path.name for path in (tmp_path / "explained").iterdir()) == ["two-2.png", "two.png"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        every_third(
            [
                ([], "no image given"),
                (["gone.png"], "gone.png: does not exist; give files or folders"),
                (["images", "--out", "images/one.png"], "--out images/one.png: is a file; give a folder"),
                (["images", "--out", "images"], "--out images: images is read from there; choose a folder outside"),
                (["--test-set", "--emotion", "happy"], "--class happy: --test-set explains every class"),
                (["--test-set", "--faces"], "--faces: --test-set explains every class"),
                (
                    ["--emotions", "happy", "a.png"],
                    "unrecognized arguments: --emotions happy a.png; python -m",
                ),
                (["--test-set", "data.source.imagess=4"], "imagess"),
            ]
        ),
    )
    def test_mistakes_end_in_one_line_and_leave_nothing(self, tool, images, tmp_path, arguments, words):
        (tmp_path / "empty").mkdir()
        done = tool(*arguments)
        assert done.code == 2
        assert words in done.error
        assert not (tmp_path / "explained").exists()


class TestTestSet:
    def test_maps_picture_and_check(self, tool, tmp_path):
        done = tool("--test-set", "--out", "mean")
        assert done.code == 0, done.err
        assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["saliency.npz", "saliency.png"]
        assert (tmp_path / "mean" / "saliency.png").read_bytes().startswith(PNG)
        saved = np.load(tmp_path / "mean" / "saliency.npz")
        assert saved["classes"].tolist() == list(EMOTIONS)
        assert (saved["maps"].shape, saved["maps"].dtype) == ((7, 48, 48), np.float32)
        assert saved["faces"].shape == (7, 48, 48)
        assert saved["total"].sum() == 56
        assert 0 < saved["right"].sum() < 56
        assert (saved["right"] <= saved["total"]).all()
        known = saved["right"] > 0
        assert (saved["maps"][known].max(axis=(1, 2)) > 0).all()
        assert not saved["maps"][~known].any()
        areas = done.json["deletion_auc"]
        assert set(areas) == {"salient first", "at random", "salient last"}
        assert all(0 < area < 1 for area in areas.values())
        assert done.json["images"] == saved["right"].sum()

    @pytest.mark.slow
    def test_other_images_may_be_named_and_options_may_come_first(self, tool, tmp_path):
        assert tool("--test-set", "--out", "other", "data.source.images=800").code == 0
        assert np.load(tmp_path / "other" / "saliency.npz")["total"].sum() == 80

    @pytest.mark.nightly
    @pytest.mark.real
    def test_real_faces(self, tool, real_archive, tmp_path):
        with zipfile.ZipFile(real_archive) as archive:
            names = [name for name in archive.namelist() if "PrivateTest" in name][:5]
            for name in names:
                archive.extract(name, tmp_path / "real")
        done = tool("real")
        assert done.code == 0, done.err
        assert len(list((tmp_path / "explained").iterdir())) == 5


class TestPictures:
    def test_overlay_leaves_alone_what_is_not_salient(self):
        face = np.arange(48 * 48, dtype=np.float32).reshape(48, 48) % 256
        heat = np.zeros((48, 48), np.float32)
        heat[:, 24:] = 1
        shown = saliency_figures.overlay(face, heat)
        assert (shown.shape, shown.dtype) == ((48, 48, 3), np.uint8)
        np.testing.assert_array_equal(shown[:, :24], np.repeat(face[:, :24, None], 3, axis=2))
        assert (shown[:, 24:, 0] > shown[:, 24:, 2]).all(), "red"

    def test_emotion_without_a_correct_face_has_an_empty_panel(self):
        right = np.array([3, 0, 2, 9, 4, 1, 6])
        maps = np.ones((7, 48, 48), np.float32) * (right > 0)[:, None, None]
        means = MeanMaps(maps, maps * 100, right, right + 5, {}, 0)
        figure = saliency_figures.mean_maps(means, EMOTIONS, "title")
        panels = {axes.get_title("left"): axes for axes in figure.axes}
        assert list(panels) == list(EMOTIONS)
        assert [text.get_text() for text in panels["disgust"].texts] == ["none correct"]
        assert not panels["disgust"].images[0].get_visible()
        assert panels["happy"].get_xlabel() == "9 of 14"
        assert panels["happy"].images[0].get_visible()

    def test_of_many_classes_those_with_the_most_images_are_drawn_in_rows(self):
        total = np.arange(60)
        maps = np.ones((60, 48, 48), np.float32)
        names = [f"class {number}" for number in range(60)]
        figure = saliency_figures.mean_maps(MeanMaps(maps, maps, total, total, {}, 0), names, "title", "set")
        panels = [axes.get_title("left") for axes in figure.axes]
        assert panels == [f"class {number}" for number in range(59, 49, -1)]
        assert "the 10 of 60 classes with the most images" in " ".join(text.get_text() for text in figure.texts)

    def test_probabilities_of_many_classes_are_the_highest_and_the_explained_one(self):
        names = [f"class {number}" for number in range(60)]
        face = np.zeros((48, 48), np.uint8)
        figure = saliency_figures.explained_face(face, face / 255, names, np.arange(60) / 1770, 3, "title", "")
        labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
        assert labels == [*(f"class {number}" for number in range(59, 50, -1)), "class 3"]


def test_help_does_not_wait_for_torch(process):
    helped = process("--help", module="fer_lightning.explain", timeout=60, PYTHONPROFILEIMPORTTIME="1")
    assert helped.code == 0
    assert "--test-set" in helped.out
    imported = {line.split("|")[-1].strip() for line in helped.err.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "captum", "matplotlib", "cv2"}


@pytest.mark.nightly
def test_without_captum_the_extra_is_named(process, tmp_path, checkpoint, images):
    (tmp_path / "captum.py").write_text("raise ImportError")
    done = process(str(checkpoint), "images", module="fer_lightning.explain", PYTHONPATH=with_first(tmp_path))
    assert done.code == 2
    assert done.error == "error: saliency maps need captum: pip install 'fer_lightning[explain]'"
    assert not (tmp_path / "explained").exists()


def test_a_link_in_place_of_the_default_folder_is_not_followed(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    (work / "explained").symlink_to(tmp_path)
    monkeypatch.chdir(work)
    with pytest.raises(UserError, match="explained: is a link that points outside"):
        ExplanationRequest(checkpoint=Path("best.ckpt"), inputs=["a.png"]).check()


def test_nor_one_in_place_of_the_folder_of_an_audit(tmp_path, monkeypatch):
    (tmp_path / "work" / "outputs").mkdir(parents=True)
    (tmp_path / "work" / "outputs" / "audit").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UserError, match="outputs/audit: is a link that points outside"):
        audit.main(["data=synthetic"])
