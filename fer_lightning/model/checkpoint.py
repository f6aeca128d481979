"""Reading a checkpoint safely, and writing one atomically.

A checkpoint may come from anybody. Before torch reads it, the archive is checked: nothing is compressed and no part
claims more than the file holds, so that memory is bounded by the size of the file. After that every value is checked:
tensors lie densely in their storage, and containers do not multiply.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fer_lightning.config.yaml_files import MAX_DEPTH
from fer_lightning.data.faces import EMOTIONS, is_class_name
from fer_lightning.metrics.calibration import COLDEST, HOTTEST, is_temperature
from fer_lightning.metrics.conformal import MOST_KEPT
from fer_lightning.metrics.names import contradiction, limits
from fer_lightning.model.archive_check import check_archive
from fer_lightning.runtime.errors import UserError, check, one_line
from fer_lightning.runtime.files import MAX_BITS, replace_file_by

HYPER_PARAMETERS = {
    "model",
    "optim",
    "class_counts",
    "classes",
    "config",
    "provenance",
    "adjusted",
    "scorecard",
    "form",
    "members",
}
"""What every checkpoint holds of its model; see ``EmotionClassifier``."""

OPTIONAL = {"classes": list(EMOTIONS), "form": None, "members": None}
"""What not every checkpoint holds, and what its absence means: other classes, other images, members of an ensemble."""

MAX_MEMBERS = 100
"""Maximum members of an ensemble."""

SIDES = range(8, 4097)
"""Sides of the images that a model may have been trained on, in pixels."""

MAX_SETTINGS = 5_000
"""Maximum values of each of the configurations in a checkpoint; a run's has some 200."""

MAX_VALUES = 500_000
"""Maximum number of values, with those counted again that are referred to several times."""

MAX_IMAGES = 10**9
"""Maximum number of images of a class, so that sums of them fit NumPy's whole numbers."""

LONGEST_TEXT = 200
"""Maximum characters of a text in a scorecard."""

SCORES, SCORES_OF, PRIOR = "conformal/", "conformal_n/", "prior/"
"""Entries of a scorecard for each class: scores of validation images, their number, and the share assumed."""


class StoredModel(NamedTuple):
    """A checkpoint that was read: its file, and the content as from ``read_checkpoint``."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "StoredModel":
        """Read it; raises as ``read_checkpoint``."""
        return cls(path, read_checkpoint(path))


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex digest of the names and values of a model's weights and batch statistics, 128 bits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        UserError: when the file is missing, damaged, not a checkpoint of this project, or needs unsafe loading.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a run's checkpoints/best.ckpt")
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch each raise their own
        if type(error).__name__ == "UnpicklingError":
            raise UserError(f"{path}: would run code when it is loaded, and is refused") from error
        raise UserError(f"{path}: not a checkpoint, or a damaged one; give a run's checkpoints/best.ckpt") from error
    # Not its own ``get``, which an attribute may replace until ``check_values``.
    hyper = dict.get(checkpoint, "hyper_parameters") if isinstance(checkpoint, dict) else None
    is_ours = isinstance(hyper, dict) and set(hyper) >= HYPER_PARAMETERS - set(OPTIONAL)
    if not is_ours or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of fer_lightning (its hyper-parameters are missing)")
    try:
        check_values(checkpoint, path.stat().st_size)
        _check_types(checkpoint)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, {one_line(error)}; give a run's checkpoints/best.ckpt") from None
    return checkpoint


def check_values(checkpoint: Mapping[str, Any], size: int) -> None:
    """Check that all values are plain or dense tensors, and few enough.

    Args:
        checkpoint: what was read.
        size: bytes of the file.

    Raises:
        ValueError: naming what is not.
    """
    counts: dict[int, int] = {}
    tensor_bytes = 0

    def count(node: Any) -> int:
        nonlocal tensor_bytes
        attributes = getattr(node, "__dict__", {})
        if set(attributes) - {"_metadata"}:  # which may take the place of its methods
            raise ValueError(f"it holds a {type(node).__name__} with attributes")
        if isinstance(node, Tensor):
            tensor_bytes += _bytes(node)
            if tensor_bytes > 2 * size:
                raise ValueError("its tensors would take more memory than the file has bytes")
            return 1
        if not isinstance(node, dict | list | tuple):
            if not isinstance(node, str | int | float | bytes | None):
                raise ValueError(f"it holds a {type(node).__name__}")
            if isinstance(node, int) and node.bit_length() > MAX_BITS:
                raise ValueError(f"it holds a whole number of {node.bit_length():,} bits")
            return 1
        if counts.get(id(node)) == 0:
            raise ValueError("a value holds itself")
        if id(node) not in counts:
            counts[id(node)] = 0
            children = [*node.keys(), *node.values(), *attributes.values()] if isinstance(node, dict) else node
            total = 1
            for child in children:
                total += count(child)
                if total > MAX_VALUES:
                    raise ValueError(f"it holds more than {MAX_VALUES:,} values")
            counts[id(node)] = total
        return counts[id(node)]

    count(checkpoint)


def _bytes(tensor: Tensor) -> int:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError("it holds a tensor of a special kind")
    size = tensor.numel() * tensor.element_size()
    if tensor.is_quantized or size > tensor.untyped_storage().nbytes():
        raise ValueError(f"it holds a tensor of {size:,} bytes in a storage of {tensor.untyped_storage().nbytes():,}")
    return size


def _check_types(checkpoint: dict[str, Any]) -> None:
    """Raise ValueError unless weights and hyper-parameters are what this project writes."""
    state, hyper = checkpoint["state_dict"], checkpoint["hyper_parameters"]
    check(isinstance(state, dict) and state, "its state_dict is empty")
    for key, value in state.items():
        check(isinstance(key, str) and isinstance(value, Tensor), f"{str(key)[:80]} in its state_dict is not a tensor")
    _check_hyper_parameters(hyper)
    if hyper["members"] is not None:
        _check_members(hyper)
    for key in ("epoch", "global_step"):
        number = checkpoint.get(key, 0)
        check(type(number) is int and number >= 0, f"its {key} is {repr(number)[:40]}, not a whole number")


def _check_members(hyper: dict[str, Any]) -> None:
    """Raise ValueError unless the members of an ensemble are models of the same classes and images."""
    members = hyper["members"]
    check(
        isinstance(members, list) and 2 <= len(members) <= MAX_MEMBERS, f"it does not have 2 to {MAX_MEMBERS} members"
    )
    for member in members:
        is_one = isinstance(member, dict) and set(member) >= HYPER_PARAMETERS - set(OPTIONAL)
        check(is_one and set(member) <= HYPER_PARAMETERS, "a member lacks hyper-parameters, or has unknown ones")
        _check_hyper_parameters(member)
        check(member["members"] is None, "a member is an ensemble")
        check(list(member["classes"]) == list(hyper["classes"]), "its members have other classes")
        check(member["form"] == hyper["form"], "its members have images of other sizes")


def _size(node: Any) -> int:
    """Number of values in nested containers."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else None
    return 1 if children is None else 1 + sum(map(_size, children))


def _depth(node: Any) -> int:
    """Number of containers within each other."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else None
    return 0 if children is None else 1 + max(map(_depth, children), default=0)


def _holds_binary(node: Any) -> bool:
    """Whether there are bytes or tensors in nested containers, which no file of text can hold."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return isinstance(node, bytes | Tensor) or any(map(_holds_binary, children))


def _check_hyper_parameters(hyper: dict[str, Any]) -> None:
    for key in ("model", "optim", "config", "provenance"):
        is_mapping = isinstance(hyper[key], dict) and all(isinstance(name, str) for name in hyper[key])
        check(is_mapping, f"its hyper-parameter {key} is not a mapping")
        check(_size(hyper[key]) <= MAX_SETTINGS, f"its hyper-parameter {key} has more than {MAX_SETTINGS:,} values")
    deep = [key for key, value in hyper.items() if key != "members" and _depth(value) > MAX_DEPTH]
    check(not deep, f"its hyper-parameters have more than {MAX_DEPTH} containers within each other")
    size = hyper["model"].get("image_size")
    check(type(size) is int and size > 0, f"its model.image_size is {repr(size)[:40]}, not a number of pixels")
    for key in ("adjusted", "scorecard"):
        check(hyper[key] is None or isinstance(hyper[key], dict), f"its hyper-parameter {key} is not a mapping")
    check(not any(map(_holds_binary, hyper.values())), "its hyper-parameters hold bytes or tensors")
    check(isinstance(hyper["provenance"].get("data_hash"), str), "its provenance has no data_hash")
    for key in ("weights_hash", "first_stage_hash"):  # written to metrics.json as they are
        value = hyper["provenance"].get(key)
        is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{1,64}", value)
        check(value is None or is_hash, f"its provenance has a {key} that is none")
    counts = hyper["class_counts"]
    are_counts = isinstance(counts, list) and all(type(count) is int and 0 <= count <= MAX_IMAGES for count in counts)
    for key, value in OPTIONAL.items():
        hyper.setdefault(key, value)
    form = hyper["form"]
    known = form is None or (isinstance(form, dict) and set(form) == {"size", "color"})
    check(known and (form is None or (type(form["size"]) is int and form["size"] in SIDES)), "its form is unknown")
    check(form is None or type(form["color"]) is bool, "its form is unknown")
    classes = hyper["classes"]
    named = (
        isinstance(classes, list | tuple) and all(map(is_class_name, classes)) and len(set(classes)) == len(classes) > 1
    )
    check(named, "its classes are not names")
    check(are_counts and len(counts) == len(classes), f"class_counts are not those of {len(classes)} classes")
    _check_scorecard(hyper["scorecard"] or {}, classes)
    _check_reference(hyper["scorecard"] or {}, classes)


def _check_scorecard(card: dict[Any, Any], classes: Sequence[str]) -> None:
    for key, value in card.items():
        if isinstance(key, str) and key.startswith(SCORES):
            continue  # lists, see _check_reference
        is_text = isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable()
        is_number = isinstance(value, int | float) and math.isfinite(value)
        is_score = isinstance(key, str) and ("/" in key or key in ("temperature", "set_level"))
        fits = value is None or (is_number and not isinstance(value, bool) if is_score else is_number or is_text)
        low, high = limits(key, len(classes)) if is_score else (-math.inf, math.inf)
        in_range = not is_number or low <= value <= high
        check(isinstance(key, str) and fits and in_range, f"its scorecard has {str(key)[:80]}={str(value)[:40]!r}")
    if card.get("test/accuracy") is not None:
        complete = card.get("test/f1_macro") is not None and type(card.get("test/n")) is int and card["test/n"] > 0
        check(complete, "its scorecard is incomplete")
    for prefix in ("test/", "test_dedup/"):
        wrong = contradiction(card, prefix, classes)
        check(wrong is None, f"its scorecard's {wrong}")
    given = card.get("temperature")
    check(given is None or is_temperature(given), f"its temperature is {given}, not from {COLDEST} to {HOTTEST}")


def _check_reference(card: dict[Any, Any], classes: list[str]) -> None:
    """Raise ValueError unless a scorecard has sorted scores, their number and a prior of all classes, or of none."""
    entries = {key for key in card if isinstance(key, str) and key.startswith((SCORES, SCORES_OF, PRIOR))}
    if not entries:
        return
    check(
        entries == {part + name for part in (SCORES, SCORES_OF, PRIOR) for name in classes}, "its sets are incomplete"
    )
    for name in classes:
        scores, count, share = (card[part + name] for part in (SCORES, SCORES_OF, PRIOR))
        listed = isinstance(scores, list) and len(scores) <= MOST_KEPT and all(type(each) is float for each in scores)
        ordered = listed and all(0 <= a <= b <= 1 for a, b in zip([0.0, *scores], [*scores, 1.0], strict=True))
        check(ordered, f"{SCORES}{name} in its scorecard is not a list of ascending numbers from 0 to 1")
        whole = type(count) is int and len(scores) <= count <= MAX_IMAGES and bool(scores) == bool(count)
        check(whole, f"{SCORES_OF}{name} in its scorecard is {str(count)[:40]}, not a number of images")
        check(type(share) is float and 0 < share <= 1, f"{PRIOR}{name} in its scorecard is not a share")


def write_checkpoint(path: Path, checkpoint: dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint so that it appears whole or not at all; ``keep`` as in ``replace_file``."""
    replace_file_by(path, lambda file: torch.save(checkpoint, file), keep)
