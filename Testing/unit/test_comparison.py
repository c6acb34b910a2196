"""`deeplabseg evaluate` on folders: tables, pictures, and what it says of files that don't fit."""

import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import OBLIQUE, run
from PIL import Image as Picture

from DeepLabSegLib.comparison import TABLES
from DeepLabSegLib.files import write_image, write_labels
from DeepLabSegLib.image import Geometry, Image, Labels, Segment
from DeepLabSegLib.overlay import PREDICTION_COLOR
from DeepLabSegLib.texts import some

SEGMENTS = (Segment(1, "Cap / top", (255, 0, 0)), Segment(2, "Base", (0, 255, 0)))


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    write_labels(Labels(array.astype(np.uint8), Geometry(array.shape, (2.0, 1.0, 1.0)), SEGMENTS), path)


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def folders(request, tmp_path) -> tuple[Path, Path, Path]:
    """Predictions, references and scans; case n is shifted by n voxels, and in the last Base is on neither side."""
    shape, ending = ((1, 30, 40), ".png") if request.param == 2 else ((12, 30, 40), ".seg.nrrd")
    ours, theirs, scans = (tmp_path / name for name in ("ours", "theirs", "scans"))
    for n in range(4):
        array = np.zeros(shape)
        array[..., 4:14, 5:25] = 1
        array[..., 18:26, 5:25] = 2 * (n < 3)
        write(theirs / f"case{n}_manual.{'png' if request.param == 2 else 'nii.gz'}", array)
        write(ours / f"case{n}{ending}", np.roll(array, n, axis=-1))
        scans.mkdir(exist_ok=True)
        if request.param == 2:
            Picture.fromarray((array[0] * 80).astype(np.uint8)).save(scans / f"case{n}.png")
        else:
            write_image(Image(array.astype(np.float32), Geometry(shape, (2.0, 1.0, 1.0))), scans / f"case{n}.nrrd")
    return ours, theirs, scans


def test_folders_give_tables_and_pictures(folders, tmp_path, capsys):
    ours, theirs, scans = folders
    output = tmp_path / "out"
    assert run("evaluate", ours, "--reference", theirs, "--images", scans, "-o", output, "--worst", "2") == 0
    printed = capsys.readouterr().out
    assert "BCa bootstrap over cases" in printed
    assert "4 compared, 0 failed" in printed
    row = r" 4 +0\.925 +0\.\d{3} to 0\.\d{3} +0\.925 +0\.850 +case3 +(\S+) +(\S+)$"
    numbers = re.search(row, printed, re.MULTILINE)
    assert numbers is not None
    assert float(numbers[1]) > float(numbers[2]) == 0, "the distance, and then the volume"
    assert re.search(r"left out of 4 cases: [^,]+ in 1$", printed, re.MULTILINE)
    assert "HD95 is of the cases" not in printed
    with (output / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows][::2] == ["case0", "case1", "case2", "case3"]
    top = {row["case"]: row for row in rows if row["label"] in ("Cap / top", "Label 1")}
    assert [row["dice"] for row in top.values()] == ["1.0000", "0.9500", "0.9000", "0.8500"]
    assert {row["volume_difference_percent"] for row in top.values()} == {"0.0000"}
    with (output / "summary.csv").open() as file:
        summary = [row for row in csv.DictReader(file) if row["measure"] == "dice"]
    assert [(row["n"], row["left_out"], row["mean"], row["worst"]) for row in summary] == [
        ("4", "0", "0.9250", "case3"),
        ("3", "1", "0.9500", "case2"),
    ]
    assert float(summary[0]["interval_low"]) < 0.925 < float(summary[0]["interval_high"])
    content = json.loads((output / "summary.json").read_text())
    assert content["summary"][summary[1]["label"]]["dice"]["left_out"] == 1
    pictures = {path.name for path in output.glob("*.png")}
    assert len(pictures) == 6
    assert {"worst-overall-case3.png", "worst-overall-case2.png"} < pictures
    assert {path.name for path in output.iterdir()} == pictures | {"cases.csv", "summary.csv", "summary.json"}


def test_files_without_a_counterpart_and_cases_that_differ_are_named_and_stop_nothing(folders, capsys):
    ours, theirs, _ = folders
    (next(theirs.glob("case1*"))).unlink()
    (next(ours.glob("case2*"))).unlink()
    odd = next(ours.glob("case3*"))
    odd.unlink()
    write(odd, np.ones((1, 7, 7)))
    assert run("evaluate", ours, "--reference", theirs, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["cases"]) == ["case0"]
    assert "different grids" in report["failed"]["case3"]
    assert [Path(path).name[:5] for path in report["without_reference"]] == ["case1"]
    assert [Path(path).name[:5] for path in report["without_prediction"]] == ["case2"]
    assert run("evaluate", ours, "--reference", theirs) == 1
    printed = capsys.readouterr().out
    for words in ("case3 failed", "has no reference", "has no prediction", "1 compared, 1 failed", "n=1"):
        assert words in printed
    assert "bootstrap" not in printed, "one case has no interval"
    assert "has no image" not in printed, "none was asked for"


@pytest.mark.parametrize(
    ("start", "drawn", "answer"),
    [((3, 10, 8), 6, 0), ((3, 10, 8), 5, 1), ((3, 10, 8.4), 6, 1), ((9, 10, 8), 6, 1), ((-1, 10, 8), 6, 1)],
    ids=["cropped", "not all filled", "between voxels", "reaching out", "beginning outside"],
)
def test_a_reference_that_slicer_has_cropped_to_its_segments_is_background_beyond(
    start, drawn, answer, tmp_path, capsys
):
    grid = Geometry((12, 30, 40), (2.0, 1.0, 1.0), direction=OBLIQUE)
    part = Geometry((4, 5, 6), grid.spacing, tuple((grid.affine @ [*start, 1])[:3]), OBLIQUE)
    ours, theirs = np.zeros(grid.shape, np.uint8), np.zeros(part.shape, np.uint8)
    ours[3:7, 10:15, 8:14] = theirs[..., :drawn] = 1
    ours[0, 0] = 2
    write_labels(Labels(ours, grid, SEGMENTS), tmp_path / "ours.seg.nrrd")
    write_labels(Labels(theirs, part, SEGMENTS), tmp_path / "theirs.seg.nrrd")
    both = tmp_path / "ours.seg.nrrd", "--reference", tmp_path / "theirs.seg.nrrd"
    assert run("evaluate", *both, "--json") == answer
    report = json.loads(capsys.readouterr().out)
    if answer:
        assert "different grids" in report["error"]
    else:
        found = {name: label["dice"] for name, label in report["cases"]["ours"]["labels"].items()}
        assert found == {"Cap / top": 1, "Base": 0}, "what lies beyond isn't passed over"


def test_a_reference_of_empty_segments_that_slicer_has_cropped_to_a_voxel_is_background(tmp_path, capsys):
    ours = np.zeros((12, 30, 40))
    ours[3:5] = 1
    write(tmp_path / "ours.seg.nrrd", ours)
    write(tmp_path / "theirs.seg.nrrd", np.zeros((1, 1, 1)))
    assert run("evaluate", tmp_path / "ours.seg.nrrd", "--reference", tmp_path / "theirs.seg.nrrd", "--json") == 0
    labels = json.loads(capsys.readouterr().out)["cases"]["ours"]["labels"]
    assert {name: label["dice"] for name, label in labels.items()} == {"Cap / top": 0, "Base": None}


def test_a_case_that_failed_has_a_row_that_says_why(folders, tmp_path):
    ours, theirs, _ = folders
    odd = next(ours.glob("case3*"))
    odd.unlink()
    write(odd, np.ones((1, 7, 7)))
    assert run("evaluate", ours, "--reference", theirs, "-o", tmp_path / "out") == 1
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as file:
        *others, last = csv.DictReader(file)
    assert {row["message"] for row in others} == {""}
    assert "different grids" in last.pop("message")
    assert last.pop("case") == "case3"
    assert set(last.values()) == {""}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_text_stops_no_table(folders, tmp_path):
    ours, theirs, _ = folders
    for side in (ours, theirs):
        odd = next(side.glob("case3*"))
        odd.rename(os.fsdecode(os.fsencode(odd).replace(b"case3", b"caf\xe9")))
    assert run("evaluate", ours, "--reference", theirs, "-o", tmp_path / "out") == 1
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as file:
        assert [*csv.DictReader(file)][-1]["case"] == "caf?"
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["failed"]) == 1


def test_names_that_fit_nowhere_are_said(folders, tmp_path, capsys):
    ours, theirs, _ = folders
    other = tmp_path / "other.seg.nrrd"
    array = np.ones((1, 30, 40), np.uint8)
    write(tmp_path / "ours" / "named.seg.nrrd", array)
    write_labels(Labels(array, Geometry(array.shape, (2.0, 1.0, 1.0)), (Segment(1, "Top", (0, 0, 0)),)), other)
    assert run("evaluate", tmp_path / "ours" / "named.seg.nrrd", "--reference", other) == 0
    assert "no label is on both sides, by name or value, in 1 of 1, such as named; say" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "ours" / "named.seg.nrrd", "--reference", other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["without_common_label"] == ["named"]
    (tmp_path / "ours" / "named.seg.nrrd").unlink()
    assert run("evaluate", ours, "--reference", theirs) == 0
    assert "no label is on both sides" not in capsys.readouterr().out


def test_an_earlier_comparison_is_kept_unless_told_otherwise(folders, tmp_path, capsys):
    ours, theirs, _ = folders
    output = tmp_path / "out"
    arguments = ("evaluate", ours, "--reference", theirs, "-o", output, "--worst", "1")
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in output.iterdir()}
    assert run(*arguments) == 1
    assert "is kept" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    for name in TABLES:
        (output / name).unlink()
    assert run(*arguments) == 1
    assert "worst-" in capsys.readouterr().err
    (output / "worst-other.png").write_bytes(b"mine")
    assert run(*arguments, "--overwrite") == 0
    assert "left as they are: worst-other.png" in capsys.readouterr().out
    assert (output / "worst-other.png").read_bytes() == b"mine"


def test_a_scan_that_cannot_be_read_costs_its_pictures_only(folders, tmp_path, capsys):
    ours, theirs, scans = folders
    next(scans.glob("case3*")).write_bytes(b"broken")
    next(scans.glob("case2*")).unlink()
    output = tmp_path / "out"
    assert run("evaluate", ours, "--reference", theirs, "--images", scans, "-o", output, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["undrawn"]) == ["case3"]
    assert (output / "worst-overall-case2.png").exists()
    assert str(output / "worst-overall-case2.png") in report["pictures"]
    assert not [name for name in report["pictures"] if "case3" in name]
    assert report["without_image"] == ["case2"]
    assert run("evaluate", ours, "--reference", theirs, "--images", scans, "-o", output, "--overwrite") == 0
    printed = capsys.readouterr().out
    assert "case2 has no image" in printed
    assert "case3: no picture: " in printed


@pytest.mark.parametrize(
    "names",
    [("a.seg.nrrd", "b.png", "c.nii"), ("a.png", "b.seg.nrrd", "c.nii"), ("a.png", "b.png", "c.nii"),
     ("a.seg.nrrd", "b.nii", "c.png")],
)  # fmt: skip
def test_a_picture_lies_where_what_it_is_compared_with_does(tmp_path, capsys, names):
    ours, theirs, scan = (tmp_path / name for name in names)
    geometry = Geometry((1, 30, 40), (3.0, 0.8, 0.8), (10, 20, 30))
    array = np.zeros(geometry.shape, np.uint8)
    array[:, 5:20, 5:30] = 1
    write_labels(Labels(np.roll(array, 2, axis=1), geometry, SEGMENTS[:1]), ours)
    if theirs.suffix == ".png":
        Picture.fromarray(array[0]).save(theirs)  # of no size
    else:
        write_labels(Labels(array, geometry, SEGMENTS[:1]), theirs)
    if scan.suffix == ".png":
        Picture.fromarray(array[0] * 200).save(scan)
    else:
        write_image(Image(array * 200, geometry), scan)
    arguments = ("--reference", theirs, "--images", scan, "-o", tmp_path / "out", "--json")
    assert run("evaluate", ours, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    (scores,) = report["cases"]["a"]["labels"].values()
    assert (scores["dice"], scores["hausdorff95_mm"]) == (pytest.approx(13 / 15), pytest.approx(1.6))
    with Picture.open(report["pictures"][0]) as picture:
        assert (np.asarray(picture) == 255).all(axis=-1).mean() > 0.1, "the scan's bright part"


def test_labels_that_belong_together_are_scored_and_drawn_as_one(folders, tmp_path, capsys):
    ours, theirs, _ = folders
    (tmp_path / "groups.json").write_text('{"Both": {"prediction": [1, 2], "reference": [1, 2]}}', encoding="utf-8")
    arguments = ("--groups", tmp_path / "groups.json", "-o", tmp_path / "out", "--worst", "1", "--json")
    assert run("evaluate", ours, "--reference", theirs, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert {case: list(found["labels"]) for case, found in report["cases"].items()} == {
        f"case{n}": ["Both"] for n in range(4)
    }
    assert report["pictures"] == [str(tmp_path / "out" / "worst-both-case3.png")]
    assert report["without_image"] == [], "none was asked for"
    with Picture.open(report["pictures"][0]) as picture:
        assert (np.asarray(picture) == PREDICTION_COLOR).all(axis=-1).any()


def test_a_label_that_groups_name_and_no_case_has_is_said(folders, tmp_path, capsys):
    ours, theirs, _ = folders
    groups = {"All": {"prediction": [1, 2, 7], "reference": ["label 1", "Lable 2"]}, "Any": {}}
    (tmp_path / "groups.json").write_text(json.dumps(groups), encoding="utf-8")
    arguments = ("evaluate", ours, "--reference", theirs, "--groups", tmp_path / "groups.json")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "no prediction has the label 7, which --groups names" in printed
    assert "no reference has the label Lable 2, which --groups names" in printed
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["not_found"] == {"prediction": [7], "reference": ["Lable 2"]}


def test_no_picture_is_made_of_perfect_cases_or_where_none_is_wanted(folders, tmp_path):
    ours, theirs, _ = folders
    assert run("evaluate", theirs, "--reference", theirs, "-o", tmp_path / "same") == 0
    assert run("evaluate", ours, "--reference", theirs, "-o", tmp_path / "none", "--worst", "0") == 0
    assert not [*tmp_path.glob("same/*.png"), *tmp_path.glob("none/*.png")]


def test_an_order_that_names_gainsay_is_said(folders, capsys):
    ours, theirs = (sorted(folder.iterdir()) for folder in folders[:2])
    assert run("evaluate", *ours, "--reference", *reversed(theirs)) == 0
    printed = capsys.readouterr().out
    assert f"which 4 names gainsay, such as {ours[0].name} with {theirs[3].name}; give folders" in printed
    assert run("evaluate", *ours, "--reference", *theirs) == 0
    assert run("evaluate", ours[0], ours[0], "--reference", *theirs[:2]) == 0  # two raters of one case, say
    assert "gainsay" not in capsys.readouterr().out


def test_a_distance_that_not_all_cases_have_is_said(folders, capsys):
    ours, theirs, _ = folders
    prediction, reference = sorted(ours.iterdir())[0], sorted(theirs.iterdir())[0]
    empty = ours / ("empty" + "".join(prediction.suffixes))
    write(empty, np.zeros((1, 30, 40) if prediction.suffix == ".png" else (12, 30, 40)))
    assert run("evaluate", prediction, empty, "--reference", reference, reference) == 0
    printed = capsys.readouterr().out
    assert "HD95 is of the cases that have the label on both sides" in printed
    assert " in 1 of 2" in printed
    assert run("evaluate", prediction, "--reference", empty) == 0
    printed = capsys.readouterr().out
    assert "no label is on both sides" not in printed
    assert "nan" not in printed


def test_of_an_atlas_labels_the_notes_name_the_first(tmp_path, capsys):
    for side, first in (("ours", 1), ("theirs", 101)):
        for n in range(2):
            array = np.zeros((4, 30, 40), np.uint8)
            array[0, 0] = np.arange(first, first + 40) * (n == 0)
            (tmp_path / side).mkdir(exist_ok=True)
            write_labels(Labels(array, Geometry(array.shape)), tmp_path / side / f"case{n}.nrrd")
    assert run("evaluate", tmp_path / "ours", "--reference", tmp_path / "theirs") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "HD95 is" in line or "neither side" in line]
    assert [note.count("Label") for note in notes] == [5, 5]
    assert all(note.endswith(" and 75 more") for note in notes)
    assert some("abcde") == "a, b, c, d, e"
