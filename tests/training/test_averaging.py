"""``callbacks=swa``: which weights are averaged, their batch-norm statistics, what is saved, resuming."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_and_resume
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY
from legs import every_third
from omegaconf import OmegaConf
from torch import Tensor, nn

from fer_lightning.config.compose import compose_config
from fer_lightning.config.rules import check_rules, first_averaged_epoch
from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import official
from fer_lightning.data.synthetic import draw
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.run_folder import RESUMABLE
from fer_lightning.training import build

SWA = ("callbacks=swa", "optim.lr=0.01", "optim.schedule=constant")
STEM = "network.conv_stem.weight"


class Ends(L.Callback):
    """The raw network at the end of every epoch's training, before its validation."""

    def __init__(self) -> None:
        self.networks: list[dict[str, Tensor]] = []

    def on_validation_start(self, trainer, pl_module):
        self.networks.append({key: value.clone() for key, value in pl_module.state_dict().items()})


@pytest.fixture(scope="module")
def faces() -> Faces:
    return draw(400)


@pytest.fixture
def fit(faces, tmp_path) -> Callable[..., tuple[Ends, L.Trainer]]:
    """Train as a run does, without its run folder's reports."""

    def call(*overrides: str) -> tuple[Ends, L.Trainer]:
        cfg = compose_config([*TINY, *SWA, "trainer.limit_train_batches=3", *overrides])
        L.seed_everything(0, verbose=False)
        datamodule = build.build_datamodule(cfg, faces, official(faces, 0))
        loss = build.build_loss(cfg, datamodule.class_counts, datamodule.faces.classes)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        data = {"data_hash": "0" * 16}
        model = EmotionClassifier(plain["model"], plain["optim"], datamodule.class_counts, plain, data, loss)
        ends = Ends()
        trainer = build.build_trainer(cfg, tmp_path, [], [ends], has_validation=True)
        trainer.callbacks.insert(0, trainer.callbacks.pop(trainer.callbacks.index(ends)))  # before the mean is taken
        trainer.fit(model, datamodule)
        return ends, trainer

    return call


def last(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_the_mean_of_the_last_epochs_is_validated_and_saved(fit, faces, tmp_path, caplog):
    caplog.set_level("INFO")
    ends, trainer = fit("trainer.max_epochs=4", "callbacks.swa.start=0.5")
    assert "callbacks=swa: the mean of the weights at the end of epochs 3 to 4" in caplog.messages
    saved = last(tmp_path)
    assert len(ends.networks) == 4
    raw = [network[STEM] for network in ends.networks]
    torch.testing.assert_close(saved["state_dict"][STEM], (raw[2] + raw[3]) / 2)
    assert torch.equal(saved["current_model_state"][STEM], raw[3])
    assert int(saved["averaging_state"]["n_averaged"]) == 2
    loaded = EmotionClassifier.load(tmp_path / "checkpoints" / "last.ckpt")
    val = official(faces, 0).val
    with torch.inference_mode():
        logits = loaded(torch.from_numpy(faces.images[val]))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(faces.labels[val]))
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.slow
def test_its_statistics_are_those_of_its_own_activations(fit, faces, tmp_path):
    _, trainer = fit("trainer.max_epochs=2", "callbacks.swa.start=0")
    loaded = EmotionClassifier.load(tmp_path / "checkpoints" / "last.ckpt")
    inputs: list[Tensor] = []
    loaded.network.bn1.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.inference_mode():
        for images, _ in trainer.datamodule.first_batches(1, 100):
            loaded(images)
    each = [(batch.mean(dim=(0, 2, 3)), batch.var(dim=(0, 2, 3))) for batch in inputs]
    assert len(each) > 3
    torch.testing.assert_close(loaded.network.bn1.running_mean, torch.stack([mean for mean, _ in each]).mean(0))
    torch.testing.assert_close(loaded.network.bn1.running_var, torch.stack([var for _, var in each]).mean(0))
    assert loaded.network.bn1.momentum is not None


@pytest.mark.slow
def test_before_the_second_averaged_epoch_the_network_is_as_it_was_trained(fit, tmp_path):
    """Also of an epoch that trainer.max_steps cuts short."""
    ends, _ = fit("trainer.max_epochs=4", "callbacks.swa.start=0.5", "trainer.max_steps=5")
    saved = last(tmp_path)["state_dict"]
    assert set(saved) == set(ends.networks[-1])
    assert all(torch.equal(saved[key], ends.networks[-1][key]) for key in saved)


@pytest.mark.nightly
def test_a_frozen_backbone_keeps_its_statistics(fit, tmp_path):
    ends, _ = fit("trainer.max_epochs=2", "callbacks.swa.start=0", "model.freeze_epochs=-1")
    saved = last(tmp_path)["state_dict"]
    assert torch.equal(saved["network.bn1.running_mean"], ends.networks[0]["network.bn1.running_mean"])
    head = next(key for key in saved if key.startswith("network.classifier.") and key.endswith("running_mean"))
    assert not torch.equal(saved[head], ends.networks[-1][head])


@pytest.mark.parametrize("backend", every_third(["batched", "albumentations"]))
def test_first_batches_are_those_of_the_epoch_also_after_resuming_within_it(faces, backend):
    cfg = compose_config([*TINY, "augment=light", f"augment.backend={backend}"])
    whole, resumed = (build.build_datamodule(cfg, faces, official(faces, 0)) for _ in range(2))
    resumed.resume_at(1, 4)
    for datamodule in (whole, resumed):
        before = torch.get_rng_state()
        batches = [images for images, _ in datamodule.first_batches(1, 2)]
        assert torch.equal(torch.get_rng_state(), before)
        if datamodule is whole:
            expected = batches
    assert len(batches) == 2
    assert all(torch.equal(one, other) for one, other in zip(batches, expected, strict=True))
    assert resumed.sampler.done == (1, 4 * 32)


@pytest.mark.parametrize(("start", "epochs", "first"), [(0.75, 20, 15), (0, 5, 0), (0.7, 10, 7), (0.99, 3, 2)])
def test_the_first_averaged_epoch(start, epochs, first):
    assert first_averaged_epoch(start, epochs) == first


@pytest.mark.parametrize(
    ("overrides", "reason"),
    every_third(
        [
            (["callbacks.swa.start=1.0"], r"callbacks\.swa\.start=1\.0: must be in \[0, 1\)"),
            (["callbacks.swa.statistics_batches=0"], r"callbacks\.swa\.statistics_batches=0: must be at least 1"),
            (
                ["trainer.max_epochs=3"],
                r"callbacks\.swa\.start=0\.75: leaves one epoch of trainer\.max_epochs=3 to average",
            ),
        ]
    ),
)
def test_settings_out_of_range_are_refused(overrides, reason):
    cfg = compose_config([*TINY, *SWA, "trainer.max_epochs=8"])
    for override in overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(cfg, key, float(value) if "." in value else int(value))
    with pytest.raises(UserError, match=reason):
        check_rules(cfg)


def kill_in_epoch(number: int) -> Callable[[], None]:
    return kill_and_resume.on_call(EmotionClassifier, "training_step", number)


@pytest.mark.nightly
def test_a_run_killed_among_the_averaged_epochs_ends_with_the_same_bits(tmp_path):
    run = [*kill_and_resume.RUN, *SWA, "callbacks.swa.start=0", "callbacks.swa.statistics_batches=5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert kill_and_resume.run_forked(whole, run) == 0
    steps = json.loads((whole / "metrics.json").read_text())["train/steps"]
    assert kill_and_resume.run_forked(parts, run, kill_in_epoch(steps - 3)) != 0  # within the last epoch
    assert kill_and_resume.run_forked(parts, [*run, "resume=auto"]) == 0
    assert kill_and_resume.differences(parts, kill_and_resume.fingerprint(whole)) == []


@pytest.mark.nightly
def test_two_processes_agree_on_the_statistics(forked, tmp_path):
    settings = [*TINY, *SWA, "callbacks.swa.start=0", "trainer.max_epochs=2", "trainer.devices=2"]
    outcome = forked(*settings, "hydra.run.dir=two")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    curves = pd.read_csv(tmp_path / "two" / "metrics.csv")
    scores = curves["val/f1_macro"].to_numpy()
    assert scores[metrics["epoch"]] == pytest.approx(metrics["val/f1_macro"], abs=1e-6)
    assert np.isfinite(metrics["test/nll"])


@pytest.mark.nightly
def test_two_processes_stopped_among_the_averaged_epochs_end_with_the_same_bits(tmp_path):
    run = [*kill_and_resume.RUN, *SWA, "callbacks.swa.start=0", "callbacks.swa.statistics_batches=5"]
    run += ["trainer.devices=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert kill_and_resume.run_forked(whole, run) == 0
    steps = json.loads((whole / "metrics.json").read_text())["train/steps"]
    stop = kill_and_resume.on_call(EmotionClassifier, "training_step", steps - 3, signum=signal.SIGTERM)
    assert kill_and_resume.run_forked(parts, run, stop) == RESUMABLE
    stopped = last(parts)
    assert len(stopped["processes"]) == 2
    assert int(stopped["averaging_state"]["n_averaged"]) == 2
    assert kill_and_resume.run_forked(parts, [*run, "resume=auto"]) == 0
    assert kill_and_resume.differences(parts, kill_and_resume.fingerprint(whole)) == []
