"""DICOM series and multi-frame files as volumes; what is no even, upright stack is refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import tags
from DeepLabSegLib.files.itk import check_name, printable, why_unreadable

__all__ = ["find_series", "give_thickness", "place_frames", "read_series"]

SAME_PLACE_MM = 1e-3
ROUNDED_MM = 0.1  # how far rounding may move a DICOM slice aside
MAX_TILT = 0.005  # mm aside per mm along the stack
SERIES = "0020|000e"  # its UID
DESCRIPTION = "0008|103e"  # of a series
RESCALE = ("0028|1053", "0028|1052")  # slope, intercept
THICKNESS, DISTANCE = "0018|0050", "0018|0088"  # of slices, in mm; the distance of nuclear ones has a sign
DOSE_OFFSETS, DOSE_SCALE = "3004|000c", "3004|000e"
IMAGE_TYPE = "0008|0008"
SLICES, SLICE_OF_FRAME = "0054|0081", "0054|0080"  # of a nuclear volume


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
    _check_left_out(folder, found[0])
    return found[0]


def read_series(folder: Path, names: Sequence[str]) -> sitk.Image:
    """The slices `names` of `folder`, lowest first. Raises `InvalidInput` where they are no even, upright stack."""
    slices = [_information(name) for name in names]
    _check_grids(folder, slices)
    normal = np.reshape(slices[0].GetDirection(), (3, 3))[:, 2]
    # GDCM sorts some kinds of slices one way at first and the other way later on.
    slices.sort(key=lambda slice_: float(np.dot(slice_.GetOrigin(), normal)))
    _check_stack(folder, [slice_.GetOrigin() for slice_ in slices], [slice_.GetDirection() for slice_ in slices])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([slice_.GetFileName() for slice_ in slices])
    if len({tuple(_tag(slice_, tag) for tag in RESCALE) for slice_ in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # ITK makes all of the first slice's type, perhaps whole numbers
    return reader.Execute()


def give_thickness(itk_image: sitk.Image) -> None:
    """Make a single slice that tells no distance to the next one as thick as it says; ITK takes 1 mm."""
    with suppress(ValueError):
        thickness = 0.0 if _tag(itk_image, DISTANCE) else float(_tag(itk_image, THICKNESS))
        if 0 < thickness < np.inf:
            itk_image.SetSpacing((*itk_image.GetSpacing()[:2], thickness))


def place_frames(itk_image: sitk.Image, source: Path) -> sitk.Image:
    """The frames of a multi-frame DICOM file at their places. Raises `InvalidInput` where it doesn't tell these.

    ITK stacks them along their normal, whichever way they go, and makes voxels of 1 mm where it finds them uneven.
    """
    header = tags.header_of(source)
    if itk_image.HasMetaDataKey(DOSE_OFFSETS):
        return _placed_dose(itk_image, source)
    if _is_nuclear_volume(itk_image, header):  # which ITK places rightly
        return itk_image
    frames = itk_image.GetDepth()
    positions = tags.decimals(header, tags.FRAME_POSITION, 3)
    pixels = set(tags.decimals(header, tags.PIXEL_SPACING, 2))
    if len(positions) != frames or len(pixels) != 1:
        raise InvalidInput(
            f"{source} has {frames} frames and doesn't say of each where it lies and what size its pixels are, as "
            "enhanced DICOM does, so it is taken for no volume; give the series that it was made of"
        )
    if any(len(set(tags.decimals(header, tag, 1))) > 1 for tag in tags.RESCALE):
        raise InvalidInput(
            f"{source} has frames whose values are scaled differently; convert it with a program that knows of this, "
            "such as dcm2niix"
        )
    rows, columns = pixels.pop()
    _stack(itk_image, source, np.array(positions), (columns, rows))
    return itk_image


def _placed_dose(itk_image: sitk.Image, source: Path) -> sitk.Image:
    """A radiotherapy dose in its units; ITK takes the first two frames' distance for all, and leaves it unscaled."""
    offsets, scale = (np.array(_numbers(itk_image, source, tag)) for tag in (DOSE_OFFSETS, DOSE_SCALE))
    if len(offsets) != itk_image.GetDepth():
        raise InvalidInput(
            f"{source} has {itk_image.GetDepth()} frames and places {len(offsets)} of them (Grid Frame Offset Vector); "
            "export the dose again"
        )
    across, down, _ = np.reshape(itk_image.GetDirection(), (3, 3)).T
    along = [0, 0, 1] if offsets[0] else np.cross(across, down)  # what doesn't begin with 0 is the frames' own z
    positions = itk_image.GetOrigin() + np.outer(offsets - offsets[0], along)
    _stack(itk_image, source, positions, itk_image.GetSpacing()[:2])
    return sitk.Cast(itk_image, sitk.sitkFloat32) * float(scale[0])


def _is_nuclear_volume(itk_image: sitk.Image, header: bytes) -> bool:
    """Whether the frames are a reconstruction's slices, with one detector's position and a step that has a sign."""
    frames = itk_image.GetDepth()
    return (
        "RECON TOMO" in _tag(itk_image, IMAGE_TYPE).split("\\")
        and _tag(itk_image, SLICES) == str(frames)
        and _tag(itk_image, SLICE_OF_FRAME) in ("", "\\".join(map(str, range(1, frames + 1))))
        and bool(_tag(itk_image, DISTANCE))
        and len(tags.decimals(header, tags.POSITION, 3)) == len(tags.decimals(header, tags.ORIENTATION, 6)) == 1
    )


def _stack(itk_image: sitk.Image, source: Path, positions: NDArray[np.float64], pixel: Sequence[float]) -> None:
    """Give frames with these positions, `(frames, 3)`, and pixel sizes along (i, j) their spacing and direction."""
    direction = np.reshape(itk_image.GetDirection(), (3, 3))
    _check_stack(source, positions, [itk_image.GetDirection()])
    step = (positions[-1] - positions[0]) @ direction[:, 2] / (len(positions) - 1)
    itk_image.SetSpacing((*pixel, abs(step)))
    itk_image.SetDirection((direction * [1, 1, np.sign(step)]).ravel().tolist())


def _check_left_out(folder: Path, names: Sequence[str]) -> None:
    """Refuse a series with a slice that GDCM passes by, since it can't read it."""
    series, taken = _tag(_information(names[0]), SERIES), {Path(name).name for name in names}
    for path in sorted(folder.iterdir()):
        if path.name not in taken and path.is_file() and tags.is_slice_of(series, path):
            raise InvalidInput(
                f"{path} belongs to the DICOM series and can't be read, so it is damaged; copy or export it again"
            )


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


def _tag(reader: sitk.ImageFileReader | sitk.Image, tag: str) -> str:
    return printable(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""


def _check_grids(folder: Path, slices: Sequence[sitk.ImageFileReader]) -> None:
    """Refuse slices of several sizes: ITK would give all the first one's pixels."""
    grids = [(*slice_.GetSize()[:2], *slice_.GetSpacing()[:2]) for slice_ in slices]
    if np.ptp(grids, axis=0).max() > SAME_PLACE_MM:
        shown = " and ".join(
            f"{width} x {height} pixels of {down:g} x {across:g} mm"
            for width, height, across, down in (min(grids), max(grids))
        )
        raise InvalidInput(f"{folder}: the DICOM slices have {shown}; give a folder with slices of one size")


def _numbers(itk_image: sitk.Image, source: Path, tag: str) -> list[float]:
    text = _tag(itk_image, tag)
    try:
        return [float(part) for part in text.split("\\")]
    except ValueError:
        raise InvalidInput(f"{source}: the DICOM tag {tag} is {text!r}, no numbers; export the file again") from None


def _check_stack(
    source: Path, positions: Sequence[Sequence[float]] | NDArray[np.float64], directions: Sequence[Sequence[float]]
) -> None:
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
