"""From files to training pairs: what is found, what is refused, and what a network is trained on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import make_network, make_scan, physically_equal
from PIL import Image as Picture
from PIL import ImageFilter
from scipy import ndimage
from scipy.spatial import cKDTree

from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image, read_labels, write_image, write_labels
from DeepLabSegLib.image import AXIS_ALIGNED, Geometry, Image, Labels, Segment, Terminology
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.segmenter import Segmenter
from DeepLabSegLib.tiling import Tiling
from DeepLabSegLib.training.augment import Augmentation, augment_intensity
from DeepLabSegLib.training.cases import Case, find_cases
from DeepLabSegLib.training.check import CheckedData, check_cases, report
from DeepLabSegLib.training.deformation import Deformation
from DeepLabSegLib.training.pairs import on_grid
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, TrainingPlan, plan
from DeepLabSegLib.training.prepared import PreparedCase, prepare
from DeepLabSegLib.training.split import split

STILL = Augmentation(
    brightness_share=0, contrast_share=0, gamma_share=0, noise_share=0, blur_share=0, resolution_share=0
)
"""Pose and shape alone."""


# --- making data -----------------------------------------------------------------------------------------------------


def ball(geometry: Geometry) -> Labels:
    """A ball of value 2 in one of value 1, in the middle."""
    axes = [(np.arange(n) - (n - 1) / 2) / n for n in geometry.shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return Labels((radius < 0.4).astype(np.uint8) + (radius < 0.2), geometry)


def write_volumes(folder: Path, names, rng, shape=(12, 40, 36), spacing=(3.0, 1.5, 1.2)) -> Path:
    """A folder with `images` and `labels`, NIfTI."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        scan = make_scan(rng, shape, spacing)
        write_image(scan, folder / "images" / f"{name}.nii.gz")
        write_labels(ball(scan.geometry), folder / "labels" / f"{name}.nii.gz")
    return folder


def write_pictures(folder: Path, names, rng, size=(60, 48)) -> Path:
    """A folder with `images` and `labels`, PNG."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        grid = Geometry((1, *size))
        grey = make_scan(rng, (1, *size)).array[0, 0]
        grey = (255 * (grey - grey.min()) / np.ptp(grey)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(grey), folder / "images" / f"{name}.png")
        write_labels(ball(grid), folder / "labels" / f"{name}.png")
    return folder


def write_data(dims: int, folder: Path, rng, names=("a", "b", "c")) -> Path:
    return write_pictures(folder, names, rng) if dims == 2 else write_volumes(folder, names, rng)


def checked(folder: Path) -> CheckedData:
    return check_cases(*find_cases(folder))


def prepared(dims: int, folder: Path, rng, **overrides) -> tuple[list[PreparedCase], TrainingPlan]:
    data = checked(write_data(dims, folder / "data", rng))
    made = plan(data.fingerprint, Overrides(**overrides))
    return prepare(data.cases, made, folder / "prepared"), made


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- finding cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "images"),
    [
        (["imagesTr/x.nii.gz", "imagesTr/._x.nii.gz", "labelsTr/x.nii.gz"], ["x.nii.gz"]),
        (["imagesTr/x_0001.nrrd", "imagesTr/x_0000.nrrd", "labelsTr/x.nrrd"], ["x_0000.nrrd", "x_0001.nrrd"]),
        (["images/x.png", "masks/x_mask.png"], ["x.png"]),
        (["Images/x.mha", "Segmentations/x.seg.nrrd"], ["x.mha"]),
        (["images/x_0007.png", "labels/x_0007.png"], ["x_0007.png"]),
        (["x.nii.gz", "x.seg.nrrd"], ["x.nii.gz"]),
        (["x.nrrd", "x-seg.nrrd"], ["x.nrrd"]),
        (["x_T1w.nii.gz", "x_dseg.nii.gz"], ["x_T1w.nii.gz"]),
        (["x_image.png", "x_label.png", "readme.txt"], ["x_image.png"]),
        (["x/image.nii.gz", "x/label.nii.gz", "notes.png"], ["image.nii.gz"]),
        (["x/CT.nrrd", "x/Segmentation.seg.nrrd", "x/Master Scene View.png", "x/x.mrml", ".git/a.png"], ["CT.nrrd"]),
    ],
)
def test_every_usual_layout_of_a_folder_is_understood(files, images, tmp_path):
    touch(*(tmp_path / file for file in files))
    (case,), faults = find_cases(tmp_path)
    assert [fault.name for fault in faults] == ["notes"] * ("notes.png" in files)
    assert [path.name for path in case.images] == images
    assert case.name.startswith("x")
    assert case.label.exists()


def test_what_has_no_partner_is_named_and_the_rest_kept(tmp_path):
    touch(*(tmp_path / "images" / f"{name}.png" for name in "abc"), tmp_path / "images" / "b.jpg")
    touch(*(tmp_path / "labels" / f"{name}.png" for name in "abd"))
    cases, faults = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a"]
    problems = {fault.name: fault.problem for fault in faults}
    assert "there are 2 images (b.jpg, b.png); keep one" in problems["b"]
    assert "c.png has no label" in problems["c"]
    assert "d.png has no image" in problems["d"]


def test_a_case_without_one_of_the_channels_is_named(tmp_path):
    names = ["a_0000", "a_0001", "b_0000", "b_0001", "c_0000"]
    touch(*(tmp_path / "imagesTr" / f"{name}.nii.gz" for name in names))
    touch(*(tmp_path / "labelsTr" / f"{name}.nii.gz" for name in "abc"))
    cases, (fault,) = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a", "b"]
    assert fault.name == "c"
    assert "channels 0000, and most cases 0000, 0001" in fault.problem


def test_images_of_the_same_names_in_most_cases_folders_are_channels(tmp_path):
    touch(*(tmp_path / case / f"{name}.nii" for case in ("a", "b") for name in (f"{case}_T1", f"{case}-FLAIR", "seg")))
    touch(tmp_path / "c/c_T1.nii", tmp_path / "c/seg.nii", tmp_path / "d/T1.nii", tmp_path / "d/FLAIR.nii")
    touch(*(tmp_path / "e" / f"{name}.nii" for name in ("T1", "FLAIR", "seg", "tumour_mask")))
    cases, faults = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a", "b"]
    assert {case.channels for case in cases} == {("FLAIR", "T1")}
    assert [path.name for path in cases[0].images] == ["a-FLAIR.nii", "a_T1.nii"]
    problems = {fault.name: fault.problem for fault in faults}
    assert "channels T1, and most cases FLAIR, T1" in problems["c"]
    assert "has no label" in problems["d"]
    assert "there are 2 labels (seg.nii, tumour_mask.nii)" in problems["e"]


def test_a_folder_of_a_case_with_several_images_that_no_other_has_is_named_and_left(tmp_path):
    touch(*(tmp_path / name for name in ("a/CT.nrrd", "a/CT.seg.nrrd", "b/MR.nrrd", "b/MR_seg.nrrd")))
    touch(*(tmp_path / "c" / name for name in ("before.nrrd", "after.nrrd", "Segmentation.seg.nrrd")))
    cases, (fault,) = find_cases(tmp_path)
    assert [case.images[0].name for case in cases] == ["CT.nrrd", "MR.nrrd"]
    assert fault.name == "c"
    assert "there are 2 images (after.nrrd, before.nrrd); keep one" in fault.problem


@pytest.mark.parametrize(
    ("name", "rows", "channels"),
    [
        (
            "table.csv",
            ["Name, T1,FLAIR,Label,Patient", "one,t1.nii,fl.nii,seg.nii,P1", ",t1.nii,no.nii,seg.nii,"],
            ("T1", "FLAIR"),
        ),
        (
            "table.tsv",
            ["image1\timage2\tmask\tpatient\tname", "t1.nii\tfl.nii\tseg.nii\tP1\tone", "t1.nii\t\tseg.nii\t\t"],
            ("image1", "image2"),
        ),
    ],
)
def test_a_table_names_channels_label_and_patient(name, rows, channels, tmp_path):
    touch(*(tmp_path / f"{stem}.nii" for stem in ("t1", "fl", "seg")))
    (tmp_path / name).write_text("\n".join(rows), encoding="utf-8")
    (case,), (fault,) = find_cases(tmp_path / name)
    assert case == Case("one", (tmp_path / "t1.nii", tmp_path / "fl.nii"), tmp_path / "seg.nii", "P1", channels)
    assert fault.name == "t1"
    assert "row 3" in fault.problem


def test_cases_of_a_table_with_equal_file_names_are_told_apart(tmp_path):
    rows = [f"{folder}/image.nii,{folder}/label.nii" for folder in ("p1", "p2")]
    touch(*(tmp_path / path for row in rows for path in row.split(",")))
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    cases, faults = find_cases(tmp_path / "table.csv")
    assert not faults
    assert len({case.name for case in cases}) == 2


@pytest.mark.parametrize(("patients", "kept"), [(("P1", "P1"), 2), (("P1", "P2"), 1), (("", ""), 1)])
def test_a_label_that_a_table_names_twice_is_never_learned_and_held_out(patients, kept, tmp_path):
    touch(tmp_path / "t1.nii", tmp_path / "t2.nii", tmp_path / "seg.nii")
    rows = [f"{image},seg.nii,{patient}" for image, patient in zip(("t1.nii", "t2.nii"), patients, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,patient", *rows]), encoding="utf-8")
    cases, faults = find_cases(tmp_path / "table.csv")
    assert len(cases) == kept
    assert ["it has the label of t1, seg.nii" in fault.problem for fault in faults] == [True] * (2 - kept)


@pytest.mark.parametrize(("expression", "kept"), [(None, 2), ("(.)_v1", 4)])
def test_an_image_with_the_labels_of_two_raters_is_never_learned_and_held_out(expression, kept, tmp_path):
    rows = [f"{image}_v1.nii,{rater}_{image}.nii" for image in "ab" for rater in ("one", "two")]
    touch(*(tmp_path / name for row in rows for name in row.split(",")))
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    cases, faults = find_cases(tmp_path / "table.csv", expression)
    assert len(cases) == kept
    assert ["it has the image of" in fault.problem for fault in faults] == [True] * (4 - kept)


def test_a_label_of_one_patient_may_serve_two_images_however_the_patient_is_found(tmp_path):
    rows = [f"p{n}_{visit}.nii,p{n}_seg.nii" for n in (1, 2) for visit in ("v1", "v2")]
    touch(*(tmp_path / name for row in rows for name in row.split(",")))
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    cases, faults = find_cases(tmp_path / "table.csv", "(p.)_")
    assert [case.patient for case in cases] == ["p1", "p1", "p2", "p2"]
    assert not faults
    cases, faults = find_cases(tmp_path / "table.csv", "_(v.)")
    assert [case.name for case in cases] == ["p1_v1", "p2_v1"]
    assert [fault.name for fault in faults] == ["p1_v2", "p2_v2"]


def test_the_patient_is_found_in_the_name(tmp_path):
    touch(*(tmp_path / part / f"{name}.png" for part in ("images", "labels") for name in ("P1-IM-1", "P1-IM-2", "odd")))
    cases, (fault,) = find_cases(tmp_path, "(.+)-IM-")
    assert {case.patient for case in cases} == {"P1"}
    assert fault.name == "odd"
    assert [case.patient for case in find_cases(tmp_path)[0]] == ["P1-IM-1", "P1-IM-2", "odd"]
    with pytest.raises(InvalidInput, match="no regular expression"):
        find_cases(tmp_path, "(")


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG"])
def test_a_label_in_a_format_that_changes_its_values_is_refused(name, tmp_path):
    touch(tmp_path / "images" / "x.png", tmp_path / "labels" / name)
    (tmp_path / "table.csv").write_text(f"image,label\nimages/x.png,labels/{name}", encoding="utf-8")
    for data in (tmp_path, tmp_path / "table.csv"):
        cases, (fault,) = find_cases(data)
        assert not cases
        assert fault.name == "x"
        assert f"{name} is a JPEG" in fault.problem


def test_a_folder_of_another_layout_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        find_cases(tmp_path / "none")
    with pytest.raises(InvalidInput, match="imagesTr and labelsTr"):
        find_cases(tmp_path)
    touch(tmp_path / "images" / "a.png")
    with pytest.raises(InvalidInput, match="none of labels"):
        find_cases(tmp_path)


# --- names that a dataset.json has -----------------------------------------------------------------------------------

NNUNET = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "Left ball": 1, "Right ball": 2}}
DECATHLON = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background", "1": "Left ball", "2": "Right ball"}}


def write_nnunet(folder: Path, rng, said: dict | str) -> Path:
    """A folder as nnU-Net's, of two cases with two channels."""
    write_volumes(folder, "ab", rng)
    for path in (folder / "images").iterdir():
        for channel in ("0000", "0001"):
            write_image(read_image(path), path.with_name(f"{path.name[0]}_{channel}.nii.gz"))
        path.unlink()
    for part in ("images", "labels"):
        (folder / part).rename(folder / f"{part}Tr")
    text = said if isinstance(said, str) else json.dumps(said)
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("said", [NNUNET, DECATHLON], ids=["nnU-Net", "Decathlon"])
def test_a_dataset_json_names_classes_and_channels(said, tmp_path, rng):
    data = checked(write_nnunet(tmp_path / "data", rng, said))
    assert not data.faults
    made = plan(data.fingerprint, Overrides(dims=3, orientation="SAR", spacing=(None, None, None)))
    assert made.input.channels == ("T1", "FLAIR")
    assert [label.name for label in made.labels] == ["Left ball", "Right ball"]
    assert made.input.mirror_axes == (0, 1)
    label = prepare(data.cases, made, tmp_path / "prepared")[0].label()
    np.testing.assert_array_equal(label, read_labels(data.cases[0].label).array)
    chosen = plan(data.fingerprint, Overrides(names=("Shell", "Core"), channels=("A", "B")))
    assert [label.name for label in chosen.labels] == ["Shell", "Core"]
    assert chosen.input.channels == ("A", "B")


def test_segments_keep_the_names_that_they_have_beside_a_dataset_json(tmp_path, rng):
    folder = write_nnunet(tmp_path, rng, NNUNET)
    for path in (folder / "labelsTr").iterdir():
        labels = replace(
            read_labels(path), segments=(Segment(2, "Left ball", (9, 9, 9)), Segment(1, "Shell", (8, 8, 8)))
        )
        write_labels(labels, path.with_name(f"{path.name[0]}.seg.nrrd"))
        path.unlink()
    assert [(found.value, found.name) for found in checked(folder).fingerprint.classes] == [
        (1, "Shell"),
        (2, "Left ball"),
    ]


@pytest.mark.parametrize(
    ("said", "words", "names"),
    [
        ('{"labels": {"Liver"', "can't be read", ["Label 1", "Label 2"]),
        ("[]", "the file is .*, no object", ["Label 1", "Label 2"]),
        ({"labels": ["Liver"]}, "labels is .*, no object", ["Label 1", "Label 2"]),
        (
            {"labels": {"background": 0, "Whole": [1, 2], "Core": [2], "Rest": None}},
            "labels Whole, Rest have no single value .* --labels",
            ["Label 1", "Core"],
        ),
        ({"labels": {"Shell": 1, "ignore": 2}}, "ignore is trained like a class", ["Shell", "ignore"]),
        ({"name": "of another program"}, None, ["Label 1", "Label 2"]),
    ],
    ids=["damaged", "list", "labels", "regions", "ignore", "other"],
)
def test_what_a_dataset_json_does_not_say_is_named_and_stops_nothing(said, words, names, tmp_path, rng):
    data = checked(write_nnunet(tmp_path, rng, said))
    assert [found.name for found in data.fingerprint.classes] == names
    assert data.fingerprint.channel_names == ("image 1", "image 2")
    assert [fault.name for fault in data.faults] == ["dataset.json"] * (words is not None)
    assert words is None or re.search(words, report(data))
    assert "2 of 2 cases can be used" in report(data)


# --- checking --------------------------------------------------------------------------------------------------------


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
    with pytest.raises(InvalidInput, match=r"(?s)1 pairs .* at least 2.*a: .*a.png is empty.*b: "):
        checked(folder)


def test_a_picture_and_a_label_of_another_size_are_refused(tmp_path, rng):
    folder = write_pictures(tmp_path, ["a", "b", "c"], rng)
    write_labels(ball(Geometry((1, 30, 24))), folder / "labels" / "b.png", overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "1 x 30 x 24 voxels and its image 1 x 60 x 48" in fault.problem


def test_a_picture_and_its_label_lie_on_each_other_whatever_size_of_voxels_they_name(tmp_path, rng):
    folder = write_pictures(tmp_path / "data", "abc", rng)
    for path in (folder / "images").iterdir():
        picture = sitk.ReadImage(path)
        picture.SetSpacing((0.5, 0.5))
        sitk.WriteImage(picture, path.with_suffix(".nrrd"))
        path.unlink()
    data = checked(folder)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None)))
    label = read_labels(data.cases[0].label).array
    np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[0].label(), label)


@pytest.mark.parametrize(("kind", "faults"), [("P", 1), ("RGB", 1), ("RGBA", 0)], ids=["palette", "colours", "grey"])
def test_a_mask_has_one_grey_value_per_class(kind, faults, tmp_path, rng):
    folder = write_pictures(tmp_path, "abc", rng)
    mask = Picture.open(folder / "labels/b.png")
    if faults:
        mask = mask.convert("P")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    mask.convert(kind).save(folder / "labels/b.png")
    found = checked(folder).faults
    assert [fault.name for fault in found] == ["b"] * faults
    assert all("save the mask with one grey value per class" in fault.problem for fault in found)


def soft(mask: np.ndarray, how: str) -> np.ndarray:
    """A mask as programs spoil it that smooth its edges."""
    picture, size = Picture.fromarray(mask), mask.shape[::-1]
    if how == "blurred":
        return np.array(picture.filter(ImageFilter.GaussianBlur(2)))
    if how == "jpeg":
        buffer = BytesIO()
        picture.save(buffer, "JPEG")
        return np.array(Picture.open(buffer))
    if how == "enlarged":
        half = picture.resize([n // 2 for n in size], Picture.Resampling.NEAREST)
        return np.array(half.resize(size, Picture.Resampling.BILINEAR))
    drawn = np.roll(np.kron(mask, np.ones((2, 2), np.uint8)), 1, (0, 1))
    return np.array(Picture.fromarray(drawn).resize(size, Picture.Resampling.BOX))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("how", ["blurred", "jpeg", "enlarged", "reduced"])
def test_a_mask_with_smoothed_edges_is_refused(dims, how, tmp_path, rng):
    folder = write_data(dims, tmp_path, rng)
    for path in (folder / "labels").iterdir():
        labels = read_labels(path)
        array = np.where(labels.array > 0, 255, 0).astype(np.uint8)
        if path.name.startswith("b"):
            array = np.stack([soft(plane, how) for plane in array])
        write_labels(replace(labels, array=array), path, overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "only rim others" in fault.problem
    assert "nearest neighbour" in fault.problem


def regions(shape: tuple[int, int, int], points: int, classes: int) -> np.ndarray:
    """Classes in no order that fill a grid, a region around each point."""
    rng = np.random.default_rng(0)
    tree = cKDTree(rng.uniform(0, shape, (points, 3)))
    nearest = tree.query(np.argwhere(np.ones(shape)))[1].reshape(shape)
    return rng.permutation(np.arange(points) % classes)[nearest].astype(np.uint8)


def landmarks(shape: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[0, 1:-1:5, 1:-1:5].flat[:30] = np.arange(1, 31)
    return array


def layers(shape: tuple[int, int, int]) -> np.ndarray:
    """Nine of them, two voxels thick."""
    return np.broadcast_to(np.clip(np.arange(shape[1])[:, None] // 2 - 4, 0, 9), shape).astype(np.uint8)


def contours(shape: tuple[int, int, int]) -> np.ndarray:
    """Two bodies in skins that are a voxel thick and have values in between."""
    inner = ball(Geometry(shape)).array > 0
    skin = inner & ~ndimage.binary_erosion(inner, np.ones((1, 3, 3)))
    return np.where(skin, 1, 2 * inner) + np.where(np.arange(shape[2]) < shape[2] // 2, 0, 2 * inner).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 96, 96), (12, 48, 48)])
@pytest.mark.parametrize(
    "honest",
    [
        lambda shape: regions(shape, 200, 34),
        lambda shape: regions(shape, 400, 150),
        landmarks,
        layers,
        contours,
    ],
    ids=["34 classes", "150 classes", "landmarks", "layers", "contours"],
)
def test_labels_of_many_classes_small_or_thin_ones_are_none_with_smoothed_edges(honest, shape, tmp_path, rng):
    for name in "ab":
        scan = make_scan(rng, shape)
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(Labels(honest(shape), scan.geometry), tmp_path / f"{name}_seg.nrrd")
    data = checked(tmp_path)
    assert not data.faults
    assert len(data.fingerprint.classes) >= 4


def test_segments_with_names_may_be_as_thin_as_smoothed_edges(tmp_path, rng):
    for name in "ab":
        scan = make_scan(rng)
        array = np.broadcast_to(np.arange(scan.geometry.shape[1])[:, None] % 20, scan.geometry.shape).astype(np.uint8)
        segments = tuple(Segment(value, f"Layer {value}", (9, 9, 9)) for value in range(1, 20))
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry, segments), tmp_path / f"{name}.seg.nrrd")
    assert not checked(tmp_path).faults


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


def change_header(path: Path, **parts) -> None:
    """Write an image file again with another spacing, origin or direction."""
    found = read_image(path)
    write_image(replace(found, geometry=replace(found.geometry, **parts)), path, overwrite=True)


def oblique(degrees: float, axes=AXIS_ALIGNED):
    """Directions that are turned about k."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return tuple(map(tuple, np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ axes))


NO_HEADER = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": AXIS_ALIGNED}
ITK_AXES = ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "lost",
    [
        {"spacing": (1.0, 1.0, 1.0)},
        {"origin": (0.0, 0.0, 0.0)},
        {"direction": AXIS_ALIGNED},
        NO_HEADER,
        {**NO_HEADER, "direction": ITK_AXES},
    ],
    ids=["spacing", "origin", "direction", "NIfTI's default", "ITK's default"],
)
def test_a_label_without_its_images_header_is_refused(lost, tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng)
    direction = oblique(10, lost.get("direction", AXIS_ALIGNED))
    for part in ("images", "labels"):
        change_header(folder / part / "b.nii.gz", origin=(9.0, 8.0, -6.0), direction=direction)
    change_header(folder / "labels/b.nii.gz", **lost)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "its image's 12 x 40 x 36 voxels at other places" in fault.problem
    assert "copy the image's header" in fault.problem
    _, own, its = re.split(r"at other places: |, and the image |; copy", fault.problem)[:3]
    assert own != its


@pytest.mark.parametrize(
    "own",
    [
        {"origin": (-17.0, 38.5, 10.25)},
        {"spacing": (2.5, 1.0, 1.0), "origin": (-15.0, 40.0, 8.0)},
        {"spacing": (1.0, 1.0, 1.0), "origin": (-15.0, 40.0, 12.0)},
        {"direction": oblique(3)},
    ],
    ids=["another part", "around an organ", "conformed", "turned"],
)
def test_a_label_of_its_images_shape_lies_where_its_own_header_says(own, tmp_path, rng):
    folder = write_volumes(tmp_path / "data", "ab", rng)
    change_header(folder / "labels/b.nii.gz", **own)
    data = checked(folder)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None), orientation="SAR"))
    label = prepare(data.cases, made, tmp_path / "prepared")[1].label()
    labels, image = read_labels(folder / "labels/b.nii.gz"), read_image(folder / "images/b.nii.gz")
    np.testing.assert_array_equal(label, on_grid(labels, image.geometry))
    assert (label != labels.array).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_label_that_is_counted_from_the_corner_lies_on_its_image(sign, tmp_path, rng):
    folder = write_volumes(tmp_path, "ab", rng, spacing=(3.3, 0.7, 0.7))
    half = tuple(sign * mm / 2 for mm in (0.7, 0.7, 3.3))
    change_header(folder / "images/b.nii.gz", origin=half)
    change_header(folder / "labels/b.nii.gz", origin=(0.0, 0.0, 0.0))  # as a lost one, but hardly elsewhere
    assert not checked(folder).faults


def test_a_label_whose_axes_are_turned_round_lies_at_its_place(tmp_path, rng):
    folder = write_volumes(tmp_path / "data", "ab", rng)
    labels = read_labels(folder / "labels/b.nii.gz")
    turned = physically_equal(Image(labels.array, labels.geometry), (0, 1, 2), (0, 2))
    write_labels(Labels(turned.array[0], turned.geometry), folder / "labels/b.nii.gz", overwrite=True)
    data = checked(folder)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None), orientation="SAR"))
    np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[1].label(), labels.array)


def test_a_structure_smaller_than_a_voxel_of_its_image_lies_on_it_by_its_place(tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng, (12, 40, 36), (6.0, 2.0, 2.0))
    small = np.zeros((48, 40, 36), np.uint8)
    small[20, 20, 18] = 1  # the image's slices lie at other places
    for name, away in (("b", 0.0), ("c", 90.0)):
        geometry = read_image(folder / f"images/{name}.nii.gz").geometry
        origin = tuple(np.subtract(geometry.origin, (0, 0, 2.25 + away)))
        fine = replace(geometry, shape=small.shape, spacing=(1.5, 2.0, 2.0), origin=origin)
        write_labels(Labels(small, fine), folder / f"labels/{name}.nii.gz", overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "c"
    assert "lies to 0% on its image" in fault.problem


def test_names_and_colours_of_segments_carry_over_whatever_their_values(tmp_path, rng):
    """Slicer numbers segments in the order in which they were drawn."""
    liver, spleen = Segment(1, "Liver", (221, 130, 101)), Segment(2, "Spleen", (157, 108, 162))
    for name, swapped in (("a", False), ("b", False), ("c", True)):
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        labels = ball(scan.geometry)
        if swapped:
            array = np.choose(labels.array, [0, 2, 1]).astype(np.uint8)
            labels = replace(labels, array=array, segments=(replace(spleen, value=1), replace(liver, value=2)))
        else:
            labels = replace(labels, segments=(liver, spleen))
        write_labels(labels, tmp_path / f"{name}.seg.nrrd")
    data = checked(tmp_path)
    assert not data.faults
    made = plan(data.fingerprint)
    assert [(label.value, label.name, label.color) for label in made.labels] == [
        (1, "Liver", (221, 130, 101)),
        (2, "Spleen", (157, 108, 162)),
    ]
    first, _, third = (case.label() for case in prepare(data.cases, made, tmp_path / "prepared"))
    np.testing.assert_array_equal(first, third)


def write_segments(folder: Path, rng, segments: dict[str, tuple[Segment, ...]]) -> Path:
    """Scans and a `.seg.nrrd` with these segments for each name; a plain label map where there are none."""
    for name, of_case in segments.items():
        scan = make_scan(rng)
        write_image(scan, folder / f"{name}.nrrd")
        labels = replace(ball(scan.geometry), segments=of_case)
        write_labels(labels, folder / (f"{name}.seg.nrrd" if of_case else f"{name}_seg.nrrd"))
    return folder


SHELL, CORE = Segment(1, "Shell", (9, 9, 9)), Segment(2, "Core", (8, 8, 8))


def test_the_codes_of_segments_go_into_the_model(tmp_path, rng):
    codes = Terminology(("SCT", "123037004", "Anatomical Structure"), ("SCT", "64033007", "Kidney"))
    folder = write_segments(tmp_path, rng, dict.fromkeys("ab", (replace(SHELL, terminology=codes), CORE)))
    fingerprint = checked(folder).fingerprint
    assert [label.terminology for label in plan(fingerprint).labels] == [codes, None]
    renamed = plan(fingerprint, Overrides(names=("Rinde", "Mark"))).labels
    assert [label.terminology for label in renamed] == [codes, None]


def test_segments_of_one_name_are_one_class_of_one_case(tmp_path, rng):
    folder = write_segments(tmp_path, rng, dict.fromkeys("ab", (SHELL, replace(CORE, name="shell"))))
    (found,) = checked(folder).fingerprint.classes
    assert (found.name, found.cases) == ("Shell", 2)


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


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (None, "labels 1 Spleen, 2 Liver"),
        (("Liver", "Spleen"), "labels 1 Liver, 2 Spleen"),
        (("liver", "Spleen"), "labels 1 Liver -> liver, 2 Spleen"),
        (("Milz", "Leber"), "labels 1 Spleen -> Milz, 2 Liver -> Leber"),
    ],
)
def test_names_that_segments_have_already_say_their_order_and_others_are_new(names, words, tmp_path, rng):
    spleen, liver = Segment(1, "Spleen", (157, 108, 162)), Segment(2, "Liver", (221, 130, 101))
    for name in "ab":
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(replace(ball(scan.geometry), segments=(spleen, liver)), tmp_path / f"{name}.seg.nrrd")
    data = checked(tmp_path)
    made = plan(data.fingerprint, Overrides(names=names, spacing=(None, None, None), orientation="SAR"))
    assert words in made.lines()
    found = prepare(data.cases, made, tmp_path / "prepared")[0].label()
    first, core = made.labels[0], ball(scan.geometry).array == 2
    np.testing.assert_array_equal(found == (1 if first.color == liver.color else 2), core)


def test_more_classes_than_a_byte_holds_are_refused(tmp_path, rng):
    for name, first in (("a", 1), ("b", 201)):
        scan = make_scan(rng)
        array = np.zeros(scan.geometry.shape, np.uint16)
        array[0, ::2, ::2].flat[:200] = np.arange(first, first + 200)
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry), tmp_path / f"{name}_seg.nrrd")
    with pytest.raises(InvalidInput, match="hold 400 classes; at most 255"):
        plan(checked(tmp_path).fingerprint)


def test_layers_that_do_not_overlap_become_one_and_others_are_refused(tmp_path, rng):
    for name, overlap in (("a", False), ("b", False), ("c", True)):
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        values = ball(scan.geometry).array
        layers = np.stack([values == 1, (values > 0) if overlap else (values == 2)]).astype(np.uint8)
        segments = (Segment(1, "Shell", (9, 9, 9), layer=0), Segment(1, "Core", (8, 8, 8), layer=1))
        write_labels(Labels(layers, scan.geometry, segments), tmp_path / f"{name}.seg.nrrd")
    data = checked(tmp_path)
    assert [case.name for case in data.cases] == ["a", "b"]
    (fault,) = data.faults
    assert "the segments 'Shell' and 'Core' overlap in" in fault.problem
    made = plan(data.fingerprint)
    assert [label.name for label in made.labels] == ["Shell", "Core"]
    assert set(np.unique(prepare(data.cases, made, tmp_path / "prepared")[0].label())) == {0, 1, 2}


def test_a_segmentation_cropped_to_its_segments_lies_at_its_place(tmp_path, rng):
    for name in "ab":
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        labels = ball(scan.geometry)
        box = tuple(slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(labels.array))
        origin = (scan.geometry.affine @ [*(side.start for side in box), 1])[:3]
        array = labels.array[box]
        cropped = Labels(array, replace(scan.geometry, shape=array.shape, origin=tuple(origin)))
        write_labels(cropped, tmp_path / f"{name}_seg.nrrd")
    data = checked(tmp_path)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None), orientation="SAR"))
    np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[0].label(), labels.array)


@pytest.mark.parametrize("moved", [False, True])
def test_a_segmentation_of_a_picture_may_be_cropped_to_its_segments(moved, tmp_path, rng):
    folder = write_pictures(tmp_path / "data", "ab", rng)
    whole = read_labels(folder / "labels/b.png")
    geometry = read_image(folder / "images/b.png").geometry
    box = tuple(slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(whole.array))
    origin = (geometry.affine @ [*(side.start + 0.5 * moved for side in box), 1])[:3]
    part = Labels(
        whole.array[box], replace(geometry, shape=whole.array[box].shape, origin=tuple(origin)), (SHELL, CORE)
    )
    (folder / "labels/b.png").unlink()
    write_labels(part, folder / "labels/b.seg.nrrd")
    write_pictures(tmp_path / "data", "c", rng)
    data = checked(folder)
    assert [fault.name for fault in data.faults] == ["b"] * moved
    if not moved:
        made = plan(data.fingerprint, Overrides(spacing=(None, None, None)))
        np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[1].label(), whole.array)


# --- splitting -------------------------------------------------------------------------------------------------------


def test_a_patient_is_never_on_both_sides_and_folds_cover_everything_once(rng):
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


# --- planning --------------------------------------------------------------------------------------------------------


def test_an_image_that_fits_into_the_tile_is_worked_on_finer(tmp_path, rng):
    made = plan(checked(write_volumes(tmp_path, "ab", rng, (36, 50, 35), (1, 1, 1))).fingerprint)
    assert made.network.dims == 3
    assert made.input.spacing == (0.5, 0.5, 0.5)
    assert made.input.tile == (80, 112, 80)
    assert made.network.encoder_depth == 3
    assert [label.name for label in made.labels] == ["Label 1", "Label 2"]


def test_an_image_larger_than_the_tile_keeps_its_spacing(tmp_path, rng):
    made = plan(checked(write_pictures(tmp_path, "ab", rng, (500, 700))).fingerprint)
    assert made.network.dims == 2
    assert made.input.orientation is None
    assert made.input.spacing == (None, 1.0, 1.0)
    assert np.prod(made.input.tile) <= 400**2
    assert all(size % 16 == 0 for size in made.input.tile)


@pytest.mark.parametrize(("slices", "dims", "spacing"), [(8, 2, (None, 0.5, 0.5)), (20, 3, (6.0, 0.5, 0.5))])
def test_thick_slices_are_never_refined_and_few_of_them_are_worked_on_one_by_one(slices, dims, spacing, tmp_path, rng):
    made = plan(checked(write_volumes(tmp_path, "ab", rng, (slices, 40, 36), (6, 1, 1))).fingerprint)
    assert made.network.dims == dims
    assert made.input.spacing == spacing
    assert made.planar


def test_the_thickest_voxels_come_first_however_scans_are_stored(tmp_path, rng):
    for name, order in (("a", (0, 1, 2)), ("b", (2, 1, 0)), ("c", (2, 1, 0))):
        scan = physically_equal(make_scan(rng), order, (1,))
        write_image(scan, tmp_path / f"{name}.nii.gz")
        write_labels(ball(scan.geometry), tmp_path / f"{name}_seg.nii.gz")
    made = plan(checked(tmp_path).fingerprint)
    assert made.input.orientation == "SRA"


def test_ct_gets_one_window_for_all_scans(tmp_path, rng):
    for name in "abc":
        scan = make_scan(rng)
        write_image(replace(scan, array=scan.array * 3 - 1000), tmp_path / f"{name}.nii.gz")
        write_labels(ball(scan.geometry), tmp_path / f"{name}_seg.nii.gz")
    scaling = plan(checked(tmp_path).fingerprint).input.normalization
    assert scaling.method == "window"
    assert scaling.mean is not None


def test_everything_can_be_chosen(tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    chosen = Overrides(
        encoder="densenet121", depth=4, dims=2, spacing=(None, 2.0, 2.0), tile=(32, 48), batch_size=3,
        normalization=Normalization("zscore"), orientation="ASR", names=("Shell", "Core"), channels=("T1",),
    )  # fmt: skip
    made = plan(fingerprint, chosen)
    assert (made.network.encoder_name, made.network.encoder_depth, made.network.dims) == ("densenet121", 4, 2)
    assert made.input.spacing == (None, 2.0, 2.0)
    assert made.tile == (1, 32, 48)
    assert made.batch_size == 3
    assert made.input.normalization.method == "zscore"
    assert made.input.orientation == "ASR"
    assert [label.name for label in made.labels] == ["Shell", "Core"]
    assert made.names == ("Label 1", "Label 2")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dims": 4}, "dims"),
        ({"tile": (30, 32, 32)}, "32x32x32"),
        ({"tile": (32, 32)}, "needs 3 sizes"),
        ({"names": ("one",)}, r"2 classes \(1, 2\); give as many names, not 1"),
        ({"names": ("one", " ")}, "hold an empty one"),
        ({"mirror_axes": (0, 3)}, "mirror_axes are k, 3; .* a 3D network has k, j, i$"),
        ({"dims": 2, "mirror_axes": (0,)}, "mirror_axes are k; .* a 2D network has j, i$"),
        ({"channels": ("a", "b")}, "2 channels"),
        ({"spacing": (1.0,)}, "spacing"),
        ({"spacing": (1.0, 0.0, 1.0)}, "above 0"),
        ({"orientation": "SAA"}, "orientation"),
        ({"batch_size": 0}, "batch_size"),
        ({"encoder": "resnet1"}, "encoder_name"),
        ({"depth": 6}, "depth"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(wrong, words, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    with pytest.raises(InvalidInput, match=words):
        plan(fingerprint, Overrides(**{"dims": 3, **wrong}))


# --- preparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_a_prepared_case_is_what_the_segmenter_feeds_its_network(dims, tmp_path, rng, monkeypatch):
    (case, *_), made = prepared(dims, tmp_path, rng)
    bundle = Bundle("t", "t", made.network, made.input, made.labels, "none", "none")
    segmenter = Segmenter(bundle, make_network(made.network), "cpu")
    fed: list[torch.Tensor] = []
    original = Segmenter._logits_of

    def listening(self, passage):
        return lambda x: fed.extend(x) or original(self, passage)(x)

    monkeypatch.setattr(Segmenter, "_logits_of", listening)
    path = next((tmp_path / "data" / "images").glob("a.*"))
    segmenter.segment(read_image(path))
    pair = Patches([case], made)[0]
    assert len(Tiling(case.shape, made.tile, 0.25).corners) == len(fed) == 1
    torch.testing.assert_close(pair[0], fed[0], atol=2e-3, rtol=0)


def test_prepared_cases_are_made_once_and_again_when_something_changed(tmp_path, rng):
    data = checked(write_pictures(tmp_path / "data", "ab", rng))
    made, folder = plan(data.fingerprint), tmp_path / "prepared"

    def stamps() -> list[int]:
        prepare(data.cases, made, folder)
        return [path.stat().st_ino for path in sorted(folder.glob("*.image.npy"))]

    first = stamps()
    assert stamps() == first
    write_labels(ball(Geometry((1, 60, 48))), data.cases[1].label, overwrite=True)
    second = stamps()
    assert second[0] == first[0]
    assert second[1] != first[1]
    made = plan(data.fingerprint, Overrides(spacing=(2.0, 2.0)))
    assert not set(stamps()) & set(second)
    assert prepare(data.cases, made, folder)[0].spacing == (1.0, 2.0, 2.0)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


# --- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_the_same_index_gives_the_same_pair(dims, augmentation, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng)
    one, again = (Patches(cases, made, augmentation, seed=5) for _ in range(2))
    _ = again[3]
    for index in (0, 7, 10**6):
        for a, b in zip(one[index], again[index], strict=True):
            assert torch.equal(a, b)
    image, target = one[0]
    assert image.shape == (1, *made.input.tile)
    assert image.dtype == torch.float32
    assert target.shape == made.input.tile
    assert target.dtype == torch.int64
    other = Patches(cases, made, augmentation, seed=6)
    assert any(not torch.equal(one[n][0], other[n][0]) for n in range(6))


@pytest.mark.parametrize(("dims", "tile"), [(2, (32, 16)), (3, (16, 32, 16)), (2, (96, 96))])
def test_a_patch_without_augmentation_is_a_crop(dims, tile, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng, tile=tile, depth=3)
    patches = Patches(cases, made, seed=1)
    lowest, highest = np.minimum(0, np.subtract(cases[0].shape, made.tile)), np.subtract(cases[0].shape, made.tile)
    for index in range(6):
        image, target = (part.numpy().reshape(made.tile) for part in patches[index])
        case = cases[patches._turn(index)]
        whole = np.pad(case.image()[0].astype(np.float32), [(n, n) for n in made.tile])
        label = np.pad(case.label(), [(n, n) for n in made.tile])
        found = []
        for corner in np.ndindex(*(np.maximum(highest, 0) - lowest + 1)):
            place = tuple(slice(a + b + n, a + b + 2 * n) for a, b, n in zip(corner, lowest, made.tile, strict=True))
            if np.abs(whole[place][:2, :2, :2] - image[:2, :2, :2]).max() < 1e-3:
                found.append(place)
        assert any(
            np.abs(whole[place] - image).max() < 1e-3 and np.array_equal(label[place], target) for place in found
        )


def test_every_case_has_a_patch_before_one_has_a_second(tmp_path, rng):
    cases, made = prepared(2, tmp_path, rng)
    patches = Patches(cases, made)
    assert all({patches._turn(n) for n in range(start, start + 3)} == {0, 1, 2} for start in (0, 3, 300))


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_stay_aligned_however_they_are_deformed(dims, tmp_path, rng):
    """The image of these cases is their label."""
    (tmp_path / "data").mkdir()
    shape = (40, 44, 36) if dims == 3 else (1, 88, 80)
    for name in "ab":
        labels = ball(Geometry(shape))
        write_image(Image(labels.array.astype(np.float32), labels.geometry), tmp_path / "data" / f"{name}.nrrd")
        write_labels(labels, tmp_path / "data" / f"{name}_seg.nrrd")
    data = checked(tmp_path / "data")
    made = plan(data.fingerprint, Overrides(normalization=Normalization("none")))
    strong = replace(STILL, pose_share=1, elastic_share=1, rotation=25, scale=0.2, elastic=0.04)
    patches = Patches(prepare(data.cases, made, tmp_path / "prepared"), made, strong)
    plain = Patches(patches.cases, made)
    for index in range(6):
        image, target = patches[index]
        assert not torch.equal(target, plain[index][1])
        inner = torch.nn.functional.pad(target, (1, 1) * dims)  # where no neighbour has another label
        for axis in range(dims):
            ends = (inner.narrow(axis, n, inner.shape[axis] - 2) for n in (0, 1, 2))
            left, middle, right = ends
            inner = torch.where((left == middle) & (right == middle), middle, -1)
        sure = (inner >= 0) & (target > 0)
        assert int(sure.sum()) > 100
        assert float((image[0] - target)[sure].abs().max()) < 0.51
        assert float((image[0] - target)[sure].abs().mean()) < 0.05


def test_classes_are_seen_evenly_however_small_they_are(tmp_path, rng):
    (tmp_path / "data").mkdir()
    for name in "ab":
        scan = make_scan(rng, (1, 300, 300))
        array = np.zeros((1, 300, 300), np.uint8)
        array[0, :150] = 1
        array[0, 290:293, 290:293] = 2
        write_image(scan, tmp_path / "data" / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry), tmp_path / "data" / f"{name}_seg.nrrd")
    data = checked(tmp_path / "data")
    made = plan(data.fingerprint, Overrides(tile=(32, 32), depth=3))
    patches = Patches(prepare(data.cases, made, tmp_path / "prepared"), made)
    share = np.mean([bool((patches[n][1] == 2).any()) for n in range(150)])
    assert 0.2 < share < 0.5


def test_a_plane_stays_a_plane(rng):
    pose = Deformation(rotation=20, scale=0.2, elastic=3, elastic_spacing=10, mirror_axes=(1, 2), planar=True)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        points = pose.points((1, 20, 24), (1, 1, 1), torch.tensor([4.0, 9, 9]), (1, 1, 1), generator=generator)
        assert torch.equal(points[0], torch.full((1, 20, 24), 4.0))
        assert float((points[1, 0, :, 0] - points[1, 0, :, -1]).abs().max()) > 0.1


# --- voxel values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 40, 44), (2, 20, 24, 28)])
@pytest.mark.parametrize("what", ["brightness", "contrast", "gamma", "noise", "blur", "resolution"])
def test_each_change_of_voxel_values_changes_some_and_keeps_the_image(what, shape):
    smooth = torch.nn.functional.interpolate(torch.rand(1, 2, *(max(1, n // 6) for n in shape[1:])), size=shape[1:])[0]
    spec = replace(STILL, **{f"{what}_share": 1.0})
    changed = augment_intensity(smooth, spec, torch.Generator().manual_seed(1), planar=shape[1] == 1)
    assert changed.shape == smooth.shape
    assert not torch.equal(changed, smooth)
    assert float(torch.corrcoef(torch.stack([changed.flatten(), smooth.flatten()]))[0, 1]) > 0.8
    assert torch.equal(augment_intensity(smooth, STILL), smooth)


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("Liver", "Spleen"), (0, 1, 2)),
        (("Left kidney", "Right kidney"), (0, 1)),
        (("LeftKidney", "RightKidney"), (0, 1)),
        (("Kidney L", "Kidney R"), (0, 1)),
        (("Kidney L/R", "RKidney"), (0, 1)),
        (("Lung (left)", "Lung (right)"), (0, 1)),
        (("LUNG_LT", "LUNG_RT"), (0, 1)),
        (("kidneyLeft1", "kidneyRight1"), (0, 1)),
        (("vertebrae_L1", "Artère l3"), (0, 1)),
        (("vertebrae_L1", "Artériel"), (0, 1, 2)),
        (("Anterior", "Posterior"), (0, 2)),
    ],
)
def test_an_axis_that_names_tell_apart_is_not_turned_round(names, axes, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    assert plan(fingerprint, Overrides(dims=3, orientation="SAR", names=names)).input.mirror_axes == axes


@pytest.mark.parametrize(("axes", "words"), [((0, 2), "mirrored along k, i"), ((), "mirrored along no axis")])
def test_the_axes_of_mirror_images_are_said_and_can_be_chosen(axes, words, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    assert "mirrored along k, j, i" in plan(fingerprint, Overrides(dims=3)).lines()
    made = plan(fingerprint, Overrides(dims=3, mirror_axes=axes))
    assert made.input.mirror_axes == axes
    assert words in made.lines()
