"""Between SimpleITK and the rest: axes (i, j, k) and LPS become (k, j, i) and RAS; its warnings, names and words."""

from __future__ import annotations

import locale
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DeepLabSegLib.errors import DeepLabSegError, InvalidInput
from DeepLabSegLib.files import headers, metaimage
from DeepLabSegLib.image import Geometry

__all__ = ["check_name", "from_array", "geometry_of", "printable", "quiet", "reason", "why_unreadable"]

MEANINGS = {
    "orthonormal": "its sform is sheared, and it has no qform; resample it to a rectangular grid",
    "determinant is 0": "two of its axes coincide; correct the header",
    "Unknown PixelType": "its voxels are no numbers, colours or vectors, but perhaps tensors; save a measure of them",
}
"""What is meant, by words in what ITK says."""

WRITTEN_AS = {"?": np.uint8, "e": np.float32, "g": np.float64}
"""Types that ITK lacks, bool, float16 and what is longer than float64, and what takes their values."""

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def geometry_of(itk_image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    """The grid of an image, or of the file whose header a reader has read; a picture is one slice."""
    dims = itk_image.GetDimension()
    spacing, origin, direction = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:dims] = itk_image.GetSpacing()
    origin[:dims] = itk_image.GetOrigin()
    direction[:dims, :dims] = np.reshape(itk_image.GetDirection(), (dims, dims))
    lengths = np.linalg.norm(direction, axis=0)
    if not np.allclose(lengths, 1, atol=1e-3):  # MetaImage may have the voxels' size, or part of it, in them
        spacing *= lengths
    shape = (*itk_image.GetSize(), 1)[:3]
    # Rows of the result are the axes k, j, i, so the columns i, j, k are transposed and turned round.
    return Geometry(
        shape[::-1],
        tuple(spacing[::-1]),
        tuple(origin * LPS_TO_RAS),
        tuple(map(tuple, (direction * LPS_TO_RAS[:, None]).T[::-1])),
    )


def from_array(array: NDArray, geometry: Geometry) -> sitk.Image:
    """`(k, j, i)` or `(n, k, j, i)` to an image of SimpleITK, layers or channels as components."""
    array = array.astype(np.dtype(WRITTEN_AS.get(array.dtype.char, array.dtype)).newbyteorder("="), copy=False)
    layered = array.ndim == 4
    itk_image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if layered else array, isVector=layered)
    itk_image.SetSpacing(geometry.spacing[::-1])
    itk_image.SetOrigin((np.array(geometry.origin) * LPS_TO_RAS).tolist())
    itk_image.SetDirection((np.array(geometry.direction)[::-1] * LPS_TO_RAS).T.ravel().tolist())
    return itk_image


@contextmanager
def quiet() -> Iterator[None]:
    """ITK prints its warnings to the terminal; what matters is raised here as an error."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        with _names_in_utf8():
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _names_in_utf8() -> Iterator[None]:
    """ITK hands a file's name to the C library in UTF-8; Windows' takes it for its code page unless told otherwise."""
    if sys.platform != "win32":
        yield
        return
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, ".UTF8")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def check_name(path: Path, kind: type[DeepLabSegError] = InvalidInput) -> None:
    """Raise `kind` for a name that isn't UTF-8, at which SimpleITK ends the process."""
    if (shown := printable(str(path))) != str(path):
        raise kind(f"{shown} has letters in its name, or a folder's, that are not in UTF-8; rename it")


def printable(text: str) -> str:
    """`text`, with a question mark for each byte that is not UTF-8."""
    return text.encode(errors="replace").decode()


def why_unreadable(error: RuntimeError, path: Path) -> str:
    """What ITK says at last, or what it doesn't know of."""
    said = str(error)
    if path.is_file() and (known := headers.why_unreadable(path, said)):
        return known
    if meant := next((ours for theirs, ours in MEANINGS.items() if theirs in said), None):
        return meant
    if path.name.lower().endswith(metaimage.METAIMAGE_SUFFIXES) and "Reason:" in said:  # whatever failed last
        return "it is cut short, or the file of its voxels is missing"
    return reason(error, path)


def reason(error: RuntimeError, path: Path) -> str:
    """The last line of what ITK says, without its own names for things."""
    said = (str(error).strip().splitlines() or ["unknown reason"])[-1].strip()
    said = re.sub(r"^(ITK |sitk::)ERROR: (\w+\(0x\w+\): )?", "", said)
    if sys.platform == "win32" and not str(path).isascii():
        return f"{said}; perhaps for letters beyond ASCII: try a name and folder without them"
    return said
