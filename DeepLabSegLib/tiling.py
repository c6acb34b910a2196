"""A network over a volume larger than its window: evenly spread windows, blended box by box.

What a network says of a window is kept as it comes out of its head, before enlargement, and only while a plane that it
covers is unfinished. A box is blended when the last window that covers it has been seen: each window's logits are
enlarged, activated, weighed and added. So a volume of any length is segmented in the memory of a slab, and the result
is that of blending whole class scores. Where all windows say the same of all of a box, which is most of a scan,
nothing needs to be blended.

Grids here have three axes, and windows follow each other along the first. A 2D network's window is one plane thick.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from DeepLabSegLib.models.layers import resize_matrix
from DeepLabSegLib.resampling import lengths, moved

__all__ = [
    "UNDECIDED",
    "Activation",
    "Blender",
    "Blending",
    "Corner",
    "Tiling",
    "Verdict",
    "mirrorings",
    "tile_importance",
    "tile_starts",
]

Blending = Literal["gaussian", "constant"]
Corner = tuple[int, int, int]

Verdict = Callable[[Tensor], Tensor]
"""Logits `(mirrorings, classes, *low sizes)` to the label `(*low sizes)` that each of them stands for, or `UNDECIDED`.

It must be such that blending and interpolating scores of one label gives that label.
"""

Part = tuple[slice, ...]
"""A block of a window's voxels."""

AT_ONCE = 2**24
"""Class scores of windows that are computed at once: a GPU would wait for the telling of each."""

BANK = 16
"""Windows whose logits get room at once."""

UNDECIDED = -1
"""What a `Verdict` says where logits alone don't settle the label."""

SAFE_RANGE = 80.0
"""Logits less than this apart have exponentials, and sums of these, that float32 holds without loss."""


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """First voxels of the fewest tiles that cover `size`, evenly spread, sharing at least `overlap` of a tile."""
    step = max(1, int(tile * (1 - overlap) + 1e-9))  # 20 x (1 - 0.9) is 1.9999999999999996
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
    """Every set of `axes` to turn around, the empty one first: twice as many with each axis."""
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

    @cached_property
    def starts(self) -> list[list[int]]:
        """The grid's index at the windows' first along each axis, which may lie before the grid."""
        return [
            [n - b for n in tile_starts(s, t, self.overlap)]
            for s, t, b in zip(self.shape, self.tile, self.before, strict=True)
        ]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return math.prod(map(len, self.starts))

    @property
    def corners(self) -> list[Corner]:
        """The grid's voxel at each window's first; ordered along the first axis."""
        return list(product(*self.starts))  # type: ignore[arg-type]  # three of them

    def touching(self, box: Sequence[slice]) -> Iterator[Corner]:
        """Those of `corners` whose windows cover a part of `box`."""
        return product(  # type: ignore[return-value]  # three of them
            *(
                starts[bisect_right(starts, side.start - size) : bisect_left(starts, side.stop)]
                for starts, size, side in zip(self.starts, self.tile, box, strict=True)
            )
        )

    def inside(self, corner: Sequence[int], box: Sequence[slice] | None = None) -> list[slice]:
        """The part of the grid, or of a `box` of it, that the window at `corner` covers."""
        sides = [slice(0, size) for size in self.shape] if box is None else box
        return [
            slice(max(side.start, c), min(side.stop, c + t))
            for side, c, t in zip(sides, corner, self.tile, strict=True)
        ]


@dataclass(frozen=True)
class Activation:
    """From logits to class scores `(N, C, ...) -> (N, C', ...)`; `name` is Keras's, for those with a faster way."""

    name: str
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Window:
    """What a network says of one window: `logits` are `(mirrorings, classes, *low sizes)`; None is pure background.

    `close` says that the logits differ by less than `SAFE_RANGE`, their largest being 0; `labels` `(*low sizes)` is
    what a `Verdict` says of them.
    """

    corner: Corner
    logits: Tensor | None
    labels: Tensor | None = None
    close: bool = False


class Blender:
    """Class scores of a volume, box by box, from its windows' logits.

    Windows are given in the order of `tiling.corners`; `scores` gives any box of finished planes, until `forget` lets
    them go. The scores are the average of the windows' scores, weighed by `tile_importance`. `device` is where they are
    computed, `keep_on` where logits wait until then, as numbers of type `keep_as`. With a `verdict`, `agreed` says
    where scores aren't needed.
    """

    def __init__(
        self,
        tiling: Tiling,
        blending: Blending,
        activation: Activation,
        device: torch.device,
        keep_on: torch.device,
        keep_as: torch.dtype = torch.float32,
        verdict: Verdict | None = None,
    ) -> None:
        self.tiling = tiling
        self.activation = activation
        self.device = device
        self.keep_on = keep_on
        self.keep_as = keep_as
        self.verdict = verdict
        self.alone = tiling.count == (len(tiling.starts[0]) if tiling.tile[0] == 1 else 1)
        self.importance = tile_importance(tiling.tile, blending).to(device)
        self.open: dict[Corner, _Window] = {}  # in the order in which they came
        self._free: list[tuple[Tensor, Tensor]] = []  # room for logits and labels, used again: fresh memory costs time
        self._room = torch.empty(0, device=device)  # for scores, likewise

    def add(self, corner: Corner, logits: Tensor | None) -> None:
        """Take the logits `(mirrorings, classes, *low sizes)` of the window at `corner`; None for background."""
        if logits is None:
            self.open[corner] = _Window(corner, None)
            return
        close = False
        if self.activation.name == "softmax" and logits.device.type == "cpu":
            # Softmax knows differences only; from the largest, the exponentials of near logits need no more care.
            near = logits.float()
            near = near - near.amax()
            close = float(near.amin()) > -SAFE_RANGE
            logits = near
        if not self._free:
            # Many at a time: small pieces among large ones that come and go would keep memory from being used again.
            rooms = torch.empty((BANK, *logits.shape), dtype=self.keep_as, device=self.keep_on)
            for_labels = torch.empty((BANK, *logits.shape[2:]), dtype=torch.int16)
            self._free.extend(zip(rooms.unbind(), for_labels.unbind(), strict=True))
        room, for_labels = self._free.pop()
        if self.verdict is not None:
            for_labels.copy_(self.verdict(logits))
        most = torch.finfo(self.keep_as).max  # infinite numbers would spoil their neighbours' enlargement
        self.open[corner] = _Window(corner, room.copy_(logits).clamp_(-most, most), for_labels, close)

    def forget(self, before: int) -> None:
        """Let go of the windows that have no plane from `before` on."""
        while self.open and (first := next(iter(self.open)))[0] + self.tiling.tile[0] <= before:
            window = self.open.pop(first)
            if window.logits is not None and window.labels is not None:
                self._free.append((window.logits, window.labels))

    def agreed(self, box: Sequence[slice]) -> int | None:
        """The label of every voxel in `box`, where all that any window says of it is that; else None."""
        if self.verdict is None:
            return None
        label = None
        for window, part in self._covering(box):
            found = 0
            if window.labels is not None:
                cells = window.labels.numpy()[tuple(self._cells(window.labels.shape, part))]
                found = int(cells[0, 0, 0])
                if found == UNDECIDED or (cells != found).any():
                    return None
            if label not in (None, found):
                return None
            label = found
        return label

    def scores(self, box: Sequence[slice], classes: int, raw: bool = False, averaged: bool = True) -> Tensor:
        """Scores `(classes, *sizes of box)` in finished planes; good until the next call.

        `raw` leaves out an activation that keeps order, where no other window has a say (see `alone`). Without
        `averaged` they are weighed sums, which are in the same order at each voxel.
        """
        sizes = lengths(box)
        numbers = classes * math.prod(sizes)
        if self._room.numel() < numbers:
            self._room = torch.empty(2 ** math.ceil(math.log2(numbers)), device=self.device)
        scores = self._room[:numbers].view(classes, *sizes)
        if not self.alone:
            scores.zero_()
        total = None if self.alone or not averaged else scores.new_zeros(sizes)
        starts = [side.start for side in box]
        for part, windows in self._alike(box, classes):
            weight = self.importance[part]
            places = [moved(part, [n - c for n, c in zip(starts, window.corner, strict=True)]) for window in windows]
            if total is not None:
                for place in places:
                    total[place].add_(weight)
            into = [scores[(slice(None), *place)] for place in places]
            self._score(windows, part, into, None if self.alone else weight, raw)
        if total is not None:
            scores /= total
        return scores

    def _covering(self, box: Sequence[slice]) -> Iterator[tuple[_Window, Part]]:
        """The windows that cover a part of `box`, and which part of theirs that is."""
        for corner in self.tiling.touching(box):
            if corner in self.open:
                yield self.open[corner], moved(self.tiling.inside(corner, box), corner)

    def _alike(self, box: Sequence[slice], classes: int) -> Iterator[tuple[Part, list[_Window]]]:
        """The windows that cover `box`, those together that are scored at once: the same part of each lies in it."""
        found: dict[object, tuple[Part, list[_Window]]] = {}
        for window, part in self._covering(box):
            key = *((side.start, side.stop) for side in part), window.logits is None, window.close
            found.setdefault(key, (part, []))[1].append(window)
        for part, windows in found.values():
            most = max(1, AT_ONCE // (classes * math.prod(lengths(part))))
            for first in range(0, len(windows), most):
                yield part, windows[first : first + most]

    def _score(
        self, windows: Sequence[_Window], part: Part, places: Sequence[Tensor], weight: Tensor | None, raw: bool
    ) -> None:
        """Add the weighed scores of a part of each window to its place, or write them where `weight` is None."""
        kept = [window.logits for window in windows if window.logits is not None]
        if not kept:
            exclusive = self.activation.name != "sigmoid"
            for place in places:
                if weight is None:
                    place.fill_(-math.inf if raw and not exclusive else 0)  # a logit of 0 would be an even score
                if exclusive:
                    place[0].add_(1 if weight is None else weight)
            return
        count = len(kept[0])
        for turn in range(count):
            enlarged = self._enlarge([logits[turn] for logits in kept], part)
            if raw:
                for place, values in zip(places, enlarged, strict=True):
                    place.copy_(values)
                return
            if windows[0].close:
                values = enlarged.exp_()
                shares = (1 if weight is None else weight) / values.sum(1).mul_(count)
            else:
                values = self.activation.function(enlarged)
                share = values.new_ones(()) / count if weight is None else weight / count
                shares = share.expand(len(values), *share.shape)
            for place, value, share in zip(places, values, shares, strict=True):
                if weight is not None or turn > 0:
                    place.addcmul_(value, share)
                else:
                    torch.mul(value, share, out=place)

    def _enlarge(self, kept: Sequence[Tensor], part: Part) -> Tensor:
        """Logits `(classes, *low)` of some windows to `(windows, classes, planes, rows, columns)` at a part of each.

        Linear, an axis at a time.
        """
        low = kept[0].shape[1:]
        cells = (slice(None), *self._cells(low, part))
        given = torch.stack([logits[cells] for logits in kept]).to(self.device, torch.float32)
        planes, rows, columns = (
            _matrix_part(count, size, side.start, side.stop, self.device)
            for count, size, side in zip(low, self.tiling.tile, part, strict=True)
        )
        count, classes, l0, l1, l2 = given.shape
        result = planes @ given.view(count * classes, l0, l1 * l2)
        result = (result.view(-1, l2) @ columns.T).view(-1, l1, len(columns))
        return (rows @ result).view(count, classes, len(planes), len(rows), len(columns))

    def _cells(self, low: Sequence[int], sides: Sequence[slice]) -> list[slice]:
        """What is read, of `low` cells along each axis, to enlarge them at `sides` of a window."""
        return [
            _read(cells, size, side.start, side.stop)
            for cells, size, side in zip(low, self.tiling.tile, sides, strict=True)
        ]


@lru_cache(maxsize=64)
def _matrix(low: int, size: int, device: torch.device) -> Tensor:
    """`resize_matrix` there, kept for a while."""
    return resize_matrix(low, size).contiguous().to(device)


@lru_cache(maxsize=512)
def _matrix_part(low: int, size: int, start: int, stop: int, device: torch.device) -> Tensor:
    """`_matrix` from row `start` to `stop`, with the columns that `_read` names.

    In one piece: a product of many matrices would copy a part of one again and again.
    """
    return _matrix(low, size, device)[start:stop, _read(low, size, start, stop)].contiguous()


@lru_cache(maxsize=4096)
def _read(low: int, size: int, start: int, stop: int) -> slice:
    """The columns of `_matrix` that hold numbers in its rows from `start` to `stop`."""
    columns = _matrix(low, size, torch.device("cpu"))[start:stop].any(0).nonzero().flatten().tolist()
    return slice(columns[0], columns[-1] + 1)
