"""Training images made from label maps alone.

Domain randomisation as in SynthSeg (Billot et al., Medical Image Analysis 2023): a random grey value per tissue, random
pose and deformation, bias field, resolution, blur and noise. A network that has only seen these works on real scans
whose contrast it was never shown. One code for slices and volumes: a slice is a volume of one plane. All of it is torch
and runs where the label map's tensor lies, without ever waiting for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.training.deformation import Deformation, sample_nearest
from DeepLabSegLib.training.draw import Draw, blur, sent

__all__ = ["Contrast", "LabelMap", "SynthesisSpec", "synthesize"]


@dataclass(frozen=True)
class LabelMap:
    """A label map ready for synthesis.

    Attributes
    ----------
    structures : `(k, j, i)` uint8, an index into `classes` and `tissues` per voxel, in the model's orientation; 0 is
        what surrounds the map. On the device where images are to be made; all else stays on the CPU.
    classes : class index per structure.
    tissues : tissue per structure; structures of one tissue look alike, such as left and right.
    spacing : mm per voxel along (k, j, i).
    focus : first and last voxel along (k, j, i) that hold a labelled class; images are centred well between these.
    """

    structures: Tensor
    classes: Tensor
    tissues: Tensor
    spacing: tuple[float, float, float]
    focus: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Contrast:
    """A common contrast, which `share` of the images have; `greys` are class index -> range of its mean grey value."""

    share: float
    greys: Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class SynthesisSpec:
    """How far the random draws go; a pair is a range drawn from evenly, a single number a standard deviation or share.

    Angles are in degrees, lengths in mm, grey values relative to the range 0 to 1. `thick_share` of the images have
    slices of `thickness` along one axis, each of `mirror_axes` is turned round in half of them, `dark_share` have a
    dark surrounding, and `anywhere_share` are centred anywhere in the map, not only in its focus. In `spread_share` of
    them some tissues have grown into the others by up to `spread`: a network is to follow the image where a head's
    structures are thicker or thinner than those of the maps. Classes that are `fading` have within a `rim` of others a
    grey value up to `fade` of the way to theirs.
    """

    rotation: float = 15.0
    scale: float = 0.12
    elastic: float = 4.0
    elastic_spacing: float = 32.0
    mirror_axes: tuple[int, ...] = ()
    spread: float = 1.2
    spread_share: float = 0.5
    fading: tuple[int, ...] = ()
    rim: tuple[float, float] = (0.5, 1.2)
    fade: float = 0.6
    texture: float = 0.06
    resolution: tuple[float, float] = (0.8, 2.2)
    thickness: tuple[float, float] = (2.0, 5.0)
    thick_share: float = 0.3
    bias: float = 0.35
    noise: float = 0.04
    gamma: float = 0.25
    dark_share: float = 0.8
    anywhere_share: float = 0.35


def synthesize(
    label_map: LabelMap,
    size: Sequence[int],
    spacing: Sequence[float],
    spec: SynthesisSpec,
    contrasts: Sequence[Contrast],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One training pair: an image `(1, *size)`, about 0 to 1, and its class indices `(*size)`.

    Parameters
    ----------
    size, spacing : voxels and mm per voxel of the pair, two numbers for a slice (along j, i) or three.
    contrasts : the common ones; images that their shares leave have a random grey value per tissue.
    """
    device = label_map.structures.device
    draw = Draw(device, generator)
    flat = len(size) == 2
    step = (1.0, *spacing) if flat else tuple(spacing)
    # A thick slice averages what lies within it, so its planes are drawn 1 mm apart and averaged. Their number is odd:
    # the label is that of the middle one.
    planes = 1 + 2 * round(draw.even(0, (spec.thickness[1] - 1) / 2)) if flat else size[0]
    shape = (planes, *size[-2:])

    pose = Deformation(spec.rotation, spec.scale, spec.elastic, spec.elastic_spacing, spec.mirror_axes)
    first, last = (torch.tensor(corner, dtype=torch.float32) for corner in label_map.focus)
    centre = first + (last - first) * (0.1 + 0.8 * torch.rand(3, generator=generator))
    if draw.chance(spec.anywhere_share):
        centre = torch.tensor(label_map.structures.shape) * torch.rand(3, generator=generator)
    points = pose.points(shape, step, centre, label_map.spacing, device, generator)
    structures = sample_nearest(label_map.structures, points).long()
    labelled = label_map.classes > 0
    if draw.chance(spec.spread_share):
        growing = (torch.rand(int(label_map.tissues.max()) + 1, generator=generator) < 0.5)[label_map.tissues]
        steps = round(draw.even(0, spec.spread) / step[-1])
        structures = _taken(structures, growing & labelled, ~growing & labelled, steps)

    greys, deviations = (sent(table, device) for table in _tissues(label_map, spec, contrasts, generator))
    grey, deviation = greys[structures], deviations[structures]
    fading = torch.isin(label_map.classes, torch.tensor(spec.fading, dtype=torch.long))
    beside = _taken(structures, ~fading & labelled, fading, round(draw.even(*spec.rim) / step[-1]))
    grey = grey.lerp(greys[beside], draw.even(0, spec.fade))
    image = grey + deviation * draw.normal(shape)
    target = sent(label_map.classes, device)[structures]
    if flat:
        image, target = image.mean(0, keepdim=True), target[planes // 2 : planes // 2 + 1]
    image = _acquire(image, step, flat, spec, draw)
    return (image[:, 0] if flat else image), (target[0] if flat else target)


def _taken(structures: Tensor, takers: Tensor, given: Tensor, steps: int) -> Tensor:
    """`structures` `(k, j, i)` after `takers` have taken voxels of `given` beside them, a voxel wide in each step.

    Both have a truth value per structure.
    """
    values = sent(torch.arange(len(takers)) * takers, structures.device).float()
    may_go = sent(given, structures.device)
    for _ in range(steps):
        source = values[structures][None, None]
        taker = source
        for axis in range(3):
            reach = [int(n == axis) for n in range(3)]
            taker = taker.maximum(F.max_pool3d(source, [1 + 2 * n for n in reach], 1, reach))
        structures = torch.where(may_go[structures] & (taker[0, 0] > 0), taker[0, 0].long(), structures)
    return structures


def _tissues(
    label_map: LabelMap,
    spec: SynthesisSpec,
    contrasts: Sequence[Contrast],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Mean grey value and texture of every structure: so few numbers that a GPU would only wait for them."""
    draw = Draw(torch.device("cpu"), generator)
    tissues, classes = label_map.tissues.tolist(), label_map.classes.tolist()
    count = max(tissues) + 1
    grey = draw.uniform((count,)).tolist()
    drawn, shares = draw.even(0, 1), accumulate(contrast.share for contrast in contrasts)
    contrast = next((c for c, share in zip(contrasts, shares, strict=True) if drawn < share), None)
    if contrast is not None:
        common = {target: draw.even(*bounds) for target, bounds in contrast.greys.items()}
        jitter = (0.03 * draw.normal((count,))).tolist()
        for tissue, target in zip(tissues, classes, strict=True):
            if target in common:
                grey[tissue] = common[target] + jitter[tissue]
    if draw.chance(spec.dark_share):
        grey[tissues[0]] = draw.even(0, 0.08)
    deviation = spec.texture * draw.uniform((count,))
    return torch.tensor(grey).clamp_min(0)[label_map.tissues], deviation[label_map.tissues]


def _acquire(image: Tensor, step: Sequence[float], flat: bool, spec: SynthesisSpec, draw: Draw) -> Tensor:
    """What a scanner adds to `(k, j, i)`: bias field, limited resolution, noise; then the way to 0 to 1: `(1, ...)`."""
    image = image[None, None]
    shape = image.shape[2:]
    field = draw.even(0, spec.bias) * draw.normal((1, 1, 1 if flat else 4, 4, 4))
    image = image * F.interpolate(field, size=shape, mode="trilinear").exp_()

    resolution = [draw.even(*spec.resolution)] * 3
    if draw.chance(spec.thick_share):
        resolution[int(draw.even(flat, 3))] = draw.even(*spec.thickness)
    for axis, (mm, size) in enumerate(zip(resolution, step, strict=True)):
        if not (flat and axis == 0):
            image = blur(image, axis, 0.4 * mm / size)
    low = [max(1, round(n * size / max(mm, size))) for n, size, mm in zip(shape, step, resolution, strict=True)]
    coarse = F.interpolate(image, size=low, mode="trilinear")
    coarse = (coarse + draw.even(0, spec.noise) * draw.normal(coarse.shape)).abs_()
    image = F.interpolate(coarse, size=shape, mode="trilinear")[0]

    # A scan is stretched by its own percentiles; a part that holds only air stays dark in it.
    values = image.flatten()[:: max(1, image.numel() // 50_000)].sort().values
    lowest, highest = values[int(0.005 * len(values))], values[int(0.995 * (len(values) - 1))]
    image = ((image - lowest) / (highest - lowest).clamp_min(0.5)).clamp_(0, 1)
    return (image ** (2.0 ** draw.one(spec.gamma)) * draw.even(0.6, 1.1)).clamp_(0, 1)
