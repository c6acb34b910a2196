"""A box in space, such as a region of interest, and what of an image lies in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import AXIS_ALIGNED, Geometry, Image

__all__ = ["Region", "crop"]


@dataclass(frozen=True)
class Region:
    """A box, which may be turned: `center` in RAS mm, `size` in mm along the rows of `axes`, which are directions.

    Without `axes` these are z, y and x. Raises `InvalidInput` for a side of no length, or axes in one plane.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], ...] = AXIS_ALIGNED

    def __post_init__(self) -> None:
        try:
            center, size, axes = (np.array(part, np.float64) for part in (self.center, self.size, self.axes))
        except (TypeError, ValueError):
            center = size = axes = np.empty(0)
        shapes = center.shape, size.shape, axes.shape
        if shapes != ((3,), (3,), (3, 3)) or not all(np.isfinite(part).all() for part in (center, size, axes)):
            raise InvalidInput(f"{self} is no region; its centre, size and axes must be 3, 3 and 3 x 3 finite numbers")
        object.__setattr__(self, "center", tuple(center.tolist()))  # equal regions are written alike
        object.__setattr__(self, "size", tuple(size.tolist()))
        object.__setattr__(self, "axes", tuple(map(tuple, axes.tolist())))
        if min(self.size) <= 0:
            sizes = " x ".join(f"{size:g}" for size in self.size)
            raise InvalidInput(f"the region measures {sizes} mm; each side must be longer than 0")
        if not axes.any(axis=1).all() or abs(np.linalg.det(self._directions)) < 1e-6:
            raise InvalidInput(f"the region's axes {self.axes} don't span a box; two of them coincide")

    def box(self, geometry: Geometry, margin: Sequence[float] = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """The smallest block of voxels, along (k, j, i), around the region and `margin` mm along each of these axes.

        Raises `InvalidInput` where no voxel's centre lies in the region.
        """
        if not any(plane.any() for plane in self._planes(geometry, *self._block(geometry, (0, 0, 0)))):
            raise InvalidInput(
                "no voxel of the volume lies in the region of interest; move it onto the volume, or make it larger"
            )
        lower, upper = self._block(geometry, np.array(margin) / geometry.spacing)
        return tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))  # type: ignore[return-value]

    def clear_outside(self, labels: NDArray, geometry: Geometry) -> None:
        """Set to 0, in place, the voxels of `(..., k, j, i)` whose centres lie outside the region."""
        for k, inside in enumerate(self._planes(geometry, [0, 0, 0], list(geometry.shape))):
            labels[..., k, :, :] *= inside

    def _block(self, geometry: Geometry, margin: Sequence[float] | NDArray) -> tuple[list[int], list[int]]:
        """First and last-plus-one indices around the corners, widened by `margin` voxels, inside the grid."""
        signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
        corners = np.array(self.center) + (signs * np.array(self.size) / 2) @ self._directions
        index = (np.c_[corners, np.ones(8)] @ np.linalg.inv(geometry.affine).T)[:, :3]
        lower = np.clip(np.ceil(index.min(axis=0) - margin - 1e-6), 0, geometry.shape).astype(int)
        upper = np.clip(np.floor(index.max(axis=0) + margin + 1e-6) + 1, 0, geometry.shape).astype(int)
        return lower.tolist(), upper.tolist()

    def _planes(self, geometry: Geometry, lower: list[int], upper: list[int]) -> Iterator[NDArray[np.bool_]]:
        """For each plane k of the block, `(j, i)`: whether the voxel's centre lies in the region."""
        to_box = np.linalg.inv(self._directions.T) @ geometry.affine[:3]
        offset = np.linalg.inv(self._directions.T) @ np.array(self.center)
        half = np.array(self.size) / 2 + 1e-6
        j = np.arange(lower[1], upper[1])[:, None]
        i = np.arange(lower[2], upper[2])[None]
        for k in range(lower[0], upper[0]):
            yield np.logical_and.reduce(
                [np.abs(row @ (k, 0, 0, 1) + row[1] * j + row[2] * i - at) <= limit
                 for row, at, limit in zip(to_box, offset, half, strict=True)]
            )  # fmt: skip

    @property
    def _directions(self) -> NDArray[np.float64]:
        axes = np.array(self.axes)
        return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def crop(image: Image, box: tuple[slice, slice, slice]) -> Image:
    """The voxels of `image` in `box`, a view, at their places in space."""
    return Image(image.array[(slice(None), *box)], image.geometry.part(box))
