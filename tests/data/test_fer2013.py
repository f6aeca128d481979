"""Every accepted form of FER-2013, and every way in which a file can be wrong."""

import gzip
import io
import logging
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from archives import (
    csv_text,
    encode,
    image_files,
    tiny_faces,
    write_all_forms,
    write_folder,
    write_gzip,
    write_tar,
    write_zip,
)
from legs import every_third

from fer_lightning.data import archives, fer2013, folder, members, tar_headers
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.images import decode
from fer_lightning.data.splits import official
from fer_lightning.data.xz import open_xz
from fer_lightning.runtime.errors import UserError

FACES = tiny_faces()
FORMS = (
    "zip",
    "zip with a top folder",
    "folder",
    "folder with a top folder",
    "images in a tar",
    "fer2013.csv",
    "icml_face_data.csv",
    "csv.gz",
    "csv in a zip",
    "csv in a tar",
    "csv in a folder",
    "competition zip",
)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all_forms(FACES, tmp_path_factory.mktemp("forms"))


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    faces = fer2013.load(str(forms[form]), str(tmp_path))
    np.testing.assert_array_equal(faces.images, FACES.images)
    np.testing.assert_array_equal(faces.labels, FACES.labels)
    np.testing.assert_array_equal(faces.usage, FACES.usage)
    assert faces.data_hash == FACES.data_hash
    assert not faces.synthetic
    if "csv" in form or form == "competition zip":
        assert faces.ids.tolist() == [f"row {n}" for n in range(1, len(FACES) + 1)]
    else:
        assert faces.ids.tolist() == FACES.ids.tolist()


def test_all_forms_are_tested(forms: dict[str, Path]) -> None:
    assert set(FORMS) == set(forms)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("zip", "Kaggle archive (zip)"),
        ("folder", "Kaggle archive (folder)"),
        ("fer2013.csv", "fer2013.csv"),
        ("csv.gz", "fer2013.csv (gzip)"),
        ("csv in a tar", "fer2013.csv (tar)"),
        ("competition zip", "icml_face_data.csv (zip)"),
    ],
)
def test_it_says_which_form_it_found_and_that_the_counts_differ(
    form: str, kind: str, forms: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert fer2013.load(str(forms[form]), str(tmp_path)).kind == kind
    assert f"Found {kind}: 28 Training, 14 PublicTest, 14 PrivateTest" in messages(caplog)
    assert "differ from the official FER-2013 table (Training: angry 4 instead of 3995" in messages(caplog)


def test_order_does_not_depend_on_the_archive(tmp_path: Path) -> None:
    files = image_files(FACES)
    backwards = dict(reversed(files.items()))
    assert fer2013.read(write_zip(backwards, tmp_path / "a.zip")).data_hash == FACES.data_hash


def test_folder_copy_without_prefixes_has_test_images_of_unknown_usage(tmp_path: Path) -> None:
    faces = fer2013.read(write_folder(image_files(FACES, prefixes=False), tmp_path / "copy"))
    assert fer2013.usage_counts(faces) == {"Training": [4] * 7, "Test": [4] * 7}
    assert faces.kind == "copy without Training_/PublicTest_/PrivateTest_ file names (folder)"
    assert faces.ids[0].startswith("test/angry/face")


def test_emotion_and_part_folders_are_found_in_any_case(tmp_path: Path) -> None:
    files = {
        f"{part.title()}/{emotion.upper()}/{name}": data
        for (part, emotion, name), data in ((k.split("/"), v) for k, v in image_files(FACES).items())
    }
    faces = fer2013.read(write_folder(files, tmp_path / "case"))
    assert fer2013.usage_counts(faces) == fer2013.usage_counts(FACES)


def test_litter_of_operating_systems_is_ignored(tmp_path: Path) -> None:
    litter = [
        ".DS_Store",
        "train/.DS_Store",
        "train/angry/.DS_Store",
        "train/angry/Thumbs.db",
        "test/sad/desktop.ini",
        "__MACOSX/train/angry/._Training_1.jpg",
        "train/.hidden/x.jpg",
        "README.md",
    ]
    files = image_files(FACES) | dict.fromkeys(litter, b"litter")
    assert fer2013.read(write_zip(files, tmp_path / "a.zip")).data_hash == FACES.data_hash
    assert fer2013.read(write_folder(files, tmp_path / "a")).data_hash == FACES.data_hash


def test_csv_with_byte_order_mark_other_case_extra_column_and_blank_lines(tmp_path: Path) -> None:
    rows = csv_text(FACES).splitlines()[1:]
    lines = ["EMOTION, Pixels ,usage,note"] + [f"{row},x\r\n" for row in rows]
    path = tmp_path / "fer.csv"
    path.write_text("\ufeff" + "\n".join(lines), newline="")
    assert fer2013.read(path).data_hash == FACES.data_hash


NAMES = ("anger", "Disgusted", "fearful", "happiness", "sadness", "surprised", "neutral")


def test_the_column_that_is_read_is_named_where_two_could_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    header, *rows = csv_text(FACES).splitlines()
    lines = [f"label,{header},split", *(f"9,{row},none" for row in rows)]
    (tmp_path / "fer2013.csv").write_text("\n".join(lines))
    assert fer2013.read(tmp_path / "fer2013.csv").data_hash == FACES.data_hash
    assert "its emotion is read from the column emotion, not label" in caplog.text
    assert "its usage is read from the column usage, not split" in caplog.text


def csv_with(delimiter: str = ",", label: Callable[[int], str] = str, usages: str = "Training PublicTest Test") -> str:
    """A csv of ``FACES`` in another dialect."""
    names = usages.split() or [""]
    header, *lines = csv_text(FACES).splitlines()
    rows = [header.split(",")]
    for line, usage in zip(lines, FACES.usage, strict=True):
        number, pixels, _ = line.split(",")
        rows.append([label(int(number)), pixels, names[min(usage, len(names) - 1)]])
    return "\n".join(delimiter.join(row if usages else row[:2]) for row in rows)


def tree_with(emotions: tuple[str, ...], parts: tuple[str, str, str], top: str = "") -> dict[str, bytes]:
    """Image files of ``FACES`` without usage prefixes, the folders of usages and emotions renamed."""
    return {
        f"{top}{parts[usage]}{emotions[label]}/{number}.png": encode(image)
        for number, (image, label, usage) in enumerate(zip(FACES.images, FACES.labels, FACES.usage, strict=True))
    }


NUMBERS = tuple("0123456")
ALL, ONLY_TRAINING = {"Training": 28, "PublicTest": 14, "Test": 14}, {"Training": 56}
ODD_FORMS: dict[str, tuple[str | dict[str, bytes], dict[str, int]]] = {
    "labels as floats": (csv_with(label=lambda n: f"{n}.0"), ALL),
    "labels as names": (csv_with(label=lambda n: EMOTIONS[n].title()), ALL),
    "labels as synonyms": (csv_with(label=lambda n: NAMES[n]), ALL),
    "no Usage": (csv_with(usages=""), ONLY_TRAINING),
    "semicolons": (csv_with(";"), ALL),
    "tabs": (csv_with("\t"), ALL),
    "usages called train, val, test": (csv_with(usages="train val test"), ALL),
    "other columns": (csv_with().replace("emotion,pixels,Usage", "label, Pixel, split"), ALL),
    "folders as synonyms": (tree_with(NAMES, ("train/", "val/", "test/")), ALL),
    "folders as numbers": (tree_with(NUMBERS, ("train/", "val/", "test/")), ALL),
    "folders with numbers": (
        tree_with(tuple(f"{n}_{name}" for n, name in enumerate(EMOTIONS)), ("train/", "valid/", "test/")),
        ALL,
    ),
    "train and val only": (tree_with(EMOTIONS, ("train/", "val/", "val/")), {"Training": 28, "PublicTest": 28}),
    "train only": (tree_with(EMOTIONS, ("train/", "train/", "train/")), ONLY_TRAINING),
    "emotions only": (tree_with(EMOTIONS, ("", "", "")), ONLY_TRAINING),
    "numbers only": (tree_with(NUMBERS, ("", "", "")), ONLY_TRAINING),
    "folders down": (tree_with(EMOTIONS, ("train/", "val/", "test/"), "a/archive/"), ALL),
}


@pytest.mark.parametrize("form", ODD_FORMS)
def test_forms_that_are_passed_around(form: str, tmp_path: Path) -> None:
    content, expected = ODD_FORMS[form]
    if isinstance(content, str):
        (tmp_path / "fer.csv").write_text(content)
        sources = [tmp_path / "fer.csv"]
    else:
        litter = {f"__MACOSX/{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}": b"junk" for name in content}
        sources = [write_folder(content, tmp_path / "tree"), write_zip(content | litter, tmp_path / "mac.zip")]
    for source in sources:
        faces = fer2013.read(source)
        assert {name: sum(counts) for name, counts in fer2013.usage_counts(faces).items()} == expected
        assert sorted(zip(faces.labels, map(bytes, faces.images), strict=True)) == sorted(
            zip(FACES.labels, map(bytes, FACES.images), strict=True)
        )
        made = official(faces, seed=1)
        assert all(len(part) for part in (made.train, made.val, made.tests["test"]))
        np.testing.assert_array_equal(made.tests["test"], official(faces, seed=2).tests["test"])


def test_numbers_as_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fer2013.read(write_folder(tree_with(NUMBERS, ("train/", "val/", "test/")), tmp_path / "tree"))
    assert "The emotion folders are numbers, read in FER-2013's order: 0 angry, 1 disgust" in messages(caplog)


def test_names_that_are_not_utf8_or_control_a_terminal_are_escaped(tmp_path: Path) -> None:
    folder = write_folder(image_files(FACES), tmp_path / "images")
    for name in ("Training_\udce9.png", "Training_\x1b]0;title\x07\n.png"):
        (folder / "train/happy" / name).write_bytes(encode(FACES.images[0] + 1))
    ids = set(fer2013.load(str(folder), str(tmp_path / "cache")).ids) - set(FACES.ids)
    assert ids == {r"train/happy/Training_\udce9.png", r"train/happy/Training_\x1b]0;title\x07\n.png"}


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    folder = write_folder(image_files(FACES), tmp_path / "images")
    os.mkfifo(folder / "train/angry/pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is not a regular file"):
        fer2013.load(str(folder), str(tmp_path / "cache"))
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match=r"pipe\.csv is not a regular file"):
        fer2013.load(str(tmp_path / "pipe.csv"), str(tmp_path / "cache"))


def test_recursive_links_are_not_followed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FOLDERS", 100)
    for number in range(20):
        (tmp_path / f"link{number}").symlink_to(tmp_path)
    with pytest.raises(UserError, match="more than 100 folders"):
        fer2013.load(str(tmp_path), str(tmp_path / "cache"))


def test_a_zip_with_the_wrong_name_is_still_a_zip(forms: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(forms["csv in a zip"], tmp_path / "fer2013.csv"))
    assert fer2013.read(path).kind == "fer2013.csv (zip)"


def test_other_sizes_and_colours_are_converted_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = image_files(FACES)
    names = sorted(files)
    flat = np.full((96, 64), 77, np.uint8)
    files[names[0]] = encode(flat)
    files[names[1]] = encode(np.dstack([FACES.images[1]] * 3))
    files[names[2]] = encode(np.full((48, 48), 77 * 257, np.uint16))
    files[names[3]] = encode(np.dstack([flat] * 3 + [np.full_like(flat, 255)]))
    faces = fer2013.read(write_zip(files, tmp_path / "a.zip"))
    assert "Converted 3 images" in messages(caplog)  # and the deep gray one is read as gray
    assert faces.images.shape == FACES.images.shape
    np.testing.assert_array_equal(faces.images[1], FACES.images[1])
    for index in (0, 2, 3):
        assert np.unique(faces.images[index]).tolist() == [77]
    np.testing.assert_array_equal(faces.images[4:], FACES.images[4:])


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_is_gray_in_either_byte_order(order: str) -> None:
    pixels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    fields = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 128)]
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in fields)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + 128)
    data = head + pixels.astype(f"{order}u2").tobytes() + struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    np.testing.assert_array_equal(decode(data, "a.tiff"), pixels >> 8)


def test_a_pgm_with_another_white_has_the_gray_of_8_bits() -> None:
    gray = FACES.images[0]
    deep = b"P5\n# 12 bits\n48 48\n4095\n" + np.round(gray / 255 * 4095).astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(deep, "a.pgm"), gray)
    coarse = b"P5 48 48 100\n" + np.round(gray / 255 * 100).astype(np.uint8).tobytes()
    assert np.abs(decode(coarse, "a.pgm").astype(int) - gray).max() <= 2
    colour = b"P6 48 48 1023\n" + np.round(np.dstack([gray, gray * 0, gray]) / 255 * 1023).astype(">u2").tobytes()
    assert np.abs(decode(colour, "a.ppm").astype(int) - np.dstack([gray, gray * 0, gray])).max() <= 1
    with pytest.raises(UserError, match="is not an image that can be read"):
        decode(deep[:-9], "a.pgm")
    text = " ".join(map(str, gray.ravel())).encode()
    for start in (b"P2 48 48 255\n", b"P2\n# text\n48 48\n255\n"):
        np.testing.assert_array_equal(decode(start + text, "a.pgm"), gray)


@pytest.mark.parametrize(
    "head",
    [b"P5\r# made by x\r48 48\r127\r", b"P5\n48 48\n000127\n", b"P5 48 48 #a\r127\n", b"P5\n48 48\n127\n"],
    ids=["line ends of CR", "zeros before the number", "a comment after a number", "plain"],
)
def test_a_pgm_with_another_white_is_as_bright_in_any_spelling(head: bytes) -> None:
    half = FACES.images[0] // 2
    np.testing.assert_array_equal(decode(head + half.tobytes(), "a.pgm"), np.round(half / 127 * 255))


@pytest.mark.parametrize("head", [b"P5 48 48 12_7\n", b"P5 48 48 0\n", b"P5 4_8 48 255\n", b"P5 48 48 255#a\n"])
def test_a_pgm_whose_header_is_unclear_is_refused(head: bytes) -> None:
    with pytest.raises(UserError, match="is not an image that can be read"):
        decode(head + FACES.images[0].tobytes(), "a.pgm")


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 x", "1 2 3 -4", "1 2 3 201", ""])
def test_a_pgm_of_text_without_all_its_numbers_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not an image that can be read"):
        decode(b"P2 2 2 200\n" + text.encode(), "a.pgm")


@pytest.mark.parametrize("kind", ["Pf", "PF", "TIFF"])
def test_an_image_of_floats_is_refused(kind: str) -> None:
    """Shares of white, as they usually are: whole numbers of them would be a black image."""
    shares = (FACES.images[0] / 255).astype("<f4")
    pfm = f"{kind}\n48 48\n-1.0\n".encode() + (shares if kind == "Pf" else np.dstack([shares] * 3)).tobytes()
    with pytest.raises(UserError, match="is not an image that can be read"):
        decode(cv2.imencode(".tiff", shares)[1].tobytes() if kind == "TIFF" else pfm, "a.pgm")


@pytest.mark.parametrize("head", [b"P2\n2 2\n200\n", b"P3\n2 1\n255\n"])
def test_a_picture_of_text_with_many_comments_takes_bounded_time(head: bytes) -> None:
    start = time.process_time()
    image = decode(head + b"#\n" * 2**19 + b"7 8 9 10 # end\n11 12" + b"#" * 2**19, "a.pgm")
    assert image.tolist() == ([[9, 10], [11, 13]] if head[1:2] == b"2" else [[[9, 8, 7], [12, 11, 10]]])
    assert time.process_time() - start < 5


def test_jpeg_archive_is_read(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(48), np.arange(48)).astype(np.uint8)
    files = {name: encode(smooth, ".jpg") for name in image_files(FACES)}
    faces = fer2013.read(write_zip(files, tmp_path / "a.zip"))
    assert np.abs(faces.images.astype(int) - smooth).max() < 12
    assert len(np.unique(faces.twins)) == 1


def test_file_name_decides_when_the_folder_disagrees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = image_files(FACES)
    moved = next(name for name in files if "PublicTest" in name)
    files[moved.replace("test/", "train/")] = files.pop(moved)
    faces = fer2013.read(write_zip(files, tmp_path / "a.zip"))
    assert fer2013.usage_counts(faces) == fer2013.usage_counts(FACES)
    assert "1 images are in another folder" in messages(caplog)


def changed_csv(change: Callable[[list[list[str]]], object]) -> Callable[[Path], Path]:
    """A csv in which ``change`` altered the fields of the data rows."""

    def write(folder: Path) -> Path:
        header, *lines = csv_text(FACES).splitlines()
        rows = [line.split(",") for line in lines]
        change(rows)
        path = folder / "fer2013.csv"
        path.write_text("\n".join([header, *(",".join(row) for row in rows)]))
        return path

    return write


def changed_images(change: Callable[[dict[str, bytes]], object]) -> Callable[[Path], Path]:
    """A zip in which ``change`` altered the files."""

    def write(folder: Path) -> Path:
        files = image_files(FACES)
        change(files)
        return write_zip(files, folder / "archive.zip")

    return write


def text_file(text: str, name: str = "fer2013.csv") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


def truncated(form: str, share: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_all_forms(FACES, folder / "forms")[form]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return write


def flipped_zip(folder: Path) -> Path:
    path = write_zip(image_files(FACES), folder / "archive.zip")
    data = bytearray(path.read_bytes())
    for position in range(200, 1200):
        data[position] ^= 255
    path.write_bytes(data)
    return path


def doubled(path: Path, share: float = 1) -> Path:
    """Twice the same file in one, the second cut to a share of it."""
    content = path.read_bytes()
    path.write_bytes(content + content[: int(share * len(content))])
    return path


def tar_with_a_hole(folder: Path) -> Path:
    """A block of zeros, as a lost sector leaves it, where tarfile sees the end of the archive."""
    path = write_tar(image_files(FACES), folder / "archive.tar")
    with tarfile.open(path) as archive:
        start = archive.getmembers()[30].offset
    data = bytearray(path.read_bytes())
    data[start : start + 1024] = bytes(1024)
    path.write_bytes(data)
    return path


def tar_cut_before_a_member(folder: Path) -> Path:
    path = write_tar(image_files(FACES), folder / "archive.tar")
    with tarfile.open(path) as archive:
        start = archive.getmembers()[30].offset
    path.write_bytes(path.read_bytes()[:start])
    return path


def drop(files: dict[str, bytes], start: str) -> None:
    for name in [name for name in files if name.startswith(start)]:
        del files[name]


ANGRY = next(name for name in image_files(FACES) if name.startswith("train/angry/"))
PIXELS = " ".join(["0"] * 2304)

BAD_INPUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing path": (
        lambda folder: folder / "nothing.zip",
        r"nothing\.zip does not exist: give the Kaggle archive",
    ),
    "zip that is no zip": (
        text_file("<html>Sign in</html>", "archive.zip"),
        r"archive\.zip is damaged or cut short",
    ),
    "zip cut short": (truncated("zip", 0.7), r"archive\.zip is damaged or cut short"),
    "zip with flipped bytes": (flipped_zip, r"archive\.zip is damaged"),
    "gzip cut short": (truncated("csv.gz", 0.5), r"fer2013\.csv\.gz is damaged or cut short"),
    "gzip that is no gzip": (
        text_file("hello", "fer2013.csv.gz"),
        r"fer2013\.csv\.gz is damaged or cut short",
    ),
    "tar cut short": (truncated("csv in a tar", 0.5), r"fer2013\.tar\.gz is damaged or cut short"),
    "tar with a hole": (tar_with_a_hole, r"archive\.tar is damaged or cut short \(data after its end, [\d,]+ bytes"),
    "tar cut before a member": (
        tar_cut_before_a_member,
        r"archive\.tar is damaged or cut short \(no mark of its end, so that files may be missing\)",
    ),
    "two tars in one file": (
        lambda folder: doubled(write_tar(image_files(FACES), folder / "archive.tar")),
        r"archive\.tar is damaged or cut short \(data after its end",
    ),
    "two zips in one file": (
        lambda folder: doubled(write_zip(image_files(FACES), folder / "archive.zip")),
        r"archive\.zip has [\d,]+ bytes before its first member, such as another zip: unpack it",
    ),
    "a zip, and the beginning of another": (
        lambda folder: doubled(write_zip(image_files(FACES), folder / "archive.zip"), 0.8),
        r"archive\.zip is damaged or cut short \(data after its end\): download it again",
    ),
    "a column twice": (
        text_file(f"emotion,pixels,Usage,emotion\n0,{PIXELS},Training,1\n"),
        r"fer2013\.csv has the column emotion twice: remove or rename one",
    ),
    "tar that is no tar": (text_file("hello", "fer2013.tar.gz"), r"fer2013\.tar\.gz is damaged or cut short"),
    "empty file": (text_file(""), r"fer2013\.csv is empty"),
    "blank csv": (text_file("\n\n"), r"fer2013\.csv is empty"),
    "header only": (text_file("emotion,pixels,Usage\n"), r"has a header but no rows"),
    "no pixels column": (text_file("path,emotion,Usage\na,0,Training\n"), r"has no column pixels"),
    "no column at all": (text_file("hello\nworld\n"), r"has no column emotion and no column pixels"),
    "one emotion without Usage": (
        text_file(f"emotion,pixels\n0,{PIXELS}\n", "train.csv"),
        r"train\.csv: no image of disgust, fear",
    ),
    "half a pixel": (
        changed_csv(lambda rows: rows[6].__setitem__(1, "0.5" + PIXELS[1:])),
        r"row 7: the pixels hold something",
    ),
    "no number as a label": (changed_csv(lambda rows: rows[9].__setitem__(0, "nan")), r"row 10: emotion 'nan'"),
    "a quote that a later row closes": (
        text_file(f'emotion,pixels,Usage,note\n0,{PIXELS},Training,"a\n1,{PIXELS},Training,b"\n2,{PIXELS},Training,\n'),
        r"fer2013\.csv, row 1: a cell has several lines: close each quote",
    ),
    "half a label": (changed_csv(lambda rows: rows[9].__setitem__(0, "2.5")), r"row 10: emotion '2\.5'"),
    "not a text": (
        lambda folder: write_folder({"x.bin": b"\xff\xfe\x00\x80" * 99}, folder) / "x.bin",
        r"x\.bin is neither an archive nor a csv",
    ),
    "csv row cut short": (
        truncated("fer2013.csv", 0.5),
        r"fer2013\.csv, row 28: 2 of 3 columns; .* cut short",
    ),
    "too few pixels": (
        changed_csv(lambda rows: rows[4].__setitem__(1, "1 2 3")),
        r"row 5: 3 pixel values; 2304 \(48 x 48\) are needed",
    ),
    "too many pixels": (
        changed_csv(lambda rows: rows[0].__setitem__(1, PIXELS + " 7")),
        r"row 1: 2305 pixel values",
    ),
    "no pixels": (changed_csv(lambda rows: rows[0].__setitem__(1, "")), r"row 1: 0 pixel values"),
    "pixel over 255": (
        changed_csv(lambda rows: rows[6].__setitem__(1, "256" + PIXELS[1:])),
        r"row 7: pixel value 256; accepted: 0 to 255",
    ),
    "negative pixel": (
        changed_csv(lambda rows: rows[6].__setitem__(1, "-1" + PIXELS[1:])),
        r"row 7: pixel value -1",
    ),
    "pixel that is no number": (
        changed_csv(lambda rows: rows[6].__setitem__(1, "x" + PIXELS[1:])),
        r"row 7: (the pixels hold something|\d+ pixel values)",
    ),
    "label 7": (
        changed_csv(lambda rows: rows[9].__setitem__(0, "7")),
        r"row 10: emotion '7'; accepted: 0 angry",
    ),
    "negative label": (changed_csv(lambda rows: rows[9].__setitem__(0, "-1")), r"row 10: emotion '-1'"),
    "label that is no number": (
        changed_csv(lambda rows: rows[9].__setitem__(0, "contempt")),
        r"row 10: emotion 'contempt'",
    ),
    "unknown usage": (
        changed_csv(lambda rows: rows[1].__setitem__(2, "Holdout")),
        r"row 2: unknown Usage 'Holdout'; accepted: Training, PublicTest, PrivateTest",
    ),
    "class missing in a csv": (
        changed_csv(
            lambda rows: rows.__setitem__(slice(0, len(rows)), [r for r in rows if r[::2] != ["1", "Training"]])
        ),
        r"fer2013\.csv: no image of disgust in Training",
    ),
    "class missing in an archive": (
        changed_images(lambda files: drop(files, "train/fear/")),
        r"archive\.zip: no image of fear in Training",
    ),
    "nothing under train": (
        changed_images(lambda files: drop(files, "train/")),
        r"no images under train/<emotion>/",
    ),
    "unknown emotion folder": (
        changed_images(lambda files: files.update({"train/contempt/Training_1.jpg": files[ANGRY]})),
        r"unknown emotion folder train/contempt; accepted: angry, disgust",
    ),
    "file that is no image": (
        changed_images(lambda files: files.update({ANGRY: b"hello"})),
        rf"{ANGRY} is not an image that can be read",
    ),
    "text beside the images": (
        changed_images(lambda files: files.update({"train/angry/notes.txt": b"hello"})),
        r"train/angry/notes\.txt is not an image",
    ),
    "image of no bytes": (changed_images(lambda files: files.update({ANGRY: b""})), rf"{ANGRY} is empty"),
    "jpeg cut short": (
        changed_images(lambda files: files.update({ANGRY: encode(FACES.images[0], ".jpg")[:900]})),
        rf"{ANGRY} is cut short",
    ),
    "some test files without prefix": (
        changed_images(lambda files: files.update({"test/angry/me.jpg": files[ANGRY]})),
        r"1 of 29 files under test/ lack the prefix .*test/angry/me\.jpg",
    ),
    "two trees in one archive": (
        changed_images(lambda files: files.update(image_files(FACES, top="copy/"))),
        r"several train/ and test/ trees \(in \., copy\)",
    ),
    "empty folder": (lambda folder: folder, r"no images found: expected train/<emotion>/"),
    "empty zip": (lambda folder: write_zip({}, folder / "archive.zip"), r"no images found"),
    "folder that holds the zip": (
        lambda folder: write_zip(image_files(FACES), folder / "fer2013.zip").parent,
        r"no images found: it holds fer2013\.zip; give that file",
    ),
    "two files of one name": (
        lambda folder: write_zip({"a/fer2013.csv": b"x", "b/FER2013.csv": b"y"}, folder / "a.zip"),
        r"a\.zip holds several files fer2013\.csv \(a/fer2013\.csv, b/FER2013\.csv\): give one of them",
    ),
    "zip of other csv files": (
        lambda folder: write_zip({"a.csv": b"x", "b.csv": b"y"}, folder / "a.zip"),
        r"no images found: expected .* fer2013\.csv, icml_face_data\.csv",
    ),
    "zip of another csv file": (
        lambda folder: write_zip({"votes.csv": b"path,votes\n"}, folder / "a.zip"),
        r"a\.zip: votes\.csv has no column emotion",
    ),
}


@pytest.mark.parametrize("case", every_third(BAD_INPUTS))
def test_bad_input_is_reported_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD_INPUTS[case]
    folder = tmp_path / "data"
    folder.mkdir()
    path = make(folder)
    with pytest.raises(UserError, match=message) as caught:
        fer2013.load(str(path), str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*/meta.json"))


@pytest.mark.parametrize("path", ["", "  "])
def test_empty_path_is_not_the_working_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        fer2013.load(path, str(tmp_path))


def test_zip_with_a_password_is_reported(tmp_path: Path) -> None:
    path = write_zip(image_files(FACES), tmp_path / "archive.zip")
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    with pytest.raises(UserError, match="protected by a password"):
        fer2013.read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_reported(forms: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(forms["zip"], tmp_path / "archive.zip"))
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        fer2013.load(str(path), str(tmp_path / "cache"))


@pytest.mark.parametrize("form", every_third(["zip", "csv.gz", "csv in a tar", "images in a tar"]))
def test_random_damage_never_ends_in_a_traceback(form: str, tmp_path: Path) -> None:
    small = tiny_faces(1, 1, 1)
    path = write_all_forms(small, tmp_path / "forms")[form]
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        for position in rng.integers(0, len(data), rng.integers(1, 6)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data)
        try:
            fer2013.read(path)
        except UserError:
            refused += 1
    assert refused > 20


def zip_with(name: str, mode: int = stat.S_IFREG | 0o644) -> Callable[[Path], Path]:
    """A good zip with one more member."""

    def write(folder: Path) -> Path:
        path = write_zip(image_files(FACES), folder / "archive.zip")
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, "/etc/passwd")
        return path

    return write


def zip_packed_by(method: int) -> Callable[[Path], Path]:
    """A good zip, but for the way in which one member is packed."""

    def write(folder: Path) -> Path:
        path = write_zip(image_files(FACES), folder / "archive.zip")
        with zipfile.ZipFile(path, "a", method) as archive:
            archive.writestr("README", bytes(2**16))
        return path

    return write


def tar_with(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> Callable[[Path], Path]:
    """A good tar with one more member, which may claim more bytes than follow."""

    def write(folder: Path) -> Path:
        path = write_tar(image_files(FACES), folder / "images.tar.gz")
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd", size
        data = gzip.decompress(path.read_bytes()).rstrip(b"\0")
        data += bytes(-len(data) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        path.write_bytes(gzip.compress(data))
        return path

    return write


def tar_with_extended(text: bytes) -> Callable[[Path], Path]:
    """A tar that begins with an extended header of this text."""

    def write(folder: Path) -> Path:
        path = write_tar(image_files(FACES), folder / "images.tar.gz")
        info = tarfile.TarInfo("pax_global_header")
        info.type, info.size = tarfile.XGLTYPE, len(text)
        header = info.tobuf(tarfile.USTAR_FORMAT) + text + bytes(-len(text) % 512)
        path.write_bytes(gzip.compress(header + gzip.decompress(path.read_bytes())))
        return path

    return write


@pytest.mark.parametrize(
    "record", [b"24 comment=a text = b\xc3\xa9\n", b"19 SCHILY.xattr.u=\n", b"30 mtime=1700000000.123456789\n"]
)
def test_extended_headers_of_records_are_read(record: bytes, tmp_path: Path) -> None:
    assert int(record.split(b" ")[0]) == len(record)
    assert len(fer2013.read(tar_with_extended(record * 3)(tmp_path))) == len(FACES)


@pytest.mark.parametrize(
    ("limit", "what"), [("MAX_TEXTS", "bytes"), ("MAX_RECORDS", "records"), ("MAX_GLOBAL_RECORDS", "records")]
)
def test_extended_headers_are_bounded_together(
    limit: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record for each member, as a program writes that keeps parts of seconds, and two for all of them."""
    files, number = image_files(FACES), len(FACES)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"a": "", "b": ""}) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(data))
    texts = {"MAX_TEXTS": 13 * number + 10, "MAX_RECORDS": number + 2, "MAX_GLOBAL_RECORDS": 2}[limit]
    monkeypatch.setattr(tar_headers, limit, texts)
    assert len(fer2013.read(tmp_path / "a.tar")) == number
    monkeypatch.setattr(tar_headers, limit, texts - 1)
    with pytest.raises(UserError, match=rf"its extended headers have {texts:,} {what}.* so far, and at most"):
        fer2013.read(tmp_path / "a.tar")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_are_bounded_together(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of files that are no images."""
    files = {**image_files(FACES), "x" * 100: b"", "y" * 100: b""}
    path = write(files, tmp_path / ("a.zip" if write is write_zip else "a.tar.gz"))
    characters = sum(map(len, files))
    monkeypatch.setattr(members, "MAX_NAMES", characters)
    assert len(fer2013.read(path)) == len(FACES)
    monkeypatch.setattr(members, "MAX_NAMES", characters - 1)
    with pytest.raises(UserError, match=rf"member 'y+' is one too many: the names so far have {characters:,} char"):
        fer2013.read(path)


def test_a_zip_with_a_comment_is_read(tmp_path: Path) -> None:
    path = write_zip(image_files(FACES), tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"from the web"
    assert len(fer2013.read(path)) == len(FACES)


class TestXz:
    @pytest.fixture
    def tar(self, tmp_path: Path) -> bytes:
        return write_tar(image_files(FACES), tmp_path / "images.tar").read_bytes()

    @pytest.mark.parametrize("between", [b"", bytes(8)], ids=["joined", "padded"])
    def test_of_several_streams(self, tar: bytes, between: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.tar.xz").write_bytes(lzma.compress(tar[:9999]) + between + lzma.compress(tar[9999:]))
        assert fer2013.read(tmp_path / "a.tar.xz").data_hash == FACES.data_hash

    @pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data + b"x" * 99])
    def test_that_is_damaged(self, tar: bytes, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
        (tmp_path / "a.tar.xz").write_bytes(damage(lzma.compress(tar)))
        with pytest.raises(UserError, match=r"a\.tar\.xz is damaged or cut short"):
            fer2013.read(tmp_path / "a.tar.xz")

    def test_that_asks_for_much_memory(self, tar: bytes, tmp_path: Path) -> None:
        """The header of the first block, changed to a dictionary of 4 GiB."""
        data = bytearray(lzma.compress(tar, check=lzma.CHECK_CRC32, preset=0))
        end = 12 + 4 * (data[12] + 1)
        data[data.index(b"\x21\x01", 12, end) + 2] = 39
        data[end - 4 : end] = zlib.crc32(data[12 : end - 4]).to_bytes(4, "little")
        (tmp_path / "a.tar.xz").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.tar\.xz needs more than 256 MiB of memory to be unpacked: unpack it"):
            fer2013.read(tmp_path / "a.tar.xz")

    def test_any_place_is_read(self, tmp_path: Path) -> None:
        content = np.random.default_rng(0).bytes(200_000)
        (tmp_path / "a.xz").write_bytes(lzma.compress(content[:90_000]) + lzma.compress(content[90_000:]))
        with open_xz(tmp_path / "a.xz") as stream:
            for place in (150_000, 20_000, 89_990, 199_990, 0):
                stream.seek(place)
                assert stream.tell() == place
                assert stream.read(100) == content[place : place + 100]


def zip_that_claims(size: int, members: int = 1) -> Callable[[Path], Path]:
    """A zip whose headers say that its first members unpack to so many bytes each."""

    def write(folder: Path) -> Path:
        path = write_zip(image_files(FACES), folder / "archive.zip")
        data, at = bytearray(path.read_bytes()), 0
        for _ in range(members):
            at = data.index(b"PK\x01\x02", at) + 4
            data[at + 20 : at + 24] = size.to_bytes(4, "little")
        path.write_bytes(data)
        return path

    return write


LINK, DEVICE = stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o666
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip, parent folder": (zip_with("../outside.jpg"), r"member '\.\./outside\.jpg' points out"),
    "zip, hidden parent folder": (zip_with("train/a/../../../outside.jpg"), r"points out of the archive"),
    "zip, backslashes": (zip_with("train\\..\\..\\outside.jpg"), r"points out of the archive"),
    "zip, absolute": (zip_with("/tmp/outside.jpg"), r"member '/tmp/outside\.jpg' points out"),
    "zip, drive": (zip_with("C:\\outside.jpg"), r"points out of the archive"),
    "zip, litter elsewhere": (zip_with("../.outside"), r"points out of the archive"),
    "zip, symbolic link": (zip_with("train/angry/link.jpg", LINK), r"member 'train/angry/link\.jpg' is a link"),
    "zip, device": (zip_with("train/angry/tty.jpg", DEVICE), r"is a link, a device or a sparse file"),
    "zip, huge member": (
        zip_that_claims(2**32 - 2),
        r"claims 4\.0 GiB, and at most 1\.0 GiB are read; nothing was unpacked; unpack it and give the folder",
    ),
    "zip, huge together": (zip_that_claims(2**30, 5), r"is one too many: 5 members so far claim 5\.0 GiB"),
    "zip, a name twice": (zip_with(f"./{FACES.ids[0]}"), r"member '\./test/\S+' occurs twice"),
    "zip, a folder with content": (
        zip_with("train/angry/a.jpg/"),
        r"has the content of a file and not the name of one",
    ),
    "zip, a file as a folder": (zip_with("train/angry"), r"member 'train/angry' is a file and a folder of others"),
    "tar, no name": (tar_with("", size=9), r"has the content of a file and not the name of one"),
    "tar, the name of no file": (tar_with("./.", size=9), r"has the content of a file and not the name of one"),
    "tar, a file as a folder": (tar_with("train/angry/."), r"member 'train/angry' is a file and a folder of others"),
    "zip, a long name": (zip_with("a" * 5000), r"has a name of 5,000 characters, and at most 4,096 are read"),
    "zip, packed by bzip2": (zip_packed_by(zipfile.ZIP_BZIP2), r"is packed in another way than Deflate: unpack it"),
    "zip, packed by LZMA": (zip_packed_by(zipfile.ZIP_LZMA), r"is packed in another way than Deflate: unpack it"),
    "tar, a long name": (tar_with("a" * 5000), r"has a name of 5,000 characters, and at most 4,096 are read"),
    "tar, a name twice": (tar_with(str(FACES.ids[0])), r"occurs twice"),
    "tar, parent folder": (tar_with("../outside.jpg"), r"member '\.\./outside\.jpg' points out"),
    "tar, absolute": (tar_with("/tmp/outside.jpg"), r"points out of the archive"),
    "tar, folder elsewhere": (tar_with("../outside", tarfile.DIRTYPE), r"points out of the archive"),
    "tar, symbolic link": (tar_with("train/angry/a.jpg", tarfile.SYMTYPE), r"member 'train/angry/a\.jpg' is a link"),
    "tar, hard link": (tar_with("train/angry/a.jpg", tarfile.LNKTYPE), r"is a link, a device or a sparse file"),
    "tar, device": (tar_with("train/angry/a.jpg", tarfile.CHRTYPE), r"is a link, a device or a sparse file"),
    "tar, pipe": (tar_with("train/angry/a.jpg", tarfile.FIFOTYPE), r"is a link, a device or a sparse file"),
    "tar, huge member": (tar_with("train/angry/a.jpg", size=2**33 - 1), r"claims 8\.0 GiB"),
    "tar, sparse member": (
        tar_with("a.jpg", tarfile.GNUTYPE_SPARSE, size=2**33 - 1),
        r"claims 8\.0 GiB|damaged|sparse",
    ),
    "tar, sparse members": (tar_with("train/angry/a.jpg", tarfile.GNUTYPE_SPARSE, size=512), r"sparse file"),
    "tar, huge long name": (
        tar_with("a", tarfile.GNUTYPE_LONGNAME, size=2**31),
        r"has 2,147,483,648 bytes, and at most 524,288",
    ),
    "tar, an extended header of digits": (tar_with_extended(b"1" * 400_000), r"a number of more than 100 digits"),
    "tar, an extended header with a record of digits": (
        tar_with_extended(b"400015 comment=" + b"7" * 399_999 + b"\n"),
        r"a number of more than 100 digits",
    ),
    "tar, an extended header of short lengths": (tar_with_extended(b"2 " * 200_000 + b"="), r"not consist of records"),
    "tar, huge pax header": (
        tar_with("a", tarfile.XHDTYPE, size=2**31),
        r"has 2,147,483,648 bytes, and at most 524,288",
    ),
    "tar, a long extended header": (
        tar_with_extended(b"600015 comment=" + b"a" * 599_999 + b"\n"),
        r"an extended header has 600,064 bytes, and at most 524,288 are read; nothing was unpacked; unpack it and give",
    ),
    "tar, many records for all members": (
        tar_with_extended(b"".join(b"6 %02x=\n" % number for number in range(101))),
        r"its extended headers have 101 records for all members so far, and at most 100 are read",
    ),
    "tar, the map of a sparse file": (
        tar_with_extended(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
        r"a member is a sparse file; nothing was unpacked; get the data elsewhere",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = HOSTILE[case]
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        fer2013.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [zip_with("train/angry/b..jpg"), tar_with("./README"), zip_with("train/a:b.txt")])
def test_unusual_names_are_taken(make: Callable[[Path], Path], tmp_path: Path) -> None:
    container = archives.Zip if make(tmp_path).suffix == ".zip" else archives.Tar
    (path,) = tmp_path.iterdir()
    assert len(container(path).names()) == len(FACES.labels) + 1


@pytest.mark.parametrize("form", ["csv.gz", "csv in a tar"])
def test_bomb_is_stopped_while_it_unpacks(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the headers say nothing, or lie."""
    path = write_all_forms(tiny_faces(1, 1, 1), tmp_path / "forms")[form]
    fer2013.read(path)
    limit = 2**14
    read = []

    class Counted(archives.Limited):
        def readinto(self, buffer: Any) -> int:
            read.append(len(buffer))
            return super().readinto(buffer)

    for module in (archives, fer2013):
        monkeypatch.setattr(module, "Limited", Counted)
        monkeypatch.setattr(module, "MAX_FILE", limit, raising=False)
    monkeypatch.setattr(archives, "MAX_ARCHIVE", limit)
    with pytest.raises(UserError, match=r"unpacks to more than|claims 0\.0 GiB"):
        fer2013.read(path)
    assert sum(read) < 4 * limit


def test_lying_zip_gives_little_more_than_is_asked_for(tmp_path: Path) -> None:
    name = next(iter(image_files(FACES)))
    path = write_zip({name: bytes(10**7)}, tmp_path / "archive.zip")
    data = path.read_bytes()
    path.write_bytes(data.replace((10**7).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        with archives.Zip(path).open(name) as stream, pytest.raises(zipfile.BadZipFile):
            stream.read(2000)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_many_empty_members_take_bounded_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(50_000):
            archive.writestr(f"{number}.txt", b"")
    start = time.process_time()
    with pytest.raises(UserError, match="no images found"):
        fer2013.read(tmp_path / "a.zip")
    with pytest.raises(UserError, match="no image in a folder of a class"):
        folder.load(str(tmp_path / "a.zip"))
    assert time.process_time() - start < 30


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_tables_that_are_not_read_are_named(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = csv_text(FACES).encode()
    files = {"train.csv": text, "test.csv": text, "notes.csv": b"a,b\n", "test_of_competition.csv": b"pixels\n1\n"}
    fer2013.read(write(files, tmp_path / ("a.zip" if write is write_zip else "a")))
    assert caplog.messages == ["Read train.csv; ignored test.csv, which have labelled images too"]
    caplog.clear()
    fer2013.read(
        write({**image_files(FACES), "fer2013.csv": text}, tmp_path / ("b.zip" if write is write_zip else "b"))
    )
    assert "Read the folders of images; ignored fer2013.csv, which have labelled images too" in caplog.messages


def test_line_without_end_is_cut(tmp_path: Path) -> None:
    path = write_gzip(b"emotion,pixels,Usage\n" + b"0" * 10**7, tmp_path / "fer2013.csv.gz")
    with pytest.raises(UserError, match=r"row 1: 1 of 3 columns|field larger than field limit"):
        fer2013.read(path)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than it has."""
    data = bytearray(encode(FACES.images[0], ".jpg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("image", [png_of(30_000, 30_000), png_of(2**16, 2**16), jpeg_of(65_500, 65_500)])
def test_image_that_claims_a_huge_size_is_not_decoded(
    image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = cv2.imdecode
    decoded = []

    def count(buffer: np.ndarray, flags: int) -> Any:
        decoded.append(bytes(buffer))
        return decode(buffer, flags)

    monkeypatch.setattr(cv2, "imdecode", count)
    path = write_zip({**image_files(FACES), ANGRY: image}, tmp_path / "archive.zip")
    with pytest.raises(UserError, match=rf"{ANGRY} is too large for an image of a face"):
        fer2013.read(path)
    assert image not in decoded


@pytest.mark.parametrize("form", ["zip", "tar", "folder"])
def test_file_that_is_too_large_for_an_image_is_not_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**image_files(FACES), ANGRY: encode(FACES.images[0]) + bytes(2**20)}
    write = {"zip": write_zip, "tar": write_tar, "folder": write_folder}[form]
    path = write(files, tmp_path / {"zip": "a.zip", "tar": "a.tar.gz", "folder": "a"}[form])
    fer2013.read(path)
    monkeypatch.setattr(archives, "MAX_PIECE", 2**19)
    with pytest.raises(UserError, match=rf"{ANGRY} is too large for an image of a face"):
        fer2013.read(path)


def test_official_counts_are_recognised() -> None:
    official = {name: fer2013.OFFICIAL_COUNTS[name] for name in USAGES[:3]}
    assert fer2013.compare_with_official(official) == "Class counts equal the official FER-2013 table"
    merged = {name: fer2013.OFFICIAL_COUNTS[name] for name in ("Training", "Test")}
    assert fer2013.compare_with_official(merged) == "Class counts equal the official FER-2013 table"
    assert [sum(counts) for counts in fer2013.OFFICIAL_COUNTS.values()] == [28709, 3589, 3589, 7178]


def test_every_difference_from_the_official_counts_is_named() -> None:
    counts = {name: list(fer2013.OFFICIAL_COUNTS[name]) for name in USAGES[:3]}
    counts["Training"][EMOTIONS.index("disgust")] = 430
    del counts["PublicTest"]
    line = fer2013.compare_with_official(counts)
    assert "(Training: disgust 430 instead of 436; PublicTest: no images)" in line
    assert "PrivateTest" not in line


def test_no_path_downloads_the_kaggle_archive(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kagglehub

    downloads = {"msambare/fer2013": str(forms["folder"])}
    monkeypatch.setattr(kagglehub, "dataset_download", downloads.__getitem__)
    assert fer2013.load(None, str(tmp_path)).data_hash == FACES.data_hash


def test_failed_download_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"www\.kaggle\.com/datasets/msambare/fer2013.*data\.path=") as caught:
        fer2013.load(None, str(tmp_path))
    assert "\n" not in str(caught.value)


has_archive = pytest.mark.skipif(
    not os.environ.get("FER2013_PATH"), reason="FER2013_PATH does not name the real FER-2013 zip"
)


@pytest.fixture(scope="module")
def real(real_cache: Path) -> tuple[Faces, str]:
    cache = str(real_cache / "faces")
    return fer2013.load(os.environ["FER2013_PATH"], cache), cache


@pytest.mark.slow
@pytest.mark.real
@has_archive
def test_real_archive_has_the_official_counts(real: tuple[Faces, str]) -> None:
    faces, _ = real
    assert faces.images.shape == (35887, 48, 48)
    assert "equal the official" in fer2013.compare_with_official(fer2013.usage_counts(faces))
    values, histogram = np.arange(256) / 255, np.bincount(faces.images.ravel(), minlength=256)
    mean = np.average(values, weights=histogram)
    assert mean == pytest.approx(0.50739, abs=5e-6)
    assert np.sqrt(np.average((values - mean) ** 2, weights=histogram)) == pytest.approx(0.25520, abs=5e-6)
    assert len(np.unique(faces.ids)) == len(faces)


@pytest.mark.slow
@pytest.mark.real
@has_archive
def test_real_archive_has_the_known_duplicates(real: tuple[Faces, str]) -> None:
    faces, _ = real
    sizes = np.bincount(faces.twins)
    assert (np.sum(sizes > 1), np.sum(sizes[sizes > 1])) == (1516, 3369)
    training, public, private = (faces.twins[faces.usage == number] for number in range(3))
    assert np.isin(private, training).sum() == 288
    assert np.isin(public, training).sum() == 280
    assert np.isin(private, public).sum() == 44


@pytest.mark.slow
@pytest.mark.real
@has_archive
def test_second_start_takes_less_than_a_second_of_processor_time(real: tuple[Faces, str]) -> None:
    faces, cache = real
    code = (
        "import sys, time; from fer_lightning.data import fer2013; start = time.process_time();"
        "faces = fer2013.load(sys.argv[1], sys.argv[2]); print(time.process_time() - start, faces.data_hash)"
    )
    arguments = [sys.executable, "-c", code, os.environ["FER2013_PATH"], cache]
    seconds, data_hash = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    assert data_hash == faces.data_hash
    assert float(seconds) < 1
