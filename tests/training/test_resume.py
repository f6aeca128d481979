"""Resuming after any interruption: bit for bit, from the last good checkpoint, or refused with a reason."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from command_line import TINY, processes_in
from forked import Forked
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import OmegaConf

from fer_lightning.config.compose import composed
from fer_lightning.config.same_training import check_same_training
from fer_lightning.config.settings import to_plain, without_hydra
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.folder_lock import lock_folder
from fer_lightning.runtime.run_folder import (
    FORMER,
    RESUMABLE,
    keep_record,
    read_status,
    recorded_file,
    settle_record,
    write_status,
)
from fer_lightning.training.checkpoints import LastCheckpoint
from fer_lightning.training.failures import as_user_error

RUN = (*TINY, "data.batch_size=16", "model.head.dropout=0.5", "augment=light")


def prove(folder: Path, sampler: str, workers: int = 0, devices: int = 1, trials: int = 2, seed: int = 0) -> list[Any]:
    """The parts in which killed and resumed runs differ from one that nobody disturbed."""
    set_ups = kill_and_resume.setups([sampler], [workers], [devices]).items()
    assert set_ups
    rows = [
        kill_and_resume.prove(name, overrides, trials, seed, processes, folder)
        for name, (overrides, processes) in set_ups
    ]
    assert all(row["identical"] + len(row["wrong"]) == trials for row in rows)
    return [wrong for row in rows for wrong in row["wrong"]]


@pytest.mark.parametrize(
    "forgotten",
    [
        pytest.param("position", marks=pytest.mark.nightly),
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("nothing", "random states", "metric sums")),
    ],
)
def test_the_proof_notices_what_is_missing(tmp_path, forgotten):
    """The negative control: without one part of the state the same comparison must fail."""
    different = set(kill_and_resume.control(forgotten, tmp_path)["different"])
    if forgotten in ("nothing", "metric sums"):
        assert different == ({"metrics.csv"} if forgotten == "metric sums" else set())
    else:
        assert {"state_dict", "optimizer_states", "predictions.csv"} <= different


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "undersample" else pytest.mark.nightly)
        for name in kill_and_resume.SAMPLERS
    ],
)
def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path, sampler):
    assert prove(tmp_path, sampler) == []


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "sampler",
    [pytest.param("cmo", marks=pytest.mark.slow), pytest.param("oversample", marks=pytest.mark.nightly)],
)
def test_killed_with_loader_processes(tmp_path, sampler):
    assert prove(tmp_path, sampler, workers=2, trials=1, seed=3) == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_one_of_two_processes_killed(tmp_path):
    assert prove(tmp_path, "none", devices=2, trials=1) == []


@pytest.fixture
def start(tmp_path: Path):
    """Starts a run as a real process; ends what is left of it. With a ``script`` or workers it is not forked."""
    started: list[Forked | subprocess.Popen[str]] = []

    def begin(*overrides: str, script: str = "") -> Forked | subprocess.Popen[str]:
        if not script and not any(word.startswith("data.num_workers") for word in overrides):
            started.append(Forked(list(overrides), tmp_path, dict(os.environ)))
            return started[-1]
        command = [sys.executable, *([script] if script else ["-m", "fer_lightning"]), *overrides]
        run = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and their children with them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(run)
        return run

    yield begin
    for run in started:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def wait_for(run: "Forked | subprocess.Popen[str]", text: str) -> None:
    """Read the output up to ``text``."""
    assert run.stdout is not None
    seen = []
    for line in run.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def same(first: Path, second: Path) -> list[str]:
    return kill_and_resume.differences(first, kill_and_resume.fingerprint(second))


@pytest.mark.parametrize(
    ("signum", "overrides"),
    [
        (signal.SIGTERM, ["callbacks=ema", "callbacks.ema.decay=0.9", "trainer.accumulate_grad_batches=2"]),
        pytest.param(
            signal.SIGUSR1,
            [
                "augment.backend=albumentations",
                "data.num_workers=1",
                "optim.schedule=one_cycle",
                "optim.warmup_fraction=0.3",
            ],
            marks=pytest.mark.nightly,
        ),
        pytest.param(signal.SIGTERM, ["trainer.devices=2"], marks=pytest.mark.nightly),
    ],
    ids=["SIGTERM", "SIGUSR1", "two processes"],
)
@pytest.mark.slow
def test_a_signal_saves_within_the_epoch_and_the_rest_is_the_same(start, forked, tmp_path, signum, overrides):
    run = [*RUN, "trainer.max_epochs=4", *overrides]
    assert forked(*run, "hydra.run.dir=whole").code == 0
    first = start(*run, "hydra.run.dir=parts")
    wait_for(first, "epoch 2/4")
    begun = time.monotonic()
    first.send_signal(signum)
    assert first.wait(60) == RESUMABLE
    assert time.monotonic() - begun < 30
    status = read_status(tmp_path / "parts")
    assert (status["status"], status["reason"]) == ("interrupted", f"stopped by {signum.name}")
    assert status["step"] > 0
    assert processes_in(tmp_path) == []
    again = forked(*run, "hydra.run.dir=parts", "resume=auto")
    assert again.code == 0, again.err
    assert "epoch 2/4" not in again.out
    assert same(tmp_path / "parts", tmp_path / "whole") == []


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        pytest.param(500, "saved at step ", marks=pytest.mark.slow),
        (1, "nothing was trained yet, start again "),
    ],
    ids=["late", "early"],
)
def test_ctrl_c_reports_how_to_resume(start, tmp_path, epochs, message):
    run = start(*RUN, f"trainer.max_epochs={epochs}", "hydra.run.dir=run")
    if epochs > 1:
        wait_for(run, "epoch 1/500")
    else:
        while not (tmp_path / "run" / "status.json").exists():
            assert run.poll() is None
            time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 130
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: interrupted; {message}")
    assert line.endswith(f"with resume=auto hydra.run.dir={tmp_path / 'run'}")
    assert "Traceback" not in output


def test_a_signal_while_nothing_can_be_saved_ends_the_run_at_once(start, tmp_path):
    run = start(*RUN, "data.source.images=100000", "hydra.run.dir=run")
    status = tmp_path / "run" / "status.json"
    while not status.exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == RESUMABLE
    assert read_status(tmp_path / "run") == {"status": "interrupted", "reason": "stopped by SIGTERM", "step": 0}


@pytest.mark.slow
def test_a_dead_process_of_a_run_ends_the_others(start, tmp_path):
    run = start(*RUN, "trainer.devices=2", "trainer.max_epochs=500", "hydra.run.dir=run")
    wait_for(run, "epoch 1/500")
    (other,) = [pid for pid in processes_in(tmp_path) if pid != run.pid]
    begun = time.monotonic()
    os.kill(other, signal.SIGKILL)
    assert run.wait(60) != 0
    while processes_in(tmp_path):
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    assert read_status(tmp_path / "run")["status"] in ("failed", "running")


@pytest.mark.slow
def test_without_its_first_process_no_other_stays(start, tmp_path):
    run = start(*RUN, "trainer.devices=2", "trainer.max_epochs=500", "hydra.run.dir=run")
    wait_for(run, "epoch 1/500")
    assert len(processes_in(tmp_path)) == 2
    run.kill()
    begun = time.monotonic()
    while processes_in(tmp_path):
        assert time.monotonic() - begun < 60
        time.sleep(0.1)


def signal_in_validation(number: int, seconds: float) -> Callable[[], None]:
    """Validation that takes so long that a SIGTERM in the ``number``-th one cannot wait for its end."""

    def arm() -> None:
        original, calls = kill_and_resume.EmotionClassifier.validation_step, itertools.count(1)

        def validation_step(*arguments: Any) -> None:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(seconds)
            original(*arguments)

        kill_and_resume.EmotionClassifier.validation_step = validation_step
        LastCheckpoint.PATIENCE_SECONDS = seconds / 2

    return arm


class TestLongValidation:
    """A signal that comes in a validation for which there is no time costs one step and the validation."""

    @pytest.mark.parametrize(
        ("overrides", "number", "saved"),
        [
            pytest.param([], 1, 17, marks=pytest.mark.slow),
            pytest.param(
                ["callbacks=ema", "callbacks.ema.decay=0.9", "augment.backend=albumentations", "data.num_workers=1"],
                2,
                35,
                marks=pytest.mark.nightly,
            ),
            pytest.param(["trainer.accumulate_grad_batches=4"], 2, 9, marks=pytest.mark.nightly),
            pytest.param(["trainer.accumulate_grad_batches=3"], 1, 5, marks=pytest.mark.nightly),
            pytest.param(["trainer.limit_train_batches=7"], 1, 6, marks=pytest.mark.nightly),
            pytest.param(["trainer.limit_train_batches=1"], 2, 1, marks=pytest.mark.nightly),
            pytest.param(["trainer.check_val_every_n_epoch=2"], 1, 35, marks=pytest.mark.nightly),
            pytest.param(["trainer.max_steps=30"], 2, 29, marks=pytest.mark.nightly),
            pytest.param(["save_every_n_steps=4"], 1, 17, marks=pytest.mark.nightly),
        ],
    )
    def test_one_step_is_repeated(self, tmp_path, overrides, number, saved):
        run = [*RUN, f"trainer.max_epochs={number + 1}", *overrides]
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        assert kill_and_resume.run_forked(whole, run) == 0
        begun = time.monotonic()
        assert kill_and_resume.run_forked(parts, run, signal_in_validation(number, 0.3)) == RESUMABLE
        assert time.monotonic() - begun < 30
        status = read_status(parts)
        assert (status["reason"], status["step"]) == ("stopped by SIGTERM in a long validation", saved)
        assert kill_and_resume.run_forked(parts, [*run, "resume=auto"]) == 0
        assert same(parts, whole) == []

    @pytest.mark.nightly
    def test_again_in_the_resumed_one(self, tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        assert kill_and_resume.run_forked(whole, [*RUN]) == 0
        for _ in range(2):
            run = [*RUN, "resume=auto"]
            assert kill_and_resume.run_forked(parts, run, signal_in_validation(1, 0.3)) == RESUMABLE
            assert read_status(parts)["step"] == 17
        assert kill_and_resume.run_forked(parts, run) == 0
        assert same(parts, whole) == []

    @pytest.mark.nightly
    def test_a_short_one_costs_nothing_after_the_first(self, cli, monkeypatch):
        saved = []
        monkeypatch.setattr(LastCheckpoint, "_save", lambda self, trainer: saved.append(trainer.global_step))
        assert cli(*RUN, "trainer.max_epochs=3").code == 0
        assert saved == [17, 18, 36, 54]
        saved.clear()
        monkeypatch.setattr(LastCheckpoint, "PATIENCE_SECONDS", 0.0)
        assert cli(*RUN, "trainer.max_epochs=3").code == 0
        assert saved == [17, 18, 35, 36, 53, 54]

    @pytest.mark.nightly
    def test_two_processes(self, start, process, tmp_path):
        """In real time: a validation of half a minute, a signal from outside, 30 s to be gone."""
        slow = (
            "import time\nfrom fer_lightning.__main__ import main\n"
            "from fer_lightning.model.classifier import EmotionClassifier\n"
            "original = EmotionClassifier.validation_step\n"
            "def validation_step(self, batch, batch_idx):\n"
            "    open('validating', 'w').close()\n"
            "    time.sleep(7)\n"
            "    original(self, batch, batch_idx)\n"
            "EmotionClassifier.validation_step = validation_step\n"
            "main()\n"
        )
        (tmp_path / "slow.py").write_text(slow)
        run = [*RUN, "trainer.devices=2", "data.batch_size=4", "trainer.limit_train_batches=5", "hydra.run.dir=parts"]
        first = start(*run, script="slow.py")
        while not (tmp_path / "validating").exists():
            assert first.poll() is None
            time.sleep(0.1)
        begun = time.monotonic()
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == RESUMABLE
        assert 15 < time.monotonic() - begun < 30
        assert read_status(tmp_path / "parts")["step"] == 4
        assert processes_in(tmp_path) == []
        assert process(*run, "resume=auto").code == 0
        assert process(*run[:-1], "hydra.run.dir=whole").code == 0
        assert same(tmp_path / "parts", tmp_path / "whole") == []


@pytest.mark.slow
class TestGradScaler:
    """That of ``16-mixed``, with its own plugin, on the CPU: there a run that asks for it is refused."""

    RUN = (*RUN, "trainer.precision=bf16-mixed", "save_every_n_steps=5")

    @staticmethod
    def arm() -> None:
        original = MixedPrecision.__init__

        def init(self: Any, precision: str, device: str) -> None:
            original(self, "16-mixed", device, torch.amp.GradScaler(device, init_scale=2.0**18, growth_interval=8))

        MixedPrecision.__init__ = init

    def test_scale_and_growth_tracker_are_resumed(self, tmp_path):
        whole, parts, without = (tmp_path / name for name in ("whole", "parts", "without"))
        assert kill_and_resume.run_forked(whole, [*self.RUN], self.arm) == 0
        bomb = kill_and_resume.on_call(kill_and_resume.EmotionClassifier, "training_step", 12)
        assert kill_and_resume.run_forked(parts, [*self.RUN], lambda: (self.arm(), bomb())) == -9
        checkpoint = read_checkpoint(parts / "checkpoints" / "last.ckpt")
        assert checkpoint["MixedPrecision"]["scale"] < 2.0**18, "it has skipped steps that overflowed"
        assert checkpoint["MixedPrecision"]["_growth_tracker"] > 0
        assert kill_and_resume.run_forked(parts, [*self.RUN, "resume=auto"], self.arm) == 0
        assert same(parts, whole) == []

        del checkpoint["MixedPrecision"]  # the negative control
        (without / "checkpoints").mkdir(parents=True)
        torch.save(checkpoint, without / "checkpoints" / "last.ckpt")
        assert kill_and_resume.run_forked(without, [*self.RUN, "resume=auto"], self.arm) == 0
        assert {"MixedPrecision", "state_dict", "predictions.csv"} <= set(same(without, whole))


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory) -> tuple[Path, Path]:
    """A run that was killed in its second epoch, and the same one undisturbed; both are read only."""
    folder = tmp_path_factory.mktemp("killed")
    run = [*RUN, "trainer.max_epochs=2"]
    bomb = kill_and_resume.on_call(kill_and_resume.EmotionClassifier, "training_step", 25)
    assert kill_and_resume.run_forked(folder / "run", [*run, *SAVE], bomb) == -9
    assert kill_and_resume.run_forked(folder / "whole", run) == 0
    return folder / "run", folder / "whole"


class TestTornCheckpoints:
    @pytest.fixture
    def killed(self, tmp_path, killed_once) -> Path:
        shutil.copytree(killed_once[0], tmp_path / "run")
        return tmp_path / "run" / "checkpoints"

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param("cut", marks=pytest.mark.slow),
            *(pytest.param(name, marks=pytest.mark.nightly) for name in ("flipped", "empty")),
        ],
    )
    def test_the_one_before_is_used(self, cli, killed, killed_once, damage):
        content = bytearray((killed / "last.ckpt").read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        keep = {"cut": len(content) // 3, "flipped": len(content), "empty": 0}[damage]
        (killed / "last.ckpt").write_bytes(content[:keep])
        outcome = cli(*RUN, "trainer.max_epochs=2", "resume=auto", f"hydra.run.dir={killed.parent}")
        assert outcome.code == 0, outcome.err
        assert "last.ckpt: not a checkpoint, or a damaged one" in outcome.out + outcome.err
        assert "resuming from the previous one" in outcome.out + outcome.err
        assert (killed / "torn.ckpt").read_bytes() == content[:keep]
        read_checkpoint(killed / "previous.ckpt")
        assert same(killed.parent, killed_once[1]) == []

    @pytest.mark.slow
    def test_without_a_good_one_nothing_is_overwritten(self, cli, killed):
        for name in ("last.ckpt", "previous.ckpt"):
            (killed / name).write_bytes(b"torn")
        outcome = cli(*RUN, "trainer.max_epochs=2", "resume=auto", f"hydra.run.dir={killed.parent}")
        assert outcome.code == 2
        assert "previous.ckpt: not a checkpoint, or a damaged one" in outcome.error
        assert (killed / "last.ckpt").read_bytes() == b"torn"

    @pytest.mark.slow
    def test_a_kill_between_the_two_renames_loses_nothing(self, cli, killed):
        (killed / "last.ckpt").replace(killed / "previous.ckpt")
        outcome = cli(*RUN, "trainer.max_epochs=2", "resume=auto", f"hydra.run.dir={killed.parent}")
        assert outcome.code == 0, outcome.err
        assert f"resuming from {killed / 'previous.ckpt'}: epoch 2" in outcome.out


SAVE = ("save_every_n_steps=3",)


class TestFinishedTraining:
    @pytest.mark.slow
    def test_only_the_test_is_made_again(self, cli, tmp_path):
        run = [*RUN, f"hydra.run.dir={tmp_path / 'run'}"]
        assert cli(*run).code == 0
        before = read_json(tmp_path / "run" / "metrics.json")
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (tmp_path / "run" / "metrics.json").unlink()
        outcome = cli(*run, "resume=auto")
        assert outcome.code == 0, outcome.err
        assert "epoch 1/1" not in outcome.out
        assert same(tmp_path / "run", tmp_path / "copy") == []
        assert read_json(tmp_path / "run" / "metrics.json")["train/seconds"] == before["train/seconds"]

    @pytest.mark.slow
    def test_an_early_stop_is_remembered(self, cli, tmp_path):
        settings = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optim.lr=0.1"]
        run = [*RUN, *settings, "trainer.max_epochs=30", f"hydra.run.dir={tmp_path / 'run'}"]
        assert cli(*run).code == 0
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        rows = (tmp_path / "run" / "metrics.csv").read_text()
        assert len(rows.splitlines()) < 30
        outcome = cli(*run, "resume=auto")
        assert outcome.code == 0, outcome.err
        assert (tmp_path / "run" / "metrics.csv").read_text() == rows
        assert same(tmp_path / "run", tmp_path / "copy") == []


class TestRefused:
    @pytest.mark.slow
    def test_a_folder_that_holds_a_run(self, cli, tmp_path):
        run = [*TINY, f"hydra.run.dir={tmp_path / 'run'}"]
        assert cli(*run).code == 0
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        outcome = cli(*run, "imbalance=focal")
        assert outcome.code == 2
        assert "holds a run already; resume it with resume=auto, or choose another folder" in outcome.error
        assert {path: path.read_bytes() for path in before} == before

    def test_a_finished_run_stays_as_it_is(self, cli, tmp_path):
        run = [*TINY, f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
        assert cli(*run).code == 0
        kept = [tmp_path / "run" / name for name in ("status.json", "metrics.json", ".hydra/config.yaml")]
        before = [path.read_bytes() for path in kept]
        for change, reason in (
            ("data.batch_size=16", "data.batch_size was 32 there and cannot become 16"),
            ("imbalance=focal", "imbalance.name was 'none' there and cannot become 'focal'"),
        ):
            outcome = cli(*run, change)
            assert (outcome.code, reason in outcome.error) == (2, True), outcome.error
            assert [path.read_bytes() for path in kept] == before
        averaged = [*TINY, f"hydra.run.dir={tmp_path / 'averaged'}"]
        assert cli(*averaged, "callbacks=ema").code == 0
        assert "callbacks.ema._target_ was" in cli(*averaged, "resume=auto").error
        replacing = cli(*averaged, "callbacks=ema", f"resume={tmp_path / 'run'}", "trainer.max_epochs=2")
        assert f"holds a training, which that of resume={tmp_path / 'run'} would replace" in replacing.error
        other = cli(*run, "data.source.seed=1")  # found when the images are read
        assert (other.code, "trained on other images" in other.error) == (2, True), other.error
        assert [path.read_bytes() for path in kept] == before
        rehearsal = cli(*run, "trainer.fast_dev_run=true")
        assert (rehearsal.code, "a rehearsal saves nothing" in rehearsal.error) == (2, True), rehearsal.error
        unrecorded = cli(*run, "hydra.output_subdir=null")
        assert (unrecorded.code, "could not be compared" in unrecorded.error) == (2, True), unrecorded.error
        assert cli(*run).code == 0
        assert read_status(tmp_path / "run")["status"] == "done"

    def test_a_paused_run_stays_as_it_is(self, cli, tmp_path):
        """Also where the mistake is found only when the images or the checkpoint are read."""
        weights = "imbalance.loss.weights={disgust: 50}"
        run = [*TINY, "imbalance=focal", weights, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path / 'run'}"]
        assert cli(*run, "pause_after_epochs=2").code == RESUMABLE
        kept = [tmp_path / "run" / name for name in ("status.json", ".hydra/config.yaml", ".hydra/overrides.yaml")]
        before = [path.read_bytes() for path in kept]
        for change, reason in (
            ("optim.lr=0.5", "optim.lr was 0.001 there and cannot become 0.5"),
            ("imbalance.loss.weights=null", "imbalance.loss.weights was {'disgust': 50} there and cannot become None"),
            ("~imbalance.loss.gamma", "imbalance.loss.gamma was 2.0 there and cannot be left out"),
            ("trainer.limit_val_batches=1", "trainer.limit_val_batches was None there and cannot become 1"),
            ("trainer.fast_dev_run=true", "trainer.fast_dev_run=true: a rehearsal saves nothing"),
            ("trainer.max_epochs=1", "was trained for more than trainer.max_epochs=1; give at least 2"),
            ("data.source.seed=1", "it was trained on other images"),
        ):
            words = [weights] if change == "imbalance.loss.weights=null" else []
            outcome = cli(*(word for word in run if word not in words), change, "resume=auto")
            assert (outcome.code, reason in outcome.error) == (2, True), outcome.error
            assert [path.read_bytes() for path in kept] == before
        write_status(tmp_path / "run", "running")  # as its sweep does
        assert "optim.lr was" in cli(*run, "optim.lr=0.5", "resume=auto").error
        assert "optim.lr was" in read_status(tmp_path / "run")["reason"]
        assert cli(*run, "resume=auto").code == 0
        assert not (tmp_path / "run" / FORMER).exists()

    @pytest.mark.parametrize(
        ("then", "now", "message"),
        [
            ("imbalance/mix=mixup", "", "imbalance.mix._target_ was '[^']+' there and cannot be left out"),
            ("", "imbalance/mix=mixup", "imbalance.mix._target_ was not set there and cannot become"),
            ("trainer.check_val_every_n_epoch=2", "", "check_val_every_n_epoch was 2 there and cannot become 1"),
            ("callbacks=swa", "callbacks=swa trainer.max_epochs=31", "max_epochs was 30 there and cannot become 31"),
            ("callbacks=swa trainer.max_epochs=31", "", "callbacks.swa._target_ was"),
            ("", "trainer.max_epochs=31", None),
            ("imbalance=focal", "imbalance=focal", None),
        ],
    )
    def test_a_setting_that_is_given_or_left_out(self, then, now, message):
        configs = []
        for words in (then, now):
            with composed(["resume=auto", *words.split()]) as cfg:
                configs.append(OmegaConf.create(to_plain(without_hydra(cfg))))
        with pytest.raises(UserError, match=message) if message else nullcontext():
            check_same_training(configs[1], configs[0])

    def test_the_record_of_a_start_that_was_killed_is_kept(self, tmp_path):
        """Between the record of a new start and the check of its checkpoint."""
        record = tmp_path / ".hydra" / "config.yaml"
        record.parent.mkdir()
        for content in ("trained", "killed", "refused"):
            record.write_text(content)
            keep_record(tmp_path, ".hydra")
            assert recorded_file(tmp_path, ".hydra/config.yaml").read_text() == "trained"
        settle_record(tmp_path, started=False)
        assert (record.read_text(), os.listdir(tmp_path)) == ("trained", [".hydra"])
        keep_record(tmp_path, ".hydra")
        record.write_text("started")
        settle_record(tmp_path, started=True)
        assert (record.read_text(), os.listdir(tmp_path)) == ("started", [".hydra"])

    def test_the_best_checkpoint_of_another_training(self, cli, tmp_path):
        for name, words in (("run", ["pause_after_epochs=1", "trainer.max_epochs=2"]), ("other", ["seed=1"])):
            assert cli(*TINY, *words, f"hydra.run.dir={tmp_path / name}").code in (0, 75)
        best = tmp_path / "run" / "checkpoints" / "best.ckpt"
        own = best.read_bytes()
        run = [*TINY, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
        damaged = torch.load(best, weights_only=True)
        damaged["callbacks"]["Curves"] = torch.zeros(3)
        torch.save(damaged, tmp_path / "damaged.ckpt")
        others = (tmp_path / "other" / "checkpoints" / "best.ckpt", tmp_path / "damaged.ckpt")
        for content in (*(other.read_bytes() for other in others), own):
            best.write_bytes(content)
            outcome = cli(*run)
            assert outcome.code == (0 if content == own else 2), outcome.err
            assert content == own or "best.ckpt: is of another training than last.ckpt; remove it" in outcome.error

    @pytest.mark.slow
    def test_a_folder_that_is_being_worked_in(self, cli, tmp_path):
        (tmp_path / "run").mkdir()
        with lock_folder(tmp_path / "run"):
            command = [sys.executable, "-m", "fer_lightning", *TINY, f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert "another process is working in this folder" in done.stderr
        assert not (tmp_path / "run" / "status.json").exists()

    @pytest.mark.nightly
    def test_another_batch_within_an_epoch(self, cli, tmp_path):
        bomb = kill_and_resume.on_call(kill_and_resume.EmotionClassifier, "training_step", 10)
        folder = tmp_path / "run"
        assert kill_and_resume.run_forked(folder, [*RUN, *SAVE], bomb) == -9
        for change in ("data.batch_size=32", "imbalance=focal", "trainer.devices=2"):
            outcome = cli(*RUN, change, "resume=auto", f"hydra.run.dir={folder}")
            assert outcome.code == 2
            assert "cannot become" in outcome.error or "as many devices" in outcome.error

    @pytest.mark.nightly
    def test_more_epochs_of_one_cycle(self, cli, tmp_path):
        run = [*TINY, "optim.schedule=one_cycle", "optim.warmup_fraction=0.3", f"hydra.run.dir={tmp_path / 'run'}"]
        assert cli(*run).code == 0
        outcome = cli(*run, "trainer.max_epochs=2", "resume=auto")
        assert outcome.code == 2
        assert "trainer.max_epochs was 1 there and cannot become 2" in outcome.error


class TestOutOfMemory:
    def test_names_the_batch_size_to_try(self, cli, tmp_path):
        outcome = cli(*TINY, "model.image_size=65536", "hydra.run.dir=run")
        assert outcome.code == 2
        assert "out of memory at data.batch_size=32, model.image_size=65536; try data.batch_size=16" in outcome.error
        assert read_status(tmp_path / "run")["status"] == "failed"

    @pytest.mark.parametrize(("devices", "batch", "words"), [(1, 24, "=12 "), (2, 12, "=6 "), (8, 8, "smaller model")])
    def test_of_a_gpu_too(self, devices: int, batch: int, words: str):
        cfg: Any = OmegaConf.create(
            {
                "data": {"batch_size": batch},
                "model": {"image_size": 112},
                "trainer": {"devices": devices, "num_nodes": 1, "accumulate_grad_batches": 1},
            }
        )
        error = as_user_error(torch.OutOfMemoryError("CUDA out of memory. Tried..."), cfg, Path("run"))
        assert error is not None
        assert words in str(error)


@pytest.mark.nightly
def test_curves_have_every_epoch_once(cli, tmp_path: Path):
    folder = tmp_path / "run"
    bomb: Callable[[], None] = kill_and_resume.on_call(kill_and_resume.EmotionClassifier, "training_step", 30)
    assert kill_and_resume.run_forked(folder, [*RUN, "trainer.max_epochs=3"], bomb) == -9
    assert cli(*RUN, "trainer.max_epochs=3", "resume=auto", f"hydra.run.dir={folder}").code == 0
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert rows[0][:3] == ["epoch", "step", "lr"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"]
    assert all(all(row) for row in rows), "no gaps"
