"""Images as the network's input: resized and normalised, in batches."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fer_lightning.runtime.processes import parts_in_cache


def channel_values(values: tuple[float, ...], color: bool) -> tuple[float, ...]:
    """timm's value of each channel; for gray their mean: with summed stem weights, others would shift the input."""
    return values if color else (sum(values) / len(values),)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int, size: int) -> Tensor:
    """Images as a network's input (B, ``in_channels``, ``size``, ``size``), channels last.

    Args:
        images: uint8 or 0 to 255 float: gray (B, H, W) for one mean; red, green, blue (B, 3, H, W) for three.
        mean: of each channel of the images, of values from 0 to 1.
        std: the same for the standard deviation.
        in_channels: channels of the input; gray is repeated.
        size: side of the input, in pixels.
    """
    if images.device.type != "cpu" or torch.compiler.is_compiling():  # an exported graph takes batches of any size
        return _normalized(images, mean, std, in_channels, size).contiguous(memory_format=torch.channels_last)
    normalized = torch.empty((len(images), in_channels, size, size), memory_format=torch.channels_last)
    if len(mean) == 3 and images.shape[-2:] == (size, size):
        _normalize_rows(images, mean, std, normalized)
    else:
        for part in parts_in_cache(len(images), images.shape[1:].numel()):
            normalized[part] = _normalized(images[part], mean, std, in_channels, size)
    return normalized


def _normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int, size: int) -> Tensor:
    pixels = (images if len(mean) == 3 else images.unsqueeze(1)).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    # Channel by channel, with numbers: a tensor of means would be copied to the device in each step.
    for channel, (its_mean, its_std) in enumerate(zip(mean, std, strict=True)):
        pixels[:, channel].sub_(its_mean).div_(its_std)
    return pixels.expand(-1, in_channels, -1, -1)


@lru_cache(maxsize=8)
def _row_scale(mean: tuple[float, ...], std: tuple[float, ...], size: int) -> tuple[Tensor, Tensor]:
    """Factor and shift, both (3 ``size``,), that normalise a row of red, green, blue from 0 to 255."""
    deviation = 255 * torch.tensor(std)
    return (1 / deviation).repeat(size), (-255 * torch.tensor(mean) / deviation).repeat(size)


def _normalize_rows(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], normalized: Tensor) -> None:
    """Write colour images, on a CPU, to ``normalized`` in rows of pixels: both (B, 3, H, H)."""
    count, size = len(images), images.shape[-1]
    factor, shift = _row_scale(mean, std, size)
    pixels = images.permute(0, 2, 3, 1).reshape(count * size, 3 * size)
    rows = normalized.permute(0, 2, 3, 1).view(count * size, 3 * size)
    for part in parts_in_cache(count, size * 3 * size):
        lines = slice(part.start * size, part.stop * size)
        changed = rows[lines]
        torch.addcmul(shift, changed.copy_(pixels[lines]), factor, out=changed)
