"""A separable convolution of an enlarged map, computed on the small map and enlarged afterwards.

Sums over channels and sums over voxels may change places. So the products over channels, which are most of
DeepLabV3+'s decoder, are taken of the small map: one number per tap, output channel and cell. What is left is, along
each axis, a matrix from taps and cells to the voxels of the large map. At the borders that is exact as well: where a
tap meets padding, its entries are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from DeepLabSegLib.models.layers import resize_matrix
from DeepLabSegLib.optimize.capture import arguments, stand_in, value
from DeepLabSegLib.optimize.rewrite import Conv, conv_for_one, convolution

__all__ = ["convolve_before_enlarging", "enlarge", "enlarging"]

aten = torch.ops.aten

ENLARGEMENTS = (aten.upsample_bilinear2d.default, aten.upsample_trilinear3d.default)

WORTH = 0.6
"""The most products, as a share of those over the large map, that pay for the copies in between."""


def convolve_before_enlarging(graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
    """Do so, in place, for each separable convolution of channels of which some were enlarged.

    The others are convolved as before, and what comes of the enlarged ones is added; `tensors` as in `rewrite`.
    """
    for pointwise in graph.find_nodes(op="call_function", target=convolution):
        (depthwise, *others), last = arguments(pointwise), pointwise.meta["conv"]
        first = conv_for_one(depthwise, pointwise)
        if first is None or others or not (_depthwise(first) and last.pointwise):
            continue
        (joined,) = arguments(depthwise)
        if joined.target is not aten.cat.default or len(joined.users) > 1 or last.activation not in (None, "relu"):
            continue
        parts, axis = (*arguments(joined), 0)[:2]
        deep = [part for part in parts if _enlarged(part, joined)]
        if axis % value(joined).ndim == 1 and len(deep) == 1 and _worth(deep[0], first, last):
            _convolve_before_enlarging(pointwise, joined, deep[0], tensors)


def _depthwise(conv: Conv) -> bool:
    return (
        conv.groups == len(conv.weight)
        and conv.weight.shape[1] == 1 == max(conv.stride)
        and conv.bias is None
        and conv.scale is None
    )


def _enlarged(part: fx.Node, joined: fx.Node) -> bool:
    """Whether `part`, which `joined` alone reads, was enlarged linearly, to a size and with half-pixel centres."""
    if part.target not in ENLARGEMENTS or list(part.users) != [joined] or len(arguments(joined)[0]) < 2:
        return False
    _, _, corners, *factors = arguments(part)
    return not corners and not any(factors)


def _worth(deep: fx.Node, first: Conv, last: Conv) -> bool:
    low, large = value(arguments(deep)[0]).shape, value(deep).shape
    channels = len(last.weight)
    cells = [taps * count for taps, count in zip(first.kernel, low[2:], strict=True)]
    products = math.prod(cells) * low[1] * channels
    for n, size in enumerate(large[2:]):  # axis after axis
        products += channels * math.prod(large[2 : 2 + n]) * size * math.prod(cells[n:])
    return products <= WORTH * math.prod(large[1:]) * channels


def _convolve_before_enlarging(pointwise: fx.Node, joined: fx.Node, deep: fx.Node, tensors: dict[str, Tensor]) -> None:
    graph, (depthwise,), (given, *_) = pointwise.graph, arguments(pointwise), arguments(deep)
    first, last = depthwise.meta["conv"], pointwise.meta["conv"]
    low, parts = value(given), list(arguments(joined)[0])
    before = sum(value(part).shape[1] for part in parts[: parts.index(deep)])
    own = slice(before, before + low.shape[1])

    taps, weight = first.weight[own].flatten(1).T, last.scaled_weight()[:, own].flatten(1)
    mixing = (taps[:, None] * weight).flatten(0, 1).view(-1, low.shape[1], *[1] * len(first.kernel))
    one, none = [1] * len(first.kernel), [0] * len(first.kernel)
    with graph.inserting_before(pointwise):
        small = graph.call_function(convolution, (given,))
        matrices = []
        for n, (size, large) in enumerate(zip(low.shape[2:], value(deep).shape[2:], strict=True)):
            name = f"{pointwise.name}_axis{n}"
            matrix = enlarging(size, large, first.kernel[n], first.padding[n], first.dilation[n])
            # Voxels side by side: a GPU reads several numbers at once, and those of taps and cells are odd.
            tensors[name] = matrix.T.contiguous().T
            matrices.append(graph.create_node("get_attr", name))
        added = graph.call_function(enlarge, (small, matrices))
    small.meta["conv"] = Conv(mixing, None, one, none, one, 1)
    small.meta["value"] = stand_in((len(low), len(mixing), *low.shape[2:]), low.dtype)
    added.meta["value"] = value(pointwise)

    kept = [n for n in range(len(first.weight)) if not own.start <= n < own.stop]
    depthwise.meta["conv"] = replace(first, weight=first.weight[kept], groups=len(kept))
    pointwise.meta["conv"] = replace(last, weight=last.weight[:, kept])
    pointwise.args = (depthwise, added)
    parts.remove(deep)
    joined.args = (parts, 1)
    for node in (joined, depthwise):
        number, _, *sizes = value(node).shape
        node.meta["value"] = stand_in((number, len(kept), *sizes), low.dtype)
    if len(parts) == 1:
        joined.replace_all_uses_with(parts[0])
        graph.erase_node(joined)
    graph.erase_node(deep)


def enlarging(size: int, large: int, taps: int, padding: int, dilation: int) -> Tensor:
    """`(results, taps * size)`: what a convolution of `large` voxels gets, by each tap, of each of `size` cells."""
    padded = F.pad(resize_matrix(size, large), (0, 0, padding, padding))
    results = large + 2 * padding - dilation * (taps - 1)
    return torch.cat([padded[tap * dilation :][:results] for tap in range(taps)], 1)


def enlarge(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Numbers per tap and channel `(N, taps * C, *low)` to `(N, C, *S)`, a matrix of `enlarging` along each axis."""
    number, mixed, *low = x.shape
    dims = len(low)
    taps = [matrix.shape[1] // size for matrix, size in zip(matrices, low, strict=True)]
    pairs = chain.from_iterable((1 + dims + n, 1 + n) for n in range(dims))
    x = x.movedim(1, -1).reshape(number, *low, *taps, mixed // math.prod(taps)).permute(0, *pairs, -1)
    x = x.reshape(number, *(matrix.shape[1] for matrix in matrices), -1)
    for n, matrix in enumerate(matrices, 1):
        rows = x.reshape(math.prod(x.shape[:n]), x.shape[n], -1)
        enlarged = torch.bmm(matrix.expand(len(rows), -1, -1), rows)
        x = enlarged.view(*x.shape[:n], len(matrix), *x.shape[n + 1 :])
    return x.movedim(-1, 1)
