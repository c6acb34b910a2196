"""What ITK passes over in NIfTI files: faults, and where the sform puts the voxels."""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput

__all__ = ["NIFTI_SUFFIXES", "alone", "check_before", "checked_spacing", "is_gzipped", "opened", "sform"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")

HEADER_SIZE = 348

COLOURS = (128, 2304)
"""RGB and RGBA: these types' bits are those of all components."""

TO_MM = {1: 1000.0, 3: 0.001}
"""By the code of a unit of length, metre and micrometre."""

IN_PLANE = 0.999
"""The least share of an axis's length that lies in x and y, where there are but two axes."""


def check_before(source: Path) -> None:
    """Raise `InvalidInput` for a slice of two axes that lies across x and y: ITK leaves out how they go along z."""
    header = b""
    with suppress(EOFError, OSError, zlib.error), opened(source) as file:  # what is wrong is said where all is read
        header = file.read(HEADER_SIZE)
    if len(header) < HEADER_SIZE or struct.unpack_from(f"{_byte_order(header)}h", header, 40)[0] != 2:
        return
    rows = sform(source)
    if rows is None:
        return
    if (np.linalg.norm(rows[:2, :2], axis=0) < IN_PLANE * np.linalg.norm(rows[:, :2], axis=0)).any():
        raise InvalidInput(
            f"{source} has two axes (dim[0]) and lies across x and y; save it as a volume of one slice, such as with "
            "nibabel from array[:, :, None]"
        )


def checked_spacing(source: Path, voxels: int, components: int) -> tuple[float, ...]:
    """`pixdim[1..3]` of a file that should hold `voxels` of `components` numbers.

    Raises `InvalidInput` where it ends early, which ITK fills with zeros, where ITK takes other bytes for the voxels or
    another size, and for Analyze, whose axes ITK guesses.
    """
    header, found, reason = b"", 0, "it ends early"
    try:
        with opened(source) as file:
            header = file.read(HEADER_SIZE)
            found = len(header)
            while chunk := file.read(2**22):
                found += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        found, reason = 0, str(error)
    damaged = InvalidInput(f"{source} is damaged ({reason}); copy or export it again")
    in_one_file = source.name.lower().endswith(NIFTI_SUFFIXES)
    if in_one_file and found < 352:
        raise damaged
    if not in_one_file or header[344:] not in (b"n+1\0", b"ni1\0"):
        raise InvalidInput(
            f"{source} is Analyze, which doesn't say which way its axes go, or NIfTI in two files; convert it to "
            ".nii.gz with a program that knows which, such as SPM or fslchfiletype"
        )
    order = _byte_order(header)
    dims = struct.unpack_from(f"{order}8h", header, 40)
    datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
    spacing = struct.unpack_from(f"{order}3f", header, 80)
    (start,) = struct.unpack_from(f"{order}f", header, 108)  # vox_offset
    if (least := min(dims[1 : 1 + dims[0]])) < 0:  # ITK takes 1
        raise InvalidInput(f"{source} has {least} voxels along an axis; convert it again from what it was made of")
    if not start > HEADER_SIZE:
        raise InvalidInput(
            f"{source}: vox_offset is {start:g}, within the header; correct it, mostly to {HEADER_SIZE + 4}"
        )
    if found < start + voxels * (1 if datatype in COLOURS else components) * bits // 8:
        raise damaged
    return spacing


def sform(source: Path) -> NDArray[np.float64] | None:
    """The sform of a NIfTI file: 3 x 4, takes `(i, j, k, 1)` to RAS mm. None where there is none, or another file."""
    if not source.name.lower().endswith(NIFTI_SUFFIXES):
        return None
    with opened(source) as file:
        header = file.read(HEADER_SIZE)
    order = _byte_order(header)
    if struct.unpack_from(f"{order}h", header, 254)[0] <= 0:  # sform_code
        return None
    rows = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))  # srow_x, srow_y, srow_z
    if not np.linalg.det(rows[:, :3]):
        return None  # nobody can take it
    return rows * TO_MM.get(header[123] & 7, 1.0)  # xyzt_units


@contextmanager
def alone(source: Path) -> Iterator[Path]:
    """`source`, or a copy of `scan.nii.gz` where `scan.nii` lies beside it, of which ITK would take the voxels."""
    if not source.name.lower().endswith(".nii.gz") or not source.with_suffix("").exists():
        yield source
        return
    with TemporaryDirectory() as folder:
        yield Path(shutil.copy(source, folder))


def opened(source: Path) -> BufferedIOBase:
    """A file's bytes, unpacked where it is gzipped."""
    return gzip.open(source, "rb") if is_gzipped(source) else source.open("rb")


def is_gzipped(source: Path) -> bool:
    """Whether a file is gzipped, whatever its name."""
    with source.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _byte_order(header: bytes) -> str:
    """A header's byte order, as `struct` calls it; the header begins with its size."""
    return ">" if struct.unpack_from(">i", header)[0] == HEADER_SIZE else "<"
