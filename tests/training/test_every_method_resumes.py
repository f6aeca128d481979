"""Every method, stopped within its last epoch and resumed, ends with the bits of a run that nobody disturbed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TINY

from fer_lightning.config.safety import CONF_DIR
from fer_lightning.training.checkpoints import LastCheckpoint

RUN = (
    *TINY,
    "data.source.images=300",
    "augment=light",
    "model.head.dropout=0.5",
    "trainer.max_epochs=2",
    "save_every_n_steps=4",
)
STOP = 8
"""Steps after which it is stopped: the third of the five in the second epoch, which is that of a second stage too."""

METHODS = sorted(path.stem for path in (CONF_DIR / "imbalance").glob("*.yaml"))


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        return [place for key in one for place in differing(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other), path
        parts = enumerate(zip(one, other, strict=True))
        return [place for index, pair in parts for place in differing(*pair, f"{path}/{index}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    return [] if one == other else [path]


def check(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """Train in ``whole``, keeping the checkpoint of step ``STOP``; resume from it in ``parts``; compare."""
    whole, parts = folder / "whole", folder / "parts"
    save, kept = LastCheckpoint._save, parts / "checkpoints" / "last.ckpt"

    def and_keep(self: Any, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == STOP:
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.path, kept)

    monkeypatch.setattr(LastCheckpoint, "_save", and_keep)
    outcome = cli(*RUN, *overrides, f"hydra.run.dir={whole}")
    assert outcome.code == 0, outcome.err
    monkeypatch.setattr(LastCheckpoint, "_save", save)
    assert state(parts)["position"] == {"epoch": 1, "batches": 3}
    outcome = cli(*RUN, *overrides, f"hydra.run.dir={parts}", "resume=auto")
    assert outcome.code == 0, outcome.err
    one, other = state(whole), state(parts)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "processes"):
        assert differing({part: one[part]}, {part: other[part]}) == []
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("method", METHODS)
def test_resumed_within_its_last_epoch(cli, tmp_path, monkeypatch, method):
    check(cli, tmp_path, monkeypatch, f"imbalance={method}")


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["crt", "marc"])
def test_resumed_on_kept_features(cli, trained_once, tmp_path, monkeypatch, method):
    first = trained_once(*RUN, "imbalance=none", "trainer.max_epochs=1")
    check(cli, tmp_path, monkeypatch, f"imbalance={method}", f"imbalance.first_stage={first}")
