"""What a lowered graph calls for a convolution; all with the same arguments.

`function(x, weights, bias, place, activation, other=None)` is `activation(convolution(x) + bias + other)`, `activation`
being named as in `Conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.optimize.winograd import convolve_by_points

__all__ = ["Place", "by_points", "convolve", "finish"]

APPLIED: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu_,
    "swish": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "hardswish": lambda x: F.hardswish(x, inplace=True),
}
"""The activations that a `Conv` may have, by oneDNN's names."""


class Place(NamedTuple):
    """Which voxels a convolution takes, along each axis, and in how many groups of channels."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    place: Place,
    activation: str | None,
    other: Tensor | None = None,
) -> Tensor:
    """By torch's own convolution."""
    function: Any = F.conv2d if x.ndim == 4 else F.conv3d
    return finish(function(x, *weights, bias, *place), activation, other)


def by_points(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    place: Place,
    activation: str | None,
    other: Tensor | None = None,
) -> Tensor:
    """See `winograd`."""
    return finish(convolve_by_points(x, weights, bias, *place[:3]), activation, other)


def finish(result: Tensor, activation: str | None, other: Tensor | None) -> Tensor:
    """What follows a convolution, written over its result."""
    if other is not None:
        result += other
    return APPLIED[activation](result)
