"""From a data set's fingerprint to everything that a training run has to choose.

The rules take up nnU-Net's ideas (Isensee et al., Nature Methods 2021): the grid from the median spacing, a tile as
large as memory allows and no larger than the image, the batch from what is left. One thing differs: DeepLabV3+ predicts
at every fourth voxel and enlarges that, so an image that fits well into the tile is worked on finer than it was taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.bundle import ModelInput
from DeepLabSegLib.checks import check_choice
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.evaluate import name_key
from DeepLabSegLib.image import Segment, default_color, plain_name
from DeepLabSegLib.models.deeplab import DeepLabSpec
from DeepLabSegLib.preprocess import Normalization, check_orientation
from DeepLabSegLib.training.fingerprint import ClassFound, Fingerprint
from DeepLabSegLib.training.pairs import MAX_VALUES

__all__ = ["Overrides", "TrainingPlan", "plan"]

TILE_VOXELS = {2: 400**2, 3: 96**3}
"""Voxels of a tile, by dimensions: what a network of this size trains on in about 8 GB, with the batch below."""

BATCH_VOXELS = {2: 16 * 256**2, 3: 4 * 96**3}
"""Voxels of a batch."""

MAX_BATCH = 16
MAX_VOXELS = 2**30

CELL = 16
"""Tiles are multiples of this stride of the network, so that its maps fit into each other."""

REFINEMENTS = (2.0, 1.75, 1.5, 1.25, 1.0)
"""How much finer than the scans the grid may be; the first is taken whose tile holds the whole image. At twice the
resolution one prediction stands for two voxels of the scan along each axis; more would add none that a label shows."""

THICK = 3.0
"""Slices that are thicker than this many times the voxels in their plane are never refined."""

FEWEST_SLICES = 16
"""Volumes of thick slices with fewer of them are worked on slice by slice."""

DEEP_CELLS = 6
"""Cells along each axis that the deepest map keeps, if it can."""

SIDES = {
    "RL": ("l", "r", "lt", "rt", "lh", "rh", "li", "re", "dx", "sx", "sin"),
    "AP": ("anterior", "posterior", "ant", "post", "front", "back", "ventral", "dorsal"),
    "SI": ("superior", "inferior", "sup", "inf", "upper", "lower", "cranial", "caudal"),
}
"""Words in the name of a class that tell the ends of an axis apart, which a mirror image would turn round."""

LEFT_OR_RIGHT = re.compile(
    "left|right|sinist|de[xs]t[er]|links|linke|rechts|rechte|gauche|droit|izquierd|derech|esquerd|direit", re.IGNORECASE
)
"""The same within words, and in other languages; a bright lesion turned round less often is no loss."""

WORD = re.compile(r"(?![LR]\d)(?:[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z]))")
"""A word of a name, also in `LeftKidney`; the L of a vertebra, L1, is none."""


@dataclass(frozen=True)
class Overrides:
    """What the user chooses instead of the rules; None leaves it to them.

    `spacing`, `orientation` and `mirror_axes` are as in `ModelInput`, `tile` has a size per dimension, `names` and
    `channels` name the classes and input channels. Where `names` are those of the labels, their order is that of the
    model's classes; other names are given to the classes in the order of their values.
    """

    encoder: str | None = None
    depth: int | None = None
    dims: int | None = None
    spacing: tuple[float | None, ...] | None = None
    tile: tuple[int, ...] | None = None
    batch_size: int | None = None
    normalization: Normalization | None = None
    orientation: str | None = None
    names: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    mirror_axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """Everything chosen for a training run.

    Attributes
    ----------
    network, input, labels : as they go into the bundle; labels have the values 1 to n.
    batch_size : tiles per step.
    values, names : value and name that each class has in the training labels (see `pairs.class_of`).
    """

    network: DeepLabSpec
    input: ModelInput
    batch_size: int
    labels: tuple[Segment, ...]
    values: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def tile(self) -> tuple[int, int, int]:
        """Sizes of a training patch along (k, j, i); a 2D network's is one plane."""
        sizes = self.input.tile or ()
        return (1, *sizes) if self.network.dims == 2 else sizes  # type: ignore[return-value]

    @property
    def planar(self) -> bool:
        """Whether nothing is to be turned or displaced across the slices: 2D networks, and thick slices."""
        across, *plane = self.input.spacing
        sizes = [mm for mm in plane if mm is not None]
        return self.network.dims == 2 or (across is not None and bool(sizes) and across >= THICK * min(sizes))

    def lines(self) -> list[str]:
        """The plan in words."""
        wanted, network = self.input, self.network
        spacing = " x ".join("the scan's" if mm is None else f"{mm:.4g}" for mm in wanted.spacing)
        scaling = wanted.normalization
        bounds = "" if scaling.lower is None else f" {scaling.lower:g} to {scaling.upper:g}"
        named = [
            f"{label.value} {label.name}" if label.name == found else f"{label.value} {found} -> {label.name}"
            for label, found in zip(self.labels, self.names, strict=True)
        ]
        return [
            f"network {network.dims}D {network.encoder_name}, depth {network.encoder_depth}, "
            f"dilation {', '.join(map(str, network.decoder_dilation_rates))}, {network.num_classes} classes",
            f"grid {spacing} mm ({wanted.orientation or 'axes of the image'}), values {scaling.method}{bounds}",
            f"tile {' x '.join(map(str, wanted.tile or ()))}, batch {self.batch_size}",
            f"mirrored along {', '.join('kji'[axis] for axis in wanted.mirror_axes or ()) or 'no axis'}",
            f"labels {', '.join(named)}",
        ]


def plan(fingerprint: Fingerprint, overrides: Overrides | None = None) -> TrainingPlan:
    """What to train for the data of `fingerprint`.

    Dimensions: slices are 2D; volumes 3D, unless they are fewer than `FEWEST_SLICES` thick slices.

    Orientation: the usual order of the scans' axes, the one with the thickest voxels first, all growing to the right,
    front and top. Single slices keep their own axes, since a picture lies nowhere in a body.

    Spacing: the scans' median. The network predicts at every fourth voxel of its grid and enlarges that linearly, so a
    thin structure needs a grid finer than the scan's. The grid is therefore refined, up to twice, as far as the median
    image still fits into one tile; larger images keep their spacing, and so does the axis across thick slices. A 2D
    network on volumes takes the slices as they come.

    Tile: the median image on that grid, rounded up to multiples of `CELL`; where that is too much, the side that is
    longest in mm is cut until it fits. Depth 4 where its map (stride 16) keeps `DEEP_CELLS` cells along every axis,
    otherwise 3 (stride 8); dilation rates reach over about half of that map.

    Mirror images: along the axes whose ends no name of a class tells apart by a word such as left, R or anterior.

    Values: CT gets a window and a scale common to all scans, from what lies inside the labels; for all else each
    image's own percentiles count.

    Raises
    ------
    InvalidInput : an override that is out of range or doesn't fit the data.
    """
    chosen = overrides or Overrides()
    dims = _dims(fingerprint, chosen)
    orientation = _orientation(fingerprint, chosen)
    spacing = _spacing(fingerprint, orientation, dims, chosen.spacing)
    size, sizes = _seen(fingerprint, orientation, spacing)
    if prod(sizes.tolist()) > MAX_VOXELS:
        raise InvalidInput(
            f"at the spacing {' x '.join(f'{mm:g}' for mm in size)} mm the median image has "
            f"{' x '.join(map(str, sizes))} voxels, more than {MAX_VOXELS}; choose a coarser one"
        )
    depth = chosen.depth
    check_choice("depth", depth, (None, 3, 4, 5))
    tile = chosen.tile or _tile(sizes[-dims:], size[-dims:], dims, 2 ** (depth or 4))
    if len(tile) != dims:
        raise InvalidInput(f"tile is {'x'.join(map(str, tile))}; a {dims}D network needs {dims} sizes")
    depth = depth or (4 if min(tile) >= DEEP_CELLS * 16 else 3)
    stride = 2**depth
    if any(size < 1 or size % stride for size in tile):
        right = "x".join(str(max(1, round(size / stride)) * stride) for size in tile)
        raise InvalidInput(
            f"tile is {'x'.join(map(str, tile))}; at depth {depth} sizes are multiples of {stride}: {right}"
        )
    batch = chosen.batch_size
    if batch is None:
        batch = int(np.clip(BATCH_VOXELS[dims] // prod(tile), 2, MAX_BATCH))
    if batch < 1:
        raise InvalidInput(f"batch_size is {batch}; it must be at least 1")
    step = max(1, int(np.median(tile)) // stride // 5)
    classes = _classes(fingerprint, chosen.names)
    labels = _labels(classes, chosen.names)
    channels = chosen.channels or fingerprint.channel_names
    if len(channels) != fingerprint.channels:
        raise InvalidInput(f"{len(channels)} channels are named, and the images have {fingerprint.channels}")
    network = DeepLabSpec(
        encoder_name=chosen.encoder or "resnet18",
        input_shape=(*(None,) * dims, fingerprint.channels),
        encoder_depth=depth,
        num_classes=len(labels) + 1,
        decoder_channels=128,
        decoder_dilation_rates=(step, 2 * step, 3 * step),
        decoder_aspp_dropout=0.1,
        classifier_activation="softmax",
    )
    return TrainingPlan(
        network=network,
        input=ModelInput(
            channels=channels,
            orientation=orientation,
            spacing=spacing,
            normalization=chosen.normalization or _normalization(fingerprint),
            tile=tuple(tile),
            mirror_axes=_mirror_axes(labels, orientation, dims, chosen.mirror_axes),
        ),
        batch_size=batch,
        labels=labels,
        values=tuple(found.value for found in classes),
        names=tuple(found.name for found in classes),
    )


def _dims(fingerprint: Fingerprint, chosen: Overrides) -> int:
    check_choice("dims", chosen.dims, (None, 2, 3))
    if fingerprint.flat and chosen.dims == 3:
        raise InvalidInput("dims is 3, and the images are single slices; choose 2, or give volumes")
    if fingerprint.flat or chosen.dims is not None:
        return chosen.dims or 2
    spacing, extent = fingerprint.spacing(), fingerprint.extent()
    axis = int(spacing.argmax())
    few = extent[axis] / spacing[axis] < FEWEST_SLICES
    return 2 if few and spacing[axis] >= THICK * spacing.min() else 3


def _orientation(fingerprint: Fingerprint, chosen: Overrides) -> str | None:
    if fingerprint.orientation is None:
        if chosen.orientation is not None:
            raise InvalidInput(
                f"orientation is {chosen.orientation!r}, and the images are single slices; leave it out for these"
            )
        return None
    if chosen.orientation is not None:
        check_orientation(chosen.orientation)
        return chosen.orientation
    spacing = fingerprint.spacing()
    if spacing.max() < 1.25 * np.median(spacing):
        return fingerprint.orientation
    thickest = fingerprint.orientation[int(spacing.argmax())]
    return thickest + fingerprint.orientation.replace(thickest, "")


def _spacing(
    fingerprint: Fingerprint, orientation: str | None, dims: int, given: Sequence[float | None] | None
) -> tuple[float | None, float | None, float | None]:
    """As in `ModelInput`."""
    if given is not None:
        if len(given) not in (dims, 3):
            raise InvalidInput(f"spacing has {len(given)} sizes; give mm along k, j, i")
        if not all(mm is None or 0 < mm < 1e4 for mm in given):
            raise InvalidInput(f"spacing is {list(given)}; each must be None or a size in mm above 0")
        across, down, right = given if len(given) == 3 else (None, *given)
        return across, down, right
    scan = fingerprint.spacing(orientation)
    fine = scan < THICK * scan.min()
    for refinement in REFINEMENTS:
        spacing = tuple(float(f"{mm:.5g}") for mm in np.where(fine, scan / refinement, scan))
        sizes = _seen(fingerprint, orientation, spacing)[1]
        if prod(map(_up, sizes[-dims:].tolist())) <= TILE_VOXELS[dims]:
            break
    # Slices of volumes are taken as they come.
    return None if dims == 2 else spacing[0], spacing[1], spacing[2]


def _seen(
    fingerprint: Fingerprint, orientation: str | None, spacing: Sequence[float | None]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mm per voxel, and voxels of the median image, on the grid of `spacing` along the axes of `orientation`."""
    scan, extent = fingerprint.spacing(orientation), fingerprint.extent(orientation)
    size = np.array([keep if mm is None else mm for mm, keep in zip(spacing, scan, strict=True)])
    # Where voxels change size their places are fixed in space, and a part of one more is needed (`model_grid`).
    more = np.abs(size / scan - 1) > 1e-4
    return size, np.maximum(1, np.ceil(extent / size - 1e-3) + more).astype(int)


def _up(size: int, multiple: int = CELL) -> int:
    return -(-size // multiple) * multiple


def _tile(sizes: NDArray[np.int64], spacing: NDArray[np.float64], dims: int, stride: int) -> tuple[int, ...]:
    """The median image in whole cells, or as much of it as a tile may have."""
    cell = max(CELL, stride)
    tile = [_up(size, cell) for size in sizes.tolist()]
    while prod(tile) > TILE_VOXELS[dims] and max(tile) > cell:
        longest = max((n for n in range(dims) if tile[n] > cell), key=lambda n: tile[n] * spacing[n])
        tile[longest] -= cell
    return tuple(tile)


def _classes(fingerprint: Fingerprint, names: Sequence[str] | None) -> tuple[ClassFound, ...]:
    """The classes of the data, in the order of `names` where these are their own."""
    classes = fingerprint.classes
    if not classes:
        raise InvalidInput("no label holds a class; give labels that are drawn")
    if len(classes) > MAX_VALUES:
        raise InvalidInput(f"the labels hold {len(classes)} classes; at most {MAX_VALUES} can be trained, so join some")
    keys, wanted = ([name_key(name) for name in some] for some in ([c.name for c in classes], names or ()))
    return tuple(classes[keys.index(key)] for key in wanted) if sorted(wanted) == sorted(keys) else classes


def _labels(classes: Sequence[ClassFound], names: Sequence[str] | None) -> tuple[Segment, ...]:
    if names is not None and len(names) != len(classes):
        values = ", ".join(
            str(found.value) if found.name == plain_name(found.value) else found.name for found in classes
        )
        count = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
        raise InvalidInput(f"the labels have {count} ({values}); give as many names, not {len(names)}")
    if names is not None and not all(map(name_key, names)):
        raise InvalidInput(f"the names {', '.join(names)!r} hold an empty one; each class needs its own")
    if names is not None and len(set(map(name_key, names))) < len(names):
        raise InvalidInput(f"the names {', '.join(names)} hold one twice; each class needs its own")
    labels: list[Segment] = []
    for n, found in enumerate(classes, 1):
        # Whatever is drawn first in a scan has Slicer's first colour, and may be another class in the next.
        taken = any(label.color == found.color for label in labels)
        labels.append(Segment(n, found.name, default_color(n) if taken else found.color, found.terminology))
    if names is None:
        return tuple(labels)
    known = [name_key(found.name) for found in classes]
    for own, name in zip(known, names, strict=True):
        if name_key(name) in known and name_key(name) != own:
            raise InvalidInput(
                f"the labels have the names {', '.join(found.name for found in classes)}, and {name!r} would be given "
                "to another of them; give all of these in the model's order, or new names alone"
            )
    return tuple(replace(label, name=name) for label, name in zip(labels, names, strict=True))


def _mirror_axes(
    labels: Sequence[Segment], orientation: str | None, dims: int, given: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The axes of (k, j, i) that can be turned round without making one class look like another, by their names."""
    axes = range(3 - dims, 3)
    if given is not None:
        if not set(given) <= set(axes):
            letters = dict(enumerate("kji"))
            said, own = (", ".join(letters.get(axis, str(axis)) for axis in some) for some in (given, axes))
            raise InvalidInput(f"mirror_axes are {said}; of k, j, i (0, 1, 2 in Python) a {dims}D network has {own}")
        return tuple(sorted(set(given)))
    modifiers = [label.terminology.modifier for label in labels if label.terminology]
    texts = [label.name for label in labels] + [modifier[2] for modifier in modifiers if modifier]
    words = {word.lower() for text in texts for word in WORD.findall(text)}
    told = {pair for pair, ends in SIDES.items() if words & set(ends)}
    # LUL and RUL, as lobes of lungs are called for short.
    if any(map(LEFT_OR_RIGHT.search, texts)) or any(f"r{word[1:]}" in words for word in words if word[0] == "l"):
        told.add("RL")
    if orientation is None:
        return () if told else tuple(axes)
    return tuple(axis for axis in axes if not any(orientation[axis] in pair for pair in told))


def _normalization(fingerprint: Fingerprint) -> Normalization:
    if not fingerprint.ct:
        return Normalization("percentile", 0.5, 99.5)
    values = fingerprint.values[0]
    if not values.lower < values.upper:
        return Normalization("zscore")
    return Normalization("window", values.lower, values.upper, (values.mean,), (values.std,))
