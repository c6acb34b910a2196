"""The scans in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from DeepLabSegLib import files
from DeepLabSegLib.batch.report import REPORT, read_report
from DeepLabSegLib.errors import InvalidInput, OutputError

__all__ = ["find_nested", "find_scans", "stem"]


def find_scans(folder: str | os.PathLike[str]) -> list[Path]:
    """The volumes in `folder`, sorted, and its subfolders that hold DICOM; where there are none, its pictures.

    Segmentations, what a report in the folder calls a result, and hidden files are left out.

    Raises `InvalidInput` where there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInput(f"{root} is no folder; give a folder of scans")
    paths = _paths_in(root)
    found = [path for path in paths if _is_volume(path)] or [path for path in paths if files.is_picture(path)]
    if not found and _is_volume(root):
        raise InvalidInput(
            f"DICOM files lie in {root} itself; give the folder that it is in, and each series a folder of its own"
        )
    if not found:
        inside = find_nested(root) or _folders_with(files.is_picture, root)
        nested = "".join(f"; {inner} does" for inner in inside[:1])
        raise InvalidInput(
            f"{root} holds no scan{nested}; known are {', '.join(files.IMAGE_SUFFIXES)} and folders of DICOM"
        )
    return found


def find_nested(folder: str | os.PathLike[str]) -> list[Path]:
    """The subfolders of `folder` with volumes in them, which `find_scans` leaves out; those closed to us are passed by.

    As there, results aren't counted.
    """
    return _folders_with(_is_volume, Path(folder))


def stem(path: Path) -> str:
    """A scan's name without what tells its format."""
    name = path.name
    return next((name[: -len(end)] for end in files.IMAGE_SUFFIXES if name.lower().endswith(end)), name)


def _folders_with(wanted: Callable[[Path], bool], root: Path) -> list[Path]:
    found = []
    for path in _paths_in(root):
        with suppress(OSError):
            if path.is_dir() and not _is_volume(path) and any(map(wanted, _paths_in(path))):
                found.append(path)
    return found


def _paths_in(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted, but for results of a batch and what is hidden, as by macOS on a foreign disk."""
    results: set[str] = set()
    with suppress(OutputError):
        results = {case.result for case in read_report(folder / REPORT)}
    return [path for path in sorted(folder.iterdir()) if path.name not in results and not path.name.startswith(".")]


def _is_volume(path: Path) -> bool:
    with suppress(OSError):  # it is closed to us
        if path.is_dir():
            return any(map(_looks_like_dicom, path.iterdir()))
    return path.name.lower().endswith(files.VOLUME_SUFFIXES) and not files.is_segmentation(path)


def _looks_like_dicom(path: Path) -> bool:
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                return stream.read(132)[128:] == b"DICM"
    return False
