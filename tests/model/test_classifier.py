"""The network, its optimizer groups and schedule, freezing, averaging, and checkpoints that load safely."""

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from command_line import TINY
from hydra import compose, initialize_config_dir
from legs import every_third
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassF1Score

from fer_lightning.config.safety import CONF_DIR
from fer_lightning.data.faces import EMOTIONS, Faces, ImageForm
from fer_lightning.data.splits import official
from fer_lightning.data.synthetic import draw
from fer_lightning.model import sam
from fer_lightning.model.checkpoint import HYPER_PARAMETERS, read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier, input_size
from fer_lightning.model.network import NETWORK_KEYS, build_head, build_network
from fer_lightning.model.optimizer import parameter_groups, schedule_factor
from fer_lightning.runtime.errors import UserError
from fer_lightning.training import build
from fer_lightning.training.build import build_trainer
from fer_lightning.training.tracking import build_loggers

PAPER_HEAD = {"hidden": [64], "activation": "ReLU", "batch_norm": True, "dropout": 0.5}
TINY_MODEL = {
    "name": "test_efficientnet",
    "weights": "none",
    "in_channels": 1,
    "image_size": 48,
    "stem_stride": 1,
    "drop_path": 0.0,
    "head": PAPER_HEAD,
    "freeze_epochs": 0,
    "compile": False,
}


def classifier(**changed: Any) -> EmotionClassifier:
    """A tiny model in ``eval`` mode; the seed makes equal architectures equal."""
    torch.manual_seed(0)
    return EmotionClassifier({**TINY_MODEL, **changed}, {}, [1] * 7, {}, {}).eval()


def network(**changed: Any) -> timm.models.EfficientNet:
    arguments = {key: TINY_MODEL[key] for key in NETWORK_KEYS}
    built = build_network(**{**arguments, "num_classes": 7, **changed})
    assert isinstance(built, timm.models.EfficientNet)
    return built


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=list(overrides))


class TestHead:
    def test_paper_layout(self):
        head = build_head(1280, 7, [512], "ReLU", True, 0.5)
        assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
        first, norm, _, dropout, last = head
        assert (first.in_features, first.out_features, norm.num_features) == (1280, 512, 512)
        assert (last.in_features, last.out_features, dropout.p) == (512, 7, 0.5)
        assert first.bias is None  # batch normalisation has its own
        assert last.bias is not None

    def test_cosine_logits_depend_on_the_angle_alone(self):
        head = build_head(8, 7, [], "ReLU", True, 0.0, cosine_scale=30.0)
        features = torch.randn(5, 8)
        logits = head(features)
        weight = head[-1].weight
        expected = 30 * nn.functional.cosine_similarity(features[:, None], weight[None], dim=2)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(head(3 * features), logits)

    def test_cosine_rows_start_with_length_one(self):
        layer = build_head(512, 7, [], "ReLU", True, 0.0, cosine_scale=30.0)[-1]
        torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(7))
        assert (layer.weight @ layer.weight.T).triu(1).abs().max() < 0.3

    def test_cosine_logits_keep_their_digits_under_bfloat16(self):
        head = build_head(8, 7, [], "ReLU", True, 0.0, cosine_scale=30.0)
        features = torch.randn(5, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = head(features)
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, head(features))

    def test_a_factor_per_class_changes_nothing_at_first(self):
        torch.manual_seed(0)
        plain = build_head(8, 7, [4], "ReLU", False, 0.0)
        torch.manual_seed(0)
        scaled = build_head(8, 7, [4], "ReLU", False, 0.0, class_scale=True)
        features = torch.randn(5, 8)
        assert torch.equal(plain(features), scaled(features))

    def test_no_hidden_layer_is_a_linear_classifier(self):
        (only,) = build_head(1280, 7, [], "ReLU", True, 0.5)
        assert isinstance(only, nn.Linear)
        assert (only.in_features, only.out_features) == (1280, 7)

    def test_widths_follow_each_other(self):
        head = build_head(100, 7, [64, 32], "GELU", True, 0.1)
        linears = [layer for layer in head if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in linears] == [(100, 64), (64, 32), (32, 7)]
        assert sum(isinstance(layer, nn.GELU) for layer in head) == 2

    def test_without_batch_norm_the_linear_layer_has_a_bias(self):
        head = build_head(100, 7, [64], "SiLU", False, 0.1)
        assert [type(layer) for layer in head] == [nn.Linear, nn.SiLU, nn.Dropout, nn.Linear]
        assert head[0].bias is not None


class TestNetwork:
    def test_stem_stride_one_keeps_the_resolution(self):
        images = torch.rand(1, 1, 64, 64)
        sizes = {stride: network(stem_stride=stride).eval().forward_features(images).shape[-1] for stride in (1, 2)}
        assert sizes[1] == 2 * sizes[2]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_in_channels(self, channels):
        model = classifier(in_channels=channels)
        assert model.network.conv_stem.weight.shape[1] == channels
        assert model(torch.zeros(2, 48, 48)).shape == (2, 7)

    def test_drop_path_grows_with_depth_and_is_off_by_default(self):
        rates = [module.drop_prob for module in network(drop_path=0.2).modules() if hasattr(module, "drop_prob")]
        assert rates == sorted(rates)
        assert 0 < max(rates) <= 0.2
        assert not any(getattr(module, "drop_prob", 0) for module in network().modules())

    @pytest.mark.nightly
    def test_compile_in_place_keeps_the_names(self):
        model = classifier()
        names = list(model.state_dict())
        model.network.compile()
        assert list(model.state_dict()) == names

    @pytest.mark.parametrize("name", every_third(sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))))
    def test_every_choice_builds_and_answers(self, name):
        cfg = composed(f"model={name}", "model.weights=none")
        model = EmotionClassifier(OmegaConf.to_container(cfg.model, resolve=True), {}, [1] * 7, {}, {}).eval()
        assert model.head[0].out_features == cfg.model.head.hidden[0]
        with torch.inference_mode():
            assert model(torch.zeros(1, 48, 48, dtype=torch.uint8)).shape == (1, 7)

    @pytest.mark.nightly
    def test_every_efficientnet_of_timm_takes_the_head(self):
        # The larger ones of a family only have more layers and channels.
        names = [name for name in timm.list_models("*efficientnet*") if not re.search(r"_(b[2-9]|m|l|l2|xl)\b", name)]
        assert len(names) > 30
        with torch.device("meta"):  # shapes only
            for name in names:
                built = network(name=name)
                assert built.classifier[-1].out_features == 7
                assert built.conv_stem.stride == (1, 1)

    @pytest.mark.parametrize("name", ["resnet19", "efficientnet_b0.imagenet", "efficientnet", ""])
    def test_other_names_are_refused(self, name):
        with pytest.raises(
            UserError, match=r"model\.name=.*: not an image classifier of timm .*; close: .*(efficientnet|resnet)"
        ):
            network(name=name)

    def test_imagenet_without_a_network_says_what_to_do(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        with pytest.raises(UserError, match=r"check the network, give a file with model\.weights=FILE") as caught:
            network(name="efficientnet_b0.ra_in1k", weights="imagenet")
        assert "\n" not in str(caught.value)


class TestInput:
    def seen(self, model: EmotionClassifier, images: Tensor) -> Tensor:
        """What the network itself is given."""
        inputs: list[Tensor] = []
        model.network.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
        model(images)
        return inputs[0]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_normalised_by_one_gray_mean_and_deviation(self, channels):
        images = torch.randint(0, 256, (2, 48, 48), dtype=torch.uint8)
        model = classifier(name="efficientnet_b0", in_channels=channels)
        mean, std = sum((0.485, 0.456, 0.406)) / 3, sum((0.229, 0.224, 0.225)) / 3
        expected = ((images / 255 - mean) / std)[:, None].expand(-1, channels, -1, -1)
        torch.testing.assert_close(self.seen(model, images), expected)

    @pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("size", [48, 64])
    def test_each_colour_is_normalised_by_its_own_mean_and_deviation(self, kind, layout, size):
        images = torch.randint(0, 256, (20, 3, 48, 48), dtype=torch.uint8).to(kind).contiguous(memory_format=layout)
        settings = {**TINY_MODEL, "image_size": size, "in_channels": 3}
        model = EmotionClassifier(settings, {}, [1] * 7, {}, {}, form={"size": 48, "color": True}).eval()
        mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        resized = F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)
        torch.testing.assert_close(self.seen(model, images), (resized / 255 - mean) / std, atol=1e-5, rtol=1e-5)

    def test_resized_to_the_models_input(self):
        seen = self.seen(classifier(image_size=96), torch.full((2, 48, 48), 51, dtype=torch.uint8))
        assert seen.shape == (2, 1, 96, 96)
        torch.testing.assert_close(seen, torch.full_like(seen, (0.2 - 0.449) / 0.226))

    def test_bytes_and_floats_are_the_same_image(self):
        images = torch.randint(0, 256, (4, 48, 48), dtype=torch.uint8)
        model = classifier(image_size=64)
        assert torch.equal(model(images), model(images.float()))


class TestImageNetWeights:
    NAME = "tf_efficientnetv2_b0"

    @pytest.mark.real
    def test_three_channels_equal_the_file(self, real_weights):
        file = load_file(real_weights)
        built = network(name=self.NAME, weights=str(real_weights), in_channels=3).state_dict()
        assert len(file) > 300
        for key, value in file.items():
            assert torch.equal(built[key], value.to(built[key].dtype)), key

    @pytest.mark.real
    def test_one_channel_is_the_sum_over_rgb_and_the_rest_equals_the_file(self, real_weights):
        file = load_file(real_weights)
        built = network(name=self.NAME, weights=str(real_weights), in_channels=1).state_dict()
        stem = file.pop("conv_stem.weight").float().sum(dim=1, keepdim=True)
        torch.testing.assert_close(built["conv_stem.weight"], stem, rtol=2**-11, atol=0)  # rounded to float16 once
        for key, value in file.items():
            assert torch.equal(built[key], value.to(built[key].dtype)), key

    @pytest.mark.real
    def test_gray_in_one_channel_and_repeated_in_three_have_the_same_features(self, real_weights):
        images = torch.randint(0, 256, (4, 48, 48), generator=torch.Generator().manual_seed(0))
        models = [
            classifier(name=self.NAME, weights=str(real_weights), in_channels=channels, image_size=64, stem_stride=2)
            for channels in (1, 3)
        ]
        for model in models:
            model.network.classifier = nn.Identity()
        with torch.inference_mode():
            one, three = (model(images) for model in models)
        assert one.std() > 0.1
        assert (one - three).abs().max() < 0.01 * three.abs().max()


class TestParameterGroups:
    @pytest.mark.parametrize(("layer_decay", "scale"), list(itertools.product([None, 0.7], [1.0, 0.1])))
    def test_every_parameter_once_and_no_decay_on_vectors(self, layer_decay, scale):
        built = network()
        groups = parameter_groups(built, 0.01, 0.05, layer_decay, scale)
        listed = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(listed) == sorted(id(parameter) for parameter in built.parameters())
        for group in groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)

    def rates(self, *arguments: Any) -> dict[str, float]:
        built = network()
        names = {id(parameter): name for name, parameter in built.named_parameters()}
        groups = parameter_groups(built, *arguments)
        return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}

    def test_plain_is_two_groups_of_one_rate(self):
        assert set(self.rates(0.01, 0.05, None, 1.0).values()) == {0.01}
        assert len(parameter_groups(network(), 0.01, 0.05, None, 1.0)) == 2

    def test_a_network_whose_layers_timm_does_not_order(self):
        arguments = {key: TINY_MODEL[key] for key in NETWORK_KEYS}
        built = build_network(**{**arguments, "name": "inception_v3", "image_size": 96, "num_classes": 7})
        groups = parameter_groups(built, 0.01, 0.05, None, 1.0)
        assert sum(len(group["params"]) for group in groups) == len(list(built.parameters()))
        with pytest.raises(UserError, match=r"optim\.layer_decay=0\.7: timm does not know the order"):
            parameter_groups(built, 0.01, 0.05, 0.7, 1.0)

    def test_layer_decay_falls_towards_the_stem(self):
        rates = self.rates(0.01, 0.05, 0.7, 1.0)
        stages = ["conv_stem", *(f"blocks.{number}." for number in range(len(network().blocks))), "classifier"]
        by_stage = [[rate for name, rate in rates.items() if name.startswith(stage)] for stage in stages]
        for lower, upper in itertools.pairwise(by_stage):
            assert max(lower) < min(upper)
        assert set(by_stage[-1]) == {0.01}

    @pytest.mark.parametrize("layer_decay", [None, 0.7])
    def test_backbone_scale_leaves_the_head_alone(self, layer_decay):
        full, scaled = self.rates(0.01, 0.05, layer_decay, 1.0), self.rates(0.01, 0.05, layer_decay, 0.1)
        for name, rate in full.items():
            assert scaled[name] == pytest.approx(rate if name.startswith("classifier") else 0.1 * rate)


@pytest.mark.parametrize(
    ("step", "schedule", "factor"),
    [
        (0, "cosine", 0.2),
        (3, "cosine", 0.8),
        (4, "cosine", 1.0),
        (12, "cosine", 0.5),
        (16, "cosine", 0.5 - 0.5 * 0.5**0.5),
        (20, "cosine", 0.0),
        (25, "cosine", 0.0),
        (0, "constant", 0.2),
        (4, "constant", 1.0),
        (20, "constant", 1.0),
    ],
)
def test_schedule_of_20_steps_after_4_of_warm_up(step, schedule, factor):
    assert schedule_factor(step, 20, 4, schedule) == pytest.approx(factor, abs=1e-12)


def test_schedule_without_warm_up_starts_in_full():
    assert schedule_factor(0, 10, 0, "cosine") == 1
    assert schedule_factor(0, 0, 0, "cosine") == 1


class Recorder(L.Callback):
    """Copies of the network at the start of training, after every step and after every epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []
        self.steps: list[dict[str, Tensor]] = []

    def copy(self, module: L.LightningModule) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in module.state_dict().items()}

    def on_train_start(self, trainer, pl_module):
        self.epochs.append(self.copy(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(self.copy(pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(self.copy(pl_module))


@pytest.fixture(scope="module")
def faces() -> Faces:
    return draw(400)


@pytest.fixture
def fit(faces, tmp_path) -> Callable[..., tuple[EmotionClassifier, Recorder, L.Trainer]]:
    """Train as a run does, without its run folder's reports."""

    def call(*overrides: str) -> tuple[EmotionClassifier, Recorder, L.Trainer]:
        cfg = composed(*TINY, "trainer.limit_train_batches=3", *overrides)
        L.seed_everything(0, verbose=False)
        datamodule = build.build_datamodule(cfg, faces, official(faces, 0))
        loss = build.build_loss(cfg, datamodule.class_counts, datamodule.faces.classes)
        plain = OmegaConf.to_container(cfg, resolve=True)
        data = {"data_hash": "0" * 16}
        model = EmotionClassifier(plain["model"], plain["optim"], datamodule.class_counts, plain, data, loss)
        recorder = Recorder()
        trainer = build_trainer(cfg, tmp_path, build_loggers(plain, tmp_path), [recorder], has_validation=True)
        trainer.fit(model, datamodule)
        return model, recorder, trainer

    return call


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def is_head(name: str) -> bool:
    return name.startswith("network.classifier.")


@pytest.mark.parametrize(
    ("overrides", "bias"),
    [
        (["imbalance=class_balanced_focal"], -math.log(6)),
        (["imbalance=class_balanced_focal", "imbalance.loss.start_at_chance=false"], None),
        (["imbalance=weighted_bce"], None),
        (["imbalance=weighted_bce", "imbalance.loss.start_at_chance=true"], -math.log(6)),
    ],
)
def test_sigmoids_of_the_official_loss_start_at_one_in_seven(overrides, bias):
    cfg, counts = composed(*TINY, *overrides), dict.fromkeys(EMOTIONS, 10)
    loss = build.build_loss(cfg, list(counts.values()), EMOTIONS)
    start = build.build_model(cfg, counts, ImageForm(), {}, loss, None, None, resumed=False).head[-1].bias.detach()
    if bias is None:
        assert start.unique().numel() == 7
    else:
        torch.testing.assert_close(start, torch.full((7,), bias))
        torch.testing.assert_close(start.sigmoid(), torch.full((7,), 1 / 7))


class TestFreezing:
    def test_backbone_rests_while_frozen_and_learns_afterwards(self, fit):
        _, recorder, _ = fit("model.freeze_epochs=1", "trainer.max_epochs=2", "optim.weight_decay=0.5")
        start, frozen, free = recorder.epochs
        moved = changed(start, frozen)
        assert moved == {name for name in start if is_head(name)}  # parameters and batch statistics alike
        assert changed(frozen, free) == set(start)

    def test_for_the_whole_run(self, fit):
        _, recorder, _ = fit("model.freeze_epochs=-1", "trainer.max_epochs=2")
        assert all(is_head(name) for name in changed(recorder.epochs[0], recorder.epochs[-1]))

    def test_never(self, fit):
        _, recorder, _ = fit()
        assert changed(*recorder.epochs) == set(recorder.epochs[0])


class TestOptimizer:
    def groups(self, trainer: L.Trainer) -> list[dict[str, Any]]:
        return trainer.optimizers[0].param_groups

    def test_groups_reach_the_optimizer_and_the_schedule_ends_at_zero(self, fit):
        _, _, trainer = fit("optim.lr=0.01", "optim.backbone_lr_scale=0.1", "optim.weight_decay=0.03")
        groups = self.groups(trainer)
        assert isinstance(trainer.optimizers[0], torch.optim.AdamW)
        assert {round(group["initial_lr"], 9) for group in groups} == {0.01, 0.001}
        assert {group["weight_decay"] for group in groups} == {0.0, 0.03}
        assert [group["lr"] for group in groups] == pytest.approx([0] * len(groups), abs=1e-9)

    def test_constant_schedule_stays(self, fit):
        _, _, trainer = fit("optim.lr=0.01", "optim.schedule=constant")
        assert {group["lr"] for group in self.groups(trainer)} == {0.01}

    def test_sgd_has_nesterov_momentum(self, fit):
        _, _, trainer = fit("optim=sgd")
        assert isinstance(trainer.optimizers[0], torch.optim.SGD)
        for group in self.groups(trainer):
            assert (group["momentum"], group["nesterov"]) == (0.9, True)

    @pytest.mark.parametrize("name", every_third(["adamw", "adam", "sgd"]))
    def test_the_step_is_one_kernel(self, fit, name):
        _, _, trainer = fit(f"optim={name}")
        assert trainer.optimizers[0].defaults["fused"] is True

    def test_an_optimizer_that_has_no_fused_step_trains(self, fit):
        _, recorder, trainer = fit("optim.name=lamb")
        assert "fused" not in trainer.optimizers[0].defaults
        assert changed(*recorder.epochs)


class Waits(TorchDispatchMode):
    """Notes every operation that a GPU's host would have to wait for."""

    NAMES = ("_local_scalar_dense", "bincount", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(str(func).startswith(f"aten.{name}") for name in self.NAMES):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class WatchSteps(L.Callback):
    """Watches an epoch but for its first batch, which decides what the others show, and its end."""

    def __init__(self) -> None:
        self.waits = Waits()
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.waits.__enter__()
        elif batch_idx == 5:
            self.waits.__exit__(None, None, None)
            self.steps = trainer.global_step


class TestHostWaits:
    @pytest.mark.nightly
    @pytest.mark.parametrize(
        "overrides",
        [
            ["augment=strong"],
            pytest.param(["augment=strong", "imbalance=mixup", "optim.sam_rho=0.05"], marks=pytest.mark.slow),
            pytest.param(["imbalance=focal", "optim=sgd", "trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
        ],
        ids=" ".join,
    )
    def test_no_step_waits_for_its_device(self, cli, monkeypatch, overrides):
        """From the batch to the metrics, through the real training; on a GPU each such wait would drain its queue."""
        watch = WatchSteps()

        def with_watch(*arguments: Any, **named: Any) -> L.Trainer:
            trainer = build_trainer(*arguments, **named)
            trainer.callbacks.append(watch)
            return trainer

        monkeypatch.setattr(build, "build_trainer", with_watch)
        assert cli(*TINY, *overrides).code == 0
        assert watch.steps >= 3
        assert watch.waits.seen == []

    def test_a_wait_would_be_seen(self):
        metric = MulticlassF1Score(7, validate_args=False)
        with Waits() as waits:
            metric.update(torch.randn(9, 7), torch.arange(9) % 7)
            float(torch.ones(1))
        assert [name.split(".")[1] for name in waits.seen] == ["bincount", "_local_scalar_dense"]


class TestSharpnessAware:
    def test_steps_by_the_gradient_of_the_worst_point_nearby(self):
        network = nn.Linear(3, 1, bias=False)
        inputs, rho = torch.tensor([[1.0, 2.0, -1.0]]), 0.1
        start = network.weight.detach().clone()

        def closure() -> Tensor:
            network.zero_grad()
            loss = (network(inputs) ** 2).sum()
            loss.backward()
            return loss

        loss = sam.two_passes(closure, network, rho)
        gradient = 2 * (start @ inputs.T) * inputs
        worst = start + rho * gradient / gradient.norm()
        torch.testing.assert_close(network.weight.grad, 2 * (worst @ inputs.T) * inputs)
        torch.testing.assert_close(loss, (start @ inputs.T).square().sum())
        assert torch.equal(network.weight, start)

    def test_a_part_of_the_loss_has_its_worst_point_and_the_rest_is_plain(self):
        network, rho = nn.Linear(2, 1, bias=False), 0.1
        inputs = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        share = torch.tensor([1.0, 0.25])
        start = network.weight.detach().clone()

        def gradient(weight: Tensor, factor: Tensor) -> Tensor:
            return (2 * factor[:, None] * (inputs @ weight.T) * inputs).sum(dim=0, keepdim=True)

        passes: list[str] = []

        def sharp() -> None:
            passes.append("forward")
            passes.append("backward")
            (share[:, None] * network(inputs) ** 2).sum().backward()

        def rest() -> None:
            passes.append("backward")
            ((1 - share)[:, None] * network(inputs) ** 2).sum().backward()

        sam.split_passes(sharp, rest, network, rho)
        direction = gradient(start, share)
        worst = start + rho * direction / direction.norm()
        torch.testing.assert_close(network.weight.grad, gradient(worst, share) + gradient(start, 1 - share))
        assert torch.equal(network.weight, start)
        assert passes == ["forward", "backward", "backward", "forward", "backward"]

    def test_processes_share_the_gradients_of_both_parts(self, tmp_path):
        """DDP reduces in two of the three backward passes: the direction g alone, and the sum of both parts."""
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            network = nn.Linear(2, 1, bias=False)
            parallel = nn.parallel.DistributedDataParallel(network)
            reduced: list[Tensor] = []

            def shared(_: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
                reduced.append(bucket.buffer().clone())
                future: torch.futures.Future[Tensor] = torch.futures.Future()
                future.set_result(bucket.buffer())
                return future

            parallel.register_comm_hook(None, shared)
            losses: list[Tensor] = []

            def sharp() -> None:
                losses.append(parallel(torch.tensor([[1.0, 2.0], [3.0, -1.0]])).square().squeeze(1))
                (0.25 * losses[-1]).sum().backward(retain_graph=len(losses) == 1)

            sam.split_passes(sharp, lambda: (0.75 * losses[0]).sum().backward(), network, 0.1)
        finally:
            torch.distributed.destroy_process_group()
        assert len(reduced) == 2
        torch.testing.assert_close(reduced[1].view_as(network.weight), network.weight.grad)
        assert (reduced[1] - reduced[0]).abs().max() > 0.5

    @pytest.mark.parametrize("method", ["imbsam", "focal_sam"])
    @pytest.mark.nightly
    def test_sharpness_of_classes_takes_other_steps_and_sees_each_batch_once(self, fit, method, monkeypatch):
        """With a radius of almost nothing, the two parts together are a step of plain cross-entropy."""
        perturbed: list[bool] = []
        step = EmotionClassifier.training_step

        def noted(self: EmotionClassifier, *arguments: Any) -> Tensor:
            perturbed.append(self.perturbed)
            return step(self, *arguments)

        same = ("optim=sgd", "optim.lr=0.1", "optim.warmup_fraction=0", "model.head.dropout=0")
        plain = fit(*same)
        monkeypatch.setattr(EmotionClassifier, "training_step", noted)
        model, recorder, trainer = fit(*same, f"imbalance={method}", "imbalance.loss.rho=0.5")
        assert changed(plain[1].epochs[-1], recorder.epochs[-1])
        assert (trainer.global_step, model.perturbed, model.rest_of_loss) == (3, False, None)
        assert perturbed == [False, True] * 3
        near = fit(*same, f"imbalance={method}", "imbalance.loss.rho=1e-12")
        for name, _ in near[0].network.named_parameters(prefix="network"):
            torch.testing.assert_close(near[1].steps[0][name], plain[1].steps[0][name], rtol=1e-3, atol=1e-5)

    def test_an_infinite_gradient_leaves_the_weights_as_they_were(self):
        network = nn.Linear(2, 1)
        start = network.weight.detach().clone()
        seen: list[Tensor] = []

        def closure() -> None:
            seen.append(network.weight.detach().clone())
            network.weight.grad = torch.full_like(network.weight, torch.inf)
            network.bias.grad = torch.zeros_like(network.bias)

        sam.two_passes(closure, network, 0.05)
        sam.split_passes(closure, lambda: None, network, 0.05)
        assert all(torch.equal(weight, start) for weight in [*seen, network.weight])

    @pytest.mark.slow
    def test_a_run_sees_each_batch_once(self, fit):
        """Scores, losses and batch statistics are those of the model, not of the perturbed one."""
        plain, before, _ = fit("optim.lr=1e-30", "optim.weight_decay=0", "model.head.dropout=0")
        model, after, trainer = fit(
            "optim.lr=1e-30", "optim.weight_decay=0", "model.head.dropout=0", "optim.sam_rho=0.5"
        )
        assert trainer.global_step == 3
        statistics = [name for name in after.epochs[-1] if "running" in name]
        assert statistics
        for name in statistics:
            torch.testing.assert_close(after.epochs[-1][name], before.epochs[-1][name])
        assert model.perturbed is False
        assert plain.optim["sam_rho"] is None

    @pytest.mark.nightly
    def test_a_run_takes_other_steps(self, fit):
        ends = [fit("optim.lr=0.01", *more)[1].epochs[-1] for more in ((), ("optim.sam_rho=0.5",))]
        assert changed(*ends)


class TestInputSize:
    def test_four_stages(self):
        sizes = [input_size(epoch, 8, 64, 112) for epoch in range(8)]
        assert sizes == [64, 64, 80, 80, 96, 96, 112, 112]
        assert [input_size(epoch, 3, 32, 100) for epoch in range(3)] == [32, 48, 100]
        assert {input_size(epoch, 5, None, 96) for epoch in range(5)} == {96}

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["batched", pytest.param("albumentations", marks=pytest.mark.nightly)])
    def test_images_grow_and_validation_is_at_the_full_size(self, cli, monkeypatch, backend):
        sizes: list[tuple[bool, int]] = []
        prepare = EmotionClassifier.prepare

        def noted(self: EmotionClassifier, images: Tensor, size: int) -> Tensor:
            prepared = prepare(self, images, size)
            sizes.append((self.training, prepared.shape[-1]))
            return prepared

        monkeypatch.setattr(EmotionClassifier, "prepare", noted)
        more = ("augment=light", f"augment.backend={backend}", "trainer.limit_train_batches=1", "trainer.max_epochs=4")
        assert cli(*TINY, *more, "model.image_size=64", "model.first_image_size=32").code == 0
        assert [size for training, size in sizes if training] == [32, 40, 48, 64]
        assert {size for training, size in sizes if not training} == {64}


class TestCheckpoint:
    def test_loads_safely_and_answers_the_same_bits(self, fit, faces, tmp_path):
        model, _, _ = fit("imbalance=weighted")
        images = torch.from_numpy(faces.images[:64])
        loaded = EmotionClassifier.load(tmp_path / "checkpoints" / "last.ckpt")
        assert not loaded.training
        assert not any(module.training for module in loaded.modules())
        with torch.inference_mode():
            assert torch.equal(loaded(images), model.eval()(images))

    def test_holds_plain_python_and_no_loss(self, fit, tmp_path):
        model, _, _ = fit("imbalance=weighted")
        assert model.loss.weight.std() > 0
        checkpoint = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
        assert not [key for key in checkpoint["state_dict"] if not key.startswith("network.")]
        hyper = checkpoint["hyper_parameters"]
        assert set(hyper) == HYPER_PARAMETERS
        assert hyper["class_counts"] == [39, 8, 40, 72, 48, 32, 49]
        assert hyper["config"]["imbalance"]["name"] == "weighted"

    def test_last_is_the_last_epoch_and_best_the_best(self, fit, tmp_path):
        # Untouched weights score the same in every epoch, so the first one stays the best.
        fit("optim.lr=1e-30", "model.freeze_epochs=-1", "model.head.batch_norm=false", "trainer.max_epochs=3")
        epochs = {
            name: read_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt")["epoch"] for name in ("best", "last")
        }
        assert epochs == {"best": 0, "last": 2}

    @pytest.mark.slow
    def test_last_needs_no_validation(self, fit, tmp_path):
        fit("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3")
        epochs = {
            name: read_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt")["epoch"] for name in ("best", "last")
        }
        assert epochs == {"best": 1, "last": 2}

    def test_loading_fetches_nothing(self, fit, tmp_path):
        fit()
        path: Path = tmp_path / "checkpoints" / "best.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["hyper_parameters"]["model"]["weights"] = "/deleted/since.pth"
        torch.save(checkpoint, path)
        EmotionClassifier.load(path)


class TestAveraging:
    @pytest.mark.slow
    def test_checkpoints_hold_the_averaged_weights(self, fit, tmp_path):
        _, recorder, _ = fit("callbacks=ema", "callbacks.ema.decay=0.8", "trainer.max_epochs=2", "optim.lr=0.01")
        average = recorder.steps[0]["network.conv_stem.weight"]
        for step in recorder.steps[1:]:
            average = 0.8 * average + 0.2 * step["network.conv_stem.weight"]
        checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        saved = checkpoint["state_dict"]["network.conv_stem.weight"]
        torch.testing.assert_close(saved, average)
        raw = recorder.steps[-1]["network.conv_stem.weight"]
        assert (saved - raw).abs().max() > 1e-3
        assert torch.equal(checkpoint["current_model_state"]["network.conv_stem.weight"], raw)
        loaded = EmotionClassifier.load(tmp_path / "checkpoints" / "last.ckpt")
        assert torch.equal(loaded.network.conv_stem.weight, saved)

    def test_what_is_validated_is_what_is_saved(self, fit, faces, tmp_path):
        _, _, trainer = fit("callbacks=ema", "callbacks.ema.decay=0.8", "optim.lr=0.01")
        loaded = EmotionClassifier.load(tmp_path / "checkpoints" / "last.ckpt")
        val = official(faces, 0).val
        with torch.inference_mode():
            logits = loaded(torch.from_numpy(faces.images[val]))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(faces.labels[val]))
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss), rel=1e-5)
