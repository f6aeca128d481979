"""Decoupled training: what the second stage changes, what it leaves alone, and that it resumes exactly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import TINY
from hydra import compose, initialize_config_dir
from legs import every_nth, every_third
from omegaconf import OmegaConf
from torch import nn

from fer_lightning.config.safety import CONF_DIR
from fer_lightning.config.settings import to_plain
from fer_lightning.imbalance.second_stage import SecondStage, longest_weights, reinitialize, shorten_weights
from fer_lightning.model.checkpoint import StoredModel, write_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import ClassMargin, MarginLinear, build_head, build_network, head_of
from fer_lightning.model.optimizer import build_schedule, parameter_groups
from fer_lightning.runtime.errors import UserError
from fer_lightning.training.adjust import fold_margins
from fer_lightning.training.checkpoints import LastCheckpoint
from fer_lightning.training.first_stage import load_first_stage, with_split_of_first_stage

STAGED = (*TINY, "augment=light", "data.source.images=300", "model.head.dropout=0.5", "trainer.max_epochs=4")
HALF = "imbalance.second_stage.share=0.5"


def state(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    weights, others = one["state_dict"], other["state_dict"]
    assert weights.keys() == others.keys()
    return {key for key in weights if not torch.equal(weights[key], others[key])}


def test_weights_are_shortened_to_the_published_values() -> None:
    layer = nn.Linear(2, 3)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    longest = longest_weights(layer, 0.1)
    shorten_weights(layer, longest)
    assert longest == pytest.approx(1.4)
    torch.testing.assert_close(layer.weight.data, torch.tensor([[0.84, 1.12], [0.0, 1.4], [1.0, 0.0]]))


class TestMargins:
    """MARC."""

    A = torch.tensor([1, 1.5, 1, 0.8, 1, 1.1, 0.9], dtype=torch.float64)
    B = torch.tensor([0, 0.5, 0, -0.3, 0, 0.1, -0.1], dtype=torch.float64)
    LENGTHS = torch.tensor([1.2, 0.6, 1.1, 1.5, 1.2, 1, 1.3], dtype=torch.float64)
    LOGITS = torch.tensor(
        [
            [1.0, -0.5, 0.25, 2.0, 0.0, -1.0, 0.5],
            [0.2, 1.5, -0.3, 0.1, -1.2, 0.4, 0.0],
            [-0.7, 0.3, 0.9, 0.0, 1.1, -0.2, 2.2],
            [3.0, -2.0, 0.5, -1.0, 0.7, 0.1, -0.4],
        ],
        dtype=torch.float64,
    )
    TARGET = torch.tensor([3, 1, 4, 2])

    @pytest.fixture
    def margin(self) -> ClassMargin:
        margin = ClassMargin(7).double()
        margin.scale.data, margin.shift.data = self.A.clone(), self.B.clone()
        return margin

    @pytest.fixture
    def layer(self, margin: ClassMargin) -> MarginLinear:
        torch.manual_seed(0)
        layer = MarginLinear(5, 7).double()
        layer.margin = margin
        return layer

    def test_the_loss_has_the_reference_value(self, margin):
        loss = nn.functional.cross_entropy(margin(self.LOGITS, self.LENGTHS), self.TARGET)
        assert loss.item() == pytest.approx(1.4979213542, abs=1e-9)

    def test_gradients(self, margin):
        def logits(scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            given = {"scale": scale, "shift": shift}
            return torch.func.functional_call(margin, given, (self.LOGITS, self.LENGTHS))

        assert torch.autograd.gradcheck(logits, (self.A.clone().requires_grad_(), self.B.clone().requires_grad_()))

    def test_classes_in_another_order_give_the_same(self, margin):
        order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
        other = ClassMargin(7).double()
        other.scale.data, other.shift.data = self.A[order], self.B[order]
        permuted = other(self.LOGITS[:, order], self.LENGTHS[order])
        torch.testing.assert_close(permuted, margin(self.LOGITS, self.LENGTHS)[:, order])

    def test_the_folded_layer_computes_the_same(self, layer):
        features = torch.randn(4, 5, dtype=torch.float64)
        torch.testing.assert_close(nn.functional.linear(features, *layer.folded()), layer(features))

    def test_nothing_changes_at_first(self):
        torch.manual_seed(0)
        plain = build_head(8, 7, [4], "ReLU", False, 0.0)
        torch.manual_seed(0)
        head = build_head(8, 7, [4], "ReLU", False, 0.0, class_margin=True)
        features = torch.randn(5, 8)
        assert torch.equal(plain(features), head(features))

    def test_factors_have_no_weight_decay(self):
        """It would pull them to 0, where all logits are equal, instead of to 1."""
        network = build_network(
            "test_efficientnet", "none", 1, 48, 1, 0.0,
            {"hidden": [8], "activation": "ReLU", "batch_norm": True, "dropout": 0.0, "class_margin": True}, 7,
        )  # fmt: skip
        added = {id(parameter) for parameter in head_of(network)[-1].margin.parameters()}
        groups = parameter_groups(network, 1e-3, 0.5, None, 1.0)
        decays = [group["weight_decay"] for group in groups for each in group["params"] if id(each) in added]
        assert decays == [0.0, 0.0]

    @pytest.mark.parametrize("trained", every_third([False, True]))
    def test_a_checkpoint_is_folded_into_an_ordinary_one(self, tmp_path, model_with_margins, trained):
        model, write = model_with_margins
        if trained:
            with torch.no_grad():
                model.head[-1].margin.scale.mul_(1.5)
                model.head[-1].margin.shift.add_(0.3)
        path = write(tmp_path / "best.ckpt")
        images = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
        expected = model.eval()(images)
        for _ in range(2):  # the second time there is nothing to fold
            fold_margins(StoredModel.read(path))
            folded = EmotionClassifier.load(path)
            assert type(folded.head[-1]) is nn.Linear
            torch.testing.assert_close(folded(images), expected)


@pytest.fixture
def model_with_margins():
    """A model with ``model.head.class_margin``, and what writes its checkpoint."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=["model=test_efficientnet", "imbalance=marc", "model.weights=none"])
    provenance = {"data_hash": "0"}
    model = EmotionClassifier(to_plain(cfg.model), to_plain(cfg.optim), [9, 1, 9, 9, 9, 9, 9], {}, provenance)

    def write(path: Path) -> Path:
        write_checkpoint(path, {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)})
        return path

    return model, write


@pytest.fixture
def plain(trained_once) -> Path:
    """A finished run of ``imbalance=none``."""
    return trained_once(*STAGED, "imbalance=none", "trainer.max_epochs=1")


@pytest.mark.slow
@pytest.mark.parametrize("method", every_nth(4, ["crt", "lws", "los", "weight_balancing"]))
def test_the_second_stage_leaves_the_features_bit_identical(cli, tmp_path, method):
    """previous.ckpt is the end of the first stage, last.ckpt the end of the second."""
    run = tmp_path / "run"
    late = ["trainer.max_epochs=3", "imbalance.second_stage.share=0.34"]
    outcome = cli(*STAGED, f"imbalance={method}", *late, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    first, second = state(run, "previous"), state(run)
    assert first["position"]["epoch"] == 2
    changed = differing(first, second)
    if method == "lws":
        assert changed == {"network.classifier.5.scale"}
        assert torch.equal(first["state_dict"]["network.classifier.5.scale"], torch.ones(7))
    elif method in ("los", "weight_balancing"):
        assert changed == {"network.classifier.4.weight", "network.classifier.4.bias"}
    else:
        # Backbone with its batch statistics as they were, every part of the head another.
        assert changed == {key for key in second["state_dict"] if key.startswith("network.classifier.")}
    # The model that is tested is chosen among the second stage's epochs, whatever the first one scored.
    assert json.loads((run / "metrics.json").read_text())["epoch"] == 2
    rates = pd.read_csv(run / "metrics.csv")["lr"]
    # Of the step that comes next: the second stage begins with the full rate again.
    assert rates.tolist() == pytest.approx([0.0005, 0.001, 0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["crt", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("lws", "gcl", "weight_balancing"))]
)
@pytest.mark.parametrize(
    "epochs",
    [pytest.param(2, id="at the border", marks=pytest.mark.nightly), pytest.param(3, id="within the second stage")],
)
def test_resume_is_bit_identical(cli, tmp_path, monkeypatch, method, epochs):
    """A checkpoint from the border between the stages, and one from after it: resumed runs end with the same bits."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    kept = tmp_path / "kept.ckpt"
    arguments = [*STAGED, f"imbalance={method}", HALF]
    steps = 5  # 188 training images in batches of 32

    def and_keep(self: Any, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == epochs * steps + 3 * (epochs == 3):
            shutil.copy(self.path, kept)

    save = LastCheckpoint._save
    monkeypatch.setattr(LastCheckpoint, "_save", and_keep)
    assert cli(*arguments, f"hydra.run.dir={whole}", "save_every_n_steps=3").code == 0
    monkeypatch.undo()
    (parts / "checkpoints").mkdir(parents=True)
    shutil.copy(kept, parts / "checkpoints" / "last.ckpt")
    position = state(parts)["position"]
    assert position == ({"epoch": 2, "batches": 0} if epochs == 2 else {"epoch": 3, "batches": 3})
    outcome = cli(*arguments, f"hydra.run.dir={parts}", "resume=auto", "save_every_n_steps=3")
    assert outcome.code == 0, outcome.err
    assert not differing(state(whole), state(parts))
    curves = [(run / "metrics.csv").read_text() for run in (whole, parts)]
    assert curves[0] == curves[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", every_third(["crt", "progressive_sampler"]))
def test_another_method_cannot_take_over(cli, plain, tmp_path, method):
    """Behind the border nothing would begin: the head would be the old one under the new method's name."""
    run = shutil.copytree(plain, tmp_path / "run")
    outcome = cli(*STAGED, f"imbalance={method}", f"hydra.run.dir={run}", "resume=auto")
    assert outcome.code == 2
    assert "imbalance." in outcome.error
    assert "there and cannot become" in outcome.error


@pytest.mark.slow
def test_a_first_stage_of_another_run_leaves_all_epochs_to_the_second(cli, plain, tmp_path):
    second = tmp_path / "second"
    best = plain / "checkpoints" / "best.ckpt"
    arguments = [*STAGED, "imbalance=crt", f"imbalance.first_stage={best}", "trainer.max_epochs=1"]
    outcome = cli(*arguments, f"hydra.run.dir={second}")
    assert outcome.code == 0, outcome.err
    before, after = state(plain, "best"), state(second)
    assert all(key.startswith("network.classifier.") for key in differing(before, after))
    assert differing(before, after)


@pytest.mark.slow
def test_a_first_stage_that_was_replaced_is_refused_on_resume(cli, plain, tmp_path):
    """Features, adjustments and seeds would come from another model than the run began with."""
    first, run = tmp_path / "first.ckpt", f"hydra.run.dir={tmp_path / 'run'}"
    shutil.copy(plain / "checkpoints" / "best.ckpt", first)
    arguments = [*STAGED, "imbalance=crt", f"imbalance.first_stage={first}", "trainer.max_epochs=2", run]
    assert cli(*arguments, "pause_after_epochs=1").code == 75
    replaced = torch.load(first, weights_only=True)
    next(iter(replaced["state_dict"].values())).add_(1e-3)
    torch.save(replaced, first)
    outcome = cli(*arguments, "resume=auto")
    assert outcome.code == 2
    assert f"imbalance.first_stage={first}: has other weights than when this run began" in outcome.error
    shutil.copy(plain / "checkpoints" / "best.ckpt", first)
    assert cli(*arguments, "resume=auto").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    every_nth(
        5,
        [
            (["imbalance=crt", "split.seed=1"], "its split was {'name': 'official'"),
            (["imbalance=crt", "data.source.seed=1"], "it was trained on other images"),
            (
                ["imbalance=crt", "model.head.hidden=[32]"],
                "its model.head.hidden was [64], here it is [32]; give model.head.hidden=[64], or another first stage",
            ),
            (["imbalance=crt", "model.image_size=64"], "its model.image_size was 48, here it is 64"),
            (["imbalance=crt", "split.val_fraction=0.2"], "its split was"),
            (
                ["imbalance=gcl"],
                "its model.head.cosine_scale was null, and imbalance=gcl needs 30.0; give a run with "
                "model.head.cosine_scale=30.0, or imbalance.first_stage=null",
            ),
        ],
    ),
    ids=["split seed", "images", "head", "input", "split", "gcl"],
)
def test_a_first_stage_that_does_not_fit_is_refused(cli, plain, change, message):
    best = plain / "checkpoints" / "best.ckpt"
    outcome = cli(*STAGED, f"imbalance.first_stage={best}", *change)
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.parametrize("imbalance", ["x", {}, {"name": {"q": 1}}, {"name": ""}])
def test_a_first_stage_that_names_no_method_is_refused(cli, plain, tmp_path, imbalance):
    checkpoint = torch.load(plain / "checkpoints" / "best.ckpt", weights_only=False)
    checkpoint["hyper_parameters"]["config"]["imbalance"] = imbalance
    torch.save(checkpoint, tmp_path / "first.ckpt")
    outcome = cli(*STAGED, "imbalance=crt", f"imbalance.first_stage={tmp_path / 'first.ckpt'}")
    assert outcome.code == 2
    assert outcome.error.endswith("first.ckpt: damaged, its configuration names no imbalance method")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("global_step"), "damaged, it does not say how many steps it was trained for"),
        *(
            (lambda content, seed=seed: _split(content).update(seed=seed), "damaged, its configuration has no split or")
            for seed in ("abc", -5, 1.5, 2**40, True)
        ),
    ],
)
def test_a_damaged_first_stage_is_refused_before_it_trains(plain, change, message):
    path = plain / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    cfg = OmegaConf.create(content["hyper_parameters"]["config"])
    change(content)
    first = StoredModel(path, content)

    def begin():
        with_split_of_first_stage(cfg, first)
        load_first_stage(None, cfg, first, content["hyper_parameters"]["provenance"]["data_hash"])

    with pytest.raises(UserError, match=message):
        begin()


def _split(content):
    return content["hyper_parameters"]["config"]["split"]


class TestReinitialize:
    def test_is_a_pure_function_of_the_seed(self):
        heads = [build_head(8, 7, [4], "ReLU", True, 0.5) for _ in range(3)]
        for head, seed in zip(heads, (1, 1, 2), strict=True):
            reinitialize(head, seed)
        one, same, other = (head.state_dict() for head in heads)
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not torch.equal(one["0.weight"], other["0.weight"])

    def test_forgets_batch_statistics(self):
        norm = nn.BatchNorm1d(3)
        norm(torch.randn(8, 3) + 5)
        reinitialize(norm, 0)
        assert torch.equal(norm.running_mean, torch.zeros(3))

    def test_leaves_the_global_generator_alone(self):
        layer = nn.Linear(2, 2)
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        reinitialize(layer, 9)
        assert torch.equal(torch.rand(1), expected)


def test_the_schedule_begins_anew_with_the_second_stage():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = build_schedule(optimizer, "cosine", 20, 0.0, first_stage_steps=10, second_stage_scale=0.5)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 1.0
    assert rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10], reverse=True)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10:] == pytest.approx([0.5 * rate for rate in rates[:10]])


@pytest.mark.parametrize(("setting", "value"), [("trains", "tail"), ("lr_scale", 0.0)])
def test_settings_out_of_range_are_refused(setting, value):
    settings: dict[str, Any] = {
        "trains": "head",
        "share": 0.5,
        "lr_scale": 1.0,
        "epochs": 4,
        "first_stage": None,
        "seed": 0,
    }
    with pytest.raises(UserError, match=f"second_stage.{setting}={value}"):
        SecondStage(**{**settings, "seed": 0, setting: value})
