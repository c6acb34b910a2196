import json
import math
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.evaluate import (
    Group,
    Scores,
    compare,
    dice,
    groups_of,
    hausdorff95,
    lowest_dice,
    mean_interval,
    read_groups,
    summarize,
)
from DeepLabSegLib.files import read_labels, write_labels
from DeepLabSegLib.image import Geometry, Labels, Segment

EVALUATION = Path(__file__).parents[1] / "evaluation"


def box(*slices: slice | int, shape=(20, 20, 20)) -> np.ndarray:
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


@pytest.mark.parametrize("shape", [(1, 40, 40), (40, 1, 40), (40, 40, 1)])
def test_the_surface_of_a_single_slice_lies_in_its_plane(shape):
    """A disc and the same one moved by a voxel: most of the outline moves, and less than a twentieth of the area."""
    grid = np.indices(shape) - np.array([n // 2 for n in shape]).reshape(3, 1, 1, 1)
    disc = (grid**2).sum(0) < 15**2
    moved = np.roll(disc, 1, axis=shape.index(40))
    assert np.count_nonzero(disc & ~moved) < 0.05 * np.count_nonzero(disc)
    assert hausdorff95(disc, moved, (2.0, 2.0, 2.0)) == 2
    assert hausdorff95(disc, disc, (2.0, 2.0, 2.0)) == 0


def test_an_image_of_one_voxel_has_a_distance_too():
    one = np.ones((1, 1, 1), bool)
    assert hausdorff95(one, one, (1.0, 1.0, 1.0)) == 0


def test_one_far_voxel_in_a_hundred_does_not_count():
    a = box(slice(5, 15), slice(5, 15), slice(5, 15))
    b = a.copy()
    b[0, 0, 0] = True
    assert hausdorff95(a, b, (1.0, 1.0, 1.0)) == 0


def test_what_sticks_out_of_either_mask_counts():
    a = box(slice(0, 4), slice(0, 4), slice(0, 4))
    b = a | box(slice(10, 14), slice(0, 4), slice(0, 4))
    assert hausdorff95(a, b, (2.0, 1.0, 1.0)) == hausdorff95(b, a, (2.0, 1.0, 1.0)) == 20


def test_a_voxel_with_all_its_face_neighbours_is_no_surface():
    cross = box(slice(4, 7), 5, 5) | box(5, slice(4, 7), 5) | box(5, 5, slice(4, 7))
    hollow = cross & ~box(5, 5, 5)
    assert hausdorff95(cross, hollow, (1.0, 1.0, 1.0)) == 0


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
    assert list(groups_of(ours, ours)) == ["Label 1", "Label 2"]


def test_segments_of_one_name_are_compared_whatever_their_values_and_layers():
    a, b = box(slice(0, 8)), box(slice(8, 14))
    names = ("Liver", "Spleen")
    ours = Labels(np.stack([a, b]).astype(np.uint8), Geometry(a.shape),
                  tuple(Segment(1, name, (0, 0, 0), layer=n) for n, name in enumerate(names)))  # fmt: skip
    theirs = Labels((a * 2 + b * 1).astype(np.uint8), ours.geometry,
                    (Segment(1, "spleen ", (0, 0, 0)), Segment(2, "Liver", (0, 0, 0))))  # fmt: skip
    groups = groups_of(ours, theirs)
    assert list(groups) == ["Liver", "Spleen"]
    assert [scores.dice for scores in compare(ours, theirs, groups).values()] == [1, 1]


@pytest.mark.parametrize("shape", [(1, 20, 20), (20, 20, 20)])
def test_groups_gather_segments_by_name_too(shape):
    left, right = (box(slice(None), part, shape=shape) for part in (slice(0, 8), slice(5, 14)))
    ours = Labels(np.stack([left, right]).astype(np.uint8), Geometry(shape),
                  (Segment(1, "Left kidney", (0, 0, 0)), Segment(1, "Right kidney", (0, 0, 0), layer=1)))  # fmt: skip
    theirs = labels(np.where(left, 4, 0) | np.where(right & ~left, 5, 0))
    scores = compare(ours, theirs, {
        "Kidneys": Group(("left kidney", "Right kidney"), (4, 5)),
        "Left": Group(("Left kidney",), (4, "nobody's")),
        "Liver": Group(("Liver",), (6,)),
    })  # fmt: skip
    assert [scores[name].dice for name in ("Kidneys", "Left")] == [1, 1]
    assert math.isnan(scores["Liver"].dice)


def test_a_value_that_stands_for_several_segments_is_not_compared_with_a_plain_label_map():
    a, b = box(slice(0, 8)), box(slice(5, 14))
    ours = Labels(np.stack([a, b]).astype(np.uint8), Geometry(a.shape),
                  (Segment(1, "Organ", (0, 0, 0)), Segment(1, "Tumour", (0, 0, 0), layer=1)))  # fmt: skip
    theirs = labels(np.where(b, 2, a))
    for first, second in ((ours, theirs), (theirs, ours)):
        with pytest.raises(InvalidInput, match="value 1 stands for Organ and Tumour"):
            compare(first, second, groups_of(first, second))


def test_values_of_one_name_have_a_row_each():
    array = np.repeat([1, 2, 3, 0], 5)[:, None, None] * np.ones((1, 4, 4))
    names = ("Lesion", "Lesion", "Cyst")
    ours = Labels(array.astype(np.uint8), Geometry(array.shape),
                  tuple(Segment(n, name, (0, 0, 0)) for n, name in enumerate(names, 1)))  # fmt: skip
    theirs = labels(np.where(array == 2, 0, array))
    found = compare(ours, theirs, groups_of(ours, theirs))
    assert {name: scores.dice for name, scores in found.items()} == {"Lesion (1)": 1, "Lesion (2)": 0, "Cyst": 1}


def test_labels_that_a_model_calls_after_the_values_it_learned_are_compared_with_these():
    array = np.repeat([2, 4, 0], 5)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    segments = (Segment(1, "Label 2", (0, 0, 0)), Segment(2, "Label 4", (0, 0, 0)))
    ours, theirs = Labels(array // 2, Geometry(array.shape), segments), labels(array)
    for one, other in ((ours, theirs), (theirs, ours)):
        found = compare(one, other, groups_of(one, other))
        assert {name: scores.dice for name, scores in found.items()} == {"Label 2": 1, "Label 4": 1}


def test_names_of_either_side_are_taken_so_that_an_empty_prediction_counts_for_its_label():
    array = np.repeat([1, 2, 0, 0], 5)[:, None, None] * np.ones((1, 4, 4))
    theirs = Labels(array.astype(np.uint8), Geometry(array.shape),
                    (Segment(1, "Liver", (0, 0, 0)), Segment(2, "Spleen", (0, 0, 0))))  # fmt: skip
    for ours in (labels(array), labels(0 * array)):
        assert list(groups_of(ours, theirs)) == ["Liver", "Spleen"]
        assert list(groups_of(theirs, ours)) == ["Liver", "Spleen"]


@pytest.mark.parametrize("depth", [1, 4])
def test_a_mask_in_colours_is_refused_and_one_in_grey_is_compared(depth):
    mask = np.zeros((depth, 20, 20), np.uint8)
    mask[:, 5:15, 5:15] = 255
    segments = (Segment(255, "Label 255", (0, 0, 0)),)
    red, yellow, grey = (
        Labels(np.stack(rgb), Geometry(mask.shape), segments)
        for rgb in ([mask, 0 * mask, 0 * mask], [mask, mask, 0 * mask], [mask] * 3)
    )
    plain = labels(mask)
    for ours, theirs in ((red, plain), (plain, red), (red, red), (yellow, plain)):
        with pytest.raises(InvalidInput, match="3 numbers per voxel, as a picture in colours"):
            compare(ours, theirs, groups_of(ours, theirs))
    veiled = Labels(np.stack([mask, mask, mask, mask // 2]), Geometry(mask.shape), segments)  # a grey one with alpha
    for ours in (grey, veiled):
        assert compare(ours, plain, groups_of(ours, plain))["Label 255"].dice == 1


def test_segments_in_layers_are_no_colours_whatever_they_are_called():
    layers = np.zeros((2, 3, 8, 8), np.uint8)
    layers[0, :, :5], layers[1, :, 3:] = 1, 2
    segments = tuple(Segment(n + 1, f"Label {n + 1}", (0, 0, 0), layer=n) for n in range(2))
    overlapping = Labels(layers, Geometry((3, 8, 8)), segments)
    found = compare(overlapping, overlapping, groups_of(overlapping, overlapping))
    assert {name: scores.dice for name, scores in found.items()} == {"Label 1": 1, "Label 2": 1}


def test_different_grids_are_not_compared():
    array = np.ones((4, 4, 4))
    with pytest.raises(InvalidInput, match="different grids"):
        compare(labels(array), labels(array, Geometry((4, 4, 4), origin=(1, 0, 0))), {"all": Group()})


def test_a_grid_that_a_format_has_rounded_is_the_same_one(tmp_path):
    """NIfTI's qform holds a rotation by nearly 180 degrees, as of a slightly tilted scan in LPS, to a few digits."""
    tilted = np.linalg.qr(np.array([[1, -0.001, 0.001], [0.001, 1, -0.001], [-0.001, 0.001, 1]])).Q
    directions = [column * np.sign(column.sum()) * sign for column, sign in zip(tilted.T, (-1, -1, 1), strict=True)]
    geometry = Geometry((2, 256, 256), (3.0, 0.9, 0.9), (115, 115, 0), tuple(map(tuple, directions[::-1])))
    ours = labels(np.ones(geometry.shape), geometry)
    write_labels(ours, tmp_path / "b.nii")
    content = bytearray((tmp_path / "b.nii").read_bytes())
    struct.pack_into("<2h", content, 252, 2, 2)  # as of SPM; of a sform with code 1 ITK takes this
    (tmp_path / "b.nii").write_bytes(content)
    theirs = read_labels(tmp_path / "b.nii")
    assert not theirs.geometry.is_close(geometry)
    assert compare(ours, theirs, {"all": Group()})["all"].dice == 1


def test_groups_are_read_strictly(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"white": {"prediction": [4, "Fornix"], "reference": None}}))
    assert read_groups(path) == {"white": Group((4, "Fornix"), None)}
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as Windows' Notepad does
    assert read_groups(path) == {"white": Group((4, "Fornix"), None)}
    wrong = [
        '{"predicted": [4]}',
        '{"prediction": []}',
        '{"prediction": [0]}',
        '{"reference": [-1]}',
        '{"reference": [65536]}',
        '{"reference": [4.0]}',
    ]
    for text in ["{", "[]", "{}", *(f'{{"white": {group}}}' for group in wrong)]:
        path.write_text(text)
        with pytest.raises(InvalidInput, match=r"groups\.json"):
            read_groups(path)
    path.unlink()
    with pytest.raises(InvalidInput, match=r"groups\.json can't be read as groups: it does not exist; check the path"):
        read_groups(path)


NAN = float("nan")


def scores(**values: float) -> dict[str, Scores]:
    return {label: Scores(value, 1.0, 2.0, 1.0) for label, value in values.items()}


def test_a_summary_counts_what_it_leaves_out_and_names_the_worst():
    cases = {"a": scores(x=0.5, y=NAN), "b": scores(x=0.9, y=0.7), "c": scores(x=0.7)}
    found = summarize(cases)
    x, y = found["x"]["dice"], found["y"]["dice"]
    assert (x.n, x.left_out, x.median, x.minimum, x.maximum, x.worst) == (3, 0, 0.7, 0.5, 0.9, "a")
    assert x.mean == pytest.approx(0.7)
    assert x.interval[0] < x.mean < x.interval[1]
    assert (y.n, y.left_out, y.mean, y.interval, y.worst) == (1, 2, 0.7, None, "b")
    assert found["x"]["volume_difference_percent"].mean == 100


def test_a_label_that_no_case_has_is_counted_and_nothing_else():
    found = summarize({"a": scores(x=NAN), "b": scores(x=NAN)})["x"]["dice"]
    assert (found.n, found.left_out, found.interval, found.worst) == (0, 2, None, None)
    assert math.isnan(found.mean)


def test_the_worst_volume_is_the_farthest_on_either_side():
    cases = {name: {"x": Scores(0.9, 1.0, volume, 10.0)} for name, volume in [("more", 12.0), ("less", 5.0)]}
    assert summarize(cases)["x"]["volume_difference_percent"].worst == "less"


def test_the_interval_is_repeatable_and_holds_the_true_mean_about_as_often_as_it_says(rng):
    samples = rng.beta(9, 2, (60, 20))
    intervals = [mean_interval(sample) for sample in samples]
    assert intervals[0] == mean_interval(samples[0])
    assert 0.85 < np.mean([low < 9 / 11 < high for low, high in intervals]) <= 1


@pytest.mark.parametrize(("values", "interval"), [([], None), ([0.8], None), ([0.8, 0.8, 0.8], (0.8, 0.8))])
def test_few_or_equal_values_have_a_plain_interval(values, interval):
    assert mean_interval(values) == interval


def test_the_lowest_cases_come_first_and_perfect_ones_never():
    cases = {"a": scores(x=0.9, y=0.1), "b": scores(x=0.6, y=NAN), "c": scores(x=0.2, y=0.95), "d": scores(x=1, y=1)}
    assert lowest_dice(cases, 2, "x") == ["c", "b"]
    assert lowest_dice(cases, 9, "y") == ["a", "c"]
    assert lowest_dice(cases, 9) == ["a", "c", "b"]


def test_the_groups_of_the_head_share_no_value_between_structures():
    groups = read_groups(EVALUATION / "head_mri_structures_dlmuse.json")
    single = {name: group for name, group in groups.items() if group.prediction and len(group.prediction) == 1}
    assert [group.prediction for group in single.values()] == [(value,) for value in range(1, 18)]
    values = [value for group in single.values() for value in group.reference]
    assert len(values) == len(set(values))
    assert set(groups["Brain"].reference) - set(values) == {75, 76}, "the basal forebrain has no counterpart"
    assert set(values) - set(groups["Brain"].reference) == set(single["Cerebrospinal fluid"].reference)
    # White and grey matter are the sums of structures, but for the basal forebrain.
    for name in ("White matter", "Grey matter"):
        parts = [group for group in single.values() if group.prediction[0] in groups[name].prediction]
        assert {v for part in parts for v in part.reference} == set(groups[name].reference) - {75, 76}


def test_a_peer_is_measured_by_the_same_regions_of_the_reference():
    ours, theirs = (read_groups(EVALUATION / f"{name}_dlmuse.json") for name in ("head_mri_structures", "brainchop"))
    assert {name: group.reference for name, group in theirs.items()} == {name: ours[name].reference for name in theirs}
    assert set(ours) - set(theirs) == {"Intracranial volume", "Cerebrospinal fluid"}, "it has no label of fluid"


def test_a_peer_labels_a_scan_in_its_own_place_and_keeps_the_largest_piece(tmp_path, monkeypatch):
    # A network of one channel that moves the scan 2 voxels to the left and labels what is brighter than half of white.
    one, left = np.zeros((2, 3, 3, 3), np.float32)
    one[1, 1, 1] = left[0, 1, 1] = 1
    kernels = [one, left, *[one] * 7, np.eye(1, 18, 5)]
    biases = [*[[0]] * 9, [0.5, *[-1] * 4, 0, *[-1] * 12]]
    pairs = zip(kernels, biases, strict=True)
    np.concatenate([np.ravel(part) for pair in pairs for part in pair]).astype(np.float32).tofile(
        tmp_path / "model.bin"
    )

    array = np.zeros((30, 36, 40), np.int16)  # axes (superior, posterior, left)
    array[8:20, 10:24, 12:28] = 100
    array[2:5, 10:24, 12:28] = 100
    array[12, 12, 14] = 10000  # a spark that doesn't set what white is
    scan = sitk.GetImageFromArray(array)
    scan.SetOrigin((-31, 12, 45))
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(sitk.DICOMOrient(scan, "PIR"), tmp_path / "scans" / "a.nii.gz")

    monkeypatch.setattr(sys, "argv", ["brainchop.py", "model.bin", "scans", "-o", "found"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EVALUATION / "brainchop.py"), run_name="__main__")
    found = sitk.ReadImage(tmp_path / "found" / "a.nii.gz")
    assert found.GetDirection() == pytest.approx(sitk.DICOMOrient(scan, "PIR").GetDirection())
    found = sitk.DICOMOrient(found, "LPS")
    wanted = np.zeros_like(array)
    wanted[8:20, 10:24, 14:30] = 5
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), wanted)
