"""A network over an image larger than its window: evenly spread tiles, blended.

Sizes and shapes run over the network's spatial axes, two or three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.errors import InvalidInput

__all__ = ["Blending", "mirrored", "predict", "tile_importance", "tile_starts"]

Blending = Literal["gaussian", "constant"]


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


def mirrored(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`network` averaged over the 4 (2D) or 8 (3D) mirror images of its input `(N, C, *S)`: test-time augmentation."""

    def average(x: Tensor) -> Tensor:
        axes = range(2, x.ndim)
        turns = [turn for count in range(x.ndim - 1) for turn in combinations(axes, count)]
        total = network(x).float()
        for turn in turns[1:]:
            total += network(x.flip(turn)).float().flip(turn)
        return total / len(turns)

    return average


@torch.inference_mode()
def predict(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: Sequence[int] | None,
    *,
    overlap: float,
    blending: Blending,
    multiple: int = 1,
    batch: int,
    device: torch.device,
    on_tile: Callable[[int, int], None],
) -> Tensor:
    """Class scores of `x`: `(N, C, *S) -> (N, classes, *S)`, blended from tiles, on the CPU.

    `tile` None takes the whole extent, rounded up to a `multiple`: a network whose maps don't fit into each other a
    whole number of times sees them slightly out of place. An image smaller than the tile is padded with zeros on both
    sides, as the reference does. `batch` images go through the network at once; `on_tile(done, total)` is called
    after each such step and may raise to stop.
    """
    window = tuple(tile or (-(-s // multiple) * multiple for s in x.shape[2:]))
    lacking = [max(0, t - s) for t, s in zip(window, x.shape[2:], strict=True)]
    inner = tuple(slice(n // 2, n // 2 + s) for n, s in zip(lacking, x.shape[2:], strict=True))
    if any(lacking):
        x = F.pad(x, [side for n in reversed(lacking) for side in (n // 2, n - n // 2)])
    shape = tuple(x.shape[2:])
    starts = [tile_starts(s, t, overlap) for s, t in zip(shape, window, strict=True)]
    areas = [tuple(slice(n, n + t) for n, t in zip(corner, window, strict=True)) for corner in product(*starts)]
    importance = tile_importance(window, blending)
    total_importance = torch.zeros(shape)
    for area in areas:
        total_importance[area] += importance
    total = len(areas) * -(-len(x) // batch)
    scores: Tensor | None = None
    done = 0
    for first in range(0, len(x), batch):
        images = x[first : first + batch]
        for area in areas:
            # A fresh tensor: a view's strides can read as channels last and slow the whole network down.
            part = images[(slice(None), slice(None), *area)].clone(memory_format=torch.contiguous_format).to(device)
            result = network(part).float().cpu()
            if result.shape[2:] != part.shape[2:]:
                raise InvalidInput(
                    f"the network turns a tile of {tuple(part.shape[2:])} into {tuple(result.shape[2:])}; "
                    "set head_upsample to None, so that sizes agree"
                )
            if scores is None:
                scores = result.new_zeros((len(x), result.shape[1], *shape))
            scores[(slice(first, first + batch), slice(None), *area)] += result.mul_(importance)
            done += 1
            on_tile(done, total)
    if scores is None:
        raise InvalidInput("there is no image to segment; the batch is empty")
    return scores.div_(total_importance)[(slice(None), slice(None), *inner)]
