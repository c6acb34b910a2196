"""The encoder contract: what DeepLabV3+ asks of any encoder, ours or a user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor, nn

from DeepLabSegLib.checks import is_count
from DeepLabSegLib.errors import InvalidInput

__all__ = [
    "Encoder",
    "PyramidLevel",
    "check_depth",
    "check_input_shape",
    "check_tensor",
    "make_spec",
]

T = TypeVar("T")


@dataclass(frozen=True)
class PyramidLevel:
    """One level of an encoder's pyramid: `shape` is `(channels, *sizes)` for the encoder's `input_shape`;
    a size is None where the input's size is."""

    channels: int
    stride: int
    shape: tuple[int | None, ...]


class Encoder(nn.Module):
    """Base of the encoders here.

    The contract, which a custom encoder keeps without this base: `forward` takes `(N, C, *S)` and returns the
    pyramid as a list, P1 first; `channels` and `strides` hold a number per level.

    Attributes
    ----------
    input_shape : `(*sizes, channels)`, channels last as in the reference; a size may be None.
    channels : channels of each level, P1 first.
    strides : input voxels per voxel of each level, P1 first.
    rounds_down_from : the first level (1 is P1) whose strided layer drops an incomplete last voxel; those before round
        sizes up. None, for encoders that always round up.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    rounds_down_from: int | None = None

    def __init__(self, input_shape: Sequence[int | None]) -> None:
        super().__init__()
        self.input_shape = check_input_shape(input_shape)

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.input_shape) - 1

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.input_shape[-1]  # type: ignore[return-value]  # checked when made

    def check_size(self, x: Tensor) -> None:
        """Raise `InvalidInput` where `x` `(N, C, *S)` is so small that the last level would be empty."""
        if self.rounds_down_from is None:
            return
        least = self.strides[-1] - self._stride_up(len(self.strides)) + 1
        if min(x.shape[2:]) < least:
            raise InvalidInput(
                f"input has sizes {tuple(x.shape[2:])}; this encoder needs at least {least} along each axis; "
                "pad the input or choose a smaller encoder_depth"
            )

    def drop_unread(self, levels: Sequence[int]) -> None:
        """Leave out, or out of training, what serves no level of `levels` (1 is P1) and no later one."""
        # The reference's own output only. DistributedDataParallel would wait for its gradients, which never come.
        for name, parameter in self.named_parameters():
            if name.startswith("post_norm."):
                parameter.requires_grad_(False)

    @property
    def pyramid_outputs(self) -> dict[str, PyramidLevel]:
        """`{"P1": PyramidLevel(channels, stride, shape), ...}`, as the reference's `pyramid_outputs`."""
        return {
            f"P{n}": PyramidLevel(c, s, (c, *(self._level_size(size, n) for size in self.input_shape[:-1])))
            for n, (c, s) in enumerate(zip(self.channels, self.strides, strict=True), start=1)
        }

    def _level_size(self, size: int | None, level: int) -> int | None:
        """Size of level `level` (1 is P1) for an input of `size`."""
        if size is None:
            return None
        up = self._stride_up(level)
        return -(-size // up) // (self.strides[level - 1] // up)

    def _stride_up(self, level: int) -> int:
        """The part of level `level`'s stride that rounds sizes up."""
        last = level if self.rounds_down_from is None else min(level, self.rounds_down_from - 1)
        return self.strides[last - 1] if last else 1


def make_spec(kind: type[T], given: Mapping[str, object]) -> T:
    """The spec (a dataclass) of these fields; raise `InvalidInput` for one that is unknown, or needed and not given."""
    known = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidInput(f"{kind.__name__} has no {', '.join(unknown)}; its fields are {', '.join(known)}")
    missing = [name for name, needed in known.items() if needed and name not in given]
    if missing:
        raise InvalidInput(
            f"{kind.__name__} lacks {', '.join(missing)}; give it, or make an encoder by its name with make_encoder"
        )
    return kind(**given)


def check_input_shape(input_shape: Sequence[int | None] | torch.Size | None) -> tuple[int | None, ...]:
    """`(H, W, C)` or `(D, H, W, C)`, sizes positive or None, channels positive; raise `InvalidInput` otherwise."""
    if not isinstance(input_shape, Sequence) or len(input_shape) not in (3, 4):
        raise InvalidInput(
            f"input_shape is {input_shape!r}; give (H, W, channels) for 2D or (D, H, W, channels) for 3D"
        )
    *sizes, channels = input_shape
    if not is_count(channels) or not all(size is None or is_count(size) for size in sizes):
        raise InvalidInput(
            f"input_shape is {tuple(input_shape)!r}; sizes must be positive integers or None, and channels, "
            "the last, a positive integer"
        )
    return tuple(None if size is None else int(size) for size in input_shape)


def check_depth(encoder_depth: object) -> None:
    """Raise `InvalidInput` unless `encoder_depth` is a positive integer."""
    if not is_count(encoder_depth):
        raise InvalidInput(f"encoder_depth is {encoder_depth!r}; it must be a positive integer, 5 for a whole encoder")


def check_tensor(x: Tensor, dims: int, channels: int) -> None:
    """Raise `InvalidInput` unless `x` is `(N, channels, *S)` with `dims` spatial axes and no empty axis."""
    if x.ndim != dims + 2 or x.shape[1] != channels or 0 in x.shape:
        axes = "height, width" if dims == 2 else "depth, height, width"
        raise InvalidInput(f"input has shape {tuple(x.shape)}; this network takes (batch, {channels}, {axes})")
