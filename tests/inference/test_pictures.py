"""Which files of a folder are inputs, and what a video may be."""

import os
import socket
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_lightning.data.faces import ImageForm, about_faces, trained_on
from fer_lightning.inference import demo_page, stream
from fer_lightning.inference.detect import Box
from fer_lightning.inference.pictures import MAX_FRAME, Picture, list_sources, read, short_stem


def test_videos_and_other_images_of_a_folder_are_reported(tmp_path: Path) -> None:
    for name in ("a.png", "b.gif", "sub/c.MP4", "d.heic", "notes.txt", ".hidden.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    sources = {source.name.as_posix(): source for source in list_sources([str(tmp_path)])}
    assert {name: source.kind for name, source in sources.items()} == {
        "a.png": "image",
        "b.gif": "none",
        "d.heic": "none",
        "sub/c.MP4": "none",
    }
    assert sources["b.gif"].problem == "is a video within a folder: give it by its own path"
    assert sources["d.heic"].problem.startswith("is an image of another kind: convert it to one of .jpg")
    assert list_sources([str(tmp_path / "b.gif")])[0].kind == "video"


@pytest.mark.parametrize(
    ("classes", "data", "faces"),
    [
        (("happy", "sad"), "folder", True),
        (("cat", "sad"), "folder", False),
        (("positive", "negative"), "fer2013", True),
        (("positive", "negative"), ["fer2013"], False),
    ],
)
def test_a_model_of_faces(classes: tuple[str, ...], data: object, faces: bool) -> None:
    assert about_faces(classes, trained_on({"data": {"name": data}})) == faces
    assert about_faces(classes, trained_on({"data": [data]})) == (classes == ("happy", "sad"))


@pytest.mark.parametrize("hints", [True, False])
def test_only_models_of_faces_name_the_detection_of_faces(hints: bool, capsys: pytest.CaptureFixture[str]) -> None:
    extract = stream.central_face_with_note(ImageForm(48, False), hints)
    ((box, face),) = extract(np.zeros((100, 150, 3), np.uint8))
    assert (box, face.shape) == (None, (48, 48))
    note = capsys.readouterr().err
    assert note.startswith("note: only the central square of a picture of 150x100 pixels is used")
    assert ("--faces" in note) == hints


@pytest.mark.parametrize(("faces", "title"), [(True, "Face 1: sad 75 %"), (False, "sad 75 %")])
def test_the_page_calls_only_faces_so(faces: bool, title: str) -> None:
    gray = np.zeros((48, 48), np.uint8)
    answer = demo_page.FaceAnswer(Box(0, 0, 48, 48), gray, np.array([0.25, 0.75]), gray / 255)
    assert f"<h3>{title}</h3>" in demo_page.as_html([answer], "", ("happy", "sad"), None, faces)


@pytest.mark.parametrize(("letter", "kept"), [("a", 200), ("é", 100), (os.fsdecode(b"\xff"), 200)])
def test_a_long_name_is_cut_between_letters(letter: str, kept: int) -> None:
    assert short_stem(250 * letter) == kept * letter


def gif_of(side: int, frames: int) -> bytes:
    """A GIF of black frames, of which each draws one pixel and takes 23 bytes."""
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\x04\x0a\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return screen + frames * frame + b";"


def frames_of(path: Path | str, every: int = 1) -> list[Picture]:
    (source,) = list_sources([str(path)])
    assert source.kind == "video"
    return list(read(source, every))


def problem_of(path: Path | str, every: int = 1) -> str:
    return frames_of(path, every)[-1].problem


class TestVideos:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def test_frames_that_are_too_large_are_not_decoded(self):
        Path("large.gif").write_bytes(gif_of(16000, 1))
        (only,) = frames_of("large.gif")
        assert only.problem == f"has frames of 16000x16000 pixels, more than {MAX_FRAME:,}: reduce them"
        assert only.image is None

    def test_blank_frames_of_few_bytes_are_bounded(self):
        Path("long.gif").write_bytes(gif_of(5760, 400))
        assert problem_of("long.gif", every=1000).startswith("has too many pixels for ")

    @pytest.mark.parametrize(
        ("suffix", "codec"),
        [
            *((".mp4", "mp4v"), (".m4v", "mp4v"), (".mov", "mp4v"), (".avi", "MJPG"), (".mkv", "mp4v")),
            *((".webm", "VP80"), (".mpg", "PIM1"), (".mpeg", "mpg2"), (".wmv", "WMV2")),
        ],
    )
    def test_containers_of_all_suffixes(self, suffix, codec):
        writer = cv2.VideoWriter(f"still{suffix}", cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25, (320, 240))
        if not writer.isOpened():
            pytest.skip(f"this OpenCV does not write {codec}")
        for _ in range(250):
            writer.write(np.zeros((240, 320, 3), np.uint8))
        writer.release()
        frames = frames_of(f"still{suffix}")
        assert len(frames) == 250
        assert not frames[-1].problem

    @pytest.mark.parametrize("name", ["a%d.gif", "a b.gif", "\u00fc.gif", "concat:a0.gif", "x|y;z.gif", "file:a0.gif"])
    def test_a_name_means_the_file_of_this_name(self, name):
        Path("a0.gif").write_bytes(gif_of(32, 5))
        Path(name).write_bytes(gif_of(64, 3))
        assert [frame.image.shape for frame in frames_of(name)] == [(64, 64, 3)] * 3
        Path(name).write_bytes(b"no video")
        assert problem_of(name) == "is not a readable video: replace or remove it"

    def test_a_name_like_an_address_is_not_fetched(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            name = f"http:127.0.0.1:{server.getsockname()[1]}?x.gif"
            Path(name).write_bytes(gif_of(64, 3))
            assert len(frames_of(name)) == 3
            with pytest.raises(BlockingIOError):
                server.accept()

    @pytest.mark.parametrize(
        "text",
        [
            "ffconcat version 1.0\nfile other.gif\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.gif\n#EXT-X-ENDLIST\n",
        ],
        ids=["concat", "HLS"],
    )
    def test_a_list_of_other_files_is_no_video(self, text):
        Path("other.gif").write_bytes(gif_of(64, 3))
        Path("list.mp4").write_text(text)
        assert [frame.problem for frame in frames_of("list.mp4")] == ["is not a readable video: replace or remove it"]

    def test_a_name_that_is_not_utf8(self):
        name = os.fsdecode(b"\xff.gif")
        try:
            Path(name).write_bytes(gif_of(64, 3))
        except OSError:
            pytest.skip("this file system has no such names")
        assert problem_of(name) == "has a name that is not UTF-8, which OpenCV cannot open: rename it"

    @pytest.mark.parametrize("given", [None, "threads;1"])
    def test_the_environment_is_as_before(self, given, monkeypatch):
        option = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
        monkeypatch.delenv(option, raising=False)
        if given:
            monkeypatch.setenv(option, given)
        Path("a.gif").write_bytes(gif_of(64, 3))
        assert len(frames_of("a.gif")) == 3
        assert os.environ.get(option) == given
