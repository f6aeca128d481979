"""A timm EfficientNet with the paper's custom head."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import EfficientNet
from timm.models import load_state_dict as read_weights
from torch import Tensor, nn
from torch.nn import functional as F

from fer_lightning.runtime.errors import UserError, first_line


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
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would be off by 0.1 after the scale of 30
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
        raise UserError(
            f"model.head.activation={activation}: no class of torch.nn; give one such as ReLU, SiLU or GELU"
        )
    try:
        activation_class()
    except TypeError as error:
        raise UserError(
            f"model.head.activation={activation}: is no activation; give one such as ReLU or GELU"
        ) from error
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
    num_classes: int,
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
    except Exception as error:  # timm raises the errors of its HTTP client
        if weights == "none":
            raise
        if weights != "imagenet":
            mismatch = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"model.weights={weights}: does not fit {name} ({mismatch})") from error
        raise UserError(
            f"model.weights=imagenet: could not download timm's weights of {name} ({first_line(error)}); "
            "check the network, give a file with model.weights=FILE, or train from scratch with model.weights=none"
        ) from error
    network.conv_stem.stride = (stem_stride, stem_stride)
    network.classifier = build_head(network.num_features, num_classes, **head)
    return network


def check_size(knobs: Mapping[str, Any], num_classes: int, state: Mapping[str, Tensor]) -> None:
    """Refuse a description of a network that is far larger than its weights, before its memory is allocated.

    Args:
        knobs: the ``model`` group of a checkpoint of unknown origin.
        num_classes: of that checkpoint.
        state: its weights; their memory is there already.

    Raises:
        UserError: the network would have more parameters.
    """
    arguments = {key: knobs[key] for key in ("name", "weights", "in_channels", "stem_stride", "drop_path", "head")}
    with torch.device("meta"):
        network = build_network(**arguments, num_classes=num_classes)
    wanted, given = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (network.state_dict(), state))
    if wanted > given:
        raise UserError(f"model.name={knobs['name']}: has {wanted:,} weights, and the checkpoint only {given:,}")


def _check_weights_fit(name: str, path: Path) -> None:
    """Refuse a file of another network: timm loads with ``strict=False`` and would ignore missing tensors."""
    try:
        tensors = read_weights(str(path), weights_only=True)
    except Exception as error:
        raise UserError(f"model.weights={path}: cannot be read as weights ({type(error).__name__})") from error
    wanted = {key for key in timm.create_model(name).state_dict() if not key.startswith("classifier.")}
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"model.weights={path}: lacks {len(missing)} of {len(wanted)} tensors of {name}, such as {min(missing)}"
        )
