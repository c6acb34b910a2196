"""DICOM as scanners write it: series, and files of many frames from their bytes up."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from helpers import itk

from DeepLabSegLib.image import Image

AXIAL, FLIPPED = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)
"""Row and column of a slice in LPS; the normal goes up and down."""


def write_series(folder, scan: Image, skip: int | None = None, uid: str = "1.2.3.4", **fields) -> None:
    """A slice per plane k; `fields` give a function of k each for what takes the place of a tag's value."""
    folder.mkdir(exist_ok=True)
    volume = itk(scan)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.GetDepth()):
        if k == skip:
            continue
        piece = sitk.Cast(volume[:, :, k], sitk.sitkInt16)
        position = volume.TransformIndexToPhysicalPoint((0, 0, k))
        direction = np.reshape(volume.GetDirection(), (3, 3))
        for tag, value in {
            "0008|0060": "MR", "0020|000e": uid, "0020|000d": "1.2.3", "0020|0013": str(k),
            "0020|0032": "\\".join(f"{p:g}" for p in position),
            "0020|0037": "\\".join(f"{d:g}" for d in (*direction[:, 0], *direction[:, 1])),
            "0018|0050": f"{volume.GetSpacing()[2]:g}",
            "0008|103e": "",
        }.items():  # fmt: skip
            piece.SetMetaData(tag, fields[tag](k) if tag in fields else value)
        writer.SetFileName(str(folder / f"{uid}-{k}.dcm"))
        writer.Execute(piece)


def element(tag: int, kind: bytes, value: bytes | str) -> bytes:
    """One of DICOM's, explicit and little-endian."""
    value = value.encode() if isinstance(value, str) else value
    value += bytes(len(value) % 2) if kind == b"UI" else b" " * (len(value) % 2)
    length = struct.pack("<2xI" if kind in (b"SQ", b"OW") else "<H", len(value))
    return struct.pack("<2H", tag >> 16, tag & 0xFFFF) + kind + length + value


def sequence(tag: int, *items: bytes) -> bytes:
    return element(tag, b"SQ", b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items))


def numbers(tag: int, values, digits: int = 2) -> bytes:
    return element(tag, b"DS", "\\".join(f"{value:.{digits}f}" for value in values))


def write_dicom(path: Path, kind: str, voxels: np.ndarray, fields: dict[int, bytes], deflated: bool = False) -> None:
    """`(k, j, i)` as frames of one file of the SOP class `kind`; `fields` are more elements, by their tags."""
    kind = f"1.2.840.10008.5.1.4.1.1.{kind}"
    frames, height, width = voxels.shape
    meta = element(0x00020002, b"UI", kind) + element(0x00020003, b"UI", "1.2.3.4.5")
    meta += element(0x00020010, b"UI", "1.2.840.10008.1.2.1" + (".99" if deflated else ""))
    texts = {0x00080016: kind, 0x00080018: "1.2.3.4.5", 0x0020000D: "1.2.3", 0x0020000E: "1.2.3.4"}
    numbers = {2: 1, 0x10: height, 0x11: width, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 0}
    elements = {tag: element(tag, b"UI", text) for tag, text in texts.items()}
    elements |= {0x280000 + tag: element(0x280000 + tag, b"US", struct.pack("<H", n)) for tag, n in numbers.items()}
    elements[0x00280004] = element(0x00280004, b"CS", "MONOCHROME2")
    elements[0x00280008] = element(0x00280008, b"IS", str(frames))
    elements[0x7FE00010] = element(0x7FE00010, b"OW", voxels.astype("<u2").tobytes())
    content = b"".join(value for _, value in sorted((elements | fields).items()))
    if deflated:
        packer = zlib.compressobj(wbits=-15)
        content = packer.compress(content) + packer.flush()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta + content)


def write_frames(
    path: Path,
    scan: Image,
    planes: list[int],
    slopes: list[str] | None = None,
    told: bool = True,
    deflated: bool = False,
    intercepts: list[str] | None = None,
) -> None:
    """The planes k of `scan` as frames of one DICOM file; not `told`, it is a secondary capture without geometry."""
    volume = itk(scan)
    across, down, _ = np.reshape(volume.GetDirection(), (3, 3)).T
    columns, rows, _ = volume.GetSpacing()

    def groups(n: int, k: int) -> bytes:
        place = numbers(0x00200032, volume.TransformIndexToPhysicalPoint((0, 0, k)))
        values = element(0x00281052, b"DS", intercepts[n] if intercepts else "0")
        values += element(0x00281053, b"DS", slopes[n] if slopes else "1")
        return sequence(0x00209113, place) + sequence(0x00289145, values + element(0x00281054, b"LO", "US"))

    facing = sequence(0x00209116, numbers(0x00200037, (*across, *down)))
    fields = {
        0x52009229: sequence(0x52009229, facing + sequence(0x00289110, numbers(0x00280030, (rows, columns)))),
        0x52009230: sequence(0x52009230, *(groups(n, k) for n, k in enumerate(planes))),
    }
    write_dicom(path, "4.1" if told else "7.2", scan.array[0, planes], fields if told else {}, deflated)


def write_dose(path: Path, voxels: np.ndarray, facing: tuple[int, ...], offsets: list[float]) -> None:
    fields = {
        0x00200032: numbers(0x00200032, (10, 20, 30)),
        0x00200037: numbers(0x00200037, facing),
        0x00280030: numbers(0x00280030, (2, 1.5)),
        0x3004000C: numbers(0x3004000C, offsets),
        0x3004000E: numbers(0x3004000E, [0.001], digits=4),
    }
    write_dicom(path, "481.2", voxels, fields)


def write_nuclear(
    path: Path,
    voxels: np.ndarray,
    step: float | None,
    kind: str = "RECON TOMO",
    detectors: int = 1,
    slices: tuple[int, ...] = (1, 2, 3, 4),
    told: bool = True,
) -> None:
    """Not `told`, only the number of slices is said, and not which each frame is."""
    place = numbers(0x00200032, (10, 20, 30)) + numbers(0x00200037, AXIAL)
    fields = {
        0x00080008: element(0x00080008, b"CS", rf"ORIGINAL\PRIMARY\{kind}\EMISSION"),
        0x00280030: numbers(0x00280030, (2, 1.5)),
        0x00540022: sequence(0x00540022, *[place] * detectors),
        0x00540080: element(0x00540080, b"US", struct.pack(f"<{len(slices)}H", *slices)),
        0x00540081: element(0x00540081, b"US", struct.pack("<H", max(slices))),
    }
    if not told:
        del fields[0x00540080]
    if step is not None:
        fields[0x00180088] = numbers(0x00180088, [step])
    write_dicom(path, "20", voxels, fields)
