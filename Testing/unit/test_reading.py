"""Images and label maps from files of every format, and what is no image."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import itk, make_scan, physically_equal

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.files import read_geometry, read_image, read_labels, write_labels
from DeepLabSegLib.image import Geometry, Image


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
def test_every_volume_format_puts_voxels_where_they_were(tmp_path, suffix, scan):
    turned = physically_equal(scan, (2, 0, 1), (1,))
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(itk(turned), path)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, turned.array)
    assert image.geometry.is_close(turned.geometry)
    corner = sitk.ReadImage(path).TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose((image.geometry.affine @ [1, 2, 3, 1])[:3], np.multiply(corner, (-1, -1, 1)), atol=1e-4)


@pytest.mark.parametrize("name", ["s.nii.gz", "s.nrrd", "s.mha", "s.png", "gone.nrrd", "bad.nrrd", "sheared.nrrd"])
def test_the_grid_of_a_file_is_that_of_its_image(tmp_path, rng, name):
    shape = (1, 6, 7) if name.endswith(".png") else (5, 6, 7)
    if name == "bad.nrrd":
        (tmp_path / name).write_text("no image")
    elif name == "sheared.nrrd":
        fields = ["type: uint8", "dimension: 3", "space: RAS", "sizes: 1 2 3", "encoding: raw"]
        fields.append("space directions: (1,0,0) (0.5,1,0) (0,0,1)")
        (tmp_path / name).write_text("\n".join(["NRRD0004", *fields, "", "voxels"]))
    elif name != "gone.nrrd":
        image = Image(rng.integers(0, 255, (1, *shape)).astype(np.uint8), Geometry(shape, (3.0, 1.5, 1.2)))
        sitk.WriteImage(itk(image)[:, :, 0] if name.endswith(".png") else itk(image), tmp_path / name)
    try:
        expected = read_image(tmp_path / name).geometry
    except InvalidInput as error:
        with pytest.raises(InvalidInput, match=re.escape(str(error))):
            read_geometry(tmp_path / name)
    else:
        assert read_geometry(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_a_series_of_one_time_point_is_a_volume_and_one_of_more_is_refused(tmp_path, scan, name):
    sitk.WriteImage(sitk.JoinSeries([itk(scan)]), tmp_path / name)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image.array, scan.array)
    assert image.geometry.is_close(scan.geometry)
    assert read_geometry(tmp_path / name).is_close(scan.geometry)
    sitk.WriteImage(sitk.JoinSeries([itk(scan)] * 2), tmp_path / name)
    for read in (read_image, read_geometry):
        with pytest.raises(InvalidInput, match=r"4 axes \(36 x 40 x 12 x 2\); save one time point"):
            read(tmp_path / name)


def test_what_is_no_image_is_refused_with_its_name(tmp_path):
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "text.nrrd").write_text("this is no image")
    (tmp_path / "text.txt").write_text("this is no image")
    for name, words in [
        ("gone.nii.gz", "gone.nii.gz does not exist"),
        ("empty.nii.gz", "empty"),
        ("text.nrrd", "can't be read"),
        ("text.txt", "can't be read"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_truncated_file_is_refused(tmp_path, scan, suffix):
    sitk.WriteImage(itk(scan), tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=rf"half\{suffix}"):
        read_image(tmp_path / f"half{suffix}")


def test_a_header_without_sense_is_refused_with_the_files_name(tmp_path):
    header = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
    header += "space directions: (1,0,0) (1,0.001,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\nendian: little\n\n"
    (tmp_path / "flat.nrrd").write_bytes(header.encode() + bytes(16))
    with pytest.raises(InvalidInput, match=r"flat\.nrrd"):
        read_image(tmp_path / "flat.nrrd")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_that_makes_no_sense_is_refused_whatever_the_format(tmp_path, scan, value):
    sitk.WriteImage(itk(scan), tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[80:84] = struct.pack("<f", value)  # pixdim[1] of the NIfTI-1 header
    (tmp_path / "scan.nii").write_bytes(content)
    header = f"ObjectType = Image\nNDims = 3\nElementSpacing = {value} 1 1\nDimSize = 2 2 2\n"
    header += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(header.encode() + bytes(16))
    for name in ("scan.nii", "scan.mha"):
        with pytest.raises(InvalidInput, match=name):
            read_image(tmp_path / name)


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, scan, monkeypatch):
    sitk.WriteImage(itk(scan), tmp_path / "scan.nrrd")

    def refuse(path: Path, *_: object) -> None:  # who runs this may read every file
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for read in (read_image, read_labels, read_geometry):
        with pytest.raises(InvalidInput, match=r"scan\.nrrd can't be opened \(Permission denied\); change its"):
            read(tmp_path / "scan.nrrd")


def test_a_name_that_is_not_utf8_is_refused_before_it_ends_the_process(tmp_path, labels):
    path = tmp_path / "caf\udce9.nii.gz"
    with pytest.raises(InvalidInput, match=r"caf\?\.nii\.gz has letters .* rename it"):
        read_image(path)
    with pytest.raises(OutputError, match=r"caf\?\.nii\.gz has letters .* rename it"):
        write_labels(labels, path)


def test_an_image_is_not_taken_for_a_label_map(tmp_path, rng):
    sitk.WriteImage(itk(make_scan(rng)), tmp_path / "scan.nrrd")
    with pytest.raises(InvalidInput, match="fractions"):
        read_labels(tmp_path / "scan.nrrd")
