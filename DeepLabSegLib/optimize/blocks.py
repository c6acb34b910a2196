"""A convolution of stride 2 on one channel as one on the voxels of blocks, which become its channels.

It computes a little more, since a kernel of 7 taps takes up 8, but on channels, which is what matrix units multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.optimize.rewrite import Conv

__all__ = ["block_for", "conv_on_blocks", "to_blocks"]

MOST_CHANNELS = 4


def block_for(conv: Conv, device: torch.device, dtype: torch.dtype) -> list[int]:
    """Voxels of a block along each axis, 1 or 2; those for which `conv` is fastest, and 1 along all where none pays.

    On a GPU in half precision 2 x 2 x 2: cuDNN has no fast way for volumes of few channels. On the CPU in bf16 two
    along the last axis: its products are of pairs of channels, of which a lone one leaves half unused.
    """
    channels, dims = conv.weight.shape[1], len(conv.kernel)
    if conv.groups == 1 and set(conv.stride) == {2} and set(conv.dilation) == {1}:
        if device.type == "cuda" and dtype != torch.float32 and dims == 3 and channels <= MOST_CHANNELS:
            return [2, 2, 2]
        if device.type == "cpu" and dtype == torch.bfloat16 and channels == 1:
            return [1] * (dims - 1) + [2]
    return [1] * dims


def conv_on_blocks(conv: Conv, block: Sequence[int]) -> None:
    """Let `conv`, of stride 2, take what `to_blocks` makes of its input; k taps along an axis of pairs become k / 2."""
    # Tap t of the padded kernel meets voxel (t % 2) of block (t // 2), counted from the first that it touches.
    pads = [
        (padded % 2, (taps + padded % 2) % 2) if side == 2 else (0, 0)
        for padded, taps, side in zip(conv.padding, conv.kernel, block, strict=True)
    ]
    conv.weight = _voxels_as_channels(F.pad(conv.weight, list(chain(*reversed(pads)))), block)
    conv.stride = [2 // side for side in block]
    conv.padding = [padded if side == 1 else 0 for padded, side in zip(conv.padding, block, strict=True)]


def to_blocks(x: Tensor, kernel: Sequence[int], padding: Sequence[int], block: Sequence[int]) -> Tensor:
    """The input `(N, voxels of a block * C, *S)`, channels last, padded along the axes in blocks.

    `kernel` and `padding` are those of the convolution of stride 2 on `x` `(N, C, *S)`.
    """
    sides = []
    for size, taps, padded, side in zip(x.shape[2:], kernel, padding, block, strict=True):
        outputs = (size + 2 * padded - taps) // 2 + 1
        front = padded + padded % 2
        whole = 2 * (outputs - 1) + 2 * ((taps + padded % 2 + 1) // 2)  # voxels under all blocks
        sides.append((front, whole - front - size) if side == 2 else (0, 0))
    x = F.pad(x, list(chain(*reversed(sides))))  # a negative number cuts off what no tap meets
    return _voxels_as_channels(x, block)


def _voxels_as_channels(x: Tensor, block: Sequence[int]) -> Tensor:
    """`(N, C, *S)` -> `(N, C * voxels, *S / block)`, channels last."""
    number, channels, *sizes = x.shape
    halves = [size // side for size, side in zip(sizes, block, strict=True)]
    cut = x.reshape(number, channels, *chain(*zip(halves, block, strict=True)))
    dims = len(sizes)
    lined = cut.permute(0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2))
    return lined.reshape(number, *halves, -1).movedim(-1, 1)
