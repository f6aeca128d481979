"""What others wrote reaches the screen without control characters."""

import logging
import os
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_lightning.config.command_line import run_tool
from fer_lightning.presentation import printable as module
from fer_lightning.presentation.printable import LONGEST, printable, shortened
from fer_lightning.runtime.errors import UserError

HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b2J\r\n\u202egnp.\u2028\udce9"


@pytest.fixture
def escaped_messages(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    factory = logging.getLogRecordFactory()
    module.escape_messages()
    yield
    module.escape_messages(hide=str)
    logging.setLogRecordFactory(factory)


@given(st.text(st.characters(codec=None)))
def test_no_text_controls_a_terminal(text):
    shown = printable(text)
    assert not any(unicodedata.category(character)[0] == "C" and character.isascii() for character in shown)
    shown.encode()  # no lone surrogate


def test_ordinary_text_stays():
    text = "déjà vu 猫 😀 100 % a\u00a0b"
    assert printable(text) == text
    assert printable("a\nb", keep="\n") == "a\nb"
    assert printable("\x1b[0m") == r"\x1b[0m"


def test_the_error_of_a_command_is_one_line(capsys):
    def main():
        raise UserError(f"{HOSTILE}: {'x' * 10 * LONGEST}; do this")

    with pytest.raises(SystemExit) as ended:
        run_tool(main)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.removesuffix("\n").isprintable()
    assert len(error) < LONGEST + 100
    assert error.startswith(r"error: \x1b]0;title\x07")
    assert error.endswith("; do this\n")


def test_the_traceback_of_a_bug_is_escaped(capsys):
    def main():
        raise RuntimeError(HOSTILE)

    with pytest.raises(SystemExit) as ended:
        run_tool(main)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "RuntimeError: \\x1b]0;title" in error
    assert "\x1b" not in error


def test_logs_and_warnings_are_escaped(escaped_messages, caplog, capsys):
    logging.getLogger("fer_lightning.x").warning("%s has %d\nlines of %s", HOSTILE, 3, {"a": HOSTILE})
    assert caplog.messages[0].replace("\n", "").isprintable()
    assert caplog.messages[0].count("\n") == 1
    assert "\x1b" not in warnings.formatwarning(Warning(HOSTILE), Warning, "file", 1)


def test_the_traceback_in_a_log_is_escaped_and_holds_no_secret(monkeypatch, escaped_messages, caplog):
    monkeypatch.setenv("MY_API_KEY", "q4wertyuiop")

    def main():
        try:
            raise RuntimeError(f"{HOSTILE} q4wertyuiop")
        except RuntimeError:
            logging.getLogger("fer_lightning.x").exception("failed")

    run_tool(main)
    assert "RuntimeError: \\x1b]0;title" in caplog.text
    assert "\x1b" not in caplog.text
    assert "q4wertyuiop" not in caplog.text


def test_logs_and_warnings_of_a_command_hold_no_secret(monkeypatch, escaped_messages, caplog):
    """Those of other packages too: urllib3 writes the whole address of a server that does not answer."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1/?token=q4wertyuiop")
    warned = []

    def main():
        logging.getLogger("urllib3").warning("Retrying: %s", os.environ["MLFLOW_TRACKING_URI"])
        warned.append(warnings.formatwarning(Warning("q4wertyuiop"), Warning, "file", 1))

    run_tool(main)
    assert caplog.messages == ["Retrying: http://localhost:1/?token=..."]
    assert warned == ["file:1: Warning: ...\n"]


def test_long_text_keeps_both_ends():
    assert shortened("short") == "short"
    assert shortened("a" * 20 + "b" * 20, 12) == "aaa ... bbbb"
