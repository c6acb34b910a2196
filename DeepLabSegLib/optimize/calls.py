"""What a lowered graph calls for a convolution: `call(x, weights, bias, place, activation, other=None)`.

That is `activation(convolution(x) + bias + other)`, `activation` being named as in `Conv`. Each is written without what
follows, which `finished` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.optimize.winograd import convolve_by_points

__all__ = ["Place", "by_points", "convolve", "finished"]

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


def finished(
    convolution: Callable[[Tensor, Sequence[Tensor], Tensor | None, Place], Tensor],
) -> Callable[..., Tensor]:
    """The call whose convolution that is; what follows is written over its result."""

    @wraps(convolution)
    def call(
        x: Tensor,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        place: Place,
        activation: str | None,
        other: Tensor | None = None,
    ) -> Tensor:
        result = convolution(x, weights, bias, place)
        if other is not None:
            result += other
        return APPLIED[activation](result)

    return call


@finished
def convolve(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, place: Place) -> Tensor:
    """By torch's own convolution."""
    function: Any = F.conv2d if x.ndim == 4 else F.conv3d
    return function(x, *weights, bias, *place)


@finished
def by_points(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, place: Place) -> Tensor:
    """See `winograd`."""
    return convolve_by_points(x, weights, bias, *place[:3])
