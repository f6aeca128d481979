"""A comparison over the imbalance ratio: rows, sentences, picture, page."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_run

from fer_lightning.comparison.analysis import Comparison, analyse_folders
from fer_lightning.comparison.ratios import over_ratio
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.report import pictures, ratio_figure, sentences, tables
from fer_lightning.report.write import write_report

SKILLS = {
    "none": {1: 0.8, 5: 0.62, 20: 0.45, 100: 0.3},
    "focal": {1: 0.8, 5: 0.62, 20: 0.455, 100: 0.3},
    "weighted": {1: 0.5, 5: 0.62, 20: 0.8, 100: 0.8},
}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("sweep")
    for method, by_ratio in SKILLS.items():
        for ratio, skill in by_ratio.items():
            for seed in range(4):
                counts = dict.fromkeys(EMOTIONS, 436 // ratio + 1)
                write_run(
                    folder / f"{method}-{ratio}-{seed}",
                    method,
                    seed,
                    skill,
                    skill,
                    settings={"split.ratio": ratio},
                    **{"train/class_counts": counts},
                )
    return analyse_folders([folder])


@pytest.mark.slow
def test_rows_are_compared_at_their_own_ratio(comparison):
    assert comparison.compared_with["weighted ratio=20"] == "none ratio=20"
    over = over_ratio(comparison)
    assert over is not None
    assert over.ratios == [1, 5, 20, 100]
    assert over.methods == ["none", "focal", "weighted"]
    assert len(over.scores[over.scores["metric"] == "f1_macro"]) == 12


def test_where_each_method_improves(comparison):
    over = over_ratio(comparison)
    assert over is not None
    said = sentences.on_ratio(over, comparison.baselines)
    weighted = next(text for text in said if text.startswith("weighted") and "macro F1" in text)
    assert "improves macro F1 from ratio 20 upwards" in weighted
    assert "it is worse at 1" in weighted
    focal = next(text for text in said if text.startswith("focal") and "macro F1" in text)
    assert "at no ratio clearly better in macro F1" in focal
    assert not [text for text in said if text.startswith("none")]


@pytest.mark.nightly
def test_report_has_chart_table_and_note(comparison, tmp_path):
    write_report(comparison, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Over the imbalance ratio" in text
    assert "![Over the imbalance ratio](over_ratio.png)" in text
    assert "A larger ratio has fewer images too" in text
    page = (tmp_path / "report.html").read_text()
    assert "weighted at 20: macro F1" in page
    assert (tmp_path / "over_ratio.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_of_each_ratio_is_marked(comparison):
    over = over_ratio(comparison)
    assert over is not None
    table = tables.over_ratio(over, "f1_macro")
    assert table.headings == ["ratio", "none", "focal", "weighted"]
    assert [[cell.best for cell in row[1:]] for row in table.rows][2:] == [[False, False, True]] * 2


def test_one_sentence_for_each_ratio(comparison):
    said = sentences.on_differences(comparison)
    assert [text.split(",")[0] for text in said] == [f"At a ratio of {ratio}" for ratio in (1, 5, 20, 100)]
    assert "better: weighted +" in said[2]
    assert re.search(r"; inconclusive after correction: focal \S+ \(.+ to .+\)\.$", said[2])
    answer = sentences.answer(comparison)
    assert answer.startswith("Highest macro F1 by the ratio of the training classes: ")
    assert (
        "Clearly better than the baseline at the same ratio (Holm p < 0.05): weighted at 20 and weighted at 100."
        in answer
    )


def test_methods_with_the_same_score_at_a_ratio_are_named_together(comparison):
    over = over_ratio(comparison)
    assert over is not None
    chosen = (over.scores["metric"] == "f1_macro") & (over.scores["ratio"] == 5)
    scores = over.scores.assign(mean=over.scores["mean"].mask(chosen & (over.scores["method"] != "weighted"), 0.9))
    assert ", none and focal at 5 (90.0 %), " in sentences.first_at_each_ratio(replace(over, scores=scores))


def test_a_method_has_one_colour_and_mark_at_all_ratios(comparison):
    numbers = pictures.numbers(comparison)
    assert {row.split()[0]: number for row, number in numbers.items()} == {"none": 0, "focal": 1, "weighted": 2}
    assert len(numbers) == 12


def test_marks_of_scores_are_not_filled(comparison):
    over = over_ratio(comparison)
    assert over is not None
    figure = ratio_figure.over_ratio(over, {"none": 0, "focal": 1, "weighted": 2}, "title")
    upper, lower = figure.axes[0], figure.axes[3]
    filled = [
        {line.get_markerfacecolor() for line in axes.lines if line.get_marker() not in ("None", None)} - {"white"}
        for axes in (upper, lower)
    ]
    assert not filled[0]
    assert filled[1]  # Holm p < 0.05


@pytest.mark.nightly
def test_without_ratios_there_is_no_such_part(tmp_path: Path):
    for method in ("none", "focal"):
        write_run(tmp_path / method, method)
    c = analyse_folders([tmp_path])
    assert over_ratio(c) is None
    assert "over_ratio.png" not in pictures.write_pictures(c, tmp_path)
