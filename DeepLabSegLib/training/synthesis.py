"""Training images made from label maps alone.

Domain randomisation as in SynthSeg (Billot et al., Medical Image Analysis 2023): a random grey value per structure,
random pose and deformation, bias field, resolution, blur and noise. A network that has only seen these works on real
scans whose contrast it was never shown. One code for slices and volumes: a slice is a volume of one plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.resampling import resample

__all__ = ["LabelMap", "SynthesisSpec", "read_label_map", "synthesize"]


@dataclass(frozen=True)
class LabelMap:
    """A label map ready for synthesis.

    Attributes
    ----------
    structures : `(k, j, i)` uint8, an index into `values` per voxel, in the model's orientation.
    values : the label values that occur, ascending.
    spacing : mm per voxel along (k, j, i).
    centre_range : first and last plane along k that hold a labelled class; slices are drawn from these.
    """

    structures: NDArray[np.uint8]
    values: tuple[int, ...]
    spacing: tuple[float, float, float]
    centre_range: tuple[int, int]


def read_label_map(path: str | Path, orientation: str, classes: Mapping[int, int]) -> LabelMap:
    """Read a label map into the model's `orientation` (k, j, i letters); `classes` maps label value to class index."""
    image = read_image(path)
    grid = model_grid(image.geometry, orientation, (None, None, None))
    array = resample(torch.from_numpy(image.array.astype(np.int32)), image.geometry, grid, "nearest")[0].numpy()
    values, structures = np.unique(array, return_inverse=True)
    if len(values) > 256:
        raise InvalidInput(f"{path} holds {len(values)} different values; a label map of at most 256 is needed")
    labelled = np.flatnonzero(np.isin(array, [value for value, target in classes.items() if target]).any(axis=(1, 2)))
    if not len(labelled):
        raise InvalidInput(f"{path} holds none of the labels {sorted(classes)}; check that it belongs to this model")
    return LabelMap(
        structures.reshape(array.shape).astype(np.uint8),
        tuple(int(value) for value in values),
        grid.spacing,
        (int(labelled[0]), int(labelled[-1])),
    )


@dataclass(frozen=True)
class SynthesisSpec:
    """How far the random draws go; a range is drawn from evenly, a single number is a standard deviation.

    Angles are in degrees, lengths in mm, grey values relative to the range 0 to 1.
    """

    rotation: float = 12.0
    scale: float = 0.10
    shift: float = 12.0
    elastic: float = 3.0
    elastic_spacing: float = 40.0
    resolution: tuple[float, float] = (0.8, 2.2)
    thickness: tuple[float, float] = (1.0, 3.0)
    bias: float = 0.35
    noise: float = 0.04
    gamma: float = 0.25
    background_dark: float = 0.8
    prior_share: float = 0.7


def synthesize(
    label_map: LabelMap,
    classes: Mapping[int, int],
    size: Sequence[int],
    spacing: Sequence[float],
    rng: np.random.Generator,
    spec: SynthesisSpec,
    prior: Mapping[int, tuple[float, float]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One training pair: an image `(1, *size)`, about 0 to 1, and its class indices `(*size)`.

    Parameters
    ----------
    classes : label value -> class index; values not listed are background, class 0.
    size, spacing : voxels and mm per voxel of the pair, two numbers for a slice (along j, i) or three.
    prior : class index -> range of mean grey values, used for `spec.prior_share` of the images so that a contrast
        that is known to be common is met often; the others draw every structure's grey value at random.
    """
    flat = len(size) == 2
    shape = np.array((1, *size) if flat else size)
    step = np.array((1.0, *spacing) if flat else spacing)
    # A thick slice averages what lies within it, so its planes are drawn 1 mm apart and averaged.
    planes = int(np.rint(rng.uniform(*spec.thickness))) if flat else 1
    points = _points(label_map, (planes, *shape[1:]) if flat else tuple(shape), step, rng, spec)
    structures = ndimage.map_coordinates(label_map.structures, points, order=0, mode="constant", cval=0)
    lookup = np.array([classes.get(value, 0) for value in label_map.values])

    grey = _grey_values(label_map.values, lookup, rng, spec, prior)
    deviation = rng.uniform(0, 0.06, len(label_map.values))
    image = grey[structures] + deviation[structures] * rng.standard_normal(structures.shape, dtype=np.float32)
    image = image.mean(axis=0, keepdims=True) if flat else image
    target = lookup[structures[planes // 2 : planes // 2 + 1]] if flat else lookup[structures]

    image = _acquire(image.astype(np.float32), step, flat, rng, spec)
    if flat:
        image, target = image[0], target[0]
    return image[None].astype(np.float32), target.astype(np.int64)


def _points(
    label_map: LabelMap, shape: tuple[int, ...], step: NDArray, rng: np.random.Generator, spec: SynthesisSpec
) -> NDArray:
    """Where each voxel of the pair lies in the label map: `(3, *shape)`, in voxels of the map."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, step, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    angles = np.radians(rng.normal(0, spec.rotation, 3).clip(-2.5 * spec.rotation, 2.5 * spec.rotation))
    matrix = _rotation(angles) * np.exp(rng.normal(0, spec.scale, 3).clip(-0.25, 0.25))
    moved = np.tensordot(matrix, offsets, axes=1)
    knots = [max(2, int(np.ceil(n * s / spec.elastic_spacing)) + 1) for n, s in zip(shape, step, strict=True)]
    field = torch.from_numpy(rng.normal(0, spec.elastic, (1, 3, *knots)).astype(np.float32))
    moved = moved + F.interpolate(field, size=shape, mode="trilinear", align_corners=True)[0].numpy()

    size = np.array(label_map.structures.shape)
    centre = (size - 1) / 2 + rng.normal(0, spec.shift, 3) / label_map.spacing
    if shape[0] * step[0] < 0.5 * size[0] * label_map.spacing[0]:  # a slice or thin slab: from anywhere in the head
        first, last = label_map.centre_range
        centre[0] = rng.uniform(first - 10, last + 10)
    return moved / np.array(label_map.spacing)[:, None, None, None] + centre[:, None, None, None]


def _rotation(angles: NDArray) -> NDArray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _grey_values(
    values: Sequence[int],
    lookup: NDArray,
    rng: np.random.Generator,
    spec: SynthesisSpec,
    prior: Mapping[int, tuple[float, float]],
) -> NDArray[np.float32]:
    """A mean grey value per structure."""
    grey = rng.uniform(0, 1, len(values))
    if rng.random() < spec.prior_share:
        class_grey = {target: rng.uniform(*bounds) for target, bounds in prior.items()}
        for n, target in enumerate(lookup):
            if target in class_grey:
                grey[n] = class_grey[target] + rng.normal(0, 0.03)
    if values[0] == 0 and rng.random() < spec.background_dark:
        grey[0] = rng.uniform(0, 0.08)
    return grey.clip(0, None).astype(np.float32)


def _acquire(
    image: NDArray[np.float32], step: NDArray, flat: bool, rng: np.random.Generator, spec: SynthesisSpec
) -> NDArray[np.float32]:
    """What a scanner adds to `(k, j, i)`: bias field, limited resolution, noise; then the way to 0 to 1."""
    field = torch.from_numpy(rng.normal(0, rng.uniform(0, spec.bias), (1, 1, 4, 4, 4)).astype(np.float32))
    field = F.interpolate(field, size=(4 if flat else image.shape[0], *image.shape[1:]), mode="trilinear")[0, 0]
    image = image * np.exp(field[: image.shape[0]].numpy())

    resolution = rng.uniform(*spec.resolution, 3)
    sigma = [0.0 if flat and n == 0 else 0.4 * r / s for n, (r, s) in enumerate(zip(resolution, step, strict=True))]
    image = ndimage.gaussian_filter(image, sigma)
    low = [1 if flat and n == 0 else max(8, round(size * s / max(r, s)))
           for n, (size, s, r) in enumerate(zip(image.shape, step, resolution, strict=True))]  # fmt: skip
    coarse = F.interpolate(torch.from_numpy(image)[None, None], size=low, mode="trilinear")
    noise = rng.uniform(0, spec.noise)
    coarse += noise * torch.from_numpy(rng.standard_normal(coarse.shape, dtype=np.float32))
    image = F.interpolate(coarse.abs_(), size=image.shape, mode="trilinear")[0, 0].numpy()

    # A scan is stretched by its own percentiles; a slice that holds only air stays dark in it.
    low_value, high_value = np.percentile(image, [0.5, 99.5])
    image = ((image - low_value) / max(high_value - low_value, 0.5)).clip(0, 1)
    return (image ** np.exp(rng.normal(0, spec.gamma)) * rng.uniform(0.6, 1.1)).clip(0, 1)
