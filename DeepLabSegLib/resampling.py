"""Voxels from one grid to another, exactly where two `Geometry` objects say, as little at a time as wanted.

Flips and permutations copy voxels unchanged, other grids along the same axes are interpolated axis by axis, oblique
ones in one trilinear step, before which a source that is finer is shrunk along its own axes. Positions are voxel
centres in RAS mm. Any part of a target can be had alone: a `Way` says which part of the source it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import product
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.devices import is_gpu
from DeepLabSegLib.image import Geometry

__all__ = ["Box", "Mode", "Way", "lengths", "moved", "permuted", "resample"]

T = TypeVar("T")

Mode = Literal["linear", "nearest"]

Box = tuple[slice, slice, slice]
"""A block of voxels along (k, j, i), first and last-plus-one given."""

SLAB, GPU_SLAB = 2**20, 2**24
"""Voxels of a target that are resampled at once: a processor keeps them in its cache, a GPU waits for the telling."""

POINTS = 2**16
"""Voxels of an oblique target at once: a processor keeps their places in its cache."""

ON_FACE = 1e-3
"""Voxels by which a point beyond an oblique source's outer face still counts as inside: rounding."""

BLOCK = 32
"""Voxels along an axis that are interpolated by one matrix product: more would multiply more zeros."""


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


def lengths(sides: Sequence[slice]) -> tuple[int, ...]:
    """Voxels along each of `sides` of a grid."""
    return tuple(side.stop - side.start for side in sides)


def moved(sides: Sequence[slice], corner: Sequence[int]) -> tuple[slice, ...]:
    """`sides` of a grid, counted from `corner`."""
    return tuple(slice(side.start - c, side.stop - c) for side, c in zip(sides, corner, strict=True))


def resample(
    array: Tensor, source: Geometry, target: Geometry, mode: Mode = "linear", fill: Tensor | None = None
) -> Tensor:
    """`(C, *source.shape) -> (C, *target.shape)`. See `Way.resample`."""
    return Way.between(source, target).resample(array, mode=mode, fill=fill)


@dataclass(frozen=True, eq=False)
class _Axis:
    """An axis of a target that runs along a source's axis `column` of `size` voxels.

    `coordinates` are the target's voxels there, in the source's voxels, `step` apart.
    """

    column: int
    size: int
    coordinates: NDArray[np.float64]
    step: float

    @cached_property
    def copies(self) -> bool:
        """Whether every coordinate is a voxel's centre."""
        return bool(
            np.abs(self.coordinates - np.rint(self.coordinates)).max() < 1e-4 and abs(abs(self.step) - 1) < 1e-6
        )

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Per voxel of the target, whether its centre lies in the source."""
        return (self.coordinates >= -0.5) & (self.coordinates <= self.size - 0.5)

    def reach(self, side: slice) -> slice:
        """The source's voxels that `side` of the target is made of."""
        low, high = sorted((float(self.coordinates[side.start]), float(self.coordinates[side.stop - 1])))
        margin = 0.5 if self.copies else max(1.0, abs(self.step)) + 1
        first, last = (min(max(n, 0), self.size - 1) for n in (math.ceil(low - margin), math.floor(high + margin)))
        return slice(first, last + 1)

    def along(self, x: Tensor, axis: int, side: slice, first: int, mode: Mode) -> Tensor:
        """`x` at `side` of the target along `axis`, of which `x` has the source's voxels from `first` on."""
        coordinates = self.coordinates[side] - first
        if mode == "nearest" or self.copies:
            return _pick(x, axis, np.clip(np.rint(coordinates), 0, x.shape[axis] - 1).astype(np.int64))
        return _interpolate(x, axis, coordinates, max(1.0, abs(self.step)))


@dataclass(frozen=True, eq=False)
class Way:
    """From a source's voxels to a target's: worked out once for two grids, then good for any box of the target.

    `matrix @ index + offset` takes a target's indices to a source's. `axes` are the target's, each along one of the
    source's; None where the grids are not parallel. Linear interpolation between such grids goes by two ways where the
    target is coarser: `steps`, by a grid along the source's axes.
    """

    source: tuple[int, int, int]
    target: tuple[int, int, int]
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    axes: tuple[_Axis, ...] | None
    steps: tuple[Way, Way] | None = None

    @classmethod
    @lru_cache(maxsize=64)
    def between(cls, source: Geometry, target: Geometry) -> Way:
        """The way from grid `source` to grid `target`."""
        index = np.linalg.inv(source.affine) @ target.affine
        matrix, offset = index[:3, :3], index[:3, 3]
        # A grid that differs by less than 1e-3 voxels over its whole length is the same grid.
        matrix = np.where(np.abs(matrix) * np.array(target.shape) < 1e-3, 0.0, matrix)
        axes = None
        if all((np.count_nonzero(matrix, axis=axis) == 1).all() for axis in (0, 1)):
            columns = np.abs(matrix).argmax(axis=0).tolist()
            axes = tuple(
                _Axis(column, source.shape[column], offset[column] + step * np.arange(size), step)
                for column, step, size in zip(columns, matrix[columns, range(3)].tolist(), target.shape, strict=True)
            )
        steps = None
        if axes is None and (middle := _between(source, matrix)).shape != source.shape:
            steps = cls.between(source, middle), cls.between(middle, target)
        return cls(source.shape, target.shape, matrix, offset, axes, steps)

    @property
    def copies(self) -> bool:
        """Whether every voxel of the target is one of the source, so that nothing is interpolated."""
        return self.axes is not None and all(axis.copies for axis in self.axes)

    def reach(self, box: Box) -> Box:
        """The block of the source that `resample` reads for `box` of the target, at least one voxel along each axis."""
        if self.axes is not None:
            found = {axis.column: axis.reach(side) for axis, side in zip(self.axes, box, strict=True)}
            return found[0], found[1], found[2]
        if self.steps is not None:
            shrink, turn = self.steps
            return shrink.reach(turn.reach(box))
        corners = np.array(list(product(*((side.start, side.stop - 1) for side in box))))
        places = corners @ self.matrix.T + self.offset
        last = np.array(self.source) - 1
        low = np.clip(np.floor(places.min(axis=0)) - 1, 0, last).astype(int)
        high = np.clip(np.ceil(places.max(axis=0)) + 1, 0, last).astype(int)
        return tuple(slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True))  # type: ignore[return-value]

    def reach_of_planes(self) -> list[slice]:
        """For each of the target's planes along its first axis, which planes of the source it is made of."""
        _, rows, columns = _whole(self.target)
        return [self.reach((slice(n, n + 1), rows, columns))[0] for n in range(self.target[0])]

    def resample(
        self,
        array: Tensor,
        box: Box | None = None,
        held: Box | None = None,
        mode: Mode = "linear",
        fill: Tensor | None = None,
    ) -> Tensor:
        """Voxels `(C, ...)` of the target in `box`, by default all, from the source's in `array`.

        `array` is `(C, *source)`, or no more of the source than the block `held`, which holds `reach(box)`.

        Linear interpolation is widened to the target's voxel where that is larger (a triangle filter), so that
        shrinking doesn't alias. Voxels whose centres lie outside the source get `fill` `(C,)`, by default each
        channel's minimum.
        """
        sides, held = box or _whole(self.target), held or _whole(self.source)

        @cache
        def outside() -> Tensor:
            return array.flatten(1).amin(1) if fill is None else fill

        if self.steps is not None and mode == "linear":
            shrink, turn = self.steps
            between = turn.reach(sides)
            return turn.resample(shrink.resample(array, between, held), sides, between, mode, outside())
        first, rows, columns = sides
        sizes = lengths(sides)
        planes = max(1, (GPU_SLAB if is_gpu(array.device) else SLAB) // math.prod(sizes[1:]))
        if sizes[0] <= planes:
            return self._slab(array, sides, held, mode, outside)
        result: Tensor | None = None
        for start in range(first.start, first.stop, planes):
            stop = min(start + planes, first.stop)
            found = self._slab(array, (slice(start, stop), rows, columns), held, mode, outside)
            if result is None:
                result = found.new_empty((len(array), *sizes))
            result[:, start - first.start : stop - first.start] = found
        assert result is not None
        return result

    def _slab(self, array: Tensor, box: Box, held: Box, mode: Mode, fill: Callable[[], Tensor]) -> Tensor:
        """`resample`, from no more of `array` than it needs."""
        needed = self.reach(box)
        array = array[(slice(None), *moved(needed, [side.start for side in held]))]
        if self.axes is None:
            offset = self.offset + self.matrix @ [side.start for side in box] - [side.start for side in needed]
            return _resample_oblique(array, self.matrix, offset, lengths(box), mode, fill)
        result = array.permute(0, *(1 + axis.column for axis in self.axes))
        # First what shrinks most: there is less to do then along the other axes.
        shrinkage = [size / given for size, given in zip(lengths(box), result.shape[1:], strict=True)]
        for n in sorted(range(3), key=shrinkage.__getitem__):
            axis = self.axes[n]
            result = axis.along(result, 1 + n, box[n], needed[axis.column].start, mode)
        result = result.contiguous()
        for n, axis in enumerate(self.axes):
            index = np.flatnonzero(~axis.inside[box[n]])
            if len(index):
                if result.data_ptr() == array.data_ptr():
                    result = result.clone()
                filling = fill().to(result).view(-1, 1, 1, 1)
                sizes = [len(index) if axis == n else size for axis, size in enumerate(result.shape[1:])]
                result.index_copy_(1 + n, _tensor(index, result), filling.expand(-1, *sizes))
        return result


def _between(source: Geometry, matrix: NDArray[np.float64]) -> Geometry:
    """The grid along the axes of `source` to which it is shrunk on the way to a coarser one that isn't parallel.

    A row of `matrix` is as long as the target's voxel along an axis of the source. A triangle filter smooths by its
    width, squared, and so does the trilinear step after it; each does half of it. `source` itself where that is less
    than a voxel.
    """
    width = np.maximum(1.0, np.linalg.norm(matrix, axis=1) / math.sqrt(2))
    old = np.array(source.shape)
    shape = np.maximum(1, np.rint(old / width)).astype(int)
    spacing = np.array(source.spacing) * old / shape
    corner = (old / shape - 1) / 2
    origin = (source.affine @ np.array([*corner, 1.0]))[:3]
    return replace(source, shape=tuple(shape.tolist()), spacing=tuple(spacing.tolist()), origin=tuple(origin.tolist()))


def _whole(shape: tuple[int, int, int]) -> Box:
    first, second, third = shape
    return slice(0, first), slice(0, second), slice(0, third)


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
        # Products are written in place where torch does so in one step: copying them takes as long as they do. Where
        # places don't follow each other it leaves them as they were on Apple's GPUs (pytorch#104832).
        if not inner and x.device.type in ("cpu", "cuda"):
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


def _resample_oblique(
    array: Tensor,
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    shape: Sequence[int],
    mode: Mode,
    fill: Callable[[], Tensor],
) -> Tensor:
    """One trilinear (or nearest) step for grids whose axes are not parallel; see `Way` for `matrix` and `offset`."""
    kind, home = array.dtype if mode == "nearest" else torch.float32, array.device
    array = array.float()  # grid_sample takes no integers; labels stay exact up to 2**24
    if home.type == "mps":  # which lacks it for volumes
        array = array.cpu()
    # grid_sample counts (i, j, k) from -1 to 1 between the outer faces of the first and last voxels.
    scale = 2 / np.array(array.shape[1:], dtype=np.float64)
    planes, rows, columns = (
        _tensor((step * np.arange(count)[:, None] * scale)[:, ::-1], array)
        for step, count in zip(matrix.T, shape, strict=True)
    )
    in_plane = rows[:, None] + columns + _tensor(((offset + 0.5) * scale - 1)[::-1], array)
    # Within a thousandth of a voxel, of however large a part of the source: else a box would differ from the whole.
    faces = _tensor((1 + ON_FACE * scale)[::-1], array).float()
    kernel = "bilinear" if mode == "linear" else "nearest"
    result = array.new_empty((len(array), *shape))
    at_once = max(1, POINTS // math.prod(shape[1:]))
    for start in range(0, shape[0], at_once):
        some = slice(start, start + at_once)
        points = (planes[some, None, None] + in_plane).float()
        found = F.grid_sample(array[None], points[None], kernel, padding_mode="border", align_corners=False)[0]
        outside = (points.abs() > faces).any(dim=-1)
        if bool(outside.any()):
            found = torch.where(outside, fill().to(found).view(-1, 1, 1, 1), found)
        result[:, some] = found
    return result.to(home, kind)


def _tensor(values: NDArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
