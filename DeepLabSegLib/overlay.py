"""A picture of a result: three planes through its middle, labels over the scan, and a legend."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.resampling import resample

__all__ = ["render"]

PLANES = (("axial", 0, "RL"), ("coronal", 1, "RL"), ("sagittal", 2, "AP"))
"""Name, axis of the grid that is cut, and the directions at the picture's left and right edge."""
BACKGROUND = (18, 18, 22)
MARGIN = 12


def render(image: Image, labels: Labels, opacity: float = 0.5, height: int = 420) -> Picture.Image:
    """Axial, coronal and sagittal planes as a radiologist looks at them (the patient's right on the left side).

    `height` is that of the planes in pixels; `opacity` that of the labels, 0 to 1.
    """
    step = max(min(image.geometry.spacing), max(n * s for n, s in _extent(image.geometry)) / 512)
    grid = model_grid(image.geometry, "IPL", (step, step, step))
    scan = resample(torch.from_numpy(image.array[:1].astype(np.float32)), image.geometry, grid)[0].numpy()
    low, high = np.percentile(scan, [0.5, 99.5])
    grey = ((scan - low) / max(high - low, 1e-6)).clip(0, 1)
    layers = resample(torch.from_numpy(labels.layers.astype(np.int32)), labels.geometry, grid, "nearest").numpy()
    masks = [layers[segment.layer] == segment.value for segment in labels.segments]
    middle = _middle(masks, grid.shape)
    tiles = []
    for name, axis, sides in PLANES:
        colour = np.repeat(grey.take(middle[axis], axis)[..., None] * 255, 3, axis=-1)
        for mask, segment in zip(masks, labels.segments, strict=True):
            inside = mask.take(middle[axis], axis)
            colour[inside] = (1 - opacity) * colour[inside] + opacity * np.array(segment.color)
        plane = Picture.fromarray(colour.astype(np.uint8))
        plane = plane.resize((max(1, round(plane.width * height / plane.height)), height), Picture.Resampling.LANCZOS)
        tiles.append((name, sides, plane))
    return _compose(tiles, labels)


def _extent(geometry: Geometry) -> zip[tuple[int, float]]:
    return zip(geometry.shape, geometry.spacing, strict=True)


def _middle(masks: list[NDArray], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The voxel in the middle of the labelled box, or of the volume where nothing is labelled."""
    labelled = np.logical_or.reduce(masks) if masks else np.zeros(shape, bool)
    if not labelled.any():
        return tuple(n // 2 for n in shape)
    where = [np.flatnonzero(labelled.any(axis=tuple(n for n in range(3) if n != axis))) for axis in range(3)]
    return tuple(int((w[0] + w[-1]) // 2) for w in where)


def _compose(tiles: list[tuple[str, str, Picture.Image]], labels: Labels) -> Picture.Image:
    font = ImageFont.load_default(15)
    legend_width = 250
    width = sum(plane.width + MARGIN for _, _, plane in tiles) + MARGIN + legend_width
    canvas = Picture.new("RGB", (width, tiles[0][2].height + 2 * MARGIN + 22), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    x = MARGIN
    for name, sides, plane in tiles:
        canvas.paste(plane, (x, MARGIN))
        for side, at in zip(sides, (x + 6, x + plane.width - 16), strict=True):
            draw.text((at, MARGIN + plane.height // 2), side, fill=(225, 225, 228), font=font)
        draw.text((x, MARGIN + plane.height + 4), name, fill=(170, 170, 175), font=font)
        x += plane.width + MARGIN
    for n, (segment, ml) in enumerate(zip(labels.segments, labels.volumes_ml().values(), strict=True)):
        y = MARGIN + 24 * n
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=segment.color)
        draw.text((x + 22, y), f"{segment.name}  {ml:.0f} ml", fill=(225, 225, 228), font=font)
    return canvas
