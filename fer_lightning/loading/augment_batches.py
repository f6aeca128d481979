"""Random changes of whole batches, on the device that computes: ``augment.backend=batched``.

The same operations and strengths as ``augment_images.Augmentation``, sampled for each image on its own. The change of
an image is a function of its seed alone, so it depends neither on the batch nor on the device. The warp samples at the
network's input size: one interpolation instead of a warp and a resize. On a CPU, OpenCV warps colour images, in
steps of 1/32 pixel and rounded to whole numbers: ``grid_sample`` takes longer for them.
"""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fer_lightning.config.augment import ERASE_ASPECT, Strengths
from fer_lightning.loading.randomness import uniforms
from fer_lightning.runtime.processes import parts_in_cache

_MOVE = slice(0, 6)
_FLIP, _FACTOR, _SHIFT, _TOP, _BOTTOM, _LEFT, _RIGHT, _GRAY = range(6, 14)


class BatchedAugmentation:
    """Flip, warp, relight and erase parts of images; see ``Strengths``.

    Args:
        strengths: what is done, and how strongly.
        side: of the images, in pixels.
    """

    def __init__(self, strengths: Strengths, side: int) -> None:
        self.strengths = strengths
        self.side = side

    def sample(self, seeds: np.ndarray) -> Tensor:
        """Sample how each of n images is changed.

        Args:
            seeds: uint64, (n,), as from ``entry_seed``.

        Returns:
            float32, (n, 14): an affine map of sampling points (6, row by row, in coordinates from -1 to 1), whether
            it flips, factor and shift of the gray levels, the rectangle to hide (top, bottom, left, right in pixels
            of the images; empty for none) and its gray.
        """
        s, side = self.strengths, self.side
        u = uniforms(seeds, 13).T.astype(np.float64)
        signed = 2 * u - 1
        flip = np.where(u[0] < s.hflip, -1.0, 1.0)
        angle = np.radians(s.rotate * signed[1])
        # Whole pixels, as albumentations shifts.
        right, down = np.trunc(s.translate * signed[2:4] * side) * 2 / side
        cos, sin = (part / (1 + s.scale * signed[4]) for part in (np.cos(angle), np.sin(angle)))
        move = (
            *(flip * part for part in (cos, sin, -cos * right - sin * down)),
            *(-sin, cos, sin * right - cos * down),
        )
        area = side**2 * (s.erase_area[0] + (s.erase_area[1] - s.erase_area[0]) * u[8])
        aspect = ERASE_ASPECT[0] + (ERASE_ASPECT[1] - ERASE_ASPECT[0]) * u[9]
        hidden = u[7] < s.erase
        height, width = (np.where(hidden, np.rint(np.sqrt(part)), 0) for part in (area / aspect, area * aspect))
        top, left = (np.floor(u[column] * (side + 1 - length)) for column, length in ((10, height), (11, width)))
        changes = (
            *move,
            flip,
            1 + s.contrast * signed[5],
            255 * s.brightness * signed[6],
            *(top, top + height, left, left + width),
            np.floor(256 * u[12]),
        )
        return torch.from_numpy(np.stack(changes, axis=1).astype(np.float32))

    def __call__(self, images: Tensor, changes: Tensor, size: int, rows: Tensor | None = None) -> Tensor:
        """Return changed images.

        Args:
            images: uint8, (N, H, H) or (N, 3, H, H), fastest with channels last in memory; not written to.
            changes: (B, 14), as from ``sample``, on the same device.
            size: side of the network's input in pixels.
            rows: int64, (B,), which of ``images``, on the same device; all in order by default.

        Returns:
            float32 from 0 to 255, or uint8; with sides of ``size`` where images are moved, else of H; ``images`` itself
            where there is nothing to do and no ``rows`` are given.
        """
        if not self.strengths.changes or images.device.type != "cpu":
            chosen = images if rows is None else select(images, rows)
            return self._change(chosen, changes, size) if self.strengths.changes else chosen
        if rows is None:
            rows = torch.arange(len(images))
        if images.ndim == 4 and self.strengths.moves:
            return self._relight_and_erase(_warped(images, rows, changes[:, _MOVE], size), changes)
        side = size if self.strengths.moves else images.shape[-1]
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        changed = torch.empty((len(rows), *images.shape[1:-2], side, side), memory_format=layout)
        for part in parts_in_cache(len(rows), images.shape[1:].numel()):
            changed[part] = self._change(select(images, rows[part]), changes[part], size)
        return changed

    def _change(self, images: Tensor, changes: Tensor, size: int) -> Tensor:
        s = self.strengths
        pixels = images.float()
        if s.moves:
            grid = _sampling_points(changes[:, _MOVE], size)
            channels = pixels if pixels.ndim == 4 else pixels.unsqueeze(1)
            channels = F.grid_sample(channels, grid, "bilinear", "reflection", align_corners=False)
            pixels = channels if pixels.ndim == 4 else channels.squeeze(1)
        elif s.hflip:
            pixels = torch.where(_for_each(changes[:, _FLIP], pixels) < 0, pixels.flip(-1), pixels)
        return self._relight_and_erase(pixels, changes)

    def _relight_and_erase(self, pixels: Tensor, changes: Tensor) -> Tensor:
        s = self.strengths
        if s.relights:
            factor, shift = (_for_each(changes[:, column], pixels) for column in (_FACTOR, _SHIFT))
            pixels = torch.addcmul(shift, pixels.float(), factor).clamp_(0, 255)
        if s.erase:
            hidden = _inside(changes, _TOP, _BOTTOM, pixels.shape[-2], self.side)[:, :, None]
            hidden = hidden & _inside(changes, _LEFT, _RIGHT, pixels.shape[-1], self.side)[:, None, :]
            hidden = hidden if pixels.ndim == 3 else hidden.unsqueeze(1)
            pixels = torch.where(hidden, _for_each(changes[:, _GRAY], pixels), pixels)
        return pixels


def select(images: Tensor, rows: Tensor) -> Tensor:
    """``images[rows]``, of (N, H, H), (N, 3, H, H) or features (N, D); colour with channels last in memory."""
    if images.ndim != 4:
        return images.index_select(0, rows)
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def _for_each(numbers: Tensor, images: Tensor) -> Tensor:
    """One number per image, (B,), in a shape that spreads over the images."""
    return numbers.view(-1, *(1,) * (images.ndim - 1))


def _sampling_points(moves: Tensor, size: int) -> Tensor:
    """(B, 6) affine maps as (B, size, size, 2) points, x first; faster than ``affine_grid``'s matrix product."""
    middles = (torch.arange(size, device=moves.device, dtype=moves.dtype) + 0.5) * (2 / size) - 1
    maps = moves.view(-1, 2, 3)
    along_x, along_y, constant = (maps[:, :, part, None] for part in range(3))
    columns, rows = along_x * middles, torch.addcmul(constant, along_y, middles)  # (B, 2, size)
    return columns.mT[:, None] + rows.mT[:, :, None]


def _warped(images: Tensor, rows: Tensor, moves: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, H), those of ``rows`` moved by (B, 6) affine maps: (B, 3, size, size), channels last."""
    side = images.shape[-1]
    maps = moves.double().numpy().reshape(-1, 2, 3)
    # From coordinates of -1 to 1 to pixels, whose centres are whole numbers.
    linear = maps[..., :2] * (side / size)
    constant = (maps[..., 2] + 1) * (side / 2) - 0.5 + linear.sum(-1) * (1 - size) / 2
    # Mirrored once around the picture, in less time than pixel by pixel within the warp.
    corners = constant[..., None] + (size - 1) * linear @ np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    outside = np.maximum(-corners.min((1, 2)), corners.max((1, 2)) - side).clip(min=0)
    margins = 2 + np.ceil(outside).astype(int)
    to_pixels = np.concatenate([linear, margins[:, None, None] + constant[..., None]], axis=-1)
    warped = np.empty((len(rows), size, size, 3), np.uint8)
    padded = np.empty((side + 2 * margins.max(initial=0)) ** 2 * 3, np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pictures = images.permute(0, 2, 3, 1).numpy()
    for row, margin, each, changed in zip(rows.tolist(), margins.tolist(), to_pixels, warped, strict=True):
        length = side + 2 * margin
        larger = padded[: length**2 * 3].reshape(length, length, 3)
        cv2.copyMakeBorder(pictures[row], margin, margin, margin, margin, cv2.BORDER_REFLECT, larger)
        cv2.warpAffine(larger, each, (size, size), changed, flags)
    return torch.from_numpy(warped).permute(0, 3, 1, 2)


def _inside(changes: Tensor, first: int, last: int, size: int, side: int) -> Tensor:
    """Which of ``size`` pixels along one side are inside the rectangle, in pixels of ``side``: (B, size)."""
    places = torch.arange(size, device=changes.device) * side // size
    return (places >= changes[:, first, None]) & (places < changes[:, last, None])
