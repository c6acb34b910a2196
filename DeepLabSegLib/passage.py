"""What one run of a network over a scan is to do: everything that `streaming.run` needs, and nothing of how."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.preprocess import Scaling
from DeepLabSegLib.tiling import Activation, Blending

__all__ = ["Decision", "Passage"]


@dataclass(frozen=True)
class Decision:
    """How scores become labels: the largest (`exclusive`), or each class from `threshold` on; and what else is wanted.

    With `foreground_first` background, class 0, is the largest only where it is at least half of all probability.
    `uncertainty` and `probabilities` are those of `Labels`. `layers` is the number of label maps: 1, or one per class
    where classes may overlap.
    """

    classes: int
    exclusive: bool
    layers: int
    threshold: float
    uncertainty: bool = False
    probabilities: bool = False
    foreground_first: bool = False

    @property
    def labels_alone(self) -> bool:
        """Whether nobody wants the scores for themselves."""
        return not (self.uncertainty or self.probabilities)


@dataclass(frozen=True)
class Passage:
    """One run of a network over a scan: what is read, on which grid, in which windows, and how they are put together.

    `grid` has the network's axes (k, j, i); `tile` has three sizes, the first being 1 for a 2D network, whose windows
    are `dims` 2. Scores are averaged over the mirror images along `mirror_axes` of that grid. Per channel and
    normalised are `outside`, the value of what lies outside the scan, and `background`, that up to which a window is
    not looked at; None looks at all.
    """

    source: Image
    scaling: Scaling
    outside: tuple[float, ...]
    grid: Geometry
    tile: tuple[int, int, int]
    dims: int
    overlap: float
    blending: Blending
    activation: Activation
    decision: Decision
    background: tuple[float, ...] | None
    mirror_axes: tuple[int, ...]
    at_once: int
    device: torch.device
    keep_on: torch.device
    keep_as: torch.dtype
