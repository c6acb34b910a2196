"""A convolution of stride 2 on one channel as one of stride 1 on the eight voxels of each block of 2 x 2 x 2.

It computes a little more, since a kernel of 7 taps takes up 8, but on channels, which is what a GPU's matrix units
multiply: cuDNN has no fast way for a volume of one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor
from torch.nn import functional as F

__all__ = ["kernel_on_blocks", "takes_blocks", "to_blocks"]

MOST_CHANNELS = 4


def takes_blocks(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether a convolution is one for which blocks pay: few channels of a volume, stride 2."""
    return (
        weight.ndim == 5
        and weight.shape[1] <= MOST_CHANNELS
        and groups == 1
        and set(stride) == {2}
        and set(dilation) == {1}
    )


def kernel_on_blocks(weight: Tensor, padding: Sequence[int]) -> Tensor:
    """`(O, C, k, k, k)` -> `(O, 8 C, k', k', k')`; k' is about half of k."""
    # Tap t of the padded kernel meets voxel (t % 2) of block (t // 2), counted from the first that it touches.
    pads = [(padded % 2, (taps + padded % 2) % 2) for padded, taps in zip(padding, weight.shape[2:], strict=True)]
    taps = F.pad(weight, list(chain(*reversed(pads))))
    outputs, channels, *sizes = taps.shape
    halves = [size // 2 for size in sizes]
    cut = taps.view(outputs, channels, halves[0], 2, halves[1], 2, halves[2], 2)
    return cut.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(outputs, 8 * channels, *halves)


def to_blocks(x: Tensor, kernel: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The input `(N, 8 C, ...)`, channels last, that `kernel_on_blocks` is to slide over without further padding.

    `kernel` and `padding` are those of the convolution of stride 2 on `x` `(N, C, k, j, i)`.
    """
    sides = []
    for size, taps, padded in zip(x.shape[2:], kernel, padding, strict=True):
        outputs = (size + 2 * padded - taps) // 2 + 1
        front = padded + padded % 2
        whole = 2 * (outputs - 1) + 2 * ((taps + padded % 2 + 1) // 2)  # voxels under all blocks
        sides.append((front, whole - front - size))
    x = F.pad(x, list(chain(*reversed(sides))))  # a negative number cuts off what no tap meets
    count, channels, depth, height, width = x.shape
    cut = x.reshape(count, channels, depth // 2, 2, height // 2, 2, width // 2, 2)
    lined = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(count, depth // 2, height // 2, width // 2, 8 * channels)
    return lined.permute(0, 4, 1, 2, 3)
