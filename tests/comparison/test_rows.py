"""The names of a comparison's rows."""

from types import SimpleNamespace
from typing import Any

from fer_lightning.comparison.rows import named_rows


def run(method: str = "none", **settings: str) -> Any:
    loss = {f"imbalance.loss.{key.replace('__', '.')}": value for key, value in settings.items()}
    return SimpleNamespace(method=(method, "b0"), metrics={"model": "b0"}, settings=loss)


def test_a_row_names_only_the_class_weights_that_it_has():
    plain, power = run(), run(power="0.5")
    by_hand = run(weights__disgust="5")
    assert list(named_rows([plain, power, by_hand])) == ["none", "none power=0.5", "none disgust=5"]


def test_class_weights_that_all_runs_have_are_named() -> None:
    by_hand = run(weights__disgust="5", weights__fear="1.2")
    assert list(named_rows([by_hand, by_hand])) == ["none disgust=5 fear=1.2"]
    assert list(named_rows([run(power="0.5")])) == ["none power=0.5"]
    assert list(named_rows([run("marc", power="1.2")])) == ["marc"], "its own power"
    assert list(named_rows([run("marc", power="1.0")])) == ["marc power=1.0"]
    assert list(named_rows([run("mine", power="1.0")])) == ["mine power=1.0"], "of an unknown file"
