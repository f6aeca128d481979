"""Text of unknown origin in markdown, HTML, CSV and pictures."""

import csv
import io
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fer_lightning.presentation.escapes import (
    change_texts,
    from_csv,
    markdown_table,
    table_from_csv,
    table_to_csv,
    to_code,
    to_csv,
    to_html,
    to_markdown,
    without_tags,
)
from fer_lightning.presentation.plotting import head, styled

NAMES = (
    *("<script>alert(1)</script>", "<img src=http://evil.example/a.png>", "<!-- -->", "&lt;script&gt;", "</code><b>"),
    *("[words](http://evil.example)", "![](http://evil.example/a.png)", "http://evil.example", "www.evil.example"),
    *("a|b", "`code`", "$x$", "# head", "- list", "1. list", "+ list", "> quote", "\x1b[31m", "two\n\n<p>lines"),
)
FORMULAS = ("=1+1", '=HYPERLINK("http://evil.example","x")', "+cmd", "-cmd", "@SUM(A1)", "\t=1", " =1", "'=1", "a;=1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("escape", [to_markdown, to_code])
def test_markdown_and_html_show_names_literally(name: str, escape) -> None:
    text = escape(name)
    assert "\n" not in text
    assert "<" not in text
    assert "\x1b" not in text
    outside = re.sub(r"^`[^`|]+`$", "", text)
    assert not re.search(r"(?<![\\&])[\[\]`|$#]|://|^[-+] |^\d+\. ", outside)
    assert "<" not in to_html(name)
    assert not re.search(r"<[A-Za-z/!?]", without_tags(name))


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("none", "12.3 points", "1,234", "-0.1", "+12.3", "95 % CI -1.0 to 2.0; Holm p = 0.031", "a (b), c."):
        assert to_markdown(text) == text
    assert to_markdown("focal gamma=2 x_y") == "focal gamma=2 x_y"
    assert to_markdown("_x_ y__z _") == r"\_x\_ y\_\_z \_"
    assert to_code("python -m a b_c") == "`python -m a b_c`"
    assert without_tags("p < 0.001") == "p < 0.001"
    assert to_html("x < y") == "x &lt; y"


def test_a_table_has_one_cell_for_each_entry() -> None:
    table = markdown_table([["name", "x"], *([to_markdown(name), to_code(name)] for name in NAMES)])
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {3}


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    table = pd.DataFrame({"id": ["a.png", text], text: [1.5, -2.0]})
    written = table_to_csv(table)
    for row in csv.reader(io.StringIO(written)):
        for cell in (part for value in row for part in re.split("[;\t]", value)):
            assert not re.match(r"\s*[=+@-]", cell) or cell == "-2.0"
    pd.testing.assert_frame_equal(table_from_csv(pd.read_csv(io.StringIO(written))), table)


def test_numbers_are_written_as_they_are() -> None:
    table = pd.DataFrame({"x": [-0.1, 1e-30], "n": [-1, 2], "lr": ["-1e-3", "+2"], "name": ["a", None]})
    assert table_to_csv(table) == table.to_csv(index=False)


@given(st.text(alphabet=st.one_of(st.sampled_from("'=+-@;\t\r\n 1a"), st.characters())))
def test_what_is_read_back_is_what_was_written(text: str) -> None:
    assert from_csv(to_csv(text)) == text


def test_pictures_take_names_literally(tmp_path: Path) -> None:
    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(4, 3))
        head(figure, r"$\frac{$ and $x^{$", "\x1b[31m\x00\ud800 and $")
        figure.subplots().set_title(r"$\no$")
        return figure

    draw().savefig(tmp_path / "a.png")


def test_w_and_bs_tables_hold_neither_tags_nor_formulas() -> None:
    frame = pd.DataFrame({"method": ["<img src=x>", "=1+1", "focal"], "mean": [-0.5, 0.1, 0.2]})
    shown = change_texts(frame, lambda text: to_csv(without_tags(text)))
    assert shown["method"].tolist() == ["&lt;img src=x>", "'=1+1", "focal"]
    assert shown["mean"].tolist() == [-0.5, 0.1, 0.2]
