"""What ITK passes over in image files: faults, a NIfTI file's second transform, where a DICOM file's frames lie."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedIOBase
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput

__all__ = ["FRAME_POSITION", "PIXEL_SPACING", "RESCALE", "check", "decimals", "dicom", "sform", "why_unreadable"]

NIFTI_COLOURS = (128, 2304)
"""RGB and RGBA: these types' bits are those of all components."""

TO_MM = {1: 1000.0, 3: 0.001}
"""By NIfTI's code of a unit of length, metre and micrometre."""

FRAME_POSITION = rb"\x20\x00\x13\x91.{12,16}?\x20\x00\x32\x00"  # Plane Position Sequence, its item, Image Position
PIXEL_SPACING = rb"\x28\x00\x30\x00"
RESCALE = (rb"\x28\x00\x53\x10", rb"\x28\x00\x52\x10")  # slope, intercept
PIXEL_DATA = b"\xe0\x7f\x10\x00"
DECIMAL = rb" *([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?) *"


def check(source: Path, size: Sequence[int], components: int) -> None:
    """Raise `InvalidInput` for a NIfTI or MetaImage file with such a fault; other formats pass.

    `size` is the image's, per axis, and `components` the numbers per voxel.
    """
    name = source.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        spacing = _nifti_spacing(source, prod(size), components)
    elif name.endswith((".mha", ".mhd")):
        spacing = _metaimage_spacing(source)
    else:
        return
    # ITK takes 1 for what makes no sense in NIfTI and drops a MetaImage's sign. A single slice needs no spacing.
    if any(count > 1 and not 0 < value < float("inf") for value, count in zip(spacing, size, strict=False)):
        shown = " x ".join(f"{value:g}" for value in spacing)
        raise InvalidInput(
            f"{source}: spacing is {shown} mm; every axis needs a positive, finite size, so correct the header"
        )


def why_unreadable(source: Path) -> str | None:
    """Why ITK can't read a file, where it doesn't know so itself."""
    name = source.name.lower()
    if name.endswith(".nii") and _is_gzipped(source):
        return f"it is gzipped, so call it {source.name}.gz"
    with suppress(EOFError, OSError, zlib.error), _opened(source) as file:
        start = file.read(8)
        if name.endswith((".nii", ".nii.gz")) and start[4:7] == b"n+2":
            return "it is NIfTI-2; save it as NIfTI-1, such as with `fslchfiletype` or nibabel"
        if re.match(rb"[\x02\x08]\0.\0([A-Z]{2}|..\0\0)", start, re.DOTALL):
            return (
                "it is DICOM without the 128 bytes and `DICM` that stand before the rest; mend it, such as with "
                "DCMTK's dcmconv"
            )
    return None


def sform(source: Path) -> NDArray[np.float64] | None:
    """The sform of a NIfTI file that has a qform as well: 3 x 4, takes `(i, j, k, 1)` to RAS mm. None of others."""
    if not source.name.lower().endswith((".nii", ".nii.gz")):
        return None
    with _opened(source) as file:
        header = file.read(348)
    order = _byte_order(header)
    if min(struct.unpack_from(f"{order}2h", header, 252)) <= 0:  # qform_code, sform_code
        return None
    rows = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))  # srow_x, srow_y, srow_z
    if not np.linalg.det(rows[:, :3]):
        return None  # nobody can take it
    return rows * TO_MM.get(header[123] & 7, 1.0)  # xyzt_units


def dicom(source: Path) -> bytes:
    """The bytes of a DICOM file before its pixels."""
    content = source.read_bytes()
    return content[: content.rfind(PIXEL_DATA)]


def decimals(header: bytes, tag: bytes, count: int) -> list[tuple[float, ...]]:
    """The `count` numbers of a DICOM tag, wherever it stands in `header`; none where that is big-endian or deflated.

    ITK gives no tag of a frame, since these stand in sequences.
    """
    # Behind the tag: the type and two bytes of length, or four of length.
    found = re.finditer(tag + rb".{4}" + rb"\\".join([DECIMAL] * count), header, re.DOTALL)
    return [tuple(map(float, match.groups())) for match in found]


def _nifti_spacing(source: Path, voxels: int, components: int) -> tuple[float, ...]:
    """`pixdim[1..3]` of a NIfTI file that holds `voxels` of `components`; ITK fills what one lacks with zeros."""
    header, found, reason = b"", 0, "it ends early"
    try:
        with _opened(source) as file:
            header = file.read(540)
            found = len(header)
            while chunk := file.read(2**22):
                found += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        found, reason = 0, str(error)
    spacing, datatype, bits = _nifti_fields(header) if found >= 352 else ((), 0, 0)
    numbers = voxels if datatype in NIFTI_COLOURS else voxels * components
    if found < 352 + numbers * bits // 8:
        raise InvalidInput(f"{source} is damaged ({reason}); copy or export it again")
    return spacing


def _nifti_fields(header: bytes) -> tuple[tuple[float, ...], int, int]:
    """`pixdim[1..3]`, `datatype` and `bitpix` of a NIfTI-1 or NIfTI-2 header, in either byte order.

    ITK has read the file before, so it is one of these or an Analyze header, which has the first's layout.
    """
    order = _byte_order(header)
    if struct.unpack_from(f"{order}i", header)[0] == 540:
        return struct.unpack_from(f"{order}3d", header, 112), *struct.unpack_from(f"{order}2h", header, 12)
    return struct.unpack_from(f"{order}3f", header, 80), *struct.unpack_from(f"{order}2h", header, 70)


def _byte_order(header: bytes) -> str:
    return next((o for o in "<>" if struct.unpack_from(f"{o}i", header)[0] in (348, 540)), "<")


def _metaimage_spacing(source: Path) -> tuple[float, ...]:
    with source.open("rb") as file:
        found = re.search(rb"^ElementSpacing\s*=([^\r\n]*)", file.read(2**14), re.MULTILINE)
    return tuple(float(text) for text in found[1].split()) if found else ()


def _opened(source: Path) -> BufferedIOBase:
    """A file's bytes, unpacked where it is gzipped."""
    return gzip.open(source, "rb") if _is_gzipped(source) else source.open("rb")


def _is_gzipped(source: Path) -> bool:
    """Whether a file is gzipped, whatever its name."""
    with source.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
