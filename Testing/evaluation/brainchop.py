"""Labels scans with brainchop's 18-class network, a peer of `head-mri`, so that both can be compared on the same scans.

    python Testing/evaluation/brainchop.py WEIGHTS SCANS -o RESULTS
    deeplabseg evaluate RESULTS --reference REFERENCES -o EVALUATION --groups Testing/evaluation/brainchop_dlmuse.json

WEIGHTS is the `model.bin` of `meshnet/model30chan18cls` or `meshnet/model18cls` in the repository
neuroneural/brainchop-models (MIT). What is done follows brainchop's command line: the scan on FreeSurfer's grid of
256 voxels of 1 mm and its 256 grey values, scaled to 0 to 1; the whole grid through the network (some 6 GB); the
largest connected piece of all labels; the nearest label back on the scan's own grid.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import nn

CLASSES = 18
DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)
"""MeshNet's convolutions of 3 voxels a side (Fedorov et al. 2017, arXiv 1612.00940); one of a single voxel follows."""

SIZE = 256
AXES = np.array([[1.0, 0, 0], [0, 0, -1], [0, -1, 0]]).T
"""FreeSurfer's axes in LPS, a column each: left, inferior, anterior."""

ROBUST = 0.999
"""Share of the voxels that aren't zero below the grey value that becomes white, as in FreeSurfer's `mri_convert -c`."""


def meshnet(weights: Path) -> nn.Sequential:
    """The network of a TensorFlow.js weight file: per convolution a kernel `(D, H, W, in, out)` and a bias `(out,)`."""
    values = torch.from_numpy(np.fromfile(weights, np.float32))
    # 28 n of the first, 8 (27 n + 1) n of the inner and 18 (n + 1) of the last convolution.
    channels = next(n for n in range(1, 100) if 216 * n * n + 54 * n + CLASSES == len(values))
    widths = [1, *[channels] * len(DILATIONS), CLASSES]
    layers: list[nn.Module] = []
    for (inside, outside), dilation in zip(pairwise(widths), (*DILATIONS, 0), strict=True):
        layer = nn.Conv3d(inside, outside, 3 if dilation else 1, padding=dilation, dilation=dilation or 1)
        kernel, bias, values = values.tensor_split([layer.weight.numel(), layer.weight.numel() + outside])
        layer.weight.data = kernel.view(*layer.kernel_size, inside, outside).permute(4, 3, 0, 1, 2).contiguous()
        layer.bias = nn.Parameter(bias)
        layers += [layer, nn.ELU(inplace=True)]
    return nn.Sequential(*layers[:-1]).eval()


def conformed(image: sitk.Image) -> tuple[NDArray[np.float32], sitk.Image]:
    """Grey values 0 to 1 on FreeSurfer's grid, axes `(left, inferior, anterior)`, and an image with its geometry."""
    centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    origin = centre - AXES @ np.full(3, (SIZE - 1) / 2)
    image = sitk.Cast(image, sitk.sitkFloat32)
    grid = sitk.Resample(
        image, [SIZE] * 3, sitk.Transform(), sitk.sitkLinear, origin.tolist(), [1.0] * 3, AXES.ravel().tolist()
    )
    voxels = sitk.GetArrayViewFromImage(image)
    counts, edges = np.histogram(voxels, 1000)
    above = np.cumsum(counts[::-1])[::-1]
    white = edges[np.flatnonzero(above >= (1 - ROBUST) * np.count_nonzero(voxels)).max()]
    grey = np.rint(np.clip((sitk.GetArrayFromImage(grid) - edges[0]) / (white - edges[0]) * 255, 0, 255))
    return np.float32((grey - grey.min()) / (grey.max() - grey.min())).transpose(2, 1, 0), grid


@torch.inference_mode()
def labelled(image: sitk.Image, network: nn.Sequential) -> sitk.Image:
    """The largest piece of all labels, uint8, on the grid of `image`."""
    grey, grid = conformed(image)
    features = network[:-1](torch.from_numpy(grey.copy())[None, None])
    classes = torch.cat([network[-1](slab).argmax(1)[0] for slab in features.split(32, 2)])
    labels = sitk.GetImageFromArray(np.uint8(classes.numpy().transpose(2, 1, 0)))
    labels.CopyInformation(grid)
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(labels > 0))
    return sitk.Resample(sitk.Mask(labels, pieces == 1), image, sitk.Transform(), sitk.sitkNearestNeighbor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    network = meshnet(options.weights)
    options.output.mkdir(parents=True, exist_ok=True)
    for scan in sorted(options.scans.glob("*.nii.gz")):
        sitk.WriteImage(labelled(sitk.ReadImage(str(scan)), network), str(options.output / scan.name))


if __name__ == "__main__":
    main()
