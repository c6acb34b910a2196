"""Faults of image files that ITK lets pass in silence: a NIfTI file cut short, a spacing that makes no sense."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from math import prod
from pathlib import Path

from DeepLabSegLib.errors import InvalidInput

__all__ = ["check", "is_gzipped"]

NIFTI_COLOURS = (128, 2304)
"""RGB and RGBA: these types' bits are those of all components."""


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


def is_gzipped(source: Path) -> bool:
    """Whether a file is gzipped, whatever its name."""
    with source.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


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
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", header)[0] in (348, 540)), "<")
    if struct.unpack_from(f"{order}i", header)[0] == 540:
        return struct.unpack_from(f"{order}3d", header, 112), *struct.unpack_from(f"{order}2h", header, 12)
    return struct.unpack_from(f"{order}3f", header, 80), *struct.unpack_from(f"{order}2h", header, 70)


def _metaimage_spacing(source: Path) -> tuple[float, ...]:
    with source.open("rb") as file:
        found = re.search(rb"^ElementSpacing\s*=([^\r\n]*)", file.read(2**14), re.MULTILINE)
    return tuple(float(text) for text in found[1].split()) if found else ()


def _opened(source: Path) -> BufferedIOBase:
    """A file's bytes, unpacked where it is gzipped."""
    return gzip.open(source, "rb") if is_gzipped(source) else source.open("rb")
