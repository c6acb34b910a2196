"""A convolution of stride 2 on few channels as one on more: neighbouring voxels become a voxel's channels.

It computes a little more, since a kernel of 7 taps takes up 8, but on channels, which is what matrix units multiply.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.optimize.rewrite import Conv

__all__ = ["conv_on_pairs", "conv_on_rows", "on_pairs", "on_rows", "to_pairs", "to_rows"]

MOST_CHANNELS = 4


def on_pairs(conv: Conv, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `conv` is faster on pairs: a lone channel leaves half of a CPU's products in bf16 unused."""
    return _strided(conv) and conv.weight.shape[1] == 1 and device.type == "cpu" and dtype == torch.bfloat16


def on_rows(conv: Conv, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `conv` is faster on rows: in half precision cuDNN has no fast way for volumes of few channels."""
    few = conv.weight.shape[1] <= MOST_CHANNELS and len(conv.kernel) == 3
    return _strided(conv) and few and device.type == "cuda" and dtype != torch.float32


def _strided(conv: Conv) -> bool:
    return conv.groups == 1 and set(conv.stride) == {2} and set(conv.dilation) == {1}


def conv_on_pairs(conv: Conv) -> None:
    """Let `conv` take what `to_pairs` makes of its input."""
    weight = F.pad(conv.weight, _more_taps(conv.kernel[-1], conv.padding[-1]))
    conv.weight = weight.unflatten(-1, (-1, 2)).movedim(-1, 2).flatten(1, 2)
    conv.stride = [*conv.stride[:-1], 1]
    conv.padding = [*conv.padding[:-1], 0]


def to_pairs(x: Tensor, taps: int, padding: int) -> Tensor:
    """`(N, C, *S)` -> `(N, C * 2, *S)`, channels last, with half of the voxels along the last axis.

    `taps` and `padding` are the convolution's along that axis.
    """
    x = F.pad(x, _margins(x.shape[-1], taps, padding))  # a negative number cuts off what no tap meets
    return x.unflatten(-1, (-1, 2)).movedim(1, -2).flatten(-2).movedim(-1, 1)


def conv_on_rows(conv: Conv, width: int) -> None:
    """Let `conv`, whose results are `width` wide, take what `to_rows` makes of its volume."""
    more = [_more_taps(taps, padding) for taps, padding in zip(conv.kernel, conv.padding, strict=True)]
    weight = F.pad(conv.weight, list(chain(*reversed(more))))
    outputs, channels, planes, rows, columns = weight.shape
    cut = weight.view(outputs, channels, planes // 2, 2, rows // 2, 2, columns).permute(0, 1, 3, 5, 6, 2, 4)
    conv.weight = cut.reshape(outputs, -1, planes // 2, rows // 2)
    conv.stride, conv.padding, conv.dilation = [1, 1], [0, 0], [1, width]


def to_rows(x: Tensor, kernel: list[int], padding: list[int]) -> Tensor:
    """`(N, C, D, H, W)` -> `(N, C * 2 * 2 * taps, D / 2, H / 2 * results)`, channels last.

    All voxels of a row that a result along the last axis takes, and two along the others, become channels. Rows follow
    each other on one axis, so that it is an image whose kernel is dilated by the results of a row: cuDNN is faster
    with images. `kernel` and `padding` are those of the convolution of stride 2 on `x`.
    """
    margins = [_margins(*sizes) for sizes in zip(x.shape[2:], kernel, padding, strict=True)]
    x = F.pad(x, list(chain(*reversed(margins))))
    taps = kernel[-1] + sum(_more_taps(kernel[-1], padding[-1]))
    x = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, taps, 2)
    x = x.movedim(1, 4)  # (N, D / 2, H / 2, results, C, 2, 2, taps)
    return x.flatten(4).flatten(2, 3).movedim(-1, 1)


def _more_taps(taps: int, padding: int) -> list[int]:
    """Zeros before and after a kernel, so that it begins with the first voxel of a pair and ends with one's second."""
    return [padding % 2, (taps + padding % 2) % 2]


def _margins(size: int, taps: int, padding: int) -> list[int]:
    """Zeros before and after an axis, so that pairs begin with the first that a tap of `_more_taps` meets."""
    outputs = (size + 2 * padding - taps) // 2 + 1
    front = padding + padding % 2
    return [front, 2 * (outputs - 1) + taps + sum(_more_taps(taps, padding)) - front - size]
