"""What ITK passes over in NIfTI files: faults, and where the second transform puts the voxels."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput

__all__ = ["NIFTI_SUFFIXES", "checked_spacing", "is_gzipped", "opened", "sform"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")

MAGIC = re.compile(rb".{344}n[i+]1\0|.{4}n[i+]2\0", re.DOTALL)

FIELDS = {348: (("8h", 40), ("3f", 80), ("2h", 70), ("f", 108)), 540: (("8q", 16), ("3d", 112), ("2h", 12), ("q", 168))}
"""By the size of a header, NIfTI-1's or NIfTI-2's: where dim, pixdim[1..3], datatype with bitpix, vox_offset are."""

COLOURS = (128, 2304)
"""RGB and RGBA: these types' bits are those of all components."""

TO_MM = {1: 1000.0, 3: 0.001}
"""By the code of a unit of length, metre and micrometre."""


def checked_spacing(source: Path, voxels: int, components: int) -> tuple[float, ...]:
    """`pixdim[1..3]` of a file that should hold `voxels` of `components` numbers.

    Raises `InvalidInput` where it ends early, which ITK fills with zeros, where ITK takes other bytes for the voxels or
    another size, and for Analyze, whose axes ITK guesses.
    """
    header, found, reason = b"", 0, "it ends early"
    try:
        with opened(source) as file:
            header = file.read(540)
            found = len(header)
            while chunk := file.read(2**22):
                found += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        found, reason = 0, str(error)
    damaged = InvalidInput(f"{source} is damaged ({reason}); copy or export it again")
    in_one_file = source.name.lower().endswith(NIFTI_SUFFIXES)
    if in_one_file and found < 352:
        raise damaged
    if not in_one_file or not MAGIC.match(header):
        raise InvalidInput(
            f"{source} is Analyze, which doesn't say which way its axes go, or NIfTI in two files; convert it to "
            ".nii.gz with a program that knows which, such as SPM or fslchfiletype"
        )
    order, size = _order_and_size(header)
    dims, spacing, (datatype, bits), (start,) = (
        struct.unpack_from(order + kind, header, place) for kind, place in FIELDS[size]
    )
    if (least := min(dims[1 : 1 + dims[0]])) < 0:  # ITK takes 1
        raise InvalidInput(f"{source} has {least} voxels along an axis; convert it again from what it was made of")
    if not start > size:
        raise InvalidInput(f"{source}: vox_offset is {start:g}, within the header; correct it, mostly to {size + 4}")
    if found < start + voxels * (1 if datatype in COLOURS else components) * bits // 8:
        raise damaged
    return spacing


def sform(source: Path) -> NDArray[np.float64] | None:
    """The sform of a NIfTI file that has a qform as well: 3 x 4, takes `(i, j, k, 1)` to RAS mm. None of others."""
    if not source.name.lower().endswith(NIFTI_SUFFIXES):
        return None
    with opened(source) as file:
        header = file.read(348)
    order, _ = _order_and_size(header)
    if min(struct.unpack_from(f"{order}2h", header, 252)) <= 0:  # qform_code, sform_code
        return None
    rows = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))  # srow_x, srow_y, srow_z
    if not np.linalg.det(rows[:, :3]):
        return None  # nobody can take it
    return rows * TO_MM.get(header[123] & 7, 1.0)  # xyzt_units


def opened(source: Path) -> BufferedIOBase:
    """A file's bytes, unpacked where it is gzipped."""
    return gzip.open(source, "rb") if is_gzipped(source) else source.open("rb")


def is_gzipped(source: Path) -> bool:
    """Whether a file is gzipped, whatever its name."""
    with source.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _order_and_size(header: bytes) -> tuple[str, int]:
    """A header's byte order, as `struct` calls it, and its size, by which that is known."""
    sizes = {order: struct.unpack_from(f"{order}i", header)[0] for order in "<>"}
    return next(((order, size) for order, size in sizes.items() if size in FIELDS), ("<", 348))
