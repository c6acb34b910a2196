"""The layers that every network here is made of, chosen once for 2D or 3D.

Shapes are channels first: `(N, C, *S)` with `*S` two or three spatial sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.activations import DECODER_ACTIVATIONS, Activation

__all__ = [
    "DECODER_NORMS",
    "ENCODER_NORM",
    "KERAS_NORM",
    "LAYERS",
    "ChannelNorm",
    "ConvNormAct",
    "DropPath",
    "InputNorm",
    "NormFactory",
    "SamePad",
    "SeparableConv",
    "SqueezeExcite",
    "batch_norm",
    "is_counter",
    "resize",
    "resize_matrix",
]


class _HeStart:
    """A convolution that begins with He's initialisation (He et al., ICCV 2015) and biases of zero."""

    def reset_parameters(self) -> None:
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        if weight.is_meta:  # which has no numbers to draw
            return
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if bias is not None:
            nn.init.zeros_(bias)


class Conv2d(_HeStart, nn.Conv2d):
    """`nn.Conv2d` with He's initialisation."""


class Conv3d(_HeStart, nn.Conv3d):
    """`nn.Conv3d` with He's initialisation."""


class _LoneValue:
    """Batch normalisation that goes on where a batch holds one value per channel, as Keras's does.

    Such a value has no variance to train with, so the running statistics stand in for it; torch refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:  # type: ignore[attr-defined]
            mean, var, weight, bias = self.running_mean, self.running_var, self.weight, self.bias  # type: ignore[attr-defined]
            return F.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)  # type: ignore[attr-defined]
        return super().forward(x)  # type: ignore[misc]


class BatchNorm2d(_LoneValue, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that takes a lone value per channel in training too."""


class BatchNorm3d(_LoneValue, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that takes a lone value per channel in training too."""


class SyncBatchNorm(_LoneValue, nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` that takes a lone value per channel in training too, where no other process has more."""

    def forward(self, x: Tensor) -> Tensor:
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        return nn.SyncBatchNorm.forward(self, x) if shared else super().forward(x)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that takes a lone value per group, as Keras's does; it comes out as the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)  # `F.group_norm` less its check


@dataclass(frozen=True)
class Layers:
    """What differs between images and volumes."""

    conv: type[nn.Conv2d] | type[nn.Conv3d]
    batch_norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d]
    max_pool: type[nn.MaxPool2d] | type[nn.MaxPool3d]
    avg_pool: type[nn.AvgPool2d] | type[nn.AvgPool3d]
    interpolation: Literal["bilinear", "trilinear"]


LAYERS = {
    2: Layers(Conv2d, BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, "bilinear"),
    3: Layers(Conv3d, BatchNorm3d, nn.MaxPool3d, nn.AvgPool3d, "trilinear"),
}

NormFactory = Callable[[int, int], nn.Module]
"""`(dims, channels) -> module`."""


# --- normalisations --------------------------------------------------------------------------------------------------


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each voxel (Keras `LayerNormalization(axis=-1)`). Same shape out."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class UnitNorm(nn.Module):
    """Each voxel's channel vector scaled to length one (Keras `UnitNormalization`). Same shape out."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares leave half precision's range
        return (wide * wide.square().sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()).to(x.dtype)


def batch_norm(dims: int, channels: int, *, eps: float, momentum: float) -> nn.Module:
    """Batch normalisation of `(N, channels, *S)`."""
    return LAYERS[dims].batch_norm(channels, eps=eps, momentum=momentum)


def _group_norm(dims: int, channels: int) -> nn.Module:
    if channels % 32:
        raise InvalidInput(
            f"group normalisation splits channels into 32 groups, and {channels} can't be; "
            "choose decoder_channels and projection_filters that are multiples of 32"
        )
    return GroupNorm(32, channels, eps=1e-3)


# Keras's momentum is the share that stays, torch's the share that comes in.
ENCODER_NORM: NormFactory = partial(batch_norm, eps=1e-5, momentum=0.1)
KERAS_NORM: NormFactory = partial(batch_norm, eps=1e-3, momentum=0.01)  # the constants of Keras's layer

DECODER_NORMS: dict[str, NormFactory] = {
    "batch": KERAS_NORM,
    "layer": lambda dims, channels: ChannelNorm(channels, eps=1e-3),
    "unit": lambda dims, channels: UnitNorm(),
    "group": _group_norm,
    "instance": lambda dims, channels: GroupNorm(channels, channels, eps=1e-5, affine=False),
    "sync_batch": lambda dims, channels: SyncBatchNorm(channels, eps=1e-3, momentum=0.01),
}
"""The reference's names for `decoder_normalization`, with Keras's constants."""


# --- blocks ----------------------------------------------------------------------------------------------------------


class SeparableConv(nn.Sequential):
    """Depthwise, then pointwise convolution, stride 1, "same" padding, no bias. `(N, in, *S) -> (N, out, *S)`."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel_size: int, dilation: int) -> None:
        conv = LAYERS[dims].conv
        super().__init__()
        self.depthwise = conv(
            in_channels,
            in_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=in_channels,
            bias=False,
        )
        self.pointwise = conv(in_channels, out_channels, 1, bias=False)


class ConvNormAct(nn.Sequential):
    """Convolution (plain or separable, stride 1, no bias), normalisation, activation. `(N, in, *S) -> (N, out, *S)`."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: NormFactory,
        activation: str,
        dilation: int = 1,
        separable: bool = False,
    ) -> None:
        super().__init__()
        if separable:
            self.conv: nn.Module = SeparableConv(dims, in_channels, out_channels, kernel_size, dilation)
        else:
            self.conv = LAYERS[dims].conv(
                in_channels,
                out_channels,
                kernel_size,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                bias=False,
            )
        self.norm = norm(dims, out_channels)
        self.activation = Activation(activation, DECODER_ACTIVATIONS)


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate that sees the whole image (Hu et al., CVPR 2018). Same shape out."""

    def __init__(self, dims: int, channels: int, reduced: int, activation: str) -> None:
        super().__init__()
        conv = LAYERS[dims].conv
        self.reduce = conv(channels, reduced, 1)
        self.activation = Activation(activation)
        self.expand = conv(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x * torch.sigmoid(self.expand(self.activation(self.reduce(gate))))


class SamePad(nn.Module):
    """Zero padding before a strided layer that has none, as Keras's "same": the output is `ceil(S / stride)`.

    An odd rest goes to the end, so that an even and an odd size are padded differently.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in reversed(x.shape[2:]):  # F.pad starts with the last axis
            total = max((-(-size // self.stride) - 1) * self.stride + self.kernel_size - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, a sample's branch is left out with `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class InputNorm(nn.Module):
    """Channels less `mean`, divided by the root of `variance`. `(N, C, *S)`, same shape out."""

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Sequence[float], variance: Sequence[float], *, learned: bool) -> None:
        super().__init__()
        # Learned values travel with the weights; fixed ones don't.
        self.register_buffer("mean", torch.tensor(mean), persistent=learned)
        self.register_buffer("variance", torch.tensor(variance), persistent=learned)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.mean.view(shape)) / self.variance.sqrt().clamp_min(1e-7).view(shape)


def resize(x: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Linear interpolation of `(N, C, *S)` to the spatial `size`, half-pixel centres (`align_corners=False`)."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=LAYERS[x.ndim - 2].interpolation, align_corners=False)


def resize_matrix(size: int, wanted: int, device: torch.device | None = None) -> Tensor:
    """`(wanted, size)`: what `resize` does along an axis."""
    return F.interpolate(torch.eye(size, device=device)[None], size=wanted, mode="linear", align_corners=False)[0].T


def is_counter(name: str) -> bool:
    """Whether a tensor of that name is torch's count of batches seen, which decides nothing here."""
    return name.endswith("num_batches_tracked")
