"""Many scans, one model: every case is reported, and one that fails doesn't stop the rest."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from DeepLabSegLib import files
from DeepLabSegLib.errors import Cancelled, DeepLabSegError, InvalidInput
from DeepLabSegLib.image import Labels
from DeepLabSegLib.outputs import check_apart, check_output, replacing
from DeepLabSegLib.segmenter import OnProgress, Segmenter, SegmentOptions

__all__ = ["Case", "collect", "find_nested", "find_scans", "run_case", "segment_files", "write_report"]


@dataclass(frozen=True)
class Case:
    """What became of one scan: `status` is "done", "kept" (its output was there already) or "failed"."""

    name: str
    status: str
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    message: str = ""


def find_scans(folder: str | os.PathLike[str]) -> list[Path]:
    """The volumes in `folder`, sorted, and its subfolders that hold DICOM; segmentations and hidden files are left out.

    Raises `InvalidInput` where there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInput(f"{root} is no folder; give a folder of scans")
    found = [path for path in sorted(root.iterdir()) if _is_scan(path)]
    if not found:
        nested = "".join(f"; {inner} does" for inner in find_nested(root)[:1])
        raise InvalidInput(
            f"{root} holds no scan{nested}; known are {', '.join(files.VOLUME_SUFFIXES)} and folders of DICOM"
        )
    return found


def find_nested(folder: str | os.PathLike[str]) -> list[Path]:
    """The subfolders of `folder` with scans within, which `find_scans` leaves out; those closed to us are passed by."""
    found = []
    for path in sorted(Path(folder).iterdir()):
        with suppress(OSError):
            if path.is_dir() and not path.name.startswith(".") and not _is_scan(path):
                found += [path] if any(map(_is_scan, path.iterdir())) else []
    return found


def segment_files(
    segmenter: Segmenter,
    scans: Iterable[str | os.PathLike[str]],
    output_folder: str | os.PathLike[str],
    options: SegmentOptions | None = None,
    *,
    suffix: str = ".seg.nrrd",
    overwrite: bool = False,
    on_case: Callable[[Case], object] | None = None,
    on_progress: OnProgress | None = None,
    report: str | os.PathLike[str] | None = None,
) -> list[Case]:
    """Segment scans into `output_folder`, a file of the scan's name each; what is there already is kept.

    An empty file is no result. One that can't be read as labels makes the case fail, and is left as it is. `on_case` is
    called after each. Started again after an interruption it goes on where it was. At `report` the table of cases is
    written (see `write_report`), after an interruption of those until then.

    Raises
    ------
    InvalidInput : an ending that labels can't have; two scans of one name.
    OutputError : an output that can't be written, or would take a scan's place.
    Cancelled : `on_progress` returned False; finished cases stay.
    """
    if suffix not in files.LABEL_SUFFIXES:
        raise InvalidInput(f"suffix is {suffix!r}; choose one of {', '.join(files.LABEL_SUFFIXES)}")
    folder = Path(output_folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Path(scan) for scan in scans]
    names = [_stem(source) for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"several scans are called {', '.join(twice)}; rename them, or use an output folder each")

    targets = [check_output(folder / f"{name}{suffix}", files.LABEL_SUFFIXES, overwrite=True) for name in names]
    check_apart(targets, sources)

    def segment(source: Path, target: Path, replaces: bool) -> Labels:
        image = files.read_image(source)
        files.check_slices(target, image.geometry)
        labels = segmenter.segment(image, options, on_progress)
        files.write_labels(labels, target, overwrite=replaces)
        return labels

    def kept(target: Path) -> Labels:
        labels = files.read_labels(target)
        return labels if suffix == ".seg.nrrd" else replace(labels, segments=segmenter.bundle.labels)

    def case(source: Path, name: str, target: Path) -> Case:
        there = target.exists()
        if overwrite or not there or target.stat().st_size == 0:
            return run_case(name, partial(segment, source, target, there))
        found = run_case(name, partial(kept, target))
        if found.status == "failed":
            return replace(found, message=f"{found.message}; move or overwrite it for the case to be segmented again")
        return replace(found, status="kept", seconds=0.0, message=f"{target} was there already")

    return collect(map(case, sources, names, targets), on_case, report)


def collect(
    cases: Iterable[Case],
    on_case: Callable[[Case], object] | None = None,
    report: str | os.PathLike[str] | None = None,
) -> list[Case]:
    """All of `cases`; `on_case` is called with each as soon as it is there. Whatever ends them, `report` is written."""
    collected = []
    try:
        for case in cases:
            collected.append(case)
            if on_case is not None:
                on_case(case)
    finally:
        if report is not None and collected:
            write_report(collected, report)
    return collected


def run_case(name: str, segment: Callable[[], Labels]) -> Case:
    """The case that `segment` makes; what it raises becomes its message, but for `Cancelled`."""
    started = time.perf_counter()
    try:
        labels = segment()
    except Cancelled:
        raise
    except (DeepLabSegError, OSError, MemoryError) as error:
        return Case(name, "failed", time.perf_counter() - started, message=str(error) or type(error).__name__)
    return Case(name, "done", time.perf_counter() - started, labels.volumes_ml())


def write_report(cases: Sequence[Case], path: str | os.PathLike[str]) -> None:
    """A table of all cases as CSV: name, status, seconds, a column of millilitres per segment, message."""
    names = list(dict.fromkeys(name for case in cases for name in case.volumes_ml))
    with replacing(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "status", "seconds", *(f"{name} (ml)" for name in names), "message"])
        for case in cases:
            volumes = [f"{case.volumes_ml[name]:.3f}" if name in case.volumes_ml else "" for name in names]
            writer.writerow([case.name, case.status, f"{case.seconds:.2f}", *volumes, case.message])


def _is_scan(path: Path) -> bool:
    if path.name.startswith("."):  # such as what macOS keeps beside a file on a foreign disk
        return False
    if path.is_dir():
        return any(file.is_file() and _looks_like_dicom(file) for file in path.iterdir())
    name = path.name.lower()
    return name.endswith(files.VOLUME_SUFFIXES) and not name.endswith(".seg.nrrd")


def _looks_like_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _stem(path: Path) -> str:
    name = path.name
    return next((name[: -len(end)] for end in files.VOLUME_SUFFIXES if name.lower().endswith(end)), name)
