"""What ITK passes over in image files, by format, and why it can't read one."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import metaimage, nifti

__all__ = ["check", "check_before", "why_unreadable"]

UNKNOWN = "Unable to determine ImageIO"
"""What ITK says of a file that it takes for no image."""

DICOM_START = re.compile(rb"[\x02\x08]\0.\0([A-Z]{2}|..\0\0)", re.DOTALL)
"""Of a file that lacks what stands before its first tag."""


def check_before(source: Path) -> None:
    """Raise `InvalidInput` for a file that ITK is not to see: it would end the process, or say what isn't so."""
    if source.name.lower().endswith(metaimage.METAIMAGE_SUFFIXES):
        metaimage.check_before(source)
    elif source.name.lower().endswith(nifti.NIFTI_SUFFIXES):
        nifti.check_before(source)


def check(source: Path, kind: str, size: Sequence[int], numbers: tuple[int, int]) -> None:
    """Raise `InvalidInput` for a NIfTI, MetaImage or JPEG file with a fault that ITK passes over; other formats pass.

    Warns of a JPEG that is shown in another orientation than it is stored in.

    `kind` is the class by which ITK has read it, `size` the image's, per axis, and `numbers` says how many there are
    per voxel and of how many bytes.
    """
    if kind == "NiftiImageIO":
        _check_spacing(source, nifti.checked_spacing(source, prod(size), numbers[0]), size)
    elif kind == "MetaImageIO":
        _check_spacing(source, metaimage.checked_spacing(source, prod(size) * prod(numbers)), size)
    elif kind == "JPEGImageIO":
        _check_jpeg(source)


def why_unreadable(source: Path, said: str) -> str | None:
    """Why ITK can't read a file, where `said`, its own words, don't tell."""
    name = source.name.lower()
    if name.endswith(".nii") and nifti.is_gzipped(source):
        return f"it is gzipped, so call it {source.name}.gz"
    with suppress(EOFError, OSError, zlib.error), nifti.opened(source) as file:
        start = file.read(132)
        if name.endswith(nifti.NIFTI_SUFFIXES) and start[4:7] == b"n+2":
            return "it is NIfTI-2; save it as NIfTI-1, such as with `fslchfiletype` or nibabel"
        if start[128:] == b"DICM" and UNKNOWN in said:
            return "it is DICOM without an image, such as a DICOMDIR, a report or a structure set, or it is damaged"
        if start[1:4] == b"PNG" and "Unknown PixelType" in said:
            return "it is grey with transparency; save it without, or in colours"
        if DICOM_START.match(start):
            return (
                "it is DICOM without the 128 bytes and `DICM` that stand before the rest; mend it, such as with "
                "DCMTK's dcmconv"
            )
    return None


def _check_spacing(source: Path, spacing: Sequence[float], size: Sequence[int]) -> None:
    # ITK takes 1 for what makes no sense in NIfTI and drops a MetaImage's sign. A single slice needs no spacing.
    if any(count > 1 and not 0 < value < float("inf") for value, count in zip(spacing, size, strict=False)):
        shown = " x ".join(f"{value:g}" for value in spacing)
        raise InvalidInput(
            f"{source}: spacing is {shown} mm; every axis needs a positive, finite size, so correct the header"
        )


def _check_jpeg(source: Path) -> None:
    """Raise `InvalidInput` for a JPEG that ends early, of which ITK makes the rest grey; warn of one to be turned."""
    from PIL import ExifTags
    from PIL import Image as Picture

    orientation = None
    with warnings.catch_warnings(), suppress(Picture.DecompressionBombError):  # ITK has room for such a size
        warnings.simplefilter("ignore")  # of its size too, and of damaged EXIF
        try:
            with Picture.open(source) as picture:
                orientation = picture.getexif().get(ExifTags.Base.Orientation)
                picture.load()
        except OSError as error:
            raise InvalidInput(f"{source} is damaged ({error}); copy or export it again") from None
    if orientation in range(2, 9):  # it may be anything
        warnings.warn(
            f"{source} is turned where it is shown (EXIF orientation {orientation}), but not here; save it turned, "
            "such as with ImageMagick's -auto-orient",
            stacklevel=6,
        )
