"""An EfficientNet with the paper's custom head, and the LightningModule that trains it with any loss."""

import difflib
import inspect
import logging
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import timm
import timm.optim
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.models import EfficientNet
from timm.models import load_state_dict as read_weights
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from fer_lightning import sam
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.imbalance.losses import expected_loss
from fer_lightning.imbalance.second_stage import SecondStage
from fer_lightning.running_metrics import training_metrics

log = logging.getLogger(__name__)


class CosineLinear(nn.Module):
    """Logits scale * cos(w_c, x), (B, D) -> (B, C): the classifier that LDAM needs (Cao et al. 2019, section 3.2)."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # a cosine in bfloat16, times 30, is off by 0.1
            return self.scale * F.linear(F.normalize(features.float()), F.normalize(self.weight.float()))


class ClassScale(nn.Module):
    """Logits times one learnable factor per class, 1 at first: (B, C) -> (B, C) (LWS, Kang et al. 2020, eq. 6)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.scale


def build_head(
    in_features: int,
    num_classes: int,
    hidden: Sequence[int],
    activation: str,
    batch_norm: bool,
    dropout: float,
    cosine_scale: float | None = None,
    class_scale: bool = False,
) -> nn.Sequential:
    """The paper's head (section 3.2): Linear, BatchNorm, activation, Dropout per hidden width, then Linear.

    The softmax of the paper is in the loss. With ``cosine_scale`` the last layer is a ``CosineLinear``; with
    ``class_scale`` a ``ClassScale`` follows it.

    Raises:
        UserError: when ``activation`` is no class of ``torch.nn``.
    """
    activation_class = getattr(nn, activation, None)
    if not (isinstance(activation_class, type) and issubclass(activation_class, nn.Module)):
        raise UserError(f"model.head.activation={activation}: no class of torch.nn; such as ReLU, SiLU or GELU")
    try:
        activation_class()
    except TypeError as error:
        raise UserError(f"model.head.activation={activation}: is no activation; such as ReLU, SiLU or GELU") from error
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(in_features, width, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers += [activation_class(), nn.Dropout(dropout)]
        in_features = width
    last = CosineLinear(in_features, num_classes, cosine_scale) if cosine_scale else nn.Linear(in_features, num_classes)
    return nn.Sequential(*layers, last, *([ClassScale(num_classes)] if class_scale else []))


def build_network(
    name: str,
    weights: str,
    in_channels: int,
    stem_stride: int,
    drop_path: float,
    head: Mapping[str, Any],
    num_classes: int = len(EMOTIONS),
) -> EfficientNet:
    """A timm EfficientNet whose classifier is the custom head; logits (B, ``num_classes``).

    Args:
        name: any EfficientNet of timm, with or without a pretrained tag.
        weights: ``none``, ``imagenet`` (timm's hub) or a file with timm's parameter names.
        in_channels: with 1, timm sums the stem's weights over RGB.
        stem_stride: of the first convolution; timm hard-codes 2.
        drop_path: stochastic depth rate.
        head: arguments of ``build_head``.

    Raises:
        UserError: unknown name, weights that cannot be fetched or do not fit.
    """
    known = timm.list_models("*efficientnet*") + timm.list_pretrained("*efficientnet*")
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "efficientnet_b0"
        raise UserError(f"model.name={name}: no EfficientNet of timm {timm.__version__}; close: {close}")
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_channels,
        "drop_path_rate": drop_path,
    }
    if weights not in ("none", "imagenet"):
        _check_weights_fit(name, Path(weights))
        arguments["pretrained_cfg_overlay"] = {"file": weights}
    try:
        network: Any = timm.create_model(name, pretrained=weights != "none", **arguments)
    except Exception as error:  # timm's hub raises whatever its HTTP client does
        if weights == "none":
            raise
        if weights != "imagenet":
            mismatch = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"model.weights={weights}: does not fit {name} ({mismatch})") from error
        raise UserError(
            f"model.weights=imagenet: could not get timm's weights of {name} ({_first_line(error)}); "
            "check the network, give a file with model.weights=FILE, or train from scratch with model.weights=none"
        ) from error
    network.conv_stem.stride = (stem_stride, stem_stride)
    network.classifier = build_head(network.num_features, num_classes, **head)
    return network


def _check_weights_fit(name: str, path: Path) -> None:
    """timm loads with ``strict=False`` once the classifier differs, so a wrong file would pass in silence."""
    try:
        found = read_weights(str(path), weights_only=True)
    except Exception as error:
        raise UserError(f"model.weights={path}: cannot be read as weights ({type(error).__name__})") from error
    wanted = {key for key in timm.create_model(name).state_dict() if not key.startswith("classifier.")}
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"model.weights={path}: lacks {len(missing)} of {len(wanted)} tensors of {name}, such as {min(missing)}"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def parameter_groups(
    network: EfficientNet, lr: float, weight_decay: float, layer_decay: float | None, backbone_lr_scale: float
) -> list[dict[str, Any]]:
    """Optimizer groups: timm's layer-wise decay, no weight decay on vectors, the backbone's rate scaled.

    Groups that end up with the same rate and weight decay are merged: fewer groups, faster fused steps.
    """
    head = {id(parameter) for parameter in network.classifier.parameters()}
    merged: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in timm.optim.param_groups_layer_decay(network, weight_decay, layer_decay=layer_decay or 1.0):
        for parameter in group["params"]:
            scale = group["lr_scale"] * (1.0 if id(parameter) in head else backbone_lr_scale)
            merged.setdefault((lr * scale, group["weight_decay"]), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in merged.items()]


def schedule_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Learning-rate factor: linear warm-up to 1, then constant or cosine decay to 0 (Loshchilov & Hutter 2017)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _fused(name: str) -> dict[str, Any]:
    """The argument that makes a step one kernel, where an optimizer has it: torch's own."""
    has = "fused" in inspect.signature(timm.optim.get_optimizer_class(name, bind_defaults=False)).parameters
    return {"fused": True} if has else {}


def input_size(epoch: int, epochs: int, first: int | None, last: int) -> int:
    """Side of the network's input in an epoch, in pixels.

    ``last`` throughout, or progressive resizing: four stages of equal length, whose sizes grow evenly from ``first`` to
    ``last`` in multiples of 8 (Tan & Le 2021, "EfficientNetV2: Smaller Models and Faster Training", section 4.2).

    Args:
        epoch: from 0.
        epochs: length of the run.
        first: size of the first stage; None for no stages.
        last: size of the last stage.
    """
    stage = 3 if epoch >= epochs - 1 else 4 * epoch // epochs
    return last if first is None or stage == 3 else first + (last - first) * stage // 3 // 8 * 8


def build_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: str,
    total_steps: int,
    warmup_fraction: float,
    first_stage_steps: int | None = None,
    second_stage_scale: float = 1.0,
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of every step; each group's own rate is its largest.

    ``cosine`` and ``constant``: see ``schedule_factor``. ``one_cycle``: up and down again over the share
    ``warmup_fraction`` and the rest of the run, momentum the other way (Smith & Topin 2018, "Super-Convergence").
    After ``first_stage_steps`` a second stage begins with a schedule of its own, ``second_stage_scale`` as high.
    """
    if schedule == "one_cycle":
        cycled = any(key in optimizer.defaults for key in ("momentum", "betas"))
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps, pct_start=warmup_fraction, cycle_momentum=cycled
        )
    border = total_steps if first_stage_steps is None else first_stage_steps

    def factor(step: int) -> float:
        if step < border or first_stage_steps is None:
            return schedule_factor(step, border, round(warmup_fraction * border), schedule)
        rest = total_steps - border
        return second_stage_scale * schedule_factor(step - border, rest, round(warmup_fraction * rest), schedule)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        UserError: when the file is missing, no checkpoint of this project, or needs unsafe loading.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a run's checkpoints/best.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:
            if torn := archive.testzip():  # torch does not look at the checksums
                raise zipfile.BadZipFile(f"{torn} has the wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{path}: no checkpoint that loads safely ({type(error).__name__})") from error
    hyper = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    wanted = {"model", "optim", "class_counts", "config", "provenance"}
    if "state_dict" not in (checkpoint if hyper else ()) or not wanted <= set(hyper or ()):
        raise UserError(f"{path}: not a checkpoint of fer_lightning (its hyper-parameters are missing)")
    return checkpoint


class EmotionClassifier(L.LightningModule):
    """EfficientNet + custom head + a swappable loss.

    ``forward`` takes gray images, uint8 or 0..255 float, (B, H, W), and returns logits (B, 7): resizing to the model's
    input, gray normalisation and the three-channel repeat happen inside, on the device, so that training, evaluation
    and export cannot differ.

    Args:
        model: the ``model`` group of the configuration.
        optim: its ``optim`` group.
        class_counts: training images per class, kept for methods that need the prior after training.
        config: the whole composed run, kept in the checkpoint.
        provenance: ``data_hash``, ``git_commit`` and versions, kept in the checkpoint.
        loss: module called with (logits (B, 7), labels (B,)), which returns the loss of each image (B,); only training
            needs it. Not stored in checkpoints.
        second_stage: the callback that a decoupled method trains its head with. Not stored either.
        adjusted: what was changed in the last layer after training (method, ``tau``), kept in the checkpoint.
        scorecard: the test scores and the temperature of a tested model (``scorecard.py``), kept in the checkpoint.

    The hyper-parameters are plain Python, so checkpoints load with ``weights_only=True``.
    """

    loss: nn.Module | None

    def __init__(
        self,
        model: dict[str, Any],
        optim: dict[str, Any],
        class_counts: list[int],
        config: dict[str, Any],
        provenance: dict[str, Any],
        loss: nn.Module | None = None,
        second_stage: SecondStage | None = None,
        adjusted: dict[str, Any] | None = None,
        scorecard: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["loss", "second_stage"], logger=False)
        self.network = build_network(
            model["name"],
            model["weights"],
            model["in_channels"],
            model["stem_stride"],
            model["drop_path"],
            model["head"],
        )
        self.in_channels = model["in_channels"]
        self.image_size = model["image_size"]
        self.first_image_size = model.get("first_image_size")
        self.perturbed = False
        self.logged = False
        self.freeze_epochs = math.inf if model["freeze_epochs"] == -1 else model["freeze_epochs"]
        self.optim = optim
        # Neither the loss is a submodule nor the normalisation a buffer: weight averaging would average their
        # constants too, which rounds them a little further in every step.
        self.__dict__["loss"] = loss
        self.second_stage = second_stage
        # One gray mean and deviation: with summed stem weights, per-channel ones would shift the input.
        pretrained_cfg: Any = self.network.pretrained_cfg
        self.mean, self.std = (sum(pretrained_cfg[key]) / len(pretrained_cfg[key]) for key in ("mean", "std"))
        metrics = training_metrics(len(EMOTIONS))
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.train_loss = MeanMetric(nan_strategy="disable")  # so that a checkpoint can hold its sums

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.prepare(images, self.image_size))

    def features(self, images: Tensor) -> Tensor:
        """What the head's last layer gets, (B, D)."""
        prepared = self.prepare(images, self.image_size)
        pooled = self.network.forward_head(self.network.forward_features(prepared), pre_logits=True)
        return self.network.classifier[:-1](pooled)

    def prepare(self, images: Tensor, size: int) -> Tensor:
        """Gray images (B, H, W) as the network's input (B, ``in_channels``, ``size``, ``size``)."""
        pixels = images.unsqueeze(1).float() / 255
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
        pixels = ((pixels - self.mean) / self.std).expand(-1, self.in_channels, -1, -1)
        return pixels.contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        epochs: int = self.trainer.max_epochs or 1
        size = input_size(self.current_epoch, epochs, self.first_image_size, self.image_size)
        logits = self.network(self.prepare(images, size))
        assert self.loss is not None, "training needs a loss"
        soft = targets.ndim == 2  # (B, 7) where images are mixed, or labels are votes
        loss = (expected_loss(self.loss, logits, targets) if soft else self.loss(logits, targets)).mean()
        if self.perturbed:
            return loss
        labels = targets.argmax(dim=1) if soft else targets
        self.train_metrics.update(logits.detach(), labels)
        self.train_loss.update(loss.detach())  # batches are of equal size
        if not self.logged:  # once an epoch tells Lightning what to compute at its end; a call a step costs 2 ms
            self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
            self.log("train/loss", self.train_loss, prog_bar=True, on_step=False, on_epoch=True)
            self.logged = True
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_metrics.update(logits, labels)
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True)
        assert self.loss is not None, "validation during training needs a loss"
        loss = self.loss(logits, labels).mean()
        # on_step with sync_dist hangs when ranks have unequal numbers of validation batches.
        self.log("val/loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        rho = self.optim.get("sam_rho")
        assert optimizer_closure is not None
        closure = optimizer_closure if not rho else lambda: self._sharpness_aware(optimizer_closure, rho)
        optimizer.step(closure=closure)

    def _sharpness_aware(self, closure: Callable[[], Any], rho: float) -> Any:
        passes = iter((False, True))

        def one_pass() -> Any:
            self.perturbed = next(passes)  # whose scores are not the model's
            return closure()

        try:
            return sam.two_passes(one_pass, self.network, rho)
        finally:
            self.perturbed = False

    def on_fit_start(self) -> None:
        if self.loss is not None:
            self.loss.to(self.device)

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # which Lightning leaves out for an epoch that is resumed in its middle

    def on_train_epoch_start(self) -> None:
        self.logged = False
        set_epoch = getattr(self.loss, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.current_epoch)
        learning = self._learning()
        if self.freeze_epochs or self.second_stage is not None:
            # Toggled after DDP has wrapped the model: its hooks are made for parameters that require gradients then.
            mine = {id(parameter) for parameter in learning.parameters()}
            if learning is self.network:
                mine -= self._waiting()
            for parameter in self.network.parameters():
                parameter.requires_grad = id(parameter) in mine
        self.network.eval()
        learning.train()

    def _learning(self) -> nn.Module:
        """The part of the network that learns in this epoch; the rest keeps its batch statistics too."""
        if self.second_stage is not None and self.current_epoch >= self.second_stage.first_epoch:
            return self.second_stage.learning(self.network)
        return self.network.classifier if self.current_epoch < self.freeze_epochs else self.network

    def _waiting(self) -> set[int]:
        """The factors per class, which only the second stage moves."""
        scales = (module for module in self.network.classifier.modules() if isinstance(module, ClassScale))
        return {id(parameter) for scale in scales for parameter in scale.parameters()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optim = self.optim
        groups = parameter_groups(
            self.network, optim["lr"], optim["weight_decay"], optim["layer_decay"], optim["backbone_lr_scale"]
        )
        momentum = {} if optim["momentum"] is None else {"momentum": optim["momentum"]}
        try:
            optimizer = timm.optim.create_optimizer_v2(
                groups, opt=optim["name"], lr=optim["lr"], **momentum, **_fused(optim["name"])
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(f"optim.name={optim['name']}: timm has no such optimizer ({_first_line(error)})") from error
        # A fused step could unscale float16 gradients itself; here they are unscaled before, to be clipped.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        total = int(self.trainer.estimated_stepping_batches)
        limit = self.hparams["config"].get("trainer", {}).get("max_steps", -1)  # which the Trainer is not told
        total = min(total, limit) if limit >= 0 else total
        stage = self.second_stage
        first = None if stage is None else total * stage.first_epoch // stage.epochs
        scale = 1.0 if stage is None else stage.lr_scale
        schedule = build_schedule(optimizer, optim["schedule"], total, optim["warmup_fraction"], first, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @classmethod
    def load(cls, path: Path) -> "EmotionClassifier":
        """Read a checkpoint for inference, on the CPU and in ``eval`` mode.

        Nothing is fetched (the weights are in the file) and nothing in the file is executed.

        Raises:
            UserError: see ``read_checkpoint``.
        """
        checkpoint = read_checkpoint(path)
        hyper = checkpoint["hyper_parameters"]
        keys = ("optim", "class_counts", "config", "provenance")
        kept = {key: hyper[key] for key in keys} | {key: hyper.get(key) for key in ("adjusted", "scorecard")}
        model = cls({**hyper["model"], "weights": "none"}, **kept)
        model.load_state_dict(checkpoint["state_dict"])
        return model.eval()
