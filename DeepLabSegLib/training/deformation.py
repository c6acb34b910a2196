"""Random pose and shape: where each voxel of a training image is read from.

Rotation, scale per axis, mirroring and a smooth random displacement, as in Ronneberger et al. (MICCAI 2015) and
Isensee et al. (Nature Methods 2021), drawn and applied in one reading so that nothing is interpolated twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, radians

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.training.draw import sent

__all__ = ["Deformation", "sample_linear", "sample_nearest"]


@dataclass(frozen=True)
class Deformation:
    """Standard deviations of a random pose and shape; all zero leaves the image as it is.

    Attributes
    ----------
    rotation : degrees about each axis.
    scale : of the logarithm of the size, per axis.
    elastic, elastic_spacing : mm of displacement at random points, and the mm between these.
    mirror_axes : axes each of which is turned round in half of the draws.
    planar : nothing moves along k: turned about k alone, displaced along j and i. For pictures and thick slices.
    """

    rotation: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0
    elastic_spacing: float = 40.0
    mirror_axes: tuple[int, ...] = ()
    planar: bool = False

    def points(
        self,
        shape: Sequence[int],
        step: Sequence[float],
        centre: Tensor,
        spacing: Sequence[float],
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Positions `(3, *shape)` in voxels of a source with `spacing`, for voxels of `step` mm round `centre`.

        `centre` is the position in the source, in voxels along (k, j, i), of the middle of the drawn image.
        """
        limit = 2.5
        normal = torch.randn(2, 3, generator=generator).clamp_(-limit, limit)
        if self.planar:
            normal[0, 1:] = 0
            normal[1, 0] = 0
        matrix = _rotation([radians(self.rotation) * float(angle) for angle in normal[0]])
        matrix = matrix * torch.exp(self.scale * normal[1])
        for axis in self.mirror_axes:
            if torch.rand((), generator=generator) < 0.5:
                matrix[:, axis] *= -1
        matrix = sent(matrix / torch.tensor(spacing)[:, None], device)
        axes = [
            (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * mm
            for n, mm in zip(shape, step, strict=True)
        ]
        # One axis after the other is far cheaper than a product over all voxels.
        k, j, i = (matrix[:, n, None] * axis for n, axis in enumerate(axes))
        points = k[:, :, None, None] + j[:, None, :, None] + (i + sent(centre, device)[:, None])[:, None, None, :]
        if self.elastic > 0:
            knots = [max(2, ceil(n * mm / self.elastic_spacing) + 1) for n, mm in zip(shape, step, strict=True)]
            field = self.elastic * torch.randn(1, 3, *knots, generator=generator)
            field /= torch.tensor(spacing).view(1, 3, 1, 1, 1)
            if self.planar:
                field[:, 0] = 0
            points += F.interpolate(sent(field, device), size=tuple(shape), mode="trilinear", align_corners=True)[0]
        return points


def sample_nearest(source: Tensor, points: Tensor) -> Tensor:
    """Values of `source` `(k, j, i)` at the voxels nearest to `points` `(3, ...)`; 0 outside."""
    where = points.round().long()
    inside = torch.stack([(a >= 0) & (a < size) for a, size in zip(where, source.shape, strict=True)]).all(0)
    k, j, i = where
    flat = (k * source.shape[1] + j) * source.shape[2] + i
    return source.reshape(-1)[flat * inside] * inside


def sample_linear(source: Tensor, points: Tensor) -> Tensor:
    """Channels of `source` `(C, k, j, i)` at `points` `(3, k', j', i')`, linear; the nearest value outside."""
    size = torch.tensor(source.shape[1:], device=source.device, dtype=points.dtype)
    # grid_sample wants (x, y, z) in -1 to 1 over the voxels' outer faces.
    grid = ((2 * points.movedim(0, -1) + 1) / size - 1).flip(-1)
    return F.grid_sample(source[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def _rotation(angles: Sequence[float]) -> Tensor:
    matrix = torch.eye(3)
    for axis, angle in enumerate(angles):
        turn = torch.eye(3)
        a, b = [n for n in range(3) if n != axis]
        cos, sin = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
        turn[a, a], turn[b, b], turn[a, b], turn[b, a] = cos, cos, -sin, sin
        matrix = matrix @ turn
    return matrix
