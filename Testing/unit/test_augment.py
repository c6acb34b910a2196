"""Random changes of voxel values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from training_data import STILL, prepared

from DeepLabSegLib.training.augment import Augmentation, augment_intensity
from DeepLabSegLib.training.draw import Draw, blur


@pytest.mark.parametrize("shape", [(2, 1, 40, 44), (2, 20, 24, 28)])
@pytest.mark.parametrize("what", ["brightness", "contrast", "gamma", "noise", "blur", "resolution"])
def test_each_change_of_voxel_values_changes_some_and_keeps_the_image(what, shape):
    smooth = torch.nn.functional.interpolate(torch.rand(1, 2, *(max(1, n // 6) for n in shape[1:])), size=shape[1:])[0]
    spec = replace(STILL, **{f"{what}_share": 1.0})
    changed = augment_intensity(smooth, spec, torch.Generator().manual_seed(1), planar=shape[1] == 1)
    assert changed.shape == smooth.shape
    assert not torch.equal(changed, smooth)
    assert float(torch.corrcoef(torch.stack([changed.flatten(), smooth.flatten()]))[0, 1]) > 0.8
    assert torch.equal(augment_intensity(smooth, STILL), smooth)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("what", ["blur", "resolution"])
def test_what_makes_an_image_coarser_does_not_move_it_against_its_label(what, dims):
    ramp = torch.arange(45.0)
    ramps = torch.stack(torch.meshgrid(*[ramp] * dims, indexing="ij")).reshape(dims, -1, 45, 45)
    spec = replace(STILL, **{f"{what}_share": 1.0})
    inner = (slice(None), slice(None) if dims == 2 else slice(8, -8), slice(8, -8), slice(8, -8))
    for seed in range(4):
        changed = augment_intensity(ramps, spec, torch.Generator().manual_seed(seed), planar=dims == 2)
        assert not torch.equal(changed, ramps)
        assert float((changed - ramps)[inner].mean((1, 2, 3)).abs().max()) < 0.1


@pytest.mark.parametrize("size", [8, 32, 33])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [0.5, 0.75, 0.97])
def test_an_image_of_less_resolution_lies_on_its_label_exactly(dims, size, factor):
    """The nearest voxel of an image of half the size lies half a voxel off, always to the same side."""
    ramps = torch.stack(torch.meshgrid(*[torch.arange(float(size))] * dims, indexing="ij")).reshape(
        dims, -1, size, size
    )
    spec = replace(STILL, resolution_share=1.0, resolution=(factor, factor))
    changed = augment_intensity(ramps, spec, torch.Generator().manual_seed(0), planar=dims == 2)
    inner = (slice(None), slice(None) if dims == 2 else slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(changed[inner], ramps[inner], atol=1e-3, rtol=0)


ALWAYS = replace(STILL, **{f"{what}_share": 1.0 for what in ("brightness", "contrast", "gamma", "noise", "blur")})


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 16, 16, 16)])
@pytest.mark.parametrize("value", [0.0, 0.7, -2.5])
def test_a_window_of_one_value_stays_one(shape, value):
    """As of air: numbers that are none would end the training."""
    for seed in range(4):
        spec = replace(ALWAYS, resolution_share=1.0, brightness_share=0.0)
        window = torch.full(shape, value)
        torch.testing.assert_close(augment_intensity(window, spec, torch.Generator().manual_seed(seed)), window)


def test_every_channel_is_changed_for_itself_and_by_its_own_measure():
    field = torch.nn.functional.interpolate(torch.randn(1, 1, 4, 4, 4), size=(32, 32, 32), mode="trilinear")[0]
    one, other = augment_intensity(field.repeat(2, 1, 1, 1), ALWAYS, torch.Generator().manual_seed(1))
    assert not torch.allclose(one, other, atol=1e-2)
    small, large = torch.cat([field, 1000 * field]), replace(STILL, noise_share=1.0, noise=(0.2, 0.2))
    noise = (augment_intensity(small, large, torch.Generator().manual_seed(1)) - small).flatten(1).std(1)
    torch.testing.assert_close(noise, 0.2 * small.flatten(1).std(1), rtol=0.05, atol=0)


def test_more_contrast_leaves_the_extremes_and_gamma_the_mean_and_deviation():
    field = torch.rand(1, 16, 16, 16)
    spec = replace(STILL, contrast_share=1.0, contrast=(1.2, 1.2))
    changed = augment_intensity(field, spec)
    assert float(changed.std()) > float(field.std())
    assert (float(changed.min()), float(changed.max())) == (float(field.min()), float(field.max()))
    for seed in range(4):
        changed = augment_intensity(field, replace(STILL, gamma_share=1.0), torch.Generator().manual_seed(seed))
        for measure in (torch.mean, torch.std):
            torch.testing.assert_close(measure(changed), measure(field))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_a_blur_is_as_wide_as_it_says_and_nothing_comes_in_from_outside(axis, sigma):
    point = torch.zeros(1, 1, 41, 41, 41)
    point[0, 0, 20, 20, 20] = 1
    spread = blur(point, axis, sigma)[0, 0].sum([n for n in range(3) if n != axis])
    assert float((spread * (torch.arange(41) - 20) ** 2).sum()) == pytest.approx(sigma**2, rel=0.06)
    torch.testing.assert_close(blur(torch.ones(1, 1, 5, 6, 7), axis, sigma), torch.ones(1, 1, 5, 6, 7))


def test_half_of_the_images_are_turned_and_scaled_and_three_of_ten_displaced(tmp_path, rng):
    (case, *_), made = prepared(2, tmp_path, rng)
    draws = (Draw(torch.device("cpu"), torch.Generator().manual_seed(n)) for n in range(200))
    poses = [Augmentation().deformation(made, case.spacing, draw) for draw in draws]
    assert {(pose.rotation, pose.scale) for pose in poses} == {(0, 0), (12, 0.12)}
    assert sum(pose.rotation > 0 for pose in poses) == pytest.approx(100, abs=20)
    assert sum(pose.elastic > 0 for pose in poses) == pytest.approx(60, abs=20)
