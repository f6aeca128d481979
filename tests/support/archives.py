"""Writes tiny copies of every accepted form of FER-2013 from a ``Faces``, for tests."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from fer_lightning.data.faces import EMOTIONS, USAGES, Faces


def tiny_faces(training: int = 4, public: int = 2, private: int = 2, seed: int = 0) -> Faces:
    """Distinct random images, so many of each emotion in each usage, in the order of their Kaggle paths."""
    rng = np.random.default_rng(seed)
    rows = []
    for usage, each in zip(USAGES, (training, public, private), strict=False):
        rows += [(usage, emotion) for emotion in EMOTIONS for _ in range(each)]
    paths = []
    for number, (usage, emotion) in enumerate(rows):
        part = "train" if usage == "Training" else "test"
        paths.append(f"{part}/{emotion}/{usage}_{1000 + number}.jpg")
    order = np.argsort(paths)
    return Faces.from_arrays(
        rng.integers(0, 256, (len(rows), 48, 48), dtype=np.uint8),
        np.array([EMOTIONS.index(rows[number][1]) for number in order]),
        np.array([USAGES.index(rows[number][0]) for number in order]),
        np.array(paths)[order],
        kind="tiny",
    )


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    """An image file's bytes; PNG keeps the pixels exactly, whatever the file is called."""
    return cv2.imencode(suffix, image)[1].tobytes()


def image_files(faces: Faces, prefixes: bool = True, top: str = "") -> dict[str, bytes]:
    """Path -> bytes of the Kaggle archive's files; without prefixes the names no longer tell the usage."""
    files = {}
    for image, path in zip(faces.images, faces.ids, strict=True):
        folder, name = str(path).rsplit("/", 1)
        files[f"{top}{folder}/{name if prefixes else 'face' + name.split('_')[1]}"] = encode(image)
    return files


def csv_text(faces: Faces, layout: str = "fer2013") -> str:
    """Text of ``fer2013.csv``, or of ``icml_face_data.csv`` with other order and spaces in its header."""
    lines = ["emotion,pixels,Usage" if layout == "fer2013" else "emotion, Usage, pixels"]
    for image, label, usage in zip(faces.images, faces.labels, faces.usage, strict=True):
        pixels = " ".join(map(str, image.ravel()))
        name = USAGES[usage]
        lines.append(f"{label},{pixels},{name}" if layout == "fer2013" else f"{label},{name},{pixels}")
    return "\n".join(lines) + "\n"


def write_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write the files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(files: Mapping[str, bytes], path: Path) -> Path:
    """Write the files into a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(files: Mapping[str, bytes], path: Path) -> Path:
    """Write the files into a tar, compressed unless its name ends in ``.tar``."""
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_gzip(data: bytes, path: Path) -> Path:
    """Write one gzip-compressed file."""
    path.write_bytes(gzip.compress(data))
    return path


def write_all_forms(faces: Faces, folder: Path) -> dict[str, Path]:
    """Every accepted form that contains the usage, by a short name."""
    folder.mkdir(parents=True, exist_ok=True)
    images = image_files(faces)
    fer2013, icml = csv_text(faces).encode(), csv_text(faces, "icml").encode()
    (folder / "fer2013.csv").write_bytes(fer2013)
    (folder / "icml_face_data.csv").write_bytes(icml)
    return {
        "zip": write_zip(images, folder / "archive.zip"),
        "zip with a top folder": write_zip(image_files(faces, top="fer2013/"), folder / "top.zip"),
        "folder": write_folder(images, folder / "images"),
        "folder with a top folder": write_folder(image_files(faces, top="fer2013/"), folder / "top"),
        "images in a tar": write_tar(images, folder / "images.tar.gz"),
        "fer2013.csv": folder / "fer2013.csv",
        "icml_face_data.csv": folder / "icml_face_data.csv",
        "csv.gz": write_gzip(fer2013, folder / "fer2013.csv.gz"),
        "csv in a zip": write_zip({"fer2013.csv": fer2013}, folder / "fer2013.csv.zip"),
        "csv in a tar": write_tar({"fer2013/README": b"x", "fer2013/fer2013.csv": fer2013}, folder / "fer2013.tar.gz"),
        "csv in a folder": write_folder({"icml_face_data.csv": icml}, folder / "competition"),
        "competition zip": write_zip(
            {"train.csv": b"emotion,pixels\n", "test.csv": b"pixels\n", "icml_face_data.csv": icml},
            folder / "competition.zip",
        ),
    }
