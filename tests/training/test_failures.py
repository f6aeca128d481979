"""Runs that end early, through the real entry: a loss of NaN, a full disk, a checkpoint that cannot be resumed."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from archives import tiny_faces
from command_line import TINY, Outcome, assert_refused
from legs import every_third
from trap import Trap

from fer_lightning import evaluate
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.run_folder import read_status
from fer_lightning.training.failures import record_failure


class TestDivergence:
    def test_first_epoch_leaves_no_checkpoint(self, cli, tmp_path):
        outcome = cli(*TINY, "optim.lr=1e30", "trainer.gradient_clip_val=null")
        assert_refused(outcome, tmp_path, "the loss became NaN or infinite in epoch 1", "smaller optim.lr")

    @pytest.mark.parametrize("split", every_third(["official", "paper"]))
    def test_last_step_counts_too(self, cli, tmp_path, split):
        # One step: its own loss is finite, and only the weights that it leaves are broken.
        outcome = cli(
            *TINY, f"split={split}", "trainer.limit_train_batches=1", "optim.lr=1e30", "trainer.gradient_clip_val=null"
        )
        assert_refused(outcome, tmp_path, "NaN or infinite")

    @pytest.mark.nightly
    def test_last_step_before_a_rare_validation_counts_too(self, cli, tmp_path):
        outcome = cli(
            *TINY,
            "trainer.check_val_every_n_epoch=2",
            "trainer.max_epochs=2",
            "trainer.limit_train_batches=1",
            "model.freeze_epochs=1",
            "optim.backbone_lr_scale=1e30",
            "trainer.gradient_clip_val=null",
            "hydra.run.dir=run",
        )
        assert "NaN or infinite in epoch 2" in outcome.error
        left = {path.stem: read_checkpoint(path)["epoch"] for path in (tmp_path / "run" / "checkpoints").iterdir()}
        assert left == {"last": 0}

    @pytest.mark.nightly
    def test_later_epoch_keeps_the_last_good_checkpoint(self, cli, tmp_path):
        # The backbone is frozen in the first epoch, so its absurd learning rate strikes in the second.
        outcome = cli(
            *TINY,
            "model.freeze_epochs=1",
            "optim.backbone_lr_scale=1e30",
            "trainer.gradient_clip_val=null",
            "trainer.max_epochs=3",
            "hydra.run.dir=run",
        )
        assert outcome.code == 2
        assert "the loss became NaN or infinite in epoch 2" in outcome.error
        assert read_status(tmp_path / "run")["status"] == "failed"
        assert not (tmp_path / "run" / "metrics.json").exists()
        for name in ("best", "last"):
            path = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
            assert read_checkpoint(path)["epoch"] == 0
            logits = EmotionClassifier.load(path)(torch.from_numpy(tiny_faces().images))
            assert torch.isfinite(logits).all()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses writes beyond this size: a disk quota in miniature, for this process only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def resume(self, cli: Callable[..., Outcome], run: Path) -> Outcome:
        return cli(*TINY, f"hydra.run.dir={run}", "resume=auto", "trainer.max_epochs=3")

    def check(self, outcome: Outcome, run: Path, before: dict[str, bytes]) -> None:
        assert outcome.code == 2
        assert "disk full while writing" in outcome.error
        assert "the last complete checkpoint is kept" in outcome.error
        status = read_status(run)
        assert status["status"] == "failed"
        assert "disk full" in status["reason"]
        assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
        EmotionClassifier.load(run / "checkpoints" / "last.ckpt")

    @pytest.fixture
    def first(self, cli) -> Callable[[Path], dict[str, bytes]]:
        def train(run: Path) -> dict[str, bytes]:
            assert cli(*TINY, f"hydra.run.dir={run}").code == 0
            (run / "metrics.json").unlink()
            return {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}

        return train

    @pytest.mark.nightly
    def test_quota(self, cli, tmp_path, first):
        before = first(tmp_path / "run")
        with largest_file(100_000):
            outcome = self.resume(cli, tmp_path / "run")
        self.check(outcome, tmp_path / "run", before)

    @pytest.mark.slow
    def test_device(self, cli, tmp_path, first, mounted):
        disk = mounted("8m")
        before = first(disk / "run")
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(shutil.disk_usage(disk).free - 200_000))
        self.check(self.resume(cli, disk / "run"), disk / "run", before)


class TestCheckpoints:
    @pytest.fixture
    def trap(self, tmp_path) -> Path:
        trap, sprung = tmp_path / "trap.ckpt", tmp_path / "sprung"
        torch.save({"state_dict": {}, "hyper_parameters": Trap(sprung)}, trap)
        torch.load(trap, weights_only=False)
        assert sprung.exists()  # it works
        sprung.unlink()
        return trap

    def test_unsafe_one_is_refused_by_evaluate(self, tmp_path, trap):
        with pytest.raises(UserError, match=r"trap\.ckpt: would run code when it is loaded, and is refused"):
            evaluate.main([str(trap)])
        assert not (tmp_path / "sprung").exists()

    def test_unsafe_one_is_refused_by_resume(self, cli, tmp_path, trap):
        outcome = cli(*TINY, f"resume={trap}")
        assert_refused(outcome, tmp_path, "trap.ckpt: would run code when it is loaded, and is refused")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize(
        ("content", "words"),
        every_third(
            [
                (b"", "not a checkpoint, or a damaged one"),
                (b"hello", "not a checkpoint, or a damaged one"),
                (None, "no such checkpoint"),
            ]
        ),
        ids=["empty", "text", "folder without one"],
    )
    def test_resume_from_what_is_no_checkpoint(self, cli, tmp_path, content, words):
        given = tmp_path / "given"
        if content is None:
            given.mkdir()
        else:
            given.write_bytes(content)
        assert_refused(cli(*TINY, f"resume={given}"), tmp_path, words)

    @pytest.mark.parametrize(
        "content", every_third([[1], {"state_dict": {}}, timm.create_model("test_efficientnet").state_dict()])
    )
    def test_resume_from_a_checkpoint_of_something_else(self, cli, tmp_path, content):
        torch.save(content, tmp_path / "other.ckpt")
        assert_refused(cli(*TINY, "resume=other.ckpt"), tmp_path, "other.ckpt: not a checkpoint of fer_lightning")

    @pytest.mark.nightly
    def test_resume_with_another_model(self, cli, tmp_path):
        assert cli(*TINY, "hydra.run.dir=first").code == 0
        outcome = cli(*TINY, "hydra.run.dir=second/run", "resume=first", "model.head.hidden=[32]")
        assert_refused(
            outcome, tmp_path / "second", "resume=first: model.head.hidden was [64] there and cannot become [32]"
        )


def test_a_reason_holds_no_secret(tmp_path: Path, monkeypatch) -> None:
    """Libraries write whole addresses into their errors."""
    monkeypatch.setenv("MY_API_KEY", "q4wertyuiop")
    record_failure(RuntimeError("no answer of http://localhost/?key=q4wertyuiop"), tmp_path)
    assert read_status(tmp_path)["reason"] == "no answer of http://localhost/?key=..."
