"""Methods that change the last layer after training, through the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.model.classifier import EmotionClassifier

RUN = (*TINY, "trainer.max_epochs=3", "optim.lr=0.004", "model.stem_stride=2")


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def probabilities(run: Path) -> np.ndarray:
    return pd.read_csv(run / "predictions.csv")[[f"p_{emotion}" for emotion in EMOTIONS]].to_numpy()


@pytest.fixture(scope="module")
def plain(trained_once) -> Path:
    """A finished run of ``imbalance=none``."""
    return trained_once(*RUN, "imbalance=none")


def adjusted(cli: Any, plain: Path, run: Path, method: str, *more: str) -> Path:
    first = plain / "checkpoints" / "best.ckpt"
    outcome = cli(*RUN, f"imbalance={method}", f"imbalance.first_stage={first}", f"hydra.run.dir={run}", *more)
    assert outcome.code == 0, outcome.err
    return run


@pytest.mark.nightly
def test_logit_adjustment_of_a_trained_run(cli, plain, tmp_path):
    """Equal to z - tau log pi on the answers of the run that was given, without a step of training."""
    run = adjusted(cli, plain, tmp_path / "run", "posthoc_logit_adjusted", "imbalance.adjust.tau=1.0")
    reported = metrics(run)
    assert reported["train/steps"] == 0
    assert (reported["first_stage/imbalance"], reported["first_stage/steps"]) == ("none", metrics(plain)["train/steps"])
    assert reported["tau"] == 1.0
    counts = np.array(list(reported["train/class_counts"].values()))
    expected = probabilities(plain) / (counts / counts.sum())
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(run), expected, rtol=1e-4)


@pytest.mark.nightly
def test_tau_zero_changes_nothing(cli, plain, tmp_path):
    run = adjusted(cli, plain, tmp_path / "run", "posthoc_logit_adjusted", "imbalance.adjust.tau=0.0")
    np.testing.assert_array_equal(probabilities(run), probabilities(plain))


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("posthoc_logit_adjusted", marks=pytest.mark.nightly), "tau_norm"])
def test_tau_is_chosen_by_validation(cli, plain, tmp_path, method):
    """The chosen one has the best validation macro F1 of all candidates, tested one by one."""
    chosen = metrics(adjusted(cli, plain, tmp_path / "chosen", method, "imbalance.adjust.candidates=[0.0,1.0,2.0]"))
    scores = {
        tau: metrics(adjusted(cli, plain, tmp_path / f"tau{tau}", method, f"imbalance.adjust.tau={tau}"))[
            "val/f1_macro"
        ]
        for tau in (0.0, 1.0, 2.0)
    }
    assert chosen["val/f1_macro"] == pytest.approx(max(scores.values()))
    assert scores[chosen["tau"]] == pytest.approx(max(scores.values()))


@pytest.mark.slow
def test_tau_norm_scales_the_rows_and_drops_the_bias(cli, plain, tmp_path):
    run = adjusted(cli, plain, tmp_path / "run", "tau_norm", "imbalance.adjust.tau=0.7")
    before, after = (
        EmotionClassifier.load(folder / "checkpoints" / "best.ckpt").network.classifier[-1] for folder in (plain, run)
    )
    weight = before.weight.detach()
    torch.testing.assert_close(after.weight.detach(), weight / weight.norm(dim=1, keepdim=True) ** 0.7)
    assert not after.bias.detach().any()


@pytest.mark.nightly
def test_in_one_go_and_interrupted_after_the_adjustment(cli, tmp_path, forked):
    """Training and adjusting in one run; resumed when only the last files are missing, it adjusts the same model."""
    run = tmp_path / "run"
    arguments = [*RUN, "imbalance=posthoc_logit_adjusted", "imbalance.adjust.tau=1.5", f"hydra.run.dir={run}"]
    assert cli(*arguments).code == 0
    first = metrics(run)
    assert first["train/steps"] > 0
    raw, best = (torch.load(run / "checkpoints" / name, weights_only=True) for name in ("unadjusted.ckpt", "best.ckpt"))
    changed = [key for key in raw["state_dict"] if not torch.equal(raw["state_dict"][key], best["state_dict"][key])]
    assert changed == ["network.classifier.4.bias"]
    assert best["hyper_parameters"]["adjusted"] == {"imbalance": "posthoc_logit_adjusted", "tau": 1.5}
    for name in ("metrics.json", "predictions.csv", "status.json"):
        (run / name).unlink()
    assert cli(*arguments, "resume=auto").code == 0
    assert metrics(run)["test/nll"] == first["test/nll"]
    # Killed between putting the raw model aside and writing the adjusted one.
    (run / "checkpoints" / "best.ckpt").unlink()
    for name in ("metrics.json", "predictions.csv", "status.json"):
        (run / name).unlink()
    assert cli(*arguments, "resume=auto").code == 0
    assert metrics(run)["test/nll"] == first["test/nll"]
    # What `evaluate` reads is what was reported.
    outcome = forked(str(run / "checkpoints" / "best.ckpt"), module="fer_lightning.evaluate")
    assert outcome.json["test/f1_macro"] == pytest.approx(first["test/f1_macro"])


def test_a_missing_first_stage_is_reported(cli, tmp_path):
    outcome = cli(*RUN, "imbalance=tau_norm", f"imbalance.first_stage={tmp_path / 'none.ckpt'}")
    assert outcome.code == 2
    assert "no such run or checkpoint" in outcome.error


@pytest.mark.nightly
def test_what_is_corrected_already_is_not_corrected_again(cli, plain, tmp_path):
    weighted = tmp_path / "weighted"
    assert cli(*RUN, "trainer.max_epochs=1", "imbalance=weighted", f"hydra.run.dir={weighted}").code == 0
    once = adjusted(cli, plain, tmp_path / "once", "posthoc_logit_adjusted", "imbalance.adjust.tau=1.0")
    had = "its training had class weights in the loss, and an adjustment after training corrects again; give a first st"
    for first, message in ((weighted, had), (once, "is adjusted already; give the unadjusted.ckpt")):
        best = first / "checkpoints" / "best.ckpt"
        outcome = cli(*RUN, "imbalance=posthoc_logit_adjusted", f"imbalance.first_stage={best}")
        assert outcome.code == 2
        assert message in outcome.error
