"""Which files of a folder are inputs."""

from pathlib import Path

import numpy as np
import pytest

from fer_lightning.data.faces import ImageForm, about_faces, trained_on
from fer_lightning.inference import demo_page, stream
from fer_lightning.inference.detect import Box
from fer_lightning.inference.pictures import list_sources


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
