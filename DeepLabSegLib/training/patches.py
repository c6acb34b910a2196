"""Training pairs, each a pure function of its number: windows of prepared cases, posed and changed at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.training.augment import Augmentation, augment_intensity
from DeepLabSegLib.training.deformation import Deformation, sample_linear, sample_nearest
from DeepLabSegLib.training.draw import Draw
from DeepLabSegLib.training.planning import TrainingPlan
from DeepLabSegLib.training.prepared import PreparedCase

__all__ = ["Patches"]

FOREGROUND_SHARE = 2 / 3
"""Patches that are centred at a voxel of a class; the rest lie anywhere."""


class Patches(Dataset[tuple[Tensor, Tensor]]):
    """Pairs `(image (C, *S) float32, target (*S) int64)` of the plan's tile, by number.

    Pair `index` is drawn from `seed` and `index` alone, so that a run that is resumed, or shared among processes, sees
    the same pairs. Of each stretch of `len(cases)` numbers every case has one, in an order of its own.

    A patch lies on the image as far as it can, as windows do at inference: centred where the image is smaller, without
    `augmentation`, and anywhere around it with. What lies outside is 0 and background.

    Parameters
    ----------
    cases : at least one.
    plan : that which the cases were prepared with.
    augmentation : None takes windows as they are.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        plan: TrainingPlan,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not cases:
            raise InvalidInput("there are no cases to take patches of; give at least one")
        self.cases = tuple(cases)
        self.plan = plan
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(_seed(self.seed, index))
        case = self.cases[self._turn(index)]
        draw = Draw(torch.device("cpu"), generator)
        centre = self._centre(case, draw)
        pose = Deformation()
        if self.augmentation is not None:
            pose = self.augmentation.deformation(self.plan, case.spacing, draw)
        points = pose.points(self.plan.tile, case.spacing, centre, case.spacing, generator=generator)
        image, target, inside = _read(case, points)
        if self.augmentation is not None:
            image = augment_intensity(image, self.augmentation, generator, self.plan.planar)
        image = image * inside
        return (image[:, 0], target[0]) if self.plan.network.dims == 2 else (image, target)

    def _turn(self, index: int) -> int:
        """Which case pair `index` is of."""
        stretch, place = divmod(index, len(self.cases))
        order = torch.Generator().manual_seed(_seed(self.seed, stretch, 1))
        return int(torch.randperm(len(self.cases), generator=order)[place])

    def _centre(self, case: PreparedCase, draw: Draw) -> Tensor:
        """Position of the patch's middle in the case, in voxels; its voxels are the case's."""
        voxel = None
        if (positions := case.positions()) and draw.chance(FOREGROUND_SHARE):
            rows = positions[draw.whole(0, len(positions) - 1)]
            voxel = rows[draw.whole(0, len(rows) - 1)]
        corner = []
        for axis, (tile, size) in enumerate(zip(self.plan.tile, case.shape, strict=True)):
            low, high = min(0, size - tile), max(0, size - tile)
            if low < 0 and self.augmentation is None:
                corner.append(-((tile - size) // 2))  # as `tiling.Tiling` places it
            elif low < 0 or voxel is None:
                corner.append(draw.whole(low, high))
            else:
                corner.append(int(np.clip(voxel[axis] - tile // 2, low, high)))
        return torch.tensor([first + (n - 1) / 2 for first, n in zip(corner, self.plan.tile, strict=True)])


def _read(case: PreparedCase, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image `(C, *points)`, class indices, and whether a point lies on the image, from the block that `points` need."""
    flat = points.flatten(1)
    ends = torch.stack([flat.amin(1), flat.amax(1)]).numpy()
    last = np.array(case.shape) - 1
    low = np.clip(np.floor(ends[0]), 0, last).astype(int)
    high = np.clip(np.ceil(ends[1]), 0, last).astype(int) + 1
    block = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    points = points - torch.tensor(low, dtype=points.dtype).view(3, 1, 1, 1)
    image = sample_linear(_tensor(case.image()[(slice(None), *block)], np.float32), points)
    # One more than the class, so that 0 is what lies outside.
    found = sample_nearest(_tensor(case.label()[block], np.int64) + 1, points)
    return image, (found - 1).clamp_min_(0), found > 0


def _tensor(part: NDArray, kind: type) -> Tensor:
    return torch.from_numpy(np.array(part, dtype=kind))


def _seed(*numbers: int) -> int:
    """A seed of its own for every combination of `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
