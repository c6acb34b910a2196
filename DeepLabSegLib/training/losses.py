"""What a network is trained to lower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from DeepLabSegLib.models.layers import resize_matrix

__all__ = ["dice_cross_entropy"]


def dice_cross_entropy(coarse: Tensor, target: Tensor, every: int = 1, start: Sequence[int] | None = None) -> Tensor:
    """Mean of cross-entropy, plus one minus the mean soft Dice over classes (Milletari et al., 3DV 2016).

    Parameters
    ----------
    coarse : `(N, classes, *s)`, what `DeepLabV3Plus.coarse_logits` gives; it is enlarged linearly as the network does.
    target : `(N, *S)` class indices on the input's grid.
    every : only each `every`-th voxel along each axis counts, beginning with `start` (0 by default). The logits of a
        volume at full size would take most of a step's time and memory, and neighbours say nearly the same.
    """
    offsets = start or (0,) * (target.ndim - 1)
    for axis, (offset, length) in enumerate(zip(offsets, target.shape[1:], strict=True)):
        kept = slice(offset % min(every, length), None, every)
        # An axis at a time by a matrix is several times faster than in 3D.
        matrix = resize_matrix(coarse.shape[2 + axis], length, coarse.device).to(coarse.dtype)[kept]
        coarse = torch.tensordot(coarse, matrix, dims=([2 + axis], [1])).movedim(-1, 2 + axis)
        index = [slice(None)] * target.ndim
        index[1 + axis] = kept
        target = target[tuple(index)]
    log_probability = coarse.log_softmax(1)
    chosen = target[:, None]
    cross_entropy = -log_probability.gather(1, chosen).mean()
    probability = log_probability.exp()
    wanted = torch.zeros_like(probability).scatter_(1, chosen, 1)
    axes = [n for n in range(probability.ndim) if n != 1]
    overlap, size = (probability * wanted).sum(axes), (probability + wanted).sum(axes)
    return cross_entropy + 1 - ((2 * overlap + 1) / (size + 1)).mean()
