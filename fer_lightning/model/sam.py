"""Sharpness-aware minimisation: step by the gradient of the worst point nearby (``optim.sam_rho``).

Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization", algorithm 1. Two forward and
backward passes a step. Processes share their gradients first, so the point is that of the global batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def two_passes(closure: Callable[[], Any], network: nn.Module, rho: float) -> Any:
    """Leave the gradients of the perturbed network on its parameters, ready for the optimizer.

    Args:
        closure: clears the gradients, runs forward and backward.
        network: whose parameters are perturbed, and are as before afterwards.
        rho: radius, in the L2 norm over all parameters.

    Returns:
        What the closure returned for the unperturbed network.
    """
    result = closure()
    with _at_the_worst_point(*_with_gradients(network), rho), _statistics_kept(network):
        closure()
    return result


def split_passes(sharp: Callable[[], Any], rest: Callable[[], None], network: nn.Module, rho: float) -> Any:
    """As ``two_passes`` for a part of the loss alone: grad rest(w) + grad sharp(w + rho g / |g|), g = grad sharp(w).

    Two forward and three backward passes. Under DDP the first and last backward pass are shared, as each follows a
    forward pass; the last one shares the gradient of ``rest`` too, to which it adds.

    Args:
        sharp: runs forward, and backward for the sharp part of the loss, whose gradient it adds to those of the
            parameters; called with none at first, then with those of ``rest``.
        rest: runs backward for the rest of the loss of the first forward pass.
        network: whose parameters are perturbed, and are as before afterwards.
        rho: radius, in the L2 norm over all parameters.

    Returns:
        What ``sharp`` returned for the unperturbed network.
    """
    result = sharp()
    moved, gradients = _with_gradients(network)
    for parameter in moved:
        parameter.grad = None
    rest()
    with _at_the_worst_point(moved, gradients, rho), _statistics_kept(network):
        sharp()
    return result


def _with_gradients(network: nn.Module) -> tuple[Any, Any]:
    """The parameters that have a gradient, and their gradients."""
    moved = [parameter for parameter in network.parameters() if parameter.grad is not None]
    return moved, [parameter.grad for parameter in moved]


@contextmanager
def _at_the_worst_point(moved: Any, gradients: Any, rho: float) -> Iterator[None]:
    before = [parameter.detach().clone() for parameter in moved]
    with torch.no_grad():
        # The norm stays on the device: reading it would block the host.
        scale = rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        steps: Any = torch._foreach_mul(gradients, scale)
        for step in steps:
            # Where the gradient overflowed in float16, the scaler skips this batch; its loss must remain finite.
            step.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_add_(moved, steps)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)  # exactly


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalisation, which are those of the unperturbed network."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
