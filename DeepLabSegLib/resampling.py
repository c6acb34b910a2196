"""Voxels from one grid to another, exactly where two `Geometry` objects say, as little at a time as wanted.

Flips and permutations copy voxels unchanged, other grids along the same axes are interpolated axis by axis, oblique
ones in one trilinear step. Positions are voxel centres in RAS mm. Any part of a target can be had alone: `part` cuts
it out, `reach` says which part of the source it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.image import Geometry

__all__ = ["Box", "Mode", "part", "permuted", "reach", "resample", "same_voxels"]

T = TypeVar("T")

Mode = Literal["linear", "nearest"]

Box = tuple[slice, slice, slice]
"""A block of voxels along (k, j, i), first and last-plus-one given."""

SLAB = 2**20
"""Voxels of a target that are resampled at once."""

BLOCK = 32
"""Voxels along an axis that are interpolated by one matrix product: more would multiply more zeros."""


def part(geometry: Geometry, box: Box) -> Geometry:
    """The grid of the voxels in `box`."""
    origin = (geometry.affine @ np.array([*(side.start for side in box), 1.0]))[:3]
    return replace(geometry, shape=tuple(side.stop - side.start for side in box), origin=tuple(origin))


def permuted(geometry: Geometry, order: Sequence[int]) -> Geometry:
    """The same voxels with their axes in another order: axis n is what was axis `order[n]`."""
    a, b, c = order

    def ordered(values: tuple[T, ...]) -> tuple[T, T, T]:
        return values[a], values[b], values[c]

    return replace(
        geometry,
        shape=ordered(geometry.shape),
        spacing=ordered(geometry.spacing),
        direction=ordered(geometry.direction),
    )


def reach(source: Geometry, target: Geometry, box: Box | None = None) -> Box:
    """The block of `source` that `resample` reads for `box` of `target`, at least one voxel along each axis.

    All of `target` where no box is given.
    """
    way = _Way.between(source, target)
    ends = np.array([(0, size) for size in target.shape] if box is None else [(s.start, s.stop) for s in box]) - (0, 1)
    if way.from_axis is None:
        places = np.array(list(product(*ends))) @ way.matrix.T + way.offset
        low, high = np.floor(places.min(axis=0)) - 1, np.ceil(places.max(axis=0)) + 1
    else:
        low, high = np.empty(3), np.empty(3)
        for axis, column in enumerate(way.from_axis):
            coordinates, step = way.along(axis, ends[axis])
            margin = 0.5 if _copies(coordinates, step) else max(1.0, abs(step)) + 1
            low[column], high[column] = coordinates.min() - margin, coordinates.max() + margin
        low, high = np.ceil(low), np.floor(high)
    last = np.array(source.shape) - 1
    low, high = np.clip(low, 0, last).astype(int), np.clip(high, 0, last).astype(int)
    return tuple(slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True))  # type: ignore[return-value]


def same_voxels(source: Geometry, target: Geometry) -> bool:
    """Whether every voxel of `target` is one of `source`, so that nothing is interpolated."""
    way = _Way.between(source, target)
    return way.from_axis is not None and all(
        _copies(*way.along(axis, np.array([0, size - 1]))) for axis, size in enumerate(target.shape)
    )


def resample(
    array: Tensor, source: Geometry, target: Geometry, mode: Mode = "linear", fill: Tensor | None = None
) -> Tensor:
    """`(C, *source.shape) -> (C, *target.shape)`.

    Linear interpolation is widened to the target's voxel where that is larger (a triangle filter), so that shrinking
    doesn't alias. Voxels whose centres lie outside the source get `fill` `(C,)`, by default each channel's minimum.
    """

    @cache
    def outside() -> Tensor:
        return array.flatten(1).amin(1) if fill is None else fill

    planes = max(1, SLAB // math.prod(target.shape[1:]))
    if target.shape[0] <= planes:
        return _resample(array, source, target, mode, outside)
    result: Tensor | None = None
    for start in range(0, target.shape[0], planes):
        stop = min(start + planes, target.shape[0])
        slab = part(target, (slice(start, stop), slice(0, target.shape[1]), slice(0, target.shape[2])))
        found = _resample(array, source, slab, mode, outside)
        if result is None:
            result = found.new_empty((len(array), *target.shape))
        result[:, start:stop] = found
    assert result is not None
    return result


def _resample(array: Tensor, source: Geometry, target: Geometry, mode: Mode, fill: Callable[[], Tensor]) -> Tensor:
    """`resample` of one slab, from no more of `array` than it needs."""
    needed = reach(source, target)
    array, source = array[(slice(None), *needed)], part(source, needed)
    way = _Way.between(source, target)
    if way.from_axis is None:
        return _resample_oblique(array, way, target.shape, mode, fill)
    result = array.permute(0, *(1 + way.from_axis).tolist())
    outside = []
    # First what shrinks most: there is less to do then along the other axes.
    shrinkage = np.array(target.shape) / np.array(source.shape)[way.from_axis]
    for axis in np.argsort(shrinkage).tolist():
        coordinates, step = way.along(axis, np.arange(target.shape[axis]))
        size = result.shape[1 + axis]
        if mode == "nearest" or _copies(coordinates, step):
            index = np.clip(np.rint(coordinates), 0, size - 1).astype(np.int64)
            result = _pick(result, 1 + axis, index)
        else:
            result = _interpolate(result, 1 + axis, coordinates, max(1.0, abs(step)))
        outside.append((1 + axis, np.flatnonzero((coordinates < -0.5) | (coordinates > size - 0.5))))
    result = result.contiguous()
    for axis, index in outside:
        if len(index):
            if result.data_ptr() == array.data_ptr():
                result = result.clone()
            result.index_copy_(axis, _tensor(index, result), fill().to(result).view(-1, 1, 1, 1).expand(
                *(len(index) if n == axis else size for n, size in enumerate(result.shape))
            ))  # fmt: skip
    return result


@dataclass(frozen=True)
class _Way:
    """From a target's indices to a source's: `matrix @ index + offset`.

    `from_axis[n]` is the source's axis that the target's axis n runs along; None where the axes are not parallel.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    from_axis: NDArray[np.int64] | None

    @classmethod
    @lru_cache(maxsize=64)
    def between(cls, source: Geometry, target: Geometry) -> _Way:
        index = np.linalg.inv(source.affine) @ target.affine
        matrix, offset = index[:3, :3], index[:3, 3]
        # A grid that differs by less than 1e-3 voxels over its whole length is the same grid.
        matrix = np.where(np.abs(matrix) * np.array(target.shape) < 1e-3, 0.0, matrix)
        single = all((np.count_nonzero(matrix, axis=axis) == 1).all() for axis in (0, 1))
        return cls(matrix, offset, np.abs(matrix).argmax(axis=0) if single else None)

    def along(self, axis: int, index: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
        """Where the target's voxels `index` along `axis` lie on the source's axis, in voxels; and their distance."""
        assert self.from_axis is not None
        column = self.from_axis[axis]
        step = float(self.matrix[column, axis])
        return self.offset[column] + step * index, step


def _copies(coordinates: NDArray[np.float64], step: float) -> bool:
    """Whether every coordinate is a voxel's centre."""
    return bool(np.abs(coordinates - np.rint(coordinates)).max() < 1e-4 and abs(abs(step) - 1) < 1e-6)


def _pick(x: Tensor, axis: int, index: NDArray[np.int64]) -> Tensor:
    """The planes of `x` at `index` along `axis`; a view where they follow each other."""
    if np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        return x.narrow(axis, int(index[0]), len(index))
    return x.index_select(axis, _tensor(index, x))


def _interpolate(x: Tensor, axis: int, coordinates: NDArray[np.float64], support: float) -> Tensor:
    """`x` under a triangle filter of half-width `support` voxels around each of `coordinates` along `axis`.

    A matrix product per block of voxels: the matrix has few entries outside its band, and products are what a
    processor does best.
    """
    outer, inner = x.shape[:axis], x.shape[axis + 1 :]
    result = torch.empty((*outer, len(coordinates), *inner), device=x.device)
    rows = result.view(math.prod(outer), len(coordinates), math.prod(inner))
    for start in range(0, len(coordinates), BLOCK):
        block = slice(start, start + BLOCK)
        weights, first = _band(tuple(coordinates[block].tolist()), support, x.shape[axis], x.device)
        given = x.narrow(axis, first, weights.shape[1]).float().reshape(len(rows), weights.shape[1], -1)
        place = rows[:, block]
        # Products are written in place where torch does so in one step: copying them takes as long as they do.
        if not inner:
            torch.mm(given[..., 0], weights.T, out=place[..., 0])
        elif place.is_contiguous():
            torch.bmm(weights.expand(len(rows), -1, -1), given, out=place)
        else:
            place.copy_(weights @ given)
    return result


@lru_cache(maxsize=256)
def _band(places: tuple[float, ...], support: float, size: int, device: torch.device) -> tuple[Tensor, int]:
    """`(len(places), n)` weights of the n voxels from the second result on, of an axis of `size` voxels.

    Kept for a while: the slabs of a grid ask for the same again.
    """
    coordinates = np.array(places)
    first = np.floor(coordinates - support).astype(np.int64) + 1
    taps = first[:, None] + np.arange(int(np.ceil(2 * support)))
    away = taps - coordinates[:, None]
    weights = np.maximum(0, 1 - np.abs(away) / support)
    # Sampled at whole voxels the triangle's centre moves a little; it is brought back, so that slopes stay exact.
    first_moment, second_moment = (np.sum(weights * away**n, axis=1, keepdims=True) for n in (1, 2))
    weights *= 1 - away * first_moment / np.maximum(second_moment, 1e-9)
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, size - 1)
    start = int(taps.min())
    matrix = np.zeros((len(coordinates), int(taps.max()) - start + 1))
    np.add.at(matrix, (np.arange(len(coordinates))[:, None], taps - start), weights)
    return torch.from_numpy(matrix.astype(np.float32)).to(device), start


def _resample_oblique(array: Tensor, way: _Way, shape: Sequence[int], mode: Mode, fill: Callable[[], Tensor]) -> Tensor:
    """One trilinear (or nearest) step for grids whose axes are not parallel."""
    kind, home = array.dtype, array.device
    array = array.float()  # grid_sample takes no integers; labels stay exact up to 2**24
    if home.type == "mps":  # which lacks it for volumes
        array = array.cpu()
    sizes = np.array(array.shape[1:], dtype=np.float64)
    # grid_sample counts (i, j, k) from -1 to 1 between the outer faces of the first and last voxels.
    scale = 2 / sizes
    result = array.new_empty((array.shape[0], *shape))
    jj, ii = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    in_plane = way.matrix[:, 1, None, None] * jj + way.matrix[:, 2, None, None] * ii + way.offset[:, None, None]
    for k in range(shape[0]):
        points = (in_plane + way.matrix[:, 0, None, None] * k + 0.5) * scale[:, None, None] - 1
        grid = _tensor(np.ascontiguousarray(np.moveaxis(points[::-1], 0, -1), dtype=np.float32), array)[None, None]
        mode_name = "bilinear" if mode == "linear" else "nearest"
        plane = F.grid_sample(array[None], grid, mode=mode_name, padding_mode="border", align_corners=False)[0, :, 0]
        outside = (grid[0, 0].abs() > 1 + 1e-4).any(dim=-1)
        if bool(outside.any()):
            plane = torch.where(outside, fill().to(plane).view(-1, 1, 1), plane)
        result[:, k] = plane
    return result.to(home, kind)


def _tensor(values: NDArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
