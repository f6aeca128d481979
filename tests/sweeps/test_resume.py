"""Resuming sweeps: only what is missing, only the same experiment, never twice at once."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import TINY
from sweeps import status_of, statuses

from fer_lightning.config.safety import CONF_DIR
from fer_lightning.runtime.folder_lock import lock_folder
from fer_lightning.runtime.run_folder import write_status
from fer_lightning.sweeps import job
from fer_lightning.sweeps.resume import resume

FAILING = (*TINY, "optim.lr=-1,-2", "hydra.sweep.dir=sweep")
"""Two jobs that fail before a process is started for them."""


@pytest.fixture
def tool(forked):
    """``python -m fer_lightning.sweep ...`` in ``tmp_path``."""
    return partial(forked, module="fer_lightning.sweep")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
def test_sweep_json_records_the_command_and_its_jobs(cli, tmp_path):
    cli("-m", *FAILING)
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert record["argv"] == ["-m", *FAILING]
    assert record["cwd"] == str(tmp_path)
    assert [entry["folder"] for entry in record["jobs"]] == ["0-none-seed0", "1-none-seed0"]
    assert [entry["overrides"] for entry in record["jobs"]] == [[*TINY, "optim.lr=-1"], [*TINY, "optim.lr=-2"]]
    assert len(record["code"]) == 32


@pytest.mark.slow
def test_a_finished_job_without_its_results_is_tested_again(forked, tool, tmp_path):
    forked("-m", *TINY, "imbalance=none,focal,weighted", "hydra.sweep.dir=sweep", timeout=240)
    first, second, third = (tmp_path / "sweep" / f"{name}-seed0" for name in ("0-none", "1-focal", "2-weighted"))
    before = (first / "predictions.csv").read_bytes()
    (first / "predictions.csv").unlink()
    (second / "metrics.json").write_text("{")
    torn = (third / "predictions.csv").read_bytes()
    (third / "predictions.csv").write_bytes(torn[:500])
    outcome = tool("resume", "sweep", timeout=240)
    assert (outcome.code, outcome.json["failed"], outcome.json["unfinished"]) == (0, [], [])
    assert "job 0-none-seed0: is done, but its results are missing or damaged" in outcome.out
    assert (first / "predictions.csv").read_bytes() == before
    assert (third / "predictions.csv").read_bytes() == torn
    assert json.loads((second / "metrics.json").read_text())["imbalance"] == "focal"


@pytest.mark.slow
def test_the_same_command_runs_failed_jobs_again(cli, tmp_path):
    assert cli("-m", *FAILING).code == 1
    before = (tmp_path / "sweep" / "sweep.json").read_bytes()
    write_status(tmp_path / "sweep" / "0-none-seed0", "running")  # and was killed
    again = cli("-m", *FAILING, "tags=[other]", "data.num_workers=1")
    assert again.code == 1
    assert again.json["failed"] == ["0-none-seed0", "1-none-seed0"]
    assert (tmp_path / "sweep" / "sweep.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "difference"),
    [
        ((*FAILING, "seed=0,1"), "sweep: it has 2 jobs, and this command line has 4"),
        pytest.param(
            (*TINY, "optim.lr=-1,-3", "hydra.sweep.dir=sweep"),
            "1-none-seed0: optim.lr was -2 and is -3, which would mix results",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(cli, tmp_path, line, difference):
    cli("-m", *FAILING)
    refused = cli("-m", *line)
    assert refused.code == 2
    assert difference in refused.error
    assert refused.error.endswith("as it was started: python -m fer_lightning.sweep resume sweep")


@pytest.mark.slow
def test_changed_code_is_refused_without_anyway(cli, tool, tmp_path):
    cli("-m", *FAILING)
    edit(tmp_path / "sweep" / "sweep.json", code="other")
    for refused in (cli("-m", *FAILING), tool("resume", "sweep")):
        assert refused.code == 2
        assert re.search(r"the code changed since it was started \(commit .*, with changes that are not", refused.error)
        assert refused.error.endswith("sweep --anyway")
    assert tool("resume", "sweep", "--anyway").json["failed"] == ["0-none-seed0", "1-none-seed0"]


@pytest.mark.nightly
def test_resume_of_a_moved_folder(cli, tool, tmp_path):
    """Relative paths are read from where it is resumed; an -m at the end, behind which Hydra reads nothing."""
    mine = tmp_path / "mine" / "imbalance"
    mine.mkdir(parents=True)
    shutil.copy(CONF_DIR / "imbalance" / "focal.yaml", mine / "gentle.yaml")
    cli("--config-dir=mine", *FAILING, "imbalance=gentle", "-m")
    shutil.move(tmp_path / "sweep", tmp_path / "a 'moved' sweep")
    edit(tmp_path / "a 'moved' sweep" / "sweep.json", cwd=str(tmp_path / "gone"))
    outcome = tool("resume", "a 'moved' sweep")
    assert outcome.json["failed"] == ["0-focal-seed0", "1-focal-seed0"], outcome.err
    assert f"started in {tmp_path / 'gone'}; its relative paths are now read from {tmp_path}" in outcome.out
    assert not (tmp_path / "sweep").exists()


def test_resume_replaces_the_process_by_the_recorded_command(tmp_path, monkeypatch):
    """Options and overrides as typed, then the folder as it is called now; never the directory that the file names."""
    started_in = tmp_path / "start"
    started_in.mkdir()
    (tmp_path / "sweep.json").write_text(json.dumps({"argv": ["-m", *FAILING], "cwd": str(started_in)}))
    executed = []
    monkeypatch.setattr(os, "execve", lambda *arguments: executed.append((os.getcwd(), *arguments)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"relative{os.pathsep}/absolute")
    resume(Path("."), anyway=True)
    [(folder, program, argv, environment)] = executed
    assert (folder, program) == (str(tmp_path), sys.executable)
    last = [f"hydra.sweep.dir='{tmp_path}'", "++hydra.callbacks.summary.anyway=true"]
    assert argv == [sys.executable, "-m", "fer_lightning", "-m", *FAILING[:-1], *last]
    assert environment["PYTHONPATH"].endswith(f"{tmp_path / 'relative'}{os.pathsep}/absolute")
    assert environment["PYTHONSAFEPATH"] == "1"


@pytest.mark.slow
def test_nothing_is_imported_from_the_working_directory_that_a_file_names(process, tmp_path):
    """Neither by the resumed sweep nor by its worker processes, and not from the one that the user is in."""
    assert process("-m", "hydra/launcher=parallel", *FAILING).code == 1
    named = tmp_path / "named"
    named.mkdir()
    for module in ("fer_lightning", "hydra", "joblib", "yaml"):
        (named / f"{module}.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'SPRUNG')!r}).touch()\n")
    edit(tmp_path / "sweep" / "sweep.json", cwd=str(named))
    for module in ("hydra", "joblib", "yaml"):
        shutil.copy(named / f"{module}.py", tmp_path)
    outcome = process("resume", "sweep", module="fer_lightning.sweep", PYTHONSAFEPATH="")
    assert outcome.json["failed"] == ["0-none-seed0", "1-none-seed0"], outcome.err
    assert not (tmp_path / "SPRUNG").exists()
    paths = f"{os.pathsep}{Path(__file__).parents[2]}"  # an empty entry, as in PYTHONPATH=$PYTHONPATH:/folder
    assert process("--help", PYTHONPATH=paths).code == 0
    assert process("--help", PYTHONPATH=paths, PYTHONSAFEPATH="").code == 0
    assert not (tmp_path / "SPRUNG").exists()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-m", "fer_lightning"], cwd=named, env=environment, check=False)
    assert (tmp_path / "SPRUNG").exists(), "it is a trap"


def test_a_folder_without_a_sweep_is_refused(tool, tmp_path):
    for command in ("resume", "status"):
        refused = tool(command, str(tmp_path))
        assert refused.code == 2
        assert "no sweep was started here" in refused.error


@pytest.mark.slow
def test_a_sweep_in_use_is_refused_at_once(cli, tmp_path):
    cli("-m", *FAILING)
    with lock_folder(tmp_path / "sweep"):
        refused = cli("-m", *FAILING)
    assert refused.code == 2
    assert "sweep: another process is working in this folder" in refused.error
    assert cli("-m", *FAILING).code == 1, "the lock is free again"


@pytest.mark.slow
def test_a_job_that_another_process_runs_is_not_started(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "GRACE_SECONDS", -10)
    cli("-m", *FAILING)
    folder = tmp_path / "sweep" / "1-none-seed0"
    write_status(folder, "running")
    with lock_folder(folder):
        outcome = cli("-m", *FAILING)
    assert outcome.json["unfinished"] == ["1-none-seed0"]
    assert status_of(folder) == {"status": "running"}


def test_jobs_that_would_share_a_folder_are_refused(cli, tmp_path):
    refused = cli("-m", *FAILING, "hydra.sweep.subdir=seed${seed}")
    assert refused.code == 2
    assert "two jobs would share sweep/seed0" in refused.error


@pytest.mark.slow
def test_the_same_sweep_started_twice_at_once_runs_once(tmp_path):
    line = [sys.executable, "-m", "fer_lightning", "-m", *TINY, "hydra.sweep.dir=sweep"]
    both = [
        subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    output = [process.communicate(timeout=500) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    refused = next(err for process, (_, err) in zip(both, output, strict=True) if process.returncode == 2)
    assert refused.startswith("error: sweep: another process is working in this folder")
    assert statuses(tmp_path / "sweep") == ["done"]


@pytest.mark.slow
def test_done_jobs_are_not_changed(forked, tmp_path):
    """Whatever changes around them: not run again, and their record of what they ran with not touched."""
    mine = tmp_path / "mine" / "imbalance"
    mine.mkdir(parents=True)
    gentle = (CONF_DIR / "imbalance" / "focal.yaml").read_text().replace("name: focal", "name: gentle")
    (mine / "gentle.yaml").write_text(gentle)
    line = ("--config-dir=mine", "-m", "hydra/launcher=parallel", *TINY, "imbalance=gentle", "seed=0,1,2",
            "hydra.sweep.dir=sweep")  # fmt: skip
    assert forked(*line).code == 0
    folder = tmp_path / "sweep"
    done, gone, torn = (folder / f"{number}-gentle-seed{number}" for number in range(3))
    shutil.rmtree(gone)
    write_status(torn, "running")
    (torn / "metrics.json").unlink()
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}

    (mine / "gentle.yaml").write_text(gentle.replace("gamma: 2.0", "gamma: 3.0"))
    refused = forked("resume", "sweep", module="fer_lightning.sweep")
    assert refused.code == 2
    assert "imbalance.loss.gamma was 2.0 and is 3.0" in refused.error
    assert not gone.exists()

    outcome = forked("resume", "sweep", "--anyway", module="fer_lightning.sweep")
    assert statuses(folder) == ["done", "done", "failed"], outcome.out
    assert "imbalance.loss.gamma was 2.0 there and cannot become 3.0" in outcome.out, "a checkpoint keeps its settings"
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before
    assert "gamma: 2.0" in (done / ".hydra" / "config.yaml").read_text()
    assert "gamma: 3.0" in (gone / ".hydra" / "config.yaml").read_text()
    assert "job 1 of 3" not in outcome.out
    assert "job 2 of 3 done" in outcome.out
