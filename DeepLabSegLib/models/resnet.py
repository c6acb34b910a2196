"""ResNet, ResNetV2, ResNet-vd, ResNeXt and their squeeze-and-excitation forms, in 2D and 3D.

Sources: He et al., CVPR 2016 (ResNet) and ECCV 2016 (pre-activation); He et al., CVPR 2019 (vd); Xie et al.,
CVPR 2017 (ResNeXt); Hu et al., CVPR 2018 (SE). Layer order, paddings and constants follow medicai 0.0.4's
`ResNetBackbone`, so that its weights give its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from DeepLabSegLib.checks import check_choice, check_count, counts
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.activations import DECODER_ACTIVATIONS, activation_name
from DeepLabSegLib.models.encoder import Encoder, check_depth, make_spec
from DeepLabSegLib.models.layers import ENCODER_NORM, LAYERS, SqueezeExcite

__all__ = ["RESNETS", "SENETS", "ResNetBackbone", "ResNetSpec"]

BLOCK_TYPES = ("basic_block", "bottleneck_block", "bottleneck_block_vd")


@dataclass(frozen=True)
class ResNetSpec:
    """A ResNet variant; the fields are the reference's arguments of `ResNetBackbone`."""

    num_blocks: Sequence[int]
    block_type: str = "bottleneck_block"
    conv_filters: Sequence[int] = (64,)
    conv_kernel_sizes: Sequence[int] = (7,)
    num_filters: Sequence[int] = (64, 128, 256, 512)
    num_strides: Sequence[int] = (1, 2, 2, 2)
    use_pre_activation: bool = False
    groups: int = 1
    width_per_group: int = 64
    se_block: bool = False
    se_ratio: int = 16
    se_activation: str = "relu"
    include_rescaling: bool = False

    def __post_init__(self) -> None:
        check_choice("block_type", self.block_type, BLOCK_TYPES)
        se_activation = activation_name("se_activation", self.se_activation, DECODER_ACTIVATIONS)
        object.__setattr__(self, "se_activation", se_activation)
        for field in ("num_blocks", "conv_filters", "conv_kernel_sizes", "num_filters", "num_strides"):
            object.__setattr__(self, field, counts(field, getattr(self, field)))
        for field in ("groups", "width_per_group", "se_ratio"):
            check_count(field, getattr(self, field))
        if len(self.conv_filters) != len(self.conv_kernel_sizes):
            raise InvalidInput(
                f"conv_filters {list(self.conv_filters)} and conv_kernel_sizes {list(self.conv_kernel_sizes)} "
                "must have the same length"
            )
        if any(size % 2 == 0 for size in self.conv_kernel_sizes[1:]):
            raise InvalidInput(
                f"conv_kernel_sizes is {list(self.conv_kernel_sizes)}; after the first they must be odd, "
                "so that a convolution keeps the size"
            )
        if not len(self.num_filters) == len(self.num_blocks) == len(self.num_strides):
            raise InvalidInput(
                f"num_filters {list(self.num_filters)}, num_blocks {list(self.num_blocks)} and num_strides "
                f"{list(self.num_strides)} must have the same length"
            )
        if self.num_filters[0] != 64:
            raise InvalidInput(f"num_filters starts with {self.num_filters[0]}; the first stage must have 64")
        if self.block_type == "basic_block" and (self.groups, self.width_per_group) != (1, 64):
            raise InvalidInput(
                f"groups={self.groups}, width_per_group={self.width_per_group} with basic_block; "
                "grouped convolutions need bottleneck_block or bottleneck_block_vd"
            )
        if self.block_type == "basic_block" and (self.conv_filters[-1], self.num_strides[0]) != (64, 1):
            raise InvalidInput(
                f"conv_filters ends with {self.conv_filters[-1]}, num_strides starts with {self.num_strides[0]}; "
                "the first basic_block adds its input as it is, which needs 64 and 1"
            )
        if self.block_type == "bottleneck_block_vd" and self.use_pre_activation:
            raise InvalidInput("bottleneck_block_vd has no pre-activation form; set use_pre_activation=False")

    @property
    def expansion(self) -> int:
        """Output channels of a block per filter."""
        return 1 if self.block_type == "basic_block" else 4


RESNETS = {
    "resnet18": ResNetSpec((2, 2, 2, 2), "basic_block"),
    "resnet34": ResNetSpec((3, 4, 6, 3), "basic_block"),
    "resnet50": ResNetSpec((3, 4, 6, 3)),
    "resnet101": ResNetSpec((3, 4, 23, 3)),
    "resnet152": ResNetSpec((3, 8, 36, 3)),
    "resnet50_v2": ResNetSpec((3, 4, 6, 3), use_pre_activation=True),
    "resnet101_v2": ResNetSpec((3, 4, 23, 3), use_pre_activation=True),
    "resnet152_v2": ResNetSpec((3, 8, 36, 3), use_pre_activation=True),
    "resnet50_vd": ResNetSpec((3, 4, 6, 3), "bottleneck_block_vd", (32, 32, 64), (3, 3, 3)),
    "resnet200_vd": ResNetSpec((3, 12, 48, 3), "bottleneck_block_vd", (32, 32, 64), (3, 3, 3)),
    "resnext50": ResNetSpec((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101": ResNetSpec((3, 4, 23, 3), groups=32, width_per_group=8),
}
SENETS = {f"se{name}": replace(spec, se_block=True) for name, spec in RESNETS.items()}


class ResNetBackbone(Encoder):
    """A ResNet that returns its pyramid: P1 after the stem (stride 2), then one level per stage.

    Parameters
    ----------
    input_shape : `(H, W, C)` or `(D, H, W, C)`; sizes may be None.
    encoder_depth : levels to build, 5 for all; later stages are left out.
    **spec : fields of `ResNetSpec`, named as in the reference. `num_blocks`, per stage, must be given.

    Raises
    ------
    InvalidInput : an argument that is unknown, missing or out of its range.

    Examples
    --------
    >>> encoder = ResNetBackbone(input_shape=(64, 64, 1), num_blocks=(2, 2, 2, 2), block_type="basic_block")
    >>> encoder.channels
    (64, 64, 128, 256, 512)
    """

    def __init__(self, input_shape: Sequence[int | None], *, encoder_depth: int = 5, **spec: object) -> None:
        super().__init__(input_shape)
        check_depth(encoder_depth)
        self.spec = s = make_spec(ResNetSpec, spec)
        stages = encoder_depth - 1
        filters = list(s.num_filters[:stages])
        self.channels = (s.conv_filters[-1], *(f * s.expansion for f in filters))
        self.strides = (2, *(4 * n for n in accumulate(s.num_strides[:stages], mul)))

        layers = LAYERS[self.dims]
        self.stem = _stem(self.dims, self.in_channels, s)
        self.pool = layers.max_pool(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        in_channels = s.conv_filters[-1]
        for n, (width, blocks, stride) in enumerate(zip(filters, s.num_blocks, s.num_strides, strict=False)):
            # Basic blocks of the first stage keep the identity; bottlenecks widen there and need a projection.
            project = n > 0 or s.expansion > 1
            stage = [_Block(self.dims, s, in_channels, width, stride, project)]
            in_channels = width * s.expansion
            stage += [_Block(self.dims, s, in_channels, width, 1, False) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
        if s.use_pre_activation and len(filters) == len(s.num_filters):
            # The reference's own output only; DeepLabV3+ reads P5 before it. Kept so that weights map one to one.
            self.post_norm = ENCODER_NORM(self.dims, in_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(N, C, *S) -> [P1, P2, ...]`, Pn of shape `(N, channels[n-1], *ceil(S / strides[n-1]))`."""
        if self.spec.include_rescaling:
            x = x / 255
        pyramid = [self.stem(x)]
        x = self.pool(pyramid[0])
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


def _stem(dims: int, in_channels: int, spec: ResNetSpec) -> nn.Sequential:
    """Stride-2 convolution(s); pre-activation networks leave the last normalisation to their blocks."""
    stem = nn.Sequential()
    last = len(spec.conv_filters)
    for n, (filters, size) in enumerate(zip(spec.conv_filters, spec.conv_kernel_sizes, strict=True), start=1):
        conv = LAYERS[dims].conv(in_channels, filters, size, 2 if n == 1 else 1, (size - 1) // 2, bias=False)
        stem.add_module(f"conv{n}", conv)
        if n < last or not spec.use_pre_activation:
            stem.add_module(f"norm{n}", ENCODER_NORM(dims, filters))
            stem.add_module(f"relu{n}", nn.ReLU())
        in_channels = filters
    return stem


class _SamePool(nn.Module):
    """Keras's "same" average pooling over 2 voxels per axis. `(N, C, *S) -> (N, C, *ceil(S / stride))`."""

    def __init__(self, dims: int, stride: int) -> None:
        super().__init__()
        # ceil_mode without counting the padding.
        self.pool = LAYERS[dims].avg_pool(2, stride, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if 1 in x.shape[2:]:  # torch refuses volumes thinner than the window; a voxel said twice has the same mean
            x = x.repeat(1, 1, *(2 if size == 1 else 1 for size in x.shape[2:]))
        return self.pool(x)


class _Block(nn.Module):
    """A residual block, basic or bottleneck, post- or pre-activation. `(N, in, *S) -> (N, out, *ceil(S / stride))`."""

    def __init__(self, dims: int, spec: ResNetSpec, in_channels: int, filters: int, stride: int, project: bool) -> None:
        super().__init__()
        layers = LAYERS[dims]
        width = int(filters * spec.width_per_group / 64) * spec.groups
        out_channels = filters * spec.expansion
        if spec.block_type == "basic_block":
            convs = [(3, stride, 1, width), (3, 1, 1, out_channels)]
        else:
            convs = [(1, 1, 1, width), (3, stride, spec.groups, width), (1, 1, 1, out_channels)]

        self.pre_norm = ENCODER_NORM(dims, in_channels) if spec.use_pre_activation else None
        self.shortcut = nn.Sequential()
        if project:
            pool_first = spec.block_type == "bottleneck_block_vd"
            if pool_first and stride > 1:
                self.shortcut.add_module("pool", _SamePool(dims, stride))
            conv = layers.conv(in_channels, out_channels, 1, 1 if pool_first else stride, bias=False)
            self.shortcut.add_module("conv", conv)
            if not spec.use_pre_activation:
                self.shortcut.add_module("norm", ENCODER_NORM(dims, out_channels))

        self.body = nn.Sequential()
        channels = in_channels
        for n, (size, step, groups, out) in enumerate(convs, start=1):
            conv = layers.conv(channels, out, size, step, size // 2, groups=groups, bias=False)
            self.body.add_module(f"conv{n}", conv)
            if n < len(convs):
                self.body.add_module(f"norm{n}", ENCODER_NORM(dims, out))
                self.body.add_module(f"relu{n}", nn.ReLU())
            channels = out
        if spec.se_block:
            reduced = max(1, out_channels // spec.se_ratio)
            self.body.add_module("se", SqueezeExcite(dims, out_channels, reduced, spec.se_activation))
        if not spec.use_pre_activation:
            self.body.add_module(f"norm{len(convs)}", ENCODER_NORM(dims, out_channels))
        self.relu = nn.ReLU()
        self.projects = project

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm is None:
            return self.relu(self.shortcut(x) + self.body(x))
        active = self.relu(self.pre_norm(x))
        return (self.shortcut(active) if self.projects else x) + self.body(active)
