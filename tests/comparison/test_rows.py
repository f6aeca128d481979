"""The names of a comparison's rows."""

from types import SimpleNamespace
from typing import Any

from fer_lightning.comparison.rows import named_rows


def run(**settings: str) -> Any:
    loss = {f"imbalance.loss.{key.replace('__', '.')}": value for key, value in settings.items()}
    return SimpleNamespace(method=("none", "b0"), metrics={"model": "b0"}, settings=loss)


def test_a_row_names_only_the_class_weights_that_it_has():
    plain, power = run(power="None", weights="None"), run(power="0.5", weights="None")
    by_hand = run(power="None", weights__disgust="5")
    assert list(named_rows([plain, power, by_hand])) == ["none", "none power=0.5", "none disgust=5"]
