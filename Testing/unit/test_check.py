"""The check of a whole data set: cases that differ from the rest are named, and the rest is kept."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_scan
from training_data import CORE, SHELL, ball, checked, write_data, write_pictures, write_segments, write_volumes

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image, read_labels, write_image, write_labels
from DeepLabSegLib.image import Geometry, Image, Segment
from DeepLabSegLib.training.check import report


def test_every_broken_pair_is_named_and_the_rest_is_kept(tmp_path, rng):
    spoilt = ["nan", "constant", "cut", "fractions", "empty", "away", "colour", "slice", "odd"]
    folder = write_volumes(tmp_path, ["good1", "good2", "good3", "good4", *spoilt], rng)
    images, labels = folder / "images", folder / "labels"
    scan = make_scan(rng)

    def spoil(name: str, array: np.ndarray, geometry: Geometry = scan.geometry, part: Path = images) -> None:
        write_image(Image(array, geometry), part / f"{name}.nii.gz", overwrite=True)

    array = scan.array.copy()
    array[0, 0, 0, 0] = np.nan
    (images / "nan.nii.gz").unlink()
    write_image(replace(scan, array=array), images / "nan.nrrd")  # ITK reads NaN in NIfTI as 0
    spoil("constant", np.full_like(scan.array, 7))
    (labels / "cut.nii.gz").write_bytes((labels / "cut.nii.gz").read_bytes()[:200])
    spoil("fractions", scan.array / 7, part=labels)
    spoil("empty", np.zeros(scan.geometry.shape, np.uint8), part=labels)
    spoil("away", ball(scan.geometry).array, replace(scan.geometry, origin=(900.0, 0.0, 0.0)), labels)
    spoil("colour", np.concatenate([scan.array] * 3))
    plane = replace(scan.geometry, shape=(1, *scan.geometry.shape[1:]))
    spoil("slice", scan.array[:, :1], plane)
    spoil("slice", ball(plane).array, plane, labels)
    strange = ball(scan.geometry).array.copy()
    strange[0, 0, :3] = 99
    spoil("odd", strange, part=labels)

    data = checked(folder)
    assert [case.name for case in data.cases] == ["good1", "good2", "good3", "good4"]
    problems = {fault.name: fault.problem for fault in data.faults}
    expected = {
        "nan": "1 of 17280 voxels are NaN",
        "constant": "channel 0 is constant",
        "cut": "cut.nii.gz",
        "fractions": "holds fractions",
        "empty": "is empty",
        "away": "lies to 0% on its image .* copy the image's header",
        "colour": "has 3 channels, and most images 1",
        "slice": "most images are volumes",
        "odd": "holds the value 99 in 3 voxels, and no other label does",
    }
    assert set(problems) == set(expected) == set(spoilt)
    for name, words in expected.items():
        assert re.search(words, problems[name]), problems[name]
    text = report(data)
    assert "4 of 13 cases can be used" in text
    assert all(problem in text for problem in problems.values())


@pytest.mark.parametrize("shape", [(1, 40, 36), (12, 40, 36)])
@pytest.mark.parametrize("factor", [1000.0, 10.0, 0.001, 2.0])
def test_a_case_in_other_units_than_the_rest_is_named(shape, factor, tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng, shape)
    for path, read in ((folder / "images/b.nii.gz", read_image), (folder / "labels/b.nii.gz", read_labels)):
        part = read(path)
        grid = replace(part.geometry, spacing=tuple(mm * factor for mm in part.geometry.spacing))
        write_image(Image(part.array, grid), path, overwrite=True)
    faults = checked(folder).faults
    assert [fault.name for fault in faults] == ([] if factor == 2 else ["b"])
    assert all("correct the spacing in its header" in fault.problem for fault in faults)


def test_pictures_may_have_any_size(tmp_path, rng):
    folder = write_pictures(tmp_path, "abc", rng, (32, 32))
    write_pictures(tmp_path, "de", rng, (400, 320))
    assert len(checked(folder).cases) == 5


@pytest.mark.parametrize("other", [((6, 8, 8), (1.5, 1.0, 1.0)), ((64, 64, 64), (0.4, 0.3, 0.3))], ids=["crop", "fine"])
def test_small_crops_and_fine_scans_are_in_the_same_units_as_the_rest(other, tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng, (24, 48, 48), (4.0, 2.5, 2.5))
    write_volumes(tmp_path, "d", rng, *other)
    assert not checked(folder).faults


def test_two_good_cases_are_enough_and_one_is_not(tmp_path, rng):
    folder = write_pictures(tmp_path, ["a", "b", "c"], rng)
    (folder / "labels" / "a.png").write_bytes(b"")
    assert len(checked(folder).cases) == 2
    (folder / "labels" / "b.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"(?s)1 pair of .* at least 2.*a: .*a.png is empty.*b: "):
        checked(folder)


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_that_are_1_in_some_and_white_in_others_are_named(dims, tmp_path, rng):
    folder = write_data(dims, tmp_path, rng, "abcd")
    for path in (folder / "labels").iterdir():
        labels = read_labels(path)
        white = 1 if path.name.startswith("b") else 255
        write_labels(replace(labels, array=(labels.array > 0).astype(np.uint8) * white), path, overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "holds the value 1 alone, and others 255 alone" in fault.problem
    assert "write 255 for 1" in fault.problem
    said = {"labels": {"background": "0", "Benign": "1", "Malignant": 255}}  # names make them two classes
    (folder / "dataset.json").write_text(json.dumps(said))
    assert not checked(folder).faults


def test_what_is_white_may_be_a_class_of_its_own(tmp_path, rng):
    """As the voxels that PASCAL VOC leaves open."""
    folder = write_pictures(tmp_path, "abc", rng)
    for path in (folder / "labels").iterdir():
        labels = read_labels(path)
        values = [0, 1, 1] if path.name.startswith("b") else [0, 1, 255]
        write_labels(replace(labels, array=np.choose(labels.array, values).astype(np.uint8)), path, overwrite=True)
    data = checked(folder)
    assert not data.faults
    assert [found.value for found in data.fingerprint.classes] == [1, 255]


def test_a_value_that_no_segment_has_is_named(tmp_path, rng):
    folder = write_segments(tmp_path, rng, {"a": (SHELL, CORE), "b": (SHELL, CORE), "c": (SHELL,)})
    data = checked(folder)
    (fault,) = data.faults
    assert fault.name == "c"
    voxels = np.count_nonzero(read_labels(folder / "c.seg.nrrd").array == 2)
    assert f"holds the value 2 in {voxels} voxels and no segment of it" in fault.problem
    assert [found.name for found in data.fingerprint.classes] == ["Shell", "Core"]


@pytest.mark.parametrize(
    ("others", "faults"),
    [
        ([(SHELL, CORE), (SHELL, CORE)], 0),
        ([(SHELL, CORE), (replace(CORE, value=1), replace(SHELL, value=2))], 2),
        ([(SHELL,), (replace(CORE, value=1),)], 1),
    ],
    ids=["alike", "swapped", "each alone"],
)
def test_a_label_without_names_is_taken_where_those_with_names_agree_on_its_values(others, faults, tmp_path, rng):
    write_segments(tmp_path, rng, dict(zip("ab", others, strict=True)) | {"c": ()})
    for path in tmp_path.glob("*seg.nrrd"):
        labels = read_labels(path)
        array = np.where(labels.array > max(s.value for s in others[0]), 0, labels.array)
        write_labels(replace(labels, array=array), path, overwrite=True)
    data = checked(tmp_path)
    assert [fault.name for fault in data.faults] == ["c"] * faults
    assert all("number Core and Shell in several ways" in fault.problem for fault in data.faults)
    assert [found.cases for found in data.fingerprint.classes] == {0: [3, 3], 1: [1, 1], 2: [2, 2]}[faults]


@pytest.mark.parametrize("results", ["b", "bcd"], ids=["few", "most"])
def test_results_of_a_model_that_learned_from_values_without_names_have_the_classes_of_these(results, tmp_path, rng):
    """Such a model numbers its labels anew, from 1: its `Label 4` has the value 2, which is another class elsewhere."""
    segments = (Segment(1, "Label 2", (9, 9, 9)), Segment(2, "Label 4", (8, 8, 8)))
    folder = write_segments(tmp_path, rng, {name: segments if name in results else () for name in "abcde"})
    for path in folder.glob("*_seg.nrrd"):
        labels = read_labels(path)
        write_labels(replace(labels, array=2 * labels.array), path, overwrite=True)
    data = checked(folder)
    assert not data.faults
    found = [(one.name, one.value, one.cases) for one in data.fingerprint.classes]
    assert found == [("Label 2", 2, 5), ("Label 4", 4, 5)]
