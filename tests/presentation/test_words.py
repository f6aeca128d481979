"""Numbers and runs in words."""

from typing import Any

import pytest

from fer_lightning.presentation import words

RUN = {"data": "fer2013", "synthetic": False, "split": "official", "imbalance": "focal", "model": "b0", "seed": 0}


@pytest.mark.parametrize(("metrics", "expected"), [({}, "FER-2013"), ({"synthetic": True}, "SYNTHETIC")])
def test_caption_names_the_data(metrics: dict[str, Any], expected: str) -> None:
    assert words.caption({**RUN, **metrics}).startswith(expected)


def test_percent() -> None:
    assert words.percent(0.1234) == "12.3 %"
    assert words.percent(0.1234, digits=2) == "12.34 %"
    assert words.percent(None) == "-"


def test_numbers_are_sorted_by_value() -> None:
    assert sorted(["10-none", "2-focal", "2-crt"], key=words.natural_key) == ["2-crt", "2-focal", "10-none"]
