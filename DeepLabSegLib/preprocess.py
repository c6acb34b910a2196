"""From a scan's own grid to the model's, and exactly back.

`resample` is the one place where voxels move between grids: flips and permutations copy voxels unchanged, other
grids along the same axes are interpolated axis by axis, oblique ones in one trilinear step. Positions are explicit:
voxel centres in RAS mm, given by two `Geometry` objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image

__all__ = [
    "Normalization",
    "axis_letters",
    "check_orientation",
    "check_voxels",
    "model_grid",
    "resample",
    "slabs",
    "stack_channels",
]

LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Direction letter -> RAS axis and sign."""

SLAB_VOXELS = 2**21


# --- grids -----------------------------------------------------------------------------------------------------------


def check_orientation(letters: str) -> None:
    """Raise `InvalidInput` unless `letters` names one direction of each of the axes R/L, A/P and S/I."""
    valid = isinstance(letters, str) and len(letters) == 3 and all(letter in LETTERS for letter in letters)
    if not valid or len({LETTERS[letter][0] for letter in letters}) != 3:
        raise InvalidInput(
            f"orientation is {letters!r}; give three letters, the directions in which k, j and i grow: "
            "one of R L, one of A P, one of S I, for example 'SAR'"
        )


def axis_letters(geometry: Geometry) -> str:
    """The directions nearest to those in which k, j and i grow, for example 'SAR'."""
    direction = np.abs(np.array(geometry.direction))
    letters = [""] * 3
    for _ in range(3):  # the clearest axis first, so that no letter is given twice
        axis, ras = np.unravel_index(np.argmax(direction), (3, 3))
        sign = 1 if geometry.direction[axis][ras] > 0 else -1
        letters[axis] = next(letter for letter, value in LETTERS.items() if value == (ras, sign))
        direction[axis], direction[:, ras] = -1, -1
    return "".join(letters)


def model_grid(source: Geometry, orientation: str | None, spacing: Sequence[float | None], cell: int = 1) -> Geometry:
    """The grid that a model works on: `orientation` and `spacing`, covering `source`.

    `orientation` None keeps the source's own axes; a spacing of None keeps the source's voxel size along the axis
    that comes to lie there. Where voxels keep their size along an axis, they keep their places too. Elsewhere the grid
    consists of whole cells of `cell` voxels at fixed places in space, so that a point of the body comes to lie at the
    same place of the network's own grid however the scan was cropped.
    """
    if orientation is None:
        axes = np.array(source.direction)
    else:
        check_orientation(orientation)
        axes = np.zeros((3, 3))
        for row, letter in zip(axes, orientation, strict=True):
            ras, sign = LETTERS[letter]
            row[ras] = sign
    along = np.abs(axes @ np.array(source.direction).T)  # cosines: rows the new axes, columns the source's
    extent = along @ (np.array(source.shape) * source.spacing)
    nearest = [source.spacing[column] for column in along.argmax(axis=1)]
    size = np.array([keep if wanted is None else wanted for wanted, keep in zip(spacing, nearest, strict=True)])
    shape = np.maximum(1, np.ceil(extent / size - 1e-3)).astype(int)
    centre = axes @ (source.affine @ np.array([*(np.array(source.shape) - 1) / 2, 1.0]))[:3]
    first = centre - size * (shape - 1) / 2
    for axis in range(3):
        if spacing[axis] is None or (along[axis].max() > 1 - 1e-6 and abs(size[axis] / nearest[axis] - 1) < 1e-4):
            continue
        pitch = size[axis] * cell
        low, high = (centre[axis] + side * extent[axis] / 2 for side in (-1, 1))
        low, high = np.floor(low / pitch + 1e-3) * pitch, np.ceil(high / pitch - 1e-3) * pitch
        shape[axis], first[axis] = max(cell, round((high - low) / size[axis])), low + size[axis] / 2
    return Geometry(tuple(shape), tuple(size), tuple(axes.T @ first), tuple(map(tuple, axes)))


def slabs(geometry: Geometry) -> Iterator[tuple[slice, Geometry]]:
    """`geometry` cut along k into grids of about `SLAB_VOXELS` voxels, with the planes that each covers."""
    planes = max(1, SLAB_VOXELS // (geometry.shape[1] * geometry.shape[2]))
    for start in range(0, geometry.shape[0], planes):
        stop = min(start + planes, geometry.shape[0])
        origin = (geometry.affine @ np.array([start, 0, 0, 1.0]))[:3]
        yield slice(start, stop), replace(geometry, shape=(stop - start, *geometry.shape[1:]), origin=tuple(origin))


def resample(
    array: Tensor, source: Geometry, target: Geometry, mode: Literal["linear", "nearest"] = "linear"
) -> Tensor:
    """`(C, *source.shape) -> (C, *target.shape)`.

    Linear interpolation is widened to the target's voxel where that is larger (a triangle filter), so that shrinking
    doesn't alias. Voxels whose centres lie outside the source get the channel's minimum.
    """
    # Target index -> source index; a grid that differs by less than 1e-4 voxels is the same grid.
    index = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = index[:3, :3], index[:3, 3]
    matrix = np.where(np.abs(matrix) * np.array(target.shape) < 1e-3, 0.0, matrix)
    if (np.count_nonzero(matrix, axis=0) == 1).all() and (np.count_nonzero(matrix, axis=1) == 1).all():
        from_axis = np.abs(matrix).argmax(axis=0)
        result = array.permute(0, *(1 + from_axis).tolist())
        for axis, column in enumerate(from_axis):
            step = matrix[column, axis]
            coordinates = offset[column] + step * np.arange(target.shape[axis])
            result = _resample_axis(result, axis + 1, coordinates, abs(step), mode)
        return result.contiguous()
    return _resample_oblique(array, matrix, offset, target.shape, mode)


def _resample_axis(x: Tensor, axis: int, coordinates: NDArray, step: float, mode: str) -> Tensor:
    """`x` interpolated along one axis at `coordinates`, in voxels of `x`, which are `step` apart."""
    size = x.shape[axis]
    nearest = np.rint(coordinates)
    exact = np.abs(coordinates - nearest).max() < 1e-4 and abs(step - 1) < 1e-6
    if mode == "nearest" or exact:
        index = np.clip(nearest, 0, size - 1).astype(np.int64)
        result = x if np.array_equal(index, np.arange(size)) else x.index_select(axis, _tensor(index, x))
    else:
        result = _weighted_taps(x, axis, coordinates, max(1.0, step))
    outside = np.flatnonzero((coordinates < -0.5) | (coordinates > size - 0.5))
    if len(outside):
        lowest = x.amin(dim=tuple(range(1, x.ndim)), keepdim=True)
        result[(slice(None),) * axis + (_tensor(outside, x),)] = lowest.squeeze(axis)
    return result


def _weighted_taps(x: Tensor, axis: int, coordinates: NDArray, support: float) -> Tensor:
    """`x` under a triangle filter of half-width `support` voxels around each of `coordinates`."""
    first = np.floor(coordinates - support).astype(np.int64) + 1
    taps = first[:, None] + np.arange(int(np.ceil(2 * support)))
    away = taps - coordinates[:, None]
    weights = np.maximum(0, 1 - np.abs(away) / support)
    # Sampled at whole voxels the triangle's centre moves a little; it is brought back, so that slopes stay exact.
    first_moment, second_moment = (np.sum(weights * away**n, axis=1, keepdims=True) for n in (1, 2))
    weights *= 1 - away * first_moment / np.maximum(second_moment, 1e-9)
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, x.shape[axis] - 1)
    shape = [-1 if n == axis else 1 for n in range(x.ndim)]
    parts = (
        x.index_select(axis, _tensor(tap, x)) * _tensor(weight, x).view(shape)
        for tap, weight in zip(taps.T, weights.T.astype(np.float32), strict=True)
    )
    result = next(parts)
    for part in parts:
        result += part
    return result


def _resample_oblique(array: Tensor, matrix: NDArray, offset: NDArray, shape: Sequence[int], mode: str) -> Tensor:
    """One trilinear (or nearest) step for grids whose axes are not parallel."""
    kind = array.dtype
    array = array.float()  # grid_sample takes no integers; labels stay exact up to 2**24
    sizes = np.array(array.shape[1:], dtype=np.float64)
    lowest = array.amin(dim=(1, 2, 3), keepdim=True)
    # grid_sample counts (i, j, k) from -1 to 1 between the outer faces of the first and last voxels.
    scale = 2 / sizes
    result = array.new_empty((array.shape[0], *shape))
    jj, ii = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    in_plane = matrix[:, 1, None, None] * jj + matrix[:, 2, None, None] * ii + offset[:, None, None]
    for k in range(shape[0]):
        points = (in_plane + matrix[:, 0, None, None] * k + 0.5) * scale[:, None, None] - 1
        grid = _tensor(np.ascontiguousarray(np.moveaxis(points[::-1], 0, -1), dtype=np.float32), array)[None, None]
        mode_name = "bilinear" if mode == "linear" else "nearest"
        plane = F.grid_sample(array[None], grid, mode=mode_name, padding_mode="border", align_corners=False)[0, :, 0]
        outside = (grid[0, 0].abs() > 1 + 1e-4).any(dim=-1)
        result[:, k] = torch.where(outside, lowest[:, 0], plane)
    return result.to(kind)


def _tensor(values: NDArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)


def stack_channels(images: Sequence[Image]) -> Image:
    """The channels of all `images` on the grid of the first, `(sum of C, k, j, i)`.

    Images on another grid are resampled in physical space, linearly; where they don't reach, a channel has its minimum.
    """
    first, *others = images
    if not others:
        return first
    arrays = [first.array]
    for image in others:
        if image.geometry.is_close(first.geometry):
            arrays.append(image.array)
        else:
            values = torch.from_numpy(image.array.astype(np.float32))
            arrays.append(resample(values, image.geometry, first.geometry).numpy())
    return Image(np.concatenate(arrays), first.geometry)


# --- voxel values ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalization:
    """How voxel values become the network's input, per channel and over the whole scan.

    `percentile` takes the `lower` and `upper` percentile (0 to 100) to 0 and 1, clipped; `window` does so with the
    values `lower` and `upper` themselves; `zscore` subtracts the mean and divides by the standard deviation; `none`
    leaves values alone. `mean` and `std`, a number per channel, are applied last where given.
    """

    method: Literal["percentile", "window", "zscore", "none"] = "zscore"
    lower: float | None = None
    upper: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        bounded = self.method in ("percentile", "window")
        if self.method not in ("percentile", "window", "zscore", "none"):
            raise InvalidInput(f"normalization method is {self.method!r}; choose percentile, window, zscore or none")
        if bounded and (self.lower is None or self.upper is None or not self.lower < self.upper):
            raise InvalidInput(f"{self.method} bounds are {self.lower}, {self.upper}; give lower < upper")
        if self.method == "percentile" and not 0 <= float(self.lower or 0) < float(self.upper or 0) <= 100:
            raise InvalidInput(f"percentiles are {self.lower}, {self.upper}; they must lie in 0 to 100")
        if (self.mean is None) != (self.std is None) or (self.std is not None and min(self.std) <= 0):
            raise InvalidInput("give mean and std together, a number per channel, std positive")

    def __call__(self, x: Tensor) -> Tensor:
        """`(C, *S)` float -> the same shape."""
        if self.method == "zscore":
            mean, std = x.flatten(1).mean(1), x.flatten(1).std(1).clamp_min(1e-8)
            x = (x - _column(mean, x)) / _column(std, x)
        elif self.method != "none":
            low, high = self._bounds(x)
            x = ((x - _column(low, x)) / _column((high - low).clamp_min(1e-8), x)).clamp_(0, 1)
        if self.mean is not None and self.std is not None:
            x = (x - _column(x.new_tensor(self.mean), x)) / _column(x.new_tensor(self.std), x)
        return x

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.method == "window":
            return x.new_full((len(x),), float(self.lower or 0)), x.new_full((len(x),), float(self.upper or 0))
        found = np.percentile(x.flatten(1).cpu().numpy(), [self.lower, self.upper], axis=1)
        return x.new_tensor(found[0]), x.new_tensor(found[1])


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def check_voxels(image: Image) -> None:
    """Raise `InvalidInput` for voxels that are NaN or infinite, or an image that is constant."""
    array = image.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise InvalidInput(f"{bad} of {array.size} voxels are NaN or infinite; replace them, by 0 for example")
    for n, channel in enumerate(array):
        low, high = channel.min(), channel.max()
        if low == high:
            raise InvalidInput(f"channel {n} is constant ({low} in every voxel), so there is nothing to segment")
