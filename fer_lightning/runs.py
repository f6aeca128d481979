"""Finished runs, read back from their folders."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fer_lightning.errors import UserError
from fer_lightning.metrics import emotion_indices
from fer_lightning.sweep_folder import MAY_DIFFER

SCORES = {
    "test/accuracy": "accuracy",
    "test/balanced_accuracy": "balanced accuracy",
    "test/f1_macro": "macro F1",
    "test/worst_recall": "worst-class recall",
}
"""The headline scores: key in ``metrics.json`` -> heading."""


BASELINE = "none"
"""The method that differences are taken from."""

NEEDED = ("imbalance", "model", "split", "seed", "data", "data_hash", "test/n", *SCORES)
"""What ``metrics.json`` must hold for a run to be compared."""


NOT_A_SETTING = ("seed", "split.fold", *MAY_DIFFER)
"""Configuration that does not make two runs different experiments: repeats, and what cannot change a result."""


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder.

    Attributes:
        folder: the run folder.
        metrics: ``metrics.json``.
        settings: the composed configuration, flat (``optim.lr``), without what is no setting.
        ids: str, shape (n,): the test images.
        labels: int64, shape (n,).
        predictions: int64, shape (n,).
        fold: the fold of a cross-validation, else None.
    """

    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, str]
    ids: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    fold: str | None

    @property
    def method(self) -> tuple[str, str]:
        """Imbalance method and model."""
        return self.metrics["imbalance"], self.metrics["model"]

    @property
    def repeat(self) -> tuple[Any, str | None]:
        """What distinguishes runs of one row: seed and fold."""
        return self.metrics["seed"], self.fold

    @property
    def test_set(self) -> tuple[tuple[str, ...], bytes]:
        """Equal for runs that were tested on the same images."""
        return self.ids, self.labels.tobytes()


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """List the run folders at or below ``paths``, in the order of their names (2 before 10), each once.

    Raises:
        UserError: a path that is no folder, or nothing that looks like a run below any of them.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give the folders of runs or of sweeps")
        for root, folders, files in os.walk(path):
            folders.sort(key=_natural)
            if {"metrics.json", "status.json"} & set(files) or ".hydra" in folders:
                found[Path(root).resolve()] = None
                folders.clear()
    if not found:
        names = ", ".join(map(str, paths))
        raise UserError(f"no run folder in {names}; a run folder holds metrics.json and predictions.csv")
    return list(found)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``2-focal`` before ``10-focal``."""
    return [(int(part or -1), text) for part, text in re.findall(r"(\d*)(\D*)", name)]


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, Mapping):
        return {prefix: str(config)}
    return {
        key: value
        for name, part in config.items()
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _is_setting(key: str) -> bool:
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_A_SETTING)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: the run is not finished or its files do not fit together; the message is the reason.
    """
    try:
        status_file = folder / "status.json"
        if status_file.exists():
            status = json.loads(status_file.read_text())
            if status.get("status") != "done":
                reason = status.get("reason")
                raise ValueError(f"{status.get('status')}: {reason}" if reason else f"{status.get('status')}")
        metrics = json.loads((folder / "metrics.json").read_text())
        missing = [key for key in NEEDED if metrics.get(key) is None]
        if missing:
            raise ValueError(f"metrics.json lacks {', '.join(missing)}")
        table = pd.read_csv(folder / "predictions.csv", usecols=["id", "label", "prediction"], dtype=str)
        if len(table) != metrics["test/n"]:
            raise ValueError(f"predictions.csv has {len(table)} rows but test/n is {metrics['test/n']}")
        labels, predictions = (emotion_indices(table[name].tolist()) for name in ("label", "prediction"))
        config_file = folder / ".hydra" / "config.yaml"
        config = _flat(OmegaConf.to_container(OmegaConf.load(config_file))) if config_file.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"damaged json: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"no {Path(error.filename).name}") from error
    except (OSError, OmegaConfBaseException, YAMLError, pd.errors.ParserError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    settings = {key: value for key, value in config.items() if _is_setting(key)}
    fold = config.get("split.fold")
    return Run(folder, metrics, settings, tuple(table["id"]), labels, predictions, fold)


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Read run folders; returns the finished ones, and for the others the reason why they are left out.

    Of runs that repeat each other (same settings, seed and data) only the newest counts: it is no new seed.
    """
    runs: dict[Any, Run] = {}
    skipped: dict[Path, str] = {}
    for folder in sorted(folders, key=lambda folder: _written(folder)):
        try:
            run = read_run(folder)
        except ValueError as error:
            skipped[folder] = str(error)
            continue
        same = (run.method, run.repeat, table_key(run), tuple(sorted(run.settings.items())))
        if same in runs:
            skipped[runs[same].folder] = f"the same settings and seed as {folder.name}, which is newer"
        runs[same] = run
    order = {folder: place for place, folder in enumerate(folders)}
    return sorted(runs.values(), key=lambda run: order[run.folder]), skipped


def _written(folder: Path) -> float:
    file = folder / "metrics.json"
    return file.stat().st_mtime if file.exists() else 0.0


def table_key(run: Run) -> tuple[Any, ...]:
    """What two runs must share to stand in one table: data, split and test size."""
    # The folds of one cross-validation differ in size by a few images; they are repeats of one experiment.
    n = None if run.metrics["split"] == "kfold" else run.metrics["test/n"]
    return run.metrics["data"], run.metrics["data_hash"], run.metrics["split"], n
