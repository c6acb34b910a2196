"""What the tests are made of: small networks with random weights, small scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from DeepLabSegLib.bundle import Bundle, ModelInput, save_bundle
from DeepLabSegLib.catalog import sample_scan
from DeepLabSegLib.cli import main
from DeepLabSegLib.image import Geometry, Image, Segment, Terminology
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.segmenter import Segmenter

SAMPLE = sample_scan()
CLOSED, FULL = Path("/proc"), Path("/dev/full")
"""On Linux, a folder that takes no file, whoever asks, and a disk without room."""
TERMINOLOGY = Terminology(("SCT", "123037004", "Anatomical Structure"), ("SCT", "12738006", "Brain"))
SEGMENTS = (Segment(1, "Grey matter", (200, 100, 50), TERMINOLOGY), Segment(2, "Ventrikel", (0, 0, 255)))
OBLIQUE = ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (-1.0, 0.0, 0.0))


def make_spec(dims: int, classes: int = 3, activation: str = "softmax", channels: int = 1) -> DeepLabSpec:
    return DeepLabSpec(
        encoder_name="resnet18",
        input_shape=(*(None,) * dims, channels),
        encoder_depth=3,
        num_classes=classes,
        decoder_channels=16,
        decoder_dilation_rates=(2, 4),
        projection_filters=8,
        classifier_activation=activation,
    )


def make_bundle(
    dims: int,
    classes: int = 3,
    activation: str = "softmax",
    channels: int = 1,
    orientation: str | None = "SAR",
    spacing: tuple = (None, None, None),
    tile: tuple[int, ...] | None = None,
    background: float | None = None,
) -> Bundle:
    foreground = classes - (activation != "sigmoid")
    return Bundle(
        name=f"tiny-{dims}d",
        description="a small network with random weights",
        network=make_spec(dims, classes, activation, channels),
        input=ModelInput(
            tuple(f"c{n}" for n in range(channels)), orientation, spacing, Normalization("zscore"), tile, background
        ),
        labels=tuple(
            Segment(n, f"Part {n}", (40 * n, 255 - 40 * n, 90), TERMINOLOGY) for n in range(1, foreground + 1)
        ),
        license="Apache-2.0",
        training_data="none",
    )


def make_network(spec: DeepLabSpec) -> DeepLabV3Plus:
    """A network whose random weights give every class a share of the image."""
    network = DeepLabV3Plus.from_spec(spec).eval()
    with torch.no_grad():
        network.head.weight.normal_(0, 3)
        probe = torch.randn(1, spec.in_channels, *(32,) * spec.dims)
        scores = network.logits(probe)
        network.head.bias -= scores.mean(dim=(0, *range(2, scores.ndim)))
    return network


def make_segmenter(dims: int, **options) -> Segmenter:
    bundle = make_bundle(dims, **options)
    return Segmenter(bundle, make_network(bundle.network), "cpu")


def save_model(path: Path, segmenter: Segmenter, overwrite: bool = False) -> Path:
    """The segmenter's model on disk, in full precision."""
    save_bundle(path, segmenter.bundle, segmenter.network, half=False, overwrite=overwrite)
    return path


def make_scan(rng: np.random.Generator, shape=(12, 40, 36), spacing=(3.0, 1.5, 1.2), channels: int = 1) -> Image:
    """Smooth random blobs, so that interpolation has something to hold on to."""
    coarse = torch.from_numpy(rng.normal(size=(1, channels, *(max(2, n // 6) for n in shape))))
    array = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0].numpy()
    return Image((100 * array + 300).astype(np.float32), Geometry(shape, spacing, (-20.0, 35.5, 7.25)))


def physically_equal(image: Image, permutation: tuple[int, ...], flips: tuple[int, ...]) -> Image:
    """The same scan stored with other axis order and directions."""
    geometry = image.geometry
    array = image.array.transpose(0, *(1 + n for n in permutation))
    origin = np.array(geometry.origin)
    direction = np.array(geometry.direction)[list(permutation)]
    spacing = np.array(geometry.spacing)[list(permutation)]
    for axis in flips:
        array = np.flip(array, 1 + axis)
        origin = origin + direction[axis] * spacing[axis] * (array.shape[1 + axis] - 1)
        direction[axis] = -direction[axis]
    return replace(
        image,
        array=array.copy(),
        geometry=Geometry(array.shape[1:], tuple(spacing), tuple(origin), tuple(map(tuple, direction))),
    )


def run(*arguments) -> int:
    """`deeplabseg` with these arguments, here; its exit code."""
    return main([str(argument) for argument in arguments])


def itk(image: Image) -> sitk.Image:
    """An image of SimpleITK from its documented conventions, not from the code under test."""
    result = sitk.GetImageFromArray(np.moveaxis(image.array, 0, -1).squeeze(-1))
    to_lps = np.diag([-1.0, -1.0, 1.0])
    result.SetSpacing(image.geometry.spacing[::-1])
    result.SetOrigin(to_lps @ image.geometry.origin)
    result.SetDirection((to_lps @ np.array(image.geometry.direction)[::-1].T).ravel())
    return result
