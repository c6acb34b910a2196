"""Many scans, one model: every case is reported, and one that fails doesn't stop the rest."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from DeepLabSegLib import files
from DeepLabSegLib.errors import Cancelled, DeepLabSegError, InvalidInput, OutputError
from DeepLabSegLib.image import SCORE_MAPS, Geometry, Labels
from DeepLabSegLib.outputs import check_apart, check_output, replacing
from DeepLabSegLib.segmenter import OnProgress, Segmenter, SegmentOptions

__all__ = [
    "Case",
    "collect",
    "find_nested",
    "find_scans",
    "read_report",
    "run_case",
    "segment_files",
    "write_report",
]

REPORT = "report.csv"
OLDER = "is older than its scan"
AGAIN = "move or overwrite it for the case to be segmented again"
VOLUME_COLUMN = " (ml)"
SAME_GRID = 0.1
"""How far, in voxel sides, a format's rounding may move what lies on one grid."""


@dataclass(frozen=True)
class Case:
    """What became of one scan: `status` is "done", "kept" (its output was there already) or "failed".

    `result` is the name of its file, and `made_with` the model and options of what lies there, "" where they aren't
    known.
    """

    name: str
    status: str
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    message: str = ""
    result: str = ""
    made_with: str = ""


def find_scans(folder: str | os.PathLike[str]) -> list[Path]:
    """The volumes in `folder`, sorted, and its subfolders that hold DICOM; where there are none, its pictures.

    Segmentations, what a report in the folder calls a result, and hidden files are left out.

    Raises `InvalidInput` where there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInput(f"{root} is no folder; give a folder of scans")
    paths = _paths_in(root)
    pictures = [path for path in paths if path.name.lower().endswith(files.PICTURE_SUFFIXES)]
    found = [path for path in paths if _is_volume(path)] or pictures
    if not found:
        nested = "".join(f"; {inner} does" for inner in find_nested(root)[:1])
        raise InvalidInput(
            f"{root} holds no scan{nested}; known are {', '.join(files.IMAGE_SUFFIXES)} and folders of DICOM"
        )
    return found


def find_nested(folder: str | os.PathLike[str]) -> list[Path]:
    """The subfolders of `folder` with volumes in them, which `find_scans` leaves out; those closed to us are passed by.

    As there, results aren't counted.
    """
    found = []
    for path in _paths_in(Path(folder)):
        with suppress(OSError):
            if path.is_dir() and not _is_volume(path) and any(map(_is_volume, _paths_in(path))):
                found.append(path)
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

    An empty file is no result. One that can't be read as labels, lies on another grid than the scan, or is known to be
    made with another model or other options makes the case fail, and is left as it is. `on_case` is called after each.
    Started again after an interruption it goes on where it was. At `report` the table of cases is written (see
    `write_report`), after an interruption of those until then; it is also what tells how earlier results were made.

    Raises
    ------
    InvalidInput : an ending that labels can't have; two scans of one name.
    OutputError : a folder or report that can't be written; another table in the report's place; an output that would
        take a scan's place.
    Cancelled : `on_progress` returned False; finished cases stay.
    """
    if suffix not in files.LABEL_SUFFIXES:
        raise InvalidInput(f"suffix is {suffix!r}; choose one of {', '.join(files.LABEL_SUFFIXES)}")
    folder = Path(output_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be made ({error.strerror}); choose another one") from None
    sources = [Path(scan) for scan in scans]
    names = [_stem(source) for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"several scans are called {', '.join(twice)}; rename them, or use an output folder each")
    targets = [folder / f"{name}{suffix}" for name in names]
    check_apart(targets, sources)
    write, earlier = None, {}
    if report is not None:
        table = check_output(report, ("",), overwrite=True)
        write, earlier = partial(_renew_report, table, folder), _rows_of(table, folder)
    made_with = _made_with(segmenter, options or SegmentOptions())

    def segment(source: Path, target: Path) -> Labels:
        check_output(target, files.LABEL_SUFFIXES, overwrite=True)
        replaces = overwrite or target.exists()
        image = files.read_image(source)
        files.check_slices(target, image.geometry)
        labels = segmenter.segment(image, options, on_progress)
        files.write_labels(labels, target, overwrite=replaces)
        return labels

    def kept(source: Path, target: Path, before: str) -> Labels:
        if before not in ("", made_with):
            raise InvalidInput(
                f"{target} was made with {before}, and not with {made_with}; use another output folder, or overwrite it"
            )
        try:
            labels = files.read_labels(target)
        except (DeepLabSegError, OSError) as error:
            raise InvalidInput(f"{error}; {AGAIN}") from None
        grid = files.read_geometry(source)
        if not (_is_block(labels.geometry, grid) if suffix != ".png" else labels.geometry.shape == grid.shape):
            raise InvalidInput(f"{target} lies on another grid than {source}, as another scan's result does; {AGAIN}")
        unnamed = suffix != ".seg.nrrd" and before == made_with
        return replace(labels, segments=segmenter.bundle.labels) if unnamed else labels

    def case(source: Path, name: str, target: Path) -> Case:
        before = earlier[target.name].made_with if target.name in earlier else ""
        if overwrite or not _is_result(target):
            found = run_case(name, partial(segment, source, target))
            if overwrite or found.status == "done" or not _is_result(target):
                return replace(found, result=target.name, made_with=made_with if found.status == "done" else before)
        # It was there, or another process has made it meanwhile.
        found = replace(run_case(name, partial(kept, source, target, before)), result=target.name, made_with=before)
        if found.status == "failed":
            return found
        note = f", and {OLDER}; overwrite it if the scan was replaced" if _is_older(target, source) else ""
        return replace(found, status="kept", seconds=0.0, message=f"{target} was there already{note}")

    return collect(map(case, sources, names, targets), on_case, write)


def collect(
    cases: Iterable[Case],
    on_case: Callable[[Case], object] | None = None,
    write: Callable[[Sequence[Case]], object] | None = None,
) -> list[Case]:
    """All of `cases`; `on_case` is called with each as soon as it is there. Whatever ends them, `write` gets them."""
    collected = []
    try:
        for case in cases:
            collected.append(case)
            if write is not None and case.status == "done":  # for a run that is killed
                with suppress(OutputError):
                    write(collected)
            if on_case is not None:
                on_case(case)
    finally:
        if write is not None and collected:
            write(collected)
    return collected


def run_case(name: str, segment: Callable[[], Labels]) -> Case:
    """The case that `segment` makes; what it raises becomes its message, but for `Cancelled`."""
    started = time.perf_counter()
    try:
        labels = segment()
    except Cancelled:
        raise
    except (DeepLabSegError, OSError, MemoryError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        return Case(name, "failed", time.perf_counter() - started, message=said or type(error).__name__)
    return Case(name, "done", time.perf_counter() - started, labels.volumes_ml())


# --- the table of cases ----------------------------------------------------------------------------------------------


def write_report(cases: Sequence[Case], path: str | os.PathLike[str]) -> None:
    """A table of all cases as CSV: name, status, seconds, a column of millilitres per segment, and the other fields."""
    names = list(dict.fromkeys(name for case in cases for name in case.volumes_ml))
    with (
        replacing(Path(path)) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="replace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["case", "status", "seconds", *map(_column, names), "message", "result", "made with"])
        for case in cases:
            volumes = [f"{case.volumes_ml[name]:.3f}" if name in case.volumes_ml else "" for name in names]
            others = (case.message, case.result, case.made_with)
            writer.writerow([case.name, case.status, f"{case.seconds:.2f}", *volumes, *others])


def read_report(path: str | os.PathLike[str]) -> list[Case]:
    """The cases of a table of `write_report`, none where there is no file. Raises `OutputError` for any other file."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            return [_case_of(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise OutputError(f"{path} is no table of a batch, and would be lost; move it, or use another folder") from None


def _column(segment: str) -> str:
    return f"{segment}{VOLUME_COLUMN}"


def _case_of(row: dict[str, str]) -> Case:
    volumes = {
        column.removesuffix(VOLUME_COLUMN): float(value)
        for column, value in row.items()
        if column and column.endswith(VOLUME_COLUMN) and value
    }
    others = (row["message"] or "", row.get("result") or "", row.get("made with") or "")  # new columns, short rows
    return Case(row["case"], row["status"], float(row["seconds"]), volumes, *others)


def _rows_of(report: Path, folder: Path) -> dict[str, Case]:
    """Result -> case of the report, as far as these results are in `folder`."""
    rows = {}
    for case in read_report(report):
        result = folder / case.result
        if case.result and _is_result(result):
            # Written since, by hand or by a run that was killed: nobody knows with what.
            rows[case.result] = replace(case, made_with="") if _is_older(report, result) else case
    return rows


def _renew_report(report: Path, folder: Path, cases: Sequence[Case]) -> None:
    """Write `cases`, and what the table has of other results that are there: of earlier runs, or of one beside ours."""
    rows = _rows_of(report, folder)
    for case in cases:
        # Of what another process has made meanwhile, the table says more.
        if case.status != "kept" or case.made_with or not rows.get(case.result, case).made_with:
            rows[case.result] = case
    write_report([*rows.values()], report)


def _made_with(segmenter: Segmenter, options: SegmentOptions) -> str:
    """The model and whatever else decides about the labels, such as `head-mri (1f0c33ab), overlap=0.5`."""
    plain, digest = SegmentOptions(), segmenter.bundle.sha256[:8]
    chosen = [
        f"{name}={getattr(options, name)}"
        for name in (option.name for option in fields(SegmentOptions))
        if name not in SCORE_MAPS and getattr(options, name) != getattr(plain, name)
    ]
    return ", ".join([segmenter.bundle.name + (f" ({digest})" if digest else ""), *chosen])


# --- files -----------------------------------------------------------------------------------------------------------


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
    name = path.name.lower()
    return name.endswith(files.VOLUME_SUFFIXES) and not name.endswith(".seg.nrrd")


def _looks_like_dicom(path: Path) -> bool:
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                return stream.read(132)[128:] == b"DICM"
    return False


def _is_result(path: Path) -> bool:
    """Whether there is more than an empty file."""
    with suppress(OSError):
        return path.stat().st_size > 0
    return False


def _is_older(path: Path, other: Path) -> bool:
    """Whether `path` was written before `other`, or, if that is a folder, before one of its files."""
    with suppress(OSError):
        parts = other.iterdir() if other.is_dir() else [other]
        return path.stat().st_mtime_ns < max(part.stat().st_mtime_ns for part in parts)
    return False


def _is_block(labels: Geometry, grid: Geometry) -> bool:
    """Whether `labels` are a block of the scan's grid, and not always all: Slicer may save only where segments are."""
    first = np.round(np.linalg.inv(grid.affine) @ np.array([*labels.origin, 1.0]))
    block = replace(grid, shape=labels.shape, origin=tuple((grid.affine @ first)[:3]))
    inside = (first[:3] >= 0).all() and (first[:3] + labels.shape <= grid.shape).all()
    return bool(inside) and labels.is_close(block, SAME_GRID)


def _stem(path: Path) -> str:
    name = path.name
    return next((name[: -len(end)] for end in files.IMAGE_SUFFIXES if name.lower().endswith(end)), name)
