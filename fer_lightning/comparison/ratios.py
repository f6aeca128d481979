"""Methods over the imbalance of the training images, where runs differ in ``split.ratio``."""

from dataclasses import dataclass

import pandas as pd

from fer_lightning.comparison.analysis import Comparison

SETTING = "split.ratio"


@dataclass(frozen=True)
class OverRatio:
    """The rows of a comparison, arranged by method and ratio.

    Attributes:
        ratios: of the largest training class to the smallest, ascending; two or more.
        methods: in the order of the comparison's rows, named without the ratio; each is at two ratios or more.
        scores: method, ratio, row, metric, mean, sd, low, high, seeds; of the primary test set.
        differences: method, ratio, row, metric, difference, low, high, p, p_holm, pairs: to the baseline's row at the
            same ratio.
    """

    ratios: list[float]
    methods: list[str]
    scores: pd.DataFrame
    differences: pd.DataFrame


def over_ratio(c: Comparison) -> OverRatio | None:
    """Arrange a comparison over ``split.ratio``; None where fewer than two ratios were trained on."""
    places: dict[str, tuple[str, float]] = {}
    for row, members in c.rows.items():
        value = members[0].settings.get(SETTING)
        try:
            ratio = float(str(value))
        except ValueError:
            continue
        places[row] = (row.replace(f" ratio={value}", "", 1), ratio)
    ratios = sorted({ratio for _, ratio in places.values()})
    methods = list(dict.fromkeys(method for method, _ in places.values()))
    methods = [name for name in methods if sum(method == name for method, _ in places.values()) > 1]
    if len(ratios) < 2 or not methods:
        return None
    return OverRatio(
        ratios, methods, _placed(c.summary, c.test_set, places), _placed(c.differences, c.test_set, places)
    )


def _placed(frame: pd.DataFrame, test_set: str, places: dict[str, tuple[str, float]]) -> pd.DataFrame:
    rows = frame[(frame["test_set"] == test_set) & frame["method"].isin(list(places))].rename(columns={"method": "row"})
    method, ratio = ([places[row][part] for row in rows["row"]] for part in (0, 1))
    return rows.drop(columns="test_set").assign(method=method, ratio=ratio).sort_values(["method", "ratio"])
