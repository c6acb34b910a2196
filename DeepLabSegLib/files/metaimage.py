"""What ITK passes over in MetaImage files, or ends the process at."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from pathlib import Path

from DeepLabSegLib.errors import InvalidInput

__all__ = ["METAIMAGE_SUFFIXES", "check_before", "checked_spacing"]

METAIMAGE_SUFFIXES = (".mha", ".mhd")

MAX_AXES = 10
"""What ITK has room for."""

NUMBER = r"[-+]?\d+\.?\d*"

PIECE = 2**16
"""How many packed bytes are unpacked at once; a thousand times as many may come of them."""


def check_before(source: Path) -> None:
    """Raise `InvalidInput` for what ITK is not to see.

    At a number of axes that makes no sense it ends the process, and at some patterns of file names. Of slices that are
    missing among files of one each it gives what the memory held before.
    """
    fields, _ = _header(source)
    axes, place = fields.get("NDims", ""), fields.get("ElementDataFile", "")
    if re.fullmatch(NUMBER, axes) and not 1 <= float(axes) <= MAX_AXES:  # of other texts ITK says so
        raise InvalidInput(f"{source} has {axes} axes (NDims); an image has 2 or 3, so correct the header")
    if "%" in place or place.split()[:1] == ["LIST"]:
        raise InvalidInput(
            f"{source} has its voxels in a file per slice, of which one may be missing unnoticed; save it as one file"
        )


def checked_spacing(source: Path, size: int) -> tuple[float, ...]:
    """The spacing of a file that should hold `size` bytes of voxels.

    Raises `InvalidInput` where they can't be unpacked: ITK then gives what the memory held before.
    """
    fields, end = _header(source)
    place = fields.get("ElementDataFile", "")
    if place and fields.get("CompressedData", "")[:1] in ("T", "t", "1"):
        inside, told = place.lower() == "local", fields.get("CompressedDataSize", "")
        count = int(told) if told.isdecimal() else 0 if inside else -1
        found, reason = _unpacked(source if inside else source.parent / place, end if inside else 0, count)
        if found != size:
            raise InvalidInput(f"{source} is damaged ({reason}); copy or export it again")
    with suppress(ValueError):  # what else stands there ITK passes by
        return tuple(map(float, fields.get("ElementSpacing", "").split()))
    return ()


def _header(source: Path) -> tuple[dict[str, str], int]:
    """The fields of a header, and at which byte it ends."""
    with source.open("rb") as file:
        start = file.read(2**14)
    fields, end = {}, 0
    for found in re.finditer(rb"^\s*(\w+)\s*[=:]([^\r\n]*)\r?\n?", start, re.MULTILINE):
        fields[found[1].decode()] = found[2].decode(errors="surrogateescape").strip()
        end = found.end()
        if found[1] == b"ElementDataFile":  # voxels follow
            break
    return fields, end


def _unpacked(source: Path, start: int, count: int) -> tuple[int, str]:
    """How many bytes come of `count` packed ones from `start` on, or of all, and why these may be too few."""
    unpacker, found = zlib.decompressobj(47), 0  # zlib's header or gzip's
    with source.open("rb") as file:
        file.seek(start)
        packed = file.read(count)
    try:
        for n in range(0, len(packed), PIECE):
            found += len(unpacker.decompress(packed[n : n + PIECE]))
    except zlib.error as error:
        return 0, str(error)
    return found, "its packed voxels end early, or CompressedDataSize is wrong"
