import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import TERMINOLOGY, itk, make_scan, physically_equal

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.files import read_image, read_labels, write_labels
from DeepLabSegLib.image import Geometry, Image, Labels, Segment

OBLIQUE = ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (-1.0, 0.0, 0.0))
SEGMENTS = (Segment(1, "Grey matter", (200, 100, 50), TERMINOLOGY), Segment(2, "Ventrikel", (0, 0, 255)))


@pytest.fixture
def labels(rng) -> Labels:
    geometry = Geometry((5, 6, 7), (3.0, 1.5, 1.0), (10.0, -20.0, 30.0), OBLIQUE)
    return Labels(rng.integers(0, 3, (5, 6, 7)).astype(np.uint8), geometry, SEGMENTS)


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


def test_colours_are_channels_and_a_picture_is_one_slice(tmp_path, rng):
    colours = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), tmp_path / "picture.png")
    image = read_image(tmp_path / "picture.png")
    np.testing.assert_array_equal(image.array, np.moveaxis(colours, -1, 0)[:, None])
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), tmp_path / "picture.jpg")
    assert read_image(tmp_path / "picture.jpg").array.shape == (3, 1, 20, 30)
    sitk.WriteImage(sitk.GetImageFromArray(colours[..., 0]), tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").array.shape == (1, 1, 20, 30)


def write_series(folder, scan: Image, skip: int | None = None, uid: str = "1.2.3.4") -> None:
    folder.mkdir(exist_ok=True)
    volume = itk(scan)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.GetDepth()):
        if k == skip:
            continue
        piece = sitk.Cast(volume[:, :, k], sitk.sitkInt16)
        position = volume.TransformIndexToPhysicalPoint((0, 0, k))
        direction = np.reshape(volume.GetDirection(), (3, 3))
        for tag, value in {
            "0008|0060": "MR", "0020|000e": uid, "0020|000d": "1.2.3", "0020|0013": str(k),
            "0020|0032": "\\".join(f"{p:g}" for p in position),
            "0020|0037": "\\".join(f"{d:g}" for d in (*direction[:, 0], *direction[:, 1])),
            "0018|0050": f"{volume.GetSpacing()[2]:g}",
        }.items():  # fmt: skip
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{k}.dcm"))
        writer.Execute(piece)


def test_a_dicom_folder_is_a_volume(tmp_path, scan):
    write_series(tmp_path / "series", scan)
    image = read_image(tmp_path / "series")
    assert image.geometry.is_close(scan.geometry, tolerance=0.01)
    np.testing.assert_allclose(image.array, scan.array, atol=1)


def test_a_dicom_folder_with_a_gap_or_with_two_series_is_refused(tmp_path, scan):
    write_series(tmp_path / "gap", scan, skip=4)
    with pytest.raises(InvalidInput, match="a slice is missing"):
        read_image(tmp_path / "gap")
    write_series(tmp_path / "two", scan)
    write_series(tmp_path / "two", scan, uid="1.2.3.5")
    with pytest.raises(InvalidInput, match="2 DICOM series"):
        read_image(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInput, match="no DICOM series"):
        read_image(tmp_path / "none")


def test_what_is_no_image_is_refused_with_its_name(tmp_path):
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "text.nrrd").write_text("this is no image")
    (tmp_path / "text.txt").write_text("this is no image")
    sitk.WriteImage(sitk.Image([3, 3, 3, 2], sitk.sitkInt16), tmp_path / "series.nii.gz")
    for name, words in [
        ("gone.nii.gz", "gone.nii.gz does not exist"),
        ("empty.nii.gz", "empty"),
        ("text.nrrd", "can't be read"),
        ("text.txt", "can't be read"),
        ("series.nii.gz", "4 axes"),
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


@pytest.mark.parametrize("name", ["r.seg.nrrd", "r.nii.gz", "r.nii", "r.nrrd", "r.mha"])
def test_labels_come_back_in_every_format(tmp_path, labels, name):
    write_labels(labels, tmp_path / name)
    again = read_labels(tmp_path / name)
    np.testing.assert_array_equal(again.array, labels.array)
    assert again.geometry.is_close(labels.geometry)
    if name == "r.seg.nrrd":
        assert [(s.value, s.name, s.color) for s in again.segments] == [(s.value, s.name, s.color) for s in SEGMENTS]
    else:
        assert [s.value for s in again.segments] == [1, 2]


def test_overlapping_segments_come_back_whole_from_a_segmentation(tmp_path, rng):
    layers = (rng.random((2, 5, 6, 7)) > 0.5).astype(np.uint8) * np.array([1, 2], np.uint8)[:, None, None, None]
    segments = (Segment(1, "A", (255, 0, 0), layer=0), Segment(2, "B", (0, 255, 0), layer=1))
    labels = Labels(layers, Geometry((5, 6, 7)), segments)
    write_labels(labels, tmp_path / "r.seg.nrrd")
    again = read_labels(tmp_path / "r.seg.nrrd")
    for segment in segments:
        np.testing.assert_array_equal(again.mask(again.segments[segment.layer]), labels.mask(segment))
    with pytest.raises(OutputError, match="overlap"):
        write_labels(labels, tmp_path / "r.nii.gz")


def test_a_picture_takes_a_single_slice(tmp_path, labels):
    with pytest.raises(OutputError, match="5 slices"):
        write_labels(labels, tmp_path / "r.png")
    single = Labels(labels.array[:1], Geometry((1, 6, 7)), SEGMENTS)
    write_labels(single, tmp_path / "r.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "r.png").array, single.array)


def test_an_existing_result_is_kept_unless_told_otherwise(tmp_path, labels):
    path = tmp_path / "r.nrrd"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is kept"):
        write_labels(labels, path)
    assert path.read_text() == "mine"
    write_labels(labels, path, overwrite=True)
    assert read_labels(path).array.any()


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


def test_a_result_that_another_program_has_open_is_kept_and_named(tmp_path, labels, monkeypatch):
    write_labels(labels, tmp_path / "result.nrrd")
    before = (tmp_path / "result.nrrd").read_bytes()

    def refuse(self, target):
        raise PermissionError(13, "Access denied")  # as Windows does

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("DeepLabSegLib.outputs.PAUSES_S", (0.01,))
    with pytest.raises(OutputError, match=r"result\.nrrd can't be replaced \(Access denied\); close it in other"):
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


def test_an_image_is_not_taken_for_a_label_map(tmp_path, rng):
    sitk.WriteImage(itk(make_scan(rng)), tmp_path / "scan.nrrd")
    with pytest.raises(InvalidInput, match="fractions"):
        read_labels(tmp_path / "scan.nrrd")
