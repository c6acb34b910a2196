"""From `Conv` to calls: oneDNN's fused, prepacked convolutions where this torch has them, torch's own elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from DeepLabSegLib.optimize.blocks import block_for, conv_on_blocks, to_blocks
from DeepLabSegLib.optimize.capture import value
from DeepLabSegLib.optimize.rewrite import Conv, convolution, overwritable
from DeepLabSegLib.optimize.winograd import at_points, convolve_by_points, results_at_once, tiles

__all__ = ["lower", "onednn_works", "packed"]

aten = torch.ops.aten

IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.silu.default: aten.silu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.div.Tensor: aten.div_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
}

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


def lower(graph: fx.Graph, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype, onednn: bool) -> None:
    """Turn `graph` into calls that run, in place; new tensors join `tensors`, on `device` and of `dtype`."""
    _overwrite(graph)
    for number, node in enumerate(graph.find_nodes(op="call_function", target=convolution)):
        conv: Conv = node.meta["conv"]
        half_on_gpu = device.type == "cuda" and dtype != torch.float32
        if 2 in (block := block_for(conv, device, dtype)):
            _put_on_blocks(graph, node, conv, block)
        conv.weight, conv.scale = conv.scaled_weight().to(device, dtype), None
        weights, call = [conv.weight], _call_torch
        if onednn:
            shape = list(value(node.args[0]).shape)
            at_once = results_at_once(conv, shape[2:]) if dtype == torch.float32 else 1
            if at_once > 1:
                shape[2] = tiles(shape[2], conv.padding[0], at_once)
                weights, call = [packed(part, shape) for part in at_points(conv, at_once)], _call_onednn_by_points
            else:
                weights, call = [packed(conv, shape)], _call_onednn
        elif half_on_gpu:
            weights = [conv.weight.contiguous(memory_format=channels_last(conv.weight.ndim))]
        bias = None if conv.bias is None else conv.bias.to(device, dtype)
        with graph.inserting_before(node):
            given = [_attribute(graph, tensors, f"conv{number}_weight{n}", part) for n, part in enumerate(weights)]
            shift = None if bias is None else _attribute(graph, tensors, f"conv{number}_bias", bias)
        call(node, conv, given, shift)
        del node.meta["conv"]  # and with it the original weights
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # the layout in memory is another than the one that was captured
    if device.type == "cpu" and dtype != torch.float32:
        for node in graph.find_nodes(op="call_function", target=aten.avg_pool3d.default):
            node.target = _avg_pool3d
    if device.type == "cpu" and dtype == torch.bfloat16:  # fp16's sums would overflow
        for node in graph.find_nodes(op="call_function", target=aten.mean.dim):
            node.target = _mean
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if not node.users:
            graph.erase_node(node)
        elif not tensors[name].is_mkldnn:
            # Batch normalisation takes its numbers in full precision with maps in any.
            exact = all(user.target is aten.native_batch_norm.default for user in node.users)
            tensors[name] = tensors[name].detach().to(device, torch.float32 if exact else dtype)


def channels_last(ndim: int) -> torch.memory_format:
    """The layout in which a voxel's channels lie side by side, for tensors of 4 or 5 axes."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def _attribute(graph: fx.Graph, tensors: dict[str, Tensor], name: str, tensor: Tensor) -> fx.Node:
    tensors[name] = tensor
    return graph.create_node("get_attr", name)


def _overwrite(graph: fx.Graph) -> None:
    """Let results of voxel-by-voxel operations take the place of an argument that nobody reads any more."""
    # The last first: what was turned already shares memory with its argument.
    for node in reversed(graph.nodes):
        if node.target in IN_PLACE:
            first = node.args[0]
            same = isinstance(first, fx.Node) and _alike(value(first), value(node))
            if same and overwritable(first, node):
                node.target = IN_PLACE[node.target]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _put_on_blocks(graph: fx.Graph, node: fx.Node, conv: Conv, block: list[int]) -> None:
    """See `blocks`."""
    x, *others = node.args
    how = (conv.kernel, conv.padding, block)
    with graph.inserting_before(node):
        blocks = graph.call_function(to_blocks, (x, *how))
    blocks.meta["value"] = to_blocks(value(x), *how)
    node.args = (blocks, *others)
    conv_on_blocks(conv, block)


def packed(conv: Conv, shape: Sequence[int]) -> Tensor:
    """The weights as oneDNN wants them for inputs of that shape."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        conv.weight.contiguous(), conv.padding, conv.stride, conv.dilation, conv.groups, list(shape)
    )


# --- calls -----------------------------------------------------------------------------------------------------------


def _call_onednn(node: fx.Node, conv: Conv, weights: list[fx.Node], bias: fx.Node | None) -> None:
    x, *others = node.args
    (weight,) = weights
    place = (conv.padding, conv.stride, conv.dilation, conv.groups)
    if not others:
        algorithm = "none" if conv.activation == "gelu" else ""
        node.target = torch.ops.mkldnn._convolution_pointwise.default
        node.args = (x, weight, bias, *place, conv.activation or "none", [], algorithm)
        return
    follow: tuple[Any, ...] = ("add", None, conv.activation, [], None)
    if others[0] is not x and overwritable(others[0], node):
        node.target = torch.ops.mkldnn._convolution_pointwise_.binary
        node.args = (others[0], x, weight, bias, *place, *follow)
    else:
        node.target = torch.ops.mkldnn._convolution_pointwise.binary
        node.args = (x, others[0], weight, bias, *place, *follow)


def _call_onednn_by_points(node: fx.Node, conv: Conv, weights: list[fx.Node], bias: fx.Node | None) -> None:
    x, *others = node.args
    node.target = _convolve_by_points
    node.args = (x, weights, bias, conv.stride, conv.padding, conv.dilation, conv.activation, *others)


def _call_torch(node: fx.Node, conv: Conv, weights: list[fx.Node], bias: fx.Node | None) -> None:
    x, *others = node.args
    node.target = _convolve
    node.args = (x, *weights, bias, conv.stride, conv.padding, conv.dilation, conv.groups, conv.activation, *others)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str | None,
    other: Tensor | None = None,
) -> Tensor:
    function: Any = F.conv2d if x.ndim == 4 else F.conv3d
    return _finish(function(x, weight, bias, stride, padding, dilation, groups), activation, other)


def _convolve_by_points(
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str | None,
    other: Tensor | None = None,
) -> Tensor:
    return _finish(convolve_by_points(x, weights, bias, stride, padding, dilation), activation, other)


def _finish(result: Tensor, activation: str | None, other: Tensor | None) -> Tensor:
    if other is not None:
        result += other
    return APPLIED[activation](result)


def _avg_pool3d(x: Tensor, *args: Any) -> Tensor:
    """Average pooling for half precision, which torch lacks on the CPU."""
    return aten.avg_pool3d.default(x.float(), *args).to(x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool = False) -> Tensor:
    """The mean of bf16 from a sum, which torch rounds once at its end; its own mean copies all of `x` to float32."""
    return x.sum(axes, keep).div_(math.prod(x.shape[axis] for axis in axes))


@cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's private operators are in this torch and compute what its public ones do, in 2D and 3D."""
    try:
        return all(_onednn_agrees(dims, dtype) for dims in (2, 3))
    except (AttributeError, RuntimeError, TypeError):  # gone, renamed, called otherwise, or not for this processor
        return False


def _onednn_agrees(dims: int, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, *(5, 6, 7)[:dims], generator=generator)
    weight = torch.randn(16, 16, *[3] * dims, generator=generator) / 4**dims
    conv = Conv(weight, weight.flatten(1).mean(1), [1] * dims, [1] * dims, [1] * dims, 1, activation="relu")
    graph = fx.Graph()
    node = graph.call_function(convolution, (graph.placeholder("x"),))
    node.meta["conv"], node.args[0].meta["value"] = conv, x  # type: ignore[union-attr]
    again = graph.call_function(convolution, (node, node))
    again.meta["conv"] = Conv(weight, None, [1] * dims, [1] * dims, [1] * dims, 1)
    node.meta["value"] = x
    graph.output(again)
    tensors: dict[str, Tensor] = {}
    lower(graph, tensors, torch.device("cpu"), dtype, onednn=True)
    found = fx.GraphModule(tensors, graph)(x.to(dtype)).float()
    function: Any = F.conv2d if dims == 2 else F.conv3d
    middle = torch.relu(function(x, weight, conv.bias, 1, 1))
    return bool(
        (found - (function(middle, weight, None, 1, 1) + middle)).abs().max()
        < (1e-4 if dtype == torch.float32 else 0.1)
    )
