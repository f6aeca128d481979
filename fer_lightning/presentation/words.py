"""Numbers in words, names and lists: percent, points, intervals, p-values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fer_lightning.presentation.printable import printable

MANY = 40
"""Classes beyond which a picture names none of them, and a page has no confusion matrix."""


def data_name(metrics: Mapping[str, Any]) -> str:
    """Name the data of a run's ``metrics.json`` for a caption; drawn faces are called so in capitals."""
    if metrics.get("synthetic"):
        return "SYNTHETIC (drawn) faces"
    return "FER-2013" if metrics["data"] == "fer2013" else str(metrics["data"])


def caption(metrics: Mapping[str, Any]) -> str:
    """One line that says which run a picture shows, from its ``metrics.json``."""
    return " · ".join(
        (
            data_name(metrics),
            f"split {metrics['split']}",
            f"imbalance {metrics['imbalance']}",
            str(metrics["model"]),
            f"seed {metrics['seed']}",
        )
    )


def percent(value: float | None, digits: int = 1) -> str:
    """``0.123`` -> ``12.3 %``, None -> ``-``."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """``0.123`` -> ``12.3 points``."""
    return f"{100 * value:.1f} points"


def signed(value: float) -> str:
    """``0.123`` -> ``+12.3``."""
    return f"{100 * value:+z.1f}"


def interval(low: float, high: float) -> str:
    """A 95 % confidence interval in percentage points."""
    return "no interval" if np.isnan(low) else f"95 % CI {100 * low:z.1f} to {100 * high:z.1f}"


def p_value(value: float, kind: str) -> str:
    """A p-value, with the ``kind`` of its correction before it."""
    if np.isnan(value):
        return "no p-value"
    return f"{kind}p < 0.001" if value < 0.001 else f"{kind}p = {value:.3f}"


def cut(name: str, letters: int = 32) -> str:
    """A name of at most so many letters, for a picture; control characters, which have no glyph, are escaped."""
    name = printable(name)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def count(n: float) -> str:
    """``1234`` -> ``1,234``."""
    return f"{n:,.0f}"


def span(numbers: Iterable[int]) -> str:
    """``1,000 to 1,200``, or one number where all are equal."""
    ordered = sorted(numbers)
    return " to ".join(f"{number:,}" for number in dict.fromkeys((ordered[0], ordered[-1])))


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key that puts ``2-focal`` before ``10-focal``."""
    return [(int(digits or -1), rest) for digits, rest in re.findall(r"(\d*)(\D*)", text)]
