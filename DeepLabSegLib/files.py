"""Images and label maps on disk. The only module that imports SimpleITK.

SimpleITK counts axes (i, j, k) and places voxels in LPS; here they are turned to (k, j, i) and RAS.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology

__all__ = ["IMAGE_SUFFIXES", "read_image"]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUFFIXES = (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)
LABEL_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".png")

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


# --- reading ---------------------------------------------------------------------------------------------------------


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a volume or picture: NIfTI, NRRD, MetaImage, PNG, JPEG, or a folder that holds one DICOM series.

    Returns `(C, k, j, i)`; pictures are one slice, colours are channels. Spacing is in mm, positions in RAS.

    Raises
    ------
    InvalidInput : a missing or unreadable file, one that is no image, more than three axes, a bad header,
        a folder without exactly one DICOM series.
    """
    return _to_image(_read(path), str(path))


def _to_image(itk_image: sitk.Image, name: str) -> Image:
    if itk_image.GetDimension() > 3:
        raise InvalidInput(
            f"{name} has {itk_image.GetDimension()} axes ({' x '.join(map(str, itk_image.GetSize()))}); "
            "save one time point or channel as a 3D image"
        )
    if "complex" in itk_image.GetPixelIDTypeAsString():
        raise InvalidInput(f"{name} has complex voxels; save its magnitude as a real image")
    array = sitk.GetArrayFromImage(itk_image)
    # A vector image's channels come last; a picture has no k axis.
    channels_last = array if itk_image.GetNumberOfComponentsPerPixel() > 1 else array[..., None]
    if itk_image.GetDimension() == 2:
        channels_last = channels_last[None]
    array = np.ascontiguousarray(np.moveaxis(channels_last, -1, 0))
    try:
        return Image(array, _geometry(itk_image))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None


def _geometry(itk_image: sitk.Image) -> Geometry:
    dims = itk_image.GetDimension()
    spacing, origin, direction = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:dims] = itk_image.GetSpacing()
    origin[:dims] = itk_image.GetOrigin()
    direction[:dims, :dims] = np.reshape(itk_image.GetDirection(), (dims, dims))
    shape = (*itk_image.GetSize(), 1)[:3]
    # Rows of the result are the axes k, j, i, so the columns i, j, k are transposed and turned round.
    return Geometry(
        shape[::-1],
        tuple(spacing[::-1]),
        tuple(origin * LPS_TO_RAS),
        tuple(map(tuple, (direction * LPS_TO_RAS[:, None]).T[::-1])),
    )


def _read(path: str | os.PathLike[str]) -> sitk.Image:
    source = Path(path)
    if not source.exists():
        raise InvalidInput(f"{source} does not exist; check the path")
    try:
        if source.is_dir():
            return _read_dicom(source)
        if source.stat().st_size == 0:
            raise InvalidInput(f"{source} is empty (0 bytes); copy or export it again")
        with _quiet():
            return sitk.ReadImage(str(source))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else "unknown reason"
        raise InvalidInput(
            f"{source} can't be read as an image ({reason}); "
            f"readable are {', '.join(IMAGE_SUFFIXES)} and folders of one DICOM series"
        ) from None


def _read_dicom(folder: Path) -> sitk.Image:
    with _quiet():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(series) != 1:
            found = f"{len(series)} DICOM series" if series else "no DICOM series"
            raise InvalidInput(f"{folder} holds {found}; give a folder with exactly one")
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
        _check_slices(names)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        return reader.Execute()


def _check_slices(names: tuple[str, ...]) -> None:
    """Refuse a series whose slices are not evenly spaced: every voxel behind a gap would lie at a wrong place."""
    positions = []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
        positions.append(reader.GetOrigin())
    gaps = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1)
    if len(gaps) and gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise InvalidInput(
            f"the DICOM slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; a slice is missing or the spacing "
            "varies: complete the series, or resample it to even spacing first"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """ITK prints its warnings to the terminal; what matters is raised here as an error."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
