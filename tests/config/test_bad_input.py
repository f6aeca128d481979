"""Bad input through the real entry: one line, exit code 2, the reason in status.json, nothing half-written."""

import os
import resource
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from archives import csv_text, encode, image_files, tiny_faces, write_folder, write_gzip, write_zip
from command_line import TINY, Outcome, only_run
from legs import every_nth, every_third

from fer_lightning import evaluate
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import build_network
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.run_folder import read_status

FACES = tiny_faces()
FILES = (*(word for word in TINY if not word.startswith("data")), "data=fer2013", "data.batch_size=14")
"""A whole run on a tiny archive; needs ``data.path``."""

ANGRY = str(FACES.ids[0])


def assert_refused(outcome: Outcome, folder: Path, *words: str) -> None:
    """One line that holds all words, code 2, the same reason on record, and no result."""
    for word in words:
        assert word in outcome.error
    assert outcome.code == 2
    run = only_run(folder)
    assert read_status(run) == {"status": "failed", "reason": outcome.error.removeprefix("error: ")}
    left = {path.name for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    assert left <= {"status.json", "train.log", "metrics.csv", ".lock"}


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
    "label 7": (lambda folder: csv_file(folder, 9, 0, "7"), ["row 10: emotion '7'; accepted are 0 angry"]),
    "label not a number": (lambda folder: csv_file(folder, 9, 0, "cross"), ["cross"]),
    "unknown usage": (
        lambda folder: csv_file(folder, 1, 2, "Holiday"),
        ["row 2: unknown Usage 'Holiday'; accepted are Training, PublicTest, PrivateTest"],
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
        [f"unknown emotion folder train/contempt; accepted are {', '.join(EMOTIONS)}"],
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
    "fold out of range": (["split=kfold", "split.fold=5"], ["split.fold=5: accepted are 0 to 4"]),
    "more folds than images of a class": (["split=kfold", "split.folds=50"], ["split.folds=50", "disgust"]),
    "unknown subset": (["split=paper", "split.subset=tiny"], ["split.subset=tiny: accepted are large and balanced"]),
    "train size too large": (["split.train_size=289"], ["split.train_size=289: accepted are 7", "to 288"]),
    "train size too small": (["split.train_size=6"], ["split.train_size=6: accepted are 7"]),
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
    "not of timm": (["model.name=resnet19"], ["model.name=resnet19: no image classifier of timm", "close: "]),
    "misspelt EfficientNet": (["model.name=efficientnet_b00"], ["no image classifier of timm", "efficientnet_b0"]),
    "unknown activation": (["model.head.activation=Swoosh"], ["model.head.activation=Swoosh", "such as ReLU"]),
    "activation that is none": (["model.head.activation=functional"], ["model.head.activation=functional"]),
    "unknown optimizer": (["optim.name=adamz"], ["optim.name=adamz: timm has no such optimizer"]),
    "averaging out of range": (["callbacks=ema", "callbacks.ema.decay=2"], ["callbacks.ema: Invalid decay value 2"]),
}


@pytest.mark.parametrize("case", every_nth(6, BAD_KNOBS))
def test_bad_value_ends_the_run_in_one_line(cli, tmp_path, case):
    overrides, words = BAD_KNOBS[case]
    assert_refused(cli(*TINY, *overrides), tmp_path, *words)


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


@pytest.mark.nightly
@pytest.mark.parametrize("override", ["trainer.limit_val_batches=0", "trainer.check_val_every_n_epoch=9"])
def test_a_run_without_validation_tests_its_last_epoch(cli, tmp_path, override):
    outcome = cli(*TINY, override)
    assert outcome.code == 0, outcome.err
    assert "no validation has chosen a checkpoint: the last epoch is tested" in outcome.out
    assert outcome.json["test/n"] == 56


@pytest.mark.slow
def test_download_without_a_network_names_the_remedy(cli, tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    outcome = cli(*FILES)
    what, where, override = "kaggle.com/datasets/msambare/fer2013", "put it anywhere", "data.path=PATH_OF_THE_ZIP"
    assert_refused(outcome, tmp_path, "could not be downloaded", what, where, override)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a memory file system of a given size; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "mounted"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"mounting needs root: {done.stderr.strip() if done else 'no mount command'}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # its train.log is still open


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


class TestDivergence:
    def test_first_epoch_leaves_no_checkpoint(self, cli, tmp_path):
        outcome = cli(*TINY, "optim.lr=1e30", "trainer.gradient_clip_val=null")
        assert_refused(outcome, tmp_path, "the loss became NaN or infinite in epoch 1", "smaller optim.lr")

    @pytest.mark.parametrize("split", every_third(["official", "paper"]))
    def test_last_step_counts_too(self, cli, tmp_path, split):
        # One step: its own loss is finite, and only the weights that it leaves are broken.
        outcome = cli(
            *TINY, f"split={split}", "trainer.limit_train_batches=1", "optim.lr=1e30", "trainer.gradient_clip_val=null"
        )
        assert_refused(outcome, tmp_path, "NaN or infinite")

    @pytest.mark.nightly
    def test_last_step_before_a_rare_validation_counts_too(self, cli, tmp_path):
        outcome = cli(
            *TINY,
            "trainer.check_val_every_n_epoch=2",
            "trainer.max_epochs=2",
            "trainer.limit_train_batches=1",
            "model.freeze_epochs=1",
            "optim.backbone_lr_scale=1e30",
            "trainer.gradient_clip_val=null",
            "hydra.run.dir=run",
        )
        assert "NaN or infinite in epoch 2" in outcome.error
        left = {path.stem: read_checkpoint(path)["epoch"] for path in (tmp_path / "run" / "checkpoints").iterdir()}
        assert left == {"last": 0}

    @pytest.mark.nightly
    def test_later_epoch_keeps_the_last_good_checkpoint(self, cli, tmp_path):
        # The backbone is frozen in the first epoch, so its absurd learning rate strikes in the second.
        outcome = cli(
            *TINY,
            "model.freeze_epochs=1",
            "optim.backbone_lr_scale=1e30",
            "trainer.gradient_clip_val=null",
            "trainer.max_epochs=3",
            "hydra.run.dir=run",
        )
        assert outcome.code == 2
        assert "the loss became NaN or infinite in epoch 2" in outcome.error
        assert read_status(tmp_path / "run")["status"] == "failed"
        assert not (tmp_path / "run" / "metrics.json").exists()
        for name in ("best", "last"):
            path = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
            assert read_checkpoint(path)["epoch"] == 0
            logits = EmotionClassifier.load(path)(torch.from_numpy(FACES.images))
            assert torch.isfinite(logits).all()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses writes beyond this size: a disk quota in miniature, for this process only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def resume(self, cli: Callable[..., Outcome], run: Path) -> Outcome:
        return cli(*TINY, f"hydra.run.dir={run}", "resume=auto", "trainer.max_epochs=3")

    def check(self, outcome: Outcome, run: Path, before: dict[str, bytes]) -> None:
        assert outcome.code == 2
        assert "disk full while writing" in outcome.error
        assert "the last complete checkpoint is kept" in outcome.error
        status = read_status(run)
        assert status["status"] == "failed"
        assert "disk full" in status["reason"]
        assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
        EmotionClassifier.load(run / "checkpoints" / "last.ckpt")

    @pytest.fixture
    def first(self, cli) -> Callable[[Path], dict[str, bytes]]:
        def train(run: Path) -> dict[str, bytes]:
            assert cli(*TINY, f"hydra.run.dir={run}").code == 0
            (run / "metrics.json").unlink()
            return {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}

        return train

    @pytest.mark.nightly
    def test_quota(self, cli, tmp_path, first):
        before = first(tmp_path / "run")
        with largest_file(100_000):
            outcome = self.resume(cli, tmp_path / "run")
        self.check(outcome, tmp_path / "run", before)

    @pytest.mark.slow
    def test_device(self, cli, tmp_path, first, mounted):
        disk = mounted("8m")
        before = first(disk / "run")
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(shutil.disk_usage(disk).free - 200_000))
        self.check(self.resume(cli, disk / "run"), disk / "run", before)


class Trap:
    """Unpickling this makes a file: what a checkpoint from a stranger could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestCheckpoints:
    @pytest.fixture
    def trap(self, tmp_path) -> Path:
        trap, sprung = tmp_path / "trap.ckpt", tmp_path / "sprung"
        torch.save({"state_dict": {}, "hyper_parameters": Trap(sprung)}, trap)
        torch.load(trap, weights_only=False)
        assert sprung.exists()  # it works
        sprung.unlink()
        return trap

    def test_unsafe_one_is_refused_by_evaluate(self, tmp_path, trap):
        with pytest.raises(UserError, match=r"trap\.ckpt: would run code when it is loaded, and is refused"):
            evaluate.main([str(trap)])
        assert not (tmp_path / "sprung").exists()

    def test_unsafe_one_is_refused_by_resume(self, cli, tmp_path, trap):
        outcome = cli(*TINY, f"resume={trap}")
        assert_refused(outcome, tmp_path, "trap.ckpt: would run code when it is loaded, and is refused")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize(
        ("content", "words"),
        every_third(
            [
                (b"", "no checkpoint, or a damaged one"),
                (b"hello", "no checkpoint, or a damaged one"),
                (None, "no such checkpoint"),
            ]
        ),
        ids=["empty", "text", "folder without one"],
    )
    def test_resume_from_what_is_no_checkpoint(self, cli, tmp_path, content, words):
        given = tmp_path / "given"
        if content is None:
            given.mkdir()
        else:
            given.write_bytes(content)
        assert_refused(cli(*TINY, f"resume={given}"), tmp_path, words)

    @pytest.mark.parametrize(
        "content", every_third([[1], {"state_dict": {}}, timm.create_model("test_efficientnet").state_dict()])
    )
    def test_resume_from_a_checkpoint_of_something_else(self, cli, tmp_path, content):
        torch.save(content, tmp_path / "other.ckpt")
        assert_refused(cli(*TINY, "resume=other.ckpt"), tmp_path, "other.ckpt: not a checkpoint of fer_lightning")

    @pytest.mark.nightly
    def test_resume_with_another_model(self, cli, tmp_path):
        assert cli(*TINY, "hydra.run.dir=first").code == 0
        outcome = cli(*TINY, "hydra.run.dir=second/run", "resume=first", "model.head.hidden=[32]")
        assert_refused(
            outcome, tmp_path / "second", "resume=first: model.head.hidden was [64] there and cannot become [32]"
        )


class TestWeights:
    def test_of_another_architecture(self, cli, tmp_path):
        file = tmp_path / "other.pth"
        torch.save(timm.create_model("test_resnet").state_dict(), file)
        outcome = cli(*TINY, f"model.weights={file}")
        assert_refused(outcome, tmp_path, "other.pth: lacks", "tensors of test_efficientnet, such as")

    def test_of_another_width(self, cli, tmp_path):
        state = timm.create_model("test_efficientnet").state_dict()
        state["conv_stem.weight"] = state["conv_stem.weight"][:8]
        torch.save(state, tmp_path / "other.pth")
        outcome = cli(*TINY, f"model.weights={tmp_path / 'other.pth'}")
        assert_refused(outcome, tmp_path, "other.pth", "conv_stem.weight", "[8, ", "[24, ")

    def test_that_are_no_weights(self, cli, tmp_path):
        file = text(tmp_path, "hello", "weights.pth")
        assert_refused(cli(*TINY, f"model.weights={file}"), tmp_path, "weights.pth: cannot be read as weights")

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [("packed", "is compressed, which no checkpoint is"), ("expanded", "cannot be read as weights")],
    )
    def test_that_would_fill_the_memory(self, kind, reason, tmp_path):
        state, file = timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth"
        if kind == "expanded":  # a few bytes stand for all values
            state["conv_stem.weight"] = torch.zeros(1).expand(10**6, 3, 3, 3)
        torch.save(state, file)
        if kind == "packed":
            with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "b", "w", zipfile.ZIP_DEFLATED) as packed:
                for name in source.namelist():
                    packed.writestr(name, source.read(name))
            (tmp_path / "b").replace(file)
        with pytest.raises(UserError, match=rf"model\.weights=\S+weights\.pth:? {reason}"):
            build_network("test_efficientnet", str(file), 1, 48, None, 0.0, {}, 7)

    def test_that_would_execute_code(self, cli, tmp_path):
        torch.save({"conv_stem.weight": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
        outcome = cli(*TINY, f"model.weights={tmp_path / 'weights.pth'}")
        assert_refused(outcome, tmp_path, "weights.pth: cannot be read as weights")
        assert not (tmp_path / "sprung").exists()


def test_a_good_run_leaves_a_good_status(cli, tmp_path):
    """The counterpart: a run that works differs from the refused ones above."""
    outcome = cli(*FILES, f"data.path={whole_zip(tmp_path)}")
    run = only_run(tmp_path)
    assert (outcome.code, read_status(run)) == (0, {"status": "done"})
    assert read_json(run / "metrics.json")["test/n"] == 14
    assert np.isfinite(outcome.json["test/f1_macro"])
    assert os.listdir(run / "checkpoints")
