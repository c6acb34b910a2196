"""How well a network does on held-out cases: through the `Segmenter`, on each scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.evaluate import dice
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.segmenter import Segmenter
from DeepLabSegLib.training.cases import Case
from DeepLabSegLib.training.check import read_pair
from DeepLabSegLib.training.planning import TrainingPlan
from DeepLabSegLib.training.prepared import class_indices
from DeepLabSegLib.training.trainer import Validate

__all__ = ["MEAN", "dice_on"]

MEAN = "mean Dice"


def dice_on(cases: Sequence[Case], plan: TrainingPlan, bundle: Bundle, device: str) -> Validate:
    """Dice of `cases`: the mean over labels first, then each label's, which is a mean over the cases that have it.

    What is returned raises `InvalidInput` that names the case where one can't be read any more or segmented.
    """

    def validate(network: DeepLabV3Plus) -> dict[str, float]:
        segmenter = Segmenter(bundle, network, device)
        rows = []
        for case in cases:
            try:
                image, labels = read_pair(case, allow_empty=True)
                found = segmenter.segment(image).array
                wanted = class_indices(labels, image.geometry, plan)
            except InvalidInput as error:
                raise InvalidInput(f"{case.name}: {error}") from None
            rows.append([dice(found == label.value, wanted == label.value) for label in bundle.labels])
        table = np.array(rows)
        seen = ~np.isnan(table)
        means = np.where(seen, table, 0).sum(0) / np.maximum(seen.sum(0), 1)
        scores = {
            f"Dice of {label.name}": float(mean)
            for label, mean, n in zip(bundle.labels, means, seen.sum(0), strict=True)
            if n
        }
        return {MEAN: float(np.mean(list(scores.values()))), **scores}

    return validate
