"""Random pose and shape, the same for an image and its label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_data import STILL, ball, checked, prepared

from DeepLabSegLib.files import write_image, write_labels
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training.deformation import Deformation, sample_linear, sample_nearest
from DeepLabSegLib.training.draw import Draw
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_stay_aligned_however_they_are_deformed(dims, tmp_path):
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


@pytest.mark.parametrize("planes", [1, 3])
def test_a_plane_stays_a_plane(planes):
    pose = Deformation(rotation=20, scale=0.2, elastic=3, elastic_spacing=10, mirror_axes=(1, 2), planar=True)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        points = pose.points((planes, 20, 24), (1, 1, 1), torch.tensor([4.0, 9, 9]), (1, 1, 1), generator=generator)
        own = 4.0 + torch.arange(planes) - (planes - 1) / 2
        assert torch.equal(points[0], own[:, None, None].expand(planes, 20, 24))
        assert float((points[1, 0, :, 0] - points[1, 0, :, -1]).abs().max()) > 0.1


def test_what_is_turned_keeps_its_lengths_in_mm_and_is_turned_by_degrees():
    spacing = (3.0, 1.5, 0.5)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        points = Deformation(rotation=4).points((9, 9, 9), spacing, torch.zeros(3), spacing, generator=generator)
        places = points * torch.tensor(spacing).view(3, 1, 1, 1)
        for axis, mm in enumerate(spacing):
            steps = places.narrow(1 + axis, 1, 8) - places.narrow(1 + axis, 0, 8)
            torch.testing.assert_close(steps.norm(dim=0), torch.full(steps.shape[1:], mm), atol=1e-4, rtol=0)
            assert float(steps[axis].min()) > 0.9 * mm


def test_a_displacement_is_as_large_in_mm_along_every_axis():
    pose, spacing = Deformation(elastic=2, elastic_spacing=2), (4.0, 1.0, 0.5)
    generator = torch.Generator().manual_seed(0)
    still = Deformation().points((16, 16, 16), (2, 2, 2), torch.zeros(3), spacing)
    moved = pose.points((16, 16, 16), (2, 2, 2), torch.zeros(3), spacing, generator=generator) - still
    along = (moved * torch.tensor(spacing).view(3, 1, 1, 1)).flatten(1).std(1)
    torch.testing.assert_close(along, along.mean().expand(3), rtol=0.1, atol=0)


@pytest.mark.parametrize(("dims", "axes"), [(2, (2,)), (3, (0, 1))])
def test_images_are_turned_round_along_the_axes_of_the_plan_alone_and_half_of_them(dims, axes, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng, mirror_axes=axes)
    turned = []
    for seed in range(60):
        draw = Draw(torch.device("cpu"), generator := torch.Generator().manual_seed(seed))
        pose = replace(STILL, pose_share=0, elastic_share=0).deformation(made, cases[0].spacing, draw)
        points = pose.points((2, 2, 2), (1, 1, 1), torch.zeros(3), (1, 1, 1), generator=generator)
        turned.append([bool(points[axis].select(axis, 0).max() > 0) for axis in range(3)])
    for axis, share in enumerate(np.mean(turned, axis=0)):
        assert 0.3 < share < 0.7 if axis in axes else share == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_what_does_not_leave_its_plane_is_displaced_by_a_share_of_the_planes_shorter_side(dims, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng, spacing=(6, 1, 1.5)[-dims:], tile=(16, 64, 32)[-dims:], depth=3)
    draw = Draw(torch.device("cpu"), torch.Generator().manual_seed(0))
    pose = replace(STILL, elastic_share=1, elastic=0.1, elastic_spacing=0.5).deformation(made, cases[0].spacing, draw)
    assert (pose.elastic, pose.elastic_spacing) == pytest.approx((4.8, 24))
    assert pose.planar


def test_on_the_outer_half_of_the_last_voxel_lies_its_value_and_beyond_no_label():
    places = torch.tensor([-0.6, -0.4, 0.0, 2.0, 2.4, 2.6])
    points = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))
    values = torch.arange(1.0, 28).view(1, 3, 3, 3)
    corners = values[0][[0, 2]][:, [0, 2]][:, :, [0, 2]]
    torch.testing.assert_close(sample_linear(values, points)[0, 1:5:3, 1:5:3, 1:5:3], corners)
    label = sample_nearest(values[0].long(), points)
    assert torch.equal(label[1:5:3, 1:5:3, 1:5:3], corners.long())
    outside = ((places < -0.5) | (places > 2.5)).nonzero().flatten()
    assert not any(label.index_select(axis, outside).any() for axis in range(3))
