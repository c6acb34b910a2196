"""Random draws from one generator, and the Gaussian blur, for everything that makes training images."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Draw", "blur", "sent"]


class Draw:
    """Random numbers and tensors of one generator; tensors lie on `device`."""

    def __init__(self, device: torch.device, generator: torch.Generator | None) -> None:
        self._device = device
        self._generator = generator

    def even(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def one(self, deviation: float) -> float:
        return deviation * float(torch.randn((), generator=self._generator))

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))

    def chance(self, share: float) -> bool:
        return self.even(0, 1) < share

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self._generator).to(self._device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        # Large fields are drawn where they are used; their seed is the generator's.
        seed = int(torch.randint(2**31, (), generator=self._generator))
        field = torch.Generator(self._device).manual_seed(seed)
        return torch.randn(tuple(shape), generator=field, device=self._device)


def sent(numbers: Tensor, device: torch.device | None) -> Tensor:
    """A few numbers of the CPU's on `device`; unlike `to`, an NVIDIA GPU need not have finished its work before."""
    return numbers.to(device, non_blocking=device is not None and device.type == "cuda")


def blur(image: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian blur of `(1, 1, k, j, i)` along one axis; `sigma` is in voxels."""
    if sigma < 0.2:
        return image
    radius = ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image.dtype)
    # As one-dimensional convolution over lines, which is much faster than a flat 3D kernel.
    lines = image.movedim(axis + 2, -1)
    padded = F.pad(lines.reshape(1, -1, lines.shape[-1]), (radius, radius), mode="replicate")
    blurred = F.conv1d(padded.movedim(1, 0), kernel[None, None])
    return blurred.reshape(lines.shape).movedim(-1, axis + 2)
