"""Each layout of labelled images from training to the exported file, through the command line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from archives import encode, write_folder, write_tar, write_zip
from command_line import TINY
from legs import every_nth

from fer_lightning.compare import main as compare
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.data.ferplus import CATEGORIES
from fer_lightning.data.synthetic import draw
from fer_lightning.export import main as export

DRAWN = draw(400, difficulty=0.3)
RUN = (*(word for word in TINY if not word.startswith("data")), "data.batch_size=8")
EACH = {"train": 6, "val": 2, "test": 2}
"""Images of each class in each part."""


def pictures(color: bool = False, side: int = 48) -> Iterator[bytes]:
    """Drawn faces, each once."""
    for face in DRAWN.images:
        image = np.stack([255 - face, face, face // 2], axis=-1) if color else face
        yield encode(cv2.resize(image, (side, side)))


def parts_of_classes(classes: tuple[str, ...], parts: tuple[str, ...], **form: object) -> dict[str, bytes]:
    drawn = pictures(**form)  # type: ignore[arg-type]
    counted = dict(zip(parts, EACH.values(), strict=False))
    return {
        f"{part}/{name}/{part}_{number}.png": next(drawn)
        for part, count in counted.items()
        for name in classes
        for number in range(count)
    }


def classes_alone(folder: Path) -> tuple[str, ...]:
    drawn = pictures()
    files = {f"{name}/{number}.png": next(drawn) for name in ("cat", "dog", "owl") for number in range(12)}
    return "data=folder", f"data.path={write_folder(files, folder / 'set')}"


def parts(folder: Path) -> tuple[str, ...]:
    files = parts_of_classes(("cat", "dog", "owl"), ("train", "val", "test"), color=True, side=60)
    path = write_tar(files, folder / "set.tar.gz")
    return "data=folder", f"data.path={path}", "data.color=true", "data.image_size=40"


def listed(folder: Path) -> tuple[str, ...]:
    files = parts_of_classes(("cat", "dog", "owl"), ("train", "valid", "test"))
    lines = ["path,label,split", *(f"{path},{path.split('/')[1]},{path.split('/')[0]}" for path in files)]
    archive = write_zip({**files, "labels.csv": "\n".join(lines).encode()}, folder / "set.zip")
    return "data=folder", f"data.path={archive}"


def rafdb(folder: Path) -> tuple[str, ...]:
    drawn, files, lines = pictures(color=True, side=100), {}, []
    for part, count in (("train", 8), ("test", 2)):
        for number, code in enumerate("1234567" * count, start=1):
            lines.append(f"{part}_{number:05}.jpg {code}")
            files[f"basic/Image/aligned/{part}_{number:05}_aligned.jpg"] = next(drawn)
    files["basic/EmoLabel/list_patition_label.txt"] = "\n".join(lines).encode()
    return "data=rafdb", f"data.path={write_folder(files, folder / 'set')}", "data.image_size=32"


def rafdb_folders(folder: Path) -> tuple[str, ...]:
    files = parts_of_classes(tuple("1234567"), ("train", "test"))
    return "data=rafdb", f"data.path={write_zip(files, folder / 'set.zip')}", "data.color=false", "data.image_size=48"


def affectnet(folder: Path) -> tuple[str, ...]:
    files = parts_of_classes(tuple("01234567"), ("train", "val"), color=True)
    return "data=affectnet", f"data.path={write_folder(files, folder / 'set')}", "data.image_size=48"


def ck48(folder: Path) -> tuple[str, ...]:
    names = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
    drawn = pictures()
    files = {
        f"CK+48/{name}/S{person:03}_00{number}_0000001{number}.png": next(drawn)
        for name in names
        for person in range(8)
        for number in (1, 2)
    }
    return "data=ck48", f"data.path={write_folder(files, folder / 'set')}"


def jaffe(folder: Path) -> tuple[str, ...]:
    drawn = pictures(side=64)
    people, codes = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM"), ("AN", "DI", "FE", "HA", "NE", "SA", "SU")
    files = {
        f"jaffe/{person}.{code}{number}.{number}.tiff": next(drawn)
        for person in people
        for code in codes
        for number in (1, 2)
    }
    return "data=jaffe", f"data.path={write_folder(files, folder / 'set')}", "data.image_size=48"


def ferplus8(folder: Path) -> tuple[str, ...]:
    files = parts_of_classes(EMOTIONS, ("train", "test"))
    files = {
        path.replace("train_", "Training_").replace("test_", "PrivateTest_"): picture for path, picture in files.items()
    }
    public = {
        path.replace("Training_", "PublicTest_").replace("train/", "test/"): encode(255 - DRAWN.images[number])
        for number, path in enumerate(path for path in files if "_0.png" in path or "_1.png" in path)
        if "Training" in path
    }
    files |= public
    votes = pd.DataFrame(0, index=range(len(files)), columns=list(CATEGORIES))
    for row in range(len(files)):
        votes.loc[row, CATEGORIES[row % 8]] = 9
    votes.insert(0, "path", list(files))
    votes.to_csv(folder / "votes.csv", index=False)
    return "data=ferplus8", f"data.path={write_zip(files, folder / 'set.zip')}", f"data.votes={folder / 'votes.csv'}"


LAYOUTS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    layout.__name__: layout
    for layout in (classes_alone, parts, listed, rafdb, rafdb_folders, affectnet, ck48, jaffe, ferplus8)
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", every_nth(9, LAYOUTS))
def test_trains_resumes_compares_and_exports(cli, tmp_path, layout):
    (tmp_path / "data").mkdir()
    words = (*RUN, *LAYOUTS[layout](tmp_path / "data"), "optim.schedule=constant", "optim.warmup_fraction=0")
    for method, epochs in (("none", 1), ("none", 2), ("weighted", 2)):
        named = (f"imbalance={method}", f"hydra.run.dir={method}", f"trainer.max_epochs={epochs}", "resume=auto")
        outcome = cli(*words, *named)
        assert outcome.code == 0, outcome.err
    metrics, other = (json.loads(Path(method, "metrics.json").read_text()) for method in ("none", "weighted"))
    assert metrics["train/steps"] == other["train/steps"]

    compare(["none", "weighted", "--out", "report"])
    classes = list(metrics["train/class_counts"])
    report = Path("report", "report.md").read_text()
    assert all(name in report for name in classes)
    assert set(pd.read_csv(Path("report", "summary.csv"))["method"]) == {"none", "weighted"}

    export(["none/checkpoints/best.ckpt", "--format", "safetensors"])
    assert Path("none", "exports", "test_efficientnet.safetensors").exists()
