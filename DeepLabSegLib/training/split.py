"""Training and validation cases, parted by patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.training.cases import Case

__all__ = ["split"]


def split(cases: Sequence[Case], folds: int = 5, fold: int = 0, seed: int = 0) -> tuple[list[Case], list[Case]]:
    """Training and validation cases: those of fold number `fold`, counted from 0, of `folds` validate.

    Every patient lies in one fold, every fold holds about as many cases, and the same `seed` makes the same folds
    whatever the order of `cases`.

    Raises
    ------
    InvalidInput : one patient alone, fewer than two folds, more folds than patients, a `fold` that isn't one of them.
    """
    of_patient: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        of_patient[case.patient].append(case)
    if len(of_patient) == 1:
        raise InvalidInput(
            f"all {len(cases)} cases are of one patient, {cases[0].patient!r}, so that none can be held out; choose "
            "0 folds to train on all of them, or correct how the patient is named"
        )
    if not 2 <= folds <= len(of_patient):
        raise InvalidInput(
            f"folds is {folds}, and there are {len(of_patient)} patients; choose from 2 to the number of patients, "
            "or 0 to hold none out"
        )
    if not 0 <= fold < folds:
        raise InvalidInput(f"fold is {fold}; with {folds} folds choose 0 to {folds - 1}")
    patients = sorted(of_patient)
    np.random.default_rng(seed).shuffle(patients)
    sizes = [0] * folds
    home = {}
    # The largest first, each into the fold with the fewest cases: sizes come out as even as can be had simply.
    for patient in sorted(patients, key=lambda patient: -len(of_patient[patient])):
        home[patient] = sizes.index(min(sizes))
        sizes[home[patient]] += len(of_patient[patient])
    parts: tuple[list[Case], list[Case]] = ([], [])
    for patient in sorted(of_patient):
        parts[home[patient] == fold].extend(of_patient[patient])
    return parts
