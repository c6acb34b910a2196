"""A network's windows, read from a scan as it lies in memory: resampled, normalised and turned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.devices import is_gpu
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.passage import Passage
from DeepLabSegLib.preprocess import numbers
from DeepLabSegLib.region import crop
from DeepLabSegLib.resampling import Box, part, reach, resample
from DeepLabSegLib.tiling import Corner, Tiling

__all__ = ["Windows"]


class Windows:
    """The windows of `tiling` on the grid `flow`, which is the passage's with its axes in another `order`."""

    def __init__(self, passage: Passage, flow: Geometry, tiling: Tiling, order: Sequence[int]) -> None:
        self.passage = passage
        self.flow = flow
        self.tiling = tiling
        self.order = order
        self._batch = torch.empty(0)
        self._front: int | None = None
        self._slab = torch.empty(0), passage.source.geometry

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
        inside: Box = tuple(self.tiling.inside(corner))  # type: ignore[assignment]
        target = part(self.flow, inside)
        values, given = self._voxels(inside, target)
        x = resample(passage.scaling(values), given, target, fill=numbers(passage.outside, passage.device))
        if passage.background is not None:
            limits = numbers(passage.background, passage.device).view(-1, 1, 1, 1)
            if bool((x <= limits).all()):
                return None
        sides = []
        for side, first, size in zip(inside, corner, self.tiling.tile, strict=True):
            sides.append((side.start - first, first + size - side.stop))
        if any(map(any, sides)):
            x = F.pad(x, [n for pair in reversed(sides) for n in pair])
        x = x.permute(0, *(1 + int(n) for n in np.argsort(self.order)))
        return x[:, 0] if passage.dims == 2 else x

    def _voxels(self, inside: Box, target: Geometry) -> tuple[Tensor, Geometry]:
        """The source's voxels that `target` is made of, and where they lie."""
        source = self.passage.source
        if not is_gpu(self.passage.device):
            given = crop(source, reach(source.geometry, target))
            return torch.from_numpy(np.ascontiguousarray(given.array, dtype=np.float32)), given.geometry
        if inside[0].start != self._front:
            # All that lies under the windows of one row goes to the GPU at once, in few bytes where it has few.
            self._front = inside[0].start
            _, height, width = self.flow.shape
            row = part(self.flow, (inside[0], slice(0, height), slice(0, width)))
            under = crop(source, reach(source.geometry, row))
            kind = under.array.dtype if under.array.dtype in (np.uint8, np.int16) else np.float32
            slab = torch.from_numpy(np.ascontiguousarray(under.array, dtype=kind)).to(self.passage.device)
            self._slab = slab, under.geometry
        slab, geometry = self._slab
        box = reach(geometry, target)
        return slab[(slice(None), *box)], part(geometry, box)
