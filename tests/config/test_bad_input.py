"""Bad input through the real entry: one line, exit code 2, the reason in status.json, nothing half-written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from archives import csv_text, encode, image_files, tiny_faces, write_folder, write_gzip, write_zip
from command_line import TINY, assert_refused, only_run
from legs import every_nth

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.imports import TRUST
from fer_lightning.runtime.run_folder import read_status

FACES = tiny_faces()
FILES = (*(word for word in TINY if not word.startswith("data")), "data=fer2013", "data.batch_size=14")
"""A whole run on a tiny archive; needs ``data.path``."""

ANGRY = str(FACES.ids[0])


def csv_file(folder: Path, row: int = 0, column: int = 0, value: str = "") -> Path:
    """``fer2013.csv`` with one field replaced."""
    header, *lines = csv_text(FACES).splitlines()
    rows = [line.split(",") for line in lines]
    rows[row][column] = value
    path = folder / "fer2013.csv"
    path.write_text("\n".join([header, *(",".join(fields) for fields in rows)]))
    return path


def cut(path: Path, share: float) -> Path:
    """The first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def whole_zip(folder: Path, **changed: bytes) -> Path:
    return write_zip({**image_files(FACES), **changed}, folder / "archive.zip")


def without_fear(folder: Path) -> Path:
    files = {name: data for name, data in image_files(FACES).items() if not name.startswith("train/fear/")}
    return write_zip(files, folder / "archive.zip")


def text(folder: Path, content: str, name: str = "fer2013.csv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


PIXELS = csv_text(FACES).splitlines()[1].split(",")[1]

BAD_DATA: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "missing path": (lambda folder: folder / "nothing.zip", ["nothing.zip does not exist", "give the Kaggle archive"]),
    "damaged zip": (lambda folder: cut(whole_zip(folder), 0.7), ["archive.zip is damaged or cut short"]),
    "web page saved as zip": (lambda folder: text(folder, "<html>", "archive.zip"), ["archive.zip is damaged"]),
    "damaged gzip": (
        lambda folder: cut(write_gzip(csv_text(FACES).encode(), folder / "fer2013.csv.gz"), 0.5),
        ["fer2013.csv.gz is damaged or cut short"],
    ),
    "truncated row": (lambda folder: cut(csv_file(folder, 0, 0, "0"), 0.5), ["fer2013.csv, row 28", "2 of 3 columns"]),
    "too few pixels": (lambda folder: csv_file(folder, 4, 1, "1 2 3"), ["row 5: 3 pixel values; 2304"]),
    "too many pixels": (lambda folder: csv_file(folder, 4, 1, PIXELS + " 0"), ["row 5: 2305 pixel values; 2304"]),
    "pixel 300": (lambda folder: csv_file(folder, 6, 1, f"300 {PIXELS.split(' ', 1)[1]}"), ["row 7: pixel value 300"]),
    "label 7": (lambda folder: csv_file(folder, 9, 0, "7"), ["row 10: emotion '7'; accepted: 0 angry"]),
    "label not a number": (lambda folder: csv_file(folder, 9, 0, "cross"), ["cross"]),
    "unknown usage": (
        lambda folder: csv_file(folder, 1, 2, "Holiday"),
        ["row 2: unknown Usage 'Holiday'; accepted: Training, PublicTest, PrivateTest"],
    ),
    "no pixels column": (
        lambda folder: text(folder, "path,emotion,Usage\na,0,Training\n"),
        ["has no column pixels: its first line must name emotion, pixels and Usage"],
    ),
    "empty csv": (lambda folder: text(folder, ""), ["fer2013.csv is empty: give"]),
    "csv of a header": (lambda folder: text(folder, "emotion,pixels,Usage\n"), ["has a header but no rows"]),
    "not an image": (lambda folder: whole_zip(folder, **{ANGRY: b"hello"}), [f"archive.zip: {ANGRY} is not an image"]),
    "image of no bytes": (lambda folder: whole_zip(folder, **{ANGRY: b""}), [f"{ANGRY} is empty"]),
    "unknown emotion folder": (
        lambda folder: whole_zip(folder, **{"train/contempt/Training_1.jpg": encode(FACES.images[0])}),
        [f"unknown emotion folder train/contempt; accepted: {', '.join(EMOTIONS)}"],
    ),
    "empty class": (without_fear, ["archive.zip: no image of fear in Training"]),
    "folder of no images": (
        lambda folder: write_folder({"notes/readme.txt": b"hello"}, folder / "set"),
        ["no images found: expected train/<emotion>/ and test/<emotion>/"],
    ),
}


@pytest.mark.parametrize("case", every_nth(6, BAD_DATA))
def test_bad_data_ends_the_run_in_one_line(cli, tmp_path, case):
    make, words = BAD_DATA[case]
    (tmp_path / "data").mkdir()
    outcome = cli(*FILES, f"data.path={make(tmp_path / 'data')}")
    assert_refused(outcome, tmp_path, *words)
    assert not list((tmp_path / "cache").rglob("meta.json"))


BAD_KNOBS: dict[str, tuple[list[str], list[str]]] = {
    "fold out of range": (["split=kfold", "split.fold=5"], ["split.fold=5: out of range; accepted: 0 to 4"]),
    "more folds than images of a class": (["split=kfold", "split.folds=50"], ["split.folds=50", "disgust"]),
    "unknown subset": (
        ["split=paper", "split.subset=tiny"],
        ["split.subset=tiny: no such subset; accepted: large, balanced"],
    ),
    "train size too large": (["split.train_size=289"], ["split.train_size=289: out of range; accepted: 7", "to 288"]),
    "train size too small": (["split.train_size=6"], ["split.train_size=6: out of range; accepted: 7"]),
    "batch larger than the epoch": (
        ["imbalance=undersample", "budget=epochs", "data.batch_size=57"],
        ["data.batch_size=57: only 56 images are drawn per epoch; use a smaller batch"],
    ),
    "undersample beyond the rarest": (
        ["imbalance=undersample", "imbalance.sampler.per_class=9"],
        ["per_class=9", "the rarest training class has 8 images", "give 1 to 8"],
    ),
    "unknown weighting": (
        ["imbalance=weighted", "imbalance.loss.weighting=inverze"],
        ["unknown weighting 'inverze'", "none, inverse, inverse_sqrt, effective"],
    ),
    "unknown normalization": (
        ["imbalance=focal", "imbalance.loss.normalization=sum"],
        ["unknown normalization 'sum'", "balanced, sum_C, sum_1"],
    ),
    "unknown reading": (
        ["imbalance=weighted_bce", "imbalance.loss.reading=rows"],
        ["unknown reading 'rows'", "sample, column, softmax"],
    ),
    "beta of 1": (["imbalance=class_balanced", "imbalance.loss.beta=1"], ["beta=1", "at least 0 and below 1"]),
    "sampling power": (["imbalance=oversample", "imbalance.sampler.power=2"], ["power=2", "give 0"]),
    "too few drawn faces": (["data.source.images=20"], ["data.source.images=20: 168 or more are needed"]),
    "not of timm": (["model.name=resnet19"], ["model.name=resnet19: not an image classifier of timm", "close: "]),
    "misspelt EfficientNet": (["model.name=efficientnet_b00"], ["not an image classifier of timm", "efficientnet_b0"]),
    "unknown activation": (["model.head.activation=Swoosh"], ["model.head.activation=Swoosh", "such as ReLU"]),
    "activation that is none": (["model.head.activation=functional"], ["model.head.activation=functional"]),
    "unknown optimizer": (["optim.name=adamz"], ["optim.name=adamz: timm has no such optimizer"]),
    "averaging out of range": (["callbacks=ema", "callbacks.ema.decay=2"], ["callbacks.ema: Invalid decay value 2"]),
}


@pytest.mark.parametrize("case", every_nth(6, BAD_KNOBS))
def test_bad_value_ends_the_run_in_one_line(cli, tmp_path, case):
    overrides, words = BAD_KNOBS[case]
    assert_refused(cli(*TINY, *overrides), tmp_path, *words)


OWN_CODE = """
import torch
from torch import nn

from fer_lightning.imbalance.samplers import EpochSampler

class Mean(nn.Module):
    def __init__(self, class_counts, **settings):
        super().__init__()

    def forward(self, logits, target):
        return nn.functional.cross_entropy(logits, target)

class Function:
    def __init__(self, class_counts, **settings):
        pass

class Sampler:
    def __init__(self, labels, seed):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

class Unfinished(EpochSampler):
    def __init__(self, labels, seed):
        super().__init__(labels, seed, len(labels))
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "imbalance.loss._target_=own_code.Mean",
            "own_code.Mean: gives () for 8 images; it must return the loss of each image, (8,), not their mean",
        ),
        (
            "imbalance.loss._target_=own_code.Function",
            "own_code.Function: makes a Function, where a torch.nn.modules.module.Module is needed; derive it from",
        ),
        (
            "imbalance.sampler._target_=own_code.Sampler",
            "own_code.Sampler: makes a Sampler, where a fer_lightning.imbalance.samplers.EpochSampler is needed",
        ),
        (
            "imbalance.sampler._target_=own_code.Unfinished",
            "own_code.Unfinished: has no method sample_epoch; define it",
        ),
        (
            "imbalance.loss._target_=own_cod.Mean",
            "own_cod.Mean: cannot be imported (No module named 'own_cod'); check the name, and that the folder of its "
            "module is on PYTHONPATH",
        ),
        (
            "imbalance.loss._target_=own_code.Meen",
            "own_code.Meen: cannot be imported (No module named 'own_code.Meen'; 'own_code' is not a package); check ",
        ),
    ],
)
def test_code_of_the_user_that_does_not_fit_is_refused_before_training(cli, tmp_path, monkeypatch, override, message):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    monkeypatch.setenv(TRUST, "own_code,own_cod")
    outcome = cli(*TINY, override)
    assert_refused(outcome, tmp_path, f"{override.partition('=')[0]}={message}")
    assert not list(tmp_path.rglob("metrics.csv"))


def test_val_fraction_that_leaves_a_class_out_of_training(cli, tmp_path):
    files = image_files(FACES)
    for name in files:
        if name.startswith("train/disgust/"):  # exact twins stay together, so all of them go to one side
            files[name] = encode(FACES.images[0])
    archive = write_zip(files, tmp_path / "archive.zip")
    outcome = cli(*FILES, f"data.path={archive}", "split.val_fraction=0.7")
    assert_refused(outcome, tmp_path, "training split has no image of disgust")


@pytest.mark.nightly
def test_images_of_another_size_or_colour_are_converted_and_counted(cli, tmp_path):
    files = image_files(FACES)
    colour = cv2.cvtColor(FACES.images[0], cv2.COLOR_GRAY2BGR)
    large = cv2.resize(FACES.images[1], (96, 120))
    files |= {str(FACES.ids[0]): encode(colour), str(FACES.ids[1]): encode(large)}
    outcome = cli(*FILES, f"data.path={write_zip(files, tmp_path / 'archive.zip')}")
    assert outcome.code == 0, outcome.err
    assert "Converted 2 images of another size or colour to 48x48 gray" in outcome.out
    assert outcome.json["test/n"] == 14


@pytest.mark.slow
def test_download_without_a_network_names_the_remedy(cli, tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    outcome = cli(*FILES)
    what, where, override = "kaggle.com/datasets/msambare/fer2013", "put it anywhere", "data.path=PATH_OF_THE_ZIP"
    assert_refused(outcome, tmp_path, "could not be downloaded", what, where, override)


@pytest.mark.slow
def test_read_only_data_folder_is_enough(cli, tmp_path, mounted):
    folder = write_folder(image_files(FACES), mounted("2m"))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (folder / "new").touch()
    outcome = cli(*FILES, f"data.path={folder}")
    assert outcome.code == 0, outcome.err
    assert outcome.json["test/n"] == 14


def test_an_unusable_cache_folder_is_reported_and_skipped(cli, tmp_path):
    (tmp_path / "file").touch()
    outcome = cli(*FILES, f"data.path={whole_zip(tmp_path)}", f"data.cache_dir={tmp_path / 'file' / 'cache'}")
    assert outcome.code == 0, outcome.err
    assert "cannot be used" in outcome.out + outcome.err


def test_a_good_run_leaves_a_good_status(cli, tmp_path):
    """The counterpart: a run that works differs from the refused ones above."""
    outcome = cli(*FILES, f"data.path={whole_zip(tmp_path)}")
    run = only_run(tmp_path)
    assert (outcome.code, read_status(run)) == (0, {"status": "done"})
    assert read_json(run / "metrics.json")["test/n"] == 14
    assert np.isfinite(outcome.json["test/f1_macro"])
    assert os.listdir(run / "checkpoints")


LONG = "y" * 300
"""Longer than a name may be on the usual file systems."""


@pytest.mark.parametrize(
    ("module", "arguments"),
    every_nth(
        4,
        [
            ("fer_lightning", [*TINY, f"resume={LONG}"]),
            ("fer_lightning", [*TINY, f"hydra.run.dir={LONG}"]),
            ("fer_lightning", [*TINY, f"model.weights={LONG}"]),
            ("fer_lightning", [*TINY, "imbalance=crt", f"imbalance.first_stage={LONG}"]),
            ("fer_lightning.compare", [LONG]),
            ("fer_lightning.card", [LONG]),
            ("fer_lightning.predict", [LONG, "image.png"]),
            ("fer_lightning.sweep", ["status", LONG]),
            ("fer_lightning.sweep", ["resume", LONG]),
            ("fer_lightning.ensemble", [LONG, f"{LONG}2"]),
        ],
    ),
)
def test_a_name_that_is_too_long_is_one_line(forked, module, arguments):
    outcome = forked(*arguments, module=module)
    assert outcome.code == 2
    assert "File name too long" in outcome.error


def test_a_working_directory_that_was_deleted_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    code = "import os, runpy\nos.rmdir(os.getcwd())\nrunpy.run_module('fer_lightning.compare', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "gone", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the working directory does not exist any more; change to one that does\n",
    )
