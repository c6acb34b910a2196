"""From `Conv` to calls: oneDNN's fused, prepacked convolutions or cuDNN's fused ones where this torch has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from DeepLabSegLib.optimize.blocks import conv_on_pairs, conv_on_rows, on_pairs, on_rows, to_pairs, to_rows
from DeepLabSegLib.optimize.calls import Place, by_points, convolve
from DeepLabSegLib.optimize.capture import arguments, stand_in, value
from DeepLabSegLib.optimize.gpu import channels_last, for_gpu
from DeepLabSegLib.optimize.rewrite import Conv, convolution, overwritable
from DeepLabSegLib.optimize.winograd import at_points, results_at_once, tiles

__all__ = ["Library", "lower", "packed", "works"]

Library = Literal["onednn", "cudnn", "torch"]
"""Whose convolutions are called; with "torch" these are torch's public ones."""

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


def lower(graph: fx.Graph, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype, by: Library) -> None:
    """Turn `graph` into calls that run, in place; new tensors join `tensors`, on `device` and of `dtype`."""
    _overwrite(graph)
    for number, node in enumerate(graph.find_nodes(op="call_function", target=convolution)):
        conv: Conv = node.meta["conv"]
        if on_pairs(conv, device, dtype):
            _put_on_pairs(graph, node, conv)
        elif on_rows(conv, device, dtype):
            _put_on_rows(graph, node, conv)
        conv.weight, conv.scale = conv.scaled_weight().to(device, dtype), None
        if by == "onednn":
            weights, call = _for_onednn(conv, list(value(node.args[0]).shape))
        elif device.type == "cuda":
            weights, call = for_gpu(conv, fused=by == "cudnn")
        else:
            weights, call = [conv.weight], convolve
        bias = None if conv.bias is None else conv.bias.to(device, dtype)
        with graph.inserting_before(node):
            given = [_attribute(graph, tensors, f"conv{number}_weight{n}", part) for n, part in enumerate(weights)]
            shift = None if bias is None else _attribute(graph, tensors, f"conv{number}_bias", bias)
        if call is None:
            _call_onednn(node, conv, given, shift)
        else:
            x, *others = node.args
            place = Place(conv.stride, conv.padding, conv.dilation, conv.groups)
            node.target, node.args = call, (x, given, shift, place, conv.activation, *others)
        del node.meta["conv"]  # and with it the original weights
    if by == "onednn" or (device.type == "cuda" and dtype != torch.float32):
        _line_expanded(graph)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # the layout in memory is another than the one that was captured
    if device.type == "cpu" and dtype != torch.float32:
        for node in graph.find_nodes(op="call_function", target=aten.avg_pool3d.default):
            node.target = _avg_pool3d
    if device.type == "cpu" and dtype == torch.bfloat16:  # fp16's sums would overflow
        for node in graph.find_nodes(op="call_function", target=aten.mean.dim):
            if node.args[1] and not node.kwargs:  # over axes that are named, and in bf16
                node.target = _mean
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if not node.users:
            graph.erase_node(node)
        elif not tensors[name].is_mkldnn:
            # Batch normalisation takes its numbers in full precision with maps in any.
            exact = all(user.target is aten.native_batch_norm.default for user in node.users)
            tensor = tensors[name].detach().to(device)  # places and masks keep their type
            tensors[name] = tensor.to(torch.float32 if exact else dtype) if tensor.is_floating_point() else tensor


def _attribute(graph: fx.Graph, tensors: dict[str, Tensor], name: str, tensor: Tensor) -> fx.Node:
    tensors[name] = tensor
    return graph.create_node("get_attr", name)


def _overwrite(graph: fx.Graph) -> None:
    """Let results of voxel-by-voxel operations take the place of an argument that nobody reads any more."""
    # The last first: what was turned already shares memory with its argument.
    for node in reversed(graph.nodes):
        if node.target in IN_PLACE:
            first = node.args[0]
            if not isinstance(first, fx.Node) or not overwritable(first, node):
                continue
            x, result = value(first), value(node)
            if (x.shape, x.dtype) == (result.shape, result.dtype):
                node.target = IN_PLACE[node.target]


def _line_expanded(graph: fx.Graph) -> None:
    """Lay an expanded number's copies out as all other maps are: `cat` would turn what they are joined with."""
    for node in graph.find_nodes(op="call_function", target=aten.expand.default):
        if value(node).ndim in (4, 5):
            with graph.inserting_after(node):
                lined = graph.call_function(aten.clone.default, (node,))
            lined.kwargs = {"memory_format": channels_last(value(node).ndim)}
            lined.meta["value"] = value(node)
            node.replace_all_uses_with(lined, lambda user, lined=lined: user is not lined)


def _put_on_pairs(graph: fx.Graph, node: fx.Node, conv: Conv) -> None:
    """See `blocks`."""
    _take(graph, node, to_pairs, conv.kernel[-1], conv.padding[-1])
    conv_on_pairs(conv)


def _put_on_rows(graph: fx.Graph, node: fx.Node, conv: Conv) -> None:
    """See `blocks`; the result is an image of which a volume is made again."""
    result = value(node)
    _take(graph, node, to_rows, conv.kernel, conv.padding)
    conv_on_rows(conv, result.shape[-1])
    node.meta["value"] = stand_in(result.flatten(3).shape, result.dtype)
    with graph.inserting_after(node):
        volume = graph.call_function(aten.reshape.default, (node, list(result.shape)))
    volume.meta["value"] = result
    node.replace_all_uses_with(volume, lambda user: user is not volume)


def _take(graph: fx.Graph, node: fx.Node, function: Callable[..., Tensor], *how: Any) -> None:
    """Let `node` take what `function` makes of its first argument."""
    x, *others = arguments(node)
    with graph.inserting_before(node):
        made = graph.call_function(function, (x, *how))
    number, sizes = len(value(x)), function(value(x)[:1], *how).shape[1:]  # one tells of all
    made.meta["value"] = stand_in((number, *sizes), value(x).dtype)
    node.args = (made, *others)


def _for_onednn(conv: Conv, shape: list[int]) -> tuple[list[Tensor], Callable[..., Tensor] | None]:
    """Packed weights for inputs of that shape, and the call; None is for oneDNN's own."""
    at_once = results_at_once(conv, shape[2:]) if conv.weight.dtype == torch.float32 else 1
    if at_once == 1:
        return [packed(conv, shape)], None
    shape[2] = tiles(shape[2], conv.padding[0], at_once)
    return [packed(part, shape) for part in at_points(conv, at_once)], by_points


def packed(conv: Conv, shape: Sequence[int]) -> Tensor:
    """The weights as oneDNN wants them for inputs of that shape."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        conv.weight.contiguous(), conv.padding, conv.stride, conv.dilation, conv.groups, list(shape)
    )


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


def _avg_pool3d(x: Tensor, *args: Any) -> Tensor:
    """Average pooling for half precision, which torch lacks on the CPU."""
    return aten.avg_pool3d.default(x.float(), *args).to(x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool = False) -> Tensor:
    """The mean of bf16 from a sum, which torch rounds once at its end; its own mean copies all of `x` to float32."""
    return x.sum(axes, keep).div_(math.prod(x.shape[axis] for axis in axes))


@cache
def works(by: Library, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a library's private operators are in this torch and compute what its public ones do, in 2D and 3D."""
    try:
        return all(_agrees(by, device, dims, dtype) for dims in (2, 3))
    except (AttributeError, RuntimeError, TypeError):  # gone, renamed, called otherwise, or not for this processor
        return False


def _agrees(by: Library, device: torch.device, dims: int, dtype: torch.dtype) -> bool:
    """Whether convolutions that depend on each other come out right, with and without bias, sum and ReLU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, *(5, 6, 7)[:dims], generator=generator)
    weight = torch.randn(16, 16, *[3] * dims, generator=generator) / 4**dims
    place = ([1] * dims, [1] * dims, [1] * dims, 1)
    graph, wanted = fx.Graph(), x
    node = graph.placeholder("x")
    node.meta["value"] = x
    function: Any = F.conv2d if dims == 2 else F.conv3d
    shift = weight.flatten(1).mean(1)
    for bias, add, activation in ((shift, 0, "relu"), (None, 1, None), (shift, 1, "relu")):
        node = graph.call_function(convolution, (node,) * (1 + add))
        node.meta |= {"conv": Conv(weight, bias, *place, activation=activation), "value": x}
        sums = function(wanted, weight, bias, 1, 1) + add * wanted
        wanted = torch.relu(sums) if activation else sums
    graph.output(node)
    tensors: dict[str, Tensor] = {}
    lower(graph, tensors, device, dtype, by)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = fx.GraphModule(tensors, graph)(x.to(device, dtype)).float().cpu()
    return bool((found - wanted).abs().max() < (1e-4 if dtype == torch.float32 else 0.1))
