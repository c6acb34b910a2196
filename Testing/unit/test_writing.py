"""Images and label maps to disk: they come back, and what was there is kept where a write fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import SEGMENTS, itk

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.files import read_image, read_labels, write_image, write_labels
from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.outputs import check_apart, check_output, replacing


@pytest.mark.parametrize("name", ["r.seg.nrrd", "r.nii.gz", "r.nii", "r.nrrd", "r.mha"])
def test_labels_come_back_in_every_format(tmp_path, labels, name):
    write_labels(labels, tmp_path / name)
    again = read_labels(tmp_path / name)
    np.testing.assert_array_equal(again.array, labels.array)
    assert again.geometry.is_close(labels.geometry)
    if name == "r.seg.nrrd":
        assert again.segments == SEGMENTS
    else:
        assert [s.value for s in again.segments] == [1, 2]


def test_a_picture_takes_a_single_slice(tmp_path, labels):
    with pytest.raises(OutputError, match="5 slices"):
        write_labels(labels, tmp_path / "r.png")
    single = Labels(labels.array[:1], Geometry((1, 6, 7)), SEGMENTS)
    write_labels(single, tmp_path / "r.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "r.png").array, single.array)


@pytest.mark.parametrize("kind", ["?", "float16", "longdouble", ">i2", ">f4"])
def test_numbers_of_any_type_can_be_written(tmp_path, kind):
    array = np.array([0, 1, 1, 0, 0, 1]).reshape(1, 2, 3).astype(kind)
    write_image(Image(array, Geometry((1, 2, 3))), tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nrrd").array[0], array)


def test_numbers_that_a_format_has_not_are_no_fault_of_the_disk(tmp_path):
    array = np.array([np.nan, np.inf, 1, 0], np.float32).reshape(1, 1, 2, 2)
    write_image(Image(array, Geometry((1, 2, 2))), tmp_path / "scan.nii.gz")
    assert read_image(tmp_path / "scan.nii.gz").array.ravel().tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    "name",
    [
        "R.NII.GZ",
        pytest.param(
            "a" * 240 + ".nii.gz", marks=pytest.mark.skipif(sys.platform == "win32", reason="a limit on whole paths")
        ),
        "scan.nii.nii.gz",
        "scan.hdr.nii",
    ],
    ids=["capitals", "long", "twice", "another"],
)
def test_capitals_long_names_and_several_endings_can_be_written_to(tmp_path, labels, name):
    write_labels(labels, tmp_path / name)
    np.testing.assert_array_equal(read_labels(tmp_path / name).array, labels.array)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["r.mhd", "r.nhdr"])
def test_an_image_is_not_written_in_two_files(tmp_path, scan, name):
    with pytest.raises(OutputError, match=r"no known ending; choose one of \.nii\.gz, \.nii, \.nrrd, \.mha"):
        write_image(scan, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_no_image_and_what_are_no_labels_is_said(tmp_path, scan, labels):
    for given, kind in ((scan.array, "ndarray"), (labels, "Labels"), (itk(scan), r"SimpleITK\.Image")):
        with pytest.raises(InvalidInput, match=f"the image is a {kind}; make an Image of an array and its Geometry"):
            write_image(given, tmp_path / "r.nrrd")
    for given, kind in ((labels.array, "ndarray"), (scan, "Image")):
        with pytest.raises(InvalidInput, match=f"{kind}, not Labels; an Image goes to write_image"):
            write_labels(given, tmp_path / "r.nrrd")
    assert not list(tmp_path.iterdir())


def test_an_existing_result_is_kept_unless_told_otherwise(tmp_path, labels):
    path = tmp_path / "r.nrrd"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is kept"):
        write_labels(labels, path)
    assert path.read_text() == "mine"
    write_labels(labels, path, overwrite=True)
    assert read_labels(path).array.any()


@pytest.mark.skipif(sys.platform == "win32", reason="no pipe has a name in a folder there")
def test_a_pipe_or_device_that_a_link_leads_to_is_not_replaced(tmp_path, labels):
    """As root one would lose `/dev/null`."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "r.nrrd").symlink_to(tmp_path / "pipe")
    with pytest.raises(OutputError, match=r"r\.nrrd leads to a device or pipe, which would be lost"):
        write_labels(labels, tmp_path / "r.nrrd", overwrite=True)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(sys.platform == "win32", reason="a right to make links")
def test_a_result_that_is_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path, labels):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/blob").write_text("old")
    (tmp_path / "r.nrrd").symlink_to("store/blob")
    write_labels(labels, tmp_path / "r.nrrd", overwrite=True)
    assert (tmp_path / "r.nrrd").is_symlink()
    np.testing.assert_array_equal(read_labels(tmp_path / "r.nrrd").array, labels.array)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["blob"]


@pytest.mark.skipif(sys.platform == "win32", reason="a right to make links")
def test_a_link_that_leads_nowhere_is_refused_before_work_begins(tmp_path):
    (tmp_path / "r.nrrd").symlink_to("gone/blob.nrrd")
    with pytest.raises(OutputError, match="gone does not exist"):
        check_output(tmp_path / "r.nrrd", (".nrrd",))


@pytest.mark.skipif(sys.platform == "win32", reason="a right to make links")
def test_links_that_lead_round_in_a_circle_are_refused(tmp_path):
    first, second = tmp_path / "a.nrrd", tmp_path / "b.nrrd"
    first.symlink_to(second)
    second.symlink_to(first)
    check_apart([first], [tmp_path / "scan.nrrd"])
    with pytest.raises(OutputError, match=r"a\.nrrd is a link that leads round in a circle"):
        check_output(first, (".nrrd",))


def test_a_place_that_cannot_be_written_is_refused(tmp_path, labels):
    for path, words in [
        (tmp_path / "gone" / "r.nrrd", "does not exist"),
        (tmp_path / "r.xyz", "no known ending"),
        (tmp_path, "no known ending"),
    ]:
        with pytest.raises(OutputError, match=words):
            write_labels(labels, path)
    (tmp_path / "folder.nrrd").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_labels(labels, tmp_path / "folder.nrrd")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, labels, monkeypatch):
    path = tmp_path / "r.nrrd"
    path.write_text("mine")

    def full_disk(image, name, **_):
        Path(name).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_labels(labels, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["r.nrrd"]
    assert path.read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files")
@pytest.mark.parametrize("name", ["r.seg.nrrd", "r.nrrd", "r.nii.gz", "r.nii", "r.mha", "r.png"])
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, rng, name):
    path = tmp_path / name
    before = Labels(np.ones((1, 64, 64), np.uint8), Geometry((1, 64, 64)), SEGMENTS)
    write_labels(before, path)
    np.save(tmp_path / "labels.npy", rng.integers(0, 3, (1, 100, 100)).astype(np.uint8))
    code = (
        "import resource, sys, numpy as np\n"
        "from DeepLabSegLib.files import write_labels\n"
        "from DeepLabSegLib.image import Geometry, Labels\n"
        "array = np.load('labels.npy')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n"
        "write_labels(Labels(array, Geometry(array.shape)), sys.argv[1], overwrite=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"DeepLabSegLib.errors.OutputError: {name} can't be written")
    assert {p.name for p in tmp_path.iterdir()} == {name, "labels.npy"}
    np.testing.assert_array_equal(read_labels(path).array, before.array)


def test_a_result_that_another_program_has_open_is_kept_and_named(tmp_path, labels, monkeypatch):
    write_labels(labels, tmp_path / "result.nrrd")
    before = (tmp_path / "result.nrrd").read_bytes()

    def refuse(self, target):
        raise PermissionError(13, "Access denied")  # as Windows does

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("DeepLabSegLib.outputs.PAUSES_S", (0.01,))
    with pytest.raises(OutputError, match=r"^\S+result\.nrrd can't be replaced \(Access denied\); close it in other"):
        write_labels(labels, tmp_path / "result.nrrd", overwrite=True)
    assert (tmp_path / "result.nrrd").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.nrrd"]


def test_who_holds_a_result_for_a_moment_is_waited_for(tmp_path, labels, monkeypatch):
    replace, tries = Path.replace, []

    def refuse_once(self, target):
        tries.append(target)
        if len(tries) == 1:
            raise PermissionError(13, "Access denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_once)
    write_labels(labels, tmp_path / "result.nrrd")
    assert len(tries) == 2
    np.testing.assert_array_equal(read_labels(tmp_path / "result.nrrd").array, labels.array)


def test_a_temporary_file_that_can_not_be_deleted_hides_no_error(tmp_path, monkeypatch):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"a\.txt can't be written \(No space"), replacing(tmp_path / "a.txt"):
        pass


def test_an_input_by_another_of_its_names_is_no_place_for_an_output(tmp_path):
    (tmp_path / "scan.nrrd").write_text("scan")
    os.link(tmp_path / "scan.nrrd", tmp_path / "same.nrrd")
    with pytest.raises(OutputError, match=r"same\.nrrd is an input, which would be lost"):
        check_apart([tmp_path / "same.nrrd"], [tmp_path / "scan.nrrd"])
    check_apart([tmp_path / "other.nrrd"], [tmp_path / "scan.nrrd"])
