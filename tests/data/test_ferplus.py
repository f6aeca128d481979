"""FER+ votes: labels, soft targets, the ceiling, and what can be matched to which images."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from archives import csv_text, image_files, tiny_faces, write_zip
from command_line import TINY, Outcome, only_run
from legs import every_third

from fer_lightning import evaluate
from fer_lightning.config.command_line import run_tool
from fer_lightning.data import fer2013, synthetic
from fer_lightning.data.classes import match_classes, select_classes
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.ferplus import CATEGORIES, ceiling, load_eight, plurality, read_votes, relabel
from fer_lightning.runtime.errors import UserError

FACES = tiny_faces(training=4, public=2, private=2)
DRAWN = 400

MICROSOFT_ORDER = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
)


def ballot(**votes: int) -> list[int]:
    return [votes.get(name, 0) for name in CATEGORIES]


def clear(labels: np.ndarray) -> list[list[int]]:
    """Nine votes for the label, one for neutral (or all ten)."""
    return [[9 * (k == label) + (k == 6) for k in range(len(CATEGORIES))] for label in labels]


def write_votes(path: Path, ids: Sequence[str], ballots: Sequence[Sequence[int]]) -> Path:
    """Votes keyed by path, with a column that is not needed."""
    table = pd.DataFrame(np.array(ballots), columns=CATEGORIES)
    table.insert(0, "path", list(ids))
    table.insert(1, "ambiguous", 0)
    table.to_csv(path, index=False)
    return path


def write_microsoft(
    path: Path, usage: np.ndarray, ballots: Sequence[Sequence[int]], unnamed: Sequence[int] = ()
) -> Path:
    """``fer2013new.csv``: as many rows as fer2013.csv, of which those that are no faces have no name."""
    lines = [f"Usage,Image name,{','.join(MICROSOFT_ORDER)}"]
    for number, (use, votes) in enumerate(zip(usage, ballots, strict=True)):
        by_name = dict(zip(CATEGORIES, votes, strict=True))
        name = "" if number in unnamed else f"fer{number:07d}.png"
        counts = [str(by_name[category.lower()]) for category in MICROSOFT_ORDER]
        lines.append(",".join([USAGES[use], name, *counts]))
    path.write_text("\n".join(lines) + "\n")
    return path


def exchange_lines(path: Path, one: int, other: int) -> None:
    lines = path.read_text().splitlines()
    lines[one], lines[other] = lines[other], lines[one]
    path.write_text("\n".join(lines) + "\n")


def test_majority_keeps_what_one_emotion_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ballots = clear(FACES.labels)
    ballots[0] = ballot(anger=4, fear=3, unknown=3)
    ballots[1] = ballot(anger=5, fear=5)
    ballots[2] = ballot(contempt=6, sadness=4)
    ballots[3] = ballot(unknown=10)
    ballots[4] = ballot(nf=9, happiness=1)
    ballots[5] = ballot()
    ballots[6] = ballot(surprise=3, contempt=2, unknown=2, nf=2)
    path = write_votes(tmp_path / "votes.csv", FACES.ids[:-1], ballots[:-1])
    made = relabel(FACES, str(path), "majority")
    assert made.ids.tolist() == [FACES.ids[0], *FACES.ids[6:-1]]
    assert [EMOTIONS[label] for label in made.labels[:2]] == ["angry", "surprise"]
    np.testing.assert_array_equal(made.labels[2:], FACES.labels[7:-1])
    np.testing.assert_array_equal(made.images[1], FACES.images[6])
    np.testing.assert_array_equal(made.usage[2:], FACES.usage[7:-1])
    assert (made.label_source, made.soft) == ("ferplus", None)
    assert made.data_hash != FACES.data_hash
    assert "FER+ labels 50 of 56 images (left out: 2 without votes, 1 tied, 3 seen as contempt" in caplog.text


def test_soft_targets_are_the_shares_of_the_emotions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ballots = clear(FACES.labels)
    ballots[0] = ballot(anger=4, fear=3, disgust=1, contempt=1, unknown=1)
    ballots[1] = ballot(anger=3, fear=2, contempt=2, unknown=2, nf=1)
    ballots[2] = ballot(anger=4, contempt=3, unknown=3)
    ballots[3] = ballot(anger=5, fear=5)
    path = write_votes(tmp_path / "votes.csv", FACES.ids, ballots)
    made = relabel(FACES, str(path), "soft")
    assert made.ids.tolist() == [*FACES.ids[:2], *FACES.ids[4:]]
    assert made.soft is not None
    assert made.soft.dtype == np.float32
    np.testing.assert_allclose(made.soft[0], [4 / 8, 1 / 8, 3 / 8, 0, 0, 0, 0])
    np.testing.assert_allclose(made.soft[1], [0.6, 0, 0.4, 0, 0, 0, 0])
    np.testing.assert_allclose(made.soft.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(made.soft.argmax(axis=1), made.labels)
    assert "1 tied, 1 with less than half of the votes for an emotion" in caplog.text
    assert FACES.ids[2] in relabel(FACES, str(path), "majority").ids


def test_other_soft_targets_are_other_data(tmp_path: Path) -> None:
    hashes = []
    for neutral in (1, 1, 2):  # the majority is the same
        ballots = [[9 * (k == label) + neutral * (k == 6) for k in range(len(CATEGORIES))] for label in FACES.labels]
        path = str(write_votes(tmp_path / "votes.csv", FACES.ids, ballots))
        hashes.append([relabel(FACES, path, targets).data_hash for targets in ("soft", "majority")])
    assert hashes[0] == hashes[1]
    assert hashes[0][0] != hashes[2][0]
    assert hashes[0][1] == hashes[2][1]
    soft = relabel(FACES, path, "soft")
    assert match_classes(soft, ("happy", "sad")).soft is None


def test_twins_and_order_survive(tmp_path: Path) -> None:
    images = FACES.images.copy()
    images[30] = images[10]
    faces = Faces.from_arrays(images, FACES.labels, FACES.usage, FACES.ids, kind="x")
    ballots = clear(faces.labels)
    ballots[0] = ballot(nf=10)
    shuffled = np.random.default_rng(0).permutation(len(faces))
    path = write_votes(tmp_path / "votes.csv", faces.ids[shuffled], [ballots[k] for k in shuffled])
    made = relabel(faces, str(path), "majority")
    np.testing.assert_array_equal(made.labels, faces.labels[1:])
    assert made.twins[29] == made.twins[9]
    assert len(np.unique(made.twins)) == len(made) - 1


@pytest.mark.parametrize("layout", ["fer2013", "icml"])
def test_microsofts_rows_are_those_of_the_csv(layout: str, tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").write_text(csv_text(FACES, layout))
    faces = fer2013.read(tmp_path / "fer2013.csv")
    ballots = clear(faces.labels)
    ballots[7] = ballot(fear=10)
    path = write_microsoft(tmp_path / "fer2013new.csv", faces.usage, ballots, unnamed=[3])
    made = relabel(faces, str(path), "majority")
    assert made.ids.tolist() == [f"row {number}" for number in range(1, 57) if number != 4]
    assert EMOTIONS[made.labels[6]] == "fear"
    np.testing.assert_array_equal(np.delete(made.labels, 6), np.delete(faces.labels, [3, 7]))


def votes_of(faces: Faces, path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    table = pd.read_csv(write_votes(path, faces.ids, clear(faces.labels)), dtype=object)
    change(table).to_csv(path, index=False)
    return path


def text_of(faces: Faces, path: Path) -> str:
    return write_votes(path, faces.ids, clear(faces.labels)).read_text()


def with_open_quote(text: str, row: int, end: int | None = None) -> str:
    """A quote before one row (from 0), closed after the path of a later one, or never."""
    header, *lines = text.splitlines()
    lines[row] = f'"{lines[row]}'
    if end is not None:
        lines[end] = lines[end].replace(",", '",', 1)
    return "\n".join([header, *lines]) + "\n"


BAD_VOTES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, r"cannot be read \(No such file or directory\); give fer2013new\.csv"),
    "folder": (lambda path: path.mkdir(), r"is not a regular file; give fer2013new\.csv"),
    "pipe": (os.mkfifo, r"is not a regular file"),
    "far too large": (lambda path: os.truncate(path, 2**40) if path.touch() is None else None, r"it is damaged; give"),
    "more columns than named": (
        lambda path: path.write_text(f"path,{','.join(CATEGORIES)}\na.jpg{',1' * (len(CATEGORIES) + 1)}\n"),
        r"row 1: has more columns than the first line names",
    ),
    "empty": (lambda path: path.touch(), r"has no column anger"),
    "binary": (lambda path: path.write_bytes(bytes(range(256)) * 9), r"is not a csv that can be read|has no column"),
    "header alone": (
        lambda path: path.write_text("path," + ",".join(CATEGORIES)),
        r"has no rows; give fer2013new\.csv",
    ),
    "column missing": (lambda path: votes_of(FACES, path, lambda table: table.drop(columns="fear")), "no column fear"),
    "no key": (lambda path: votes_of(FACES, path, lambda table: table.drop(columns="path")), "has no column usage"),
    "negative": (lambda path: votes_of(FACES, path, lambda table: table.replace("9", "-9")), r"row 1: anger=-9; votes"),
    "fraction": (lambda path: votes_of(FACES, path, lambda table: table.replace("9", "0.9")), r"row 1: anger=0\.9"),
    "word": (lambda path: votes_of(FACES, path, lambda table: table.replace("9", "many")), r"row 1: anger=many"),
    "a number of 401 digits": (
        lambda path: votes_of(FACES, path, lambda table: table.replace("9", "9" * 401)),
        r"row 1: anger=9+ \.\.\. 9+; votes",
    ),
    "hole": (lambda path: votes_of(FACES, path, lambda table: table.replace("9", "")), r"row 1: anger=nothing"),
    "true and false": (
        lambda path: votes_of(FACES, path, lambda table: table.replace({"9": "True", "0": "False", "1": "True"})),
        r"row 1: anger=True; votes are whole numbers",
    ),
    "a quote that is closed six rows later": (
        lambda path: path.write_text(with_open_quote(text_of(FACES, path), 3, 9)),
        r"row 4: a cell has several lines: close each quote, and write a row as one line",
    ),
    "a quote that is not closed": (
        lambda path: path.write_text(with_open_quote(text_of(FACES, path), 3)),
        r"after row 3: cannot be read \(unexpected end of data\): close each quote",
    ),
    "a row without its path": (
        lambda path: votes_of(FACES, path, lambda table: table.replace(FACES.ids[4], "")),
        r"row 5: its path is empty; correct it, or remove the row",
    ),
    "a row that is cut short": (
        lambda path: (
            votes_of(FACES, path, lambda table: table[[*CATEGORIES, "path"]].replace(FACES.ids[4], "\0"))
            and path.write_text(path.read_text().replace(",\0", ""))
        ),
        r"row 5: its path is empty; correct it, or remove the row",
    ),
    "a null character in a path": (
        lambda path: votes_of(FACES, path, lambda table: table.replace(FACES.ids[4], f"{FACES.ids[4]}\0x")),
        r"row 5: its path has a null character; correct it, or remove the row",
    ),
    "a header of very many separators": (
        lambda path: path.write_text(text_of(FACES, path).replace("\n", "," * 1_000_000 + "\n", 1)),
        r"row 1: has more columns than the first line names",
    ),
    "a row of very many separators": (
        lambda path: path.write_text(text_of(FACES, path).replace("\n", "," * 1_000_000 + "\n", 2)),
        r"row 1: has more columns than the first line names",
    ),
    "a column twice": (
        lambda path: path.write_text(f"path,anger,{','.join(CATEGORIES)}\na.jpg,9{',1' * len(CATEGORIES)}\n"),
        "has the column anger twice; remove or rename one of them",
    ),
    "a column twice in another case": (
        lambda path: path.write_text(f"path, Anger,{','.join(CATEGORIES)}\na.jpg,9{',1' * len(CATEGORIES)}\n"),
        "has the column anger twice",
    ),
    "usage twice": (
        lambda path: path.write_text(
            f"Usage,usage,image name,{','.join(CATEGORIES)}\nTraining,Training,a{',1' * len(CATEGORIES)}\n"
        ),
        "has the column usage twice",
    ),
    "twice": (
        lambda path: votes_of(FACES, path, lambda table: pd.concat([table, table.tail(1)])),
        r"names train/surprise/Training_\d+\.jpg twice",
    ),
    "other images": (
        lambda path: write_votes(path, [f"row {k + 1}" for k in range(56)], clear(FACES.labels)),
        r"names images such as 'row 1', the data such as 'test/angry/\w+\.jpg': none can be matched",
    ),
    "rows for names": (
        lambda path: write_microsoft(path, FACES.usage, clear(FACES.labels)),
        r"names no files, so it cannot be matched to the tiny; give data\.path=fer2013\.csv",
    ),
    "rows in another order": (
        lambda path: exchange_lines(write_microsoft(path, FACES.usage, clear(FACES.labels)), 3, 5),
        r"row 3: names fer0000004\.png, the image of row 5; give the file in the order that Microsoft's has",
    ),
    "nobody agrees": (
        lambda path: write_votes(path, FACES.ids, [ballot(anger=5, fear=5)] * 56),
        r"leaves no image with a label \(56 tied\)",
    ),
}


@pytest.mark.parametrize("case", BAD_VOTES)
def test_bad_votes_are_reported_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD_VOTES[case]
    path = tmp_path / "votes.csv"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        relabel(FACES, str(path), "majority")
    assert str(caught.value).startswith(f"labels.votes={path}")
    assert "\n" not in str(caught.value)


def test_votes_for_another_csv_are_refused(tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").write_text(csv_text(FACES))
    faces = fer2013.read(tmp_path / "fer2013.csv")
    ballots = clear(faces.labels)
    path = write_microsoft(tmp_path / "votes.csv", faces.usage[:-1], ballots[:-1])
    with pytest.raises(UserError, match=r"has 55 rows, and the data 56: .* fit only the whole fer2013.csv"):
        relabel(faces, str(path), "majority")
    path = write_microsoft(tmp_path / "votes.csv", faces.usage[::-1], ballots)
    with pytest.raises(UserError, match=r"row 1: is Training there and PrivateTest in the data, which are not in the"):
        relabel(faces, str(path), "majority")


def test_plurality_is_unique_or_none() -> None:
    counts = np.array([ballot(anger=1), ballot(nf=9, fear=1), ballot(anger=2, neutral=2), ballot()])
    assert plurality(counts).tolist() == [0, 9, -1, -1]


def test_ceiling_by_hand(tmp_path: Path) -> None:
    cases = {
        "a": ("angry", ballot(anger=10)),
        "b": ("angry", ballot(anger=4, fear=6)),
        "c": ("angry", ballot(anger=5, fear=5)),
        "d": ("angry", ballot(neutral=10)),
        "e": ("happy", ballot(happiness=6, contempt=4)),
        "f": ("happy", ballot(contempt=6, happiness=4)),
        "g": ("sad", ballot(fear=5, anger=5)),
    }
    path = write_votes(tmp_path / "votes.csv", list(cases), [votes for _, votes in cases.values()])
    asked = [*cases, "without votes"]
    table = ceiling(asked, [*(label for label, _ in cases.values()), "angry"], path).set_index("class")
    assert list(table.index) == list(EMOTIONS)
    assert table["n"].tolist() == [4, 0, 0, 2, 1, 0, 0]
    assert table["agreement"].round(4).tolist()[:4:3] == [0.3333, 0.5]
    assert table["zero_votes"].tolist()[:5:4] == [0.25, 1.0]
    assert table["agreement"].isna().sum() == 5
    assert table["zero_votes"].isna().sum() == 4
    with pytest.raises(UserError, match=r"names images such as 'a', and none such as 'x'"):
        ceiling(["x"], ["angry"], path)


@pytest.fixture
def drawn_votes(tmp_path: Path) -> Path:
    """Votes for the drawn faces of ``TINY``: every third angry face is seen as fear, every fifth face by nobody."""
    faces = synthetic.draw(DRAWN)
    ballots = clear(faces.labels)
    for number in np.flatnonzero(faces.labels == 0)[::3]:
        ballots[number] = ballot(fear=7, anger=3)
    for number in range(0, len(faces), 5):
        ballots[number] = ballot(unknown=10)
    return write_votes(tmp_path / "votes.csv", faces.ids, ballots)


@pytest.fixture
def evaluated(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``python -m fer_lightning.evaluate ...`` without the start of a process."""

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            run_tool(lambda: evaluate.main(list(arguments)))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("targets", every_third(["majority", "soft"]))
def test_run_and_evaluation_use_the_votes(
    targets: str,
    drawn_votes: Path,
    cli: Callable[..., Outcome],
    evaluated: Callable[..., Outcome],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = cli(*TINY, "labels=ferplus", f"labels.votes={drawn_votes}", f"labels.targets={targets}")
    assert done.code == 0, done.err
    folder = only_run(tmp_path)
    expected = relabel(synthetic.draw(DRAWN), str(drawn_votes), targets)
    table = pd.read_csv(folder / "predictions.csv").set_index("id")
    test = np.flatnonzero(expected.usage == 2)
    assert sorted(table.index) == sorted(expected.ids[test])
    assert table.loc[expected.ids[test], "label"].tolist() == [EMOTIONS[k] for k in expected.labels[test]]
    caplog.clear()
    again = evaluated(str(folder / "checkpoints/best.ckpt"))
    assert again.json["test/n"] == len(test)
    assert again.json["test/accuracy"] == done.json["test/accuracy"]
    assert "not the images the model was trained with" not in caplog.text
    drawn_votes.rename(tmp_path / "moved.csv")
    again = evaluated(str(folder / "checkpoints/best.ckpt"))
    assert f"labels.votes={drawn_votes}: cannot be read (No such file or directory)" in again.error
    again = evaluated(str(folder / "checkpoints/best.ckpt"), f"labels.votes={tmp_path / 'moved.csv'}")
    assert again.json["test/accuracy"] == done.json["test/accuracy"]


@pytest.mark.nightly
def test_duplicates_stay_dropped_as_in_the_training(
    cli: Callable[..., Outcome], evaluated: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert cli(*TINY).code == 0
    path = only_run(tmp_path) / "checkpoints/best.ckpt"
    assert "data.drop_duplicates: cannot be changed" in evaluated(str(path), "data.drop_duplicates=train").error


@pytest.mark.parametrize(
    ("arguments", "message"),
    every_third(
        [
            (
                ["labels=ferplus"],
                r"labels.votes=null: labels=ferplus needs the votes; give fer2013new.csv of https://github",
            ),
            (["labels=ferplus", "labels.votes=no.csv"], "labels.votes=no.csv: no such file; give fer2013new.csv"),
            (["labels.votes=votes.csv"], "labels.votes=votes.csv: labels=fer has no votes; use labels=ferplus"),
            (["labels.targets=soft"], "labels.targets=soft: labels=fer has no votes; use labels=ferplus"),
            (
                ["labels=ferplus", "labels.votes=votes.csv", "labels.targets=mean"],
                "labels.targets=mean: must be majority",
            ),
            (["labels=ferplus", "labels.votes=[a,b]"], "labels.votes"),
            (["labels=plus"], "labels=plus: no such choice"),
            (
                ["data=folder", "data.path=.", "data.only=[happy,sad]", "labels=ferplus", "labels.votes=votes.csv"],
                "labels=ferplus: has FER+'s votes for FER-2013's images, and data=folder its own labels",
            ),
        ]
    ),
)
def test_choice_of_labels_is_checked_before_anything_is_written(
    arguments: list[str], message: str, drawn_votes: Path, cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    done = cli(*TINY, *arguments)
    assert done.code == 2
    assert message in done.error
    assert not (tmp_path / "outputs").exists()


def test_kaggle_archive_takes_votes_by_path(tmp_path: Path) -> None:
    archive = write_zip(image_files(FACES), tmp_path / "faces.zip")
    path = write_votes(tmp_path / "votes.csv", FACES.ids, clear((FACES.labels + 1) % 7))
    made = relabel(fer2013.read(archive), str(path), "majority")
    np.testing.assert_array_equal(made.labels, (FACES.labels + 1) % 7)


@pytest.fixture
def real_votes() -> Path:
    path = os.environ.get("FERPLUS_VOTES")
    if not path:
        pytest.skip("FERPLUS_VOTES is not set: give the FER+ votes keyed by the paths of the Kaggle archive")
    return Path(path)


@pytest.mark.nightly
@pytest.mark.real
def test_real_votes_relabel_the_real_archive(
    real_archive: Path, real_votes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    faces = fer2013.load(str(real_archive), str(tmp_path))
    majority, soft = (relabel(faces, str(real_votes), targets) for targets in ("majority", "soft"))
    assert len(majority) == len(soft) == 33498
    assert np.bincount(majority.labels).tolist() == [3025, 228, 813, 9199, 4222, 4240, 11771]
    assert "left out: 175 without votes, 1,776 tied, 438 seen as contempt, unknown or no face" in caplog.text
    assert soft.soft is not None
    np.testing.assert_array_equal(soft.soft.argmax(axis=1), soft.labels)


@pytest.mark.nightly
@pytest.mark.real
def test_real_ceiling(real_archive: Path, real_votes: Path, tmp_path: Path) -> None:
    """Against an independent match of the votes to the images, which leaves out 179 ambiguous ones."""
    faces = fer2013.load(str(real_archive), str(tmp_path))
    names = np.array(EMOTIONS)[faces.labels]
    table = ceiling(faces.ids, names.tolist(), real_votes)
    assert table["n"].sum() == 35712
    assert (100 * table["agreement"]).tolist() == pytest.approx([50.2, 34.5, 13.8, 92.8, 42.9, 81.7, 87.0], abs=0.5)
    assert np.average(table["zero_votes"], weights=table["n"]) == pytest.approx(0.159, abs=0.001)
    votes = read_votes(real_votes)
    chosen = plurality(votes[list(CATEGORIES)].reindex(faces.ids, fill_value=0).to_numpy())
    one_of_seven = (chosen >= 0) & (chosen < len(EMOTIONS))
    assert np.mean((chosen == faces.labels)[one_of_seven]) == pytest.approx(0.657, abs=0.0005)
    private = faces.usage == 2
    assert np.mean((chosen == faces.labels)[private & (chosen >= 0)]) == pytest.approx(0.647, abs=0.003)


@pytest.mark.slow
@pytest.mark.real
def test_eight_emotions_of_the_real_archive(real_archive: Path, real_votes: Path) -> None:
    faces = load_eight(str(real_archive), str(real_votes))
    counts = dict(zip(faces.classes, faces.count(), strict=True))
    assert faces.classes[-1] == "contempt"
    assert 100 < counts["contempt"] < 300
    chosen = select_classes(faces, None, ["contempt", "happy"])
    assert chosen.count() == [counts["contempt"], counts["happy"]]


def test_eight_emotions_need_votes() -> None:
    with pytest.raises(UserError, match=r"data\.votes is missing; give data\.votes=fer2013new\.csv"):
        load_eight(None, None)
