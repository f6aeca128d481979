"""Reports of made-up comparisons: terminal, markdown, pictures."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import METHODS, made_up
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from fer_lightning.compare import Comparison
from fer_lightning.report import tables, terminal

HOSTILE = "<img src=x onerror=alert(1)>|[b]*_`$x$"


def printed(c: Comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    terminal.print_comparison(c, console)
    return console.export_text()


def gaps(c: Comparison) -> Comparison:
    """The same with everything missing that can be: undefined scores, intervals, temperatures."""
    summary, per_class, calibration = c.summary.copy(), c.per_class.copy(), c.calibration.copy()
    differences, cost = c.differences.copy(), c.cost.copy()
    last = list(c.rows)[-1]
    summary.loc[summary["method"] == last, ["mean", "sd", "low", "high"]] = np.nan
    differences.loc[differences["method"] == last, ["difference", "low", "high", "p", "p_holm"]] = np.nan
    per_class.loc[per_class["method"] == last, ["recall", "recall_sd", "precision", "f1"]] = np.nan
    calibration.loc[calibration["method"] == last, ["temperature", "nll_scaled", "ece_scaled"]] = np.nan
    cost.loc[cost["method"] == last, ["seconds", "images_per_second", "steps", "devices", "precision"]] = None
    confusion = {**c.confusion, last: np.zeros((7, 7), dtype=np.int64)}
    changes: dict[str, Any] = {"summary": summary, "per_class": per_class, "calibration": calibration}
    changes |= {"differences": differences, "cost": cost, "confusion": confusion}
    return Comparison(**{**vars(c), **changes})


CASES = {
    "two methods, one seed": lambda: made_up(2, 1),
    "one method": lambda: made_up(1, 3),
    "five methods, five seeds": lambda: made_up(5, 5, extras=True),
    "many methods": lambda: made_up(22, 3),
    "no baseline": lambda: made_up(4, 3, baseline=False, names=METHODS[1:]),
    "gaps": lambda: gaps(made_up(4, 3)),
    "hostile": lambda: made_up(3, 3, names=("none", HOSTILE, "a" * 90), sentences=[HOSTILE], notes=[HOSTILE]),
}


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("case", CASES)
def test_terminal_fits_and_names_everything(case: str, width: int) -> None:
    c = CASES[case]()
    shown = printed(c, width)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    words = re.sub(r"\s", "", shown)
    for sentence in (*c.sentences, *c.notes):
        assert re.sub(r"\s", "", sentence) in words
    if case != "hostile":
        assert all(name in shown for name in c.rows)
    assert "nan" not in shown


def test_terminal_shows_scores_and_differences() -> None:
    c = made_up(3, 3)
    shown = printed(c, 100)
    table = c.summary[c.summary["test_set"] == "test"].set_index(["method", "metric"])
    assert f"{table.loc[('weighted', 'f1_macro'), 'mean'] * 100:.1f} ± 0.8" in shown
    row = c.differences.query("test_set == 'test' and method == 'weighted' and metric == 'f1_macro'").iloc[0]
    interval = f"{row.difference * 100:+.1f} ({row.low * 100:+.1f} to {row.high * 100:+.1f})"
    assert re.search(re.escape(interval) + rf"\s+{row.p_holm:.3f}", shown)
    assert shown.index("weighted") < shown.index("none"), "best macro F1 first"


def test_terminal_drops_differences_that_have_no_room() -> None:
    assert "balanced" in printed(made_up(5), 120).split("Differences")[1]
    narrow = printed(made_up(5), 80).split("Differences")[1]
    assert "macro F1" in narrow
    assert "balanced " not in narrow.split("balanced_softmax")[0]


def test_drawn_faces_are_announced_first() -> None:
    c = made_up(2, 1, synthetic=True)
    assert "SYNTHETIC" in printed(c, 80).splitlines()[0]
    assert "SYNTHETIC" in terminal.markdown(c, []).split("## ")[0]


# Pictures of many methods are in test_figures.
@pytest.mark.parametrize("case", [case for case in CASES if case != "many methods"])
def test_pictures_are_drawn_and_linked(case: str, tmp_path: Path) -> None:
    c = CASES[case]()
    names = terminal.draw(c, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert {"method_bars.png", "trade_off.png", "confusion_matrices.png", "reliability.png"} <= set(names)
    assert ("differences.png" in names) == (c.baseline is not None and len(c.rows) > 1)
    assert ("ranks.png" in names) == (len(c.ranks) > 0)
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    text = terminal.markdown(c, names)
    assert sorted(re.findall(r"\]\((\w+\.png)\)", text)) == sorted(names)
    assert "nan" not in re.sub(r"\w*nan\w+|\w+nan\w*", "", text)


def test_markdown_has_well_formed_tables_and_all_sections() -> None:
    c = made_up(5, 5, extras=True)
    text = terminal.markdown(c, [])
    for heading in ("Protocol", "Scores", "Differences to none", "Ranks", "Calibration", "Label noise", "Cost"):
        assert f"## {heading}" in text
    assert all(f"| {key} | {terminal._plain(value)} |" in text for key, value in c.protocol.items())
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) > 15
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert "python -m fer_lightning.compare /sweep" in text
    assert text.index(terminal._plain(c.sentences[0])) < text.index("## Protocol")


def test_markdown_shows_hostile_names_as_they_are() -> None:
    text = terminal.markdown(CASES["hostile"](), [])
    assert not re.search(r"(?<!\\)<img", text)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_best_is_marked_and_less_is_better_for_losses() -> None:
    c = made_up(5)
    table = tables.scores(c)
    means = tables.means(c)
    for place, (key, score) in enumerate(tables.SCORES.items(), 1):
        (best,) = (row[0].text for row in table.rows if row[place].best)
        assert best == (means[key].idxmin() if score.lower else means[key].idxmax())


def test_differences_of_several_models_have_their_own_baseline() -> None:
    c = made_up(4, 2)
    for name, (method, model) in zip(
        c.rows, [("none", "b0"), ("focal", "b0"), ("none", "b2"), ("focal", "b2")], strict=True
    ):
        for run in c.rows[name]:
            run.metrics.update(imbalance=method, model=model)
    assert [tables.baseline_of(c, name) for name in c.rows] == [METHODS[0], METHODS[0], METHODS[2], METHODS[2]]
    assert "## Differences to the baseline of the same model" in terminal.markdown(c, [])
