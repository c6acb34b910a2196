"""Images, label maps and where their voxels lie. numpy only.

Arrays are `(C, k, j, i)` and `(k, j, i)`; a 2D image is a volume of one slice, `k == 0`. Positions are in mm in RAS
(x to the patient's right, y to the front, z up), the frame of Slicer and NIfTI.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from DeepLabSegLib.errors import InvalidInput

__all__ = [
    "SAME_GRID",
    "Geometry",
    "Image",
    "Labels",
    "Segment",
    "Terminology",
    "default_color",
    "plain_name",
    "whole_numbers",
]

TERMINOLOGY_CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
MAX_LABEL = 65535
AXIS_ALIGNED = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
SAME_GRID = 0.1
"""How far, in voxel sides, a format's rounding may move what lies on one grid."""


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume.

    Attributes
    ----------
    shape : voxels along (k, j, i).
    spacing : voxel size in mm along (k, j, i), positive.
    origin : RAS position in mm of the centre of voxel (0, 0, 0).
    direction : three rows, the RAS unit vectors along which k, j and i grow; at right angles to each other.

    Raises
    ------
    InvalidInput : a shape that is no three whole numbers, an empty axis, a spacing that is not positive and finite, a
        sheared or singular direction.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = AXIS_ALIGNED

    def __post_init__(self) -> None:
        try:
            shape = tuple(map(operator.index, self.shape))
        except TypeError:
            raise InvalidInput(f"shape is {self.shape!r}; give the voxels along (k, j, i), whole numbers") from None
        if len(shape) != 3 or min(shape) < 1:
            raise InvalidInput(f"the image has {_by(shape)} voxels; it needs three axes of at least one voxel")
        spacing = _floats("spacing", self.spacing, (3,))
        if not (spacing > 0).all():
            raise InvalidInput(f"spacing is {_by(spacing)} mm; every axis needs a positive size, so correct the header")
        origin = _floats("origin", self.origin, (3,))
        direction = _floats("direction", self.direction, (3, 3))
        lengths = np.linalg.norm(direction, axis=1)
        if not lengths.all() or abs(np.linalg.det(direction / lengths[:, None])) < 1e-3:
            raise InvalidInput(f"direction {direction.tolist()} is singular: two axes coincide; correct the header")
        direction = direction / lengths[:, None]
        skew = np.abs(direction @ direction.T - np.eye(3)).max()
        if skew > 1e-3:
            raise InvalidInput(
                f"direction {direction.tolist()} is sheared (axes {np.degrees(np.arcsin(min(skew, 1))):.2f} degrees "
                "off a right angle); resample the image to a rectangular grid first"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spacing", tuple(spacing.tolist()))
        object.__setattr__(self, "origin", tuple(origin.tolist()))
        object.__setattr__(self, "direction", tuple(map(tuple, direction.tolist())))

    @classmethod
    def from_affine(cls, shape: Sequence[int], affine: ArrayLike) -> Geometry:
        """From a 4x4 matrix that takes `(k, j, i, 1)` to RAS mm."""
        matrix = _floats("index-to-RAS matrix", affine, (4, 4))
        columns = matrix[:3, :3].T
        spacing = np.linalg.norm(columns, axis=1)
        return cls(shape, tuple(spacing), tuple(matrix[:3, 3]), tuple(map(tuple, columns)))  # type: ignore[arg-type]

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """4x4, takes `(k, j, i, 1)` to RAS mm; not to be written to."""
        matrix = np.eye(4)
        matrix[:3, :3] = (np.array(self.direction) * np.array(self.spacing)[:, None]).T
        matrix[:3, 3] = self.origin
        matrix.flags.writeable = False
        return matrix

    @property
    def corners(self) -> NDArray[np.float64]:
        """`(8, 4)`, the voxels `(k, j, i, 1)` at the grid's corners."""
        corners = np.array([[k, j, i, 1.0] for k in (0, 1) for j in (0, 1) for i in (0, 1)])
        corners[:, :3] *= np.array(self.shape) - 1
        return corners

    @property
    def voxel_volume(self) -> float:
        """mm³ per voxel."""
        return float(np.prod(self.spacing))

    def part(self, box: Sequence[slice]) -> Geometry:
        """The grid of the voxels in `box`, first and last-plus-one along (k, j, i)."""
        origin = (self.affine @ np.array([*(side.start for side in box), 1.0]))[:3]
        return replace(self, shape=tuple(side.stop - side.start for side in box), origin=tuple(origin))

    def box_in(self, whole: Geometry) -> tuple[slice, slice, slice] | None:
        """Which voxels of `whole` these are, as `part` takes them, to within `SAME_GRID`; None where they aren't."""
        first = np.rint((np.linalg.inv(whole.affine) @ np.array([*self.origin, 1.0]))[:3]).astype(int)
        last = first + self.shape
        if first.min() < 0 or (last > whole.shape).any():
            return None
        k, j, i = map(slice, first.tolist(), last.tolist())
        return (k, j, i) if self.is_close(whole.part((k, j, i)), SAME_GRID) else None

    def is_close(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Whether both grids put every voxel at the same place, within `tolerance` of the smallest voxel side."""
        if self.shape != other.shape:
            return False
        apart = np.abs(self.corners @ (self.affine - other.affine).T).max()
        return bool(apart <= tolerance * min(self.spacing))


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A volume with one or more channels: `array` is `(C, k, j, i)`; `(k, j, i)` is taken as one channel.

    Raises `InvalidInput` where the sizes aren't the grid's, and for voxels that are no real numbers.
    """

    array: NDArray
    geometry: Geometry

    def __post_init__(self) -> None:
        _check_grid(self.geometry)
        array = np.asarray(self.array)
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or array.shape[1:] != self.geometry.shape or array.shape[0] == 0:
            raise InvalidInput(
                f"the array has shape {_by(array.shape)} and the grid {_by(self.geometry.shape)}; "
                "give (k, j, i) or (channels, k, j, i) with the grid's sizes"
            )
        if array.dtype.kind not in "biuf":
            raise InvalidInput(f"voxels are of type {array.dtype}; integers or real numbers are needed")
        object.__setattr__(self, "array", array)

    def __repr__(self) -> str:
        return f"<Image: {self.channels} channel(s), {_seen(self.geometry)}, {self.array.dtype}>"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.array.shape[0]


@dataclass(frozen=True)
class Terminology:
    """A coded meaning, such as SNOMED CT's: what kind of thing (`category`) and which one (`type`).

    Each code is `(scheme, value, meaning)`, for example `("SCT", "12738006", "Brain")`.
    """

    category: tuple[str, str, str]
    type: tuple[str, str, str]
    modifier: tuple[str, str, str] | None = None

    @property
    def entry(self) -> str:
        """Slicer's text form, the value of a segment's tag `TerminologyEntry`."""
        codes = ["^".join(code) for code in (self.category, self.type, self.modifier or ("", "", ""))]
        return "~".join((TERMINOLOGY_CONTEXT, *codes, ANATOMIC_CONTEXT, "^^", "^^"))

    @classmethod
    def from_entry(cls, text: str) -> Terminology | None:
        """What `entry` says, less its contexts and anatomic region; None where it names no category and type."""
        codes = [tuple(part.split("^")) for part in text.split("~")[1:4]]
        if [len(code) for code in codes] != [3, 3, 3] or not all(any(code) for code in codes[:2]):
            return None
        category, kind, modifier = codes
        return cls(category, kind, modifier if any(modifier) else None)  # type: ignore[arg-type]  # three texts each


@dataclass(frozen=True)
class Segment:
    """One structure of a result: its label value, name, colour (0 to 255) and meaning.

    `layer` says in which of `Labels.array`'s layers it lies; 0 where segments don't overlap.
    """

    value: int
    name: str
    color: tuple[int, int, int]
    terminology: Terminology | None = None
    layer: int = 0

    @property
    def id(self) -> str:
        """The segment's id in a segmentation: `Segment_<value>`."""
        return f"Segment_{self.value}"


SCORE_MAPS = ("uncertainty", "probabilities")
"""The fields of `Labels` that are made of class scores, each only where it is asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """A result on the input's own grid.

    `array` is `(k, j, i)`, uint8 or uint16, where segments share one layer; where they may overlap it is
    `(layers, k, j, i)`. A voxel belongs to a segment where its layer holds the segment's value; 0 is background.
    Where they were asked for, `uncertainty` is `(k, j, i)` float32 from 0 (certain) to 1 (all classes alike), and
    `probabilities` `(classes, k, j, i)` float16, from 0 to 1, as the network gives them: with softmax of the background
    and then of each segment, otherwise of each segment. Whole numbers of another type are made uint8 or uint16.

    Raises
    ------
    InvalidInput : another shape than the grid's, values that are no whole numbers from 0 to 65535, a segment in a layer
        that isn't there.
    """

    array: NDArray
    geometry: Geometry
    segments: tuple[Segment, ...] = ()
    uncertainty: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        _check_grid(self.geometry)
        array = np.asarray(self.array)
        if array.ndim not in (3, 4) or array.shape[-3:] != self.geometry.shape or array.size == 0:
            raise InvalidInput(
                f"the labels have shape {_by(array.shape)} and the grid {_by(self.geometry.shape)}; they must be equal"
            )
        if array.dtype not in (np.uint8, np.uint16):
            array = whole_numbers(array, "the array")
        object.__setattr__(self, "array", array)
        for segment in self.segments:
            if not 0 <= segment.layer < len(self.layers):
                raise InvalidInput(
                    f"{segment.name} lies in layer {segment.layer}; the labels have {len(self.layers)}, counted from 0"
                )

    def __repr__(self) -> str:
        return f"<Labels: {len(self.segments)} segment(s), {_seen(self.geometry)}, {self.array.dtype}>"

    @property
    def layers(self) -> NDArray:
        """`(layers, k, j, i)`, a view of `array`."""
        return self.array.reshape(-1, *self.geometry.shape)

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """`(k, j, i)`, true inside `segment`."""
        return self.layers[segment.layer] == segment.value

    def volumes_ml(self) -> dict[str, float]:
        """Millilitres per segment, by name; segments of one name are told apart by their values."""
        ml = self.geometry.voxel_volume / 1000
        counts = Counter(segment.name for segment in self.segments)

        def title(segment: Segment) -> str:
            if counts[segment.name] == 1:
                return segment.name
            return f"{segment.name} ({segment.value}{f', layer {segment.layer}' if segment.layer else ''})"

        return {title(segment): float(np.count_nonzero(self.mask(segment)) * ml) for segment in self.segments}


def plain_name(value: int) -> str:
    """What a label is called that has no name of its own."""
    return f"Label {value}"


def default_color(value: int) -> tuple[int, int, int]:
    """A colour for a label without one: hues a golden angle apart."""
    hue = 6 * (value * 0.618034 % 1)
    parts = [np.clip(abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    return tuple(round(60 + 180 * float(part)) for part in parts)  # type: ignore[return-value]


def whole_numbers(array: NDArray, what: str) -> NDArray:
    """`array` in the smaller of uint8 and uint16. Raises `InvalidInput`, naming it `what`, where it holds no labels."""
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"{what} holds values of type {array.dtype}; labels are whole numbers")
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InvalidInput(f"{what} holds fractions; a label map has whole numbers, so is this the image itself?")
    if array.min() < 0 or array.max() > MAX_LABEL:
        raise InvalidInput(
            f"{what} holds values from {array.min()} to {array.max()}; labels lie between 0 and {MAX_LABEL}"
        )
    return array.astype(np.uint8 if array.max() < 256 else np.uint16)


def _check_grid(geometry: object) -> None:
    if not isinstance(geometry, Geometry):
        raise InvalidInput(
            f"the geometry is a {type(geometry).__name__}; give a Geometry, such as Geometry(shape, spacing=(3, 1, 1))"
        )


def _seen(geometry: Geometry) -> str:
    return f"{_by(geometry.shape)} voxels of {_by(geometry.spacing)} mm"


def _floats(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} is {values!r}; it must hold {_by(shape)} finite numbers") from None
    if array.shape != shape or not np.isfinite(array).all():
        raise InvalidInput(f"{name} is {array.tolist()}; it must hold {_by(shape)} finite numbers; correct the header")
    return array


def _by(values: Sequence[float] | NDArray) -> str:
    return " x ".join(f"{value:g}" for value in values)
