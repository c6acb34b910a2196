"""Pictures: three planes of a result over the scan; where a segmentation and its reference disagree most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from DeepLabSegLib.evaluate import Group, Scores, mask_of
from DeepLabSegLib.image import Geometry, Image, Labels, default_color
from DeepLabSegLib.preprocess import LETTERS, axis_letters, model_grid
from DeepLabSegLib.resampling import Box, resample

__all__ = ["render", "render_comparison"]

Color = tuple[int, int, int]

Legend = list[tuple[Color | None, str]]
"""Rows, each with the colour that it explains, if any."""

PLANES = (("axial", 0, "RL"), ("coronal", 1, "RL"), ("sagittal", 2, "AP"))
"""Name, axis of the grid that is cut, and the directions at the picture's left and right edge."""
BACKGROUND = (18, 18, 22)
WHITE = (225, 225, 228)
GREY = (170, 170, 175)
MARGIN = 12
PREDICTION_COLOR, REFERENCE_COLOR = (255, 140, 40), (70, 190, 255)
"""Orange and blue, which colour-blind people tell apart."""
LEGEND_ROWS = 18


def render(image: Image, labels: Labels, height: int = 420) -> Picture.Image:
    """Axial, coronal and sagittal planes as a radiologist looks at them (the patient's right on the left side).

    `height` is that of the planes in pixels.
    """
    longest = max(n * mm for n, mm in zip(image.geometry.shape, image.geometry.spacing, strict=True))
    step = max(min(image.geometry.spacing), longest / 512)
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
            colour[inside] = 0.5 * colour[inside] + 0.5 * np.array(segment.color)
        plane = Picture.fromarray(colour.astype(np.uint8))
        plane = plane.resize((max(1, round(plane.width * height / plane.height)), height), Picture.Resampling.LANCZOS)
        tiles.append((name, sides, plane))
    return _compose(tiles, labels)


def render_comparison(
    prediction: Labels,
    reference: Labels,
    groups: Mapping[str, Group],
    scores: Mapping[str, Scores],
    image: Image | None = None,
    title: str = "",
    side: int = 480,
) -> Picture.Image:
    """The slice in which prediction and reference disagree most, on their common grid, cut to what is there to see.

    One group: the scan, and beside it both outlines, with what only one side has tinted in its colour. Several groups:
    the prediction's and the reference's labels beside each other, and a legend with each group's Dice, lowest first.
    `scores` are those of `evaluate.compare`. The longer side of a panel is `side` pixels; `image` may lie on any grid.
    """
    cut = _Cut(prediction, reference, groups, side)
    grey = cut.grey(image)
    ours, theirs = cut.labels(prediction), cut.labels(reference)
    shown = {
        name: (cut.mask(mask_of(ours, group.prediction)), cut.mask(mask_of(theirs, group.reference)))
        for name, group in groups.items()
    }
    if len(groups) == 1:
        ((name, masks),) = shown.items()
        tiles = [("both outlines", _outlined(grey, *masks))]
        if image is not None:
            tiles.insert(0, ("scan", grey))
        legend = [(PREDICTION_COLOR, "prediction"), (REFERENCE_COLOR, "reference"), *_figures(scores[name])]
    else:
        colors = _colors(prediction, groups)
        tiles = [(caption, _painted(grey, {name: pair[n] for name, pair in shown.items()}, colors))
                 for n, caption in enumerate(("prediction", "reference"))]  # fmt: skip
        legend = _dice_legend(scores, colors)
    return _compose_comparison(title or ", ".join(groups), tiles, cut, legend)


class _Cut:
    """The slice with most disagreement, as a radiologist looks at it, cut to a box around what is labelled there."""

    def __init__(self, prediction: Labels, reference: Labels, groups: Mapping[str, Group], side: int) -> None:
        self.geometry = geometry = prediction.geometry
        apart, labelled = np.zeros(geometry.shape, bool), np.zeros(geometry.shape, bool)
        for group in groups.values():
            ours, theirs = mask_of(prediction, group.prediction), mask_of(reference, group.reference)
            apart |= ours != theirs
            labelled |= ours | theirs
        self.axis, self.index = _most(apart if apart.any() else labelled, geometry)
        rows, columns = (n for n in range(3) if n != self.axis)
        letters = axis_letters(geometry)
        self.turned = "IPL".find(_downwards(letters[rows])) > "IPL".find(_downwards(letters[columns]))
        if self.turned:
            rows, columns = columns, rows
        self.flips = tuple(n for n, axis in enumerate((rows, columns)) if letters[axis] not in "IPL")
        whole = [slice(0, n) for n in geometry.shape]
        whole[self.axis] = slice(self.index, self.index + 1)
        self.slice: Box = (whole[0], whole[1], whole[2])
        # The directions at the picture's left and right edge.
        self.sides = {"L": "RL", "P": "AP", "I": "SI"}[_downwards(letters[columns])]
        self.spacing = geometry.spacing[rows], geometry.spacing[columns]
        self.box = self._box(self._plane(labelled[self.slice]))
        size = [(s.stop - s.start) * mm for s, mm in zip(self.box, self.spacing, strict=True)]
        self.pixels = [max(1, round(side * mm / max(size))) for mm in size]

    @property
    def name(self) -> str:
        """The plane and where it lies, for example "coronal, A 12.5 mm"; nothing for a picture."""
        if min(self.geometry.shape) == 1:
            return ""
        ras = LETTERS[axis_letters(self.geometry)[self.axis]][0]
        centre = (np.array(self.geometry.shape) - 1) / 2
        centre[self.axis] = self.index
        at = float((self.geometry.affine @ [*centre, 1.0])[ras])
        return f"{('sagittal', 'coronal', 'axial')[ras]}, {('LR', 'PA', 'IS')[ras][at >= 0]} {abs(at):.1f} mm"

    def labels(self, labels: Labels) -> Labels:
        """The slice of labels on the grid."""
        return Labels(labels.layers[(slice(None), *self.slice)], self.geometry.part(self.slice), labels.segments)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask on the slice, `(rows, columns)` in pixels."""
        plane = self._plane(mask)[self.box]
        resized = Picture.fromarray(plane.astype(np.uint8)).resize(self.pixels[::-1], Picture.Resampling.NEAREST)
        return np.asarray(resized) > 0

    def grey(self, image: Image | None) -> NDArray[np.float64]:
        """The slice of a scan on any grid, `(rows, columns, 3)` in pixels, 0 to 255; nearly black without one."""
        if image is None:
            return np.full((*self.pixels, 3), 40.0)
        values = torch.from_numpy(image.array.astype(np.float32).mean(axis=0, keepdims=True))
        found = resample(values, image.geometry, self.geometry.part(self.slice))[0].numpy()
        plane = np.nan_to_num(self._plane(found)[self.box])
        low, high = np.percentile(plane, [0.5, 99.5])
        scaled = Picture.fromarray(((plane - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32) * 255)
        resized = np.asarray(scaled.resize(self.pixels[::-1], Picture.Resampling.BICUBIC), dtype=np.float64)
        return np.repeat(resized.clip(0, 255)[..., None], 3, axis=-1)

    def _plane(self, volume: NDArray) -> NDArray:
        """`(k, j, i)` of the slice as rows, growing downwards in the picture, and columns, growing to the right."""
        plane = np.squeeze(volume, self.axis)
        return np.flip(plane.T if self.turned else plane, self.flips)

    def _box(self, labelled: NDArray[np.bool_]) -> tuple[slice, slice]:
        """Around what is labelled, with a margin, and not less than a third of the slice."""
        if not labelled.any():
            return slice(0, labelled.shape[0]), slice(0, labelled.shape[1])
        extent = max(n * mm for n, mm in zip(labelled.shape, self.spacing, strict=True))
        sides = []
        for axis, mm in enumerate(self.spacing):
            where = np.flatnonzero(labelled.any(axis=1 - axis))
            length = max(1.3 * (where[-1] - where[0] + 1) * mm, extent / 3)
            middle, half = (where[0] + where[-1] + 1) / 2, length / mm / 2
            sides.append(slice(max(0, math.floor(middle - half)), min(labelled.shape[axis], math.ceil(middle + half))))
        return sides[0], sides[1]


def _downwards(letter: str) -> str:
    """Of a direction and its opposite the one in which a picture's rows or columns grow."""
    return {"S": "I", "A": "P", "R": "L"}.get(letter, letter)


def _most(mask: NDArray[np.bool_], geometry: Geometry) -> tuple[int, int]:
    """Axis and index of the slice with the largest area of `mask`, among planes whose pixels are about square."""
    planes = {axis: [n for n in range(3) if n != axis] for axis in range(3)}
    axes = [axis for axis in planes if min(geometry.shape[n] for n in planes[axis]) > 1] or list(planes)
    sides = {axis: sorted(geometry.spacing[n] for n in planes[axis]) for axis in axes}
    axes = [axis for axis in axes if sides[axis][1] <= 2 * sides[axis][0]] or axes
    areas = {axis: np.count_nonzero(mask, axis=tuple(planes[axis])) * math.prod(sides[axis]) for axis in axes}
    axis = max(axes, key=lambda axis: areas[axis].max())
    return axis, int(areas[axis].argmax())


def _outlined(grey: NDArray, ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> NDArray:
    """Both outlines, the prediction's inside its border and the reference's outside, so that both are seen."""
    picture = grey.copy()
    for only, color in ((ours & ~theirs, PREDICTION_COLOR), (theirs & ~ours, REFERENCE_COLOR)):
        picture[only] = 0.7 * picture[only] + 0.3 * np.array(color)
    picture[ndimage.binary_dilation(theirs, iterations=2) & ~theirs] = REFERENCE_COLOR
    picture[ours & ~ndimage.binary_erosion(ours, iterations=2)] = PREDICTION_COLOR
    return picture


def _painted(grey: NDArray, masks: Mapping[str, NDArray[np.bool_]], colors: Mapping[str, Color]) -> NDArray:
    """Groups over the scan, the smaller over the larger, since one may hold others."""
    picture = grey.copy()
    for name in sorted(masks, key=lambda name: -np.count_nonzero(masks[name])):
        picture[masks[name]] = 0.5 * grey[masks[name]] + 0.5 * np.array(colors[name])
    return picture


def _colors(labels: Labels, groups: Mapping[str, Group]) -> dict[str, Color]:
    """A group has its segment's colour; one of several another that no group has, one of all labels white."""
    own = {key: segment.color for segment in labels.segments for key in (segment.value, segment.name)}
    colors = {}
    for n, (name, group) in enumerate(groups.items()):
        if group.prediction is None:
            colors[name] = WHITE
        else:
            known = own.get(group.prediction[0]) if len(group.prediction) == 1 else None
            colors[name] = known or default_color(100 + n)
    return colors


def _figures(scores: Scores) -> Legend:
    rows = [f"Dice {scores.dice:.3f}"]
    if not math.isnan(scores.hausdorff95):
        rows.append(f"HD95 {scores.hausdorff95:.1f} mm")
    rows.append(f"{scores.volume:.1f} ml, reference {scores.reference_volume:.1f} ml")
    return [(None, row) for row in rows]


def _dice_legend(scores: Mapping[str, Scores], colors: Mapping[str, Color]) -> Legend:
    names = sorted((name for name in colors if not math.isnan(scores[name].dice)), key=lambda name: scores[name].dice)
    rows: Legend = [(colors[name], f"{scores[name].dice:.3f}  {name}") for name in names[:LEGEND_ROWS]]
    if len(names) > LEGEND_ROWS:
        rows.append((None, f"and {len(names) - LEGEND_ROWS} with a higher Dice"))
    mean = sum(scores[name].dice for name in names) / max(1, len(names))
    return [(None, f"Dice, mean {mean:.3f}"), *rows]


def _compose_comparison(title: str, tiles: Sequence[tuple[str, NDArray]], cut: _Cut, legend: Legend) -> Picture.Image:
    font, top = ImageFont.load_default(15), MARGIN + 30
    rows, columns = cut.pixels
    legend_width = 26 + math.ceil(max(font.getlength(text) for _, text in legend)) + MARGIN
    left = MARGIN + len(tiles) * (columns + MARGIN)
    heading = ImageFont.load_default(18)
    width = max(left + legend_width, math.ceil(heading.getlength(title)) + 2 * MARGIN)
    canvas = Picture.new("RGB", (width, top + max(rows, 24 * len(legend)) + 22 + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 2), title, fill=WHITE, font=heading)
    for n, (caption, colour) in enumerate(tiles):
        x = MARGIN + n * (columns + MARGIN)
        canvas.paste(Picture.fromarray(colour.clip(0, 255).astype(np.uint8)), (x, top))
        text = f"{caption}: {cut.name}" if cut.name else caption
        draw.text((x, top + rows + 4), text, fill=GREY, font=font)
        if cut.name:
            for letter, at in zip(cut.sides, (x + 6, x + columns - 16), strict=True):
                draw.text((at, top + rows // 2 - 8), letter, WHITE, font, stroke_width=2, stroke_fill=BACKGROUND)
    for n, (color, text) in enumerate(legend):
        y = top + 24 * n
        if color is not None:
            draw.rectangle((left, y + 2, left + 14, y + 16), fill=color)
        draw.text((left + 22 if color is not None else left, y), text, fill=WHITE, font=font)
    return canvas


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
            draw.text((at, MARGIN + plane.height // 2), side, fill=WHITE, font=font)
        draw.text((x, MARGIN + plane.height + 4), name, fill=GREY, font=font)
        x += plane.width + MARGIN
    for n, (segment, ml) in enumerate(zip(labels.segments, labels.volumes_ml().values(), strict=True)):
        y = MARGIN + 24 * n
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=segment.color)
        draw.text((x + 22, y), f"{segment.name}  {ml:.0f} ml", fill=WHITE, font=font)
    return canvas
