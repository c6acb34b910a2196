import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import itk, make_scan, make_segmenter

from DeepLabSegLib.batch import Case, find_nested, find_scans, segment_files, write_report
from DeepLabSegLib.errors import Cancelled, InvalidInput, OutputError
from DeepLabSegLib.files import read_labels


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


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


def test_hidden_files_are_no_scans_and_nested_ones_are_named(folder, tmp_path):
    (folder / "._a.nii.gz").write_bytes(b"of macOS")
    series = folder / "patient" / "series"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert [path.name for path in find_scans(folder)] == ["a.nii.gz", "b.nrrd"]
    assert find_nested(folder) == [folder / "patient"]
    with pytest.raises(InvalidInput, match=r"holds no scan; .*scans does"):
        find_scans(tmp_path)


def test_volumes_for_which_pictures_are_asked_are_refused_before_they_are_segmented(folder, tmp_path):
    def never(progress) -> None:
        pytest.fail("segmented for nothing")

    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", suffix=".png", on_progress=never)
    assert ["12 slices; write a .nrrd" in case.message for case in cases] == [True, True]


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


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_table_has_the_volumes_of_kept_cases_too(folder, tmp_path, dims, suffix):
    segmenter, scans, report = make_segmenter(dims), find_scans(folder), tmp_path / "report.csv"
    done = segment_files(segmenter, scans, tmp_path / "results", suffix=suffix, report=report)
    written = read_table(report)
    kept = segment_files(segmenter, scans, tmp_path / "results", suffix=suffix, report=report)
    assert [case.status for case in kept] == ["kept", "kept"]
    assert [case.volumes_ml for case in kept] == [pytest.approx(case.volumes_ml) for case in done]
    assert [row[3:5] for row in read_table(report)] == [row[3:5] for row in written]


def test_an_interruption_leaves_the_table_of_what_is_finished(folder, tmp_path):
    def stop(case) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_files(
            make_segmenter(2), find_scans(folder), tmp_path / "out", on_case=stop, report=tmp_path / "report.csv"
        )
    assert [row[:2] for row in read_table(tmp_path / "report.csv")] == [["case", "status"], ["a", "done"]]


def test_an_empty_file_is_no_result_and_an_unreadable_one_is_named_and_left(folder, tmp_path):
    segmenter, scans = make_segmenter(2), find_scans(folder)
    segment_files(segmenter, scans, tmp_path / "results")
    result = tmp_path / "results" / "a.seg.nrrd"
    whole = result.read_bytes()
    result.write_bytes(b"")
    assert [case.status for case in segment_files(segmenter, scans, tmp_path / "results")] == ["done", "kept"]
    assert result.read_bytes() == whole
    result.write_bytes(whole[:300])
    case, other = segment_files(segmenter, scans, tmp_path / "results")
    assert (case.status, other.status) == ("failed", "kept")
    assert "a.seg.nrrd can't be read" in case.message
    assert "overwrite it" in case.message
    assert result.read_bytes() == whole[:300]


def test_what_is_no_label_map_is_neither_a_result_nor_replaced(folder, tmp_path, scan):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(itk(scan), path)
    before = path.read_bytes()
    case, _ = segment_files(make_segmenter(2), find_scans(folder), tmp_path, suffix=".nrrd")
    assert case.status == "failed"
    assert "a.nrrd holds fractions" in case.message
    assert path.read_bytes() == before


def test_two_scans_of_one_name_are_refused(folder, tmp_path, rng):
    sitk.WriteImage(itk(make_scan(rng)), folder / "a.mha")
    with pytest.raises(InvalidInput, match="several scans are called a"):
        segment_files(make_segmenter(2), find_scans(folder), tmp_path / "results")
    with pytest.raises(InvalidInput, match=r"suffix is '\.txt'"):
        segment_files(make_segmenter(2), [folder / "a.mha"], tmp_path / "results", suffix=".txt")


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_never_take_the_place_of_scans(folder, overwrite):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=r"b\.nrrd is an input"):
        segment_files(make_segmenter(2), [folder / "b.nrrd"], folder, suffix=".nrrd", overwrite=overwrite)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_report_is_a_table_of_all_cases(tmp_path):
    write_report([Case("a", "done", 1.5, {"Liver": 3.0}), Case("b", "failed", message="no")], tmp_path / "report.csv")
    assert read_table(tmp_path / "report.csv") == [
        ["case", "status", "seconds", "Liver (ml)", "message"],
        ["a", "done", "1.50", "3.000", ""],
        ["b", "failed", "0.00", "", "no"],
    ]
