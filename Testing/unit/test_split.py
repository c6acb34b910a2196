"""Training and validation cases are parted by patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.training.cases import Case
from DeepLabSegLib.training.split import split


def test_a_patient_is_never_on_both_sides_and_folds_cover_everything_once():
    cases = [Case(f"c{n:03}", (), Path(), f"p{n % 7 if n < 60 else n}") for n in range(80)]
    validated = []
    for fold in range(4):
        training, validation = split(cases, folds=4, fold=fold, seed=3)
        assert not {case.patient for case in training} & {case.patient for case in validation}
        assert len(training) + len(validation) == len(cases)
        assert 15 <= len(validation) <= 25
        assert split(cases[::-1], folds=4, fold=fold, seed=3) == (training, validation)
        validated += validation
    assert sorted(case.name for case in validated) == [case.name for case in cases]
    assert split(cases, seed=1) != split(cases, seed=2)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (4, 0), (2, 2), (2, -1)])
def test_folds_that_cannot_be_made_are_refused(folds, fold):
    cases = [Case(f"c{n}", (), Path(), f"p{n % 3}") for n in range(9)]
    with pytest.raises(InvalidInput, match="choose"):
        split(cases, folds, fold)
