"""How well a segmentation agrees with a reference: Dice, surface distance, volume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Labels
from DeepLabSegLib.schema import from_json

__all__ = ["Group", "Scores", "compare", "dice", "groups_by_value", "hausdorff95", "read_groups"]


@dataclass(frozen=True)
class Group:
    """A structure to compare: which label values stand for it on either side; None means any label above 0."""

    prediction: tuple[int, ...] | None = None
    reference: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """`dice` is 0 to 1 and `hausdorff95` in mm, NaN where a side is empty; volumes are in ml."""

    dice: float
    hausdorff95: float
    volume: float
    reference_volume: float

    @property
    def volume_difference(self) -> float:
        """Prediction minus reference, in percent of the reference; NaN for an empty reference."""
        if self.reference_volume == 0:
            return float("nan")
        return 100 * (self.volume - self.reference_volume) / self.reference_volume


def compare(prediction: Labels, reference: Labels, groups: Mapping[str, Group]) -> dict[str, Scores]:
    """Scores per group. Raises `InvalidInput` where the two lie on different grids."""
    if not prediction.geometry.is_close(reference.geometry):
        raise InvalidInput(
            f"prediction and reference lie on different grids ({prediction.geometry.shape} and "
            f"{reference.geometry.shape} voxels, or other positions); resample one to the other first"
        )
    ml = prediction.geometry.voxel_volume / 1000
    scores = {}
    for name, group in groups.items():
        ours, theirs = _mask(prediction, group.prediction), _mask(reference, group.reference)
        scores[name] = Scores(
            dice(ours, theirs),
            hausdorff95(ours, theirs, prediction.geometry.spacing),
            float(np.count_nonzero(ours) * ml),
            float(np.count_nonzero(theirs) * ml),
        )
    return scores


def groups_by_value(prediction: Labels, reference: Labels) -> dict[str, Group]:
    """A group per label value of either side, under the prediction's name where it has one."""
    names = {segment.value: segment.name for labels in (reference, prediction) for segment in labels.segments}
    return {name: Group((value,), (value,)) for value, name in sorted(names.items())}


def read_groups(path: str | Path) -> dict[str, Group]:
    """Groups from JSON: `{"White matter": {"prediction": [4], "reference": [40, 41]}, ...}`; a list may be null."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content:
            raise InvalidInput("an object with a group per name is needed")
        return {name: from_json(Group, value, name) for name, value in content.items()}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} can't be read as groups: {error}") from None


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 2|a∩b| / (|a| + |b|); NaN where both are empty (Dice, Ecology 1945)."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / total) if total else float("nan")


def hausdorff95(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """95th percentile of surface distances in mm, the larger of both directions; NaN where a mask is empty.

    A surface voxel is one with a face neighbour outside the mask; distances are between voxel centres.
    """
    if not a.any() or not b.any():
        return float("nan")
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in ndimage.find_objects((a | b).astype(np.uint8))[0])
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return float(max(np.percentile(to_b[surfaces[0]], 95), np.percentile(to_a[surfaces[1]], 95)))


def _mask(labels: Labels, values: tuple[int, ...] | None) -> NDArray[np.bool_]:
    found = labels.layers > 0 if values is None else np.isin(labels.layers, values)
    return np.logical_or.reduce(found)
