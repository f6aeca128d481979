"""Which files of a folder are inputs."""

from pathlib import Path

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
