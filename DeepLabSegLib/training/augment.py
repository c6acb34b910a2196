"""Random changes of training images: how often, how far, and those of voxel values.

Pose and shape are `deformation`'s, which reads crop, rotation, scale, displacement and mirror images at once. What is
changed and how far follows nnU-Net (Isensee et al., Nature Methods 2021). Libraries that do this exist
(batchgeneratorsv2, MONAI); ours is kept since it shares its pose with `synthesis`, reads once, and runs on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from DeepLabSegLib.training.deformation import Deformation
from DeepLabSegLib.training.draw import Draw, blur
from DeepLabSegLib.training.planning import TrainingPlan

__all__ = ["Augmentation", "augment_intensity"]


@dataclass(frozen=True)
class Augmentation:
    """How often and how far training images are changed; a pair is a range drawn from evenly.

    Attributes
    ----------
    pose_share : share of images that are turned and scaled: `rotation` (degrees) and `scale` (logarithm of the size)
        are standard deviations, per axis.
    elastic_share : share with a smooth displacement: `elastic` is its standard deviation and `elastic_spacing` the
        distance of the points where it is drawn, as shares of the window's shortest side.
    mirror : whether the plan's `mirror_axes` are turned round, each in half of the images.
    brightness, contrast, gamma, noise, blur, resolution, each with its share: factors of the values, and of their
        distance from the mean; exponent of values between their extremes, in half of the cases of the negative image;
        standard deviation, relative to the image's; of a Gaussian, in voxels; factor of the resolution.
    """

    pose_share: float = 0.5
    rotation: float = 12.0
    scale: float = 0.12
    elastic_share: float = 0.3
    elastic: float = 0.02
    elastic_spacing: float = 0.3
    mirror: bool = True
    brightness: tuple[float, float] = (0.75, 1.25)
    brightness_share: float = 0.15
    contrast: tuple[float, float] = (0.75, 1.25)
    contrast_share: float = 0.15
    gamma: tuple[float, float] = (0.7, 1.5)
    gamma_share: float = 0.3
    noise: tuple[float, float] = (0.0, 0.3)
    noise_share: float = 0.15
    blur: tuple[float, float] = (0.5, 1.0)
    blur_share: float = 0.2
    resolution: tuple[float, float] = (0.5, 1.0)
    resolution_share: float = 0.25

    def deformation(self, plan: TrainingPlan, spacing: Sequence[float], draw: Draw) -> Deformation:
        """What is drawn from for one image with voxels of `spacing` mm along (k, j, i)."""
        sides = [size * mm for size, mm in zip(plan.tile, spacing, strict=True)][plan.planar :]
        posed, elastic = draw.chance(self.pose_share), draw.chance(self.elastic_share)
        return Deformation(
            rotation=self.rotation if posed else 0.0,
            scale=self.scale if posed else 0.0,
            elastic=self.elastic * min(sides) if elastic else 0.0,
            elastic_spacing=self.elastic_spacing * min(sides),
            mirror_axes=plan.input.mirror_axes or () if self.mirror else (),
            planar=plan.planar,
        )


def augment_intensity(
    image: Tensor, augmentation: Augmentation, generator: torch.Generator | None = None, planar: bool = False
) -> Tensor:
    """`(C, k, j, i)` with other voxel values; each channel is drawn for itself. `planar` keeps slices apart."""
    draw = Draw(image.device, generator)
    return torch.stack([_channel(channel, augmentation, draw, planar) for channel in image])


def _channel(x: Tensor, spec: Augmentation, draw: Draw, planar: bool) -> Tensor:
    axes = range(planar, 3)
    if draw.chance(spec.noise_share):
        x = x + draw.even(*spec.noise) * float(x.std()) * draw.normal(x.shape)
    if draw.chance(spec.blur_share):
        sigma = draw.even(*spec.blur)
        for axis in axes:
            x = blur(x[None, None], axis, sigma)[0, 0]
    if draw.chance(spec.brightness_share):
        x = x * draw.even(*spec.brightness)
    if draw.chance(spec.contrast_share):
        lowest, highest, mean = float(x.min()), float(x.max()), float(x.mean())
        x = ((x - mean) * draw.even(*spec.contrast) + mean).clamp(lowest, highest)
    if draw.chance(spec.resolution_share):
        factor = draw.even(*spec.resolution)
        low = [max(1, round(size * factor)) if axis in axes else size for axis, size in enumerate(x.shape)]
        # Linear both ways: the nearest voxel lies to half a voxel off, always to the same side where sizes are halved.
        coarse = F.interpolate(x[None, None], size=low, mode="trilinear", align_corners=False)
        x = F.interpolate(coarse, size=tuple(x.shape), mode="trilinear", align_corners=False)[0, 0]
    if draw.chance(spec.gamma_share):
        x = _gamma(x, draw.even(*spec.gamma), draw.chance(0.5))
    return x


def _gamma(x: Tensor, exponent: float, negative: bool) -> Tensor:
    """Values between their extremes to a power, with mean and deviation as before."""
    mean, deviation = float(x.mean()), float(x.std())
    if negative:
        x = -x
    lowest = float(x.min())
    span = float(x.max()) - lowest
    if span <= 0:
        return -x if negative else x
    x = ((x - lowest) / span) ** exponent
    if negative:
        x = -x
    return (x - x.mean()) * (deviation / max(float(x.std()), 1e-8)) + mean
