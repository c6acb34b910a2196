"""Activations by their Keras names, with Keras's constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from DeepLabSegLib.checks import known_name
from DeepLabSegLib.errors import InvalidInput

__all__ = ["ACTIVATIONS", "DECODER_ACTIVATIONS", "Activation", "activation_name"]


def _sparsemax(x: Tensor) -> Tensor:
    """Channels less a threshold, cut at zero, as Keras computes it. Same shape out.

    Keras adds up the sums where the paper (Martins and Astudillo, ICML 2016) takes the last, so that the result is no
    distribution; networks trained there know no other.
    """
    ordered = x.sort(dim=1, descending=True).values
    sums = ordered.cumsum(dim=1)
    ranks = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    support = ordered > (sums - 1) / ranks
    total = sums.masked_fill(~support, 0).sum(dim=1, keepdim=True)
    return (x - (total - 1) / support.sum(dim=1, keepdim=True)).clamp_min(0)


# Functions with a name rather than lambdas, so that a network can be pickled.


def _linear(x: Tensor) -> Tensor:
    return x


def _sparse_plus(x: Tensor) -> Tensor:
    return torch.where(x < 1, (x + 1).clamp_min(0).square() / 4, x)


def _sparse_sigmoid(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)


def _squareplus(x: Tensor) -> Tensor:
    return (x + (x.square() + 4).sqrt()) / 2


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "exponential": torch.exp,
    "gelu": F.gelu,
    "glu": partial(F.glu, dim=1),
    "hard_shrink": F.hardshrink,
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "linear": _linear,
    "log_sigmoid": F.logsigmoid,
    "log_softmax": partial(F.log_softmax, dim=1),
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "soft_shrink": F.softshrink,
    "softmax": partial(F.softmax, dim=1),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": _sparse_sigmoid,
    "sparsemax": _sparsemax,
    "squareplus": _squareplus,
    "swish": F.silu,
    "tanh": torch.tanh,
    "tanh_shrink": F.tanhshrink,
}
"""Activations by their Keras names and with Keras's constants; those over classes act along the channel axis."""

# Decoder blocks build Keras's LeakyReLU layer, whose slope is not its function's. "glu" halves the channels, which
# no block here can take.
DECODER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: function for name, function in ACTIVATIONS.items() if name != "glu"},
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.3),
}


def activation_name(argument: str, value: str | None, table: Mapping[str, object]) -> str:
    """The name under which `value` stands in `table`; `None` means linear, as in the reference."""
    if value is None:
        return "linear"
    if not isinstance(value, str):
        raise InvalidInput(f"{argument} is {value!r}; it must be a name or None")
    return known_name(argument, value, table)


class Activation(nn.Module):
    """An activation by name, kept as a module so that a printed network shows it."""

    def __init__(self, name: str, table: Mapping[str, Callable[[Tensor], Tensor]] = ACTIVATIONS) -> None:
        super().__init__()
        self.name = name
        self.function = table[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name
