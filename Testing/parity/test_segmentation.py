"""A network trained and saved with the reference segments here as it does there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("medicai", reason="needs medicai, the reference implementation", exc_type=ImportError)
pytest.importorskip("SimpleITK", reason="needs SimpleITK, which reads the scan", exc_type=ImportError)

import keras
import SimpleITK as sitk
from medicai.models import DeepLabV3Plus as ReferenceNetwork
from medicai.utils import SlidingWindowInference

from DeepLabSegLib.cli import main
from DeepLabSegLib.files import read_labels

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

TILE = 32
SIZES = {2: (5, 80, 56), 3: (56, 32, 80)}
"""`(k, j, i)`: where the reference's windows, 24 apart, reach the end without a shorter last step."""
RATES = (1, 2)


def scan(size: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth fields with noise, `(k, j, i)`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(2, n // 8) for n in size), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[0, 0]
    return (smooth + 0.1 * torch.randn(size, generator=generator)).numpy()


def classes(values: np.ndarray) -> np.ndarray:
    """What is to be learned: dark, medium, bright."""
    return np.digitize(values, (-0.3, 0.3)).astype("int32")


@pytest.fixture(scope="module", params=["2D-softmax", "3D-softmax", "2D-sigmoid", "3D-sigmoid"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """`(folder, dims, activation, network)`: trained for a few steps, saved in both formats."""
    dims, activation = int(request.param[0]), request.param[3:]
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    network = ReferenceNetwork(
        encoder_name="resnet18",
        input_shape=(*(TILE,) * dims, 1),
        encoder_depth=3,
        num_classes=3 if activation == "softmax" else 1,
        decoder_channels=16,
        decoder_dilation_rates=list(RATES),
        projection_filters=8,
        classifier_activation=activation,
        head_upsample=4,
    )
    tiles = np.stack([scan((TILE,) * 3, seed) for seed in range(8)])
    tiles = tiles[:, ::8].reshape(-1, TILE, TILE) if dims == 2 else tiles
    wanted, loss = np.eye(3, dtype="float32")[classes(tiles)], "categorical_crossentropy"
    if activation == "sigmoid":
        wanted, loss = wanted[..., 2:], "binary_crossentropy"
    network.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    network.fit(tiles[..., None], wanted, epochs=3, batch_size=4, verbose=0)
    folder = tmp_path_factory.mktemp(request.param)
    network.save(folder / "trained.keras")
    network.save_weights(folder / "trained.weights.h5")
    image = sitk.GetImageFromArray(scan(SIZES[dims], seed=99))
    image.SetSpacing((0.8, 1.1, 2.5))
    sitk.WriteImage(image, folder / "scan.nrrd")
    return folder, dims, activation, network


def theirs(folder: Path, dims: int, network: keras.Model, mode: str) -> np.ndarray:
    """The reference's scores `(k, j, i, classes)`; in 2D slices are a batch."""
    values = sitk.GetArrayFromImage(sitk.ReadImage(folder / "scan.nrrd"))
    batch = values[..., None] if dims == 2 else values[None, ..., None]
    infer = SlidingWindowInference(network, network.output_shape[-1], (TILE,) * dims, 2, 0.25, mode, 0.125)
    scores = np.asarray(infer(batch))
    return scores if dims == 2 else scores[0]


def ours(folder: Path, weights: str, dims: int, activation: str, mode: str) -> np.ndarray:
    """Labels `(k, j, i)` by the command line: `convert` once, then `segment`."""
    model = folder / f"{weights}.model"
    tile = "x".join([str(TILE)] * dims)
    if not model.exists():
        labels = "Medium,Bright" if activation == "softmax" else "Bright"
        told = [] if weights.endswith(".keras") else ["--dilation-rates", "1x2"]
        given = ["--labels", labels, "--normalization", "none", "--tile", tile]
        assert main(["convert", str(folder / weights), "-o", str(model), *given, *told]) == 0
    output = folder / f"{weights}-{mode}.seg.nrrd"
    told = ["--model", str(model), "--blending", mode, "--device", "cpu"]
    assert main(["segment", str(folder / "scan.nrrd"), "-o", str(output), *told]) == 0
    return read_labels(output).array


def decided(scores: np.ndarray, activation: str) -> np.ndarray:
    """Labels from scores; at least two classes have a share worth comparing."""
    labels = scores.argmax(-1) if activation == "softmax" else scores[..., 0] >= 0.5
    shares = np.bincount(labels.ravel().astype(int)) / labels.size
    assert (shares > 0.02).sum() >= 2, shares
    return labels


@pytest.mark.parametrize("blending", ["constant", "gaussian"])
@pytest.mark.parametrize("weights", ["trained.keras", "trained.weights.h5"])
def test_a_trained_networks_file_segments_as_the_reference_does(trained: tuple, weights: str, blending: str) -> None:
    folder, dims, activation, network = trained
    expected = decided(theirs(folder, dims, network, blending), activation)
    np.testing.assert_array_equal(ours(folder, weights, dims, activation, blending), expected)
