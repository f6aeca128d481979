"""Reports of made-up comparisons: terminal, markdown, pictures."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import METHODS, all_notes, all_sentences, made_up
from legs import every_third
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.metrics.names import SCORES
from fer_lightning.presentation.escapes import to_markdown
from fer_lightning.presentation.plotting import row_shares
from fer_lightning.report import notes, page, page_charts, pictures, sections, sentences, tables, terminal
from fer_lightning.report.markdown import markdown
from fer_lightning.report.protocol import protocol

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


def hostile(c: Comparison, name: str) -> Comparison:
    """The same with ``name`` wherever a run's files can put one."""
    for run in c.runs:
        run.metrics.update(data=name, split=name, data_hash=name, git_commit=name)
        run.settings[f"optim.{name}"] = str(run.metrics["seed"])
    return Comparison(**{**vars(c), "skipped": {Path(name): name}})


CASES = {
    "two methods, one seed": lambda: made_up(2, 1),
    "one method": lambda: made_up(1, 3),
    "five methods, five seeds": lambda: made_up(5, 5, extras=True),
    "many methods": lambda: made_up(22, 3),
    "no baseline": lambda: made_up(4, 3, baseline=False, names=METHODS[1:]),
    "gaps": lambda: gaps(made_up(4, 3)),
    "hostile": lambda: hostile(made_up(3, 3, names=("none", HOSTILE, "a" * 90)), HOSTILE),
}


@pytest.mark.parametrize("width", every_third([80, 100, 140]))
@pytest.mark.parametrize("case", CASES)
def test_terminal_fits_and_names_everything(case: str, width: int) -> None:
    c = CASES[case]()
    shown = printed(c, width)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    words = re.sub(r"\s", "", shown)
    assert all(re.sub(r"\s", "", sentence) in words for sentence in sentences.highlights(c))
    if case not in ("hostile", "many methods"):
        assert all(name in shown for name in c.rows)
    assert "nan" not in shown


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize(("methods", "seeds"), [(2, 1), (4, 1), (5, 3), (10, 5), (11, 3), (22, 5)])
def test_terminal_fits_one_screen(methods: int, seeds: int, synthetic: bool) -> None:
    """80 x 24, with a line each for the report's path and the prompt."""
    c = made_up(methods, seeds, synthetic=synthetic)
    lines = printed(c, 80).rstrip().splitlines()
    assert len(lines) <= 22
    assert 1 <= sum(line.startswith("- ") for line in lines) <= 3
    assert any(line.lstrip().startswith("none ") for line in lines), "the baseline is always shown"


def test_terminal_shows_scores_and_says_what_is_left_out() -> None:
    c = made_up(12, 3)
    shown = printed(c, 80)
    table = c.summary[c.summary["test_set"] == "test"].set_index(["method", "metric"])
    best = tables.ordered(c)[0]
    assert f"{table.loc[(best, 'f1_macro'), 'mean'] * 100:.1f} ± 0.8" in shown
    assert "more in the report" in shown
    assert shown.index(best) < shown.index("none"), "best macro F1 first"


def test_a_test_set_that_some_runs_lack_is_named() -> None:
    c = made_up(2, 3)
    assert not notes.on_missing_scores(c)
    (name, members) = list(c.rows.items())[-1]
    lacking = replace(members[-1], members={"test": members[-1].members["test"]})
    c = replace(c, rows={**c.rows, name: [*members[:-1], lacking]}, sizes={"test": 3589})
    line = f"No scores on test_dedup: {lacking.name} has none."
    assert line in printed(c, 140)
    assert to_markdown(line) in markdown(c, [])


def test_a_setting_that_only_some_runs_have_is_named_on_screen() -> None:
    c = made_up(2, 3)
    (name, (first, *rest)) = list(c.rows.items())[-1]
    other = replace(first, settings={**first.settings, "optim.lr": 0.01})
    line = "Not the same in all runs: optim.lr."
    assert line in printed(replace(c, rows={**c.rows, name: [other, *rest]}), 140)
    assert line not in printed(c, 140)


def test_report_opens_with_answer_picture_and_scores(tmp_path: Path) -> None:
    c = made_up(5, 5, extras=True)
    text = markdown(c, ["trade_off.png", "method_bars.png", "differences.png"])
    opening, scores = text.split("## Scores")
    assert to_markdown(sentences.answer(c)) in opening
    assert opening.count("](") == opening.count("](trade_off.png)") == 1
    assert not re.search("^- ", opening, re.MULTILINE)
    assert scores.index("| none |") < scores.index("\n- ")
    for sentence in (*all_sentences(c), *all_notes(c)):
        assert text.count(to_markdown(sentence)) == 1
    differences = text.split("## Differences to none")[1].split("\n## ")[0]
    assert all(to_markdown(sentence) in differences for sentence in sentences.on_differences(c))


def test_drawn_faces_are_announced_first() -> None:
    c = made_up(2, 1, synthetic=True)
    assert "SYNTHETIC" in printed(c, 80).splitlines()[0]
    assert "SYNTHETIC" in markdown(c, []).split("## ")[0]


# Pictures of many methods are in test_figures.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case == "one method" else pytest.mark.nightly)
        for case in CASES
        if case != "many methods"
    ],
)
def test_pictures_are_drawn_and_linked(case: str, tmp_path: Path) -> None:
    c = CASES[case]()
    names = pictures.write_pictures(c, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert {"method_bars.png", "trade_off.png", "confusion_matrices.png", "reliability.png"} <= set(names)
    assert ("differences.png" in names) == ("confusion_differences.png" in names) == (len(c.differences) > 0)
    assert ("ranks.png" in names) == (len(c.ranks.mean) > 0)
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    text = markdown(c, names)
    assert sorted(re.findall(r"\]\((\w+\.png)\)", text)) == sorted(names)
    assert "nan" not in re.sub(r"\w*nan\w+|\w+nan\w*", "", text)


def test_markdown_has_well_formed_tables_and_all_sections() -> None:
    c = made_up(5, 5, extras=True)
    text = markdown(c, [])
    for heading in ("Protocol", "Scores", "Differences to none", "Ranks", "Calibration", "Label noise", "Cost"):
        assert f"## {heading}" in text
    assert all(f"| {key} | {to_markdown(value)} |" in text for key, value in protocol(c).items())
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) > 15
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert "python -m fer_lightning.compare /sweep" in text


def test_markdown_shows_hostile_names_as_they_are() -> None:
    text = re.sub(r"(?<!\\)`[^`]*`", "", markdown(CASES["hostile"](), []))
    assert "<" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_best_is_marked_and_less_is_better_for_losses() -> None:
    c = made_up(5)
    table = tables.scores(c)
    means = tables.means(c)
    for place, (key, score) in enumerate(SCORES.items(), 1):
        (best,) = (row[0].text for row in table.rows if row[place].best)
        assert best == (means[key].idxmin() if score.lower else means[key].idxmax())


def two_factors() -> Comparison:
    """``imbalance=none,focal optim.lr=a,b``: each focal has the none with its learning rate as baseline."""
    names = ("none lr=a", "none lr=b", "focal lr=a", "focal lr=b")
    c = made_up(4, 2, names=names)
    baselines = {name: f"none {name.split()[1]}" for name in names}
    rows = c.differences[c.differences["method"].str.startswith("focal")]
    mcnemar = c.mcnemar[c.mcnemar["method"].str.startswith("focal")]
    return Comparison(**{**vars(c), "baselines": baselines, "differences": rows, "mcnemar": mcnemar})


def test_every_part_takes_each_rows_own_baseline() -> None:
    c = two_factors()
    changes = pictures.confusion_changes(c)
    assert set(changes) == {"focal lr=a", "focal lr=b"}
    for rate in "ab":
        expected = row_shares(c.confusion[f"focal lr={rate}"]) - row_shares(c.confusion[f"none lr={rate}"])
        np.testing.assert_array_equal(changes[f"focal lr={rate}"], expected)
    for table in (tables.differences(c, "f1_macro"), tables.mcnemar(c)):
        assert table.headings[-1] == "baseline"
        assert {row[0].text: row[-1].text for row in table.rows} == c.compared_with
    text = markdown(c, [])
    assert "## Differences to each row's own baseline" in text
    assert not re.search("ifferences to none", text)
    for sentence in sentences.on_differences(c):
        assert not re.search("lr=a.*none lr=b|lr=b.*none lr=a", sentence)
    html = page.render(c)
    assert "differences to each row&#x27;s own baseline" in html
    for rate in "ab":
        (cell,) = {f"{100 * changes[f'focal lr={rate}'][1, 1]:+.1f}"}
        panel = html.split("differences to each row&#x27;s own baseline</p>")[1].split(f"<span>focal lr={rate}")[1]
        assert f"disgust, called disgust: {cell} points" in panel.split("</table>")[0]


def test_no_difference_of_more_than_100_points_is_promised() -> None:
    c = made_up(3, 2)
    few = c.differences.assign(detectable=0.9, detectable_all=1.7)
    (line,) = sentences.on_seeds(replace(c, differences=few))
    assert "difference in macro F1 of 90.0 points" in line
    assert "or none of up to 100 points where Holm" in line
    (line,) = sentences.on_seeds(replace(c, differences=few.assign(detectable=1.2)))
    assert "no true difference in macro F1 is found with 80 % power" in line
    assert not re.search(r"1[1-9]\d\.\d points", line)


def test_without_twins_no_change_is_called_inconclusive() -> None:
    c = made_up(3, 3)
    assert any("Inconclusive: the change" in line for line in all_sentences(c))
    for run in c.runs:
        run.members["test_dedup"] = run.members["test"]
    lines = all_sentences(c)
    assert "No test image has a pixel-identical twin in training: the scores without twins are the same." in lines
    assert not any("Inconclusive: the change" in line for line in lines)
    shown = [table.label for section in sections.sections(c) for table in section.tables]
    assert not any("twins" in label for label in shown), "the same numbers are not shown twice"


def test_a_class_with_one_test_image() -> None:
    c = made_up(2, 3)
    c.per_class.loc[c.per_class["class"] == "disgust", "n"] = 1
    assert sentences.on_classes(c)[0].startswith(
        "The test set has 1 image of disgust: it is 100.0 points of its recall"
    )


def test_two_intervals_of_one_difference_are_explained() -> None:
    assert any("moderated by that of all 3 pairs" in note for note in all_notes(made_up(3, 3)))
    assert not any("moderated by that of all" in note for methods in (2, 4) for note in all_notes(made_up(methods, 3)))
    assert not any("moderated by that of all" in note for note in all_notes(made_up(3, 1)))


def test_nothing_is_less_than_zero_and_equal_scores_are_both_best() -> None:
    assert SCORES["accuracy"].words(-1e-9, "+") == "+0.0"
    assert SCORES["accuracy"].words(-1e-9) == "0.0"
    assert tables.is_tied(13 / 22, (12 / 22 + 14 / 22) / 2 + 1e-16)
    assert not tables.is_tied(0.5, 0.5001)
    assert not tables.is_tied(np.nan, np.nan)


@pytest.mark.parametrize(
    ("classes", "letters"),
    [(("Kreis", "square"), 3), (("red star", "red sun", "blue"), 6), (("a rather long name", "a rather long one"), 8)],
)
def test_classes_of_a_matrix_are_distinguished(classes: tuple[str, ...], letters: int) -> None:
    assert page_charts.distinct_letters(classes) == letters
