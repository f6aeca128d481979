"""The files of a run folder, which anybody may have written or damaged, read and checked.

Every function raises ValueError with the reason, in one line, and nothing else.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.config.settings import flatten
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.data.faces import is_class_name
from fer_lightning.data.tables import to_numbers
from fer_lightning.metrics.calibration import (
    COLDEST,
    HOTTEST,
    apply_temperature,
    calibration_error,
    is_temperature,
    nll,
)
from fer_lightning.metrics.classification import confusion_matrix, further_scores, macro_f1, precision_recall_f1
from fer_lightning.metrics.names import contradiction, limits
from fer_lightning.metrics.predictions import class_indices, ids_hash, probability_columns, read_predictions_csv
from fer_lightning.presentation.escapes import table_from_csv
from fer_lightning.runtime.errors import UserError, check, one_line
from fer_lightning.runtime.files import read_bytes, read_json

TEXTS = ("imbalance", "model", "split", "budget", "data", "data_hash", "labels")
OPTIONAL_TEXTS = {"git_commit", "precision", "first_stage/imbalance", "first_stage_hash", "weights_hash", "ids_hash"}
COUNTS = ("seed", "train/steps", "test/n")
NEEDED = (*TEXTS, *COUNTS, "train/class_counts", "test/accuracy", "test/f1_macro")
"""What ``metrics.json`` must contain for a run to be compared."""

RECORDED = {
    "seed": "seed",
    "budget": "budget",
    "imbalance": "imbalance.name",
    "model": "model.name",
    "split": "split.name",
    "data": "data.name",
    "labels": "labels.name",
}
"""Keys of ``metrics.json`` that repeat a setting, and the setting."""

SECTIONS = ("data", "split", "imbalance", "model", "augment", "optim", "trainer")
"""Groups that every configuration has, and that decide what a run computes."""

DURATIONS = ("train/seconds", "train/images_per_second")

BUDGETS = ("steps", "epochs")

TEST_SET = re.compile(r"test(_\w{1,40})?")
"""Names of test sets."""

COLUMNS = ("id", "label", "prediction", "test", "twin_group")
"""Columns that ``predictions.csv`` must have, besides those of the probabilities."""

LONGEST_TEXT = 200
"""Maximum characters of a name in ``metrics.json``; it becomes part of a row's name."""

MAX_ID_BYTES = 2**29
"""Maximum bytes of the ids in memory, where each takes as much as the longest one."""

ROUNDING = 1e-4
"""Largest difference of a probability that rounding in a copied ``predictions.csv`` explains."""

EXACT = 1e-7
"""The same for a file whose probabilities were not rounded."""

RANKED = dict.fromkeys(("auroc_macro", "average_precision_macro", "aurc"), 5.0)
"""Scores of ranks, which change more where rounding makes probabilities equal, and by how much."""

LARGEST = 2**53
"""Maximum of a number in ``metrics.json``: beyond it, integers are not exact."""


def read_status(folder: Path) -> None:
    """Check that a run is done."""
    status = _json(folder, "status.json")
    if status.get("status") != "done":
        reason = status.get("reason")
        raise ValueError(f"{status.get('status')}: {reason}" if reason else f"{status.get('status')}")


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of ``metrics.json``: keys that a comparison uses have the right types and possible values."""
    metrics = _json(folder, "metrics.json")
    missing = [key for key in NEEDED if metrics.get(key) is None]
    if "test/accuracy" in missing and metrics.get("val/accuracy") is not None:
        raise ValueError("not tested (test=false); a sweep ranks such runs by their validation scores in trials.csv")
    if missing:
        raise ValueError(f"metrics.json lacks {', '.join(missing)}")
    for key in (*TEXTS, *(OPTIONAL_TEXTS & metrics.keys())):
        value = metrics[key]
        is_name = isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable()
        _check(value is None or is_name, key, value, "a name")
    _check(metrics["budget"] in BUDGETS, "budget", metrics["budget"], " or ".join(BUDGETS))
    duplicates = metrics.get("drop_duplicates")
    _check(duplicates in (None, "train"), "drop_duplicates", duplicates, "train or null")
    check_numbers(metrics)
    temperature = metrics.get("temperature")
    fits = temperature is None or is_temperature(temperature)
    _check(fits, "temperature", temperature, f"from {COLDEST} to {HOTTEST}")
    return metrics


def check_numbers(metrics: Mapping[str, Any]) -> None:
    """Check that the numbers of ``metrics.json`` have possible values, and those of the validation images agree."""
    counts: Any = metrics.get("train/class_counts")
    is_complete = isinstance(counts, dict) and len(counts) > 1 and all(map(_is_count, counts.values()))
    _check(is_complete, "train/class_counts", counts, "a number of images for each class")
    for name in counts:
        _check(is_class_name(name), "train/class_counts", name, "the name of a class")
    for key, value in metrics.items():
        section, _, score = key.partition("/")
        if key in COUNTS or score in ("n", "steps"):  # not recall/n: a class may have that name
            _check(_is_count(value), key, value, "a whole number")
        elif key in ("temperature", "set_level") or (
            key != "train/class_counts" and section.startswith(("test", "train", "val"))
        ):
            _check(value is None or _is_number(value), key, value, "a number")
            low, high = limits(key, len(counts))
            fits = value is None or section == "train" or low <= value <= high
            _check(fits, key, value, f"{low:g} or more" if math.isinf(high) else f"a number from {low:g} to {high:g}")
            _check(key not in DURATIONS or value is None or value >= 0, key, value, "0 or more")
    if wrong := contradiction(metrics, "val/", list(counts)):  # those of test images are computed again
        raise ValueError(f"metrics.json: {wrong}")


def read_predictions(folder: Path, metrics: dict[str, Any]) -> pd.DataFrame:
    """``predictions.csv``, ordered by id, with ``label`` and ``prediction`` as class indices.

    Args:
        folder: the run folder.
        metrics: from ``read_metrics``, which the rows must agree with.
    """
    try:
        table = table_from_csv(read_predictions_csv(read_bytes(folder / "predictions.csv")))
    except FileNotFoundError:
        raise ValueError("no predictions.csv") from None
    except UserError as error:
        raise ValueError(_without(folder, error)) from None
    except Exception as error:  # pandas raises many types for what is not a csv
        raise ValueError(f"predictions.csv: {one_line(error)}") from None
    classes = tuple(metrics["train/class_counts"])
    chances = probability_columns(classes)
    missing = [name for name in (*COLUMNS, *chances) if name not in table]
    if missing:
        raise ValueError(f"predictions.csv lacks {', '.join(missing)}")
    if table.empty:
        raise ValueError("predictions.csv has no rows")
    test_sets(table, metrics)
    if table["id"].isna().any() or table["id"].duplicated().any():
        raise ValueError("predictions.csv has images without an id, or with the same one")
    if len(table) * int(table["id"].str.len().max()) * 4 > MAX_ID_BYTES:
        raise ValueError("predictions.csv has an id that is too long")
    if metrics.get("ids_hash") not in (None, ids_hash(table)):  # a comparison would take them for other images
        raise ValueError("predictions.csv has other ids than were written")
    table = table.sort_values("id", kind="stable", ignore_index=True)
    for name in ("label", "prediction"):
        table[name] = class_indices(table[name].tolist(), classes)
    for name in (*chances, "twin_group"):
        table[name] = _numbers(table[name])
    probabilities = table[chances].to_numpy()
    off = abs(probabilities.sum(axis=1) - 1)
    if (probabilities < 0).any() or (off > 100 * _rounding(probabilities)).any():
        raise ValueError("predictions.csv holds probabilities that do not sum to 1")
    if (table["twin_group"] % 1 != 0).any():
        raise ValueError("predictions.csv: twin_group holds values that are not whole numbers")
    table["twin_group"] = table["twin_group"].astype(np.int64)
    _check_scores(table, probabilities, metrics)
    return table


def _rounding(probabilities: np.ndarray) -> float:
    """What rounding explains: ``EXACT`` where most of these have more than six digits, as a run writes them."""
    inner = probabilities[(probabilities > 0) & (probabilities < 1)]
    step = 10.0 ** (np.floor(np.log10(inner)) - 5)
    longer = abs(np.round(inner / step) * step - inner) > 1e-12 * inner
    return EXACT if len(inner) and longer.mean() > 0.5 else ROUNDING


def _check_scores(table: pd.DataFrame, probabilities: np.ndarray, metrics: dict[str, Any]) -> None:
    """Check that ``metrics.json`` has the scores of ``predictions.csv``, whose numbers may be rounded."""
    rounding = _rounding(probabilities)
    labels, predicted = table["label"].to_numpy(np.int64), table["prediction"].to_numpy(np.int64)
    if (probabilities[np.arange(len(table)), predicted] < probabilities.max(axis=1) - rounding).any():
        raise ValueError("predictions.csv has predictions that are not the most probable class")
    for name, member in test_sets(table, metrics).items():
        if not member.any():
            continue
        matrix = confusion_matrix(labels[member], predicted[member], probabilities.shape[1])
        of_classes = dict(zip(("precision", "recall", "f1"), precision_recall_f1(matrix), strict=True))
        recall = of_classes["recall"]
        scores: dict[str, float | None] = {
            "accuracy": np.trace(matrix) / matrix.sum(),
            "balanced_accuracy": float(np.nanmean(recall)),
            "f1_macro": float(macro_f1(matrix)),
            "worst_recall": np.nanmin(recall),
            "ece": calibration_error(probabilities[member], labels[member]),
            **further_scores(probabilities[member], labels[member], matrix),
        }
        for score, values in of_classes.items():
            for each, value in zip(metrics["train/class_counts"], values, strict=True):
                scores |= {} if np.isnan(value) else {f"{score}/{each}": value}
        if (probabilities[member, labels[member]] > 0).all():  # one that was rounded to 0 costs 87 nats
            scores["nll"] = nll(probabilities[member], labels[member])
            if metrics.get("temperature") is not None:
                calibrated = apply_temperature(probabilities[member], metrics["temperature"])
                scores["nll_calibrated"] = nll(calibrated, labels[member])
                scores["ece_calibrated"] = calibration_error(calibrated, labels[member])
        for score, value in scores.items():
            given = metrics.get(f"{name}/{score}")
            # A low temperature magnifies what was rounded.
            magnified = max(1.0, 1 / metrics["temperature"]) if score.endswith("_calibrated") else RANKED.get(score, 1)
            if given is None or value is None:
                continue
            if not abs(value - given) <= 10 * rounding * magnified * max(1.0, value):
                raise ValueError(f"predictions.csv has {name}/{score} of {value:.4f}, metrics.json one of {given:.4f}")
        _check_coverage(matrix.sum(axis=1), name, metrics)


def _check_coverage(counts: np.ndarray, name: str, metrics: dict[str, Any]) -> None:
    """Check that the coverage of sets of classes is the mean of that of each class.

    Args:
        counts: images of each class, shape (C,).
        name: of the test set.
        metrics: ``metrics.json``.
    """
    of_classes = [metrics.get(f"{name}/set_coverage/{each}") for each in metrics["train/class_counts"]]
    given = metrics.get(f"{name}/set_coverage")
    if given is None or any(value is None and n for value, n in zip(of_classes, counts, strict=True)):
        return
    mean = sum(n * value for value, n in zip(of_classes, counts, strict=True) if n) / counts.sum()
    if abs(mean - given) > ROUNDING:
        raise ValueError(f"metrics.json has {name}/set_coverage of {given:.4f}, and of its classes {mean:.4f}")


def test_sets(table: pd.DataFrame, metrics: dict[str, Any]) -> dict[str, np.ndarray]:
    """Name of a test set -> bool, shape (n,): which rows belong to it."""
    members = {name: table[name].to_numpy() == 1 for name in table.columns if TEST_SET.fullmatch(name)}
    scored = {name for name, _, score in (key.partition("/") for key in metrics) if score == "n"}
    if lacking := sorted(filter(TEST_SET.fullmatch, scored - members.keys())):
        raise ValueError(f"predictions.csv lacks {', '.join(lacking)}, of which metrics.json has scores")
    for name, member in members.items():
        n = metrics.get(f"{name}/n")
        if n is not None and member.sum() != n:
            raise ValueError(f"predictions.csv has {member.sum()} rows of {name} but {name}/n is {n}")
    return members


def read_config(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """The composed configuration, flat (``optim.lr``), with its interpolations as written.

    Args:
        folder: the run folder.
        metrics: from ``read_metrics``, which the configuration must agree with.
    """
    try:
        content = read_yaml(folder / ".hydra" / "config.yaml")
    except FileNotFoundError:
        raise ValueError("no config.yaml") from None
    except UserError as error:
        raise ValueError(_without(folder, error)) from None
    groups = content if isinstance(content, dict) else {}
    missing = [name for name in SECTIONS if not (isinstance(groups.get(name), dict) and groups[name])]
    if missing:  # its settings would be those of another method
        raise ValueError(f"config.yaml lacks {', '.join(missing)}")
    config = flatten(groups)
    for key, setting in RECORDED.items():
        value = config.get(setting)
        is_open = isinstance(value, str) and "${" in value
        if value != metrics[key] and not is_open:
            raise ValueError(f"config.yaml has {setting}={str(value)[:40]}, metrics.json {key}={metrics[key]}")
    if config.get("data.name") == "synthetic" and metrics.get("synthetic") is not True:
        raise ValueError("config.yaml has data.name=synthetic, metrics.json synthetic=" + str(metrics.get("synthetic")))
    return config


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(folder / name)
    except FileNotFoundError:
        raise ValueError(f"no {name}") from None
    except UserError as error:
        raise ValueError(_without(folder, error)) from None


def _numbers(column: pd.Series) -> pd.Series:
    numbers = to_numbers(column)
    if not (np.isfinite(numbers) & (numbers.abs() <= LARGEST)).all():
        raise ValueError(f"predictions.csv: {column.name} holds values that are not numbers")
    return numbers


def _check(condition: object, key: str, value: object, accepted: str) -> None:
    check(condition, f"metrics.json: {key} is {str(value)[:40]}, not {accepted}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _without(folder: Path, error: UserError) -> str:
    """The reason without the run folder, which is named beside it."""
    return str(error).replace(f"{folder}/", "")
