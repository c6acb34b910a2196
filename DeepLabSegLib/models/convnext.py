"""ConvNeXt and ConvNeXt V2 in 2D and 3D.

Sources: Liu et al., CVPR 2022 (arXiv:2201.03545); Woo et al., CVPR 2023 (arXiv:2301.00808, V2). Layer order, paddings
and constants follow medicai 0.0.4's `ConvNeXtBackbone` and `ConvNeXtBackboneV2`, so that their weights give their
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from DeepLabSegLib.checks import check_rate, counts
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.encoder import Encoder, check_depth, make_spec
from DeepLabSegLib.models.layers import LAYERS, ChannelNorm, DropPath, InputNorm

__all__ = ["CONVNEXTS", "ConvNeXtBackbone", "ConvNeXtBackboneV2", "ConvNeXtSpec"]

NORM_EPS = 1e-6
RESPONSE_EPS = 1e-7
IMAGENET_MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
IMAGENET_VARIANCE = [(0.229 * 255) ** 2, (0.224 * 255) ** 2, (0.225 * 255) ** 2]


@dataclass(frozen=True)
class ConvNeXtSpec:
    """A ConvNeXt variant; the fields are the reference's arguments of `ConvNeXtBackbone`, and `version`.

    Version 2 has a global response normalisation in each block instead of the layer scale.
    """

    depths: Sequence[int]
    projection_dims: Sequence[int]
    drop_path_rate: float = 0.0
    layer_scale_init_value: float | None = 1e-6
    include_rescaling: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        for field in ("depths", "projection_dims"):
            object.__setattr__(self, field, counts(field, getattr(self, field)))
        if len(self.depths) != len(self.projection_dims):
            raise InvalidInput(
                f"depths {list(self.depths)} and projection_dims {list(self.projection_dims)} must have the same "
                "length, one number per stage"
            )
        check_rate("drop_path_rate", self.drop_path_rate)
        if self.version not in (1, 2):
            raise InvalidInput(f"version is {self.version!r}; it must be 1 or 2")


CONVNEXTS = {
    "convnext_tiny": ConvNeXtSpec((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ConvNeXtSpec((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ConvNeXtSpec((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ConvNeXtSpec((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": ConvNeXtSpec((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "convnext_v2_atto": ConvNeXtSpec((2, 2, 6, 2), (40, 80, 160, 320), version=2),
    "convnext_v2_femto": ConvNeXtSpec((2, 2, 6, 2), (48, 96, 192, 384), version=2),
    "convnext_v2_pico": ConvNeXtSpec((2, 2, 6, 2), (64, 128, 256, 512), version=2),
    "convnext_v2_nano": ConvNeXtSpec((2, 2, 8, 2), (80, 160, 320, 640), version=2),
    "convnext_v2_tiny": ConvNeXtSpec((3, 3, 9, 3), (96, 192, 384, 768), version=2),
    "convnext_v2_small": ConvNeXtSpec((3, 3, 27, 3), (96, 192, 384, 768), version=2),
    "convnext_v2_base": ConvNeXtSpec((3, 3, 27, 3), (128, 256, 512, 1024), version=2),
    "convnext_v2_large": ConvNeXtSpec((3, 3, 27, 3), (192, 384, 768, 1536), version=2),
    "convnext_v2_huge": ConvNeXtSpec((3, 3, 27, 3), (352, 704, 1408, 2816), version=2),
}


class ConvNeXtBackbone(Encoder):
    """A ConvNeXt that returns its pyramid, a normalised level per stage: P1 at stride 4, P4 at stride 32.

    Parameters
    ----------
    input_shape : `(H, W, C)` or `(D, H, W, C)`; sizes may be None.
    encoder_depth : levels to build, at most one per stage; later stages are left out.
    **spec : fields of `ConvNeXtSpec`, named as in the reference. `depths` (blocks) and `projection_dims`
        (channels), both per stage, must be given.

    Raises
    ------
    InvalidInput : an argument that is unknown, missing or out of its range.

    Examples
    --------
    >>> ConvNeXtBackbone(input_shape=(64, 64, 1), depths=(2, 2, 6, 2), projection_dims=(40, 80, 160, 320)).strides
    (4, 8, 16, 32)
    """

    rounds_down_from = 1  # no padding anywhere: an incomplete patch is dropped

    def __init__(self, input_shape: Sequence[int | None], *, encoder_depth: int = 5, **spec: object) -> None:
        super().__init__(input_shape)
        check_depth(encoder_depth)
        self.spec = s = make_spec(ConvNeXtSpec, spec)
        conv = LAYERS[self.dims].conv
        self.channels = tuple(s.projection_dims[:encoder_depth])
        self.strides = tuple(4 * 2**n for n in range(len(self.channels)))
        rates = torch.linspace(0, s.drop_path_rate, sum(s.depths), device="cpu").tolist()

        self.rescale = _rescaling(self.in_channels) if s.include_rescaling else nn.Identity()
        self.downsamplings = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.norms = nn.ModuleList()
        before = self.in_channels
        for n, (width, blocks) in enumerate(zip(self.channels, s.depths, strict=False)):
            down = nn.Sequential()
            if n == 0:
                down.add_module("conv", conv(before, width, 4, 4))
                down.add_module("norm", ChannelNorm(width, NORM_EPS))
            else:
                down.add_module("norm", ChannelNorm(before, NORM_EPS))
                down.add_module("conv", conv(before, width, 2, 2))
            self.downsamplings.append(down)
            self.stages.append(nn.Sequential(*(_Block(self.dims, s, width, rates.pop(0)) for _ in range(blocks))))
            self.norms.append(ChannelNorm(width, NORM_EPS))
            before = width

    def drop_unread(self, levels: Sequence[int]) -> None:
        """Levels outside `levels` stay as their stage leaves them, without the normalisation nobody would read."""
        for n in range(len(self.norms)):
            if n + 1 not in levels:
                self.norms[n] = nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(N, C, *S) -> [P1, P2, ...]`, Pn of shape `(N, channels[n-1], *floor(S / strides[n-1]))`."""
        self.check_size(x)
        x = self.rescale(x)
        pyramid = []
        for downsampling, stage, norm in zip(self.downsamplings, self.stages, self.norms, strict=True):
            x = stage(downsampling(x))
            pyramid.append(norm(x))
        return pyramid


class ConvNeXtBackboneV2(ConvNeXtBackbone):
    """`ConvNeXtBackbone` with `version=2`, under the reference's name."""

    def __init__(self, input_shape: Sequence[int | None], *, encoder_depth: int = 5, **spec: object) -> None:
        super().__init__(input_shape, encoder_depth=encoder_depth, **{**spec, "version": 2})


class _Block(nn.Module):
    """7-wide depthwise convolution, then a perceptron per voxel, added to the input. `(N, width, *S)`, same out."""

    def __init__(self, dims: int, spec: ConvNeXtSpec, width: int, drop_rate: float) -> None:
        super().__init__()
        self.depthwise = LAYERS[dims].conv(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.expand = nn.Linear(width, 4 * width)
        self.grn = _GlobalResponseNorm(4 * width) if spec.version == 2 else None
        self.contract = nn.Linear(4 * width, width)
        start = spec.layer_scale_init_value if spec.version == 1 else None
        self.scale = None if start is None else nn.Parameter(torch.full((width,), float(start)))
        self.drop = DropPath(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).movedim(1, -1)  # channels last, as linear layers want them
        y = F.gelu(self.expand(self.norm(y)))
        if self.grn is not None:
            y = self.grn(y)
        y = self.contract(y)
        if self.scale is not None:
            y = y * self.scale
        return x + self.drop(y.movedim(-1, 1))


class _GlobalResponseNorm(nn.Module):
    """Channels weighted by their energy over the image, relative to the other channels'. `(N, *S, C)`, same out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # In float32, as in the reference: squares summed over a volume leave half precision's range.
        energy = (x.float().square().sum(dim=tuple(range(1, x.ndim - 1)), keepdim=True) + RESPONSE_EPS).sqrt()
        relative = energy / (energy.mean(dim=-1, keepdim=True) + RESPONSE_EPS)
        return self.weight * (x * relative.to(x.dtype)) + self.bias + x


def _rescaling(channels: int) -> nn.Module:
    """ImageNet's statistics for colour images, and from [0, 255] to [0, 1] for everything else."""
    if channels == 3:
        return InputNorm(IMAGENET_MEAN, IMAGENET_VARIANCE, learned=False)
    return InputNorm([0.0] * channels, [255.0**2] * channels, learned=False)
