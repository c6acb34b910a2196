"""EfficientNet and EfficientNetV2 in 2D and 3D.

Sources: Tan and Le, ICML 2019 (arXiv:1905.11946) and ICML 2021 (arXiv:2104.00298, V2). Layer order, paddings and
constants follow medicai 0.0.4's `EfficientNetBackbone` and `EfficientNetBackboneV2`, so that their weights give their
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from numbers import Real
from typing import Any

from torch import Tensor, nn

from DeepLabSegLib.checks import check_choice, check_count, check_rate
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.activations import DECODER_ACTIVATIONS, Activation, activation_name
from DeepLabSegLib.models.encoder import Encoder, check_depth, make_spec
from DeepLabSegLib.models.layers import LAYERS, DropPath, InputNorm, NormFactory, SamePad, SqueezeExcite, batch_norm

__all__ = [
    "BLOCKS_ARGS",
    "EFFICIENTNETS",
    "Blocks",
    "EfficientNetBackbone",
    "EfficientNetBackboneV2",
    "EfficientNetSpec",
]

STEM_FILTERS = 32  # of version 1; version 2 takes them from its first row
TOP_FILTERS = 1280


@dataclass(frozen=True)
class Blocks:
    """A run of equal blocks before scaling; only the first has `strides` and changes the width.

    A fused block has one convolution in place of the expansion and the depthwise convolution.
    """

    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    filters_in: int
    filters_out: int
    se_ratio: float = 0.25
    fused: bool = False
    id_skip: bool = True

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Blocks:
        """From one of the reference's dictionaries, in version 1's or version 2's key names."""
        names = {"num_repeat": "repeats", "input_filters": "filters_in", "output_filters": "filters_out"}
        fields = {names.get(key, key): value for key, value in args.items()}
        if "conv_type" in fields:
            fields["fused"] = bool(fields.pop("conv_type"))
        unknown = fields.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise InvalidInput(
                f"blocks_args has {', '.join(map(repr, sorted(unknown)))}; known are "
                f"{', '.join(map(repr, [*cls.__dataclass_fields__, *names, 'conv_type']))}"
            )
        return make_spec(cls, fields)


_V2_SMALL = (
    Blocks(1, 3, 1, 1, 32, 16, 0, fused=True),
    Blocks(2, 3, 2, 4, 16, 32, 0, fused=True),
    Blocks(2, 3, 2, 4, 32, 48, 0, fused=True),
    Blocks(3, 3, 2, 4, 48, 96),
    Blocks(5, 3, 1, 6, 96, 112),
    Blocks(8, 3, 2, 6, 112, 192),
)

BLOCKS_ARGS: dict[str, tuple[Blocks, ...]] = {
    "default": (
        Blocks(1, 3, 1, 1, 32, 16),
        Blocks(2, 3, 2, 6, 16, 24),
        Blocks(2, 5, 2, 6, 24, 40),
        Blocks(3, 3, 2, 6, 40, 80),
        Blocks(3, 5, 1, 6, 80, 112),
        Blocks(4, 5, 2, 6, 112, 192),
        Blocks(1, 3, 1, 6, 192, 320),
    ),
    **{f"efficientnetv2-b{n}": _V2_SMALL for n in range(4)},
    "efficientnetv2-s": (
        Blocks(2, 3, 1, 1, 24, 24, 0, fused=True),
        Blocks(4, 3, 2, 4, 24, 48, 0, fused=True),
        Blocks(4, 3, 2, 4, 48, 64, 0, fused=True),
        Blocks(6, 3, 2, 4, 64, 128),
        Blocks(9, 3, 1, 6, 128, 160),
        Blocks(15, 3, 2, 6, 160, 256),
    ),
    "efficientnetv2-m": (
        Blocks(3, 3, 1, 1, 24, 24, 0, fused=True),
        Blocks(5, 3, 2, 4, 24, 48, 0, fused=True),
        Blocks(5, 3, 2, 4, 48, 80, 0, fused=True),
        Blocks(7, 3, 2, 4, 80, 160),
        Blocks(14, 3, 1, 6, 160, 176),
        Blocks(18, 3, 2, 6, 176, 304),
        Blocks(5, 3, 1, 6, 304, 512),
    ),
    "efficientnetv2-l": (
        Blocks(4, 3, 1, 1, 32, 32, 0, fused=True),
        Blocks(7, 3, 2, 4, 32, 64, 0, fused=True),
        Blocks(7, 3, 2, 4, 64, 96, 0, fused=True),
        Blocks(10, 3, 2, 4, 96, 192),
        Blocks(19, 3, 1, 6, 192, 224),
        Blocks(25, 3, 2, 6, 224, 384),
        Blocks(7, 3, 1, 6, 384, 640),
    ),
}
"""The reference's names for `blocks_args`."""


@dataclass(frozen=True)
class EfficientNetSpec:
    """An EfficientNet variant; the fields are the reference's arguments of its backbones, and `version`.

    `blocks_args` is a name from `BLOCKS_ARGS`, or rows: `Blocks` or the reference's dictionaries. `min_depth` and
    `bn_momentum` (Keras's meaning: the share that stays) belong to version 2.
    """

    width_coefficient: float
    depth_coefficient: float
    drop_connect_rate: float = 0.2
    depth_divisor: int = 8
    activation: str = "swish"
    blocks_args: str | Sequence[Blocks | Mapping[str, Any]] = "default"
    include_rescaling: bool = False
    min_depth: int = 8
    bn_momentum: float = 0.9
    version: int = 1

    def __post_init__(self) -> None:
        for field in ("width_coefficient", "depth_coefficient", "depth_divisor"):
            value = getattr(self, field)
            if not isinstance(value, Real) or not 0 < float(value) < inf:
                raise InvalidInput(f"{field} is {value!r}; it must be a positive number")
        for field in ("drop_connect_rate", "bn_momentum"):
            check_rate(field, getattr(self, field))
        if self.version not in (1, 2):
            raise InvalidInput(f"version is {self.version!r}; it must be 1 or 2")
        object.__setattr__(self, "activation", activation_name("activation", self.activation, DECODER_ACTIVATIONS))
        given: Any = self.blocks_args
        if isinstance(given, str):
            check_choice("blocks_args", given, BLOCKS_ARGS)
            given = BLOCKS_ARGS[given]
        if not isinstance(given, Sequence) or not given or not all(isinstance(row, Blocks | Mapping) for row in given):
            raise InvalidInput(f"blocks_args is {given!r}; give one or more rows in a list, Blocks or dictionaries")
        rows = tuple(row if isinstance(row, Blocks) else Blocks.from_args(row) for row in given)
        for row in rows:
            _check_row(row)
        object.__setattr__(self, "blocks_args", rows)

    @property
    def unscaled_rows(self) -> tuple[Blocks, ...]:
        """`blocks_args` as rows."""
        return self.blocks_args  # type: ignore[return-value]  # made so at the start

    @property
    def rows(self) -> tuple[Blocks, ...]:
        """`blocks_args`, scaled in width and depth."""
        return tuple(
            replace(
                row,
                repeats=ceil(self.depth_coefficient * row.repeats),
                filters_in=self.scaled(row.filters_in),
                filters_out=self.scaled(row.filters_out),
            )
            for row in self.unscaled_rows
        )

    def scaled(self, filters: int) -> int:
        """`filters` times `width_coefficient`, a multiple of `depth_divisor`."""
        width = filters * self.width_coefficient
        divisor = self.depth_divisor
        rounded = int(width + divisor / 2) // divisor * divisor
        if self.version == 2:
            return int(max(self.min_depth or divisor, rounded))
        rounded = max(divisor, rounded)
        return int(rounded + divisor if rounded < 0.9 * width else rounded)  # never more than a tenth narrower


def _check_row(row: Blocks) -> None:
    """Raise `InvalidInput` where a field of `row` is out of its range."""
    for field in ("repeats", "kernel_size", "strides", "expand_ratio", "filters_in", "filters_out"):
        check_count(f"{field} in blocks_args", getattr(row, field))
    if row.kernel_size % 2 == 0:
        raise InvalidInput(f"blocks_args has a kernel_size of {row.kernel_size}; give an odd kernel_size")
    if not isinstance(row.se_ratio, Real):
        raise InvalidInput(f"se_ratio in blocks_args is {row.se_ratio!r}; give a number, 0 for no gate")


def _v2(blocks_args: str, width: float = 1.0, depth: float = 1.0) -> EfficientNetSpec:
    return EfficientNetSpec(width, depth, blocks_args=blocks_args, version=2)


EFFICIENTNETS = {
    "efficientnet_b0": EfficientNetSpec(1.0, 1.0, 0.2),
    "efficientnet_b1": EfficientNetSpec(1.0, 1.1, 0.2),
    "efficientnet_b2": EfficientNetSpec(1.1, 1.2, 0.3),
    "efficientnet_b3": EfficientNetSpec(1.2, 1.4, 0.3),
    "efficientnet_b4": EfficientNetSpec(1.4, 1.8, 0.4),
    "efficientnet_b5": EfficientNetSpec(1.6, 2.2, 0.4),
    "efficientnet_b6": EfficientNetSpec(1.8, 2.6, 0.5),
    "efficientnet_b7": EfficientNetSpec(2.0, 3.1, 0.5),
    "efficientnet_b8": EfficientNetSpec(2.2, 3.6, 0.5),
    "efficientnet_l2": EfficientNetSpec(4.3, 5.3, 0.5),
    "efficientnet_v2_b0": _v2("efficientnetv2-b0"),
    "efficientnet_v2_b1": _v2("efficientnetv2-b1", 1.0, 1.1),
    "efficientnet_v2_b2": _v2("efficientnetv2-b2", 1.1, 1.2),
    "efficientnet_v2_b3": _v2("efficientnetv2-b3", 1.2, 1.4),
    "efficientnet_v2_s": _v2("efficientnetv2-s"),
    "efficientnet_v2_m": _v2("efficientnetv2-m"),
    "efficientnet_v2_l": _v2("efficientnetv2-l"),
}


class EfficientNetBackbone(Encoder):
    """An EfficientNet that returns its pyramid: the last map before each strided run of blocks, and the top.

    Parameters
    ----------
    input_shape : `(H, W, C)` or `(D, H, W, C)`; sizes may be None.
    encoder_depth : levels to build, 5 for all; later blocks and the top are left out.
    **spec : fields of `EfficientNetSpec`, named as in the reference. `width_coefficient` and
        `depth_coefficient`, 1.0 in the smallest, must be given.

    Raises
    ------
    InvalidInput : an argument that is unknown, missing or out of its range.

    Examples
    --------
    >>> EfficientNetBackbone(input_shape=(64, 64, 1), width_coefficient=1.0, depth_coefficient=1.0).channels
    (16, 24, 40, 112, 1280)
    """

    def __init__(self, input_shape: Sequence[int | None], *, encoder_depth: int = 5, **spec: object) -> None:
        super().__init__(input_shape)
        check_depth(encoder_depth)
        self.spec = s = make_spec(EfficientNetSpec, spec)
        outer_norm, inner_norm = _norms(s)
        layer = partial(_layer, self.dims, activation=s.activation)

        self.rescale: nn.Module | None = None
        if s.include_rescaling:
            self.rescale = InputNorm([0.0] * self.in_channels, [1.0] * self.in_channels, learned=True)
        rows = s.rows
        width = s.scaled(STEM_FILTERS) if s.version == 1 else rows[0].filters_in
        self.stem = layer(self.in_channels, width, 3, 2, norm=outer_norm)

        # Version 2 counts the blocks before the depth is scaled, as the reference does.
        total = sum(row.repeats for row in (rows if s.version == 1 else s.unscaled_rows))
        channels, strides = [], [2]
        self.stages = nn.ModuleList()
        done = 0
        for row in rows:
            if row.filters_in != width:
                raise InvalidInput(
                    f"blocks_args has a row whose scaled filters_in is {row.filters_in}, and the layer before it gives "
                    f"{width}; they must be equal"
                )
            if row.strides != 1:
                channels.append(width)
                if len(channels) == encoder_depth:
                    break
                strides.append(strides[-1] * row.strides)
            stage = nn.Sequential()
            for n in range(row.repeats):
                step, filters_in = (row.strides, row.filters_in) if n == 0 else (1, row.filters_out)
                block = replace(row, strides=step, filters_in=filters_in)
                stage.append(_Block(self.dims, block, s.activation, inner_norm, s.drop_connect_rate * done / total))
                done += 1
            self.stages.append(stage)
            width = row.filters_out
        else:
            top = s.scaled(TOP_FILTERS)
            self.top = layer(width, top, 1, norm=outer_norm)
            channels.append(top)
        self.channels = tuple(channels)
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(N, C, *S) -> [P1, P2, ...]`, Pn of shape `(N, channels[n-1], *ceil(S / strides[n-1]))`."""
        if self.rescale is not None:
            x = self.rescale(x / 255)
        x = self.stem(x)
        pyramid = []
        for row, stage in zip(self.spec.rows, self.stages, strict=False):
            if row.strides != 1:
                pyramid.append(x)
            x = stage(x)
        pyramid.append(self.top(x) if hasattr(self, "top") else x)
        return pyramid


class EfficientNetBackboneV2(EfficientNetBackbone):
    """`EfficientNetBackbone` with `version=2`, under the reference's name."""

    def __init__(self, input_shape: Sequence[int | None], *, encoder_depth: int = 5, **spec: object) -> None:
        spec = {"blocks_args": "efficientnetv2-s", **spec, "version": 2}
        super().__init__(input_shape, encoder_depth=encoder_depth, **spec)


class _Block(nn.Module):
    """Expansion, depthwise convolution (or both in one), gate, projection. `(N, in, *S) -> (N, out, *ceil(S / s))`."""

    def __init__(self, dims: int, row: Blocks, activation: str, norm: NormFactory, drop_rate: float) -> None:
        super().__init__()
        layer = partial(_layer, dims, norm=norm)
        width = row.filters_in * row.expand_ratio
        wide, size, step = row.expand_ratio != 1, row.kernel_size, row.strides

        self.body = nn.Sequential()
        if row.fused and wide:
            self.body.add_module("expand", layer(row.filters_in, width, size, step, activation=activation))
        elif wide:
            self.body.add_module("expand", layer(row.filters_in, width, 1, activation=activation))
        if not row.fused:
            depthwise = layer(width, width, size, step, groups=width, activation=activation)
            self.body.add_module("depthwise", depthwise)
        if 0 < row.se_ratio <= 1:
            reduced = max(1, int(row.filters_in * row.se_ratio))
            self.body.add_module("se", SqueezeExcite(dims, width, reduced, activation))
        if row.fused and not wide:  # the projection is the block's only convolution
            project = layer(width, row.filters_out, size, step, activation=activation)
        else:
            project = layer(width, row.filters_out, 1)
        self.body.add_module("project", project)
        self.drop = DropPath(drop_rate)
        self.adds = row.id_skip and step == 1 and row.filters_in == row.filters_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.body(x)) if self.adds else self.body(x)


def _layer(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    norm: NormFactory,
    activation: str | None = None,
    groups: int = 1,
) -> nn.Sequential:
    """ "Same" convolution without bias, normalisation, activation. `(N, in, *S) -> (N, out, *ceil(S / stride))`."""
    layer = nn.Sequential()
    if stride > 1:
        layer.add_module("pad", SamePad(kernel_size, stride))
    padding = 0 if stride > 1 else kernel_size // 2
    conv = LAYERS[dims].conv(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    layer.add_module("conv", conv)
    layer.add_module("norm", norm(dims, out_channels))
    if activation is not None:
        layer.add_module("activation", Activation(activation))
    return layer


def _norms(spec: EfficientNetSpec) -> tuple[NormFactory, NormFactory]:
    """The normalisations of stem and top, and of the blocks: version 2 gives the latter its own momentum."""
    outer = partial(batch_norm, eps=1e-3, momentum=0.01)
    return outer, outer if spec.version == 1 else partial(batch_norm, eps=1e-3, momentum=1 - spec.bn_momentum)
