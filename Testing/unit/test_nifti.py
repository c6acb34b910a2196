"""NIfTI files: where their voxels lie, and what is wrong with a header."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import itk, make_scan

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image, write_image
from DeepLabSegLib.image import Image


def nifti_with(path: Path, image: Image, sform: np.ndarray, sform_code: int, unit: int = 2) -> None:
    """`image` as NIfTI with a qform of its geometry and with `sform`; `unit` is NIfTI's code, 2 is mm."""
    sitk.WriteImage(itk(image), path.with_name("plain.nii"))
    content = bytearray(path.with_name("plain.nii").read_bytes())
    content[123] = unit
    struct.pack_into("<2h", content, 252, 1, sform_code)
    struct.pack_into("<12f", content, 280, *sform[:3].ravel())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("shape", [(12, 40, 36), (1, 40, 36)], ids=["volume", "slice"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_nifti_file_that_tells_two_places_is_read_as_in_slicer_with_a_warning(tmp_path, rng, shape, name):
    scan = make_scan(rng, shape)
    moved = scan.geometry.affine[:, [2, 1, 0, 3]] + [[0, 0, 0, 3], [0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    nifti_with(tmp_path / name, scan, moved, sform_code=2)
    with pytest.warns(UserWarning, match=rf"{name} .* up to 5\.0 mm .*fslorient") as warned:
        image = read_image(tmp_path / name)
    assert warned[0].filename == __file__
    assert image.geometry.is_close(scan.geometry)


@pytest.mark.parametrize(
    ("mm", "sform_code", "unit"), [(0.5, 2, 2), (5, 1, 2), (5, 0, 2), (0, 2, 3)], ids=["near", "s", "q", "micrometres"]
)
def test_a_nifti_file_that_tells_one_place_is_read_without_a_warning(tmp_path, scan, mm, sform_code, unit):
    """What is at fault in the first is less than half a voxel; the next two are read alike everywhere."""
    affine = scan.geometry.affine[:, [2, 1, 0, 3]] + [[0, 0, 0, mm], *[[0, 0, 0, 0]] * 3]
    nifti_with(tmp_path / "scan.nii", scan, affine, sform_code, unit)
    read_image(tmp_path / "scan.nii")


@pytest.mark.parametrize("qform_code", [0, 1])
def test_a_nifti_file_whose_voxels_have_two_sizes_is_read_as_in_slicer_with_a_warning(tmp_path, scan, qform_code):
    nifti_with(tmp_path / "scan.nii", scan, scan.geometry.affine[:, [2, 1, 0, 3]], 1)
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    struct.pack_into("<3f", content, 80, 1, 1, 1)  # pixdim[1..3]
    struct.pack_into("<h", content, 252, qform_code)
    (tmp_path / "scan.nii").write_bytes(content)
    words = r"by its pixdim that it lies up to 3\d\.\d mm .* voxels of 1 x 1 x 1 mm or of 1\.2 x 1\.5 x 3$"
    with pytest.warns(UserWarning, match=words):
        image = read_image(tmp_path / "scan.nii")
    assert image.geometry.spacing == (1, 1, 1)


@pytest.mark.parametrize(("degrees", "refused"), [(0, False), (2, False), (20, True), (90, True)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_nifti_slice_of_two_axes_is_refused_where_it_lies_across_x_and_y(tmp_path, scan, axis, degrees, refused):
    path = tmp_path / "slice.nii"
    sitk.WriteImage(itk(scan)[:, :, 0], path)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.eye(3)
    turned[np.ix_([axis, 2], [axis, 2])] = [[cos, -sin], [sin, cos]]
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 2)
    struct.pack_into("<12f", content, 280, *np.c_[turned * (1.2, 1.5, 3), (10, 20, 30)].ravel())
    path.write_bytes(content)
    if refused:
        with pytest.raises(InvalidInput, match=r"two axes .* lies across x and y; save it as a volume of one slice"):
            read_image(path)
    else:
        assert read_image(path).geometry.spacing == pytest.approx((1, 1.5, 1.2), rel=1e-3)


def test_a_sheared_sform_without_a_qform_is_called_so(tmp_path, scan):
    affine = scan.geometry.affine[:, [2, 1, 0, 3]] + [[0, 0.3, 0, 0], *[[0, 0, 0, 0]] * 3]
    nifti_with(tmp_path / "scan.nii", scan, affine, 1)
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    struct.pack_into("<h", content, 252, 0)  # qform_code
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(InvalidInput, match="its sform is sheared, and it has no qform; resample it"):
        read_image(tmp_path / "scan.nii")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (108, struct.pack("<f", 416), r"is damaged \(it ends early\)"),
        (108, struct.pack("<f", 0), "vox_offset is 0, within the header; correct it, mostly to 352"),
        (108, struct.pack("<f", float("nan")), "vox_offset is nan"),
        (44, struct.pack("<h", -5), "has -5 voxels along an axis"),
        (344, b"\0\0\0\0", "is Analyze, which doesn't say which way its axes go"),
    ],
    ids=["begins later", "begins in the header", "begins nowhere", "wrapped round", "Analyze"],
)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_nifti_of_which_itk_takes_other_voxels_is_refused(tmp_path, scan, name, place, value, words):
    sitk.WriteImage(itk(scan), tmp_path / "plain.nii")
    content = bytearray((tmp_path / "plain.nii").read_bytes())
    content[place : place + len(value)] = value
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InvalidInput, match=rf"{re.escape(name)}.*{words}"):
        read_image(tmp_path / name)


def test_voxels_behind_an_extension_of_a_nifti_header_are_found(tmp_path, scan):
    sitk.WriteImage(itk(scan), tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    struct.pack_into("<f", content, 108, 416)
    extension = b"\1\0\0\0" + struct.pack("<2i", 64, 6) + bytes(56)
    (tmp_path / "scan.nii").write_bytes(content[:348] + extension + content[352:])
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii").array, scan.array)


@pytest.mark.parametrize("magic", [b"ni1\0", bytes(4)], ids=["NIfTI", "Analyze"])
def test_a_header_with_its_voxels_beside_it_is_refused_with_a_remedy(tmp_path, scan, magic):
    sitk.WriteImage(itk(scan), tmp_path / "scan.img")
    content = (tmp_path / "scan.hdr").read_bytes()
    (tmp_path / "scan.hdr").write_bytes(content[:344] + magic + content[348:])
    for name in ("scan.hdr", "scan.img"):
        with pytest.raises(
            InvalidInput, match=rf"{name} is Analyze, .* or NIfTI in two files; convert it to \.nii\.gz"
        ):
            read_image(tmp_path / name)


def test_nifti_2_is_called_so(tmp_path):
    header = bytearray(544)
    struct.pack_into("<i8s2h8q", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, 2, 2, 2, 1, 1, 1, 1)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(header + bytes(16)))
    with pytest.raises(InvalidInput, match="it is NIfTI-2; save it as NIfTI-1"):
        read_image(tmp_path / "scan.nii.gz")


def test_nifti_is_known_by_its_content_or_its_right_name_is_said(tmp_path, scan):
    sitk.WriteImage(itk(scan), tmp_path / "plain.nii")
    (tmp_path / "plain.nii").rename(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii.gz").array, scan.array)
    sitk.WriteImage(itk(scan), tmp_path / "packed.nii.gz")
    (tmp_path / "packed.nii.gz").rename(tmp_path / "scan.nii")
    with pytest.raises(InvalidInput, match=r"it is gzipped, so call it scan\.nii\.gz"):
        read_image(tmp_path / "scan.nii")


@pytest.mark.parametrize(("name", "beside"), [("scan.nii.gz", "scan.nii"), ("SCAN.NII.GZ", "SCAN.NII")])
def test_voxels_are_a_files_own_where_one_of_its_name_less_gz_lies_beside_it(tmp_path, rng, name, beside):
    scans = {file: make_scan(rng) for file in (name, beside)}
    for file, scan in scans.items():
        write_image(scan, tmp_path / file)
    for file, scan in scans.items():
        np.testing.assert_array_equal(read_image(tmp_path / file).array, scan.array)
    (tmp_path / beside).unlink()
    (tmp_path / beside).mkdir()  # as some programs unpack
    np.testing.assert_array_equal(read_image(tmp_path / name).array, scans[name].array)


@pytest.mark.parametrize(("datatype", "components"), [(128, 3), (2304, 4)])
def test_colours_in_nifti_are_whole_as_they_are_and_refused_where_cut_short(tmp_path, rng, datatype, components):
    sitk.WriteImage(sitk.Image([5, 4, 3], sitk.sitkUInt8), tmp_path / "scan.nii")
    header = bytearray((tmp_path / "scan.nii").read_bytes()[:352])
    struct.pack_into("<2h", header, 70, datatype, 8 * components)  # datatype and bitpix
    voxels = rng.integers(0, 255, (3, 4, 5, components)).astype(np.uint8)
    (tmp_path / "scan.nii").write_bytes(header + voxels.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii").array, np.moveaxis(voxels, -1, 0))
    (tmp_path / "scan.nii").write_bytes(header + voxels.tobytes()[:-1])
    with pytest.raises(InvalidInput, match="damaged"):
        read_image(tmp_path / "scan.nii")
