"""What a model knows of all of its labels together, which a network that sees voxel by voxel may miss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.image import Geometry
from DeepLabSegLib.preprocess import LETTERS

__all__ = ["End", "end_label", "keep_largest_piece", "keep_rim"]

Direction = Literal["R", "L", "A", "P", "S", "I"]

ROUNDING = 1e-3
"""mm by which voxels that lie equally far may differ."""

RIM = 2.0
"""mm from what is sure up to which what is doubtful counts."""


@dataclass(frozen=True)
class End:
    """The label `label` reaches no farther `toward` a side of the body than any of the labels `at` does."""

    label: int
    toward: Direction
    at: tuple[int, ...]


def keep_largest_piece(labels: NDArray, doubtful: NDArray[np.bool_] | None = None) -> None:
    """Clear in `(layers, k, j, i)` what isn't connected, by faces of voxels, to the largest part of all labels.

    Voxels that are `doubtful` `(k, j, i)` connect nothing, and stay.
    """
    from scipy import ndimage  # for the models that need it

    sure = _sure(labels, doubtful)
    pieces, count = ndimage.label(sure)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        labels[:, sure & (pieces != sizes.argmax())] = 0


def keep_rim(labels: NDArray, doubtful: NDArray[np.bool_], spacing: Sequence[float]) -> None:
    """Clear in `(layers, k, j, i)` what is `doubtful` `(k, j, i)` and lies farther than `RIM` from what is labelled.

    It is counted in steps through doubtful voxels, of the smallest `spacing`, in mm. Beside a head there may be large
    regions of doubt, in which nothing is to be found.
    """
    from scipy import ndimage

    sure = _sure(labels, doubtful)
    steps = max(1, round(RIM / min(spacing)))
    labels[:, doubtful & ~ndimage.binary_dilation(sure, iterations=steps, mask=sure | doubtful)] = 0


def _sure(labels: NDArray, doubtful: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    sure = np.asarray((labels > 0).any(axis=0))
    return sure if doubtful is None else sure & ~doubtful


def end_label(labels: NDArray, geometry: Geometry, end: End) -> None:
    """Clear in `(layers, k, j, i)` what is beyond `end`; nothing where none of the labels that it ends at is there."""
    there = [far[np.isin(plane, end.at).any(axis=0)] for plane, far in _planes(labels, geometry, end.toward)]
    farthest = max((far.max() for far in there if far.size), default=np.inf)
    for plane, far in _planes(labels, geometry, end.toward):
        plane[(plane == end.label) & (far > farthest + ROUNDING)] = 0


def _planes(labels: NDArray, geometry: Geometry, toward: Direction) -> Iterator[tuple[NDArray, NDArray[np.float64]]]:
    """Per plane k its labels `(layers, j, i)`, a view, and how many mm its voxels `(j, i)` lie toward a side."""
    axis, sign = LETTERS[toward]
    steps = sign * geometry.affine[axis]
    j, i = np.ogrid[: geometry.shape[1], : geometry.shape[2]]
    in_plane = steps[1] * j + steps[2] * i + steps[3]
    for k in range(geometry.shape[0]):
        yield labels[:, k], in_plane + steps[0] * k
