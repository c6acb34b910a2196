import json
import math

import numpy as np
import pytest

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.evaluate import Group, compare, dice, groups_by_value, hausdorff95, read_groups
from DeepLabSegLib.image import Geometry, Labels, Segment


def box(*slices: slice, shape=(20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def test_dice_of_known_boxes():
    a = box(slice(0, 10), slice(0, 10), slice(0, 10))
    b = box(slice(5, 15), slice(0, 10), slice(0, 10))
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1
    assert dice(a, ~a & False) == 0
    assert math.isnan(dice(a & False, a & False))


def test_a_shifted_box_has_the_distance_of_its_shift_in_mm():
    a = box(slice(5, 15), slice(5, 15), slice(5, 15))
    b = box(slice(8, 18), slice(5, 15), slice(5, 15))
    assert hausdorff95(a, b, (2.0, 1.0, 1.0)) == pytest.approx(6.0)
    assert hausdorff95(a, a, (1.0, 1.0, 1.0)) == 0
    assert math.isnan(hausdorff95(a, a & False, (1.0, 1.0, 1.0)))


def test_one_far_voxel_in_a_hundred_does_not_count():
    a = box(slice(5, 15), slice(5, 15), slice(5, 15))
    b = a.copy()
    b[0, 0, 0] = True
    assert hausdorff95(a, b, (1.0, 1.0, 1.0)) == 0


def labels(array: np.ndarray, geometry: Geometry | None = None) -> Labels:
    values = [int(v) for v in np.unique(array) if v]
    segments = tuple(Segment(v, f"Label {v}", (0, 0, 0)) for v in values)
    return Labels(array.astype(np.uint8), geometry or Geometry(array.shape), segments)


def test_groups_gather_values_on_either_side():
    ours = labels(np.repeat([1, 2, 0, 0], 5)[:, None, None] * np.ones((1, 4, 4)))
    theirs = labels(np.repeat([40, 41, 7, 0], 5)[:, None, None] * np.ones((1, 4, 4)))
    groups = {"white": Group((1, 2), (40, 41)), "all": Group()}
    scores = compare(ours, theirs, groups)
    assert scores["white"].dice == 1
    assert scores["all"].dice == pytest.approx(2 * 10 / 25)
    assert scores["all"].volume_difference == pytest.approx(-100 / 3)
    assert list(groups_by_value(ours, ours)) == ["Label 1", "Label 2"]


def test_different_grids_are_not_compared():
    array = np.ones((4, 4, 4))
    with pytest.raises(InvalidInput, match="different grids"):
        compare(labels(array), labels(array, Geometry((4, 4, 4), origin=(1, 0, 0))), {"all": Group()})


def test_groups_are_read_strictly(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"white": {"prediction": [4], "reference": None}}))
    assert read_groups(path) == {"white": Group((4,), None)}
    for text in ["{", "[]", "{}", '{"white": {"predicted": [4]}}']:
        path.write_text(text)
        with pytest.raises(InvalidInput, match=r"groups\.json"):
            read_groups(path)
