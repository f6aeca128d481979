"""An image classifier of timm, by default an EfficientNet, with the paper's custom head."""

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict as read_weights
from torch import Tensor, nn
from torch.nn import functional as F

from fer_lightning.model.archive_check import check_archive, check_file, check_old_format, is_zip
from fer_lightning.model.checkpoint import check_values
from fer_lightning.model.depthwise import replace_depthwise
from fer_lightning.runtime.errors import UserError, first_line


class CosineLinear(nn.Module):
    """Logits scale * cos(w_c, x), (B, D) -> (B, C): the classifier that LDAM needs (Cao et al. 2019, section 3.2)."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Rows of length 1, as the authors: the gradient of a direction shrinks with the length.
        with torch.no_grad():
            self.weight.copy_(F.normalize(nn.init.normal_(self.weight)))

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


class ClassMargin(nn.Module):
    """Logits a_c z_c + b_c |w_c|, with a and b learnable, 1 and 0 at first (MARC, Wang et al. 2022)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.shift = nn.Parameter(torch.zeros(num_classes))

    def forward(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, C) of logits (B, C) and the lengths (C,) of the weights of each class."""
        return logits * self.scale + self.shift * lengths


class MarginLinear(nn.Linear):
    """A last layer (B, D) -> (B, C) whose logits pass a ``ClassMargin``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.margin = ClassMargin(out_features)

    def forward(self, features: Tensor) -> Tensor:
        return self.margin(super().forward(features), self.weight.detach().norm(dim=1))

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of the ``nn.Linear`` that computes the same."""
        scale, shift = self.margin.scale, self.margin.shift
        return self.weight * scale[:, None], self.bias * scale + shift * self.weight.norm(dim=1)


def build_head(  # noqa: PLR0913 - the settings of ``model.head``
    in_features: int,
    num_classes: int,
    hidden: Sequence[int],
    activation: str,
    batch_norm: bool,
    dropout: float,
    cosine_scale: float | None = None,
    class_scale: bool = False,
    class_margin: bool = False,
) -> nn.Sequential:
    """The paper's head (section 3.2): Linear, BatchNorm, activation, Dropout per hidden width, then Linear.

    The softmax of the paper is in the loss. With ``cosine_scale`` the last layer is a ``CosineLinear``; with
    ``class_scale`` a ``ClassScale`` follows it; with ``class_margin`` it is a ``MarginLinear``.

    Raises:
        UserError: when ``activation`` is not a class of ``torch.nn`` that changes values one by one.
    """
    activation_class = getattr(nn, activation, None)
    if not (isinstance(activation_class, type) and issubclass(activation_class, nn.Module)):
        raise UserError(
            f"model.head.activation={activation}: not a class of torch.nn; give one such as ReLU, SiLU or GELU"
        )
    try:
        given = torch.zeros(2, 4)
        is_activation = activation_class().eval()(given).shape == given.shape
    except Exception:  # a layer that needs arguments, or other inputs
        is_activation = False
    if not is_activation:
        raise UserError(f"model.head.activation={activation}: is not an activation; give one such as ReLU or GELU")
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(in_features, width, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers += [activation_class(), nn.Dropout(dropout)]
        in_features = width
    if cosine_scale:
        last: nn.Module = CosineLinear(in_features, num_classes, cosine_scale)
    else:
        last = (MarginLinear if class_margin else nn.Linear)(in_features, num_classes)
    return nn.Sequential(*layers, last, *([ClassScale(num_classes)] if class_scale else []))


def build_network(
    name: str,
    weights: str,
    in_channels: int,
    image_size: int,
    stem_stride: int | None,
    drop_path: float,
    head: Mapping[str, Any],
    num_classes: int,
) -> nn.Module:
    """A timm classifier whose last layer is the custom head; logits (B, ``num_classes``).

    Args:
        name: any image classifier of timm, with or without a pretrained tag.
        weights: ``none``, ``imagenet`` (timm's hub) or a file with timm's parameter names.
        in_channels: with 1, timm sums the stem's weights over RGB.
        image_size: side of the input in pixels; networks of a fixed size (vision transformers) are built for it.
        stem_stride: of the first convolution, in place of timm's 2; None leaves the network as it is.
        drop_path: stochastic depth rate.
        head: arguments of ``build_head``.
        num_classes: C.

    Raises:
        UserError: unknown name, weights that cannot be fetched or do not fit, or a network without such a stem, size,
            stochastic depth or classifier.
    """
    _check_name(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if drop_path or "efficientnet" in name:
        arguments["drop_path_rate"] = drop_path
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        arguments["img_size"] = image_size
    if weights not in ("none", "imagenet"):
        _check_weights_fit(name, Path(weights))
        arguments["pretrained_cfg_overlay"] = {"file": weights}
    try:
        network: Any = timm.create_model(name, pretrained=weights != "none", **arguments)
    except Exception as error:  # timm raises the errors of its HTTP client
        raise _not_built(name, weights, image_size, drop_path, error) from error
    if stem_stride is not None:
        _set_stem_stride(network, name, stem_stride)
    place = network.pretrained_cfg.get("classifier")
    last = network.get_submodule(place) if isinstance(place, str) else None
    if not isinstance(last, nn.Linear):
        raise UserError(f"model.name={name}: its classifier is not a single linear layer; choose another network")
    network.set_submodule(place, build_head(last.in_features, num_classes, **head))
    replace_depthwise(network)
    if "efficientnet" not in name:  # padded convolutions and one global pooling take images of any size
        _check_forward(network, name, in_channels, image_size)
    return network


def _check_forward(network: nn.Module, name: str, in_channels: int, image_size: int) -> None:
    """Refuse a network that images of this size are too small for: its last stages would see less than a pixel."""
    device = next(network.parameters()).device
    if device.type == "meta":
        return
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, in_channels, image_size, image_size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"model.name={name}: takes no images of {image_size} pixels ({first_line(error)}); give a larger "
            "model.image_size, or choose another network"
        ) from error
    network.train(was_training)


def _not_built(name: str, weights: str, image_size: int, drop_path: float, error: Exception) -> UserError:
    """The error for a network that timm could not make."""
    if weights == "imagenet":
        return UserError(
            f"model.weights=imagenet: could not download timm's weights of {name} ({first_line(error)}); "
            "check the network, give a file with model.weights=FILE, or train from scratch with model.weights=none"
        )
    if weights != "none":
        mismatch = str(error).strip().splitlines()[-1].strip()
        return UserError(
            f"model.weights={weights}: does not fit {name} ({mismatch}); give weights of this network, or use "
            "model.weights=none"
        )
    reason = first_line(error)
    if "drop_path_rate" in reason:
        return UserError(f"model.drop_path={drop_path}: {name} has no stochastic depth; use 0")
    return UserError(
        f"model.name={name}: cannot be built for {image_size} pixels ({reason}); change model.image_size, or choose "
        "another network"
    )


def head_name(network: nn.Module) -> str:
    """Where the custom head is in a network of ``build_network``: ``classifier``, ``fc``, ``head.fc``, ..."""
    place: str = network.pretrained_cfg["classifier"]  # type: ignore[index, assignment]
    return place


def head_of(network: nn.Module) -> nn.Sequential:
    """The custom head of a network of ``build_network``."""
    head = network.get_submodule(head_name(network))
    assert isinstance(head, nn.Sequential)
    return head


def stem_of(network: nn.Module) -> nn.Conv2d | None:
    """The first convolution, where its stride can be changed; None for patches, which have no overlap to keep."""
    place = network.pretrained_cfg.get("first_conv")  # type: ignore[operator, union-attr]
    first = network.get_submodule(place) if isinstance(place, str) else None
    if not isinstance(first, nn.Conv2d) or first.kernel_size[0] <= first.stride[0] or first.kernel_size[0] < 3:
        return None
    return first


def _set_stem_stride(network: nn.Module, name: str, stride: int) -> None:
    stem = stem_of(network)
    if stem is None:
        raise UserError(
            f"model.stem_stride={stride}: {name} has no first convolution whose stride can be changed; use "
            "model.stem_stride=null"
        )
    stem.stride = (stride, stride)


@functools.cache
def _known_names() -> dict[str, None]:
    return dict.fromkeys([*timm.list_models(), *timm.list_pretrained()])


def _check_name(name: str) -> None:
    if name not in _known_names():
        close = ", ".join(difflib.get_close_matches(name, _known_names(), n=3)) or "efficientnet_b0"
        raise UserError(f"model.name={name}: not an image classifier of timm {timm.__version__}; close: {close}")


NETWORK_KEYS = ("name", "weights", "in_channels", "image_size", "stem_stride", "drop_path", "head")
"""The settings of the ``model`` group that ``build_network`` takes."""


def check_size(knobs: Mapping[str, Any], num_classes: int, state: Mapping[str, Tensor]) -> None:
    """Refuse a description of a network that is far larger than its weights, before its memory is allocated.

    Args:
        knobs: the ``model`` group of a checkpoint of unknown origin.
        num_classes: of that checkpoint.
        state: its weights; their memory is there already.

    Raises:
        UserError: the network would have more parameters.
    """
    settings = json.dumps({key: knobs[key] for key in NETWORK_KEYS})
    wanted, given = _weights_of(settings, num_classes), sum(tensor.numel() for tensor in state.values())
    if wanted > given:
        raise UserError(f"model.name={knobs['name']}: has {wanted:,} weights, and the checkpoint only {given:,}")


@functools.lru_cache(maxsize=32)
def _weights_of(settings: str, num_classes: int) -> int:
    """Numbers in the ``state_dict`` of a network of these ``NETWORK_KEYS``, as JSON, without memory for them."""
    with torch.device("meta"):
        network = build_network(**json.loads(settings), num_classes=num_classes)
    return sum(tensor.numel() for tensor in network.state_dict().values())


def _check_weights_fit(name: str, path: Path) -> None:
    """Refuse a file of another network: timm loads with ``strict=False`` and would ignore missing tensors.

    Also one that would fill the memory: the file may be anybody's.
    """
    try:
        if is_zip(path):
            check_archive(path)
        elif str(path).endswith(".safetensors"):  # as timm decides
            check_file(path)
        else:
            check_old_format(path)
        tensors = read_weights(str(path), weights_only=True)
        check_values(tensors, path.stat().st_size)
    except UserError as error:
        raise UserError(f"model.weights={error}") from None
    except Exception as error:
        raise UserError(
            f"model.weights={path}: cannot be read as weights ({type(error).__name__}); give a file of weights with "
            "timm's parameter names"
        ) from error
    network = timm.create_model(name)
    own = {
        key: value.ndim
        for key, value in network.state_dict().items()
        if not key.startswith(f"{head_name(network)}.") and not key.endswith("num_batches_tracked")
    }
    missing = [key for key in own if key not in tensors]
    if missing:
        raise UserError(
            f"model.weights={path}: lacks {len(missing)} of {len(own)} tensors of {name}, such as {min(missing)}; "
            "give weights of this network, with timm's parameter names"
        )
    other = [key for key, axes in own.items() if getattr(tensors[key], "ndim", None) != axes]
    if other:  # timm leaves out a stem that it cannot convert to other channels
        raise UserError(
            f"model.weights={path}: {other[0]} is not a tensor of {own[other[0]]} axes, as in {name}; give weights of "
            "this network, with timm's parameter names"
        )
