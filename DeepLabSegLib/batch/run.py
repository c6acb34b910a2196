"""Many scans, one model: every case is reported, and one that fails doesn't stop the rest."""

from __future__ import annotations

import os
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from DeepLabSegLib import files
from DeepLabSegLib.batch.report import Case, is_older, is_result, renew_report, rows_of
from DeepLabSegLib.batch.scans import stem
from DeepLabSegLib.errors import Cancelled, DeepLabSegError, InvalidInput, OutputError
from DeepLabSegLib.image import SCORE_MAPS, Labels
from DeepLabSegLib.outputs import check_apart, check_output, make_folder, replacing
from DeepLabSegLib.segmenter import OnProgress, Segmenter, SegmentOptions

__all__ = ["collect", "run_case", "segment_files"]

AGAIN = "move or overwrite it for the case to be segmented again"
QUICK_S, PACE = 0.05, 20
"""A table that takes longer, as one of a thousand rows may, is renewed for a twentieth of the time at most."""


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
    InvalidInput : a folder in place of its scans; an ending that labels can't have; options that don't fit the model;
        two scans of one name, but for capital letters.
    OutputError : a folder or report that can't be written; another table in the report's place; an output that would
        take a scan's place; an ending that can't hold segments that overlap, as the model's may.
    Cancelled : `on_progress` returned False; finished cases stay.
    """
    if isinstance(scans, str | os.PathLike):
        raise InvalidInput(f"scans is {str(scans)!r}; give a list of paths, such as that of find_scans({str(scans)!r})")
    if suffix not in files.LABEL_SUFFIXES:
        raise InvalidInput(f"suffix is {suffix!r}; choose one of {', '.join(files.LABEL_SUFFIXES)}")
    options = options or SegmentOptions()
    segmenter.check_options(options)
    folder = Path(output_folder)
    sources = [Path(scan) for scan in scans]
    names = _names(sources)
    targets = [folder / f"{name}{suffix}" for name in names]
    check_apart(targets, sources)
    for target in targets:
        files.check_overlap(target, segmenter.bundle.overlapping)
    make_folder(folder, parents=True)
    write, earlier = None, {}
    if report is not None:
        table = check_output(report, ("",), overwrite=True)
        write, earlier = partial(renew_report, table, folder), rows_of(table, folder)
        if table.exists():  # that it can't be replaced is known before the work
            with replacing(table) as temporary:
                shutil.copy2(table, temporary)
    batch = _Batch(segmenter, options, suffix, overwrite, on_progress, _made_with(segmenter, options), earlier)
    return collect(batch.cases(zip(sources, names, targets, strict=True)), on_case, write)


def _names(sources: Sequence[Path]) -> list[str]:
    """What the cases of scans are called. Raises `InvalidInput` for two of one name, but for capital letters."""
    names = [stem(source) for source in sources]
    counts = Counter(map(str.casefold, names))  # on many disks capital and small letters are one
    twice = sorted({name for name in names if counts[name.casefold()] > 1})
    if twice:
        raise InvalidInput(f"several scans are called {', '.join(twice)}; rename them, or use an output folder each")
    return names


@dataclass(frozen=True)
class _Batch:
    """How cases are made or kept: `made_with` is of results from now on, `earlier` the table's cases by their results.

    The rest is as in `segment_files`.
    """

    segmenter: Segmenter
    options: SegmentOptions
    suffix: str
    overwrite: bool
    on_progress: OnProgress | None
    made_with: str
    earlier: Mapping[str, Case]

    def cases(self, scans: Iterable[tuple[Path, str, Path]]) -> Iterator[Case]:
        """The case of each scan, which comes with the case's name and the place of its result."""
        waiting = [*scans]
        while waiting:
            source, name, target = waiting.pop(0)
            missing = not is_result(target)
            yield (found := self._case(source, name, target))
            if missing and found.status == "kept":
                random.shuffle(waiting)  # another process goes the same way, and would make each case as well

    def _case(self, source: Path, name: str, target: Path) -> Case:
        before = self.earlier[target.name].made_with if target.name in self.earlier else ""
        if self.overwrite or not is_result(target):
            found = run_case(name, partial(self._segment, source, target))
            if self.overwrite or found.status == "done" or not is_result(target):
                made_with = self.made_with if found.status == "done" else before
                return replace(found, result=target.name, made_with=made_with)
        # It was there, or another process has made it meanwhile.
        found = run_case(name, partial(self._kept, source, target, before))
        found = replace(found, result=target.name, made_with=before)
        if found.status == "failed":
            return found
        older = is_older(target, source)
        note = ", and is older than its scan; overwrite it if the scan was replaced" if older else ""
        return replace(found, status="kept", seconds=0.0, message=f"{target} was there already{note}", older=older)

    def _segment(self, source: Path, target: Path) -> Labels:
        check_output(target, files.LABEL_SUFFIXES, overwrite=True)
        replaces = self.overwrite or target.exists()
        image = files.read_image(source)
        files.check_slices(target, image.geometry)
        labels = self.segmenter.segment(image, self.options, self.on_progress)
        files.write_labels(labels, target, overwrite=replaces)
        return labels

    def _kept(self, source: Path, target: Path, before: str) -> Labels:
        """What lies at `target`, made with `before`. Raises `InvalidInput` where it is no result of this batch."""
        if before not in ("", self.made_with):
            raise InvalidInput(
                f"{target} was made with {before}, and not with {self.made_with}; use another output folder, or "
                "overwrite it"
            )
        try:
            labels = files.read_labels(target)
        except (DeepLabSegError, OSError) as error:
            raise InvalidInput(f"{error}; {AGAIN}") from None
        grid = files.read_geometry(source)
        # Slicer may save only the part of it where segments are.
        if not (labels.geometry.box_in(grid) if self.suffix != ".png" else labels.geometry.shape == grid.shape):
            raise InvalidInput(f"{target} lies on another grid than {source}, as another scan's result does; {AGAIN}")
        unnamed = self.suffix != ".seg.nrrd" and before == self.made_with
        return replace(labels, segments=self.segmenter.bundle.labels) if unnamed else labels


def collect(
    cases: Iterable[Case],
    on_case: Callable[[Case], object] | None = None,
    write: Callable[[Sequence[Case]], object] | None = None,
) -> list[Case]:
    """All of `cases`; `on_case` is called with each as soon as it is there. Whatever ends them, `write` gets them.

    Raises `OutputError` where `write` does at the end, as on Windows while another program shows the table.
    """
    write = write or (lambda _: None)
    meanwhile = _paced(write)
    collected: list[Case] = []
    try:
        for case in cases:
            collected.append(case)
            if case.status == "done":
                meanwhile(collected)
            if on_case is not None:
                on_case(case)
    except BaseException:
        if collected:
            with suppress(OutputError):  # what ended the cases is what to tell
                write(collected)
        raise
    if collected:
        try:
            write(collected)
        except OutputError as error:
            raise OutputError(f"{error}; the results are there, and the same command writes the table") from None
    return collected


def _paced(write: Callable[[Sequence[Case]], object]) -> Callable[[Sequence[Case]], None]:
    """`write` for the case that the run is killed: seldom where it takes long, and without its errors."""
    due = 0.0

    def renew(cases: Sequence[Case]) -> None:
        nonlocal due
        started = time.monotonic()
        if started < due:
            return
        with suppress(OutputError):
            write(cases)
        spent = time.monotonic() - started
        due = started + (PACE * spent if spent > QUICK_S else 0)

    return renew


def run_case(name: str, segment: Callable[[], Labels]) -> Case:
    """The case that `segment` makes; what it raises becomes its message, but for `Cancelled`."""
    started = time.perf_counter()
    try:
        labels = segment()
    except Cancelled:
        raise
    except Exception as error:
        return Case(name, "failed", time.perf_counter() - started, message=_said(error))
    return Case(name, "done", time.perf_counter() - started, labels.volumes_ml())


def _said(error: Exception) -> str:
    """What went wrong, with the kind of error where nobody foresaw it, as of those of a GPU's driver."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, DeepLabSegError | OSError):
        return str(error)
    return traceback.format_exception_only(error)[-1].strip()


def _made_with(segmenter: Segmenter, options: SegmentOptions) -> str:
    """The model and whatever else decides about the labels, such as `head-mri (1f0c33ab-90d5e2c4), overlap=0.5`."""
    plain, version = SegmentOptions(), segmenter.bundle.version
    chosen = [
        f"{name}={getattr(options, name)}"
        for name in (option.name for option in fields(SegmentOptions))
        if name not in SCORE_MAPS and getattr(options, name) != getattr(plain, name)
    ]
    return ", ".join([segmenter.bundle.name + (f" ({version})" if version else ""), *chosen])
