"""Cross-validation: every case of a data set, segmented by the model that didn't learn from it.

    python Testing/evaluation/folds.py DATA MODEL_0 MODEL_1 ... --patient "(.+)-IM-" -o table.csv

MODEL_n is what `deeplabseg train DATA --fold n` gave, with as many `--folds` as there are models and the same
`--patient`, `--seed` and `--allow-empty`; what was left out there as faulty is so here. Reported per label are the mean
Dice over cases, and over patients, all of whose voxels are counted together; each with its 95% interval.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from DeepLabSegLib import load_model
from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.evaluate import INTERVAL_METHOD, compare, groups_of, mean_interval
from DeepLabSegLib.training.cases import find_cases
from DeepLabSegLib.training.check import CheckedData, check_cases
from DeepLabSegLib.training.pairs import read_pair
from DeepLabSegLib.training.planning import Overrides, TrainingPlan, plan
from DeepLabSegLib.training.prepared import class_indices
from DeepLabSegLib.training.split import split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--patient", help="regular expression that finds the patient in a case's name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow-empty", action="store_true", help="take labels without a voxel")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    data = check_cases(*find_cases(options.data, options.patient), allow_empty=options.allow_empty)
    rows = []
    for fold, name in enumerate(options.models):
        segmenter = load_model(name)
        chosen = plan_of(segmenter.bundle, data)
        for case in split(data.cases, len(options.models), fold, options.seed)[1]:
            image, drawn = read_pair(case, allow_empty=True)
            found = segmenter.segment(image)
            reference = replace(found, array=class_indices(drawn, image.geometry, chosen))
            for label, scores in compare(found, reference, groups_of(found, reference)).items():
                if math.isnan(scores.dice):  # it is on neither side
                    continue
                rows.append((label, case.patient, case.name, scores.dice, scores.volume + scores.reference_volume))
    with options.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "patient", "case", "dice", "both_volumes_ml"), *rows])
    for label in dict.fromkeys(row[0] for row in rows):
        of_patient = defaultdict(list)
        for _, patient, _, dice, volume in (row for row in rows if row[0] == label):
            of_patient[patient].append((dice, volume))
        tell(label, "cases", [dice for pairs in of_patient.values() for dice, _ in pairs])
        tell(label, "patients", [pooled(pairs) for pairs in of_patient.values()])
    print(INTERVAL_METHOD)  # noqa: T201


def plan_of(bundle: Bundle, data: CheckedData) -> TrainingPlan:
    """What says which value of the training labels is which label of the model."""
    names = tuple(label.name for label in bundle.labels)
    return plan(data.fingerprint, Overrides(names=names, dims=bundle.network.dims, spacing=bundle.input.spacing))


def pooled(pairs: list[tuple[float, float]]) -> float:
    """Dice of all voxels together, from Dice and both volumes of each case: their product is twice the overlap."""
    dice, volumes = np.transpose(pairs)
    return float(np.average(dice, weights=volumes))


def tell(label: str, of_what: str, values: list[float]) -> None:
    """Mean, interval, median and lowest of `values`."""
    low, high = mean_interval(values) or (np.nan, np.nan)
    print(  # noqa: T201
        f"{label}: {len(values)} {of_what}, mean Dice {np.mean(values):.3f} ({low:.3f} to {high:.3f}), "
        f"median {np.median(values):.3f}, lowest {np.min(values):.3f}"
    )


if __name__ == "__main__":
    main()
