"""The leakage audit: its counts, its files, and its messages."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from archives import image_files, tiny_faces, write_zip
from command_line import Outcome
from legs import every_third

from fer_lightning import audit
from fer_lightning.config.command_line import run_tool
from fer_lightning.data import synthetic
from fer_lightning.data.duplicates import find_duplicates, leaked, near_pairs
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces

TRAINING, PUBLIC, PRIVATE = range(3)
Tool = Callable[..., Outcome]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Tool:
    """``python -m fer_lightning.audit ...`` without the start of a process; runs in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            run_tool(lambda: audit.main(list(arguments)))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def seen_again(image: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same picture with other brightness and contrast, and noise as from JPEG."""
    noise = np.random.default_rng(seed).normal(0, 6, image.shape)
    return np.clip(0.8 * image + 20 + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def leaky() -> tuple[Faces, dict[str, int]]:
    """Faces with one case of each finding, and the index of each."""
    faces = tiny_faces(training=6, public=3, private=3)
    images, labels, usage = faces.images.copy(), faces.labels, faces.usage

    def pick(emotion: str, of: int, number: int = 0) -> int:
        return int(np.flatnonzero((labels == EMOTIONS.index(emotion)) & (usage == of))[number])

    at = {
        "known": pick("happy", TRAINING),
        "leaked": pick("happy", PRIVATE),
        "again": pick("happy", TRAINING, 1),
        "contradicted": pick("angry", PUBLIC),
        "contradicting": pick("fear", TRAINING),
        "plain": pick("sad", TRAINING),
        "near": pick("surprise", PRIVATE),
        "blank": pick("neutral", TRAINING),
    }
    images[at["leaked"]] = images[at["again"]] = images[at["known"]]
    images[at["contradicted"]] = images[at["contradicting"]]
    images[at["near"]] = seen_again(images[at["plain"]])
    images[at["blank"]] = 128
    made = Faces.from_arrays(images, labels, usage, faces.ids, kind="made up")
    return made, at


def test_every_finding_is_counted_and_listed(leaky: tuple[Faces, dict[str, int]]) -> None:
    faces, at = leaky
    result = find_duplicates(faces)
    expected = {
        "images": 84,
        "exact/redundant": 3,
        "exact/groups": 2,
        "exact/images": 5,
        "exact/conflicting_groups": 1,
        "exact/conflicting_images": 2,
        "exact/Training/redundant": 1,
        "exact/PublicTest/redundant": 0,
        "exact/PrivateTest/redundant": 0,
        "exact/PublicTest/in/Training": 1,
        "exact/PrivateTest/in/Training": 1,
        "exact/PrivateTest/in/PublicTest": 0,
        "near@0.95/pairs": 1,
        "near@0.95/groups": 1,
        "near@0.95/images": 2,
        "near@0.95/conflicting_groups": 1,
        "near@0.95/PrivateTest/in/Training": 2,
        "blank": 1,
    }
    assert {key: result.counts[key] for key in expected} == expected
    found = result.findings.set_index("id")
    assert len(found) == 8
    row = found.loc[faces.ids[at["leaked"]]]
    assert (row.usage, row.label, row.kind, row.conflict, row.twin_in) == (
        "PrivateTest",
        "happy",
        "exact",
        0,
        "Training",
    )
    assert found.loc[faces.ids[at["known"]]].twin_in == "Training PrivateTest"
    assert found.loc[faces.ids[at["contradicting"]]][["conflict", "twin_in"]].tolist() == [1, "PublicTest"]
    row = found.loc[faces.ids[at["near"]]]
    assert (row.kind, row.twin_in, row.conflict) == ("near", "Training", 1)
    assert 0.95 <= row.correlation < 1
    assert found.loc[faces.ids[at["blank"]]].kind == "blank"
    assert result.pairs[["one", "other"]].to_numpy().tolist() == [sorted([at["plain"], at["near"]])]
    assert leaked(faces, result, PRIVATE).loc["surprise"].tolist() == [3, 0, 1]
    assert leaked(faces, result, PRIVATE).sum().tolist() == [21, 1, 2]


def test_exact_counts_are_those_of_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    faces = tiny_faces(training=20, public=8, private=8)
    images = faces.images.copy()
    for copy in np.flatnonzero(rng.random(len(faces)) < 0.3):
        images[copy] = images[rng.integers(0, len(faces))]
    counts = find_duplicates(Faces.from_arrays(images, faces.labels, faces.usage, faces.ids, kind="x")).counts
    groups = defaultdict(list)
    for index, image in enumerate(images):
        groups[image.tobytes()].append(index)
    many = [group for group in groups.values() if len(group) > 1]
    assert len(many) > 20
    assert counts["exact/groups"] == len(many)
    assert counts["exact/redundant"] == sum(len(group) - 1 for group in many)
    assert counts["exact/conflicting_groups"] == sum(len(set(faces.labels[group])) > 1 for group in many)
    for usage in range(3):
        inside = [sum(faces.usage[group] == usage) for group in many]
        assert counts[f"exact/{USAGES[usage]}/redundant"] == sum(max(0, n - 1) for n in inside)
        for other in range(usage):
            count = sum(sum(faces.usage[group] == usage) for group in many if other in faces.usage[group])
            assert counts[f"exact/{USAGES[usage]}/in/{USAGES[other]}"] == count


def test_many_images_that_are_alike_take_memory_for_the_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures, each seen 300 times: dense blocks, and more pairs than are kept."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 200, (48, 48), dtype=np.uint8) for _ in range(3)]
    images = np.stack([np.clip(p + rng.integers(0, 6, p.shape), 0, 255) for p in pictures for _ in range(300)])
    parts = np.arange(900) % 2
    faces = Faces.from_arrays(images, np.arange(900) // 300, parts, np.arange(900).astype(str), kind="x")
    monkeypatch.setattr("fer_lightning.data.duplicates.MOST_PAIRS", 500)
    monkeypatch.setattr("fer_lightning.data.duplicates._COLUMNS", 512)
    dense = find_duplicates(faces)
    assert {key: dense.counts[f"near@0.95/{key}"] for key in ("pairs", "groups", "images")} == {
        "pairs": 3 * 300 * 299 // 2,
        "groups": 3,
        "images": 900,
    }
    assert (len(dense.pairs), dense.pairs_found) == (500, 3 * 150 * 150)
    assert (parts[dense.pairs["one"]] != parts[dense.pairs["other"]]).all()
    assert dense.pairs["correlation"].is_monotonic_decreasing
    monkeypatch.setattr("fer_lightning.data.duplicates._DENSE", 2)
    assert find_duplicates(faces).counts == dense.counts


@pytest.mark.slow
def test_hash_misses_no_near_duplicate_that_the_pixels_show() -> None:
    """Against all correlations, computed without a hash."""
    drawn = synthetic.draw(1200).images
    images = np.concatenate([drawn, [seen_again(image, seed) for seed, image in enumerate(drawn[:400])]])
    flat = images.reshape(-1, 24, 2, 24, 2).mean((2, 4)).reshape(len(images), -1)
    expected = np.argwhere(np.triu(np.corrcoef(flat) >= 0.95, 1))
    one, other, similarity = map(np.concatenate, zip(*near_pairs(images, np.arange(len(images)), 0.95), strict=True))
    assert {*map(tuple, expected.tolist())} == {*zip(one.tolist(), other.tolist(), strict=True)}
    assert len(expected) > 200
    np.testing.assert_allclose(similarity, np.corrcoef(flat)[one, other], atol=1e-5)


def test_command_prints_tables_and_writes_csv_and_picture(
    tool: Tool, leaky: tuple[Faces, dict[str, int]], tmp_path: Path
) -> None:
    faces, _ = leaky
    archive = write_zip(image_files(faces), tmp_path / "faces.zip")
    done = tool(f"data.path={archive}", "--out", "found/here")
    assert done.code == 0
    assert done.json["exact/PrivateTest/in/Training"] == 1
    assert done.json["out"] == "found/here"
    assert not done.json["synthetic"]
    assert "PrivateTest images that are in Training" in done.out
    assert "synthetic" not in done.out.rpartition("\n{")[0]
    table = pd.read_csv(tmp_path / "found/here/audit.csv")
    assert list(table) == ["id", "usage", "label", "kind", "group", "conflict", "twin_in", "correlation"]
    assert table["kind"].value_counts().to_dict() == {"exact": 5, "near": 2, "blank": 1}
    assert set(table["id"]) <= set(faces.ids)
    picture = cv2.imread(str(tmp_path / "found/here/audit.png"), cv2.IMREAD_GRAYSCALE)
    assert picture.shape[1] > 1500
    assert len(np.unique(picture)) > 100
    assert sorted(path.name for path in (tmp_path / "found/here").iterdir()) == ["audit.csv", "audit.png"]


def test_drawn_faces_are_called_synthetic(tool: Tool, tmp_path: Path) -> None:
    done = tool("data=synthetic", "data.source.images=200")
    assert done.code == 0
    assert done.json["synthetic"]
    assert done.json["exact/redundant"] == 0
    assert "drawn (synthetic) faces: these numbers say nothing about FER-2013" in done.out
    assert (tmp_path / "outputs/audit/audit.png").is_file()


def test_copy_without_file_name_prefixes_is_audited(
    tool: Tool, leaky: tuple[Faces, dict[str, int]], tmp_path: Path
) -> None:
    archive = write_zip(image_files(leaky[0], prefixes=False), tmp_path / "faces.zip")
    found = tool(f"data.path={archive}").json
    assert found["exact/Test/in/Training"] == 2
    assert "exact/PrivateTest/in/Training" not in found


def test_data_of_ones_own_are_audited_in_their_own_words(
    tool: Tool, leaky: tuple[Faces, dict[str, int]], tmp_path: Path
) -> None:
    faces, _ = leaky
    for index in range(0, len(faces), 3):
        part = ("train", "val", "test", "test")[faces.usage[index]]
        folder = tmp_path / "mine" / part / f"kind{faces.labels[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), faces.images[index])
    copied = next((tmp_path / "mine/train/kind0").iterdir())
    (tmp_path / "mine/test/kind0/copy.png").write_bytes(copied.read_bytes())
    done = tool("data=folder", f"data.path={tmp_path / 'mine'}")
    assert done.json["exact/test/in/train"] == 2  # the copy, and one that was there
    assert "test images that are in train" in done.out
    table = pd.read_csv(tmp_path / "outputs/audit/audit.csv")
    assert set(table["usage"]) <= {"train", "val", "test"}
    assert "Training" not in done.out


def test_classes_called_like_the_total_or_like_a_colour_are_counted_apart(
    tool: Tool, leaky: tuple[Faces, dict[str, int]], tmp_path: Path
) -> None:
    faces, _ = leaky
    names = ("all", "[red]", "total")
    for index in np.flatnonzero(faces.labels < 3):
        folder = tmp_path / "mine" / ("train", "val", "test", "test")[faces.usage[index]] / names[faces.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), faces.images[index])
    done = tool("data=folder", f"data.path={tmp_path / 'mine'}")
    rows = [line.replace("\u2502", " ").split() for line in done.out.splitlines()]
    counted = [row[:2] for row in rows if row and row[0] in names and row[1] != "classes"]
    assert counted == [[name, "3"] for name in sorted(names)] * 2
    assert [row[2] for row in rows if row[:2] == ["all", "classes"]] == ["9", "9"]


@pytest.mark.nightly
def test_command_is_a_module_of_its_own(forked: Callable[..., Outcome], tmp_path: Path) -> None:
    done = forked("data=synthetic", "data.source.images=200", "--out", "o", module="fer_lightning.audit")
    assert done.code == 0
    assert done.json["images"] == 200
    assert (tmp_path / "o/audit.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    every_third(
        [
            (["data=synthetic", "--correlation", "0.5"], "--correlation=0.5: out of range; accepted: 0.9 to below 1"),
            (["data=synthetic", "--correlation", "1"], "--correlation=1.0: out of range; accepted: "),
            (["data=synthetic", "--out", "file"], "--out=file: is a file; give a folder"),
            (
                ["data=synthetic", "data.source.images=200", "--out", "file/below"],
                "--out=file/below: cannot be written",
            ),
            (["data.path=nowhere.zip"], "data.path=nowhere.zip does not exist"),
            (["data=synthetic", "data.sauce=1"], "data.sauce: no such key"),
            (["data=synthetik"], r"data=synthetik: no such choice"),
            (["data=synthetic", "data.drop_duplicates=test"], "data.drop_duplicates=test: must be train"),
        ]
    ),
)
def test_mistakes_are_reported_in_one_line(arguments: list[str], message: str, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = tool(*arguments)
    assert done.code == 2
    assert message in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.real
@pytest.mark.nightly
def test_real_archive_has_the_known_findings(
    real_archive: Path, forked: Callable[..., Outcome], tmp_path: Path
) -> None:
    start = time.perf_counter()
    done = forked(f"data.path={real_archive}", "--out", "found", module="fer_lightning.audit")
    seconds = time.perf_counter() - start
    assert done.code == 0
    found = done.json
    expected = {
        "images": 35887,
        "exact/redundant": 1853,
        "exact/groups": 1516,
        "exact/images": 3369,
        "exact/conflicting_groups": 57,
        "exact/conflicting_images": 160,
        "exact/Training/redundant": 1236,
        "exact/PublicTest/redundant": 26,
        "exact/PrivateTest/redundant": 17,
        "exact/PublicTest/in/Training": 280,
        "exact/PrivateTest/in/Training": 288,
        "exact/PrivateTest/in/PublicTest": 44,
        "blank": 13,
    }
    assert {key: found[key] for key in expected} == expected
    # At 24x24 an independent count on 3,573 of the PrivateTest images found 320, 396 and 461.
    near = [found[f"near@{threshold}/PrivateTest/in/Training"] for threshold in (0.99, 0.97, 0.95)]
    assert near == pytest.approx([320, 396, 460], abs=2)
    table = pd.read_csv(tmp_path / "found/audit.csv")
    exact = table[table["kind"] == "exact"]
    twins = exact[(exact["usage"] == "PrivateTest") & exact["twin_in"].str.contains("Training")]
    by_class = twins["label"].value_counts()
    assert [by_class[emotion] for emotion in EMOTIONS] == [37, 16, 47, 28, 17, 118, 25]
    assert (table["kind"] == "blank").sum() == 13
    assert json.loads(done.out.splitlines()[-1])["synthetic"] is False
    assert seconds < 60 * (3 if os.environ.get("PYTEST_XDIST_WORKER") else 1)
