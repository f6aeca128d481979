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
    with _at_the_worst_point(network, rho), _statistics_kept(network):
        closure()
    return result


def three_passes(closure: Callable[[bool], Any], network: nn.Module, rho: float) -> Any:
    """As ``two_passes`` for a part of the loss alone: grad plain(w) + grad sharp(w + rho g / |g|), g = grad sharp(w).

    Args:
        closure: clears the gradients, runs forward and backward; with True for the sharp part of the loss, with False
            for the rest.
        network: whose parameters are perturbed, and are as before afterwards.
        rho: radius, in the L2 norm over all parameters.

    Returns:
        What the closure returned for the plain part.
    """
    closure(True)
    with _statistics_kept(network):
        with _at_the_worst_point(network, rho):
            closure(True)
        moved: Any = [parameter for parameter in network.parameters() if parameter.grad is not None]
        sharp: Any = [parameter.grad.clone() for parameter in moved]
        result = closure(False)
        torch._foreach_add_([parameter.grad for parameter in moved], sharp)
    return result


@contextmanager
def _at_the_worst_point(network: nn.Module, rho: float) -> Iterator[None]:
    moved: Any = [parameter for parameter in network.parameters() if parameter.grad is not None]
    gradients: Any = [parameter.grad for parameter in moved]
    before = [parameter.detach().clone() for parameter in moved]
    with torch.no_grad():
        # The norm stays on the device: reading it would block the host.
        scale = rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        torch._foreach_add_(moved, torch._foreach_mul(gradients, scale))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)  # exactly, also where the gradient was infinite


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
