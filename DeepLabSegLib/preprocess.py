"""From a scan's own grid to the model's, and exactly back.

Voxels move between grids in `resampling`; here is which grid a model works on, and what it is to see in each voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import isfinite
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.resampling import resample

__all__ = [
    "Normalization",
    "Scaling",
    "axis_letters",
    "check_orientation",
    "check_voxels",
    "model_grid",
    "numbers",
    "stack_channels",
]

LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Direction letter -> RAS axis and sign."""

LARGEST_VALUE = float(np.finfo(np.float32).max)
"""The network computes in float32."""


# --- grids -----------------------------------------------------------------------------------------------------------


def check_orientation(letters: str) -> None:
    """Raise `InvalidInput` unless `letters` names one direction of each of the axes R/L, A/P and S/I."""
    valid = isinstance(letters, str) and len(letters) == 3 and all(letter in LETTERS for letter in letters)
    if not valid or len({LETTERS[letter][0] for letter in letters}) != 3:
        raise InvalidInput(
            f"orientation is {letters!r}; give three letters, the directions in which k, j and i grow: "
            "one of R L, one of A P, one of S I, for example 'SAR'"
        )


def axis_letters(geometry: Geometry) -> str:
    """The directions nearest to those in which k, j and i grow, for example 'SAR'."""
    direction = np.abs(np.array(geometry.direction))
    letters = [""] * 3
    for _ in range(3):  # the clearest axis first, so that no letter is given twice
        axis, ras = np.unravel_index(np.argmax(direction), (3, 3))
        sign = 1 if geometry.direction[axis][ras] > 0 else -1
        letters[axis] = next(letter for letter, value in LETTERS.items() if value == (ras, sign))
        direction[axis], direction[:, ras] = -1, -1
    return "".join(letters)


def model_grid(
    source: Geometry, orientation: str | None, spacing: Sequence[float | None], cell: int | Sequence[int] = 1
) -> Geometry:
    """The grid that a model works on: `orientation` and `spacing`, covering `source`.

    `orientation` None keeps the source's own axes; a spacing of None keeps the source's voxel size along the axis
    that comes to lie there. Where voxels keep their size along an axis, they keep their places too. Elsewhere the grid
    consists of whole cells of `cell` voxels, along all axes or each, at fixed places in space, so that a point of the
    body comes to lie at the same place of the network's own grid however the scan was cropped.
    """
    if orientation is None:
        axes = np.array(source.direction)
    else:
        check_orientation(orientation)
        axes = np.zeros((3, 3))
        for row, letter in zip(axes, orientation, strict=True):
            ras, sign = LETTERS[letter]
            row[ras] = sign
    along = np.abs(axes @ np.array(source.direction).T)  # cosines: rows the new axes, columns the source's
    extent = along @ (np.array(source.shape) * source.spacing)
    nearest = [source.spacing[column] for column in along.argmax(axis=1)]
    size = np.array([keep if wanted is None else wanted for wanted, keep in zip(spacing, nearest, strict=True)])
    shape = np.maximum(1, np.ceil(extent / size - 1e-3)).astype(int)
    centre = axes @ (source.affine @ np.array([*(np.array(source.shape) - 1) / 2, 1.0]))[:3]
    first = centre - size * (shape - 1) / 2
    for axis, voxels in enumerate(np.broadcast_to(cell, 3)):
        if spacing[axis] is None or (along[axis].max() > 1 - 1e-6 and abs(size[axis] / nearest[axis] - 1) < 1e-4):
            continue
        pitch = size[axis] * voxels
        low, high = (centre[axis] + side * extent[axis] / 2 for side in (-1, 1))
        low, high = np.floor(low / pitch + 1e-3) * pitch, np.ceil(high / pitch - 1e-3) * pitch
        shape[axis], first[axis] = max(voxels, round((high - low) / size[axis])), low + size[axis] / 2
    return Geometry(tuple(shape), tuple(size), tuple(axes.T @ first), tuple(map(tuple, axes)))


def stack_channels(images: Sequence[Image]) -> Image:
    """The channels of all `images` on the grid of the first, `(sum of C, k, j, i)`.

    Images on another grid are resampled in physical space, linearly; where they don't reach, a channel has its minimum.

    Raises `InvalidInput` where one lies wholly elsewhere than the first, or is constant there.
    """
    first, *others = images
    if not others:
        return first
    arrays = [first.array]
    for number, image in enumerate(others, 2):
        if image.geometry.is_close(first.geometry):
            arrays.append(image.array)
        elif not _meet(image.geometry, first.geometry):
            raise InvalidInput(
                f"image {number} lies wholly beside the first: its centre is at {_centre(image.geometry)} mm in RAS, "
                f"the first's at {_centre(first.geometry)}; give images of one patient, registered to each other"
            )
        else:
            values = torch.from_numpy(image.array.astype(np.float32))
            arrays.append(resample(values, image.geometry, first.geometry).numpy())
    for number, array in enumerate(arrays, 1):
        if _is_constant(array):
            raise InvalidInput(
                f"image {number} is constant ({array[0, 0, 0, 0]} in every voxel of the first's grid), so it tells "
                "nothing; give another, or another model"
            )
    return Image(np.concatenate(arrays), first.geometry)


def _meet(one: Geometry, other: Geometry) -> bool:
    """Whether the box of `one` reaches that of `other`, seen along the axes of `other`."""
    corners = np.array(list(product(*((-0.5, size - 0.5) for size in one.shape))))
    places = (np.c_[corners, np.ones(8)] @ (np.linalg.inv(other.affine) @ one.affine).T)[:, :3]
    return bool((places.max(axis=0) > -0.5).all() and (places.min(axis=0) < np.array(other.shape) - 0.5).all())


def _centre(geometry: Geometry) -> str:
    place = geometry.affine @ [*(np.array(geometry.shape) - 1) / 2, 1.0]
    return ", ".join(f"{part:.0f}" for part in place[:3])


# --- voxel values ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalization:
    """How voxel values become the network's input, per channel and over the whole scan.

    `percentile` takes the `lower` and `upper` percentile (0 to 100) to 0 and 1, clipped; `window` does so with the
    values `lower` and `upper` themselves; `zscore` subtracts the mean and divides by the standard deviation; `none`
    leaves values alone. `mean` and `std`, a number per channel, are applied last where given.
    """

    method: Literal["percentile", "window", "zscore", "none"] = "zscore"
    lower: float | None = None
    upper: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        bounded = self.method in ("percentile", "window")
        if self.method not in ("percentile", "window", "zscore", "none"):
            raise InvalidInput(f"normalization method is {self.method!r}; choose percentile, window, zscore or none")
        if bounded and (self.lower is None or self.upper is None or not self.lower < self.upper):
            raise InvalidInput(f"{self.method} bounds are {self.lower}, {self.upper}; give lower < upper")
        if self.method == "percentile" and not 0 <= float(self.lower or 0) < float(self.upper or 0) <= 100:
            raise InvalidInput(f"percentiles are {self.lower}, {self.upper}; they must lie in 0 to 100")
        if not all(bound is None or isfinite(bound) for bound in (self.lower, self.upper)):
            raise InvalidInput(f"{self.method} bounds are {self.lower}, {self.upper}; they must be finite")
        mean, std = self.mean or (), self.std or ()
        together = (self.mean is None) == (self.std is None) and len(mean) == len(std)
        if not together or not all(map(isfinite, (*mean, *std))) or min(std, default=1) <= 0:
            raise InvalidInput(
                f"mean is {self.mean} and std {self.std}; give both, a finite number per channel each, std positive"
            )

    def measure(self, array: NDArray) -> Scaling:
        """What the whole scan `(C, *S)`, of any number type, says of its values.

        Nothing of its size is copied, but a channel for percentiles of numbers beyond 16 bits.
        """
        channels = len(array)
        if self.method == "zscore":
            moments = [_mean_and_deviation(channel) for channel in array]
            low, span = [mean for mean, _ in moments], [deviation or 1.0 for _, deviation in moments]
        elif self.method == "none":
            low, span = [0.0] * channels, [1.0] * channels
        else:
            bounds = [(float(self.lower or 0), float(self.upper or 0))] * channels
            if self.method == "percentile":
                bounds = [_percentiles(channel, *bounds[0]) for channel in array]
            low, span = [a for a, _ in bounds], [b - a or 1.0 for a, b in bounds]
        clipped = self.method in ("percentile", "window")
        mean, std = self.mean or (0.0,) * channels, self.std or (1.0,) * channels
        return Scaling(tuple(low), tuple(span), clipped, tuple(mean), tuple(std))

    def __call__(self, x: Tensor) -> Tensor:
        """`(C, *S)` float -> the same shape."""
        return self.measure(x.numpy())(x)


@dataclass(frozen=True)
class Scaling:
    """A `Normalization` of one scan, ready for any part of it: a number per channel each."""

    low: tuple[float, ...]
    span: tuple[float, ...]
    clipped: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """`(C, *S)` of any number type -> float32 of the same shape."""
        x = x.float()
        if self.clipped or any(self.low) or set(self.span) != {1.0}:
            x = (x - _column(self.low, x)).div_(_column(self.span, x))
        if self.clipped:
            x.clamp_(0, 1)
        if any(self.mean) or set(self.std) != {1.0}:
            x = (x - _column(self.mean, x)).div_(_column(self.std, x))
        return x


@lru_cache(maxsize=64)
def numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` in float32 on `device`, sent once: a GPU would have to wait for them each time."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return numbers(values, like.device).view(-1, *[1] * (like.ndim - 1))


def _chunks(channel: NDArray) -> Iterator[NDArray]:
    """The values in pieces of at most about a million, wherever they lie in memory."""
    rows = max(1, 2**20 // max(1, channel[0].size)) if channel.ndim > 1 else 2**20
    for start in range(0, len(channel), rows):
        yield channel[start : start + rows]


def _mean_and_deviation(channel: NDArray) -> tuple[float, float]:
    """Mean and standard deviation (of a sample, so divided by n - 1)."""
    mean = sum(float(piece.sum(dtype=np.float64)) for piece in _chunks(channel)) / channel.size
    # In float64: numbers of half precision, less their mean, overflow in their own.
    away = (np.subtract(piece, mean, dtype=np.float64) for piece in _chunks(channel))
    squares = sum(float(np.vdot(piece, piece)) for piece in away)
    return mean, float(np.sqrt(squares / max(1, channel.size - 1)))


def _percentiles(channel: NDArray, lower: float, upper: float) -> tuple[float, float]:
    """`numpy.percentile` of the values as float32; whole numbers of up to 16 bits are counted, not sorted."""
    if channel.dtype.kind in "iu" and channel.dtype.itemsize <= 2:
        least = int(np.iinfo(channel.dtype).min)
        counts = sum(
            np.bincount(piece.ravel().astype(np.int64) - least, minlength=2 ** (8 * channel.dtype.itemsize))
            for piece in _chunks(channel)
        )
        below = np.cumsum(counts)

        def at(percent: float) -> float:
            place = percent / 100 * (channel.size - 1)
            ends = np.searchsorted(below, [np.floor(place), np.ceil(place)], side="right") + least
            return float(ends[0] + (ends[1] - ends[0]) * (place - np.floor(place)))

        return at(lower), at(upper)
    found = np.percentile(channel.astype(np.float32), [lower, upper], overwrite_input=True)
    return float(found[0]), float(found[1])


def check_voxels(image: Image) -> None:
    """Raise `InvalidInput` for voxels that are NaN or too large for float32, or an image that is constant.

    A channel may be constant where another isn't, as in a picture of one colour.
    """
    array = image.array
    if array.dtype.kind == "f":
        largest = min(LARGEST_VALUE, float(np.finfo(array.dtype).max))
        good = int(np.count_nonzero((array >= -largest) & (array <= largest)))
        if good < array.size:
            raise InvalidInput(
                f"{array.size - good} of {array.size} voxels are NaN, infinite or beyond {LARGEST_VALUE:.2g}; replace "
                "them, by 0 for example"
            )
    if _is_constant(array):
        channels = "channel 0 is" if image.channels == 1 else "all channels are"
        values = ", ".join(map(str, array[:, 0, 0, 0]))
        raise InvalidInput(f"{channels} constant ({values} in every voxel), so there is nothing to segment")


def _is_constant(array: NDArray) -> bool:
    """Whether each channel of `(C, k, j, i)` has one value throughout, which the first planes settle."""
    return all((plane == channel[0, 0, 0]).all() for channel in array for plane in channel)
