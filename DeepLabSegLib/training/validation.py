"""How well a network does on held-out cases: through the `Segmenter`, on each scan's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.segmenter import Segmenter
from DeepLabSegLib.training.cases import Case
from DeepLabSegLib.training.pairs import read_pair
from DeepLabSegLib.training.planning import TrainingPlan
from DeepLabSegLib.training.prepared import class_indices
from DeepLabSegLib.training.trainer import Validate

__all__ = ["MEAN", "dice_on", "lacking"]

MEAN = "mean Dice"


def dice_on(cases: Sequence[Case], plan: TrainingPlan, bundle: Bundle, device: str) -> Validate:
    """Dice of `cases`: the mean over labels first, then each label's, which is a mean over the cases that have it.

    What is found of a label in the others lessens that mean as it would the Dice of all voxels together; counted as a
    case with a Dice of 0, one wrong voxel would weigh as much as a case that is missed.

    What is returned raises `InvalidInput` that names the case where one can't be read any more or segmented.
    """

    def validate(network: DeepLabV3Plus) -> dict[str, float]:
        segmenter = Segmenter(bundle, network, device)
        rows = []
        for case in cases:
            with _named(case):
                image, labels = read_pair(case, allow_empty=True)
                found = segmenter.segment(image).array
                wanted = class_indices(labels, image.geometry, plan)
            rows.append([_counts(found == label.value, wanted == label.value) for label in bundle.labels])
        overlaps, sizes, has = np.moveaxis(np.array(rows), 2, 0)  # (cases, labels) each
        means = (2 * overlaps / np.maximum(sizes, 1)).sum(0) / np.maximum(has.sum(0), 1)
        means *= (sizes * has).sum(0) / np.maximum(sizes.sum(0), 1)
        scores = {
            f"Dice of {label.name}": float(mean)
            for label, mean, seen in zip(bundle.labels, means, has.any(0), strict=True)
            if seen
        }
        return {MEAN: float(np.mean(list(scores.values()))), **scores}

    return validate


def lacking(cases: Sequence[Case], plan: TrainingPlan) -> list[str]:
    """Names of the classes that none of `cases` has; only so many cases are read as it takes to find them all.

    Raises `InvalidInput` as what `dice_on` returns does.
    """
    left = {label.value: label.name for label in plan.labels}
    for case in cases:
        if not left:
            break
        with _named(case):
            image, labels = read_pair(case, allow_empty=True)
            for value in np.unique(class_indices(labels, image.geometry, plan)).tolist():
                left.pop(value, None)
    return list(left.values())


def _counts(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> tuple[int, int, bool]:
    """Voxels in both masks, those of one and the other, and whether anything is wanted."""
    return int((found & wanted).sum()), int(found.sum() + wanted.sum()), bool(wanted.any())


@contextmanager
def _named(case: Case) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{case.name}: {error}") from None
