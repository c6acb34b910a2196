"""DICOM's tags as bytes, for what ITK doesn't give: what stands in sequences, or in files that it can't read."""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path

__all__ = [
    "FRAME_POSITION",
    "ORIENTATION",
    "PIXEL_SPACING",
    "POSITION",
    "RESCALE",
    "decimals",
    "header_of",
    "is_slice_of",
]

POSITION = rb"\x20\x00\x32\x00"  # Image Position
ORIENTATION = rb"\x20\x00\x37\x00"  # Image Orientation
FRAME_POSITION = rb"\x20\x00\x13\x91.{12,16}?" + POSITION  # of a Plane Position Sequence's item
PIXEL_SPACING = rb"\x28\x00\x30\x00"
RESCALE = (rb"\x28\x00\x53\x10", rb"\x28\x00\x52\x10")  # slope, intercept
ROWS = b"\x28\x00\x10\x00"
PIXEL_DATA = b"\xe0\x7f\x10\x00"

LENGTH = rb".{4}"  # behind a tag: the type and two bytes of length, or four of length
SERIES = rb"\x20\x00\x0e\x00" + LENGTH + rb"([\d.]+)"
FIRST_GROUP = rb"\x02\x00\x00\x00UL\x04\x00(.{4})"  # its length
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax
DIRECTORY = b"1.2.840.10008.1.3.10"  # what a DICOMDIR is; it may hold small pictures
DECIMAL = rb" *([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?) *"


def header_of(source: Path) -> bytes:
    """The bytes of a DICOM file before its pixels, unpacked where it is deflated."""
    content = source.read_bytes()
    if first := re.search(FIRST_GROUP, content[:256], re.DOTALL):
        end = first.end() + struct.unpack("<I", first[1])[0]
        if DEFLATED in content[:end]:
            with suppress(zlib.error):
                content = zlib.decompressobj(-15).decompress(content[end:])
    return content[: content.rfind(PIXEL_DATA)]


def decimals(header: bytes, tag: bytes, count: int) -> list[tuple[float, ...]]:
    """The `count` numbers of a tag, wherever it stands in `header`; none where that is big-endian."""
    found = re.finditer(tag + LENGTH + rb"\\".join([DECIMAL] * count), header, re.DOTALL)
    return [tuple(map(float, match.groups())) for match in found]


def is_slice_of(series: str, source: Path) -> bool:
    """Whether a file is DICOM of the series with this UID and has an image, whole or not."""
    with suppress(OSError), source.open("rb") as file:
        if file.read(132)[128:] == b"DICM":
            header = header_of(source)
            # What is made of a series, such as a segmentation, names it too, beside its own.
            its_own = set(re.findall(SERIES, header, re.DOTALL)) == {series.encode()}
            return its_own and ROWS in header and DIRECTORY not in header
    return False
