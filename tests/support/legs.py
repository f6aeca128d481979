"""Which leg a case of a long table runs in."""

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def every_third(cases: Iterable[Any]) -> list[ParameterSet]:
    """Cases as parameters: the first of each three stays in the leg of the test, the others are ``nightly``."""
    return every_nth(3, cases)


def every_nth(n: int, cases: Iterable[Any]) -> list[ParameterSet]:
    """As ``every_third``, with the first of each ``n`` in the leg of the test."""
    rows = [case if isinstance(case, ParameterSet) else _parameters(case) for case in cases]
    return [row if index % n == 0 else _at_night(row) for index, row in enumerate(rows)]


def _parameters(case: Any) -> ParameterSet:
    return pytest.param(*case) if isinstance(case, tuple) else pytest.param(case)


def _at_night(row: ParameterSet) -> ParameterSet:
    return row._replace(marks=[*row.marks, pytest.mark.nightly])
