"""From a scan to its labels in the memory of a slab: windows in, planes of labels out.

Windows are read from the scan one by one, and labels written as soon as the last window that has a say in them has
been seen. Neither the scan on the model's grid nor a class's scores ever exist as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DeepLabSegLib.devices import is_gpu
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.passage import Passage
from DeepLabSegLib.resampling import Box, Way, lengths, permuted
from DeepLabSegLib.tiling import UNDECIDED, Blender, Tiling, Verdict
from DeepLabSegLib.transfer import Downloads
from DeepLabSegLib.windows import Windows

__all__ = ["Found", "entropy", "largest", "run"]

SIDE = 32
"""Sides of the boxes in which a CPU writes labels, in voxels of the finer grid; a GPU takes whole planes."""

NUMBERS = 2**20
"""Class scores that a CPU blends and decides upon at once: they stay in its cache meanwhile."""

GPU_NUMBERS, BYTES_PER_NUMBER = 2**28, 64
"""The most that a GPU takes at once, and how much of its free memory it must have for each."""


@dataclass(frozen=True)
class Found:
    """What a run gives on the source's grid: labels `(layers, k, j, i)`, and what else of `Labels` is wanted.

    `doubtful` `(k, j, i)` is where background would have been the largest without `Decision.foreground_first`.
    """

    labels: NDArray
    doubtful: NDArray[np.bool_] | None = None
    uncertainty: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float16] | None = None


@torch.inference_mode()
def run(
    passage: Passage,
    logits_of: Callable[[Tensor], Tensor],
    on_windows: Callable[[int, int], None],
    on_planes: Callable[[int, int], None],
) -> Found:
    """Segment the source of `passage`.

    `logits_of` takes windows `(N, C, *S)` to logits `(mirrorings, N, classes, *low sizes)`. `on_windows(done, total)`
    is called after each step, `on_planes(done, total)` after each slab of labels that is written once all windows have
    been seen; both may raise to stop. Raises `InvalidInput` where logits in half precision are no numbers.
    """
    order = _order(passage)
    flow = permuted(passage.grid, order)
    tiling = Tiling(flow.shape, _three(passage.tile[n] for n in order), passage.overlap)
    verdict = _verdict(passage)
    blender = Blender(
        tiling, passage.blending, passage.activation, passage.device, passage.keep_on, passage.keep_as, verdict
    )
    windows = Windows(passage, tiling, order)
    writer = _Writer(passage, flow, blender)
    corners = tiling.corners
    lost = torch.zeros((), dtype=torch.bool, device=passage.device)
    for first in range(0, len(corners), passage.at_once):
        group = corners[first : first + passage.at_once]
        seen, batch = windows.read(group)
        found: dict[tuple[int, int, int], Tensor] = {}
        if seen:
            logits = logits_of(batch)
            if passage.keep_as == torch.float16:
                lost |= logits.isnan().any()  # seen at the end: a GPU would be waited for
            logits = logits.unsqueeze(3) if passage.dims == 2 else logits
            logits = logits.permute(0, 1, 2, *(3 + n for n in order))
            found = dict(zip(seen, logits.unbind(1), strict=True))
        for corner in group:
            blender.add(corner, found.get(corner))
        done = first + len(group)
        on_windows(done, len(corners))
        if done < len(corners):
            writer.write(corners[done][0], lambda planes, total: None)
    if lost:
        raise InvalidInput("the network's numbers leave the range of fp16, which ends at 65504; choose bf16 or fp32")
    writer.write(flow.shape[0], on_planes)
    writer.downloads.finish()
    return writer.found


def _three(values: Iterable[int]) -> tuple[int, int, int]:
    first, second, third = values
    return first, second, third


def _order(passage: Passage) -> tuple[int, int, int]:
    """The grid's axes with that in front along which most windows follow each other: least is open at a time."""
    if passage.dims == 2:
        return 0, 1, 2
    steps = [size / tile for size, tile in zip(passage.grid.shape, passage.tile, strict=True)]
    front = int(np.argmax(steps))
    return _three([front, *(n for n in range(3) if n != front)])


def _verdict(passage: Passage) -> Verdict | None:
    """What logits settle by themselves: averages of scores that favour one class, or reach no threshold, do so too.

    None where scores are wanted for themselves, or an activation may make different logits equal.
    """
    decision, name = passage.decision, passage.activation.name
    if is_gpu(passage.device):  # which blends a box sooner than it tells of one
        return None
    if not decision.labels_alone or name not in ("softmax", "sigmoid", "linear"):
        return None
    if decision.exclusive:

        def favoured(logits: Tensor) -> Tensor:
            scores = logits.float().movedim(1, 0)
            labels = largest(scores.clone())
            agreed = (labels == labels[0]).all(0)
            if decision.foreground_first:
                agreed &= ((labels > 0) | (scores[1:].logsumexp(0) <= scores[0])).all(0)
            return labels[0].where(agreed, UNDECIDED).to(torch.int16)

        return favoured
    limit = _logit(decision.threshold)

    def nothing(logits: Tensor) -> Tensor:
        reached = ~(logits < limit).flatten(0, 1).all(0)
        return (reached * UNDECIDED).to(torch.int16)

    return nothing


def _logit(score: float) -> float:
    return math.log(score / (1 - score))


class _Writer:
    """Labels on the source's own grid, written in slabs as the planes that they come from are finished."""

    def __init__(self, passage: Passage, flow: Geometry, blender: Blender) -> None:
        target, decision = passage.source.geometry, passage.decision
        self.decision = decision
        self.blender = blender
        self.downloads = Downloads()
        kind = np.uint8 if decision.classes <= 256 - (not decision.exclusive) else np.uint16
        self.kind = torch.uint8 if kind is np.uint8 else torch.int32
        self.found = Found(
            np.zeros((decision.layers, *target.shape), kind),
            np.zeros(target.shape, bool) if decision.foreground_first else None,
            np.zeros(target.shape, np.float32) if decision.uncertainty else None,
            np.zeros((decision.classes, *target.shape), np.float16) if decision.probabilities else None,
        )
        # The target with that axis in front which runs along the flow's first.
        along = np.array(target.direction) @ np.array(flow.direction[0])
        front = int(np.argmax(np.abs(along)))
        order = [front, *(n for n in range(3) if n != front)]
        self.target = permuted(target, order)
        turned = partial(np.moveaxis, source=[n - 3 for n in order], destination=[-3, -2, -1])
        self._labels = turned(self.found.labels)
        self._doubtful = None if self.found.doubtful is None else turned(self.found.doubtful)
        wanted = (
            (self.found.uncertainty, partial(entropy, exclusive=decision.exclusive)),
            (self.found.probabilities, _likely),
        )
        self._maps = [(turned(array), of_scores) for array, of_scores in wanted if array is not None]
        # Activations that keep the order of logits needn't be computed where nothing is blended or interpolated.
        decided = decision.labels_alone and passage.activation.name in ("softmax", "sigmoid")
        decided &= not decision.foreground_first
        self.way = Way.between(flow, self.target)
        self.raw = decided and blender.alone and not passage.mirror_axes and self.way.copies
        # Which class has the largest score is seen in sums as well, as long as voxels aren't mixed.
        self.averaged = not (decision.labels_alone and decision.exclusive and self.way.copies)
        finer = max(1.0, math.prod(flow.shape) / math.prod(target.shape))
        depth, height, width = self.target.shape
        self.numbers = _numbers_at_once(passage.device)
        gpu = is_gpu(passage.device)
        self.side = max(self.target.shape) if gpu else max(1, round(SIDE / finer ** (1 / 3)))
        plane = min(self.side, height) * min(self.side, width)
        self.depth = max(1, min(self.side, int(self.numbers / (decision.classes * finer * plane))))
        # A GPU would wait for the telling of each window in each slab, so slabs are as thick as windows.
        self.least = max(1, round(blender.tiling.tile[0] * depth / flow.shape[0])) if gpu else 1
        self.needed = self.way.reach_of_planes()  # the flow's
        self.waiting = range(depth)[::-1] if along[front] < 0 else range(depth)

    def write(self, finished: int, on_planes: Callable[[int, int], None]) -> None:
        """Write every plane for which the flow's planes before `finished` are enough."""
        while self.waiting:
            ready = [n for n in self.waiting[: self.depth] if self.needed[n].stop <= finished]
            if len(ready) < min(self.least, self.depth, len(self.waiting)):
                return
            self._write_slab(slice(min(ready), max(ready) + 1))
            self.waiting = self.waiting[len(ready) :]
            if self.waiting:
                self.blender.forget(self.needed[self.waiting[0]].start)
            on_planes(self.target.shape[0] - len(self.waiting), self.target.shape[0])

    def _numbers(self, box: Box) -> int:
        """Class scores that are blended, or interpolated, for `box`: whichever are more."""
        return self.decision.classes * max(math.prod(lengths(box)), math.prod(lengths(self.way.reach(box))))

    def _write_slab(self, planes: slice) -> None:
        _, height, width = self.target.shape
        for j in range(0, height, self.side):
            rows = slice(j, min(j + self.side, height))
            for columns in self._undecided(planes, rows, width):
                self._write_box((planes, rows, columns))

    def _undecided(self, planes: slice, rows: slice, width: int) -> Iterator[slice]:
        """Write the labels that need no scores, and give the columns of the others, as many at once as may be."""
        left = slice(0, 0)
        for i in range(0, width, self.side):
            columns = slice(i, min(i + self.side, width))
            label = self.blender.agreed(self.way.reach((planes, rows, columns)))
            if label is not None:
                self._labels[:, planes, rows, columns] = label
                continue
            joined = slice(left.start, columns.stop)
            if left.stop == i and self._numbers((planes, rows, joined)) <= self.numbers:
                left = joined
                continue
            if left.stop > left.start:
                yield left
            left = columns
        if left.stop > left.start:
            yield left

    def _write_box(self, box: Box) -> None:
        needed = self.way.reach(box)
        scores = self.blender.scores(needed, self.decision.classes, self.raw, self.averaged)
        values = self.way.resample(scores, box, needed)
        for array, of_scores in self._maps:
            self.downloads.take(of_scores(values), array[(..., *box)])
        if self._doubtful is not None:
            doubtful = _doubtful(values)
            self.downloads.take(doubtful, self._doubtful[box])
            values[0].masked_fill_(doubtful, -1)
        self.downloads.take(self._decide(values).to(self.kind), self._labels[(slice(None), *box)])

    def _decide(self, scores: Tensor) -> Tensor:
        """`(classes, ...)` scores, which may be written over, to `(layers, ...)` labels."""
        if self.decision.exclusive:
            return largest(scores)[None]
        threshold = self.decision.threshold
        if self.raw:
            threshold = _logit(threshold)
        values = torch.arange(1, len(scores) + 1, device=scores.device).view(-1, *[1] * (scores.ndim - 1))
        return (scores >= threshold) * values


def _numbers_at_once(device: torch.device) -> int:
    if device.type == "cuda":
        return min(GPU_NUMBERS, max(NUMBERS, torch.cuda.mem_get_info(device.index)[0] // BYTES_PER_NUMBER))
    return GPU_NUMBERS // 16 if is_gpu(device) else NUMBERS


def largest(scores: Tensor) -> Tensor:
    """The first of the largest along the first axis, as `argmax`; on the CPU several times faster."""
    if scores.device.type != "cpu":
        return scores.argmax(0)
    count = len(scores)
    codes = torch.arange(count, 0, -1.0).view(-1, *[1] * (scores.ndim - 1))
    marked = scores.eq_(scores.amax(0)).mul_(codes)
    return (count - marked.amax(0)) % count  # NaN equals nothing, and is background


def _doubtful(scores: Tensor) -> Tensor:
    """Where background, the first class, has more than each other, and less than all of them together."""
    background, others = scores[0], scores[1:]
    return (background >= others.amax(0)) & (background < others.sum(0))


def _likely(scores: Tensor) -> Tensor:
    return scores.clamp(0, 1).half()  # rounding


def entropy(scores: Tensor, exclusive: bool) -> Tensor:
    """`(classes, k, j, i)` probabilities to `(k, j, i)`: their entropy as a share of the largest possible.

    Of classes that may overlap each is a question of its own, and the most uncertain one counts.
    """
    scores = scores.clamp(0, 1)  # rounding
    if exclusive:
        return torch.special.entr(scores).sum(0) / np.log(len(scores))
    return ((torch.special.entr(scores) + torch.special.entr(1 - scores)) / np.log(2)).amax(0)
