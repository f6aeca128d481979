"""Checkpoints that somebody else made or damaged: one line, in bounded memory."""

import copy
import io
import os
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legs import every_third

from fer_lightning.evaluation.scorecard import scorecard_line
from fer_lightning.model.archive_check import MAX_PICKLE
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import _check_weights_fit
from fer_lightning.runtime.errors import UserError

MODEL = {
    "name": "test_efficientnet",
    "weights": "none",
    "in_channels": 1,
    "image_size": 48,
    "first_image_size": None,
    "stem_stride": 1,
    "drop_path": 0.0,
    "head": {
        "hidden": [16],
        "activation": "ReLU",
        "batch_norm": True,
        "dropout": 0.1,
        "cosine_scale": None,
        "class_scale": False,
    },
    "freeze_epochs": 0,
    "compile": False,
}
CARD = {"test/accuracy": 0.5, "test/f1_macro": 0.4, "test/n": 10, "temperature": 1.5, "data": "fer2013"}
FUZZ = settings(
    max_examples=20,
    deadline=20_000,  # a hang, not a slow machine
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    database=None,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    model = EmotionClassifier(MODEL, {}, [1] * 7, {"data": {}}, {"data_hash": "abc"}, scorecard=CARD)
    return {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "epoch": 1, "global_step": 2}


def test_the_whole_one_is_read(whole: dict[str, Any], tmp_path: Path) -> None:
    torch.save(whole, tmp_path / "a.ckpt")
    assert "50.0 %" in scorecard_line(EmotionClassifier.load(tmp_path / "a.ckpt").hparams["scorecard"])


def hyper(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hyper_parameters"].__setitem__(key, value)


def model(**knobs: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hyper_parameters"]["model"].update(knobs)


def head(**knobs: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hyper_parameters"]["model"]["head"].update(knobs)


def weight(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["state_dict"].__setitem__(key, value)


def card(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hyper_parameters"].update(scorecard={**CARD, **values})


def aliases() -> list[Any]:
    node: list[Any] = ["x"] * 10
    for _ in range(10):
        node = [node] * 10
    return node


def loop() -> list[Any]:
    node: list[Any] = []
    node.append(node)
    return node


def sets(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """Entries of a scorecard for sets of classes, those of ``angry`` changed; without a value they are left out."""
    classes = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    parts = {"conformal": [0.2, 0.7], "conformal_n": 2, "prior": 1 / 7}
    entries: dict[str, Any] = {f"{part}/{name}": value for part, value in parts.items() for name in classes}
    for part, value in changes.items():
        entries[f"{part}/angry"] = value
    return card(**{key: value for key, value in entries.items() if value is not None})


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{
        f"{type(value).__name__} for the hyper-parameters": (
            lambda content, value=value: content.update(hyper_parameters=value),
            "its hyper-parameters are missing",
        )
        for value in (1, [[1]], "text", torch.zeros(2))
    },
    "no state": (lambda content: content.update(state_dict={}), "its state_dict is empty"),
    "a list for the state": (lambda content: content.update(state_dict=[1]), "state_dict"),
    "a number as a weight": (
        weight("network.bn1.weight", 3),
        r"network\.bn1\.weight in its state_dict is not a tensor",
    ),
    "another shape": (weight("network.bn1.weight", torch.zeros(200)), "do not fit together .*bn1.weight"),
    "weights of integers": (weight("network.bn1.weight", torch.zeros(24, dtype=torch.int8)), "is of type torch.int8"),
    "weights of complex numbers": (
        weight("network.bn1.weight", torch.zeros(24, dtype=torch.complex64)),
        r"bn1\.weight: is of type torch\.complex64",
    ),
    "a missing weight": (lambda content: content["state_dict"].pop("network.bn1.weight"), "the checkpoint only"),
    "one weight more": (weight("network.evil", torch.zeros(3)), "do not fit together"),
    "complex weights": (weight("network.evil\x1b", torch.zeros(3, dtype=torch.complex64)), "do not fit together"),
    "a sparse weight": (weight("w", torch.zeros(3).to_sparse()), "tensor of a special kind"),
    "an expanded weight": (weight("w", torch.zeros(1).expand(10**12)), "in a storage of 4"),
    "one storage many times": (
        lambda content: content["state_dict"].update(dict.fromkeys(map(str, range(9)), torch.zeros(10**6))),
        "more memory than the file",
    ),
    "aliases of aliases": (lambda content: content.update(extra=aliases()), "more than 500,000 values"),
    "a list that holds itself": (lambda content: content.update(extra=loop()), "a value holds itself"),
    "a set": (lambda content: content.update(extra={1}), "it makes a set"),
    "six classes": (hyper("class_counts", [1] * 6), "class_counts"),
    "countless images": (hyper("class_counts", [10**30] * 7), "class_counts"),
    "negative counts": (hyper("class_counts", [-1] * 7), "class_counts"),
    "no model": (hyper("model", None), "hyper-parameter model is not a mapping"),
    "an empty model": (hyper("model", {}), "model"),
    "a model of another name": (model(name="resnet18"), "has 11,188,236 weights, and the checkpoint only"),
    "a model from the net": (model(name="hf-hub:evil/model"), "not an image classifier of timm"),
    "a huge model": (model(name="efficientnet_l2"), "model.name=efficientnet_l2: has 47"),
    "a wider head": (head(hidden=[10**9]), "the checkpoint only"),
    "a head of text": (head(hidden="x"), r"model\.head\.hidden"),
    "an activation that is none": (head(activation="Linear"), "is not an activation"),
    "an activation of pictures": (head(activation="Softmax2d"), "is not an activation"),
    "an activation without a function": (head(activation="Module"), "is not an activation"),
    "an activation that halves": (head(activation="GLU"), "is not an activation"),
    "a head of many layers": (head(hidden=[1] * 500), r"head\.hidden=\[500 widths\]: at most 20 layers"),
    "colour in one channel": (hyper("form", {"size": 48, "color": True}), "must be 3 for colour images"),
    "negative image size": (model(image_size=-5), "image_size is -5, not a number of pixels"),
    "an image size of text": (model(image_size="48"), "image_size is '48', not a number of pixels"),
    "a configuration of many values": (model(many=[1] * 5_000), "model has more than 5,000 values"),
    "huge image size": (model(image_size=10**7), "at most 2048"),
    "channels": (model(in_channels=2), "must be 1 or 3"),
    "unknown knob": (model(evil=1), "evil"),
    "provenance of text": (hyper("provenance", "x"), "provenance"),
    "provenance of numbers": (hyper("provenance", {"data_hash": 1}), "data_hash"),
    "adjusted by a list": (hyper("adjusted", [1]), "adjusted"),
    "a score of text": (card(**{"test/accuracy": "good"}), "its scorecard has test/accuracy='good'"),
    "a score of 400 digits": (card(**{"test/nll": 10**400}), "it holds a whole number of 1,329 bits"),
    "an accuracy above 1": (card(**{"test/accuracy": 1e9}), "its scorecard has test/accuracy='1000000000.0'"),
    "a recall below 0": (card(**{"test/recall/sad": -0.1}), "its scorecard has test/recall/sad='-0.1'"),
    "a score of nan": (card(**{"test/nll": float("nan")}), "its scorecard has test/nll"),
    "a likelihood above 1": (card(**{"test/nll_calibrated": -0.1}), "its scorecard has test/nll_calibrated='-0.1'"),
    "sets of more classes than there are": (card(**{"test/set_size": 7.5}), "its scorecard has test/set_size='7.5'"),
    "sets for fewer than no images": (card(set_level=-0.9), "its scorecard has set_level='-0.9'"),
    "a level of text": (card(set_level="0.9"), "its scorecard has set_level='0.9'"),
    "no f1": (card(**{"test/f1_macro": None}), "scorecard is incomplete"),
    "escape codes in the scorecard": (card(data="\x1b[31m"), "its scorecard has data="),
    "a temperature of 0": (card(temperature=0), "temperature is 0, not from 0.05 to 20"),
    "a temperature of nearly 0": (card(temperature=1e-320), "temperature is 1e-320, not from 0.05"),
    "sets of some classes": (sets(prior=None), "its sets are incomplete"),
    "sets of one class": (card(**{"prior/angry": 0.5}), "its sets are incomplete"),
    "a set of text": (sets(conformal="x"), "conformal/angry in its scorecard is not a list"),
    "a set of whole numbers": (sets(conformal=[0, 1]), "is not a list of ascending numbers"),
    "a set in disorder": (sets(conformal=[0.7, 0.2]), "is not a list of ascending numbers"),
    "a set of nan": (sets(conformal=[float("nan"), 0.2]), "is not a list of ascending numbers"),
    "a long set": (sets(conformal=[0.5] * 300, conformal_n=300), "is not a list of ascending numbers"),
    "a set of too few images": (sets(conformal_n=1), "conformal_n/angry in its scorecard is 1, not a number"),
    "a set of countless images": (sets(conformal_n=10**30), "conformal_n/angry in its scorecard is 10000"),
    "an empty set of images": (sets(conformal=[]), "conformal_n/angry in its scorecard is 2, not a number"),
    "a share of 0": (sets(prior=0.0), "prior/angry in its scorecard is not a share"),
    "bytes in the configuration": (hyper("config", {"seed": b"1"}), "its hyper-parameters hold bytes"),
    "bytes in the adjustment": (hyper("adjusted", {"by": [b"1"]}), "its hyper-parameters hold bytes"),
    "a tensor in the adjustment": (hyper("adjusted", {"by": torch.zeros(2)}), "hold bytes or tensors"),
    "a tensor in the provenance": (
        hyper("provenance", {"data_hash": "0", "x": torch.zeros(2)}),
        "hold bytes or tensors",
    ),
    "a hash of weights that is none": (
        lambda content: content["hyper_parameters"]["provenance"].update(weights_hash=[1]),
        "its provenance has a weights_hash that is none",
    ),
    "a negative step": (lambda content: content.update(global_step=-1), "its global_step is -1"),
    "an epoch of text": (lambda content: content.update(epoch="x"), "its epoch is 'x'"),
}


@pytest.mark.parametrize("case", every_third(WRONG))
def test_wrong_content_is_one_line(case: str, whole: dict[str, Any], tmp_path: Path) -> None:
    change, reason = WRONG[case]
    content = {**whole, "state_dict": dict(whole["state_dict"])}
    content["hyper_parameters"] = copy.deepcopy(whole["hyper_parameters"])
    change(content)
    torch.save(content, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match=reason) as caught:
        EmotionClassifier.load(tmp_path / "wrong.ckpt")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def paths_of(node: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = [path for key in node for path in paths_of(node[key], (*above, key))] if isinstance(node, dict) else []
    return [above, *inner] if above else inner


PLACES = paths_of({"model": MODEL, "optim": {}, "class_counts": [], "config": {}, "provenance": {}, "scorecard": CARD})


@FUZZ
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_hyper_parameter(place: tuple[str, ...], value: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(whole)
    node = content["hyper_parameters"]
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    torch.save(content, tmp_path / "wrong.ckpt")
    with suppress(UserError):
        loaded = EmotionClassifier.load(tmp_path / "wrong.ckpt")
        scorecard_line(loaded.hparams["scorecard"])
        if loaded.image_size <= 96:
            loaded(torch.zeros(1, *loaded.form.shape, dtype=torch.uint8))


@FUZZ
@given(content=st.binary(max_size=300), name=st.sampled_from(["data.pkl", "data/0", "byteorder"]))
def test_any_bytes(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.ckpt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "parts.ckpt", "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr(f"archive/{name}", content)
    for file in ("bytes.ckpt", "parts.ckpt"):
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / file)


def test_a_bomb_is_not_unpacked(whole: dict[str, Any], tmp_path: Path) -> None:
    torch.save({**whole, "w": torch.zeros(2_000_000)}, tmp_path / "big.ckpt")
    with zipfile.ZipFile(tmp_path / "big.ckpt") as stored, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", 8) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="is compressed, which no checkpoint is"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_parts_that_share_their_bytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:  # a directory that names the same bytes many times
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist += [largest] * 20
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="claims to hold more"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["config", "provenance", "scorecard"])
def test_a_deep_configuration_is_refused(whole: dict[str, Any], tmp_path: Path, key: str) -> None:
    """Reading it would take a line of the traceback for each level."""
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"x": deep}
    hyper = {**whole["hyper_parameters"]}
    hyper[key] = {**(hyper[key] or {}), "x": deep}
    torch.save({**whole, "hyper_parameters": hyper}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="more than 30 containers within each other"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_long_pickle_is_not_read(tmp_path: Path) -> None:
    torch.save({"x": b"x" * (MAX_PICKLE + 1)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="besides its tensors"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_many_pickles_are_bounded_together(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        for number in range(4):
            archive.writestr(f"archive/{number}.pkl", b"\x80\x02" + b"N0" * (MAX_PICKLE // 4) + b"N.")
    with pytest.raises(UserError, match="besides its tensors"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("size", [2**28, 2**33])
@pytest.mark.parametrize("name", ["a.ckpt", "a.pth", "a.safetensors"])
def test_a_file_of_holes_is_not_read(name: str, size: int, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(b"PK\x03\x04" if name == "a.ckpt" else b"\x80\x02")
        os.fsync(file.fileno())
        file.truncate(size)
    read = read_checkpoint if name == "a.ckpt" else partial(_check_weights_fit, "test_efficientnet")
    with pytest.raises(UserError, match=r"damaged, .* has few on the disk"):
        read(tmp_path / name)


def shared_tuples(levels: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(levels):
        value = (value, value)
    return value


class Made:
    """Unpickled as the outcome of a call, with attributes where they are given."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


EQUAL_HASHES = [k * (2**61 - 1) for k in range(1, 100)]
LATE: dict[str, tuple[Any, str]] = {
    "an array": (Made(bytearray, (2**34,)), "it makes a bytearray"),
    "shared tuples": (shared_tuples(40), "it holds a tuple of more than 10,000"),
    "keys of one hash": (dict.fromkeys(EQUAL_HASHES), "a key that is neither a text nor a small whole number"),
    "tuples as keys": ({(1, 2): 3}, "a key that is neither a text nor a small whole number"),
    "a set": (set(EQUAL_HASHES), "it makes a set"),
    "pairs": (Made(OrderedDict, ([(k, 0) for k in EQUAL_HASHES],)), "a dictionary of a list"),
    "a counter": (Made(Counter, (EQUAL_HASHES,)), "a dictionary of a list"),
    "attributes": (Made(OrderedDict, (), [(k, 0) for k in EQUAL_HASHES]), "attributes that are no dictionary"),
}


@pytest.mark.parametrize("key", [None, "state_dict", "hyper_parameters"])
@pytest.mark.parametrize("name", ["get", "keys", "values"])
def test_attributes_in_place_of_methods_are_refused(
    key: str | None, name: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    """An OrderedDict and a tensor are unpickled with any attributes."""
    made = OrderedDict(whole if key is None else whole[key])
    setattr(made, name, 1)
    torch.save(made if key is None else {**whole, key: made}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: damaged, it holds a OrderedDict with attributes"):
        read_checkpoint(tmp_path / "a.ckpt")
    made = OrderedDict(whole["state_dict"])
    made._metadata = OrderedDict()  # type: ignore[attr-defined]
    setattr(made._metadata, name, 1)  # type: ignore[attr-defined]
    torch.save({**whole, "state_dict": made}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: damaged, it holds a OrderedDict with attributes"):
        read_checkpoint(tmp_path / "a.ckpt")
    tensor = torch.zeros(2)
    setattr(tensor, name, 1)
    torch.save({**whole, "more": tensor}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: damaged, it holds a Tensor with attributes"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("case", LATE)
def test_a_value_that_takes_memory_or_time_as_it_is_made_is_refused(
    case: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    value, reason = LATE[case]
    torch.save({**whole, "more": value}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=rf"a\.ckpt: damaged, .*{reason}"):
        read_checkpoint(tmp_path / "a.ckpt")


def zip_parts(members: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Members and directory of a zip, without its end."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    end = file.getvalue()[-22:]
    size, place = struct.unpack("<II", end[12:20])
    return file.getvalue()[:place], file.getvalue()[place : place + size]


def replaced_pickle(path: Path) -> dict[str, bytes]:
    """The members of a checkpoint, with a pickle that would fill the memory."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return {name: BYTEARRAY if name.lower().endswith("data.pkl") else content for name, content in members.items()}


BYTEARRAY = b"\x80\x02c__builtin__\nbytearray\nJ" + struct.pack("<i", 1_500_000_000) + b"\x85R."


def test_two_zips_in_one_file_are_not_read(whole: dict[str, Any], tmp_path: Path) -> None:
    """``zipfile`` would check one of them, and torch read the other."""
    path = tmp_path / "a.ckpt"
    torch.save(whole, path)
    with zipfile.ZipFile(path) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    (members, directory), (others, other) = zip_parts(good), zip_parts(replaced_pickle(path))
    count, place = len(good), len(members)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), place, 0)
    (tmp_path / "one.ckpt").write_bytes(members + directory + end)
    read_checkpoint(tmp_path / "one.ckpt")
    path.write_bytes(others + bytes(place - len(others)) + other + members + directory + end)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(UserError, match=r"a\.ckpt: not a checkpoint, or a damaged one"):
        read_checkpoint(path)


def test_a_pickle_before_a_zip_is_not_read(whole: dict[str, Any], tmp_path: Path) -> None:
    """torch would read it, and not the zip."""
    torch.save(whole, tmp_path / "a.ckpt")
    with (tmp_path / "b.ckpt").open("wb") as file:
        file.write(BYTEARRAY)
        with zipfile.ZipFile(tmp_path / "a.ckpt") as good, zipfile.ZipFile(file, "w") as archive:
            for name in good.namelist():
                archive.writestr(name, good.read(name))
    with pytest.raises(UserError, match=r"b\.ckpt: not a checkpoint, or a damaged one"):
        read_checkpoint(tmp_path / "b.ckpt")


def test_a_pickle_is_checked_however_its_name_is_written(whole: dict[str, Any], tmp_path: Path) -> None:
    """torch looks for the names without regard to case."""
    path = tmp_path / "a.ckpt"
    torch.save(whole, path)
    members = replaced_pickle(path)
    for rename in (lambda name: name, lambda name: name.replace("data.pkl", "DATA.PKL")):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(rename(name), content)
        with pytest.raises(UserError, match=r"a\.ckpt: damaged, it makes a bytearray"):
            read_checkpoint(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(next(name for name in members if name.endswith("data.pkl")), b"")
    with pytest.raises(UserError, match=r"a\.ckpt: not a checkpoint, or a damaged one"):
        read_checkpoint(path)


def test_plain_values_are_read(whole: dict[str, Any], tmp_path: Path) -> None:
    torch.save({**whole, "more": [shared_tuples(4), {0: OrderedDict(a=1)}, 2**100]}, tmp_path / "a.ckpt")
    read_checkpoint(tmp_path / "a.ckpt")
