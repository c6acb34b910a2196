import gzip
import os
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import TERMINOLOGY, itk, make_scan, physically_equal
from PIL import Image as Picture

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.files import read_geometry, read_image, read_labels, write_image, write_labels
from DeepLabSegLib.files.dicom import read_series
from DeepLabSegLib.image import AXIS_ALIGNED, Geometry, Image, Labels, Segment
from DeepLabSegLib.outputs import check_output

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


def test_an_alpha_channel_that_hides_nothing_is_left_out(tmp_path, rng):
    values = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    opaque = np.concatenate([values, np.full((20, 30, 1), 255, np.uint8)], axis=2)
    Picture.fromarray(opaque).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png").array, np.moveaxis(values, -1, 0)[:, None])
    opaque[3, 4, -1] = 0
    Picture.fromarray(opaque).save(tmp_path / "picture.png")
    assert read_image(tmp_path / "picture.png").channels == 4


@pytest.mark.parametrize("name", ["scan.jpg", "scan.JPEG"])
def test_the_resolution_of_a_print_is_no_size_of_voxels(tmp_path, rng, name):
    grey = Picture.fromarray(rng.integers(0, 255, (48, 64)).astype(np.uint8))
    grey.save(tmp_path / name, dpi=(300, 300))
    assert read_image(tmp_path / name).geometry.spacing == (1.0, 1.0, 1.0)


def write_series(folder, scan: Image, skip: int | None = None, uid: str = "1.2.3.4", **fields) -> None:
    """A slice per plane k; `fields` give a function of k each for what takes the place of a tag's value."""
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
            "0008|103e": "",
        }.items():  # fmt: skip
            piece.SetMetaData(tag, fields[tag](k) if tag in fields else value)
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


POSITION, ORIENTATION = "0020|0032", "0020|0037"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({POSITION: lambda k: f"0\\{0.8 * k:g}\\{3 * k}"}, "stacked 14.9 degrees off a right angle, .* 8.8 mm aside"),
        ({POSITION: lambda k: f"0\\{0.03 * k:g}\\{3 * k}"}, "stacked 0.6 degrees off a right angle"),
        ({POSITION: lambda k: "0\\0\\5"}, "several DICOM slices lie at one place"),
        ({POSITION: lambda k: f"0\\0\\{k // 2}"}, "several DICOM slices lie at one place"),
        ({POSITION: lambda k: f"{50 * (k // 4)}\\0\\{3 * k}"}, "off a right angle"),
        ({ORIENTATION: lambda k: "1\\0\\0\\0\\1\\0" if k < 6 else "1\\0\\0\\0\\0\\-1"}, "lie in several directions"),
    ],
    ids=["gantry", "slight tilt", "cine", "time points", "offset", "localizer"],
)
def test_a_series_that_is_no_upright_stack_is_refused(tmp_path, scan, fields, words):
    write_series(tmp_path / "series", scan, **fields)
    with pytest.raises(InvalidInput, match=words):
        read_image(tmp_path / "series")


def test_an_oblique_series_whose_positions_are_rounded_is_a_volume(tmp_path, scan):
    direction = ((0.0, -0.6, -0.8), *OBLIQUE[1:])  # ITK stacks slices towards their normal
    tilted = replace(scan, geometry=replace(scan.geometry, direction=direction))
    affine = tilted.geometry.affine

    def rounded(k: int) -> str:
        return "\\".join(f"{p:.1f}" for p in affine[:3] @ [k, 0, 0, 1] * [-1, -1, 1])

    write_series(tmp_path / "series", tilted, **{POSITION: rounded})
    assert read_image(tmp_path / "series").geometry.is_close(tilted.geometry, tolerance=0.1)


def test_slices_that_are_scaled_differently_keep_their_fractions(tmp_path, scan):
    write_series(tmp_path, scan)
    whole = read_image(tmp_path).array
    slopes = [1.0, *(0.37 * k for k in range(1, 12))]
    for k, slope in enumerate(slopes):
        path = tmp_path / f"1.2.3.4-{k}.dcm"
        tag, value = b"\x28\x00\x53\x10", f"{slope:<8g}".encode()
        path.write_bytes(path.read_bytes().replace(tag + b"\2\0\0\x001 ", tag + b"\x08\0\0\0" + value))
    np.testing.assert_allclose(read_image(tmp_path).array[0], whole[0] * np.reshape(slopes, (-1, 1, 1)), rtol=1e-6)


def test_of_several_series_and_of_subfolders_is_told(tmp_path, scan):
    write_series(tmp_path / "two", scan, **{"0008|103e": lambda k: "Sch*del"})
    write_series(tmp_path / "two", scan, skip=4, uid="1.2.3.5")
    for path in (tmp_path / "two").iterdir():
        path.write_bytes(path.read_bytes().replace(b"Sch*del", "Schädel".encode("latin-1")))
    with pytest.raises(InvalidInput, match=r"2 DICOM series \(Sch\?del: 12 slices, no description: 11 slices\)"):
        read_image(tmp_path / "two")
    (tmp_path / "DICOMDIR").write_bytes(b"")
    with pytest.raises(InvalidInput, match="no DICOM series; give a folder with exactly one, such as a subfolder"):
        read_image(tmp_path)


def test_dicom_without_its_beginning_is_called_so(tmp_path, scan):
    write_series(tmp_path, scan)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    for source in (path, tmp_path):
        with pytest.raises(InvalidInput, match="DICOM without the 128 bytes and `DICM`"):
            read_image(source)


def element(tag: int, kind: bytes, value: bytes | str) -> bytes:
    """One of DICOM's, explicit and little-endian."""
    value = value.encode() if isinstance(value, str) else value
    value += bytes(len(value) % 2) if kind == b"UI" else b" " * (len(value) % 2)
    length = struct.pack("<2xI" if kind in (b"SQ", b"OW") else "<H", len(value))
    return struct.pack("<2H", tag >> 16, tag & 0xFFFF) + kind + length + value


def sequence(tag: int, *items: bytes) -> bytes:
    return element(tag, b"SQ", b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items))


def write_dicom(path: Path, kind: str, voxels: np.ndarray, fields: dict[int, bytes], deflated: bool = False) -> None:
    """`(k, j, i)` as frames of one file of the SOP class `kind`; `fields` are more elements, by their tags."""
    kind = f"1.2.840.10008.5.1.4.1.1.{kind}"
    frames, height, width = voxels.shape
    meta = element(0x00020002, b"UI", kind) + element(0x00020003, b"UI", "1.2.3.4.5")
    meta += element(0x00020010, b"UI", "1.2.840.10008.1.2.1" + (".99" if deflated else ""))
    texts = {0x00080016: kind, 0x00080018: "1.2.3.4.5", 0x0020000D: "1.2.3", 0x0020000E: "1.2.3.4"}
    numbers = {2: 1, 0x10: height, 0x11: width, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 0}
    elements = {tag: element(tag, b"UI", text) for tag, text in texts.items()}
    elements |= {0x280000 + tag: element(0x280000 + tag, b"US", struct.pack("<H", n)) for tag, n in numbers.items()}
    elements[0x00280004] = element(0x00280004, b"CS", "MONOCHROME2")
    elements[0x00280008] = element(0x00280008, b"IS", str(frames))
    elements[0x7FE00010] = element(0x7FE00010, b"OW", voxels.astype("<u2").tobytes())
    content = b"".join(value for _, value in sorted((elements | fields).items()))
    if deflated:
        packer = zlib.compressobj(wbits=-15)
        content = packer.compress(content) + packer.flush()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta + content)


def numbers(tag: int, values, digits: int = 2) -> bytes:
    return element(tag, b"DS", "\\".join(f"{value:.{digits}f}" for value in values))


def write_frames(
    path: Path,
    scan: Image,
    planes: list[int],
    slopes: list[str] | None = None,
    told: bool = True,
    deflated: bool = False,
) -> None:
    """The planes k of `scan` as frames of one DICOM file; not `told`, it is a secondary capture without geometry."""
    volume = itk(scan)
    across, down, _ = np.reshape(volume.GetDirection(), (3, 3)).T
    columns, rows, _ = volume.GetSpacing()

    def groups(n: int, k: int) -> bytes:
        place = numbers(0x00200032, volume.TransformIndexToPhysicalPoint((0, 0, k)))
        values = element(0x00281052, b"DS", "0") + element(0x00281053, b"DS", slopes[n] if slopes else "1")
        return sequence(0x00209113, place) + sequence(0x00289145, values + element(0x00281054, b"LO", "US"))

    facing = sequence(0x00209116, numbers(0x00200037, (*across, *down)))
    fields = {
        0x52009229: sequence(0x52009229, facing + sequence(0x00289110, numbers(0x00280030, (rows, columns)))),
        0x52009230: sequence(0x52009230, *(groups(n, k) for n, k in enumerate(planes))),
    }
    write_dicom(path, "4.1" if told else "7.2", scan.array[0, planes], fields if told else {}, deflated)


@pytest.mark.parametrize("direction", [((0, 0, 1), (0, -1, 0), (-1, 0, 0)), ((0, -0.6, -0.8), *OBLIQUE[1:])])
@pytest.mark.parametrize("gap", [3.0, 3.3333], ids=["exact", "rounded"])
def test_frames_of_one_dicom_file_are_a_volume_whichever_way_they_go(tmp_path, scan, direction, gap):
    geometry = replace(scan.geometry, spacing=(gap, *scan.geometry.spacing[1:]), direction=direction)
    scan = replace(scan, array=np.rint(scan.array), geometry=geometry)
    for name, planes in (("up", list(range(12))), ("down", list(range(12))[::-1])):
        write_frames(tmp_path / name / "frames.dcm", scan, planes)
        expected = scan if name == "up" else physically_equal(scan, (0, 1, 2), (0,))
        for source in (tmp_path / name / "frames.dcm", tmp_path / name):
            image = read_image(source)
            np.testing.assert_array_equal(image.array, expected.array)
            assert image.geometry.is_close(expected.geometry, tolerance=0.01)


@pytest.mark.parametrize(
    ("planes", "options", "words"),
    [
        ([0, 1, 2, 3] * 2, {}, "several DICOM slices lie at one place"),
        ([0, 2, 4, 1, 3, 5], {}, "or out of order"),
        ([0, 1, 2, 5, 6, 7], {}, "3.00 to 9.00 mm apart; a slice is missing"),
        ([0, 1, 2, 3], {"told": False}, "has 4 frames and doesn't say of each where it lies"),
        ([0, 1, 2, 3], {"slopes": ["1", "0.5", "1", "1"]}, "values are scaled differently"),
    ],
    ids=["time points", "interleaved", "gap", "secondary capture", "slopes"],
)
def test_frames_that_are_no_upright_stack_are_refused(tmp_path, scan, planes, options, words):
    write_frames(tmp_path / "frames.dcm", scan, planes, **options)
    for source in (tmp_path / "frames.dcm", tmp_path):
        with pytest.raises(InvalidInput, match=rf"frames\.dcm.*{words}"):
            read_image(source)


def test_frames_of_a_deflated_file_are_a_volume(tmp_path, scan):
    scan = replace(scan, array=np.rint(scan.array))
    write_frames(tmp_path / "frames.dcm", scan, list(range(12)), deflated=True)
    image = read_image(tmp_path / "frames.dcm")
    np.testing.assert_array_equal(image.array, scan.array)
    assert image.geometry.is_close(scan.geometry, tolerance=0.01)
    write_frames(tmp_path / "frames.dcm", scan, [0, 1, 2, 5], deflated=True)
    with pytest.raises(InvalidInput, match="a slice is missing"):
        read_image(tmp_path / "frames.dcm")


def write_dose(path: Path, voxels: np.ndarray, facing: tuple[int, ...], offsets: list[float]) -> None:
    fields = {
        0x00200032: numbers(0x00200032, (10, 20, 30)),
        0x00200037: numbers(0x00200037, facing),
        0x00280030: numbers(0x00280030, (2, 1.5)),
        0x3004000C: numbers(0x3004000C, offsets),
        0x3004000E: numbers(0x3004000E, [0.001], digits=4),
    }
    write_dicom(path, "481.2", voxels, fields)


AXIAL, FLIPPED = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)
"""Row and column of a slice in LPS; the normal goes up and down."""


@pytest.mark.parametrize(
    ("facing", "offsets", "step"),
    [
        (AXIAL, [0, 3, 6, 9], 3),
        (AXIAL, [0, -3, -6, -9], -3),
        (FLIPPED, [0, 3, 6, 9], -3),
        (AXIAL, [30, 33, 36, 39], 3),
        (FLIPPED, [30, 33, 36, 39], 3),
    ],
    ids=["up", "down", "normal down", "z", "z, normal down"],
)
def test_a_radiotherapy_dose_lies_where_its_frames_do_and_is_in_its_units(tmp_path, rng, facing, offsets, step):
    voxels = rng.integers(0, 60000, (4, 5, 6))
    write_dose(tmp_path / "dose.dcm", voxels, facing, offsets)
    image = read_image(tmp_path / "dose.dcm")
    np.testing.assert_allclose(image.array[0], voxels / 1000, rtol=1e-6)
    affine = [[0, 0, -1.5, -10], [0, -2 * facing[4], 0, -20], [step, 0, 0, 30]]  # RAS
    np.testing.assert_allclose(image.geometry.affine[:3], affine, atol=1e-6)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 3, 6, 12], "3.00 to 6.00 mm apart"),
        ([0, 3, 6], "has 4 frames and places 3"),
        ([0, 3, 0, 3], "at one place"),
    ],
    ids=["uneven", "one too few", "twice"],
)
def test_a_dose_that_is_no_even_stack_is_refused(tmp_path, rng, offsets, words):
    write_dose(tmp_path / "dose.dcm", rng.integers(0, 9, (4, 5, 6)), AXIAL, offsets)
    with pytest.raises(InvalidInput, match=rf"dose\.dcm.*{words}"):
        read_image(tmp_path / "dose.dcm")


@pytest.mark.parametrize(("number", "words"), [(b"6.00", "3004|000c is '0.00"), (b"0.0010", "3004|000e is '0,0010'")])
def test_a_dose_with_a_damaged_number_is_refused_with_its_name(tmp_path, rng, number, words):
    write_dose(tmp_path / "dose.dcm", rng.integers(0, 9, (4, 5, 6)), AXIAL, [0, 3, 6, 9])
    content = (tmp_path / "dose.dcm").read_bytes()
    (tmp_path / "dose.dcm").write_bytes(content.replace(number, number.replace(b".", b",")))
    with pytest.raises(InvalidInput, match=rf"dose\.dcm: the DICOM tag {re.escape(words)}"):
        read_image(tmp_path / "dose.dcm")


def write_nuclear(
    path: Path,
    voxels: np.ndarray,
    step: float | None,
    kind: str = "RECON TOMO",
    detectors: int = 1,
    slices: tuple[int, ...] = (1, 2, 3, 4),
) -> None:
    place = numbers(0x00200032, (10, 20, 30)) + numbers(0x00200037, AXIAL)
    fields = {
        0x00080008: element(0x00080008, b"CS", rf"ORIGINAL\PRIMARY\{kind}\EMISSION"),
        0x00280030: numbers(0x00280030, (2, 1.5)),
        0x00540022: sequence(0x00540022, *[place] * detectors),
        0x00540080: element(0x00540080, b"US", struct.pack("<4H", *slices)),
        0x00540081: element(0x00540081, b"US", struct.pack("<H", max(slices))),
    }
    if step is not None:
        fields[0x00180088] = numbers(0x00180088, [step])
    write_dicom(path, "20", voxels, fields)


@pytest.mark.parametrize("step", [4, -4])
def test_a_nuclear_volume_begins_at_its_detectors_position_and_goes_the_way_of_its_step(tmp_path, rng, step):
    voxels = rng.integers(0, 60000, (4, 5, 6))
    write_nuclear(tmp_path / "spect.dcm", voxels, step)
    image = read_image(tmp_path / "spect.dcm")
    np.testing.assert_array_equal(image.array[0], voxels)
    affine = [[0, 0, -1.5, -10], [0, -2, 0, -20], [step, 0, 0, 30]]  # RAS
    np.testing.assert_allclose(image.geometry.affine[:3], affine, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"step": None},
        {"step": 4, "kind": "TOMO"},
        {"step": 4, "kind": "RECON GATED TOMO"},
        {"step": 4, "detectors": 2},
        {"step": 4, "slices": (1, 2, 1, 2)},
        {"step": 4, "slices": (4, 3, 2, 1)},
    ],
    ids=["no step", "projections", "gated", "two detectors", "two energies", "another order"],
)
def test_nuclear_frames_that_may_be_no_volume_are_refused(tmp_path, rng, options):
    write_nuclear(tmp_path / "spect.dcm", rng.integers(0, 9, (4, 5, 6)), **options)
    with pytest.raises(InvalidInput, match="has 4 frames and doesn't say of each where it lies"):
        read_image(tmp_path / "spect.dcm")


@pytest.mark.parametrize("direction", [AXIS_ALIGNED, ((0, 0, -1), (0, 1, 0), (1, 0, 0))], ids=["up", "down"])
def test_slices_are_stacked_by_their_positions_whatever_order_they_are_found_in(tmp_path, scan, direction):
    scan = replace(scan, array=np.rint(scan.array), geometry=replace(scan.geometry, direction=direction))
    write_series(tmp_path, scan)
    names = sorted(map(str, tmp_path.iterdir()))
    names = [*names[::2], *names[1::2]]
    for order in (names, names[::-1]):
        image = read_series(tmp_path, order)
        heights = [image.TransformIndexToPhysicalPoint((0, 0, k))[2] for k in range(12)]
        places = [itk(scan).TransformIndexToPhysicalPoint((0, 0, k))[2] for k in range(12)]
        np.testing.assert_allclose(sorted(heights), sorted(places))
        for k, height in enumerate(heights):
            plane = scan.array[0, int(np.argmin(np.abs(np.subtract(places, height))))]
            np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image)[k], plane)


@pytest.mark.parametrize(
    ("shape", "spacing", "words"),
    [
        ((12, 20, 36), (3.0, 1.5, 1.2), "36 x 20 pixels of 1.5 x 1.2 mm and 36 x 40 pixels of 1.5 x 1.2 mm"),
        ((12, 40, 36), (3.0, 1.0, 1.2), "36 x 40 pixels of 1 x 1.2 mm and 36 x 40 pixels of 1.5 x 1.2 mm"),
    ],
    ids=["size", "spacing"],
)
@pytest.mark.parametrize("k", [0, 5])
def test_a_series_with_a_slice_of_another_size_is_refused(tmp_path, rng, scan, shape, spacing, words, k):
    write_series(tmp_path / "series", scan)
    write_series(tmp_path / "other", make_scan(rng, shape, spacing))
    (tmp_path / "other" / f"1.2.3.4-{k}.dcm").replace(tmp_path / "series" / f"1.2.3.4-{k}.dcm")
    with pytest.raises(InvalidInput, match=f"the DICOM slices have {words}; give a folder"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize("k", [0, 5, 11])
def test_a_series_with_a_damaged_slice_is_no_shorter_one(tmp_path, scan, k):
    write_series(tmp_path, scan)
    path = tmp_path / f"1.2.3.4-{k}.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match=rf"1\.2\.3\.4-{k}\.dcm belongs to the DICOM series and can't be read"):
        read_image(tmp_path)


def test_what_is_no_slice_is_passed_by_in_a_series_and_called_so_alone(tmp_path, scan):
    write_series(tmp_path, scan)
    (tmp_path / "notes.txt").write_text("not a slice")
    report = element(0x00080016, b"UI", "1.2.840.10008.5.1.4.1.1.88.11") + element(0x0020000E, b"UI", "1.2.3.4")
    (tmp_path / "report.dcm").write_bytes(
        bytes(128) + b"DICM" + element(0x00020010, b"UI", "1.2.840.10008.1.2.1") + report
    )
    assert read_image(tmp_path).geometry.is_close(scan.geometry, tolerance=0.01)
    with pytest.raises(InvalidInput, match=r"report\.dcm .*DICOM without an image, such as a DICOMDIR, a report"):
        read_image(tmp_path / "report.dcm")


def test_a_dicomdir_beside_its_slices_is_no_damaged_one(tmp_path, scan):
    write_series(tmp_path, scan)
    rows = element(0x00280010, b"US", struct.pack("<H", 4))
    icon = sequence(0x00880200, rows + element(0x7FE00010, b"OW", bytes(32)))
    meta = element(0x00020002, b"UI", "1.2.840.10008.1.3.10") + element(0x00020010, b"UI", "1.2.840.10008.1.2.1")
    content = sequence(0x00041220, element(0x0020000E, b"UI", "1.2.3.4") + icon)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + meta + content)
    assert read_image(tmp_path).geometry.is_close(scan.geometry, tolerance=0.01)


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


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_truncated_file_is_refused(tmp_path, scan, suffix):
    sitk.WriteImage(itk(scan), tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=rf"half\{suffix}"):
        read_image(tmp_path / f"half{suffix}")


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


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_is_not_grey_where_it_ends(tmp_path, rng, progressive):
    path = tmp_path / "picture.jpg"
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path, progressive=progressive)
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * len(whole) // 3])
    with pytest.raises(InvalidInput, match=r"picture\.jpg is damaged \(image file is truncated"):
        read_image(path)


@pytest.mark.parametrize("behind", [bytes(16), b"a film \xff\xda of a phone"], ids=["zeros", "film"])
def test_what_stands_behind_a_jpegs_end_does_no_harm(tmp_path, rng, behind):
    path = tmp_path / "picture.jpg"
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes() + behind)
    assert read_image(path).channels == 3


@pytest.mark.parametrize(
    "entries",
    [struct.pack("<HHHI4s", 1, 0x0112, 2, 1, b"a\0\0\0") + bytes(4), struct.pack("<HH", 5, 0x0112)],
    ids=["a letter", "cut short"],
)
def test_exif_that_is_damaged_turns_no_jpeg_and_warns_of_nothing(tmp_path, rng, entries):
    path, exif = tmp_path / "picture.jpg", b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path, exif=exif)
    assert read_image(path).array.shape == (3, 1, 48, 64)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpeg_that_is_shown_turned_is_read_as_it_is_stored_with_a_warning(tmp_path, rng, order):
    path, exif = tmp_path / "picture.jpg", Picture.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112] = "a camera", 6
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path, exif=exif)
    with pytest.warns(UserWarning, match=r"picture\.jpg is turned where it is shown \(EXIF orientation 6\)") as warned:
        image = read_image(path)
    assert warned[0].filename == __file__
    assert image.array.shape == (3, 1, 48, 64)
    exif[0x0112] = 1
    Picture.fromarray(rng.integers(0, 255, (48, 64)).astype(np.uint8)).save(path, exif=exif)
    assert read_image(path).array.shape == (1, 1, 48, 64)


def test_grey_with_transparency_is_called_so(tmp_path, rng):
    values = rng.integers(0, 255, (20, 30, 2)).astype(np.uint8)
    Picture.fromarray(values, "LA").save(tmp_path / "picture.png")
    with pytest.raises(InvalidInput, match="it is grey with transparency; save it without, or in colours"):
        read_image(tmp_path / "picture.png")


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


@pytest.mark.skipif(sys.platform != "linux", reason="files with such names")
def test_a_series_with_names_that_are_not_utf8_is_refused(tmp_path, scan):
    write_series(tmp_path, scan)
    (tmp_path / "1.2.3.4-3.dcm").rename(tmp_path / "caf\udce9.dcm")
    with pytest.raises(InvalidInput, match=r"caf\?\.dcm has letters"):
        read_image(tmp_path)


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


def test_a_sheared_sform_without_a_qform_is_called_so(tmp_path, scan):
    affine = scan.geometry.affine[:, [2, 1, 0, 3]] + [[0, 0.3, 0, 0], *[[0, 0, 0, 0]] * 3]
    nifti_with(tmp_path / "scan.nii", scan, affine, 1)
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    struct.pack_into("<h", content, 252, 0)  # qform_code
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(InvalidInput, match="its sform is sheared, and it has no qform; resample it"):
        read_image(tmp_path / "scan.nii")


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
        assert again.segments == SEGMENTS
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


def test_segments_with_a_component_each_as_slicer_wrote_them_up_to_4_10_are_told_apart(tmp_path, rng):
    masks = (rng.random((5, 6, 7, 2)) > 0.5).astype(np.uint8)
    written = sitk.GetImageFromArray(masks, isVector=True)
    for n, name in enumerate(("Left", "Right")):
        written.SetMetaData(f"Segment{n}_ID", name)
        written.SetMetaData(f"Segment{n}_Name", name)
    sitk.WriteImage(written, tmp_path / "old.seg.nrrd")
    labels = read_labels(tmp_path / "old.seg.nrrd")
    for n, segment in enumerate(labels.segments):
        np.testing.assert_array_equal(labels.mask(segment), masks[..., n] > 0)


def test_segments_of_one_value_in_two_layers_keep_ids_of_their_own(tmp_path):
    """As Slicer writes segments that overlap."""
    segments = (Segment(1, "A", (255, 0, 0), layer=0), Segment(1, "B", (0, 255, 0), layer=1))
    write_labels(Labels(np.ones((2, 3, 4, 5), np.uint8), Geometry((3, 4, 5)), segments), tmp_path / "r.seg.nrrd")
    written = sitk.ReadImage(str(tmp_path / "r.seg.nrrd"))
    assert [written.GetMetaData(f"Segment{n}_ID") for n in (0, 1)] == ["Segment_1_0", "Segment_1_1"]


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("Color", "0.5,0.5,0.5", "Segment1_Color is '0.5,0.5,0.5'; it must be three numbers from 0 to 1"),
        ("Color", "inf 0 0", "Segment1_Color is 'inf 0 0'"),
        ("Color", "255 0 0", "Segment1_Color is '255 0 0'"),
        ("Color", "0.5 0.5", "Segment1_Color is '0.5 0.5'"),
        ("LabelValue", "1.5", "Segment1_LabelValue is '1.5'; it must be a whole number"),
        ("Layer", "first", "Segment1_Layer is 'first'; it must be a whole number"),
        ("Layer", "7", "Ventrikel lies in layer 7; the labels have 1"),
    ],
)
def test_a_segmentation_with_a_damaged_field_is_refused_with_its_name(tmp_path, labels, key, text, words):
    write_labels(labels, tmp_path / "r.seg.nrrd")
    damaged = sitk.ReadImage(str(tmp_path / "r.seg.nrrd"))
    damaged.SetMetaData(f"Segment1_{key}", text)
    sitk.WriteImage(damaged, str(tmp_path / "r.seg.nrrd"))
    with pytest.raises(InvalidInput, match=rf"r\.seg\.nrrd: {words}"):
        read_labels(tmp_path / "r.seg.nrrd")


def test_letters_of_a_segmentation_that_are_not_utf8_do_no_harm(tmp_path, labels):
    write_labels(labels, tmp_path / "r.seg.nrrd")
    content = (tmp_path / "r.seg.nrrd").read_bytes()
    content = content.replace(b"Segment0_Color:", b"Segment0_C\xffl:").replace(
        b"Ventrikel", "Schädel".encode("latin-1")
    )
    (tmp_path / "r.seg.nrrd").write_bytes(content)
    grey, other = read_labels(tmp_path / "r.seg.nrrd").segments
    assert (grey.name, other.name) == ("Grey matter", "Sch?del")


def test_a_picture_takes_a_single_slice(tmp_path, labels):
    with pytest.raises(OutputError, match="5 slices"):
        write_labels(labels, tmp_path / "r.png")
    single = Labels(labels.array[:1], Geometry((1, 6, 7)), SEGMENTS)
    write_labels(single, tmp_path / "r.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "r.png").array, single.array)


@pytest.mark.parametrize("name", ["r.mhd", "r.nhdr"])
def test_an_image_is_not_written_in_two_files(tmp_path, scan, name):
    with pytest.raises(OutputError, match=r"no known ending; choose one of \.nii\.gz, \.nii, \.nrrd, \.mha"):
        write_image(scan, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_existing_result_is_kept_unless_told_otherwise(tmp_path, labels):
    path = tmp_path / "r.nrrd"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is kept"):
        write_labels(labels, path)
    assert path.read_text() == "mine"
    write_labels(labels, path, overwrite=True)
    assert read_labels(path).array.any()


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
