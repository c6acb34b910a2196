"""How a head model keeps its brain when contrast and slices change.

    python Testing/evaluation/contrasts.py MODEL SCANS LABELS -o table.csv

Every T1 scan in SCANS that has a DLMUSE map of its name in LABELS is repainted: inside the intracranial volume
each tissue gets the median grey value that it has in the wanted contrast, and keeps its own texture; the rest of the
head stays. It is then averaged over slices of 1, 2 and 4 mm from top to bottom. Reported are the Dice of the brain
(DLMUSE's total brain, ventricles included, against all labels but fluid) and of the intracranial volume (all labels of
either) on the grid of the slices.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from DeepLabSegLib import Image, load_model, read_image
from DeepLabSegLib.evaluate import dice
from DeepLabSegLib.image import Geometry, Labels
from DeepLabSegLib.pairing import pair_files
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.resampling import resample

CSF = (1, 46)
VENTRICLES = (4, 11, 49, 50, 51, 52)
WHITE = (35, 40, 41, 61, 62, *range(81, 96))

CONTRASTS = {
    "T1": None,
    "T2-like": {"fluid": 0.95, "grey": 0.6, "white": 0.4},
    "FLAIR-like": {"fluid": 0.1, "grey": 0.65, "white": 0.5},
}
"""Contrast -> mean grey value of each tissue, as a share of the scan's 99th percentile; None leaves the scan alone."""

SLICES = (1.0, 2.0, 4.0)  # mm


def tissues(labels: NDArray) -> dict[str, NDArray[np.bool_]]:
    """Fluid, grey and white matter of a DLMUSE map."""
    fluid = np.isin(labels, CSF + VENTRICLES)
    white = np.isin(labels, WHITE)
    return {"fluid": fluid, "grey": (labels > 0) & ~fluid & ~white, "white": white}


def repainted(image: NDArray, labels: NDArray, means: dict[str, float]) -> NDArray[np.float32]:
    """`image` `(k, j, i)` in another contrast."""
    bright = np.percentile(image, 99)
    masks = tissues(labels)
    # Memberships are smoothed, so that voxels between two tissues lie between their values.
    share = {name: ndimage.gaussian_filter(mask.astype(np.float32), 0.5) for name, mask in masks.items()}
    shift = sum(share[name] * (means[name] * bright - np.median(image[masks[name]])) for name in masks)
    return np.clip(image + shift, 0, None).astype(np.float32)


def sliced(image: NDArray, geometry: Geometry, thickness: float) -> Image:
    """`image` averaged over axial slices of `thickness` mm; finer ones are interpolated."""
    sigma = max(0.0, 0.5 * (thickness / geometry.spacing[0] - 1))
    blurred = torch.from_numpy(ndimage.gaussian_filter1d(image, sigma, axis=0) if sigma else image)[None]
    grid = model_grid(geometry, None, (thickness, None, None))
    return Image(resample(blurred, geometry, grid).numpy(), grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scans", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--first", type=int, help="only so many scans")
    options = parser.parse_args()
    segmenter = load_model(options.model)
    fluid = next(s.value for s in segmenter.bundle.labels if s.name == "Cerebrospinal fluid")
    rows = []
    for pair in pair_files([options.scans], [options.labels]).pairs[: options.first]:
        scan, truth = oriented(pair.prediction), oriented(pair.reference)
        inside = truth.array > 0
        masks = torch.from_numpy(np.concatenate([inside & ~np.isin(truth.array, CSF), inside])).byte()
        for contrast, means in CONTRASTS.items():
            array = scan.array[0].astype(np.float32)
            array = array if means is None else repainted(array, truth.array[0], means)
            for thickness in SLICES:
                image = sliced(array, scan.geometry, thickness)
                wanted = resample(masks, truth.geometry, image.geometry, "nearest").numpy() > 0
                found: Labels = segmenter.segment(image)
                whole = found.array > 0
                scores = dice(whole & (found.array != fluid), wanted[0]), dice(whole, wanted[1])
                rows.append((pair.name, contrast, thickness, *scores))
    with options.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("scan", "contrast", "slice_mm", "brain_dice", "intracranial_dice"), *rows])
    for contrast in CONTRASTS:
        for thickness in SLICES:
            chosen = [row[3:] for row in rows if row[1:3] == (contrast, thickness)]
            mean, lowest = np.mean(chosen, axis=0), np.min(chosen, axis=0)
            print(  # noqa: T201
                f"{contrast:12}{thickness:g} mm  brain {mean[0]:.3f}, lowest {lowest[0]:.3f}; "
                f"intracranial {mean[1]:.3f}, lowest {lowest[1]:.3f}"
            )


def oriented(path: Path) -> Image:
    """The image with slices from bottom to top."""
    image = read_image(path)
    grid = model_grid(image.geometry, "SAR", (None, None, None))
    array = resample(torch.from_numpy(image.array.astype(np.float32)), image.geometry, grid, "nearest").numpy()
    return Image(array, grid)


if __name__ == "__main__":
    main()
