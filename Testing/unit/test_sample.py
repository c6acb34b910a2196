"""The shipped model on the shipped scan, as a user first meets them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAMPLE, physically_equal

from DeepLabSegLib import load_model, read_image
from DeepLabSegLib.cli import main
from DeepLabSegLib.evaluate import dice
from DeepLabSegLib.files import read_labels
from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.resampling import resample


def on_grid(image: Image, grid: Geometry) -> Image:
    array = torch.from_numpy(image.array.astype(np.float32))
    return Image(resample(array, image.geometry, grid).numpy(), grid)


@pytest.fixture(scope="module")
def head() -> Image:
    """The sample scan at 2.5 mm."""
    image = read_image(SAMPLE)
    return on_grid(image, model_grid(image.geometry, "SAR", (2.5, 2.5, 2.5)))


@pytest.fixture(scope="module")
def segmented(head) -> Labels:
    return load_model("head-mri-2d", "cpu").segment(head)


def agreement(copy: Labels, labels: Labels) -> list[float]:
    """Dice of the whole brain and of each segment, on the grid of `labels`."""
    array = torch.from_numpy(copy.array[None].astype(np.int32))
    moved = resample(array, copy.geometry, labels.geometry, "nearest")[0].numpy()
    return [dice(moved > 0, labels.array > 0)] + [dice(moved == s.value, labels.mask(s)) for s in labels.segments]


def test_the_demo_ends_with_a_segmentation_a_picture_and_volumes(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    volumes = report["volumes_ml"]
    # Colin27 lies in MNI space, which is larger than life: about two litres inside the skull.
    assert 1700 < sum(volumes.values()) < 2300
    assert 600 < volumes["Cerebral cortex"] < 1100
    assert 400 < volumes["Cerebral white matter"] < 800
    assert 5 < volumes["Lateral ventricles"] < 60
    assert 10 < volumes["Brain stem"] < 50
    assert read_labels(report["output"]).volumes_ml() == pytest.approx(volumes, abs=0.01)
    assert Path(report["picture"]).read_bytes()[:4] == b"\x89PNG"


def test_however_the_scan_is_stored_the_brain_is_the_same(head, segmented):
    stored = physically_equal(head, (2, 0, 1), (1, 2))
    assert min(agreement(load_model("head-mri-2d", "cpu").segment(stored), segmented)) > 0.999


def test_an_oblique_copy_of_the_scan_gives_the_same_brain_in_space(head, segmented):
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    turn = ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0))
    shape, step = (100, 110, 100), 2.0
    centre = (head.geometry.affine @ [*(np.array(head.geometry.shape) - 1) / 2, 1])[:3]
    # Rows of the direction are where k, j and i grow to.
    axes = np.array([turn[2], turn[1], turn[0]])
    origin = centre - axes.T @ ((np.array(shape) - 1) / 2 * step)
    oblique = on_grid(head, Geometry(shape, (step,) * 3, tuple(origin), tuple(map(tuple, axes))))
    whole, *parts = agreement(load_model("head-mri-2d", "cpu").segment(oblique), segmented)
    assert whole > 0.97
    assert min(parts) > 0.78  # at 2.5 mm thin structures feel being interpolated twice


def test_thick_slices_of_the_scan_give_the_same_brain(head, segmented):
    grid = model_grid(head.geometry, "SAR", (5.0, 1.5, 2.0))
    whole, *_ = agreement(load_model("head-mri-2d", "cpu").segment(on_grid(head, grid)), segmented)
    assert whole > 0.95
