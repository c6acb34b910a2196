"""Every pair is read once, before anything is trained: what is wrong with it, and what it adds to the fingerprint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from DeepLabSegLib.errors import DeepLabSegError, InvalidInput
from DeepLabSegLib.files import read_image, read_labels
from DeepLabSegLib.image import Geometry, Image, Labels, Segment
from DeepLabSegLib.preprocess import check_voxels, stack_channels
from DeepLabSegLib.resampling import resample
from DeepLabSegLib.training.cases import Case, Fault
from DeepLabSegLib.training.fingerprint import Fingerprint, Measurement, class_of, measure, summarize, unnamed

__all__ = ["CheckedData", "check_cases", "on_grid", "read_pair", "report"]

FEWEST_CASES = 2
MAX_VALUES = 255
"""Classes that a training label holds at most: they are stored in a byte."""

ALONE = 5
"""From this number of cases on, a class that only one of them has is taken for a slip."""

INSIDE = 0.5
"""Share of a label's voxels that must lie on the image."""


@dataclass(frozen=True)
class CheckedData:
    """`cases` can be trained on, `faults` say why others can't, and `fingerprint` sums up `cases`."""

    cases: tuple[Case, ...]
    faults: tuple[Fault, ...]
    fingerprint: Fingerprint


class BadPair(InvalidInput):
    """All that is wrong with one pair, in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


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
        except (OSError, MemoryError) as error:
            found.append(Fault(case.name, f"it can't be read ({error or type(error).__name__})"))
        if on_case is not None:
            on_case(done, len(cases))
    for odd in (_odd_channels, _odd_dimensions, _odd_classes):
        for fault_case, problem in odd(good):
            good.pop(fault_case, None)
            found.append(Fault(fault_case.name, problem))
    if len(good) < FEWEST_CASES:
        lines = "\n".join(_fault_lines(found))
        raise InvalidInput(
            f"{len(good)} pairs of an image and its label can be used, and training needs at least {FEWEST_CASES}"
            + (f"; correct these:\n{lines}" if lines else "; give more")
        )
    return CheckedData(tuple(good), tuple(found), summarize(list(good.values())))


def read_pair(case: Case, *, allow_empty: bool = False) -> tuple[Image, Labels]:
    """The image with its channels stacked, on the first one's grid, and its labels in one layer, on their own grid.

    Labels keep their values, names and colours; those of a `.seg.nrrd` with several layers are numbered anew, from 1.
    Raises `BadPair`, an `InvalidInput`, with all that is wrong.
    """
    problems: list[str] = []
    images: list[Image] = []
    for path in case.images:
        try:
            images.append(read_image(path))
        except DeepLabSegError as error:
            problems.append(str(error))
            continue
        try:
            check_voxels(images[-1])
        except InvalidInput as error:
            problems.append(f"{path}: {error}")
    labels = None
    try:
        labels = _one_layer(read_labels(case.label))
    except DeepLabSegError as error:
        text = str(error)
        problems.append(text if str(case.label) in text else f"{case.label}: {text}")
    if images and labels is not None:
        for path, image in zip(case.images[1:], images[1:], strict=False):
            if len(images) == len(case.images) and not _touch(images[0].geometry, image.geometry):
                problems.append(
                    f"{path} lies elsewhere than {case.images[0]}; register the channels, or correct a header"
                )
        problems += _label_problems(case, images[0], labels, allow_empty)
    if problems or labels is None:
        raise BadPair(problems)
    return stack_channels(images), labels


def on_grid(labels: Labels, geometry: Geometry) -> NDArray:
    """Label values `(k, j, i)` at the voxels of `geometry`, the nearest ones; 0 where the labels don't reach."""
    if labels.geometry.is_close(geometry):
        return labels.array
    array = torch.from_numpy(np.ascontiguousarray(labels.array, np.int32))[None]
    return resample(array, labels.geometry, geometry, "nearest", torch.zeros(1)).numpy()[0].astype(labels.array.dtype)


def _one_layer(labels: Labels) -> Labels:
    """The labels with `(k, j, i)` values. Raises `InvalidInput` where segments overlap."""
    if labels.array.ndim == 3:
        return labels
    if all(unnamed(segment) for segment in labels.segments):  # the colours of a picture, not layers
        if (labels.array[:3] == labels.array[0]).all():
            return replace(labels, array=labels.array[0])
        raise InvalidInput(
            f"it has {len(labels.layers)} numbers per voxel; save the label with one grey value per class"
        )
    array = np.zeros(labels.geometry.shape, np.uint16)
    segments: list[Segment] = []
    for value, segment in enumerate(labels.segments, 1):
        mask = labels.mask(segment)
        shared = array[mask & (array > 0)]
        if len(shared):
            other = segments[int(shared[0]) - 1].name
            raise InvalidInput(
                f"the segments {other!r} and {segment.name!r} overlap in {len(shared)} voxels, and a voxel is trained "
                "with one class; subtract one, with the effect Logical operators of Slicer's Segment Editor"
            )
        array[mask] = value
        segments.append(replace(segment, value=value, layer=0))
    return replace(labels, array=array, segments=tuple(segments))


def _label_problems(case: Case, image: Image, labels: Labels, allow_empty: bool) -> list[str]:
    problems = []
    values = np.unique(labels.array)
    values = values[values > 0]
    if len(values) > MAX_VALUES:
        problems.append(
            f"{case.label} holds {len(values)} different values; a label has at most {MAX_VALUES}, so is this an image?"
        )
    if not len(values):
        if not allow_empty:
            problems.append(f"{case.label} is empty (0 in every voxel); draw the label, or allow empty labels")
        return problems
    if labels.geometry.is_close(image.geometry):
        return problems
    shapes = [" x ".join(map(str, geometry.shape)) for geometry in (labels.geometry, image.geometry)]
    if _is_picture(case) and shapes[0] != shapes[1]:
        problems.append(
            f"{case.label} has {shapes[0]} voxels and its image {shapes[1]}; pictures have no positions, so save the "
            "label at the image's size"
        )
        return problems
    there = np.count_nonzero(on_grid(labels, image.geometry)) * image.geometry.voxel_volume
    share = there / (np.count_nonzero(labels.array) * labels.geometry.voxel_volume)
    if share < INSIDE:
        remedy = (
            "its sizes are the image's, so copy the image's header to it"
            if shapes[0] == shapes[1]
            else "correct its header, or draw it on this image"
        )
        problems.append(f"{case.label} lies to {share:.0%} on its image {case.images[0]}; {remedy}")
    return problems


def _is_picture(case: Case) -> bool:
    return any(path.suffix.lower() in (".png", ".jpg", ".jpeg") for path in (*case.images, case.label))


def _touch(one: Geometry, other: Geometry) -> bool:
    """Whether the boxes around two grids overlap."""
    boxes = []
    for geometry in (one, other):
        corners = np.array([[k, j, i, 1.0] for k in (0, 1) for j in (0, 1) for i in (0, 1)])
        corners[:, :3] = corners[:, :3] * geometry.shape - 0.5
        places = (corners @ geometry.affine.T)[:, :3]
        boxes.append((places.min(0), places.max(0)))
    (low, high), (other_low, other_high) = boxes
    return bool((low < other_high).all() and (other_low < high).all())


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


def _odd_classes(good: dict[Case, Measurement]) -> list[tuple[Case, str]]:
    if len(good) < ALONE:
        return []
    classes = summarize(list(good.values())).classes
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
    bad = len({fault.name for fault in data.faults})
    patients = len({case.patient for case in data.cases})
    lines = [f"{len(data.cases)} of {len(data.cases) + bad} cases can be used ({patients} patients)"]
    lines += _fault_lines(data.faults)
    if fingerprint.flat and patients == len(data.cases) and patients > FEWEST_CASES:
        lines.append("every slice counts as a patient; name the patient where several slices are of one")
    return "\n".join([*lines, *fingerprint.lines()])


def _fault_lines(faults: Sequence[Fault]) -> list[str]:
    return [f"  {fault.name}: {fault.problem}" for fault in faults]
