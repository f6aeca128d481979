"""What only a GPU can show; skipped without one."""

import json
from typing import Any

import lightning as L
import pytest
import torch
from command_line import TINY, only_run

from fer_lightning.training import build
from fer_lightning.training import run as training_run
from fer_lightning.training.build import build_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

GPU = (*TINY, "trainer.accelerator=gpu")


class ForbidWaits(L.Callback):
    """Has torch raise where the host would wait for the GPU, from the second batch of an epoch to the sixth."""

    def __init__(self) -> None:
        self.watched = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 0 <= batch_idx < 5 else "default")
        self.watched += batch_idx < 5


@pytest.mark.parametrize(
    "overrides",
    [
        ["augment=strong"],
        ["augment=strong", "imbalance=cmo", "optim.sam_rho=0.05"],
        ["augment=light", "imbalance=focal", "callbacks=ema", "trainer.precision=bf16-mixed"],
    ],
    ids=" ".join,
)
def test_no_step_waits_for_its_device(cli, monkeypatch, overrides):
    watch = ForbidWaits()

    def with_watch(*arguments: Any, **named: Any) -> L.Trainer:
        trainer = build_trainer(*arguments, **named)
        trainer.callbacks.append(watch)
        return trainer

    monkeypatch.setattr(build, "build_trainer", with_watch)
    try:
        outcome = cli(*GPU, *overrides)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outcome.code == 0, outcome.err
    assert watch.watched == 5


def test_images_live_on_the_gpu(cli, monkeypatch):
    runs = []
    run = training_run._train_and_test

    def kept(*arguments: Any) -> Any:
        runs.append(run(*arguments))
        return runs[-1]

    monkeypatch.setattr(training_run, "_train_and_test", kept)
    for device, place in (("auto", "cuda"), ("cpu", "cpu")):
        assert cli(*GPU, "augment=light", f"data.device={device}").code == 0
        images = runs[-1].datamodule.kept["train"].images.images
        assert (images.device.type, images.dtype) == (place, torch.uint8)


def test_a_resumed_run_ends_with_the_same_bits(cli, tmp_path):
    same = [*GPU, "augment=strong", "trainer.deterministic=true", "optim.schedule=constant", "optim.warmup_fraction=0"]
    assert cli(*same, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path / 'whole'}").code == 0
    assert cli(*same, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'parts'}").code == 0
    assert cli(*same, "trainer.max_epochs=3", "resume=auto", f"hydra.run.dir={tmp_path / 'parts'}").code == 0
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert all(torch.equal(whole["state_dict"][key], parts["state_dict"][key]) for key in whole["state_dict"])


def test_out_of_memory_says_which_batch_size_to_try(process):
    images = ["data.source.images=60000", "data.batch_size=40000", "model.image_size=224", "model.stem_stride=1"]
    outcome = process(*GPU, *images, "model=tf_efficientnetv2_s", "model.weights=none", timeout=600)
    assert outcome.code == 2
    assert "try data.batch_size=20000" in outcome.error


@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_compiled(cli, tmp_path, mode):
    assert cli(*GPU, f"model.compile={mode}").code == 0
    metrics = json.loads((only_run(tmp_path / "outputs") / "metrics.json").read_text())
    assert metrics["precision"] == "bf16-mixed"
