"""MetaImage files: what ITK passes over in them, or ends the process at."""

from __future__ import annotations

import os
import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import itk, physically_equal

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_geometry, read_image


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
def test_a_metaimage_cut_short_is_called_so(tmp_path, scan, name):
    sitk.WriteImage(itk(scan), tmp_path / name)
    voxels = next((path for path in tmp_path.iterdir() if path.suffix == ".raw"), tmp_path / name)
    voxels.write_bytes(voxels.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match="cut short"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("axes", ["-3", "0", "11", "100"])
def test_a_metaimage_whose_axes_would_end_the_process_is_refused(tmp_path, scan, axes):
    sitk.WriteImage(itk(scan), tmp_path / "scan.mha")
    content = (tmp_path / "scan.mha").read_bytes()
    (tmp_path / "scan.mha").write_bytes(content.replace(b"NDims = 3", f"NDims = {axes}".encode()))
    for read in (read_image, read_geometry):
        with pytest.raises(InvalidInput, match=rf"scan\.mha has {axes} axes \(NDims\); an image has 2 or 3"):
            read(tmp_path / "scan.mha")


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
@pytest.mark.parametrize("fault", ["voxels", "size"])
def test_a_metaimage_that_cannot_be_unpacked_is_refused(tmp_path, scan, name, fault):
    sitk.WriteImage(itk(scan), tmp_path / name, useCompression=True)
    np.testing.assert_array_equal(read_image(tmp_path / name).array, scan.array)
    if fault == "voxels":
        packed = next((path for path in tmp_path.iterdir() if path.suffix == ".zraw"), tmp_path / name)
        content = bytearray(packed.read_bytes())
        content[-2000] ^= 255
        packed.write_bytes(content)
    else:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize = 2000", content))
    with pytest.raises(InvalidInput, match=rf"{name} is damaged"):
        read_image(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names but in Unicode")
def test_a_metaimage_finds_its_voxels_in_a_file_whose_name_is_not_utf8(tmp_path, scan):
    sitk.WriteImage(itk(scan), tmp_path / "scan.mhd", useCompression=True)
    content = (tmp_path / "scan.mhd").read_bytes()
    (tmp_path / "scan.mhd").write_bytes(content.replace(b"scan.zraw", b"sch\xe4del.zraw"))
    (tmp_path / "scan.zraw").rename(tmp_path / os.fsdecode(b"sch\xe4del.zraw"))
    np.testing.assert_array_equal(read_image(tmp_path / "scan.mhd").array, scan.array)


@pytest.mark.parametrize("place", ["LIST\na.raw\nb.raw", "slice%d.raw 0 1 1"])
def test_a_metaimage_in_a_file_per_slice_is_refused(tmp_path, place):
    """ITK takes what the memory held before for the voxels of a file that is missing."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
    (tmp_path / "scan.mhd").write_text(f"{header}ElementDataFile = {place}\n")
    with pytest.raises(InvalidInput, match=r"scan\.mhd has its voxels in a file per slice"):
        read_image(tmp_path / "scan.mhd")


def test_a_metaimage_whose_axes_have_the_spacing_in_them_has_itks_voxels(tmp_path, scan):
    turned = physically_equal(scan, (2, 0, 1), (1,))
    scaled = itk(turned)
    scaled.SetDirection((np.reshape(scaled.GetDirection(), (3, 3)) * scaled.GetSpacing()).ravel())
    scaled.SetSpacing((1, 1, 1))
    sitk.WriteImage(scaled, tmp_path / "scan.mha")
    assert read_image(tmp_path / "scan.mha").geometry.is_close(turned.geometry)
    assert read_geometry(tmp_path / "scan.mha").is_close(turned.geometry)
