"""A network's operations for one size of input, as a graph that can be rewritten."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NotCapturable", "arguments", "capture", "stand_in", "value"]

aten = torch.ops.aten


class NotCapturable(Exception):
    """A module whose operations depend on its input's values, or that writes into its own tensors."""


class _Writes(NotCapturable):
    """An operation writes into a tensor."""


def value(node: Any) -> Tensor:
    """A tensor of the shape and type that `node` gives; its numbers mean nothing."""
    return node.meta["value"]


def arguments(node: fx.Node) -> list[Any]:
    """What `node` is called with."""
    return list(node.args)


@torch.inference_mode(False)  # in that mode functions would come before they are split up
@torch.no_grad()
def capture(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Graph:
    """The operations of `module(x)` for an `x` of that shape and type, hardly anything being computed.

    Tensors are named in the graph (`get_attr`) as in `module`'s `state_dict`; floating ones count as `dtype`. It stays
    as it is meanwhile, so that other threads may use it. Raises `NotCapturable`.
    """
    named = dict([*module.named_parameters(), *module.named_buffers()])
    tensors = {
        name: stand_in(tensor.shape, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in named.items()
    }
    x = stand_in(shape, dtype)
    try:  # its tensors are replaced in a copy: an interrupt might leave them so
        module = copy.deepcopy(module, {id(tensor): tensor for tensor in named.values()})
    except Exception as error:  # of any kind, as what a module of one's own raises
        raise NotCapturable(f"it can't be copied: {error}") from error

    def called(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return functional_call(module, tensors, (x,))

    try:
        return _recorded(called, x, tensors)
    except _Writes:  # such as an activation in place; made anew instead, which `autograd.Function` can't be
        return _recorded(functionalize(called), x, tensors)


def _recorded(called: Callable[..., Tensor], x: Tensor, tensors: dict[str, Tensor]) -> fx.Graph:
    recorder = _Recorder(x, tensors)
    try:
        with _Unread(), recorder:
            result = called(x, tensors)
    except RuntimeError as error:
        raise NotCapturable(str(error)) from error
    recorder.graph.output(recorder.node(result))
    recorder.graph.eliminate_dead_code()
    for node in recorder.graph.nodes:
        if node.op == "call_function" and not node.all_input_nodes:
            raise NotCapturable(f"{node.target} makes a tensor from nothing")
    return recorder.graph


def stand_in(shape: Any, dtype: torch.dtype) -> Tensor:
    """A tensor of one number that has any shape: memory for the others is never taken.

    Meta tensors would do, but torch imports its compiler for their shapes, which takes a second.
    """
    return torch.zeros((), dtype=dtype).expand(shape)


class _Unread(TorchFunctionMode):
    """Refuses what reads values without an operation: stand-ins have none."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise NotCapturable(f"{function.__name__} reads values")
        return function(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Writes down each operation that torch carries out, below its modules and functions."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # this, too, would import the compiler

    def __init__(self, x: Tensor, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.alive: list[Tensor] = []  # an id stays a tensor's own only while the tensor lives
        self.nodes: dict[int, fx.Node] = {}
        self._remember(self.graph.placeholder("x"), x)
        for name, tensor in tensors.items():
            self._remember(self.graph.create_node("get_attr", name), tensor)

    def _remember(self, node: fx.Node, result: Tensor) -> Tensor:
        node.meta["value"] = result
        self.alive.append(result)
        self.nodes[id(result)] = node
        return result

    def node(self, tensor: Tensor) -> fx.Node:
        """Where `tensor` came from."""
        if id(tensor) not in self.nodes:
            raise NotCapturable("it uses a tensor that is neither its parameter nor its buffer")
        return self.nodes[id(tensor)]

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op._schema.is_mutable:
            raise _Writes(f"{op} writes values")
        if _reads(op, args):
            raise NotCapturable(f"{op} reads values")
        if op is aten._weight_norm_interface.default:  # it writes results where a stand-in has no memory
            raise NotCapturable(f"there is no rule for {op}")

        def named(argument: Any) -> Any:
            return self.node(argument) if isinstance(argument, Tensor) else argument

        node = self.graph.call_function(op, map_aggregate(args, named), map_aggregate(kwargs or {}, named))
        result = _carry_out(op, args, kwargs or {})
        if isinstance(result, Tensor):
            return self._remember(node, stand_in(result.shape, result.dtype))
        if not isinstance(result, tuple | list):  # of shapes and types alone, such as `torch.promote_types`
            return result
        return tuple(
            self._remember(self.graph.call_function(operator.getitem, (node, n)), stand_in(part.shape, part.dtype))
            if isinstance(part, Tensor)
            else part
            for n, part in enumerate(result)
        )


def _reads(op: Any, args: Any) -> bool:
    """Whether it depends on values what `op` gives to Python: a number, or a result's shape."""
    if op is aten.index.Tensor:  # places are as many as they are, but of a mask those count that are true
        return any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1])
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(op.tags)


def _carry_out(op: Any, args: Any, kwargs: Any) -> Any:
    """A result of the shape and type that `op` gives; what costs time is not computed."""
    if op is aten.convolution.default:
        return _convolved(*args)
    if op in (aten.mm.default, aten.addmm.default):
        return stand_in((len(args[-2]), args[-1].shape[1]), args[-1].dtype)
    if op is aten.native_group_norm.default:  # it insists on maps that lie in memory as a whole
        x, *_, groups, _ = args
        return x, *(stand_in((len(x), groups), x.dtype) for _ in range(2))
    try:
        return op(*args, **kwargs)
    except NotImplementedError:  # half precision on the CPU

        def widened(argument: Any) -> Any:
            return argument.float() if isinstance(argument, Tensor) else argument

        result = op(*map_aggregate(args, widened), **kwargs)
        return map_aggregate(result, lambda part: part.to(args[0].dtype) if isinstance(part, Tensor) else part)


def _convolved(
    x: Tensor,
    weight: Tensor,
    _: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    *__: Any,
) -> Tensor:
    if transposed:
        raise NotCapturable("there is no rule for transposed convolutions")
    sizes = [
        (size + 2 * pad - apart * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, apart in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return stand_in((len(x), len(weight), *sizes), x.dtype)
