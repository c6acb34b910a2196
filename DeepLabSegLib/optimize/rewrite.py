"""The same result from fewer and cheaper operations: rules over a captured graph.

Each rule is exact but for rounding. Convolutions are gathered into `Conv` first, and stay so until `lower` turns them
into calls of a library.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from DeepLabSegLib.models.layers import LAYERS
from DeepLabSegLib.optimize.capture import arguments, value

__all__ = ["Conv", "conv_for_one", "convolution", "overwritable", "rewrite"]

aten = torch.ops.aten

ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.silu.default: "swish",
    aten.gelu.default: "gelu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.hardswish.default: "hardswish",
}
"""Activations that a convolution may apply to its own result, by oneDNN's names."""

MOST_TAPS = 5
"""Per axis, of a kernel that gets one more instead of a padded input: with 8 instead of 7 densenet takes 5% longer."""


def convolution(x: Tensor, other: Tensor | None = None) -> Tensor:
    """What a convolution's node calls until it is lowered; `node.meta["conv"]` is its `Conv`."""
    raise NotImplementedError


@dataclass
class Conv:
    """`activation(scale * convolution(x, weight) + bias + other)`, `scale` and `bias` per output channel.

    `scale` waits until the weights are packed, so that no second copy of them is made on the way.
    """

    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    scale: Tensor | None = None
    activation: str | None = None

    @property
    def kernel(self) -> list[int]:
        """Taps along each spatial axis."""
        return list(self.weight.shape[2:])

    @property
    def pointwise(self) -> bool:
        """Whether each result is made of one voxel, with all of its channels."""
        return self.groups == 1 == max(self.kernel) == max(self.stride) and not any(self.padding)

    def scaled_weight(self) -> Tensor:
        """The weights with `scale` multiplied in."""
        if self.scale is None:
            return self.weight
        return self.weight * self.scale.view(-1, *[1] * (self.weight.ndim - 1))

    def affine(self, scale: Tensor, shift: Tensor) -> None:
        """Let `result * scale + shift` be computed instead, both per output channel."""
        self.bias = shift if self.bias is None else self.bias * scale + shift
        self.scale = scale if self.scale is None else self.scale * scale


def rewrite(graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
    """Apply every rule to `graph`, in place; `tensors` are the values of its `get_attr` nodes, which new ones join."""
    _gather_convolutions(graph, tensors)
    _move_padding(graph)
    _drop_idle_taps(graph)
    _merge_channelwise(graph)
    _fold_batch_norm(graph, tensors)
    _fuse_sums(graph)
    _fuse_activations(graph)
    graph.eliminate_dead_code()
    graph.lint()


def overwritable(node: object, by: fx.Node) -> bool:
    """Whether nobody reads `node`'s memory once `by` has, so that `by` may write into it."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or _is_view(node):
        return False
    return all(user <= by and not _is_view(user) for user in node.users)


def _is_view(node: fx.Node) -> bool:
    """Whether `node`'s result may share memory with an argument."""
    target = node.target
    if target is operator.getitem:
        return _is_view(node.args[0])  # type: ignore[arg-type]
    return isinstance(target, torch._ops.OpOverload) and any(part.alias_info for part in target._schema.returns)


# --- rules -----------------------------------------------------------------------------------------------------------


def _gather_convolutions(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments(node)
        dims = value(weight).ndim - 2
        if transposed or dims not in LAYERS or weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
            continue
        steps, pads, apart = ([*given] * (dims // len(given)) for given in (stride, padding, dilation))
        shift = None if bias is None else tensors[str(bias.target)]
        node.target = convolution
        node.args = (x,)
        node.meta["conv"] = Conv(tensors[str(weight.target)], shift, steps, pads, apart, groups)


def _convolutions(graph: fx.Graph) -> list[tuple[fx.Node, Conv]]:
    return [(node, node.meta["conv"]) for node in graph.find_nodes(op="call_function", target=convolution)]


def conv_for_one(node: object, user: fx.Node) -> Conv | None:
    """The `Conv` at `node` where `user` alone reads its result and nothing was fused to it yet."""
    if not isinstance(node, fx.Node) or node.target is not convolution or list(node.users) != [user]:
        return None
    conv: Conv = node.meta["conv"]
    return conv if conv.activation is None and len(node.args) == 1 else None


def _replace(node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _move_padding(graph: fx.Graph) -> None:
    """Zeros around the input are the convolution's own business.

    It pads both sides alike; where one more is wanted at the end, the kernel gets a tap of zero at its start.
    """
    for node, conv in _convolutions(graph):
        pad = node.args[0]
        if not isinstance(pad, fx.Node) or pad.target is not aten.constant_pad_nd.default:
            continue
        x, sides, filling = (*arguments(pad), 0)[:3]
        pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
        more = [high - low for low, high in pairs]
        if filling != 0 or any(conv.padding) or len(pairs) != len(conv.kernel) or set(conv.dilation) != {1}:
            continue
        if any(more) and max(conv.kernel) > MOST_TAPS:
            continue
        if min(low for low, _ in pairs) >= 0 and min(more) >= 0:
            if any(more):
                conv.weight = F.pad(conv.weight, [part for extra in reversed(more) for part in (extra, 0)])
            conv.padding = [high for _, high in pairs]
            node.args = (x,)


def _drop_idle_taps(graph: fx.Graph) -> None:
    """Leave out, per axis, the outer taps that meet nothing but padding: on small maps, of most dilated kernels."""
    for node, conv in _convolutions(graph):
        sizes, outputs = value(node.args[0]).shape[2:], value(node).shape[2:]
        for axis, (size, count) in enumerate(zip(sizes, outputs, strict=True)):
            step, padding, dilation = conv.stride[axis], conv.padding[axis], conv.dilation[axis]
            firsts = [tap * dilation - padding for tap in range(conv.kernel[axis])]
            idle = [all(not 0 <= first + n * step < size for n in range(count)) for first in firsts]
            ends = idle.index(False), idle[::-1].index(False)
            taken = min(*ends, padding // dilation)
            if taken:
                conv.weight = conv.weight.narrow(2 + axis, taken, len(idle) - 2 * taken)
                conv.padding[axis] -= taken * dilation


def _merge_channelwise(graph: fx.Graph) -> None:
    """A depthwise convolution of one tap only weighs its channels: so may the convolution after it."""
    for node, conv in _convolutions(graph):
        first = conv_for_one(node.args[0], node)
        if first is None or conv.groups != 1 or first.bias is not None or first.groups != len(first.weight):
            continue
        if set(first.kernel) == {1} == set(first.stride) and not any(first.padding) and first.weight.shape[1] == 1:
            conv.weight = conv.weight * first.weight.flatten().view(1, -1, *[1] * len(conv.kernel))
            depthwise = arguments(node)[0]
            _replace(depthwise, depthwise.args[0])


def _fold_batch_norm(graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
    """Batch normalisation at inference is a scale and a shift per channel: the convolution before it takes them.

    Behind squeeze and excitation the gate takes the scale.
    """
    for node in graph.find_nodes(op="call_function", target=aten.native_batch_norm.default):
        x, weight, bias, mean, variance, training, _, eps = arguments(node)
        conv = conv_for_one(x, node)
        if training or (conv is None and not _gated(x, node)):
            continue
        numbers = [None if part is None else tensors[str(part.target)] for part in (weight, bias, mean, variance)]
        scale = torch.rsqrt(numbers[3] + eps) * (1 if numbers[0] is None else numbers[0])
        shift = (0 if numbers[1] is None else numbers[1]) - numbers[2] * scale  # type: ignore[operator]
        result = x
        if conv is not None:
            conv.affine(scale, shift)
        else:
            full, gate = x.args
            x.args = (full, _with_channels(aten.mul.Tensor, gate, scale, tensors, before=x))
            result = _with_channels(aten.add.Tensor, x, shift, tensors, before=node)
        for item in list(node.users):  # the normalised map; statistics are read in training only
            _replace(item, result)
        graph.erase_node(node)


def _gated(x: fx.Node, user: fx.Node) -> bool:
    """Whether `x`, read by `user` alone, is a map times one number per channel."""
    if x.target is not aten.mul.Tensor or list(x.users) != [user] or not all(isinstance(n, fx.Node) for n in x.args):
        return False
    full, gate = (value(part) for part in x.args)
    return full.shape == value(x).shape and gate.shape == (*full.shape[:2], *[1] * (full.ndim - 2))


def _with_channels(
    op: torch._ops.OpOverload, x: fx.Node, numbers: Tensor, tensors: dict[str, Tensor], before: fx.Node
) -> fx.Node:
    """A new node `op(x, numbers)`, `numbers` being one per channel."""
    name = f"channels{len(tensors)}"
    tensors[name] = numbers.view(-1, *[1] * (value(x).ndim - 2))
    with x.graph.inserting_before(before):
        node = x.graph.call_function(op, (x, x.graph.create_node("get_attr", name)))
    node.meta["value"] = value(x)
    return node


def _fuse_sums(graph: fx.Graph) -> None:
    """A residual sum is added while the convolution writes its result."""
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        pair = arguments(node)
        if node.kwargs or not all(isinstance(part, fx.Node) for part in pair):
            continue
        # The later convolution takes the sum: the other argument is there by then.
        for own, other in sorted((pair, pair[::-1]), key=operator.itemgetter(0), reverse=True):
            conv = conv_for_one(own, node)
            if conv is None or own is other or value(own).shape != value(other).shape or other > own:
                continue
            own.args = (own.args[0], other)
            _replace(node, own)
            break


def _fuse_activations(graph: fx.Graph) -> None:
    for op, name in ACTIVATIONS.items():
        for node in graph.find_nodes(op="call_function", target=op):
            x = node.args[0]
            taken = isinstance(x, fx.Node) and x.target is convolution and list(x.users) == [node]
            # Two arguments may be followed by ReLU only; gelu's other form has a name of its own.
            if taken and x.meta["conv"].activation is None and not node.kwargs and (len(x.args) == 1 or name == "relu"):
                x.meta["conv"].activation = name
                _replace(node, x)
