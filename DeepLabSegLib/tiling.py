"""A network over a volume larger than its window: evenly spread windows, blended plane by plane.

What a network says of a window is kept as it comes out of its head, before enlargement, and only while a plane that it
covers is unfinished. A block of planes is blended when the last window that covers it has been seen: each window's
logits are enlarged, activated, weighed and added. So a volume of any length is segmented in the memory of a slab, and
the result is that of blending whole class scores.

Grids here have three axes, and windows follow each other along the first. A 2D network's window is one plane thick.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Activation", "Blender", "Blending", "Tiling", "mirrorings", "tile_importance", "tile_starts"]

Blending = Literal["gaussian", "constant"]

CHUNK = 2**20
"""Numbers that are worked on at once: they stay in a processor's cache from one operation to the next."""

BANK = 16
"""Windows whose logits get room at once."""

SAFE_RANGE = 80.0
"""Logits less than this apart have exponentials, and sums of these, that float32 holds without loss."""


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """First voxels of the fewest tiles that cover `size`, evenly spread, sharing at least `overlap` of a tile."""
    step = max(1, int(tile * (1 - overlap)))
    count = 1 + max(0, -(-(size - tile) // step))
    return np.rint(np.linspace(0, max(0, size - tile), count)).astype(int).tolist()


def tile_importance(tile: Sequence[int], blending: Blending) -> Tensor:
    """`(*tile)`: how much each voxel of a tile counts where tiles overlap.

    The Gaussian has a standard deviation of an eighth of the tile (Isensee et al., Nature Methods 2021), and nothing
    counts less than a thousandth, as in the reference.
    """
    importance = torch.ones(())
    for axis, size in enumerate(tile if blending == "gaussian" else ()):
        profile = torch.exp(-0.5 * ((torch.arange(size) - (size - 1) / 2) / (size / 8)) ** 2)
        importance = importance * profile.view(-1, *[1] * (len(tile) - 1 - axis))
    return importance.clamp_min(1e-3).expand(*tile)


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every set of `axes` to turn around, the empty one first: 4 mirror images in 2D, 8 in 3D."""
    return [turn for count in range(len(axes) + 1) for turn in combinations(axes, count)]


@dataclass(frozen=True)
class Tiling:
    """Where windows of size `tile` lie on a grid of size `shape`, three axes each.

    A grid that is smaller than the tile lies in its middle, `before` voxels from its start.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    overlap: float

    @property
    def before(self) -> tuple[int, ...]:
        """Voxels of a window before the grid's first, where the grid is smaller than the tile."""
        return tuple(max(0, t - s) // 2 for s, t in zip(self.shape, self.tile, strict=True))

    @property
    def corners(self) -> list[tuple[int, int, int]]:
        """The grid's voxel at each window's first, which may lie before the grid; ordered along the first axis."""
        starts = [
            [n - b for n in tile_starts(s, t, self.overlap)]
            for s, t, b in zip(self.shape, self.tile, self.before, strict=True)
        ]
        return list(product(*starts))  # type: ignore[arg-type]  # three of them

    def inside(self, corner: Sequence[int]) -> list[slice]:
        """The part of the grid that the window at `corner` covers."""
        return [slice(max(0, c), min(c + t, s)) for c, t, s in zip(corner, self.tile, self.shape, strict=True)]


@dataclass(frozen=True)
class Activation:
    """From logits to class scores `(N, C, ...) -> (N, C', ...)`; `name` is Keras's, for those with a faster way."""

    name: str
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Window:
    """What a network says of one window: `logits` are `(mirrorings, classes, *low sizes)`; None is pure background.

    `close` says that the logits differ by less than `SAFE_RANGE`, their largest being 0.
    """

    corner: tuple[int, int, int]
    logits: Tensor | None
    close: bool = False


class Blender:
    """Class scores of a volume, block by block of planes, from its windows' logits.

    Windows are given in the order of `tiling.corners`; `take` gives the finished planes from `start` to `stop`. Planes
    before the last `start` are forgotten. The scores are the average of the windows' scores, weighed by
    `tile_importance`. `device` is where they are computed, `keep_on` where logits wait until then.
    """

    def __init__(
        self, tiling: Tiling, blending: Blending, activation: Activation, device: torch.device, keep_on: torch.device
    ) -> None:
        self.tiling = tiling
        self.activation = activation
        self.device = device
        self.keep_on = keep_on
        self.alone = len(tiling.corners) == len({corner[0] for corner in tiling.corners}) and (
            tiling.tile[0] == 1 or len(tiling.corners) == 1
        )
        self.importance = tile_importance(tiling.tile, blending).to(device)
        self.open: deque[_Window] = deque()
        self._free: list[Tensor] = []  # room for logits, used again: fresh memory costs time
        self._scores: Tensor | None = None  # the planes from _start to _stop, at the front of a buffer
        self._start = self._stop = 0

    def add(self, corner: tuple[int, int, int], logits: Tensor | None) -> None:
        """Take the logits `(mirrorings, classes, *low sizes)` of the window at `corner`; None for background."""
        if logits is None:
            self.open.append(_Window(corner, None))
            return
        close = False
        if self.activation.name == "softmax" and logits.device.type == "cpu":
            # Softmax knows differences only; from the largest, the exponentials of near logits need no more care.
            near = logits.float()
            near = near - near.amax()
            close = float(near.amin()) > -SAFE_RANGE
            logits = near.to(logits.dtype)
        if not self._free:
            # Many at a time: small pieces among large ones that come and go would keep memory from being used again.
            self._free.extend(torch.empty((BANK, *logits.shape), dtype=logits.dtype, device=self.keep_on).unbind())
        self.open.append(_Window(corner, self._free.pop().copy_(logits), close))

    def take(self, start: int, stop: int, classes: int, raw: bool = False) -> Tensor:
        """Scores `(classes, stop - start, *shape[1:])` of finished planes; good until the next call.

        `raw` leaves out an activation that keeps order, where no other window has a say (see `alone`).
        """
        self.forget(start)
        known = max(0, self._stop - start)
        buffer = self._buffer(classes, stop - start)
        if self._scores is not None and known:
            buffer[:, :known] = self._scores[:, start - self._start : self._stop - self._start].clone()
        fresh = buffer[:, known : stop - start]
        self._blend(fresh, start + known, raw)
        self._scores, self._start, self._stop = buffer, start, stop
        return buffer[:, : stop - start]

    def forget(self, before: int) -> None:
        """Let go of the windows that have no plane from `before` on."""
        while self.open and self.open[0].corner[0] + self.tiling.tile[0] <= before:
            logits = self.open.popleft().logits
            if logits is not None:
                self._free.append(logits)

    def _buffer(self, classes: int, planes: int) -> Tensor:
        """Room for scores; the same as before where it is large enough, as fresh memory costs time."""
        held = self._scores
        if held is not None and held.shape[1] >= planes:
            return held
        return torch.empty((classes, planes, *self.tiling.shape[1:]), device=self.device)

    def _blend(self, scores: Tensor, start: int, raw: bool) -> None:
        """Write the scores of the planes from `start` on into `scores`."""
        stop = start + scores.shape[1]
        if stop == start:
            return
        total = None
        if not self.alone:
            scores.zero_()
            total = scores.new_zeros(scores.shape[1:])
        area = max(1, math.prod(side.stop - side.start for side in self.tiling.inside((0, 0, 0))[1:]))
        planes = max(1, CHUNK // (len(scores) * area))
        # Plane by plane, and there window by window: what is added to stays in the cache.
        for at in range(start, stop, planes):
            block = slice(at, min(at + planes, stop))
            place = slice(at - start, block.stop - start)
            self._blend_block(block, scores[:, place], None if total is None else total[place], raw)
        if total is not None:
            scores /= total

    def _blend_block(self, block: slice, scores: Tensor, total: Tensor | None, raw: bool) -> None:
        """Add every window's weighed scores of the planes in `block` to `scores`, and their weights to `total`."""
        for window in self.open:
            first = max(block.start, window.corner[0])
            last = min(block.stop, window.corner[0] + self.tiling.tile[0])
            if first >= last:
                continue
            sides = (slice(first, last), *self.tiling.inside(window.corner)[1:])
            place = (slice(first - block.start, last - block.start), *sides[1:])
            weight = None
            if total is not None:
                taken = tuple(slice(s.start - c, s.stop - c) for s, c in zip(sides, window.corner, strict=True))
                weight = self.importance[taken]
                total[place] += weight
            self._score(window, sides, weight, scores[(slice(None), *place)], raw)

    def _score(self, window: _Window, sides: Sequence[slice], weight: Tensor | None, place: Tensor, raw: bool) -> None:
        """Add a window's weighed scores at `sides` of the grid to `place`, or write them where `weight` is None."""
        if window.logits is None:
            if weight is None:
                place.zero_()
            if self.activation.name != "sigmoid":
                place[0] += 1 if weight is None else weight
            return
        count = len(window.logits)
        for turn, logits in enumerate(window.logits):
            enlarged = self._enlarge(window, logits, sides, place.device)
            if raw:
                place.copy_(enlarged)
                return
            if window.close:
                values = enlarged.exp_()
                share = (1 if weight is None else weight) / values.sum(0).mul_(count)
            else:
                values = self.activation.function(enlarged[None])[0]
                share = place.new_ones(()) / count if weight is None else weight / count
            if weight is not None or turn > 0:
                place.addcmul_(values, share)
            else:
                torch.mul(values, share, out=place)

    def _enlarge(self, window: _Window, logits: Tensor, sides: Sequence[slice], device: torch.device) -> Tensor:
        """`(classes, *low) -> (classes, planes, rows, columns)`: linear interpolation, an axis at a time."""
        planes, rows, columns = (
            _matrix(low, size, device)[side.start - c : side.stop - c]
            for low, size, side, c in zip(logits.shape[1:], self.tiling.tile, sides, window.corner, strict=True)
        )
        classes, l0, l1, l2 = logits.shape
        result = planes @ logits.to(device, torch.float32).view(classes, l0, l1 * l2)
        result = (result.view(-1, l2) @ columns.T).view(-1, l1, len(columns))
        return (rows @ result).view(classes, len(planes), len(rows), len(columns))


@lru_cache(maxsize=64)
def _matrix(low: int, size: int, device: torch.device) -> Tensor:
    """`(size, low)`: linear interpolation with half-pixel centres, as `interpolate(align_corners=False)` does it."""
    return F.interpolate(torch.eye(low)[None], size=size, mode="linear")[0].T.contiguous().to(device)
