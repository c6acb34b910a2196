"""An image and its labels as they are on disk: read, compared, and told apart by name or value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from DeepLabSegLib.errors import DeepLabSegError, InvalidInput
from DeepLabSegLib.evaluate import in_grey, name_key, unnamed
from DeepLabSegLib.files import is_picture, is_segmentation, read_image, read_labels
from DeepLabSegLib.image import AXIS_ALIGNED, Geometry, Image, Labels, Segment
from DeepLabSegLib.preprocess import axis_letters, check_voxels, stack_channels
from DeepLabSegLib.resampling import resample
from DeepLabSegLib.training.cases import Case

__all__ = ["BadPair", "class_of", "has_picture", "on_grid", "read_pair", "sample"]

MAX_VALUES = 255
"""Classes that a training label holds at most: they are stored in a byte."""

RIMS = 3
"""From this number of values on that only rim others, and where these are most of a label's, it was smoothed."""

SLICES = 16
"""Slices of a label that are looked at for this."""

INSIDE = 0.5
"""Share of a label's voxels that must lie on the image."""

SAMPLE = 100_000
"""Voxels of a label that are looked at for this."""

DEFAULT_DIRECTIONS = (AXIS_ALIGNED, ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)))
"""Those of a header that nobody filled in: NIfTI's axes, and ITK's."""


class BadPair(InvalidInput):
    """All that is wrong with one pair, in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def read_pair(case: Case, *, allow_empty: bool = False) -> tuple[Image, Labels]:
    """The image with its channels stacked, on the first one's grid, and its labels in one layer, on their own grid.

    Labels keep their values, names and colours, and get the case's names of classes where they have none; those of a
    `.seg.nrrd` with several layers are numbered anew, from 1. Where either is a picture, which has no position, labels
    of the image's size lie on its grid. Otherwise labels lie where their header says, unless it is what is left of a
    lost one.
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
        labels = _named(_one_layer(read_labels(case.label)), dict(case.classes))
    except DeepLabSegError as error:
        text = str(error)
        problems.append(text if str(case.label) in text else f"{case.label}: {text}")
    if images and labels is not None:
        for path, image in zip(case.images[1:], images[1:], strict=False):
            if len(images) == len(case.images) and not _touch(images[0].geometry, image.geometry):
                problems.append(
                    f"{path} lies elsewhere than {case.images[0]}; register the channels, or correct a header"
                )
        if has_picture(case) and labels.geometry.shape == images[0].geometry.shape:
            labels = replace(labels, geometry=images[0].geometry)
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


def class_of(segment: Segment, names: Sequence[str], values: Sequence[int]) -> int | None:
    """Which of the classes with these names and values in the labels a segment belongs to; None for none of them.

    The name decides; the value does where the label has no names.
    """
    keys = [name_key(name) for name in names]
    if name_key(segment.name) in keys:
        return keys.index(name_key(segment.name))
    return values.index(segment.value) if unnamed(segment) and segment.value in values else None


def sample(voxels: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """At most `count` of `voxels`, always the same."""
    if len(voxels) <= count:
        return voxels
    return np.random.default_rng(0).choice(voxels, count)  # steps of a row's length would meet one plane alone


def _one_layer(labels: Labels) -> Labels:
    """The labels with `(k, j, i)` values. Raises `InvalidInput` where segments overlap."""
    labels = in_grey(labels)
    if labels.array.ndim == 3:
        return labels
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


def _named(labels: Labels, names: Mapping[int, str]) -> Labels:
    """The labels with `names` of values for the segments that have none."""
    named = [replace(s, name=names.get(s.value, s.name)) if unnamed(s) else s for s in labels.segments]
    return replace(labels, segments=tuple(named))


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
            problems.append(f"{case.label} is empty (0 in every voxel); draw it, or give --allow-empty")
        return problems
    unlisted = np.setdiff1d(values, [segment.value for segment in labels.segments])
    if len(unlisted):
        problems.append(
            f"{case.label} holds the value {unlisted[0]} in {np.count_nonzero(labels.array == unlisted[0])} voxels and "
            "no segment of it, so that Slicer doesn't show them; add that segment, or set them to 0"
        )
    plain = {segment.value for segment in labels.segments if unnamed(segment)}
    rims = [value for value in _rims(labels.array) if value in plain] if len(plain) > RIMS else []
    if len(rims) >= RIMS and 2 * len(rims) > len(values):
        problems.append(
            f"{len(rims)} of the {len(values)} values in {case.label} ({rims[0]}, {rims[1]}, {rims[2]} ...) only rim "
            "others, as where a mask was smoothed; save it without smoothing (antialiasing), as PNG or another format "
            "that loses nothing, and change its size with nearest neighbour"
        )
    if labels.geometry.is_close(image.geometry):
        return problems
    shapes = [" x ".join(map(str, geometry.shape)) for geometry in (labels.geometry, image.geometry)]
    if has_picture(case) and not _is_cropped(case, labels, image.geometry):
        problems.append(
            f"{case.label} has {shapes[0]} voxels and its image {shapes[1]}; pictures have no positions, so save the "
            "label at the image's size"
        )
        return problems
    share = _share_inside(labels, image.geometry)
    if share < INSIDE:
        remedy = (
            "its sizes are the image's, so copy the image's header to it"
            if shapes[0] == shapes[1]
            else "correct its header, or draw it on this image"
        )
        problems.append(f"{case.label} lies to {share:.0%} on its image {case.images[0]}; {remedy}")
    elif _is_lost(labels.geometry, image.geometry) and not _fill_one_box(labels.geometry, image.geometry):
        problems.append(
            f"{case.label} has its image's {shapes[0]} voxels at other places: {_place(labels.geometry)}, and the "
            f"image {_place(image.geometry)}; copy the image's header to it, or resample it if its own is right"
        )
    return problems


def has_picture(case: Case) -> bool:
    """Whether one of its files is a picture."""
    return any(map(is_picture, (*case.images, case.label)))


def _rims(array: NDArray) -> list[int]:
    """Values of `(k, j, i)` labels whose voxels mostly lie between a smaller and a larger one in the plane.

    Edges that were smoothed leave such values. Among honest classes that are so are those of one voxel's width alone.
    """
    planes = array[:: -(-len(array) // SLICES)]
    beside = np.lib.stride_tricks.sliding_window_view(np.pad(planes, ((0, 0), (1, 1), (1, 1)), "edge"), (3, 3), (1, 2))
    lowest, highest = beside.min(axis=(-2, -1)), beside.max(axis=(-2, -1))
    values, number = np.unique(planes, return_inverse=True)
    number = number.reshape(planes.shape)
    between = np.bincount(number[(lowest < planes) & (planes < highest)], minlength=len(values))
    return values[2 * between > np.bincount(number.reshape(-1))].tolist()


# --- where grids lie -------------------------------------------------------------------------------------------------


def _is_cropped(case: Case, labels: Labels, geometry: Geometry) -> bool:
    """Whether a `.seg.nrrd` holds the part of the grid `geometry` that its segments fill, as Slicer saves it."""
    step = np.linalg.inv(geometry.affine) @ labels.geometry.affine
    first, filled = step[:3, 3], np.argwhere(labels.array)
    same_axes = np.allclose(step[:3, :3], np.eye(3), atol=1e-3) and np.allclose(first, np.rint(first), atol=1e-2)
    inside = (first > -0.5).all() and (first + labels.array.shape < np.array(geometry.shape) + 0.5).all()
    full = (np.ptp(filled, axis=0) + 1 == labels.array.shape).all()
    return is_segmentation(case.label) and bool(same_axes and inside and full)


def _share_inside(labels: Labels, geometry: Geometry) -> float:
    """The share of the labels' voxels whose centres lie in the box of `geometry`, of at most `SAMPLE` of them."""
    voxels = sample(np.flatnonzero(labels.array), SAMPLE)
    index = np.stack([*np.unravel_index(voxels, labels.array.shape), np.ones(len(voxels))])
    seen = (np.linalg.inv(geometry.affine) @ labels.geometry.affine @ index)[:3].T
    return float(((seen >= -0.5) & (seen <= np.array(geometry.shape) - 0.5)).all(axis=1).mean())


def _is_lost(label: Geometry, image: Geometry) -> bool:
    """Whether a header with its image's shape says nothing of its own: each part is a default or the image's.

    Programs leave that which save the array alone, or not all of its header.
    """
    parts = (
        (image.spacing, (1.0, 1.0, 1.0)),
        (image.origin, (0.0, 0.0, 0.0)),
        (image.direction, *DEFAULT_DIRECTIONS),
    )
    return any(label.is_close(Geometry(image.shape, *each)) for each in product(*parts))


def _fill_one_box(one: Geometry, other: Geometry) -> bool:
    """Whether two grids have the same faces to within half a voxel, however their axes are turned.

    One that counts from the voxels' corners is half a voxel off.
    """
    seen = (np.linalg.inv(other.affine) @ _corners(one).T)[:3]
    faces = np.stack([seen.min(axis=1), seen.max(axis=1) - other.shape])
    return bool((np.abs(faces + 0.5) <= 0.5 + 1e-3).all())


def _touch(one: Geometry, other: Geometry) -> bool:
    """Whether the boxes around two grids overlap."""
    (low, high), (other_low, other_high) = ((c[:, :3].min(0), c[:, :3].max(0)) for c in map(_corners, (one, other)))
    return bool((low < other_high).all() and (other_low < high).all())


def _corners(geometry: Geometry) -> NDArray[np.float64]:
    """`(8, 4)`, where the corners of the outermost voxels lie, RAS in mm and 1."""
    corners = np.array([[k, j, i, 1.0] for k in (0, 1) for j in (0, 1) for i in (0, 1)])
    corners[:, :3] = corners[:, :3] * geometry.shape - 0.5
    return corners @ geometry.affine.T


def _place(geometry: Geometry) -> str:
    """A grid in words."""
    spacing = " x ".join(f"{mm:.4g}" for mm in geometry.spacing)
    origin = ", ".join(f"{mm + 0.0:.4g}" for mm in geometry.origin)  # never -0
    tilt = np.degrees(np.arccos(np.abs(geometry.direction).max(axis=1).min()))
    tilted = f" tilted by {tilt:.2g} degrees" if tilt > 0.01 else ""
    return f"{spacing} mm, {axis_letters(geometry)}{tilted}, from ({origin})"
