"""Depthwise convolutions of images smaller than their kernel, whose gradient oneDNN computes very slowly on a CPU.

The last stages of an EfficientNet see 2 x 2 positions where its input has 33 to 64 pixels. There oneDNN 3.13 without
AVX-512 takes some ten times as long for the gradient of a 3 x 3 depthwise convolution as on 3 x 3 positions: a third of
a whole training step. ``benchmarks/depthwise.py`` measures it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNELS = (3, 5)
"""Sides of the kernels for which the other gradient is faster; for 7 it is not."""


class _Convolve(torch.autograd.Function):
    """A depthwise convolution whose gradient is that of the same images with zeros up to the size of the kernel."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        images, weight = ctx.saved_tensors
        height, width = images.shape[-2:]
        of_images, of_weight, _ = torch.ops.aten.convolution_backward(
            _enlarge(gradients[0], weight),
            _enlarge(images, weight),
            weight,
            None,
            stride=[1, 1],
            padding=[weight.shape[-1] // 2] * 2,
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=len(weight),
            output_mask=[True, True, False],
        )
        return of_images[..., :height, :width].contiguous(memory_format=torch.channels_last), of_weight


def _enlarge(images: Tensor, weight: Tensor) -> Tensor:
    (height, width), side = images.shape[-2:], weight.shape[-1]
    return F.pad(images, (0, side - width, 0, side - height)).contiguous(memory_format=torch.channels_last)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with a faster gradient where float32 images on the CPU are smaller than its kernel."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_slow = (
            self.training
            and torch.is_grad_enabled()
            and input.device.type == "cpu"
            and max(input.shape[-2:]) < weight.shape[-1]
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )
        if is_slow:
            output: Tensor = _Convolve.apply(input, weight)
            return output
        return super()._conv_forward(input, weight, bias)


def replace_depthwise(network: nn.Module) -> None:
    """Turn every convolution that gains from it into a ``DepthwiseConv2d`` with the same parameters."""
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == module.in_channels == module.out_channels > 1
            and any(module.kernel_size == (side, side) and module.padding == (side // 2, side // 2) for side in KERNELS)
            and (module.stride, module.dilation) == ((1, 1), (1, 1))
            and module.padding_mode == "zeros"
            and module.bias is None
        ):
            module.__class__ = DepthwiseConv2d
