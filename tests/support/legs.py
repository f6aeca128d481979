"""Which leg a case of a long table runs in."""

from collections.abc import Iterable
from typing import Any

import pytest


def every_third(cases: Iterable[Any]) -> list[Any]:
    """Cases as parameters: the first of each three stays in the leg of the test, the others are ``nightly``."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[] if index % 3 == 0 else pytest.mark.nightly) for index, row in enumerate(rows)]
