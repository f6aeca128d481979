"""Finished runs, read back from their folders."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_lightning.config.settings import MAY_DIFFER, is_part_of
from fer_lightning.evaluation import run_files
from fer_lightning.metrics.predictions import probability_columns
from fer_lightning.presentation.printable import printable, shortened
from fer_lightning.presentation.words import natural_key
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path, walk

NOT_A_SETTING = ("seed", "split.fold", "test", *MAY_DIFFER)
"""Configuration that does not make two runs different experiments: repeats, and what cannot change a result."""


FIRST_STAGE = "imbalance.first_stage"

LONGEST_REASON = 1_000
"""Characters of the reason why a run is left out."""

REPEATED = "the same settings and seed as"
"""Beginning of the reason why a run is left out that another one repeats."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as read from its folder.

    Images are in the order of their ids.

    Attributes:
        folder: the run folder.
        metrics: ``metrics.json``.
        settings: the composed configuration, flat (``optim.lr``), without ``NOT_A_SETTING`` and what is null, which
            files of another version may not name.
        ids: str, shape (n,): the images of all test sets.
        labels: int64, shape (n,).
        predictions: int64, shape (n,).
        probabilities: float64, shape (n, C).
        twins: int64, shape (n,): images with the same number have the same pixels.
        members: name of a test set -> bool, shape (n,): which images belong to it.
        fold: the fold of a cross-validation, else None.
        first_stage: path and digest of the first stage that another run trained; None without one, or without a digest.
    """

    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, str]
    ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    twins: np.ndarray
    members: dict[str, np.ndarray]
    fold: str | None
    first_stage: tuple[str, str] | None = None

    def number(self, key: str) -> float:
        """A number of ``metrics.json``; NaN where it has none."""
        value = self.metrics.get(key)
        return np.nan if value is None else float(value)

    @property
    def name(self) -> str:
        """The folder's name with its parent's, which distinguishes runs of several sweeps."""
        return printable("/".join(self.folder.parts[-2:]))

    @property
    def method(self) -> tuple[str, str]:
        """Imbalance method and model."""
        return self.metrics["imbalance"], self.metrics["model"]

    @property
    def repeat(self) -> tuple[Any, str | None]:
        """What distinguishes runs of one row: seed and fold."""
        return self.metrics["seed"], self.fold

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return tuple(self.metrics["train/class_counts"])

    @property
    def training_images(self) -> int:
        """How many images it was trained with."""
        return sum(self.metrics["train/class_counts"].values())

    @property
    def training_steps(self) -> int:
        """Optimizer steps of its model, another run's first stage included."""
        return int(self.metrics["train/steps"] + self.metrics.get("first_stage/steps", 0))

    @property
    def protocol(self) -> dict[str, str]:
        """What two runs must share to be compared, besides the test images."""
        metrics = self.metrics
        return {
            "classes": ", ".join(self.classes),
            "data": str(metrics["data"]),
            "data hash": str(metrics["data_hash"]),
            "labels": str(metrics["labels"]),
            "split": str(metrics["split"]),
        }


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """List the run folders at or below ``paths``, in the order of their names (2 before 10), each once.

    Links below them are not followed, which may lead anywhere: a link to a folder, and a folder that cannot be listed,
    are among the run folders, for ``read_run`` to give the reason why they are left out.

    Raises:
        UserError: a path that is not a folder, or nothing that looks like a run below any of them.
    """
    run_folders: dict[Path, None] = {}

    def add_unreadable(error: OSError) -> None:
        run_folders[Path(error.filename)] = None

    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give the folders of runs or of sweeps")
        for root, folders, files in walk(real_path(path), onerror=add_unreadable):
            folders.sort(key=natural_key)
            if _is_run(files, folders):
                run_folders[Path(root)] = None
                folders.clear()
            for name in folders:
                linked = Path(root, name)
                if os.path.islink(linked) and _leads_to_run(linked):  # unlike Path's, False for a path too long
                    run_folders[linked] = None
    if not run_folders:
        names = ", ".join(map(str, paths))
        raise UserError(f"no run folder in {names}; a run folder holds metrics.json and predictions.csv")
    return list(run_folders)


def _is_run(files: Collection[str], folders: Collection[str]) -> bool:
    return bool({"metrics.json", "status.json"} & set(files)) or ".hydra" in folders


def _leads_to_run(linked: Path) -> bool:
    """Whether a linked folder is a run or holds runs."""
    try:
        names = os.listdir(linked)
        below = (os.listdir(linked / name) for name in names if (linked / name).is_dir())
        return _is_run(names, names) or any(_is_run(inside, inside) for inside in below)
    except OSError:
        return False


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        ValueError: the run is not finished or its files do not fit together; the message is the reason.
    """
    if os.path.islink(folder):
        raise ValueError(f"is a link, which is not followed; give the folder {os.readlink(folder)} itself")
    run_files.read_status(folder)
    metrics = run_files.read_metrics(folder)
    table = run_files.read_predictions(folder, metrics)
    config = run_files.read_config(folder, metrics)
    fold = _fold(config, metrics)
    repeat = {"${seed}": str(metrics["seed"]), "${split.fold}": fold}
    settings = {
        # Only the seed of a second stage is meant to differ between the runs of one row.
        printable(key): printable(value if key.endswith(".seed") else repeat.get(str(value), value))
        for key, value in config.items()
        if str(value) != "None" and not is_part_of(key, NOT_A_SETTING)
    }
    first_stage = None
    if FIRST_STAGE in settings:
        if "first_stage_hash" in metrics:
            first_stage = settings[FIRST_STAGE], metrics["first_stage_hash"]
        # By its method: each seed has a checkpoint of its own.
        settings[FIRST_STAGE] = metrics.get("first_stage/imbalance", "a checkpoint")
    if metrics.get("weights_hash"):
        settings["model.weights_hash"] = metrics["weights_hash"][:12]
    return FinishedRun(
        folder=folder,
        metrics=metrics,
        settings=settings,
        ids=table["id"].to_numpy(str),
        labels=table["label"].to_numpy(np.int64),
        predictions=table["prediction"].to_numpy(np.int64),
        probabilities=table[probability_columns(list(metrics["train/class_counts"]))].to_numpy(np.float64),
        twins=table["twin_group"].to_numpy(np.int64),
        members=run_files.test_sets(table, metrics),
        fold=fold,
        first_stage=first_stage,
    )


def _fold(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str | None:
    """The fold of a cross-validation, which may have been given as the seed; None in other splits."""
    if "split.fold" not in config:
        return None
    written = config["split.fold"]
    fold = str(metrics["seed"] if written == "${seed}" else written)
    if not fold.isdecimal():
        raise ValueError(f"config.yaml has split.fold={fold[:40]}, not a whole number")
    return fold


def read_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], dict[Path, str]]:
    """Read run folders; returns the finished ones, and for the others the reason why they are left out.

    Of runs that repeat each other (same settings, seed and data) only the newest counts: it is not a new seed. A run
    is left out whose labels or twins are not those of most runs with the same test images of the same data, one whose
    predictions are those of another seed to the last digit, one whose training images differ in number from those of
    another run with the same data, split and seed, and one whose first stage was replaced since another run began with
    it.
    """
    read: list[FinishedRun] = []
    skipped: dict[Path, str] = {}
    for folder in sorted(folders, key=_written):
        try:
            read.append(read_run(folder))
        except ValueError as error:
            skipped[folder] = shortened(str(error), LONGEST_REASON)
    minority = _minority(read)
    runs: dict[Any, FinishedRun] = {}
    earlier: dict[Any, FinishedRun] = {}
    for run in read:
        wrong = minority.get(run.folder) or _contradiction(run, earlier)
        if wrong is not None:
            skipped[run.folder] = wrong
            continue
        same = (run.method, run.repeat, *(tuple(sorted(part.items())) for part in (run.protocol, run.settings)))
        if same in runs:
            skipped[runs[same].folder] = f"{REPEATED} {run.folder.name}, which is newer"
        runs[same] = run
    order = {folder: place for place, folder in enumerate(folders)}
    return sorted(runs.values(), key=lambda run: order[run.folder]), skipped


def _minority(runs: Sequence[FinishedRun]) -> dict[Path, str]:
    """The runs whose labels or twins are not those of most runs with the same test images, and the reason for it."""
    votes: dict[Any, Counter[bytes]] = {}
    ballots = []
    for run in runs:
        images = (*run.protocol.values(), run.metrics.get("drop_duplicates"), run.ids.tobytes())
        answer = run.labels.tobytes() + run.twins.tobytes()
        votes.setdefault(images, Counter())[answer] += 1
        ballots.append((run.folder, images, answer))
    reason = "its labels or twins are not those of the other runs with the same data and test images"
    return {folder: reason for folder, images, answer in ballots if votes[images][answer] < max(votes[images].values())}


def _contradiction(run: FinishedRun, earlier: dict[Any, FinishedRun]) -> str | None:
    """Why a run and an earlier one cannot both be what they say; None where they can.

    Args:
        run: the run.
        earlier: the first run of each kind, to which this one is added.
    """
    first = earlier.setdefault(("split", *_split_of(run)), run)
    if first.metrics["train/class_counts"] != run.metrics["train/class_counts"]:
        return f"its train/class_counts are not those of {first.folder.name}, with the same data and split"
    first = earlier.setdefault(("answers", run.method, run.ids.tobytes(), run.probabilities.tobytes()), run)
    if first.repeat != run.repeat:
        return f"its predictions are those of {first.folder.name} to the last digit: no other seed"
    if run.first_stage is not None:
        path, _ = run.first_stage
        first = earlier.setdefault(("first stage", path), run)
        if first.first_stage != run.first_stage:
            return f"its first stage has other weights than that of {first.folder.name}, with the same path"
    return None


def _split_of(run: FinishedRun) -> tuple[Any, ...]:
    """What decides which images a run trains on."""
    parts = sorted(item for item in run.settings.items() if item[0].startswith(("data.", "split.")))
    return (*run.protocol.values(), *run.repeat, *parts)


def _written(folder: Path) -> float:
    try:
        return (folder / "metrics.json").stat().st_mtime
    except OSError:
        return 0.0
