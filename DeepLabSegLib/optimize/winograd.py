"""Convolutions of three taps along the first axis by fewer products: Winograd's minimal filtering.

Three taps need 3 m products for m neighbouring results; m + 2 are enough. Results are the coefficients of a product of
two polynomials, transposed, and polynomials are multiplied point by point. Here a point's product is of whole planes:
a convolution along the other axes.

Source: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv:1509.09308), F(m, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.optimize.rewrite import Conv

__all__ = ["at_points", "convolve_by_points", "results_at_once", "tiles"]

TAPS = 3

AT_ONCE = (2, 4, 6)
"""How many neighbouring results may be computed together; with more, rounding would grow."""

POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)
"""Where polynomials are multiplied, beside infinity. As many as are needed, from the first."""

ONE = 1
"""The number of the point 1, which has the same share in every result: a constant is added there."""

TRANSFORM, WEIGHT, START = 150, 50, 3e7
"""What it takes, in products: to bring a number to a point or back from it, to read a weight, to begin at all.

The last is time that more threads don't share. As seen in 2D and 3D on two cores of a Zen 5.
"""


def results_at_once(conv: Conv, sizes: Sequence[int]) -> int:
    """How many results of `conv`, on maps of `sizes`, are had with the least effort together; 1 is as ever."""
    if (conv.groups, conv.kernel[0], conv.stride[0], conv.dilation[0]) != (1, TAPS, 1, 1):
        return 1
    outputs, inputs = conv.weight.shape[:2]
    area, weights = prod(sizes[1:]), conv.weight.numel() // TAPS
    efforts: dict[int, float] = {1: TAPS * weights * (sizes[0] * area + WEIGHT)}
    for results in AT_ONCE:
        planes = tiles(sizes[0], conv.padding[0], results) * area
        once = planes * (weights + TRANSFORM * (inputs + outputs)) + WEIGHT * weights
        efforts[results] = (results + TAPS - 1) * once + START * torch.get_num_threads()
    return min(efforts, key=lambda results: efforts[results])


def tiles(size: int, padding: int, results: int) -> int:
    """Groups of so many results that `size` planes give, with `padding` at both ends; the last may be too long."""
    return -(-_outputs(size, padding) // results)


def _outputs(size: int, padding: int) -> int:
    return size + 2 * padding - TAPS + 1


def at_points(conv: Conv, results: int) -> list[Conv]:
    """The convolutions of one tap along the first axis whose results are combined, one per point."""
    first, second, third = conv.weight.unbind(2)
    values = [(third * point + second).mul_(point).add_(first) for point in POINTS[: results + TAPS - 2]]
    once = replace(conv, padding=[0, *conv.padding[1:]])
    return [replace(once, weight=value.unsqueeze(2)) for value in [*values, third]]


def convolve_by_points(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The whole convolution of `x` `(N, C, *S)`, by the weights of `at_points`, packed by oneDNN."""
    planes = x.movedim(1, -1)
    place = ([0, *padding[1:]], stride, dilation, 1)
    products = [
        torch.ops.mkldnn._convolution_pointwise(
            values, weight, bias if point == ONE else None, *place, "none", [], ""
        ).movedim(1, -1)
        for point, (values, weight) in enumerate(zip(_values(planes, padding[0], len(weights)), weights, strict=True))
    ]
    shape = products[0].shape
    stacked = torch.stack([product.flatten(2) for product in products], 2)
    del products
    results = _matrices(len(weights))[1] @ stacked
    outputs = _outputs(planes.shape[1], padding[0])
    return results.view(shape[0], -1, *shape[2:])[:, :outputs].movedim(-1, 1)


def _values(planes: Tensor, padding: int, points: int) -> list[Tensor]:
    """`planes` `(N, D, *S, C)` in tiles that overlap: what stands for them at each point, `(N, C, tiles, *S)`."""
    number, depth, *rest = planes.shape
    step = points - TAPS + 1
    count = tiles(depth, padding, step)
    filled = F.pad(planes.reshape(number, depth, -1), (0, 0, padding, step * count + TAPS - 1 - depth - padding))
    values = _matrices(points)[0] @ filled.unfold(1, points, step).transpose(2, 3)
    return [part.movedim(-1, 1) for part in values.view(number, count, points, *rest).unbind(2)]


@cache
def _matrices(points: int) -> tuple[Tensor, Tensor]:
    """From neighbouring planes to so many points, and from points to results."""
    whole, results = (_powers(points, degree) for degree in (points, points - TAPS + 1))
    return torch.linalg.inv(whole).T.float().contiguous(), results.T.float().contiguous()


def _powers(points: int, degree: int) -> Tensor:
    """Powers 0 to `degree - 1` of so many points, a row each, the last for infinity, where the highest alone counts."""
    finite = torch.tensor(POINTS[: points - 1], dtype=torch.float64)
    return torch.cat([torch.vander(finite, degree, increasing=True), torch.eye(degree, dtype=torch.float64)[-1:]])
