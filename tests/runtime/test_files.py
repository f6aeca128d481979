"""Files of unknown origin: read in bounded time, and never written through a link."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fer_lightning.runtime import files, folder_lock, run_folder
from fer_lightning.runtime.errors import UserError

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@FEW
@given(st.binary(max_size=50) | JSON.map(lambda content: json.dumps(content).encode()))
def test_any_bytes_are_json_or_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with suppress(UserError):
        assert isinstance(files.read_json(tmp_path / "x.json"), dict)


def test_a_number_that_fits_no_float_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(f'{{"n": {10**400}}}')
    with pytest.raises(UserError, match=r"damaged, not JSON \(a whole number of 401 digits\)"):
        files.read_json(tmp_path / "x.json")


RECORDS = st.dictionaries(st.sampled_from(["status", "reason", "step", "pause_after_epochs"]), JSON)


@FEW
@given(st.binary(max_size=50) | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_any_status_is_a_known_one(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    status = run_folder.read_status(tmp_path)
    assert status["status"] in run_folder.STATUSES
    assert status.get("reason", "").isprintable()
    assert all(isinstance(status.get(key, 0), int) for key in ("step", "pause_after_epochs"))


@pytest.mark.parametrize("limit", [100, 2**21])
def test_a_file_is_read_up_to_its_limit(tmp_path, limit):
    (tmp_path / "x").write_bytes(b"x" * limit)
    assert files.read_bytes(tmp_path / "x", limit) == b"x" * limit
    with pytest.raises(UserError, match=f"has {limit} bytes, more than {limit - 1}; it is damaged"):
        files.read_bytes(tmp_path / "x", limit - 1)


def test_a_file_that_states_no_size_is_read_up_to_the_limit():
    with pytest.raises(UserError, match="more than 10; it is damaged"):
        files.read_bytes(Path("/proc/meminfo"), 10)


def test_an_error_while_reading_is_one_line(tmp_path):
    (tmp_path / "x.json").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"x\.json: cannot be read \(Input/output error\)"):
        files.read_json(tmp_path / "x.json")


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    with pytest.raises(UserError, match=r"damaged, not JSON \(the key 'b' occurs twice\)"):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"a": ["\\ud800"]}', '{"\\uD800\\uDBFF": 1}', "", "{"], ids=range(6)
)
def test_damaged_json_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="damaged, not JSON"):
        files.read_json(tmp_path / "x.json")


def test_a_name_that_is_not_utf8_is_read_as_it_was_written(tmp_path):
    files.write_json(tmp_path / "x.json", {"folder": os.fsdecode(b"caf\xe9"), "face": "\U0001f600"})
    assert files.read_json(tmp_path / "x.json") == {"folder": "caf\udce9", "face": "\U0001f600"}


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "status.json")
    assert run_folder.read_status(tmp_path) == {"status": "running"}
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        files.check_no_links(tmp_path)


def test_a_link_is_replaced_not_followed(tmp_path):
    victim, linked = tmp_path / "victim", tmp_path / "run" / "status.json"
    victim.write_text("precious")
    linked.parent.mkdir()
    for name in ("status.json", f".status.json.{os.getpid()}", ".last.ckpt.part", "last.ckpt"):
        (linked.parent / name).symlink_to(victim)
    run_folder.write_status(linked.parent, "done")
    files.replace_file(linked.parent / "last.ckpt", b"weights")
    assert victim.read_text() == "precious"
    assert not linked.is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "predictions.csv",
        "train.log",
        ".hydra",
        "curves.png",
        ".last.ckpt.part",
        "checkpoints",
        ".lock",
        "wandb/x",
        ".submitit/x",
    ],
)
def test_a_folder_with_a_link_is_refused(tmp_path, name):
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link"):
        folder_lock.lock_for_run(run, "auto")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", ["status.json", "predictions.csv", "checkpoints/last.ckpt"])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, name):
    """Before the training: the file would be written after it."""
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder in place of a file; remove it"):
        folder_lock.lock_for_run(tmp_path, "auto")


def test_the_home_folder_of_nobody_is_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    names = ("~/a", "~nobody-here/a", "~nobody\0here", "a/~")
    assert [str(files.expanded(name)) for name in names] == ["/home/me/a", *names[1:]]


def test_the_real_path_of_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert files.real_path(tmp_path / "loop") == tmp_path / "loop"


def test_folders_of_any_depth_are_walked(tmp_path):
    """os.walk of Python 3.11 ends in a RecursionError."""
    deep = tmp_path / "deep"
    subprocess.run(["mkdir", "-p", deep.joinpath(*["a"] * 1500)], check=True)
    found = list(files.walk(deep))
    assert len(found) == 1501
    assert found[-1][1:] == ([], [])
    files.check_no_links(deep)
    subprocess.run(["rm", "-rf", deep], check=True)  # shutil.rmtree does, too


def test_a_walk_is_that_of_the_library(tmp_path, monkeypatch):
    for name in ("b/2", "b/1", "a/x/y", "closed/in"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b" / "file").touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    errors, expected_errors = [], []
    assert list(files.walk(tmp_path, errors.append)) == list(os.walk(tmp_path, onerror=expected_errors.append))
    assert [error.filename for error in errors] == [error.filename for error in expected_errors]
    with pytest.raises(UserError, match="closed: cannot be listed"):
        files.check_no_links(tmp_path / "closed")
    entered = []
    for place, folders, _ in files.walk(tmp_path):
        folders[:] = [name for name in folders if name != "b"]
        entered.append(Path(place).name)
    assert sorted(entered) == sorted([tmp_path.name, "a", "x", "y"])


@pytest.mark.parametrize("name", ["in", "in/deep/out.json", "link/out.json"])
def test_what_leads_out_of_a_folder_is_refused(tmp_path, name):
    run = tmp_path / "run"
    (run / "in" / "deep").mkdir(parents=True)
    (run / "link").symlink_to(tmp_path)
    if name.startswith("link"):
        with pytest.raises(UserError, match="is a link that points outside"):
            files.check_inside(run / name, run)
    else:
        files.check_inside(run / name, run)


def test_the_logs_of_an_earlier_wandb_run_may_be_links_to_elsewhere(tmp_path):
    logs = tmp_path / "run" / "wandb" / "run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "core-debug-20261128_062639.log")
    files.check_no_links(tmp_path / "run")
    (logs / "debug-core.log").unlink()
    (logs / "debug-core.log").symlink_to(tmp_path / ".bashrc")
    with pytest.raises(UserError, match="is a link"):
        files.check_no_links(tmp_path / "run")
    (logs / "debug-core.log").unlink()
    (logs.parent / "media").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        files.check_no_links(tmp_path / "run")


@pytest.mark.parametrize("folder", ["wandb", ".submitit"])
def test_links_that_libraries_make_are_accepted(tmp_path, folder):
    (tmp_path / folder / "1").mkdir(parents=True)
    (tmp_path / folder / "latest").symlink_to("1")
    files.check_no_links(tmp_path)


@pytest.mark.parametrize("name", ["train.log", "report.html", "report.md", "summary.csv"])
def test_a_second_name_of_a_file_gets_a_copy(tmp_path, name):
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    os.link(victim, run / name)
    files.check_no_links(run)
    (run / name).write_text("changed")
    assert victim.read_text() == "precious"


def test_a_reader_who_cannot_write_sees_whether_a_job_is_alive(tmp_path):
    assert not folder_lock.in_use(tmp_path)
    assert list(tmp_path.iterdir()) == [], "a look leaves no file"
    with folder_lock.lock_folder(tmp_path):
        (tmp_path / ".lock").chmod(0o444)
        assert folder_lock.in_use(tmp_path)
    assert not folder_lock.in_use(tmp_path)
