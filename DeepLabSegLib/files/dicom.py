"""DICOM series and multi-frame files as volumes; what is no even, upright stack is refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import headers
from DeepLabSegLib.files.itk import check_name, printable, why_unreadable

__all__ = ["find_series", "place_frames", "read_series"]

SAME_PLACE_MM = 1e-3
ROUNDED_MM = 0.1  # how far rounding may move a DICOM slice aside
MAX_TILT = 0.005  # mm aside per mm along the stack
DESCRIPTION = "0008|103e"  # of a DICOM series
RESCALE = ("0028|1053", "0028|1052")  # slope, intercept
GRID_FRAME_OFFSETS = "3004|000c"


def find_series(folder: Path) -> tuple[str, ...]:
    """The files of the one DICOM series in `folder`. Raises `InvalidInput` where there is none, or more than one."""
    found = [
        sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    ]
    for name in (name for names in found for name in names):
        check_name(Path(name))
    if not found:
        nested = ""
        with suppress(OSError):
            nested = ", such as a subfolder of it" if any(path.is_dir() for path in folder.iterdir()) else ""
        raise InvalidInput(f"{folder} holds no DICOM series; give a folder with exactly one{nested}")
    if len(found) > 1:
        titles = ", ".join(sorted(map(_title, found)))
        raise InvalidInput(f"{folder} holds {len(found)} DICOM series ({titles}); give a folder with exactly one")
    return found[0]


def read_series(folder: Path, names: Sequence[str]) -> sitk.Image:
    """The slices `names` of `folder`, lowest first. Raises `InvalidInput` where they are no even, upright stack."""
    slices = [_information(name) for name in names]
    normal = np.reshape(slices[0].GetDirection(), (3, 3))[:, 2]
    # GDCM sorts some kinds of slices one way at first and the other way later on.
    slices.sort(key=lambda slice_: float(np.dot(slice_.GetOrigin(), normal)))
    _check_stack(folder, [slice_.GetOrigin() for slice_ in slices], [slice_.GetDirection() for slice_ in slices])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([slice_.GetFileName() for slice_ in slices])
    if len({tuple(_tag(slice_, tag) for tag in RESCALE) for slice_ in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # ITK makes all of the first slice's type, perhaps whole numbers
    return reader.Execute()


def place_frames(itk_image: sitk.Image, source: Path) -> None:
    """Place the frames of a multi-frame DICOM file, or refuse them.

    ITK stacks them along their normal, whichever way they go, and makes voxels of 1 mm where it finds them uneven.
    """
    if itk_image.HasMetaDataKey(GRID_FRAME_OFFSETS):  # of an RT dose, which ITK places rightly
        return
    header, frames = headers.dicom(source), itk_image.GetDepth()
    positions = headers.decimals(header, headers.FRAME_POSITION, 3)
    pixels = set(headers.decimals(header, headers.PIXEL_SPACING, 2))
    if len(positions) != frames or len(pixels) != 1:
        raise InvalidInput(
            f"{source} has {frames} frames and doesn't say of each where it lies and what size its pixels are, as "
            "enhanced DICOM does, so it is taken for no volume; give the series that it was made of"
        )
    if any(len(set(headers.decimals(header, tag, 1))) > 1 for tag in headers.RESCALE):
        raise InvalidInput(
            f"{source} has frames whose values are scaled differently; convert it with a program that knows of this, "
            "such as dcm2niix"
        )
    direction = np.reshape(itk_image.GetDirection(), (3, 3))
    _check_stack(source, positions, [itk_image.GetDirection()])
    step = (np.array(positions[-1]) - positions[0]) @ direction[:, 2] / (frames - 1)
    rows, columns = pixels.pop()
    itk_image.SetSpacing((columns, rows, abs(step)))
    itk_image.SetDirection((direction * [1, 1, np.sign(step)]).ravel().tolist())


def _title(names: Sequence[str]) -> str:
    return f"{_tag(_information(names[0]), DESCRIPTION) or 'no description'}: {len(names)} slices"


def _information(name: str) -> sitk.ImageFileReader:
    """A reader that has read the header of a DICOM file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InvalidInput(f"{name} can't be read as a DICOM slice ({why_unreadable(error, Path(name))})") from None
    return reader


def _tag(reader: sitk.ImageFileReader, tag: str) -> str:
    return printable(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""


def _check_stack(source: Path, positions: Sequence[Sequence[float]], directions: Sequence[Sequence[float]]) -> None:
    """Refuse DICOM slices that are no even, upright stack: ITK would put their voxels at wrong places."""
    if np.ptp(directions, axis=0).max() > 1e-3:
        raise InvalidInput(
            f"{source}: the DICOM slices lie in several directions, as those of a localizer or a radial series do; "
            "give a folder with slices of one direction"
        )
    normal = np.reshape(directions[0], (3, 3))[:, 2]
    heights = (np.array(positions) - positions[0]) @ normal
    steps = np.diff(heights)
    if not ((steps > SAME_PLACE_MM).all() or (steps < -SAME_PLACE_MM).all()):
        raise InvalidInput(
            f"{source}: several DICOM slices lie at one place or out of order, as the frames of a cine or the time "
            "points of a scan do; give a folder with one slice for each place"
        )
    aside = np.linalg.norm(np.array(positions) - positions[0] - np.outer(heights, normal), axis=1)
    if (aside > ROUNDED_MM + MAX_TILT * np.abs(heights)).any():
        degrees = np.degrees(np.arctan(aside[-1] / np.abs(heights[-1])))
        how = f"{degrees:.1f} degrees off a right angle, as with a tilted gantry" if degrees > 0.5 else "unevenly"
        raise InvalidInput(
            f"{source}: the DICOM slices are stacked {how}, up to {aside.max():.1f} mm aside; convert the series with "
            "a program that corrects this, such as dcm2niix"
        )
    gaps = np.abs(steps)
    if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise InvalidInput(
            f"{source}: the DICOM slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; a slice is missing or the "
            "spacing varies: complete the series, or resample it to even spacing first"
        )
