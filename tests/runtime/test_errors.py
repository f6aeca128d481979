"""Errors in one line."""

from fer_lightning.runtime.errors import first_line, one_line


def test_first_line() -> None:
    assert first_line(ValueError("bad\nworse")) == "bad"
    assert first_line(ValueError("\nIn the file:\n  bad\nworse")) == "In the file: bad"
    assert first_line(ValueError()) == "ValueError"


def test_one_line() -> None:
    assert one_line(OSError(" no\n  space ")) == "no space"
    assert one_line(EOFError()) == "EOFError"
