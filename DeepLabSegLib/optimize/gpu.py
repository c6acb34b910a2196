"""Convolutions on an NVIDIA GPU, by whichever of torch's and cuDNN's ways is fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.optimize.calls import Place, convolve, finished
from DeepLabSegLib.optimize.rewrite import Conv

__all__ = ["channels_last", "for_gpu"]

LEAST_WIDTH = 8
"""Channels of a group below which cuDNN, for volumes in half precision, is slower by a magnitude."""


def for_gpu(conv: Conv, fused: bool) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """The weights, of the type to compute in, and the call; `fused` says whether cuDNN adds and applies ReLU itself."""
    half, volumes = conv.weight.dtype != torch.float32, len(conv.kernel) == 3
    if half and volumes and 1 < conv.groups == len(conv.weight):
        if _same_size(conv):  # with strides cuDNN's planes are slower, too
            return [_lined(plane) for plane in conv.weight.unbind(2)], by_planes
        return [conv.weight.contiguous()], channelwise
    if half and volumes:
        _widen_groups(conv)
    if half:
        conv.weight = _lined(conv.weight)
    if fused and conv.activation == "relu":
        return [conv.weight], convolve_and_relu
    if half and _product(conv) and conv.bias is not None:
        return [conv.weight.flatten(1).T], multiply
    return [conv.weight], convolve


def channels_last(ndim: int) -> torch.memory_format:
    """The layout in which a voxel's channels lie side by side, for tensors of 4 or 5 axes."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def _lined(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=channels_last(x.ndim))


def _same_size(conv: Conv) -> bool:
    rows = zip(conv.kernel, conv.padding, conv.dilation, strict=True)
    return set(conv.stride) == {1} and all(2 * padding == apart * (taps - 1) for taps, padding, apart in rows)


def _product(conv: Conv) -> bool:
    """Whether it is a product of matrices, of sizes that a GPU reads at once."""
    return conv.pointwise and all(size % 8 == 0 for size in conv.weight.shape[:2])


def _widen_groups(conv: Conv) -> None:
    """Join neighbouring groups, with zeros where a channel meets another group's, until they are wide enough."""
    while conv.groups % 2 == 0 and conv.weight.shape[1] < LEAST_WIDTH:
        outputs = len(conv.weight) // conv.groups
        first, second = conv.weight.unflatten(0, (-1, 2, outputs)).unbind(1)
        zeros = torch.zeros_like(first)
        joined = torch.stack([torch.cat([first, zeros], 2), torch.cat([zeros, second], 2)], 1)
        conv.weight, conv.groups = joined.flatten(0, 2), conv.groups // 2


# --- calls -----------------------------------------------------------------------------------------------------------


def convolve_and_relu(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    place: Place,
    activation: str | None,  # ReLU
    other: Tensor | None = None,
) -> Tensor:
    """All in one of cuDNN's calls: torch adds and applies in passes of their own, each as long as a convolution."""
    if other is None:
        return torch.ops.aten.cudnn_convolution_relu(x, *weights, bias, *place)
    return torch.ops.aten.cudnn_convolution_add_relu(x, *weights, other, 1.0, bias, *place)


@finished
def multiply(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, _: Place) -> Tensor:
    """A convolution of one tap as a product of matrices, which adds the bias on its way: it must have one."""
    assert bias is not None
    voxels = x.movedim(1, -1)
    result = torch.addmm(bias, voxels.reshape(-1, voxels.shape[-1]), *weights)
    return result.view(*voxels.shape[:-1], -1).movedim(-1, 1)


@finished
def by_planes(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, place: Place) -> Tensor:
    """A depthwise convolution of a volume as sums of such of its planes, for which cuDNN is several times faster."""
    number, _, depth = x.shape[:3]
    planes, middle = _lined(x).transpose(1, 2).flatten(0, 1), len(weights) // 2

    def convolved(tap: int, shift: Tensor | None = None) -> Tensor:
        found = F.conv2d(planes, weights[tap], shift, 1, place.padding[1:], place.dilation[1:], place.groups)
        return found.unflatten(0, (number, depth))

    result = convolved(middle, bias)
    for tap in range(len(weights)):
        away = (tap - middle) * place.dilation[0]
        if away != 0 and abs(away) < depth:
            here, there = slice(max(0, -away), depth - max(0, away)), slice(max(0, away), depth + min(0, away))
            result[:, here] += convolved(tap)[:, there]
    return result.transpose(1, 2)


@finished
def channelwise(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, place: Place) -> Tensor:
    """Torch has a kernel for depthwise convolutions of volumes whose channels lie apart; cuDNN's is slower."""
    (weight,) = weights
    return F.conv3d(x.contiguous(), weight, bias, place.stride, place.padding, place.dilation, place.groups)
