"""Errors that the user can correct, and stops by a signal or by ``pause_after_epochs``."""

import re


class UserError(Exception):
    """A mistake of the user's, reported in one line without a traceback.

    The text says what was given, what is accepted, and what to do.
    """


class Interrupted(BaseException):
    """A signal asked the run to stop; what can be saved is saved, and ``resume=auto`` resumes from there.

    Not an ``Exception``, so that no handler of errors catches it on the way.
    """


class Paused(Interrupted):
    """The run stopped after ``pause_after_epochs``, as it was asked to; ``resume=auto`` resumes it.

    Args:
        epochs: the setting.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__(f"paused by pause_after_epochs={epochs}")
        self.epochs = epochs


def require(condition: bool, key: str, value: object, accepted: str) -> None:
    """Refuse the value of a key unless ``condition`` holds.

    Raises:
        UserError: naming both, and what is accepted.
    """
    if not condition:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{key}={shown}: {accepted}")


def check(condition: object, problem: str) -> None:
    """Refuse a damaged file, whose reader adds its name to the problem.

    Raises:
        ValueError: unless ``condition`` holds.
    """
    if not condition:
        raise ValueError(problem)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with the next one where it ends in a colon; its type where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, *rest = lines or [type(error).__name__]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


def one_line(error: BaseException) -> str:
    """All of an error's text in one line; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def without_login(text: str) -> str:
    """A text whose addresses have neither user and password nor a query, which may hold a token."""
    return re.sub(r"\?[\w.%~-]+=[^\s)'\"]*", "?...", re.sub(r"(?<=://)[^/@\s]+@", "", text))
