"""A network's windows, read from a scan as it lies in memory: resampled, normalised and turned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.devices import is_gpu
from DeepLabSegLib.passage import Passage
from DeepLabSegLib.preprocess import numbers
from DeepLabSegLib.resampling import Box, Way, moved
from DeepLabSegLib.tiling import Corner, Tiling
from DeepLabSegLib.transfer import Uploads

__all__ = ["Windows"]

T = TypeVar("T")

ROUNDING = 1e-5
"""By which voxels of one value, interpolated and normalised, may exceed it."""


class Windows:
    """The windows of `tiling`, whose axes are those of the passage's grid in another `order`.

    They are cut with the grid's own axes, which the scan's usually follow: turning every window twice would take as
    long as cutting it. On a GPU those that follow each other along the flow's last axis are cut from a band that is
    resampled at once: it would wait for the telling of each. A CPU gains nothing by it, and would need room for it.
    """

    def __init__(self, passage: Passage, tiling: Tiling, order: Sequence[int]) -> None:
        self.passage = passage
        self.way = Way.between(passage.source.geometry, passage.grid)
        self.tiling = tiling
        self.order = order
        self._batch = torch.empty(0)
        self._band = torch.empty(0)
        self._band_at: tuple[int, int] | None = None
        self._uploads = Uploads(passage.device)
        self._slab = torch.empty(0)
        self._held: Box | None = None

    def read(self, corners: Iterable[Corner]) -> tuple[list[Corner], Tensor]:
        """Those of `corners` whose windows aren't all background, and these: `(N, C, *S)`, until the next call."""
        found = {corner: x for corner in corners if (x := self._window(corner)) is not None}
        stacked = list(found.values())
        if len(self._batch) < len(stacked):
            self._batch = stacked[0].new_empty((len(stacked), *stacked[0].shape))
        batch = self._batch[: len(stacked)]
        if stacked:
            # In the same place: the C library finds no second use for the gaps that large tensors leave.
            torch.stack(stacked, out=batch)
        return list(found), batch

    def _window(self, corner: Corner) -> Tensor | None:
        """The network's input `(C, *S)` at a corner of the flow, zeros outside it; None where it is all background."""
        passage = self.passage
        inside = self.tiling.inside(corner)
        if not is_gpu(passage.device):
            x = self._read(inside)
        else:
            if corner[:2] != self._band_at:
                self._band = self._read([*inside[:2], slice(0, self.tiling.shape[2])])
                self._band_at = corner[:2]
            x = self._band.narrow(1 + self.order[2], inside[2].start, inside[2].stop - inside[2].start)
        if passage.background is not None:
            limits = numbers(passage.background, passage.device).view(-1, 1, 1, 1)
            if bool((x <= limits + ROUNDING).all()):
                return None
        missing = [
            (side.start - first, first + size - side.stop)
            for side, first, size in zip(inside, corner, self.tiling.tile, strict=True)
        ]
        if any(map(any, missing)):
            x = F.pad(x, [n for pair in reversed(self._on_grid(missing)) for n in pair])
        return x[:, 0] if passage.dims == 2 else x

    def _read(self, sides: Sequence[slice]) -> Tensor:
        """The network's input `(C, ...)` in a box of the flow."""
        box = self._on_grid(sides)
        needed = self.way.reach(box)
        values = self.passage.scaling(self._voxels(sides[0], needed))
        return self.way.resample(values, box, needed, fill=numbers(self.passage.outside, self.passage.device))

    def _on_grid(self, sides: Sequence[T]) -> tuple[T, T, T]:
        """What is said of each of the flow's axes, in the order of the passage's grid."""
        first, second, third = (sides[self.order.index(axis)] for axis in range(3))
        return first, second, third

    def _voxels(self, front: slice, needed: Box) -> Tensor:
        """The source's voxels in `needed`, for windows at `front` of the flow's first axis."""
        source, device = self.passage.source.array, self.passage.device
        if not is_gpu(device):
            return torch.from_numpy(_for_torch(source[(slice(None), *needed)], np.float32))
        # All that lies under the windows of one row is held there, in few bytes where it has few.
        _, height, width = self.tiling.shape
        held = self.way.reach(self._on_grid((front, slice(0, height), slice(0, width))))
        if held != self._held:
            self._slab, self._held = self._send(held), held
        return self._slab[(slice(None), *moved(needed, [side.start for side in held]))]

    def _send(self, held: Box) -> Tensor:
        """The source's voxels in `held` on the device; those that the last slab had don't travel again."""
        last = self._held or held
        changed = [axis for axis in range(3) if last[axis] != held[axis]]
        if len(changed) == 1:
            (axis,) = changed
            old, new = last[axis], held[axis]
            start, stop = max(old.start, new.start), min(old.stop, new.stop)
            if start < stop:
                before, after = (
                    self._upload([*held[:axis], end, *held[axis + 1 :]])
                    for end in (slice(new.start, start), slice(stop, new.stop))
                )
                kept = self._slab.narrow(1 + axis, start - old.start, stop - start)
                return torch.cat([before, kept, after], 1 + axis)
        return self._upload(held)

    def _upload(self, box: Sequence[slice]) -> Tensor:
        part = self.passage.source.array[(slice(None), *box)]
        kind = part.dtype if part.dtype in (np.uint8, np.int16) else np.float32
        return self._uploads.send(_for_torch(part, kind))


def _for_torch(part: NDArray, kind: DTypeLike) -> NDArray:
    """`part` of a scan in one piece; torch wants no array that may only be read, such as a mapped file's."""
    if min(part.strides) < 0:  # torch wants none either, and numpy calls a turned axis of one voxel in order
        part = part.copy()
    return np.require(part, kind, ["C", "W"])
