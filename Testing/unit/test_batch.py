import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import itk, make_scan, make_segmenter

from DeepLabSegLib.batch import Case, find_scans, segment_files, write_report
from DeepLabSegLib.errors import Cancelled, InvalidInput
from DeepLabSegLib.files import read_labels


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.nii.gz", "b.nrrd"):
        sitk.WriteImage(itk(make_scan(rng)), scans / name)
    (scans / "notes.txt").write_text("not a scan")
    sitk.WriteImage(itk(make_scan(rng)), scans / "a.seg.nrrd")
    return scans


def test_scans_are_found_and_segmentations_left_out(folder):
    assert [path.name for path in find_scans(folder)] == ["a.nii.gz", "b.nrrd"]


def test_a_folder_of_dicom_is_a_scan(tmp_path, scan):
    series = tmp_path / "patients" / "one"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "patients" / "empty").mkdir()
    assert find_scans(tmp_path / "patients") == [series]


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_a_folder_without_scans_is_said(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"holds no scan|is no folder"):
        find_scans(tmp_path / name)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_scan_is_segmented_as_alone(folder, tmp_path, dims):
    segmenter, seen = make_segmenter(dims), []
    cases = segment_files(segmenter, find_scans(folder), tmp_path / "results", on_case=seen.append)
    assert seen == cases
    assert [(case.name, case.status) for case in cases] == [("a", "done"), ("b", "done")]
    from DeepLabSegLib.files import read_image

    expected = segmenter.segment(read_image(folder / "a.nii.gz"))
    np.testing.assert_array_equal(read_labels(tmp_path / "results" / "a.seg.nrrd").array, expected.array)
    assert cases[0].volumes_ml == expected.volumes_ml()


def test_one_that_fails_does_not_stop_the_rest(folder, tmp_path):
    (folder / "a.nii.gz").write_bytes(b"broken")
    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "results")
    assert [case.status for case in cases] == ["failed", "done"]
    assert "a.nii.gz can't be read" in cases[0].message


def test_after_an_interruption_it_goes_on_where_it_was(folder, tmp_path):
    segmenter, count = make_segmenter(2), []

    def stop(progress) -> bool:
        count.append(progress.stage == "prepare" and progress.done == 0)
        return sum(count) < 2

    with pytest.raises(Cancelled):
        segment_files(segmenter, find_scans(folder), tmp_path / "results", on_progress=stop)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["a.seg.nrrd"]
    cases = segment_files(segmenter, find_scans(folder), tmp_path / "results")
    assert [case.status for case in cases] == ["kept", "done"]


def test_two_scans_of_one_name_are_refused(folder, tmp_path, rng):
    sitk.WriteImage(itk(make_scan(rng)), folder / "a.mha")
    with pytest.raises(InvalidInput, match="several scans are called a"):
        segment_files(make_segmenter(2), find_scans(folder), tmp_path / "results")
    with pytest.raises(InvalidInput, match=r"suffix is '\.txt'"):
        segment_files(make_segmenter(2), [folder / "a.mha"], tmp_path / "results", suffix=".txt")


def test_the_report_is_a_table_of_all_cases(tmp_path):
    write_report([Case("a", "done", 1.5, {"Liver": 3.0}), Case("b", "failed", message="no")], tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["case", "status", "seconds", "Liver (ml)", "message"],
        ["a", "done", "1.50", "3.000", ""],
        ["b", "failed", "0.00", "", "no"],
    ]
