"""Which images and labels are found in folders and tables, and which are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_data import checked, write_volumes

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image, read_labels, write_image, write_labels
from DeepLabSegLib.image import Segment
from DeepLabSegLib.training.cases import Case, find_cases
from DeepLabSegLib.training.check import report
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare

# --- folders and tables ----------------------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


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
        (["x.nrrd", "x-segmentation-label.nrrd"], ["x.nrrd"]),
        (["images/x_manual.png", "labels/x_manual_mask.png"], ["x_manual.png"]),
        (["x_T1w.nii.gz", "x_dseg.nii.gz"], ["x_T1w.nii.gz"]),
        (["x_image.png", "x_label.png", "readme.txt"], ["x_image.png"]),
        (["x M\u00fcller.nrrd", "x Mu\u0308ller.seg.nrrd"], ["x M\u00fcller.nrrd"]),
        (["x/image.nii.gz", "x/label.nii.gz", "notes.png"], ["image.nii.gz"]),
        (["x/photo.png", "x/photo_mask.png"], ["photo.png"]),
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


def test_where_no_file_can_be_read_it_is_said_which_could_be(tmp_path):
    touch(tmp_path / "images/a.tif", tmp_path / "masks/a.tif")
    with pytest.raises(InvalidInput, match=r"holds no pairs.*files end in \.nii\.gz.*\.png"):
        find_cases(tmp_path)


def test_a_case_without_one_of_the_channels_is_named(tmp_path):
    names = ["a_0000", "a_0001", "b_0000", "b_0001", "c_0000"]
    touch(*(tmp_path / "imagesTr" / f"{name}.nii.gz" for name in names))
    touch(*(tmp_path / "labelsTr" / f"{name}.nii.gz" for name in "abc"))
    cases, (fault,) = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a", "b"]
    assert fault.name == "c"
    assert "channels 0000, and most cases 0000, 0001" in fault.problem


def test_a_file_without_a_mark_among_channels_is_named_and_the_rest_kept(tmp_path):
    names = ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "overview.png"]
    touch(*(tmp_path / "imagesTr" / name for name in names), *(tmp_path / "labelsTr" / f"{n}.nii.gz" for n in "ab"))
    cases, (fault,) = find_cases(tmp_path)
    assert [len(case.images) for case in cases] == [2, 2]
    assert (fault.name, "overview.png has no label" in fault.problem) == ("overview", True)


def test_images_of_the_same_names_in_most_cases_folders_are_channels(tmp_path):
    touch(*(tmp_path / "a" / f"{name}.nii" for name in ("a_T1", "a-FLAIR", "seg")))
    touch(*(tmp_path / "b" / f"{name}.nii" for name in ("T1", "b-FLAIR", "seg")))
    touch(tmp_path / "c/c_T1.nii", tmp_path / "c/seg.nii", tmp_path / "d/T1.nii", tmp_path / "d/FLAIR.nii")
    touch(*(tmp_path / "e" / f"{name}.nii" for name in ("T1", "FLAIR", "seg", "tumour_mask")))
    cases, faults = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a", "b"]
    assert {case.channels for case in cases} == {("FLAIR", "T1")}
    names = [[path.name for path in case.images] for case in cases]
    assert names == [["a-FLAIR.nii", "a_T1.nii"], ["b-FLAIR.nii", "T1.nii"]]
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


@pytest.mark.parametrize("first", [(), ("sep=;",)])
def test_a_table_is_read_as_spreadsheets_write_it(first, tmp_path):
    touch(*(tmp_path / f"{name}.nii" for name in ("Müller  1", "seg", "b")))
    rows = ['image;"label\nby hand";Label;patient;note', 'Müller  1.nii;;seg.nii;P1;"good,\nbut thin"', ";;;;", ""]
    text = "\r\n".join([*first, *rows, "b.nii;;none.nii;P2;\u2028", ";;;;"])
    (tmp_path / "table.csv").write_bytes(text.encode("utf-8-sig"))
    (case,), (fault,) = find_cases(tmp_path / "table.csv")
    assert (case.name, case.patient, case.label.name) == ("Müller  1", "P1", "seg.nii")
    assert (fault.name, "none.nii does not exist in column Label of row 5" in fault.problem) == ("b", True)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("image,image ,label", "several columns image, .* image 1 and image 2"),
        ("T1,t1,label", "several columns t1"),
        ("T1,label,Label", "several columns Label"),
        ("image,label,patient,Patient", "several columns Patient"),
        ("image,mask,segmentation", "the columns mask and segmentation; call the one to learn label"),
        ('image,"label', "can't be read as a table .* quotation marks"),
    ],
)
def test_a_table_that_leaves_open_what_is_meant_is_refused(head, words, tmp_path):
    touch(tmp_path / "a.nii")
    (tmp_path / "table.csv").write_text("\n".join([head, ",".join(4 * ["a.nii"])]), encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        find_cases(tmp_path / "table.csv")


def test_of_a_table_with_a_label_a_mask_beside_it_is_no_channel(tmp_path):
    touch(*(tmp_path / f"{name}.nii" for name in "abc"))
    (tmp_path / "table.csv").write_text("T1,label,mask\na.nii,b.nii,c.nii", encoding="utf-8")
    (case,), _ = find_cases(tmp_path / "table.csv")
    assert (case.channels, case.label.name) == (("T1",), "b.nii")


def test_cases_of_a_table_with_equal_file_names_are_told_apart(tmp_path):
    rows = [f"{folder}/image.nii,{folder}/label.nii" for folder in ("p1", "p2")]
    touch(*(tmp_path / path for row in rows for path in row.split(",")))
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    cases, faults = find_cases(tmp_path / "table.csv")
    assert not faults
    assert len({case.name for case in cases}) == 2


@pytest.mark.parametrize(("patients", "kept"), [(("P1", "P1"), 2), (("P1", "P2"), 1), (("", ""), 1)])
def test_a_label_that_a_table_names_twice_is_never_learned_and_held_out(patients, kept, tmp_path):
    touch(tmp_path / "t1.nii", tmp_path / "sub" / "t2.nii", tmp_path / "seg.nii")
    rows = [f"t1.nii,seg.nii,{patients[0]}", f"sub/t2.nii,sub/../seg.nii,{patients[1]}"]
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


def test_a_patient_whose_name_is_spelled_in_two_ways_is_one(tmp_path):
    touch(*(tmp_path / part / f"{name}.png" for part in ("images", "labels") for name in ("Ann-1", "ann-2", "Bo-1")))
    cases, faults = find_cases(tmp_path, "(.+)-")
    assert [(case.name, case.patient) for case in cases] == [("Ann-1", "Ann"), ("Bo-1", "Bo"), ("ann-2", "Ann")]
    assert not faults


def test_a_row_without_a_patient_is_named_where_others_have_one(tmp_path):
    touch(*(tmp_path / f"{name}.nii" for name in ("P1-a", "P1-b", "seg1", "seg2")))
    rows = ["image,label,patient", "P1-a.nii,seg1.nii,P1", "P1-b.nii,seg2.nii, "]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    (case,), (fault,) = find_cases(tmp_path / "table.csv")
    assert (case.name, fault.name) == ("P1-a", "P1-b")
    assert "its row names no patient, and others do; fill it in" in fault.problem
    assert {case.patient for case in find_cases(tmp_path / "table.csv", "(.+)-")[0]} == {"P1"}


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


def test_channels_that_the_files_of_a_case_name_keep_these_names_beside_a_dataset_json(tmp_path):
    touch(*(tmp_path / case / f"{name}.nii" for case in "ab" for name in ("T1", "FLAIR", "seg")))
    (tmp_path / "dataset.json").write_text(json.dumps(NNUNET), encoding="utf-8")
    cases, _ = find_cases(tmp_path)
    assert {(case.channels, case.images[0].name) for case in cases} == {(("FLAIR", "T1"), "FLAIR.nii")}


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
        ({"labels": {"Shell": 1, "Core": 1}}, "labels Core have no single value", ["Shell", "Label 2"]),
        ({"labels": {"Shell": 1, "ignore": 2}}, "ignore is trained like a class", ["Shell", "ignore"]),
        ({"name": "of another program"}, None, ["Label 1", "Label 2"]),
    ],
    ids=["damaged", "list", "labels", "regions", "twice", "ignore", "other"],
)
def test_what_a_dataset_json_does_not_say_is_named_and_stops_nothing(said, words, names, tmp_path, rng):
    data = checked(write_nnunet(tmp_path, rng, said))
    assert [found.name for found in data.fingerprint.classes] == names
    assert data.fingerprint.channel_names == ("image 1", "image 2")
    assert [fault.name for fault in data.faults] == ["dataset.json"] * (words is not None)
    assert words is None or re.search(words, report(data))
    assert "2 of 2 cases can be used" in report(data)
