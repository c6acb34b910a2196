"""Every pair is read once, before anything is trained: what is wrong with it, and what it adds to the fingerprint."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.evaluate import number_of, unnamed
from DeepLabSegLib.image import Segment, plain_name
from DeepLabSegLib.training.cases import DATASET, Case, Fault
from DeepLabSegLib.training.fingerprint import ClassFound, Fingerprint, Measurement, measure, summarize
from DeepLabSegLib.training.pairs import BadPair, class_of, has_picture, read_pair

__all__ = ["CheckedData", "check_cases", "report"]

FEWEST_CASES = 2
ALONE = 5
"""From this number of cases on, a class that only one of them has is taken for a slip."""

WHITES = (1, 255, 65535)
"""What programs write for the inside of a mask of one class."""

FAR = 8.0
"""Times the usual voxel and extent, or their part, from which both are taken for a slip in a spacing, as m for mm."""


@dataclass(frozen=True)
class CheckedData:
    """`cases` can be trained on, `faults` say why others can't, and `fingerprint` sums up `cases`.

    `empty` are those of `cases` whose labels hold background alone.
    """

    cases: tuple[Case, ...]
    empty: tuple[Case, ...]
    faults: tuple[Fault, ...]
    fingerprint: Fingerprint


def check_cases(
    cases: Sequence[Case],
    faults: Sequence[Fault] = (),
    *,
    allow_empty: bool = False,
    on_case: Callable[[int, int], object] | None = None,
) -> CheckedData:
    """Read every pair, and tell good ones from bad ones.

    `faults` are those already found (by `find_cases`) and come first in the result's. `allow_empty` takes labels that
    hold background alone, such as healthy scans. `on_case(done, total)` is called after each.

    Raises `InvalidInput` with the report of all faults where fewer than two good cases are left.
    """
    found = list(faults)
    good: dict[Case, Measurement] = {}
    for done, case in enumerate(cases, 1):
        try:
            good[case] = measure(*read_pair(case, allow_empty=allow_empty))
        except BadPair as error:
            found += [Fault(case.name, problem) for problem in error.problems]
        except (OSError, MemoryError, RuntimeError, ValueError) as error:  # whatever a reader trips over
            found.append(Fault(case.name, f"it can't be read ({error or type(error).__name__})"))
        if on_case is not None:
            on_case(done, len(cases))
    for odd in (_odd_channels, _odd_dimensions, _odd_sizes, _odd_whites, _odd_values, _odd_classes):
        for fault_case, problem in odd(good):
            good.pop(fault_case, None)
            found.append(Fault(fault_case.name, problem))
    if len(good) < FEWEST_CASES:
        lines = "\n".join(_fault_lines(found))
        pairs = "1 pair" if len(good) == 1 else f"{len(good)} pairs"
        raise InvalidInput(
            f"{pairs} of an image and its label can be used, and training needs at least {FEWEST_CASES}"
            + (f"; correct these:\n{lines}" if lines else "; give more")
        )
    empty = tuple(case for case, measurement in good.items() if not measurement.segments)
    return CheckedData(tuple(good), empty, tuple(found), summarize(list(good.values()), next(iter(good)).channels))


# --- what sets a case apart from the others --------------------------------------------------------------------------


def _odd_channels(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    counts = Counter(measurement.channels for measurement in good.values())
    usual = max(counts, key=lambda n: (counts[n], n), default=0)
    return [
        (
            case,
            f"{case.images[0]} has {measurement.channels} channels, and most images {usual}; save it like the others",
        )
        for case, measurement in good.items()
        if measurement.channels != usual
    ]


def _odd_dimensions(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    flat = 2 * sum(measurement.flat for measurement in good.values()) > len(good)
    kind = "single slices" if flat else "volumes"
    odd = []
    for case, measurement in good.items():
        shape = measurement.geometry.shape
        size = " x ".join(map(str, shape))
        if measurement.flat != flat:
            odd.append((case, f"{case.images[0]} has {size} voxels, and most images are {kind}; train them apart"))
        elif min(shape[1:]) < 2:
            odd.append((case, f"{case.images[0]} has {size} voxels; the two last axes need at least two each"))
    return odd


def _odd_sizes(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    sides = {case: _sides(measurement) for case, measurement in good.items() if not has_picture(case)}
    if not sides:
        return []
    usual = np.sort(list(sides.values()), axis=0)[(len(sides) - 1) // 2]  # the median; of two, the smaller
    return [
        (
            case,
            f"{case.images[0]} has voxels of {voxel:.5g} mm and sides of {extent:.5g} mm on average, and most images "
            f"{usual[0]:.5g} and {usual[1]:.5g} mm; correct the spacing in its header and its label's, or remove it",
        )
        for case, (voxel, extent) in sides.items()
        if max(voxel / usual[0], extent / usual[1]) < 1 / FAR or min(voxel / usual[0], extent / usual[1]) > FAR
    ]


def _sides(measurement: Measurement) -> tuple[float, float]:
    """The geometric means of an image's voxel sides and of its extents, in mm; of a slice, in its plane."""
    spacing = np.array(measurement.geometry.spacing)
    sides = np.stack([spacing, spacing * measurement.geometry.shape])[:, measurement.flat :]
    voxel, extent = np.exp(np.log(sides).mean(axis=1)).tolist()
    return voxel, extent


def _odd_whites(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    """Masks of one class whose inside is 1 in some and white in others."""
    classes = _classes(good)
    whites = {found.value for found in classes}
    if len(whites) < 2 or not whites <= set(WHITES) or any(len(m.segments) > 1 for m in good.values()):
        return []
    if not all(unnamed(segment) for _, segment in _segments(good)):
        return []
    usual = max(classes, key=lambda found: (found.cases, found.value)).value
    remedy = f"and others {usual} alone, which makes two classes; write {usual} for"
    return [
        (case, f"{case.label} holds the value {segment.value} alone, {remedy} {segment.value}")
        for case, segment in _segments(good)
        if segment.value != usual
    ]


def _odd_values(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    """Values without a name that other labels have with a name, and not always with the same."""
    names = defaultdict(set)
    for _, segment in _segments(good):
        if number_of(segment) is None:
            names[segment.value].add(segment.name)
    unclear = {found.value for found in _classes(good) if found.name == plain_name(found.value)} & set(names)
    odd = []
    for case, segment in _segments(good):
        if unnamed(segment) and segment.value in unclear:
            what = f"{case.label} holds the value {segment.value} without a name, and labels with names number"
            several = " and ".join(sorted(names[segment.value]))
            odd.append((case, f"{what} {several} in several ways; save it with named segments, as .seg.nrrd"))
    return odd


def _segments(good: dict[Case, Measurement]) -> Iterator[tuple[Case, Segment]]:
    return ((case, segment) for case, measurement in good.items() for segment, _ in measurement.segments)


def _classes(good: dict[Case, Measurement]) -> tuple[ClassFound, ...]:
    return summarize(list(good.values())).classes if good else ()


def _odd_classes(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    if len(good) < ALONE:
        return []
    classes = _classes(good)
    names, values = [found.name for found in classes], [found.value for found in classes]
    odd = []
    for case, measurement in good.items():
        for segment, voxels in measurement.segments:
            index = class_of(segment, names, values)
            if index is not None and classes[index].cases == 1:
                name = "" if unnamed(segment) else f" ({segment.name!r})"
                what = f"{case.label} holds the value {segment.value}{name} in {voxels} voxels, and no other label does"
                odd.append((case, f"{what}; correct it, or give more cases of that class"))
    return odd


# --- the report ------------------------------------------------------------------------------------------------------


def report(data: CheckedData) -> str:
    """What was found, for people: how many cases, their sizes and classes, and every fault."""
    fingerprint = data.fingerprint
    bad = len({fault.name for fault in data.faults} - {DATASET})
    patients = len({case.patient for case in data.cases})
    lines = [f"{len(data.cases)} of {len(data.cases) + bad} cases can be used ({patients} patients)"]
    lines += _fault_lines(data.faults)
    if fingerprint.flat and patients == len(data.cases) and patients > FEWEST_CASES:
        lines.append("every slice counts as a patient; name the patient where several slices are of one")
    return "\n".join([*lines, *fingerprint.lines()])


def _fault_lines(faults: Sequence[Fault]) -> list[str]:
    return [f"  {fault.name}: {fault.problem}" for fault in faults]
