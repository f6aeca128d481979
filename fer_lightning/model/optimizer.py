"""The optimizer's parameter groups and the learning rate of every step."""

import inspect
import math
from typing import Any

import timm.optim
import torch
from torch import nn

from fer_lightning.model.network import head_of
from fer_lightning.runtime.errors import UserError, first_line


def build_optimizer(network: nn.Module, optim: dict[str, Any], frozen: bool) -> torch.optim.Optimizer:
    """The optimizer of an ``optim`` group, one fused kernel a step where torch has it.

    Args:
        network: whose parameters are optimized.
        optim: the ``optim`` group.
        frozen: a part of the network begins to learn later than the rest.

    Raises:
        UserError: timm has no optimizer of that name.
    """
    groups = parameter_groups(
        network, optim["lr"], optim["weight_decay"], optim["layer_decay"], optim["backbone_lr_scale"]
    )
    momentum = {} if optim["momentum"] is None else {"momentum": optim["momentum"]}
    try:
        # torch's fused SGD fails where some parameters have a momentum and others have none yet.
        fused = {} if frozen and "sgd" in optim["name"] else _fused(optim["name"])
        optimizer = timm.optim.create_optimizer_v2(groups, opt=optim["name"], lr=optim["lr"], **momentum, **fused)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"optim.name={optim['name']}: timm has no such optimizer ({first_line(error)})") from error
    # A fused step could unscale float16 gradients itself; here they are unscaled earlier, for clipping.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def parameter_groups(
    network: nn.Module, lr: float, weight_decay: float, layer_decay: float | None, backbone_lr_scale: float
) -> list[dict[str, Any]]:
    """Optimizer groups: timm's layer-wise decay, no weight decay on vectors, the backbone's rate scaled.

    Groups that end up with the same rate and weight decay are merged: fewer groups, faster fused steps.
    """
    head = {id(parameter) for parameter in head_of(network).parameters()}
    merged: dict[tuple[float, float], list[nn.Parameter]] = {}
    try:
        groups = timm.optim.param_groups_layer_decay(network, weight_decay, layer_decay=layer_decay or 1.0)
    except (KeyError, AttributeError, AssertionError) as error:  # timm's own groups do not fit some of its networks
        if layer_decay is not None:
            raise UserError(
                f"optim.layer_decay={layer_decay}: timm does not know the order of this network's layers; use null"
            ) from error
        groups = timm.optim.param_groups_weight_decay(network, weight_decay)
    for group in groups:
        for parameter in group["params"]:
            scale = group.get("lr_scale", 1.0) * (1.0 if id(parameter) in head else backbone_lr_scale)
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
    After ``first_stage_steps`` a second stage starts with its own schedule, scaled by ``second_stage_scale``.
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


def _fused(name: str) -> dict[str, Any]:
    """``fused=True`` for optimizers that have it: a step is then one kernel."""
    has = "fused" in inspect.signature(timm.optim.get_optimizer_class(name, bind_defaults=False)).parameters
    return {"fused": True} if has else {}
