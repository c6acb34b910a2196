"""Small data sets with images and labels on disk, and what training makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from helpers import make_scan

from DeepLabSegLib.files import write_image, write_labels
from DeepLabSegLib.image import Geometry, Labels, Segment
from DeepLabSegLib.training.augment import Augmentation
from DeepLabSegLib.training.cases import find_cases
from DeepLabSegLib.training.check import CheckedData, check_cases
from DeepLabSegLib.training.planning import Overrides, TrainingPlan, plan
from DeepLabSegLib.training.prepared import PreparedCase, prepare

STILL = Augmentation(
    brightness_share=0, contrast_share=0, gamma_share=0, noise_share=0, blur_share=0, resolution_share=0
)
"""Pose and shape alone."""
SHELL, CORE = Segment(1, "Shell", (9, 9, 9)), Segment(2, "Core", (8, 8, 8))


def ball(geometry: Geometry) -> Labels:
    """A ball of value 2 in one of value 1, in the middle."""
    axes = [(np.arange(n) - (n - 1) / 2) / n for n in geometry.shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return Labels((radius < 0.4).astype(np.uint8) + (radius < 0.2), geometry)


def write_volumes(folder: Path, names, rng, shape=(12, 40, 36), spacing=(3.0, 1.5, 1.2)) -> Path:
    """A folder with `images` and `labels`, NIfTI."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        scan = make_scan(rng, shape, spacing)
        write_image(scan, folder / "images" / f"{name}.nii.gz")
        write_labels(ball(scan.geometry), folder / "labels" / f"{name}.nii.gz")
    return folder


def write_pictures(folder: Path, names, rng, size=(60, 48)) -> Path:
    """A folder with `images` and `labels`, PNG."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        grid = Geometry((1, *size))
        grey = make_scan(rng, (1, *size)).array[0, 0]
        grey = (255 * (grey - grey.min()) / np.ptp(grey)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(grey), folder / "images" / f"{name}.png")
        write_labels(ball(grid), folder / "labels" / f"{name}.png")
    return folder


def write_data(dims: int, folder: Path, rng, names=("a", "b", "c")) -> Path:
    return write_pictures(folder, names, rng) if dims == 2 else write_volumes(folder, names, rng)


def write_segments(folder: Path, rng, segments: dict[str, tuple[Segment, ...]]) -> Path:
    """Scans and a `.seg.nrrd` with these segments for each name; a plain label map where there are none."""
    for name, of_case in segments.items():
        scan = make_scan(rng)
        write_image(scan, folder / f"{name}.nrrd")
        labels = replace(ball(scan.geometry), segments=of_case)
        write_labels(labels, folder / (f"{name}.seg.nrrd" if of_case else f"{name}_seg.nrrd"))
    return folder


def checked(folder: Path) -> CheckedData:
    return check_cases(*find_cases(folder))


def prepared(dims: int, folder: Path, rng, **overrides) -> tuple[list[PreparedCase], TrainingPlan]:
    data = checked(write_data(dims, folder / "data", rng))
    made = plan(data.fingerprint, Overrides(**overrides))
    return prepare(data.cases, made, folder / "prepared"), made
