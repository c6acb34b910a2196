"""Random pose and shape, the same for an image and its label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_data import STILL, ball, checked

from DeepLabSegLib.files import write_image, write_labels
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training.deformation import Deformation
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_stay_aligned_however_they_are_deformed(dims, tmp_path, rng):
    """The image of these cases is their label."""
    (tmp_path / "data").mkdir()
    shape = (40, 44, 36) if dims == 3 else (1, 88, 80)
    for name in "ab":
        labels = ball(Geometry(shape))
        write_image(Image(labels.array.astype(np.float32), labels.geometry), tmp_path / "data" / f"{name}.nrrd")
        write_labels(labels, tmp_path / "data" / f"{name}_seg.nrrd")
    data = checked(tmp_path / "data")
    made = plan(data.fingerprint, Overrides(normalization=Normalization("none")))
    strong = replace(STILL, pose_share=1, elastic_share=1, rotation=25, scale=0.2, elastic=0.04)
    patches = Patches(prepare(data.cases, made, tmp_path / "prepared"), made, strong)
    plain = Patches(patches.cases, made)
    for index in range(6):
        image, target = patches[index]
        assert not torch.equal(target, plain[index][1])
        inner = torch.nn.functional.pad(target, (1, 1) * dims)  # where no neighbour has another label
        for axis in range(dims):
            ends = (inner.narrow(axis, n, inner.shape[axis] - 2) for n in (0, 1, 2))
            left, middle, right = ends
            inner = torch.where((left == middle) & (right == middle), middle, -1)
        sure = (inner >= 0) & (target > 0)
        assert int(sure.sum()) > 100
        assert float((image[0] - target)[sure].abs().max()) < 0.51
        assert float((image[0] - target)[sure].abs().mean()) < 0.05


def test_a_plane_stays_a_plane(rng):
    pose = Deformation(rotation=20, scale=0.2, elastic=3, elastic_spacing=10, mirror_axes=(1, 2), planar=True)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        points = pose.points((1, 20, 24), (1, 1, 1), torch.tensor([4.0, 9, 9]), (1, 1, 1), generator=generator)
        assert torch.equal(points[0], torch.full((1, 20, 24), 4.0))
        assert float((points[1, 0, :, 0] - points[1, 0, :, -1]).abs().max()) > 0.1
