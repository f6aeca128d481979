"""Run folders that somebody else made or damaged: each is left out of a comparison and named."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legs import every_third
from run_folders import write_run

from fer_lightning.comparison.analysis import analyse, analyse_folders
from fer_lightning.comparison.runs import LONGEST_REASON, find_runs, read_run, read_runs
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.evaluation.run_files import NEEDED
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.metrics.names import SCORES, SHARES
from fer_lightning.report.sections import sections
from fer_lightning.runtime.errors import UserError

FILES = ("status.json", "metrics.json", "predictions.csv", ".hydra/config.yaml")
COUNTS = (4, 2, 3, 3, 3, 3, 3)
FUZZ = settings(
    max_examples=50,
    deadline=20_000,  # a hang, not a slow machine
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    database=None,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = (*NEEDED, "temperature", "git_commit", "precision", "train/seconds", "test/nll", "test_dedup/n", "synthetic")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "good", "focal", counts=COUNTS)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return write_run(tmp_path / "bad", counts=COUNTS)


def read_or_refuse(good: Path, folder: Path) -> None:
    """What is not refused by ``read_run`` can be compared with a good run and reported."""
    with suppress(ValueError, UserError):
        sections(analyse([read_run(folder), read_run(good)]))


@pytest.mark.nightly
@FUZZ
@given(
    file=st.sampled_from(FILES), content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_in_any_file(file: str, content: bytes, good: Path, bad: Path) -> None:
    before = (bad / file).read_bytes()
    (bad / file).write_bytes(content)
    read_or_refuse(good, bad)
    (bad / file).write_bytes(before)


@pytest.mark.slow
@FUZZ
@given(key=st.sampled_from(KEYS), value=JSON)
def test_any_value_of_any_key(key: str, value: object, good: Path, bad: Path) -> None:
    file = bad / "metrics.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), key: value}))
    read_or_refuse(good, bad)
    file.write_text(before)


@pytest.mark.slow
@FUZZ
@given(
    row=st.integers(0, 21),
    column=st.integers(0, 13),
    cell=st.text(max_size=12) | st.floats().map(str) | st.just("1e999"),
)
def test_any_cell_of_predictions(row: int, column: int, cell: str, good: Path, bad: Path) -> None:
    file = bad / "predictions.csv"
    before = file.read_bytes()
    lines = [line.split(",") for line in before.decode().splitlines()]
    lines[row][column] = cell
    file.write_bytes("\n".join(",".join(line) for line in lines).encode(errors="surrogatepass"))
    read_or_refuse(good, bad)
    file.write_bytes(before)


def change(**values: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        file = folder / "metrics.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), **{k.replace("__", "/"): v for k, v in values.items()}})
        )

    return write


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def setting(folder: Path, **groups: object) -> None:
    file = folder / ".hydra" / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **groups}))


def folder_for(file: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return replace


def link_to(file: str, target: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    return replace


def pipe_for(file: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return replace


def add_area(folder: Path, off: float = 0.0) -> None:
    table = pd.read_csv(folder / "predictions.csv")
    chances = table[[f"p_{name}" for name in EMOTIONS]]
    scores = classification_metrics(chances, [EMOTIONS.index(name) for name in table["label"]], EMOTIONS)
    change(test__auroc_macro=scores["test/auroc_macro"] + off)(folder)


def other_area(folder: Path) -> None:
    """As with exchanged columns of probabilities, whose predictions are still the most probable classes."""
    add_area(folder)
    read_run(folder)
    add_area(folder, off=-0.0001)


def moved_between_classes(folder: Path) -> None:
    """The rows sum to 1, and their predictions keep their probabilities."""
    add_area(folder)
    change_rows(lambda p: p.mean() * np.linspace(0.5, 1.5, len(p)), rows=5)(folder)


def change_rows(
    values: Callable[[np.ndarray], np.ndarray], rows: int = 1, rounded: bool = False
) -> Callable[[Path], object]:
    """Change the probabilities of the first rows but the largest, in their order."""

    def write(folder: Path) -> None:
        table = pd.read_csv(folder / "predictions.csv")
        columns = [f"p_{name}" for name in EMOTIONS]
        for number in range(rows):
            row = table.loc[number, columns].to_numpy(float, copy=True)
            others = np.argsort(row)[:-1]
            row[others] = values(row[others])
            table.loc[number, columns] = row
        table.to_csv(folder / "predictions.csv", index=False, float_format="%.4f" if rounded else None)

    return write


def column(name: str, values: Callable[[int], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        table = pd.read_csv(folder / "predictions.csv")
        table[name] = [values(row) for row in range(len(table))]
        table.to_csv(folder / "predictions.csv", index=False)

    return write


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a list for metrics": (text("metrics.json", "[]"), "not a JSON object"),
    "lists in lists": (text("metrics.json", "[" * 200_000), "damaged"),
    "a number of 5000 digits": (text("metrics.json", '{"seed": ' + "9" * 5000 + "}"), "damaged"),
    "empty metrics": (text("metrics.json", ""), "damaged"),
    "a folder for metrics": (folder_for("metrics.json"), "not a regular file"),
    "a pipe for metrics": (pipe_for("metrics.json"), "not a regular file"),
    "a list for the seed": (change(seed=[1]), r"seed is \[1\], not a whole number"),
    "a seed that is true": (change(seed=True), "seed is True"),
    "a method that is a number": (change(imbalance=7), "imbalance is 7, not a name"),
    "a method with escape codes": (change(imbalance="\x1b[31mred"), "imbalance is"),
    "a long method": (change(imbalance="x" * 10_000), "not a name"),
    "an unknown budget": (change(budget="time"), "not steps or epochs"),
    "a score as text": (change(test__f1_macro="0.5"), "f1_macro is 0.5, not a number"),
    "a huge score": (change(test__accuracy=1e300), "not a number"),
    "a score of 55": (change(test__f1_macro=55), "not a number from 0 to 1"),
    "sets of eight classes": (change(test__set_size=8), "test/set_size is 8, not a number from 0 to 7"),
    "a level above 1": (change(set_level=1.5), r"set_level is 1\.5, not a number from 0 to 1"),
    "a likelihood above 1": (change(test__nll_calibrated=-0.1), r"test/nll_calibrated is -0\.1, not 0 or more"),
    "a score of NaN": (change(test__f1_macro=float("nan")), "f1_macro is nan"),
    "another temperature": (change(temperature=0.1, test__nll_calibrated=1.0), "nll_calibrated of"),
    "a coverage that is not that of its classes": (
        change(test__set_coverage=0.5, **{f"test__set_coverage__{emotion}": 0.9 for emotion in EMOTIONS}),
        "test/set_coverage of 0.5000, and of its classes 0.9000",
    ),
    "another accuracy": (change(test__accuracy=0.99), "metrics.json one of 0.9900"),
    "a list for drop_duplicates": (change(drop_duplicates=["train"]), "drop_duplicates is .* not train or null"),
    "a fold that is no number": (
        lambda folder: setting(folder, split={"name": "official", "fold": "${imbalance.name}"}),
        "split.fold=",
    ),
    "counts of one emotion": (change(train__class_counts={"happy": 1}), "class_counts"),
    "counts as text": (change(train__class_counts=dict.fromkeys(EMOTIONS, "1")), "class_counts"),
    "negative seconds": (change(train__seconds=-3), "train/seconds is -3"),
    "steps of a half": (change(train__steps=0.5), "train/steps is 0.5"),
    "a temperature of 0": (change(temperature=0), "temperature is 0"),
    "status of a list": (text("status.json", "[1]"), "not a JSON object"),
    "status of a number": (text("status.json", '{"status": 3}'), "3"),
    "no predictions": (lambda folder: (folder / "predictions.csv").unlink(), "no predictions.csv"),
    "a folder for predictions": (folder_for("predictions.csv"), "not a regular file"),
    "predictions of bytes": (
        lambda folder: (folder / "predictions.csv").write_bytes(bytes(range(256))),
        "predictions.csv",
    ),
    "predictions without rows": (
        lambda folder: text("predictions.csv", (folder / "predictions.csv").read_text().split("\n")[0])(folder),
        "no rows",
    ),
    "infinite probabilities": (column("p_sad", lambda row: np.inf), "p_sad holds values that are not numbers"),
    "negative probabilities": (column("p_sad", lambda row: -1), "do not sum to 1"),
    "a digit of a probability": (change_rows(lambda p: p * 1.001), "do not sum to 1"),
    "probabilities of rows exchanged": (moved_between_classes, "auroc_macro of"),
    "words as probabilities": (column("p_sad", lambda row: "x"), "p_sad holds values that are not numbers"),
    "a number of 401 digits": (column("twin_group", lambda row: "9" * 401), "twin_group holds values that are not"),
    "probabilities of other classes": (other_area, "auroc_macro of"),
    "a group of a half": (column("twin_group", lambda row: 1.5), "twin_group holds values that are not whole"),
    "groups of NaN": (column("twin_group", lambda row: np.nan), "twin_group holds"),
    "huge groups": (column("twin_group", lambda row: 1e300), "twin_group holds"),
    "ids that repeat": (column("id", lambda row: "a"), "with the same one"),
    "an id of a million letters": (column("id", lambda row: f"{row}" * (1 if row else 10**7)), "too long"),
    "labels of another data set": (column("label", lambda row: "cat"), "'cat' is not one of"),
    "rows of no test set": (column("test", lambda row: 0), "0 rows of test"),
    "aliases of aliases": (text(".hydra/config.yaml", ALIASES), "aliases"),
    "no configuration": (lambda folder: shutil.rmtree(folder / ".hydra"), "no config.yaml"),
    "a configuration of one key": (text(".hydra/config.yaml", "seed: 0"), "config.yaml lacks data, split, imbalance"),
    "a configuration that is a list": (text(".hydra/config.yaml", "- seed"), "config.yaml lacks data, split"),
    "a configuration without its training": (
        lambda folder: setting(folder, trainer=None),
        "config.yaml lacks trainer",
    ),
    "another run's configuration": (
        lambda folder: setting(folder, imbalance={"name": "focal"}),
        "config.yaml has imbalance.name=focal, metrics.json imbalance=none",
    ),
    "a configuration that is no YAML": (text(".hydra/config.yaml", "a: [b"), "expected"),
    "a setting written a second time": (
        lambda folder: (folder / ".hydra/config.yaml").open("a").write("'optim': {lr: 9}\n"),
        "duplicate key",
    ),
    "a key twice": (
        lambda folder: text("metrics.json", (folder / "metrics.json").read_text().replace("{", '{"seed": 7,', 1))(
            folder
        ),
        "the key 'seed' occurs twice",
    ),
    "predictions of 300,000 columns": (text("predictions.csv", "id" + "," * 300_000 + "\n"), "has 300,001 columns"),
    "a first row longer than the header": (
        lambda folder: text(
            "predictions.csv", (folder / "predictions.csv").read_text().replace("\n", "\n" + "7," * 9000, 1)
        )(folder),
        "and at most 5,000 are read",
    ),
    "a column twice": (
        lambda folder: text(
            "predictions.csv",
            "".join(
                f"{row},{'label' if not number else 'happy'}\n"
                for number, row in enumerate((folder / "predictions.csv").read_text().splitlines())
            ),
        )(folder),
        "has column 'label' twice",
    ),
    "a first row of one value more": (
        lambda folder: text("predictions.csv", (folder / "predictions.csv").read_text().replace("\n", "\n7,", 1))(
            folder
        ),
        "and its first row",
    ),
    "metrics of 5 MB": (lambda folder: change(more="x" * 5_000_000)(folder), "more than 4194304; it is damaged"),
    "the memory of a process for metrics": (link_to("metrics.json", "/proc/self/mem"), "cannot be read"),
}


@pytest.mark.parametrize("case", every_third(MALFORMED))
def test_a_malformed_run_is_left_out_and_named(case: str, good: Path, bad: Path) -> None:
    damage, reason = MALFORMED[case]
    damage(bad)
    with pytest.raises(ValueError, match=reason) as caught:
        read_run(bad)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    runs, skipped = read_runs([bad, good])
    assert [run.folder for run in runs] == [good]
    assert list(skipped) == [bad]


def test_linked_and_unreadable_folders_are_left_out_and_named(good: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sweep" / "closed").mkdir(parents=True)
    shutil.copytree(good, tmp_path / "sweep" / "own")
    for name, target in (("run", good), ("runs", good.parent), ("notes", tmp_path)):
        (tmp_path / "sweep" / name).symlink_to(target)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    runs, skipped = read_runs(find_runs([tmp_path / "sweep"]))
    assert [run.folder.name for run in runs] == ["own"]
    reasons = {folder.name: reason for folder, reason in skipped.items()}
    assert set(reasons) == {"closed", "run", "runs"}
    assert reasons["run"] == f"is a link, which is not followed; give the folder {good} itself"


@pytest.mark.parametrize("module", ["compare", "ensemble"])
def test_links_to_themselves_are_one_line(good: Path, tmp_path: Path, forked, module: str) -> None:
    """Path.resolve raises RuntimeError for them."""
    sweep = tmp_path / "sweep"
    shutil.copytree(good, sweep / "run")
    for loop in (tmp_path / "loop", sweep / "report"):
        loop.symlink_to(loop.name)
    for places in (["loop", "loop/run"], [str(good), "loop"], ["sweep"]):
        done = forked(*places, module=f"fer_lightning.{module}")
        assert done.code == 2
        assert done.error.startswith("error: ")


def test_a_reason_is_of_bounded_length(good: Path, bad: Path) -> None:
    (bad / "status.json").write_text(json.dumps({"status": ["x" * 3_000_000]}))
    assert len(read_runs([bad, good])[1][bad]) <= LONGEST_REASON


def test_a_reason_does_not_repeat_a_line_of_a_file(bad: Path) -> None:
    """The file may be a link to a private one, and the reason becomes part of a report that others read."""
    private = bad / "private.yaml"
    private.write_text("api_token: s3cr3tvalue: more\n")
    link_to(".hydra/config.yaml", str(private))(bad)
    with pytest.raises(ValueError, match=r"mapping values are not allowed here \(line 1, column 23\)$") as caught:
        read_run(bad)
    assert "s3cr3t" not in str(caught.value)


def test_a_key_with_a_dot_is_another_setting(good: Path, bad: Path) -> None:
    """As in the place of the setting that it looks like, it would hide that the runs differ, or that they do not."""
    setting(bad, **{"optim.lr": 9.0})
    run, other = read_run(bad), read_run(good)
    assert run.settings["optim.lr"] == other.settings["optim.lr"]
    assert run.settings["[optim.lr]"] == "9.0"


def test_rounded_predictions_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", counts=COUNTS)
    change_rows(lambda p: p, rounded=True)(folder)
    assert pd.read_csv(folder / "predictions.csv", dtype=str)["p_sad"].str.len().max() == len("0.1234")
    read_run(folder)


def test_scores_are_checked_under_their_own_names() -> None:
    assert set(SCORES) - {"nll"} <= set(SHARES)


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    write_run(tmp_path / "run\udce9\x1b[31m", counts=COUNTS)
    comparison = analyse_folders([tmp_path])
    assert comparison.runs[0].name.endswith(r"/run\udce9\x1b[31m")
    assert find_runs([tmp_path])


def test_folders_of_any_depth_are_searched(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "deep" / "run")
    subprocess.run(["mkdir", "-p", tmp_path.joinpath("deep", *["a"] * 1200)], check=True)
    assert find_runs([tmp_path / "deep"]) == [tmp_path / "deep" / "run"]
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def test_folders_deeper_than_a_path_may_be_are_left_out(good: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(good, tmp_path / "sweep" / "run")
    monkeypatch.chdir(tmp_path / "sweep")
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    os.chdir(tmp_path)
    comparison = analyse_folders([tmp_path / "sweep"])
    assert [run.name.endswith("run") for run in comparison.runs] == [True]
    (reason,) = comparison.skipped.values()
    assert "File name too long" in reason
    shutil.rmtree(tmp_path / "sweep")
