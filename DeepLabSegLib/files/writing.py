"""Images and label maps to disk, read again before they take their place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DeepLabSegLib.checks import kind_of
from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.files.formats import LABEL_SUFFIXES, ONE_FILE_SUFFIXES, is_segmentation
from DeepLabSegLib.files.itk import check_name, from_array, quiet, reason
from DeepLabSegLib.files.reading import read_itk
from DeepLabSegLib.files.segments import fields_of
from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.outputs import check_output, replacing

__all__ = ["check_overlap", "check_slices", "write_image", "write_labels"]


def write_labels(labels: Labels, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write labels; the ending says how.

    `.seg.nrrd` keeps names, colours, ids, terminology and overlapping segments, and opens in Slicer as a
    segmentation; `.nii`, `.nii.gz`, `.nrrd` and `.mha` are plain label maps; `.png` takes a single slice.

    Raises
    ------
    InvalidInput : something else than labels.
    OutputError : an unknown ending, a folder that is missing or can't be written, an existing file without
        `overwrite`, labels that the format can't hold, a disk without room; what was there is kept.
    """
    if not isinstance(labels, Labels):
        raise InvalidInput(f"given is a {kind_of(labels)}, not Labels; an Image goes to write_image")
    target = check_output(path, LABEL_SUFFIXES, overwrite)
    check_overlap(target, labels.array.ndim == 4)
    check_slices(target, labels.geometry)
    if target.suffix.lower() == ".png":
        itk_image = sitk.GetImageFromArray(labels.array[0])
        itk_image.SetSpacing(labels.geometry.spacing[:0:-1])
    else:
        itk_image = from_array(labels.array, labels.geometry)
    if is_segmentation(target):
        for key, value in fields_of(labels).items():
            itk_image.SetMetaData(key, value)
    _write(itk_image, target)


def write_image(image: Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an image as `.nii.gz`, `.nii`, `.nrrd` or `.mha`. Raises as `write_labels`."""
    if not isinstance(image, Image):
        raise InvalidInput(
            f"the image is a {kind_of(image)}; make an Image of an array and its Geometry, or give Labels to "
            "write_labels"
        )
    target = check_output(path, ONE_FILE_SUFFIXES, overwrite)
    _write(from_array(image.array if image.channels > 1 else image.array[0], image.geometry), target)


def check_overlap(target: Path, overlapping: bool) -> None:
    """Raise `OutputError` where labels that overlap are to go into a plain label map."""
    if overlapping and not is_segmentation(target):
        raise OutputError(f"{target} is a plain label map and can't hold segments that overlap; write a .seg.nrrd")


def check_slices(target: Path, geometry: Geometry) -> None:
    """Raise `OutputError` where `target` is a picture, which can't take labels of several slices."""
    if target.suffix.lower() == ".png" and geometry.shape[0] > 1:
        raise OutputError(f"{target} is a picture, and the labels have {geometry.shape[0]} slices; write a .nrrd")


def _write(itk_image: sitk.Image, target: Path) -> None:
    check_name(target, OutputError)
    with replacing(target) as temporary:
        try:
            with quiet():
                sitk.WriteImage(itk_image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OutputError(f"{target} can't be written ({reason(error, target)})") from None
        if not _holds(temporary, itk_image):
            raise OutputError(
                f"{target} can't be written whole; make room on its disk, or choose a folder on another one"
            )


def _holds(path: Path, written: sitk.Image) -> bool:
    """Whether the file at `path` has the voxels of `written`; of most that fails in writing, ITK says nothing."""
    try:
        read = read_itk(path)
    except InvalidInput:
        return False
    found, voxels = (sitk.GetArrayViewFromImage(image).ravel() for image in (read, written))
    # ITK reads 0 from NIfTI for what is not finite.
    return found.size == voxels.size and bool(((found == voxels) | ~np.isfinite(voxels)).all())
