"""What a data set is like, summed up from one reading of its pairs: grids, classes, voxel values.

The idea and the choice of what to measure follow Isensee et al. (nnU-Net, Nature Methods 2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.evaluate import name_key, number_of, unnamed
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology
from DeepLabSegLib.preprocess import LETTERS, axis_letters
from DeepLabSegLib.training.pairs import on_grid, sample

__all__ = ["ClassFound", "Fingerprint", "Measurement", "Values", "measure", "summarize"]

T = TypeVar("T")

SAMPLE = 10_000
"""Voxel values that are kept of each case."""

CT_MINIMUM = -300
"""Lowest value of an image below which it is taken for a CT, whose values have a meaning: air is -1000 HU. MR,
ultrasound and pictures don't go there."""


@dataclass(frozen=True)
class Measurement:
    """What one pair tells.

    `segments` are those with voxels, and how many; `lowest` is each channel's minimum, and `values` `(C, n)` some voxel
    values inside the segments, or of the whole image where it has none.
    """

    geometry: Geometry
    channels: int
    segments: tuple[tuple[Segment, int], ...]
    lowest: tuple[float, ...]
    values: NDArray[np.float32]

    @property
    def flat(self) -> bool:
        """Whether the image is a single slice."""
        return self.geometry.shape[0] == 1


@dataclass(frozen=True)
class ClassFound:
    """A class of the data set: its name and value in the labels, colour, how much of it there is, and its meaning."""

    name: str
    value: int
    color: tuple[int, int, int]
    cases: int
    voxels: int
    terminology: Terminology | None = None


@dataclass(frozen=True)
class Values:
    """Voxel values of one channel inside the labels, over all cases that have some.

    `lower` and `upper` are their percentiles 0.5 and 99.5, `mean` and `std` are of the values clipped to these and
    taken to 0 to 1.
    """

    lower: float
    upper: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like.

    Attributes
    ----------
    channels : how many.
    channel_names : one for each.
    flat : whether the images are single slices; axes are then the image's own.
    orientation : three letters, the usual order of the volumes' axes; None for slices.
    shapes, spacings : voxels and mm per voxel of each case, along the axes of `orientation`.
    classes : in the order of their values.
    values : per channel.
    ct : whether voxel values are Hounsfield units.
    """

    channels: int
    channel_names: tuple[str, ...]
    flat: bool
    orientation: str | None
    shapes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float], ...]
    classes: tuple[ClassFound, ...]
    values: tuple[Values, ...]
    ct: bool

    def spacing(self, orientation: str | None = None) -> NDArray[np.float64]:
        """Median mm per voxel along the axes of `orientation`."""
        return np.median(self._turned(self.spacings, orientation), axis=0)

    def extent(self, orientation: str | None = None) -> NDArray[np.float64]:
        """Median mm from face to face along the axes of `orientation`."""
        return np.median(self._turned(self.shapes, orientation) * self._turned(self.spacings, orientation), axis=0)

    def _turned(self, rows: Sequence[Sequence[float]], orientation: str | None) -> NDArray[np.float64]:
        array = np.array(rows, dtype=np.float64)
        if self.orientation is None or orientation is None:
            return array
        here = _axes(self.orientation)
        return array[:, [here.index(axis) for axis in _axes(orientation)]]

    def lines(self) -> list[str]:
        """The fingerprint in words."""
        shape = " x ".join(f"{n:g}" for n in np.median(self.shapes, axis=0))
        spacing = " x ".join(f"{mm:.3g}" for mm in self.spacing())
        kind = "slices" if self.flat else f"volumes ({self.orientation})"
        values = ", CT" if self.ct else ""
        return [
            f"{kind}{values}, channels: {self.channels}, median {shape} voxels of {spacing} mm",
            *(f"  {c.value}: {c.name}, in {c.cases} cases, {c.voxels / c.cases:.0f} voxels each" for c in self.classes),
        ]


def measure(image: Image, labels: Labels) -> Measurement:
    """The measurement of a pair; `labels` have one layer, a segment for each value, and may lie on another grid."""
    array = labels.array
    found, counts = np.unique(array, return_counts=True)
    known = {segment.value: segment for segment in labels.segments}
    segments = tuple(
        (known[value], count) for value, count in zip(found.tolist(), counts.tolist(), strict=True) if value > 0
    )
    inside = on_grid(labels, image.geometry) > 0
    index = sample(np.flatnonzero(inside) if inside.any() else np.arange(inside.size), SAMPLE)
    values = np.stack([channel.reshape(-1)[index] for channel in image.array]).astype(np.float32)
    lowest = tuple(float(channel.min()) for channel in image.array)
    return Measurement(image.geometry, image.channels, segments, lowest, values)


def summarize(measurements: Sequence[Measurement], channel_names: tuple[str, ...] = ()) -> Fingerprint:
    """The fingerprint of at least one measurement, all of as many channels; they are numbered without their names."""
    flat = all(measurement.flat for measurement in measurements)
    axes = [(0, 1, 2) if flat else _axes(axis_letters(m.geometry)) for m in measurements]
    usual = Counter(axes).most_common(1)[0][0]
    # Where each of the usual axes lies in a case.
    orders = [[here.index(axis) for axis in usual] for here in axes]
    # A healthy scan, whose values are those of all of it, would widen the window to air.
    labelled = [measurement.values for measurement in measurements if measurement.segments]
    pooled = np.concatenate(labelled or [measurement.values for measurement in measurements], axis=1)
    channels = measurements[0].channels
    if len(channel_names) != channels:
        channel_names = ("image",) if channels == 1 else tuple(f"image {n + 1}" for n in range(channels))
    return Fingerprint(
        channels=channels,
        channel_names=channel_names,
        flat=flat,
        orientation=None if flat else "".join("RAS"[axis] for axis in usual),
        shapes=tuple(_ordered(m.geometry.shape, order) for m, order in zip(measurements, orders, strict=True)),
        spacings=tuple(_ordered(m.geometry.spacing, order) for m, order in zip(measurements, orders, strict=True)),
        classes=_classes(measurements),
        values=tuple(_values(channel) for channel in pooled),
        ct=channels == 1 and float(np.percentile([m.lowest[0] for m in measurements], 90)) < CT_MINIMUM,
    )


def _ordered(values: Sequence[T], order: Sequence[int]) -> tuple[T, T, T]:
    first, second, third = order
    return values[first], values[second], values[third]


def _axes(letters: str) -> tuple[int, ...]:
    """Orientation letters to the RAS axes that they lie along."""
    return tuple(LETTERS[letter][0] for letter in letters)


def _values(channel: NDArray[np.float32]) -> Values:
    lower, upper = (float(value) for value in np.percentile(channel, [0.5, 99.5]))
    scaled = (np.clip(channel, lower, upper) - lower) / max(upper - lower, 1e-8)
    return Values(lower, upper, float(scaled.mean()), max(float(scaled.std()), 1e-3))


def _classes(measurements: Sequence[Measurement]) -> tuple[ClassFound, ...]:
    """Segments by name; those without one belong to the class that alone has their value, or make one themselves.

    A class's value is the one that most of its cases have, its name, colour and meaning those of the first. That of
    `Label 4` is 4, also where a model that learned from it has numbered its own labels anew.
    """
    named: dict[str, list[tuple[int, Segment, int]]] = {}
    plain: dict[int, list[tuple[int, Segment, int]]] = {}
    for case, measurement in enumerate(measurements):
        for segment, voxels in measurement.segments:
            if unnamed(segment):
                plain.setdefault(segment.value, []).append((case, segment, voxels))
            else:
                named.setdefault(name_key(segment.name), []).append((case, segment, voxels))
    groups = list(named.values())
    for value, group in plain.items():
        own = named.get(name_key(group[0][1].name))
        if own is not None:
            own += group
            continue
        others = [g for g in named.values() if number_of(g[0][1]) is None]
        homes = [g for g in others if any(segment.value == value for _, segment, _ in g)]
        if len(homes) == 1 and all(segment.value == value for _, segment, _ in homes[0]):
            homes[0] += group
        else:
            groups.append(group)
    return tuple(sorted(map(_class, groups), key=lambda found: (found.value, found.name)))


def _class(group: Sequence[tuple[int, Segment, int]]) -> ClassFound:
    """The class of segments, each with the number of its case before it and of its voxels behind it."""
    first = group[0][1]
    value = number_of(first)
    return ClassFound(
        first.name,
        Counter(segment.value for _, segment, _ in group).most_common(1)[0][0] if value is None else value,
        first.color,
        len({case for case, _, _ in group}),
        sum(voxels for _, _, voxels in group),
        first.terminology,
    )
