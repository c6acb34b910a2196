import csv
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import CLOSED, itk, make_scan, make_segmenter
from PIL import Image as Picture

from DeepLabSegLib.batch import Case, collect, find_nested, find_scans, read_report, segment_files, write_report
from DeepLabSegLib.batch.report import is_older
from DeepLabSegLib.errors import Cancelled, InvalidInput, OutputError
from DeepLabSegLib.files import read_labels, write_labels
from DeepLabSegLib.image import Image, Labels
from DeepLabSegLib.segmenter import Segmenter, SegmentOptions

MEMORY = Path("/proc/self/mem")
"""A file that can be opened, and not read."""


def never(progress) -> None:
    pytest.fail("segmented for nothing")


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


def test_a_folder_of_dicom_is_a_scan(tmp_path):
    series = tmp_path / "patients" / "one"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "patients" / "empty").mkdir()
    assert find_scans(tmp_path / "patients") == [series]
    with pytest.raises(InvalidInput, match=r"lie in .*one itself; give the folder that it is in"):
        find_scans(series)


def test_hidden_files_are_no_scans_and_nested_ones_are_named(folder, tmp_path):
    (folder / "._a.nii.gz").write_bytes(b"of macOS")
    (folder / "report.csv").write_text("patient,age\na,40\n", encoding="utf-8")
    series = folder / "patient" / "series"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "patient" / "report.csv").mkdir()
    assert [path.name for path in find_scans(folder)] == ["a.nii.gz", "b.nrrd"]
    assert find_nested(folder) == [folder / "patient"]
    with pytest.raises(InvalidInput, match=r"holds no scan; .*scans does"):
        find_scans(tmp_path)


def test_what_is_closed_to_us_stops_nothing(folder, monkeypatch):
    closed, patient = folder / "lost+found", folder / "patient"
    closed.mkdir()
    patient.mkdir()
    (patient / "2.dcm").write_bytes(b"\0" * 128 + b"DICM")
    if MEMORY.exists():
        (patient / "1.dcm").symlink_to(MEMORY)
    look = Path.iterdir

    def refuse(path: Path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert [path.name for path in find_scans(folder)] == ["a.nii.gz", "b.nrrd", "patient"]
    assert find_nested(folder) == []


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nrrd", ".png"])
def test_pictures_are_scans_where_there_is_no_volume(tmp_path, suffix):
    pictures, results = tmp_path / "pictures", tmp_path / "pictures" / "results"
    pictures.mkdir()
    for name in ("x.png", "y.JPG"):
        Picture.linear_gradient("L").resize((40, 32)).save(pictures / name)
    report = results / "report.csv"
    for status in ("done", "kept"):
        cases = segment_files(make_segmenter(2), find_scans(pictures), results, suffix=suffix, report=report)
        assert [(case.name, case.status, case.result) for case in cases] == [
            ("x", status, f"x{suffix}"),
            ("y", status, f"y{suffix}"),
        ]


def test_a_picture_is_kept_as_the_result_of_a_slice_that_lies_anywhere(tmp_path, rng):
    scan = tmp_path / "slice.nii.gz"
    for shape, status in (((1, 40, 36), "done"), ((1, 40, 36), "kept"), ((1, 40, 30), "failed")):
        sitk.WriteImage(itk(make_scan(rng, shape)), scan)
        (case,) = segment_files(make_segmenter(2), [scan], tmp_path / "out", suffix=".png")
        assert case.status == status


def test_where_only_a_subfolder_holds_pictures_it_is_named(tmp_path):
    (tmp_path / "inner").mkdir()
    Picture.new("L", (40, 32)).save(tmp_path / "inner" / "a.png")
    with pytest.raises(InvalidInput, match=r"holds no scan; .*inner does"):
        find_scans(tmp_path)


def test_pictures_beside_volumes_are_none(folder):
    (folder / "previews").mkdir()
    for path in (folder / "a.png", folder / "previews" / "a.png"):
        Picture.new("L", (40, 32)).save(path)
    assert [path.name for path in find_scans(folder)] == ["a.nii.gz", "b.nrrd"]
    assert find_nested(folder) == []


def test_results_beside_the_scans_are_no_scans_of_the_next_run(folder):
    (folder / "b.nrrd").unlink()
    for status, output in (("done", folder), ("kept", folder), ("done", folder / "results")):
        scans = find_scans(folder)
        (case,) = segment_files(make_segmenter(2), scans, output, suffix=".nrrd", report=output / "report.csv")
        assert (case.name, case.status) == ("a", status)
    assert (folder / "results" / "a.nrrd").exists()
    assert find_nested(folder) == []


def test_volumes_for_which_pictures_are_asked_are_refused_before_they_are_segmented(folder, tmp_path):
    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", suffix=".png", on_progress=never)
    assert ["12 slices; write a .nrrd" in case.message for case in cases] == [True, True]


@pytest.mark.parametrize("dims", [2, 3])
def test_plain_label_maps_of_what_may_overlap_are_refused_before_any_scan(folder, tmp_path, dims):
    segmenter = make_segmenter(dims, classes=2, activation="sigmoid")
    with pytest.raises(OutputError, match=r"a\.nii\.gz is a plain label map and can't hold segments that overlap"):
        segment_files(segmenter, find_scans(folder), tmp_path / "out", suffix=".nii.gz")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dims", "options", "words"),
    [
        (2, SegmentOptions(tile=(16, 16, 16)), "tile has 3 sizes; this model is 2D and needs 2"),
        (3, SegmentOptions(slice_axis="axial"), "slice_axis is 'axial', but the model tiny-3d is 3D; leave it out"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_before_any_scan(folder, tmp_path, dims, options, words):
    with pytest.raises(InvalidInput, match=words):
        segment_files(make_segmenter(dims), find_scans(folder), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


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


def test_one_that_fails_as_nobody_foresaw_does_not_stop_the_rest_either(folder, tmp_path):
    def fault(progress) -> None:
        if not list((tmp_path / "out").glob("a.*")) and progress.stage == "restore":
            (tmp_path / "out" / "a.seg.nrrd").touch()
            raise RuntimeError("CUDA error: unspecified launch failure")

    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", on_progress=fault)
    assert [case.status for case in cases] == ["failed", "done"]
    assert cases[0].message == "RuntimeError: CUDA error: unspecified launch failure"


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


def test_segments_that_overlap_have_their_volumes_in_the_table_too(folder, tmp_path):
    segmenter = make_segmenter(2, classes=2, activation="sigmoid")
    done, kept = (
        segment_files(segmenter, find_scans(folder), tmp_path / "out", report=tmp_path / "report.csv") for _ in range(2)
    )
    assert [case.volumes_ml for case in kept] == [pytest.approx(case.volumes_ml) for case in done]


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
@pytest.mark.parametrize("dims", [2, 3])
def test_results_of_another_model_or_other_options_are_named_and_left(folder, tmp_path, dims, suffix):
    def run(segmenter: Segmenter, options: SegmentOptions | None = None, **more) -> list[Case]:
        return segment_files(segmenter, find_scans(folder), results, options, suffix=suffix, report=report, **more)

    results, report = tmp_path / "results", tmp_path / "results" / "report.csv"
    segmenter = make_segmenter(dims)
    other = Segmenter(replace(segmenter.bundle, name="other", sha256="0123456789"), segmenter.network, "cpu")
    run(segmenter)
    before = read_labels(results / f"a{suffix}").array
    version = other.bundle.version
    assert version.startswith("01234567-")
    words = f"was made with tiny-{dims}d, and not with other ({version}); use another output folder, or overwrite it"
    for _ in range(2):
        assert [(case.status, words in case.message) for case in run(other)] == [("failed", True)] * 2
    assert (
        "not with tiny-2d, overlap=0.5;".replace("2", str(dims))
        in run(segmenter, SegmentOptions(overlap=0.5))[0].message
    )
    np.testing.assert_array_equal(read_labels(results / f"a{suffix}").array, before)
    assert [case.status for case in run(segmenter, SegmentOptions(uncertainty=True))] == ["kept", "kept"]
    assert {case.made_with for case in run(other, SegmentOptions(mirror=True), overwrite=True)} == {
        f"other ({version}), mirror=True"
    }
    assert [case.status for case in run(other, SegmentOptions(mirror=True))] == ["kept", "kept"]


def test_a_case_that_failed_keeps_the_volumes_of_the_result_that_is_left(folder, tmp_path):
    report, segmenter = tmp_path / "report.csv", make_segmenter(2)
    other = Segmenter(replace(segmenter.bundle, name="other"), segmenter.network, "cpu")
    segment_files(segmenter, find_scans(folder), tmp_path / "out", report=report)
    before = [case.volumes_ml for case in read_report(report)]
    segment_files(other, find_scans(folder), tmp_path / "out", report=report)
    assert [(case.status, case.made_with) for case in read_report(report)] == [("failed", "tiny-2d")] * 2
    assert [case.volumes_ml for case in read_report(report)] == before


def test_a_result_that_could_not_be_overwritten_is_named_as_failed_and_stays_what_it_was(folder, tmp_path):
    def full(progress) -> None:
        raise MemoryError

    report, segmenter = tmp_path / "report.csv", make_segmenter(2)
    other = Segmenter(replace(segmenter.bundle, name="other"), segmenter.network, "cpu")
    segment_files(segmenter, find_scans(folder), tmp_path / "out", report=report)
    cases = segment_files(other, find_scans(folder), tmp_path / "out", report=report, overwrite=True, on_progress=full)
    assert [(case.status, case.message, case.made_with) for case in cases] == [("failed", "MemoryError", "tiny-2d")] * 2
    assert [case.status for case in segment_files(segmenter, find_scans(folder), tmp_path / "out")] == ["kept", "kept"]


def test_what_was_written_after_the_table_is_not_what_the_table_says(folder, tmp_path):
    """As after a run with `overwrite` that was killed."""

    def run(segmenter: Segmenter, **more) -> list[Case]:
        return segment_files(segmenter, find_scans(folder)[:1], tmp_path / "out", suffix=".nii.gz", **more)

    report, first = tmp_path / "report.csv", make_segmenter(2)
    other = Segmenter(replace(first.bundle, name="other"), first.network, "cpu")
    run(first, report=report)
    run(other, overwrite=True)
    for _ in range(2):
        (case,) = run(first, report=report)
        assert (case.status, case.made_with, set(case.volumes_ml)) == ("kept", "", {"Label 1", "Label 2"})
        assert read_report(report)[0].volumes_ml == pytest.approx(case.volumes_ml, abs=1e-3)


def test_a_result_of_the_same_moment_as_the_table_is_what_the_table_says(folder, tmp_path):
    """As on a disk whose clock goes by whole seconds."""
    report, result = tmp_path / "report.csv", tmp_path / "out" / "a.seg.nrrd"
    for status in ("done", "kept"):
        (case,) = segment_files(make_segmenter(2), find_scans(folder)[:1], tmp_path / "out", report=report)
        for path in (result, report, folder / "a.nii.gz"):
            os.utime(path, (1e9, 1e9))
        assert (case.status, case.made_with, case.older) == (status, "tiny-2d", False)


def test_the_table_has_no_volumes_of_a_result_that_was_edited_since(folder, tmp_path):
    first, second = find_scans(folder)
    report, result = tmp_path / "report.csv", tmp_path / "out" / "a.seg.nrrd"
    segment_files(make_segmenter(2), [first], tmp_path / "out", report=report)
    labels = read_labels(result)
    write_labels(replace(labels, array=0 * labels.array), result, overwrite=True)
    for _ in range(2):
        segment_files(make_segmenter(2), [second], tmp_path / "out", report=report)
        edited, other = read_report(report)
        assert (edited.name, edited.volumes_ml, edited.made_with) == ("a", {}, "")
        assert other.volumes_ml


def test_names_are_those_of_a_model_only_where_it_made_the_result(folder, tmp_path):
    for _ in range(2):
        cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", suffix=".nii.gz")
    assert [set(case.volumes_ml) for case in cases] == [{"Label 1", "Label 2"}] * 2


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_result_of_another_scan_is_named_and_left(folder, tmp_path, rng, dims, suffix):
    segment_files(make_segmenter(dims), find_scans(folder), tmp_path / "out", suffix=suffix)
    result = tmp_path / "out" / f"a{suffix}"
    before = result.read_bytes()
    other = make_scan(rng)
    moved = [Image(other.array, replace(other.geometry, origin=(-20.0, 35.5, z_mm))) for z_mm in (8.75, 10.25)]
    for scan in (make_scan(rng, (10, 36, 36)), make_scan(rng, spacing=(3.0, 1.5, 1.5)), *moved):
        sitk.WriteImage(itk(scan), folder / "a.nii.gz")
        case, other = segment_files(make_segmenter(dims), find_scans(folder), tmp_path / "out", suffix=suffix)
        assert (case.status, other.status) == ("failed", "kept")
        assert f"a{suffix} lies on another grid than {folder / 'a.nii.gz'}" in case.message
        assert "move or overwrite it" in case.message
    assert result.read_bytes() == before


def test_a_result_that_slicer_saved_without_its_empty_margin_is_kept(folder, tmp_path):
    segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out")
    result = tmp_path / "out" / "a.seg.nrrd"
    labels = read_labels(result)
    corner = labels.geometry.affine @ (2, 10, 4, 1)
    block = labels.array[2:9, 10:30, 4:30]
    part = replace(labels.geometry, shape=block.shape, origin=tuple(corner[:3]))
    write_labels(Labels(block, part, labels.segments), result, overwrite=True)
    assert segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out")[0].status == "kept"


def test_a_result_that_is_older_than_its_scan_is_said(folder, tmp_path):
    for age_s in (10, -10):
        cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out")
        then = (tmp_path / "out" / "a.seg.nrrd").stat().st_mtime - age_s
        os.utime(folder / "a.nii.gz", (then, then))
    assert not cases[0].older
    assert "is older" not in cases[0].message
    case, _ = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out")
    assert (case.status, case.older) == ("kept", True)
    assert "is older than its scan; overwrite it" in case.message


def test_a_folder_of_slices_is_as_young_as_its_youngest_slice(tmp_path):
    series, result = tmp_path / "series", tmp_path / "series.seg.nrrd"
    series.mkdir()
    for name, time_s in (("1.dcm", 3), ("2.dcm", 1)):
        (series / name).touch()
        os.utime(series / name, (time_s, time_s))
    result.touch()
    os.utime(series, (1, 1))
    for time_s in (2, 3):
        os.utime(result, (time_s, time_s))
        assert is_older(result, series) == (time_s < 3)


def test_the_table_keeps_the_rows_of_results_that_are_there(folder, tmp_path, rng):
    def cases() -> list[tuple[str, str]]:
        return [(case.name, case.status) for case in read_report(report)]

    def stop(case: Case) -> None:
        raise KeyboardInterrupt

    segmenter, report, other = make_segmenter(2), tmp_path / "out" / "report.csv", tmp_path / "other" / "c.nrrd"
    other.parent.mkdir()
    sitk.WriteImage(itk(make_scan(rng)), other)
    segment_files(segmenter, find_scans(folder), tmp_path / "out", report=report)
    segment_files(segmenter, [other], tmp_path / "out", report=report)
    assert cases() == [("a", "done"), ("b", "done"), ("c", "done")]
    volumes = read_table(report)[1:]
    with pytest.raises(KeyboardInterrupt):
        segment_files(segmenter, [other], tmp_path / "out", report=report, overwrite=True, on_case=stop)
    assert [row[3:5] for row in read_table(report)[1:]] == [row[3:5] for row in volumes]
    (tmp_path / "out" / "a.seg.nrrd").unlink()
    segment_files(segmenter, [other], tmp_path / "out", report=report)
    assert cases() == [("b", "done"), ("c", "kept")]


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "saved by Excel"])
def test_a_table_of_an_earlier_version_is_gone_on_with(folder, tmp_path, start):
    report = tmp_path / "out" / "report.csv"
    segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out")
    rows = "case,status,seconds,Part 1 (ml),message\na,done,1.0,2.5,,\nb,failed,0.1,,damaged\nb,failed,1\n"
    report.write_text(f"{start}{rows}", encoding="utf-8")
    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", report=report)
    assert [case.status for case in cases] == ["kept", "kept"]
    assert [case.result for case in read_report(report)] == ["a.seg.nrrd", "b.seg.nrrd"]


def test_what_a_killed_run_has_finished_is_in_the_table(folder, tmp_path):
    report = tmp_path / "out" / "report.csv"
    seen = []
    segment_files(
        make_segmenter(2), find_scans(folder), tmp_path / "out", report=report,
        on_case=lambda case: seen.append([row.name for row in read_report(report)]),
    )  # fmt: skip
    assert seen == [["a"], ["a", "b"]]


@pytest.mark.parametrize(
    "text",
    [
        "patient,age\na,40\n",
        "case,status\na,fine\n",
        "a;b\n1;2,3\n",
        "case,status,seconds,message\na,done\n",
        "case,status,seconds,message\na,done,quick,\n",
        pytest.param('case\n"' + 200_000 * "a", id="of one long text"),
    ],
)
def test_a_table_that_is_not_of_a_batch_is_not_lost(folder, tmp_path, text):
    report = tmp_path / "report.csv"
    report.write_text(text)
    with pytest.raises(OutputError, match=r"report\.csv is no table of a batch, and would be lost; move it"):
        segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", report=report)
    assert report.read_text() == text


def test_a_table_that_is_closed_to_us_is_not_taken_for_another(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")  # as Windows does while Excel shows it

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match=r"report\.csv can't be read \(Permission denied\); close it"):
        read_report(tmp_path / "report.csv")


def test_what_another_process_has_made_meanwhile_is_kept(folder, tmp_path):
    out, report = tmp_path / "out", tmp_path / "out" / "report.csv"

    def other_process(progress) -> None:
        if not report.exists():
            segment_files(make_segmenter(2), find_scans(folder), out, report=report)

    cases = segment_files(make_segmenter(2), find_scans(folder), out, on_progress=other_process, report=report)
    assert [case.status for case in cases] == ["kept", "kept"]
    assert [(row.status, row.made_with) for row in read_report(report)] == [("done", "tiny-2d")] * 2


def test_what_another_process_has_made_of_a_case_that_failed_here_is_in_the_table(folder, tmp_path):
    scans, out, report = find_scans(folder), tmp_path / "out", tmp_path / "out" / "report.csv"
    whole = scans[0].read_bytes()
    scans[0].write_bytes(b"")

    def other_process(progress) -> None:
        if not (out / "a.seg.nrrd").exists():
            scans[0].write_bytes(whole)
            segment_files(make_segmenter(2), scans[:1], out, report=report)

    cases = segment_files(make_segmenter(2), scans, out, on_progress=other_process, report=report)
    assert [case.status for case in cases] == ["failed", "done"]
    assert [(row.status, row.made_with) for row in read_report(report)] == [("done", "tiny-2d")] * 2


def test_two_processes_that_meet_at_a_case_part_ways(folder, tmp_path, rng, monkeypatch):
    for name in "cdef":
        sitk.WriteImage(itk(make_scan(rng)), folder / f"{name}.nrrd")
    out, met = tmp_path / "out", []

    def other_process(progress) -> None:
        if not met:
            met.append("a")
            segment_files(make_segmenter(2), find_scans(folder)[:1], out)

    monkeypatch.setattr("random.shuffle", list.reverse)
    cases = segment_files(make_segmenter(2), find_scans(folder), out, on_progress=other_process)
    assert [(case.name, case.status) for case in cases] == [("a", "kept"), *((name, "done") for name in "fedcb")]
    assert [case.name for case in segment_files(make_segmenter(2), find_scans(folder), out)] == [*"abcdef"]


@pytest.mark.parametrize(("quick_s", "times"), [(10, 4), (0.05, 2)], ids=["short", "long"])
def test_a_table_that_takes_long_to_write_is_not_written_for_every_case(monkeypatch, quick_s, times):
    written = []

    def write(cases) -> None:
        time.sleep(0.1)
        written.append(len(cases))

    monkeypatch.setattr("DeepLabSegLib.batch.run.QUICK_S", quick_s)
    cases = [Case(name, "done") for name in "abc"]
    assert collect(cases, write=write) == cases
    assert len(written) == times
    assert written[-1] == 3


def full(_) -> None:
    raise OutputError("report.csv can't be written (No space left on device)")


def test_a_table_that_can_not_be_written_at_last_says_that_the_results_are_there():
    with pytest.raises(OutputError, match=r"No space left on device\); the results are there, and the same command"):
        collect([Case("a", "done")], write=full)


def test_a_table_that_can_not_be_written_hides_no_interruption():
    def interrupt(_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect([Case("a", "done")], interrupt, full)


def test_a_table_that_another_program_shows_is_named_before_the_work(folder, tmp_path, monkeypatch):
    report, before = tmp_path / "report.csv", Path.replace
    segment_files(make_segmenter(2), find_scans(folder)[:1], tmp_path / "out", report=report)

    def refuse(path: Path, target: Path) -> Path:
        if target.name == "report.csv":  # as Windows does
            raise PermissionError(13, "Permission denied", str(target))
        return before(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("DeepLabSegLib.outputs.PAUSES_S", ())
    with pytest.raises(OutputError, match=r"report\.csv can't be replaced .* close it in other programs"):
        segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", report=report)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.seg.nrrd"]


def test_a_name_that_is_too_long_for_a_result_stops_nothing(folder, tmp_path):
    (folder / "a.nii.gz").rename(folder / f"{'a' * 247}.nii.gz")
    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out")
    assert [case.status for case in cases] == ["failed", "done"]
    assert "aaa.seg.nrrd: File name too long" in cases[0].message
    assert "Errno" not in cases[0].message


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_text_stops_nothing(folder, tmp_path):
    (folder / "a.nii.gz").rename(folder / os.fsdecode(b"caf\xe9.nii.gz"))
    cases = segment_files(make_segmenter(2), find_scans(folder), tmp_path / "out", report=tmp_path / "report.csv")
    assert [case.status for case in cases] == ["done", "failed"]
    assert [row[0] for row in read_table(tmp_path / "report.csv")] == ["case", "b", "caf?"]


@pytest.mark.skipif(not CLOSED.exists(), reason="needs a folder that takes no file, whoever asks")
def test_a_folder_that_takes_no_file_is_named_before_the_work(folder):
    cases = segment_files(make_segmenter(2), find_scans(folder), CLOSED, on_progress=never)
    assert ["/proc can't be written to; choose" in case.message for case in cases] == [True, True]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("notes.txt", r"notes\.txt is a file; give a folder"),
        ("notes.txt/out", r"out can't be made \(.*\); .* choose another place"),
    ],
)
def test_an_output_folder_that_is_a_file_or_in_one_is_said(folder, name, words):
    with pytest.raises(OutputError, match=words):
        segment_files(make_segmenter(2), find_scans(folder), folder / name)


def test_an_interruption_leaves_the_table_of_what_is_finished_and_of_what_failed(folder, tmp_path):
    def stop(case) -> None:
        raise KeyboardInterrupt

    (folder / "a.nii.gz").write_bytes(b"broken")
    with pytest.raises(KeyboardInterrupt):
        segment_files(
            make_segmenter(2), find_scans(folder), tmp_path / "out", on_case=stop, report=tmp_path / "report.csv"
        )
    assert [row[:2] for row in read_table(tmp_path / "report.csv")] == [["case", "status"], ["a", "failed"]]


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


def test_an_empty_folder_in_a_results_place_stops_nothing(folder, tmp_path):
    report = tmp_path / "report.csv"
    (tmp_path / "a.seg.nrrd").mkdir()
    case, other = segment_files(make_segmenter(2), find_scans(folder), tmp_path, report=report)
    assert (case.status, other.status) == ("failed", "done")
    assert "a.seg.nrrd" in case.message
    assert [row.status for row in read_report(report)] == ["failed", "done"]


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


def test_a_folder_in_place_of_its_scans_is_not_taken_letter_by_letter(folder, tmp_path):
    for given in (folder, str(folder)):
        with pytest.raises(InvalidInput, match="give a list of paths, such as that of find_scans"):
            segment_files(make_segmenter(2), given, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_two_scans_that_differ_in_capital_letters_alone_are_refused(folder, tmp_path):
    """On many disks the result of the first would be taken for the second's."""
    with pytest.raises(InvalidInput, match="several scans are called A, a"):
        segment_files(make_segmenter(2), [folder / "a.nii.gz", folder / "A.nrrd"], tmp_path / "results")


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_never_take_the_place_of_scans(folder, overwrite):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=r"b\.nrrd is an input"):
        segment_files(make_segmenter(2), [folder / "b.nrrd"], folder, suffix=".nrrd", overwrite=overwrite)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_report_is_a_table_of_all_cases(tmp_path):
    cases = [
        Case("a", "done", 1.5, {"Liver": 3.0}),
        Case("b", "failed", message="no"),
        Case("c", "kept", volumes_ml={"Spleen": 0.25, "Liver": 1.0}),
    ]
    write_report(cases, tmp_path / "report.csv")
    assert read_table(tmp_path / "report.csv") == [
        ["case", "status", "seconds", "Liver (ml)", "Spleen (ml)", "message", "result", "made with"],
        ["a", "done", "1.50", "3.000", "", "", "", ""],
        ["b", "failed", "0.00", "", "", "no", "", ""],
        ["c", "kept", "0.00", "1.000", "0.250", "", "", ""],
    ]
    assert read_report(tmp_path / "report.csv") == cases
