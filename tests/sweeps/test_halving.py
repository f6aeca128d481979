"""Successive halving: which settings continue, what is recorded of the others, and that a survivor is as if alone."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from command_line import TINY
from kill_and_resume import differences, fingerprint
from omegaconf import OmegaConf
from sweeps import status_of

from fer_lightning.comparison.runs import read_runs
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json
from fer_lightning.runtime.run_folder import write_status
from fer_lightning.sweeps import halving, job
from fer_lightning.sweeps.folder import Job, job_states
from fer_lightning.sweeps.halving import Search, best_score, rung_epochs, select, spans, trials_of
from fer_lightning.sweeps.progress import Progress
from fer_lightning.sweeps.search_table import search_table, write_search

FAKE_RUN = """
import json, os
folder, rate, seed, pause = argv[0], float(argv[1]), int(argv[2]), int(argv[3])
for name in ("checkpoints", ".hydra"):
    os.makedirs(f"{folder}/{name}", exist_ok=True)

def write(name, text, mode="w"):
    with open(f"{folder}/{name}", mode) as file:
        file.write(text if isinstance(text, str) else json.dumps(text))

write("started", f"{pause} ", "a")
write(".hydra/config.yaml", "")
if rate == 0.4:
    write("status.json", {"status": "failed", "reason": "the loss became NaN"})
else:
    rows = [f"{epoch},{rate + 0.01 * epoch + 0.002 * seed}" for epoch in range(pause or 8)]
    write("metrics.csv", "\\n".join(["epoch,val/f1_macro", *rows, ""]))
    write("checkpoints/last.ckpt", "")
    paused = {"status": "interrupted", "reason": "paused", "pause_after_epochs": pause}
    write("status.json", paused if pause else {"status": "done"})
"""
"""A run that does not train: its score is its learning rate, and rises by 0.01 an epoch; a rate of 0.4 fails."""


def train(search: Search, jobs: Sequence[Job]) -> None:
    """``FAKE_RUN`` of the jobs of the present rung, in this process."""
    for each in jobs:
        if search.is_active(each.number) and not search.has_trained(each.folder):
            rate, seed = (word.split("=")[1] for word in each.overrides)
            exec(FAKE_RUN, {"argv": [str(each.folder), rate, seed, str(search.pause or 0)]})


def planned(folder: Path, *rates: float) -> list[Job]:
    """The jobs of a search over learning rates with two seeds, as its folder records them."""
    lines = [(f"optim.lr={rate}", f"seed={seed}") for rate in rates for seed in (0, 1)]
    jobs = [Job(number, folder / f"{number}-none", overrides) for number, overrides in enumerate(lines)]
    record = [{"folder": each.folder.name, "overrides": list(each.overrides)} for each in jobs]
    write_json(folder / "sweep.json", {"jobs": record})
    return jobs


@pytest.mark.parametrize(
    ("max_epochs", "eta", "rungs", "expected"),
    [(27, 3, 3, (3, 9, 27)), (30, 3, 3, (4, 10, 30)), (8, 2, 4, (1, 2, 4, 8)), (2, 3, 3, (1, 2)), (1, 2, 2, (1,))],
)
def test_epochs_of_the_rungs(max_epochs, eta, rungs, expected):
    assert rung_epochs(max_epochs, eta, rungs) == expected


@pytest.mark.parametrize(
    ("scores", "eta", "expected"),
    [
        ([0.1, 0.5, 0.3, 0.4, 0.2, 0.6], 3, [1, 5]),
        ([0.1, 0.5, 0.3, 0.4, 0.2], 3, [1]),
        ([0.1, 0.2], 3, [1]),
        ([0.3, 0.3, 0.3, 0.3], 2, [0, 1]),
        ([math.nan, 0.1, math.nan, 0.2], 2, [1, 3]),
        ([math.nan, 0.1, math.nan, math.nan], 2, [1]),
        ([math.nan, math.nan], 2, []),
    ],
)
def test_the_best_part_is_selected(scores, eta, expected):
    assert select(scores, eta) == expected


def test_runs_that_differ_in_the_seed_are_one_setting():
    lines = [("optim.lr=1", "seed=0"), ("optim.lr=1", "seed=1"), ("optim.lr=2", "seed=0"), ("optim.lr=2", "seed=1")]
    trials = trials_of([Job(number, Path(str(number)), overrides) for number, overrides in enumerate(lines)])
    assert [trial.settings for trial in trials] == [("optim.lr=1",), ("optim.lr=2",)]
    assert [[each.number for each in trial.jobs] for trial in trials] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch,step,val/f1_macro\n0,9,0.3\n1,18,0.5\n2,27,0.4\n3,36,0.9\n", 0.5),
        ("epoch,val/f1_macro\n0,\n1,0.25\n", 0.25),
        ("epoch,val/f1_macro\n0,nan\n", math.nan),
        ("epoch,train/loss\n0,1\n", math.nan),
        ("epoch,val/f1_macro\n0,much\n", math.nan),
        ("epoch,val/f1_macro\n0,0_9.5\n", math.nan),
        ("epoch,val/f1_macro\n0,99.5\n", math.nan),
        ('epoch,lr,val/f1_macro\n0,"1,0.1\n1,1,0.9"\n', math.nan),
        ("epoch,val/f1_macro\n0,0.1\n0,0.9\n", math.nan),
        ("epoch,val/f1_macro\n0,0.1\n2,0.9\n", math.nan),
        ("epoch,val/f1_macro,val/f1_macro\n0,0.1,0.9\n", math.nan),
        ("epoch,val/f1_macro\n0,0.25\n1,nan\n", 0.25),
        ("epoch,val/f1_macro\n0,0.1,0.9\n", math.nan),
        ("epoch,val/f1_macro\n" + "0,0\n" * 2**21, math.nan),
        ("", math.nan),
        (None, math.nan),
    ],
)
def test_the_score_is_the_best_of_the_epochs_so_far(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert best_score(tmp_path, "val/f1_macro", 3) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"epochs": [1, 3], "eta": 1, "monitor": "x", "kept": []},
        {"epochs": [1, 3], "eta": 3, "monitor": 1, "kept": []},
        {"epochs": 3},
        {"epochs": [1, 3, 9], "eta": 2, "monitor": "val/f1_macro", "kept": [[0, 1], [2]]},
        "[",
        None,
    ],
)
def test_a_damaged_record_is_none(tmp_path, damage):
    if damage is not None:
        (tmp_path / halving.RECORD).write_text(damage if isinstance(damage, str) else json.dumps(damage))
    assert halving.read_search(tmp_path) is None


GOOD = {
    "trainer": {"max_epochs": 9, "check_val_every_n_epoch": 1},
    "monitor": "val/f1_macro",
    "split": {"name": "official"},
    "imbalance": {"name": "none"},
}


@pytest.mark.parametrize(
    ("hydra", "run", "message"),
    [
        ({"sweeper": {"eta": 1, "rungs": 3}}, {}, "hydra.sweeper.eta=1: must be a whole number, at least 2"),
        ({"sweeper": {"eta": 3, "rungs": "x"}}, {}, "hydra.sweeper.rungs=x: must be"),
        ({"launcher": {"submitit_folder": "x"}}, {}, "hydra/sweeper=halving: runs on one machine, not on SLURM"),
        ({}, {"trainer.max_epochs": 12}, "trainer.max_epochs=12, 9|trainer.max_epochs=9, 12"),
        ({}, {"monitor": "val/accuracy"}, "needs the same for all settings"),
        ({}, {"trainer.check_val_every_n_epoch": 2}, "needs a validation by epoch 1, the first rung's end"),
        ({}, {"split.name": "paper"}, "split=paper has no validation set"),
        ({}, {"imbalance": {"name": "tau_norm", "adjust": {}, "first_stage": "x"}}, "trains no epochs of its own"),
    ],
)
def test_searches_that_cannot_be_are_refused(hydra, run, message):
    node = OmegaConf.create({"sweeper": {"eta": 3, "rungs": 3}, "launcher": {}, **hydra})
    other = OmegaConf.create(GOOD)
    for key, value in run.items():
        OmegaConf.update(other, key, value)
    jobs = {Job(0, Path("0"), ("a=1",)): OmegaConf.create(GOOD), Job(1, Path("1"), ("a=2",)): other}
    with pytest.raises(UserError, match=message):
        halving.check_search(node, jobs, {})


def test_jobs_with_a_mistake_are_not_checked(tmp_path):
    node = OmegaConf.create({"sweeper": {"eta": 3, "rungs": 3}, "launcher": {}})
    wrong = OmegaConf.merge(GOOD, {"trainer": {"check_val_every_n_epoch": None}})
    jobs = {Job(0, Path("0"), ("a=1",)): wrong, Job(1, Path("1"), ("a=2",)): OmegaConf.create(GOOD)}
    first, second = jobs
    halving.check_search(node, jobs, {first: "a mistake"})
    with pytest.raises(UserError, match="a mistake"):
        halving.check_search(node, jobs, {first: "a mistake", second: "another"})


def test_a_rung_of_unknown_jobs_ends_the_search(tmp_path, capsys):
    jobs = planned(tmp_path, 0.1, 0.2)
    search = Search((2, 8), 2, "val/f1_macro")
    write_json(tmp_path / halving.RECORD, asdict(search))
    train(search, jobs)
    (tmp_path / "sweep.json").write_text('{"jobs": 1}')
    assert not halving.finish_rung(tmp_path)
    assert capsys.readouterr().out == f"[sweep] {tmp_path / 'sweep.json'}: its jobs are not known; the search ends\n"
    assert halving.read_search(tmp_path) == search


def test_a_rung_without_its_record_ends_the_search(tmp_path, capsys):
    train(Search((2, 8), 2, "val/f1_macro"), planned(tmp_path, 0.1, 0.2))
    assert not halving.finish_rung(tmp_path)
    assert capsys.readouterr().out == f"[sweep] {tmp_path / halving.RECORD}: is missing or damaged; the search ends\n"


def test_one_setting_is_no_search(cli, tmp_path):
    outcome = cli("-m", *TINY, "hydra/sweeper=halving", "trainer.max_epochs=3", "seed=0,1", "hydra.sweep.dir=search")
    assert outcome.code == 2
    assert "hydra/sweeper=halving: has one setting, so nothing to choose" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_rungs_of_a_search(tmp_path, capsys):
    """The folder of a search from rung to rung, without Hydra: 7 settings, two seeds, rungs at 2, 4 and 8 epochs."""
    jobs = planned(tmp_path, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    write_json(tmp_path / halving.RECORD, asdict(Search((2, 4, 8), 2, "val/f1_macro")))
    train(halving.read_search(tmp_path), jobs[:-1])
    assert not halving.finish_rung(tmp_path), "a run is missing"
    train(halving.read_search(tmp_path), jobs)
    before = (tmp_path / halving.RECORD).read_bytes()
    assert halving.finish_rung(tmp_path)
    after = (tmp_path / halving.RECORD).read_bytes()
    (tmp_path / halving.RECORD).write_bytes(before)  # killed before it was written
    assert halving.finish_rung(tmp_path)
    assert (tmp_path / halving.RECORD).read_bytes() == after, "the same decision"
    train(halving.read_search(tmp_path), jobs)
    assert halving.finish_rung(tmp_path)
    assert [state.status for state in job_states(tmp_path, live=False)][-4:] == [
        "stopped",
        "stopped",
        "paused",
        "paused",
    ]
    train(halving.read_search(tmp_path), jobs)
    assert not halving.finish_rung(tmp_path), "the last rung"
    search = halving.read_search(tmp_path)
    assert search.kept == ((8, 9, 10, 11, 12, 13), (12, 13))
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first == (
        "[sweep] rung 1 of 3 (epoch 2 of 8): 3 of 7 settings continue to epoch 4; best val/f1_macro 0.7110"
    )
    assert second.startswith("[sweep] rung 2 of 3 (epoch 4 of 8): 1 of 3 settings continue to epoch 8")
    assert status_of(jobs[0].folder) == {
        "status": "stopped",
        "reason": "by the search after rung 1 of 3 (epoch 2 of 8): val/f1_macro 0.1110, place 6 of 7",
        "pause_after_epochs": 2,
    }
    assert status_of(jobs[6].folder)["status"] == "failed"
    assert [(jobs[number].folder / "started").read_text() for number in (0, 8, 12)] == ["2 ", "2 4 ", "2 4 0 "]
    table = search_table(tmp_path, search)
    assert table["optim.lr"].tolist() == ["0.7", "0.6", "0.5", "0.3", "0.2", "0.1", "0.4"]
    assert table["state"].tolist() == ["finished", *["stopped"] * 5, "failed"]
    assert table["rung"].tolist() == [3, 2, 2, 1, 1, 1, 1]
    assert table["epochs"].tolist() == [8, 4, 4, 2, 2, 2, 0]
    assert write_search(tmp_path, search)[1]
    (jobs[0].folder / "metrics.csv").write_text("epoch,val/f1_macro\n0,7\n")
    capsys.readouterr()
    assert not write_search(tmp_path, search)[1]
    assert "metrics.csv: damaged (val/f1_macro is '7')" in capsys.readouterr().out
    assert table["score"][1] == pytest.approx(0.6 + 0.03 + 0.001)
    assert table["runs"][0] == "12-none 13-none"


@pytest.mark.parametrize(
    ("curves", "problem"),
    [
        ("epoch,val/f1_macro\n0,0.1\n0,0.9\n", "damaged (epoch '0' in place of 1)"),
        ("epoch,val/f1_macro,val/f1_macro\n0,0.1,0.9\n1,0.1,0.9\n", "damaged (a column twice)"),
        ("epoch,val/f1_macro\n0,0.9\n", "has 1 epochs of 2"),
        (None, "has 0 epochs of 2"),
    ],
)
def test_a_rung_is_not_decided_without_the_scores_of_all_runs(tmp_path, capsys, curves, problem):
    jobs = planned(tmp_path, 0.1, 0.2, 0.3)
    write_json(tmp_path / halving.RECORD, asdict(search := Search((2, 8), 3, "val/f1_macro")))
    train(search, jobs)
    file = jobs[2].folder / "metrics.csv"
    complete = file.read_text()
    file.unlink()
    if curves is not None:
        file.write_text(curves)
    assert not halving.finish_rung(tmp_path)
    assert capsys.readouterr().out == (
        f"[sweep] {file}: {problem}: no rung is decided without it; restore the file, or delete the run's folder to "
        "train it again\n"
    )
    assert [state.status for state in job_states(tmp_path, live=False)] == ["paused"] * 6
    file.write_text(complete)
    assert halving.finish_rung(tmp_path)
    assert halving.read_search(tmp_path).kept == ((4, 5),)


def test_a_run_that_never_had_a_score_is_stopped_without_one(tmp_path):
    jobs = planned(tmp_path, 0.1, 0.2)
    write_json(tmp_path / halving.RECORD, asdict(search := Search((2, 8), 2, "val/f1_macro")))
    train(search, jobs)
    (jobs[2].folder / "metrics.csv").write_text("epoch,val/f1_macro\n0,nan\n1,\n")
    assert halving.finish_rung(tmp_path)
    assert status_of(jobs[2].folder)["reason"] == "by the search after rung 1 of 2 (epoch 2 of 8): no score"


def test_stopped_runs_are_left_out_of_a_comparison(tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "status.json", {"status": "stopped", "reason": "by the search after rung 1 of 3"})
    assert read_runs([tmp_path / "run"]) == ([], {tmp_path / "run": "stopped: by the search after rung 1 of 3"})


def test_a_search_keeps_its_rungs(tmp_path):
    sweeper = OmegaConf.create({"eta": 3, "rungs": 3})
    halving.begin(tmp_path, sweeper, OmegaConf.create(GOOD))
    halving.begin(tmp_path, sweeper, OmegaConf.create(GOOD))
    assert halving.read_search(tmp_path) == Search((1, 3, 9), 3, "val/f1_macro")
    with pytest.raises(UserError, match=r"rungs at 1, 3, 9 epochs by val/f1_macro, eta=3, and this one .* 2, 3, 5, 9"):
        halving.begin(tmp_path, OmegaConf.create({"eta": 2, "rungs": 4}), OmegaConf.create(GOOD))
    short = OmegaConf.merge(GOOD, {"trainer": {"max_epochs": 2}})
    for name, eta in (("short", 2), ("short", 3)):
        (tmp_path / name).mkdir(exist_ok=True)
        same_rungs = OmegaConf.create({"eta": eta, "rungs": 2})
        with pytest.raises(UserError, match=r"eta=2, and this one .* eta=3") if eta == 3 else nullcontext():
            halving.begin(tmp_path / name, same_rungs, short)


@pytest.mark.parametrize("kept", [[7], [], [0, 0, 1], [0], [0, 1, 7], [0, 1, 2, 3]])
def test_a_record_of_other_jobs_is_none(tmp_path, kept):
    """A setting continues with all of its seeds, and one of three settings; nothing would be launched otherwise."""
    planned(tmp_path, 0.1, 0.2)
    search = Search((1, 3, 9), 3, "val/f1_macro", (tuple(kept),))
    write_json(tmp_path / halving.RECORD, asdict(search))
    halving.begin(tmp_path, OmegaConf.create({"eta": 3, "rungs": 3}), OmegaConf.create(GOOD))
    assert halving.read_search(tmp_path).kept == ()
    write_json(tmp_path / halving.RECORD, asdict(replace(search, kept=((2, 3),))))
    halving.begin(tmp_path, OmegaConf.create({"eta": 3, "rungs": 3}), OmegaConf.create(GOOD))
    assert halving.read_search(tmp_path).kept == ((2, 3),)


@pytest.mark.parametrize(("together", "expected"), [(False, [(1, 2), (4, 6), (8, 9)]), (True, [(1, 9)])])
def test_jobs_are_launched_at_their_own_numbers(together, expected):
    assert spans([1, 4, 5, 8], together) == expected


@pytest.mark.slow
def test_a_search_from_the_command_line_and_its_resume(cli, tmp_path, monkeypatch):
    """The whole of a search with jobs that do not train."""

    def fake(hydra, folder, resume, pause=None):
        given = dict(line.split("=") for line in hydra.overrides.task if "[" not in line)
        script = f"import sys; argv = sys.argv[1:]\n{FAKE_RUN}"
        words = [str(folder), given["optim.lr"], "0", str(pause or 0)]
        return [sys.executable, "-S", "-c", script, *words]

    start = job._start
    monkeypatch.setattr(job, "command", fake)
    monkeypatch.setattr(job, "_start", lambda *arguments: start(*arguments[:-1], False))  # no module to fork
    monkeypatch.setattr(job, "POLL_SECONDS", 0.05)
    line = ("-m", *TINY, "hydra/sweeper=halving", "hydra.sweeper.eta=2", "hydra.sweep.dir=search")
    line = (*line, "trainer.max_epochs=8", "optim.lr=0.3,0.4,0.7,0.6")
    sweep = tmp_path / "search"
    outcome = cli(*line)
    assert outcome.code == 1, "a setting has failed"
    assert "rung 2 of 3 (epoch 4 of 8): 1 of 2 settings continue to epoch 8" in outcome.out
    assert "run the remaining jobs" not in outcome.out, "what failed has lost"
    assert (outcome.json["report"], outcome.json["unfinished"]) == (None, [])
    assert pd.read_csv(sweep / "trials.csv")["optim.lr"].tolist() == [0.7, 0.6, 0.3, 0.4]
    assert (sweep / "2-none-seed0" / "started").read_text() == "2 4 0 "

    # As if killed in the last rung, with the record of it lost: only what is missing is run again.
    write_json(sweep / "2-none-seed0" / "status.json", {"status": "running"})
    (sweep / halving.RECORD).unlink()
    outcome = cli(*line)
    assert outcome.code == 1, outcome.err
    assert read_json(sweep / halving.RECORD)["kept"] == [[2, 3], [2]]
    started = [(sweep / f"{number}-none-seed0" / "started").read_text() for number in (0, 2, 3)]
    assert started == ["2 ", "2 4 0 2 4 0 ", "2 4 "]
    assert pd.read_csv(sweep / "trials.csv")["state"].tolist() == ["finished", "stopped", "stopped", "failed"]


def test_the_rung_of_a_job():
    search = Search((1, 3, 9), 3, "val/f1_macro", ((0, 2), (2,)))
    assert (search.rung, search.pause) == (2, None)
    assert [search.rung_of(number) for number in range(3)] == [1, 0, 2]
    assert [search.is_active(number) for number in range(3)] == [False, False, True]


@pytest.mark.nightly
def test_a_survivor_has_the_bits_of_a_run_that_never_stopped(forked, tmp_path):
    rates = [0.0001, 0.003]
    run = [*TINY, "augment=light", "trainer.max_epochs=4"]
    search = [*run, "hydra/sweeper=halving", "hydra.sweeper.eta=2", "optim.lr=0.0001,0.003", "hydra.sweep.dir=search"]
    outcome = forked("-m", *search)
    assert outcome.code == 0, outcome.err + outcome.out
    table = pd.read_csv(tmp_path / "search" / "trials.csv")
    assert table["state"].tolist() == ["finished", "stopped"]
    assert table["epochs"].tolist() == [4, 1]
    winner, loser = (tmp_path / "search" / name for name in table["runs"])
    assert not (loser / "metrics.json").exists(), "a run that was stopped has seen no test image"
    rate = rates[int(winner.name[0])]
    assert forked(*run, f"optim.lr={rate}", "hydra.run.dir=whole").code == 0
    assert differences(winner, fingerprint(tmp_path / "whole")) == []


def test_a_job_that_is_stopped_as_soon_as_it_pauses_is_reported(tmp_path, capsys):
    jobs = planned(tmp_path, 0.1, 0.2)[:2]
    for each, status in zip(jobs, ("paused", "running"), strict=True):
        each.folder.mkdir()
        paused = {"pause_after_epochs": 1} if status == "paused" else {}
        write_status(each.folder, "interrupted" if paused else "running", **paused)
    progress = Progress(tmp_path, redrawn=False)
    for each in jobs:
        write_status(each.folder, "stopped", "by the search", pause_after_epochs=1)
    progress.start()
    progress.stop()
    assert [line.partition(" in ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "[sweep] job 2 of 4 stopped"
    ]
