"""DICOM series and files of many frames are volumes, or are refused."""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import (
    AXIAL,
    FLIPPED,
    element,
    sequence,
    write_dicom,
    write_dose,
    write_frames,
    write_nuclear,
    write_series,
)
from helpers import OBLIQUE, itk, make_scan, physically_equal

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image
from DeepLabSegLib.files.dicom import read_series
from DeepLabSegLib.image import AXIS_ALIGNED

# --- series ----------------------------------------------------------------------------------------------------------


def test_a_dicom_folder_is_a_volume(tmp_path, scan):
    write_series(tmp_path / "series", scan)
    image = read_image(tmp_path / "series")
    assert image.geometry.is_close(scan.geometry, tolerance=0.01)
    np.testing.assert_allclose(image.array, scan.array, atol=1)


THICKNESS, DISTANCE = 0x00180050, 0x00180088


@pytest.mark.parametrize("kind", ["2", "4"], ids=["CT", "MR"])
@pytest.mark.parametrize(
    ("fields", "thick"),
    [({THICKNESS: "8"}, 8), ({THICKNESS: "8", DISTANCE: "-10"}, 10), ({THICKNESS: "0", DISTANCE: ""}, 1), ({}, 1)],
)
def test_a_single_slice_reaches_as_far_as_to_the_next_one_or_is_as_thick_as_it_says(tmp_path, rng, kind, fields, thick):
    numbers = {tag: element(tag, b"DS", text) for tag, text in fields.items()}
    pixel = {0x00280030: element(0x00280030, b"DS", "2\\1.5")}
    write_dicom(tmp_path / "series" / "a.dcm", kind, rng.integers(0, 99, (1, 8, 9)), numbers | pixel)
    for source in (tmp_path / "series", tmp_path / "series" / "a.dcm"):
        assert read_image(source).geometry.spacing == (thick, 2, 1.5)


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
        ({POSITION: lambda k: f"0\\0\\{3 * k + (k > 5)}"}, "3.00 to 4.00 mm apart"),
        ({ORIENTATION: lambda k: "1\\0\\0\\0\\1\\0" if k < 6 else "1\\0\\0\\0\\0\\-1"}, "lie in several directions"),
    ],
    ids=["gantry", "slight tilt", "cine", "time points", "offset", "uneven", "localizer"],
)
def test_a_series_that_is_no_upright_stack_is_refused(tmp_path, scan, fields, words):
    write_series(tmp_path / "series", scan, **fields)
    with pytest.raises(InvalidInput, match=words):
        read_image(tmp_path / "series")


def test_an_oblique_series_whose_positions_are_rounded_is_a_volume(tmp_path, scan):
    direction = ((0.0, -0.6, -0.8), *OBLIQUE[1:])  # ITK stacks slices towards their normal
    tilted = replace(scan, geometry=replace(scan.geometry, spacing=(3.3, 1.5, 1.2), direction=direction))
    affine = tilted.geometry.affine

    def rounded(k: int) -> str:
        return "\\".join(f"{p:.1f}" for p in affine[:3] @ [k, 0, 0, 1] * [-1, -1, 1])

    write_series(tmp_path / "series", tilted, **{POSITION: rounded})
    assert read_image(tmp_path / "series").geometry.is_close(tilted.geometry, tolerance=0.1)


def test_a_series_that_leans_by_a_quarter_of_a_degree_is_a_volume(tmp_path, scan):
    write_series(tmp_path / "series", scan, **{POSITION: lambda k: f"0\\{0.012 * k:g}\\{3 * k}"})
    assert read_image(tmp_path / "series").geometry.spacing[0] == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("what", ["slope", "intercept"])
def test_slices_that_are_scaled_differently_keep_their_fractions(tmp_path, scan, what):
    write_series(tmp_path, scan)
    whole = read_image(tmp_path).array[0]
    tag, old = {"slope": (b"\x28\x00\x53\x10", 1), "intercept": (b"\x28\x00\x52\x10", 0)}[what]
    numbers = [float(old), *(0.37 * k for k in range(1, 12))]
    for k, number in enumerate(numbers):
        path = tmp_path / f"1.2.3.4-{k}.dcm"
        said, value = f"{old} ".encode(), f"{number:<8g}".encode()
        path.write_bytes(path.read_bytes().replace(tag + b"\2\0\0\0" + said, tag + b"\x08\0\0\0" + value))
    column = np.reshape(numbers, (-1, 1, 1))
    expected = whole * column if what == "slope" else whole + column
    np.testing.assert_allclose(read_image(tmp_path).array[0], expected, rtol=1e-6)


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


@pytest.mark.parametrize(
    "direction",
    [AXIS_ALIGNED, ((0, 0, -1), (0, 1, 0), (1, 0, 0)), ((1, 0, 0), (0, 0, -1), (0, 1, 0))],
    ids=["up", "down", "sideways"],
)
def test_slices_are_stacked_by_their_positions_whatever_order_they_are_found_in(tmp_path, scan, direction):
    scan = replace(scan, array=np.rint(scan.array), geometry=replace(scan.geometry, direction=direction))
    write_series(tmp_path, scan)
    names = sorted(map(str, tmp_path.iterdir()))
    names, along = [*names[::2], *names[1::2]], int(np.abs(direction[0]).argmax())
    for order in (names, names[::-1]):
        image = read_series(tmp_path, order)
        heights = [image.TransformIndexToPhysicalPoint((0, 0, k))[along] for k in range(12)]
        places = [itk(scan).TransformIndexToPhysicalPoint((0, 0, k))[along] for k in range(12)]
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


@pytest.mark.skipif(sys.platform != "linux", reason="files with such names")
def test_a_series_with_names_that_are_not_utf8_is_refused(tmp_path, scan):
    write_series(tmp_path, scan)
    (tmp_path / "1.2.3.4-3.dcm").rename(tmp_path / "caf\udce9.dcm")
    with pytest.raises(InvalidInput, match=r"caf\?\.dcm has letters"):
        read_image(tmp_path)


# --- frames ----------------------------------------------------------------------------------------------------------


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
        ([0, 1, 2, 3], {"intercepts": ["0", "0", "9", "0"]}, "values are scaled differently"),
    ],
    ids=["time points", "interleaved", "gap", "secondary capture", "slopes", "intercepts"],
)
def test_frames_that_are_no_upright_stack_are_refused(tmp_path, scan, planes, options, words):
    write_frames(tmp_path / "frames.dcm", scan, planes, **options)
    for source in (tmp_path / "frames.dcm", tmp_path):
        with pytest.raises(InvalidInput, match=rf"frames\.dcm.*{words}"):
            read_image(source)


def test_frames_whose_pixels_have_no_size_are_refused(tmp_path, scan):
    path = tmp_path / "frames.dcm"
    write_frames(path, scan, [0, 1, 2, 3])
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x30\x00DS", b"\x28\x00\x31\x00DS"))
    with pytest.raises(InvalidInput, match="doesn't say of each where it lies and what size its pixels are"):
        read_image(path)


def test_frames_of_a_deflated_file_are_a_volume(tmp_path, scan):
    scan = replace(scan, array=np.rint(scan.array))
    write_frames(tmp_path / "frames.dcm", scan, list(range(12)), deflated=True)
    image = read_image(tmp_path / "frames.dcm")
    np.testing.assert_array_equal(image.array, scan.array)
    assert image.geometry.is_close(scan.geometry, tolerance=0.01)
    write_frames(tmp_path / "frames.dcm", scan, [0, 1, 2, 5], deflated=True)
    with pytest.raises(InvalidInput, match="a slice is missing"):
        read_image(tmp_path / "frames.dcm")


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
        {"step": 4, "slices": (1, 2), "told": False},
        {"step": 4, "slices": (4, 3, 2, 1)},
    ],
    ids=["no step", "projections", "gated", "two detectors", "two energies", "twice the slices", "another order"],
)
def test_nuclear_frames_that_may_be_no_volume_are_refused(tmp_path, rng, options):
    write_nuclear(tmp_path / "spect.dcm", rng.integers(0, 9, (4, 5, 6)), **options)
    with pytest.raises(InvalidInput, match="has 4 frames and doesn't say of each where it lies"):
        read_image(tmp_path / "spect.dcm")
