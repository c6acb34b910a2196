"""DenseNet in 2D and 3D.

Source: Huang et al., CVPR 2017 (arXiv:1608.06993). Layer order, paddings and constants follow medicai 0.0.4's
`DenseNetBackbone`, so that its weights give its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from numbers import Real

import torch
from torch import Tensor, nn

from DeepLabSegLib.checks import check_count, check_rate, counts
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.encoder import Encoder, check_depth, make_spec
from DeepLabSegLib.models.layers import KERAS_NORM, LAYERS, SamePad

__all__ = ["DENSENETS", "DenseNetBackbone", "DenseNetSpec"]

STEM_CHANNELS = 64


@dataclass(frozen=True)
class DenseNetSpec:
    """A DenseNet variant; the fields are the reference's arguments of `DenseNetBackbone`."""

    blocks: Sequence[int]
    growth_rate: int = 32
    bn_size: int = 4
    compression: float = 0.5
    dropout_rate: float = 0.0
    include_rescaling: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", counts("blocks", self.blocks))
        for field in ("growth_rate", "bn_size"):
            check_count(field, getattr(self, field))
        if not isinstance(self.compression, Real) or not 0 < self.compression <= 1:
            raise InvalidInput(f"compression is {self.compression!r}; it must be in (0, 1]")
        check_rate("dropout_rate", self.dropout_rate)


DENSENETS = {
    "densenet121": DenseNetSpec((6, 12, 24, 16)),
    "densenet169": DenseNetSpec((6, 12, 32, 32)),
    "densenet201": DenseNetSpec((6, 12, 48, 32)),
    "densenet264": DenseNetSpec((6, 12, 64, 48)),
}


class DenseNetBackbone(Encoder):
    """A DenseNet that returns its pyramid: P1 after the stem (stride 2), then one level per dense block.

    Parameters
    ----------
    input_shape : `(H, W, C)` or `(D, H, W, C)`; sizes may be None.
    encoder_depth : levels to build, 5 for all; later blocks are left out.
    **spec : fields of `DenseNetSpec`, named as in the reference. `blocks`, the layers of each, must be given.

    Raises
    ------
    InvalidInput : an argument that is unknown, missing or out of its range.

    Examples
    --------
    >>> DenseNetBackbone(input_shape=(64, 64, 1), blocks=(6, 12, 24, 16)).channels
    (64, 256, 512, 1024, 1024)
    """

    rounds_down_from = 3  # the transitions' poolings; the stem's layers pad

    def __init__(self, input_shape: Sequence[int | None], *, encoder_depth: int = 5, **spec: object) -> None:
        super().__init__(input_shape)
        check_depth(encoder_depth)
        self.spec = s = make_spec(DenseNetSpec, spec)
        layers = LAYERS[self.dims]

        self.stem = nn.Sequential()
        self.stem.add_module("pad", SamePad(7, 2))
        self.stem.add_module("conv", layers.conv(self.in_channels, STEM_CHANNELS, 7, 2, bias=False))
        self.stem.add_module("norm", KERAS_NORM(self.dims, STEM_CHANNELS))
        self.stem.add_module("relu", nn.ReLU())
        self.pool = nn.Sequential(SamePad(3, 2), layers.max_pool(3, 2))  # after a ReLU zeros never win

        channels = [STEM_CHANNELS]
        width = STEM_CHANNELS
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for n, count in enumerate(s.blocks[: encoder_depth - 1]):
            if n > 0:
                narrowed = int(width * s.compression)
                if not narrowed:
                    raise InvalidInput(
                        f"compression is {s.compression!r}, which leaves none of {width} channels; give at least "
                        f"{ceil(1000 / width) / 1000}"
                    )
                self.transitions.append(_transition(self.dims, width, narrowed))
                width = narrowed
            self.stages.append(
                nn.Sequential(*(_DenseLayer(self.dims, s, width + i * s.growth_rate) for i in range(count)))
            )
            width += count * s.growth_rate
            channels.append(width)
        if len(self.stages) == len(s.blocks):
            # The reference's own output only; DeepLabV3+ reads P5 before it. Kept so that weights map one to one.
            self.post_norm = KERAS_NORM(self.dims, width)
        self.channels = tuple(channels)
        self.strides = tuple(2 ** (n + 1) for n in range(len(channels)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(N, C, *S) -> [P1, P2, ...]`; P1 and P2 round sizes up, later levels down."""
        self.check_size(x)
        if self.spec.include_rescaling:
            x = x / 255
        pyramid = [self.stem(x)]
        x = self.pool(pyramid[0])
        for n, stage in enumerate(self.stages):
            x = stage(self.transitions[n - 1](x) if n > 0 else x)
            pyramid.append(x)
        return pyramid


class _DenseLayer(nn.Module):
    """`(N, in, *S) -> (N, in + growth_rate, *S)`: the input, and new channels computed from it."""

    def __init__(self, dims: int, spec: DenseNetSpec, in_channels: int) -> None:
        super().__init__()
        conv = LAYERS[dims].conv
        width = spec.bn_size * spec.growth_rate
        self.norm1 = KERAS_NORM(dims, in_channels)
        self.conv1 = conv(in_channels, width, 1, bias=False)
        self.norm2 = KERAS_NORM(dims, width)
        self.conv2 = conv(width, spec.growth_rate, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(spec.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.norm1(x)))
        new = self.conv2(self.relu(self.norm2(new)))
        return torch.cat([x, self.dropout(new)], 1)


def _transition(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """`(N, in, *S) -> (N, out, *floor(S / 2))`."""
    layers = LAYERS[dims]
    transition = nn.Sequential()
    transition.add_module("norm", KERAS_NORM(dims, in_channels))
    transition.add_module("relu", nn.ReLU())
    transition.add_module("conv", layers.conv(in_channels, out_channels, 1, bias=False))
    transition.add_module("pool", layers.avg_pool(2))
    return transition
