"""Standard output on a full disk or a closed pipe, and the folder from which nothing is imported."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from fer_lightning.config.command_line import run_tool
def main():
    for _ in range(9):
        {}
run_tool(main, prints_results={})
"""
PRINT, WRITE_LINES = 'print("x" * 9999, flush=True)', 'sys.stdout.writelines(["x" * 9999])'


@pytest.mark.parametrize("statement", [PRINT, WRITE_LINES])
@pytest.mark.parametrize(("prints_results", "code"), [(False, 0), (True, 1)])
def test_a_full_disk_under_standard_output_ends_no_run(prints_results, code, statement):
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-c", CODE.format(statement, prints_results)]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code
    (message,) = done.stderr.splitlines()
    assert "standard output could not be written (No space left on device)" in message


@pytest.mark.parametrize(
    ("statement", "code"), [(PRINT, 0), ("raise UserError('x')", 2), ("raise KeyboardInterrupt", 130)]
)
def test_a_full_disk_under_both_outputs_changes_no_exit_code(statement, code):
    """A run that is done said so with code 1."""
    program = f"from fer_lightning.runtime.errors import UserError\n{CODE.format(statement, False)}"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full)
    assert done.returncode == code


@pytest.mark.parametrize(("prints_results", "code", "lines"), [(False, 0, 1), (True, 141, 0)])
def test_a_closed_pipe_ends_no_run_and_a_command_without_a_message(prints_results, code, lines):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        line = [sys.executable, "-c", CODE.format(PRINT, prints_results)]
        done = subprocess.run(line, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, lines), done.stderr


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1", "utf-8"])
def test_a_character_that_the_encoding_has_not_ends_no_run(encoding):
    """A class may be called so; a run ended with tracebacks after its results were written."""
    code = """
import logging
from fer_lightning.config.command_line import run_tool
def main():
    logging.basicConfig(stream=__import__("sys").stdout, level="INFO", format="%(message)s")
    print("\\xe9toile")
    logging.info("\\u65e5")
run_tool(main)
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(encoding.partition(":")[0])
    assert shown.splitlines()[0] in ("étoile", r"\xe9toile")
    assert shown.splitlines()[1] in ("日", r"\u65e5")


def test_a_command_whose_reader_has_gone_works_no_further():
    code = """
import time
from fer_lightning.config.command_line import run_tool
def main():
    print(flush=True)
    time.sleep(60)
run_tool(main)
"""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-c", code], stdout=closed, timeout=30)
    assert done.returncode == 141


def test_nothing_is_imported_from_the_working_directory(tmp_path):
    for name in ("yaml", "typing", "re", "enum", "pathlib", "fnmatch", "urllib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'SPRUNG')!r}, 'w').close()\n")
    import fer_lightning

    environment = {"PYTHONPATH": str(Path(fer_lightning.__file__).parents[1]), "PATH": ""}
    line = [sys.executable, "-m", "fer_lightning", "--version"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("fer_lightning "), done.stderr
    assert not (tmp_path / "SPRUNG").exists()
    subprocess.run([sys.executable, "-m", "omegaconf"], cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "SPRUNG").exists(), "it is a trap"


def test_results_that_cannot_be_printed_are_an_error():
    """Like those of any program of a shell."""
    line = f"{shlex.quote(sys.executable)} -m fer_lightning.methods >&-"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output could not be written (Bad file descriptor)")


@pytest.mark.parametrize("options", [["--cfg", "job"], ["--help"], ["--version"]])
def test_what_is_only_shown_is_a_result(options):
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "fer_lightning", *options]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output could not be written (No space left on device)")
