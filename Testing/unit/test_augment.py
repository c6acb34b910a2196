"""Random changes of voxel values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from training_data import STILL

from DeepLabSegLib.training.augment import augment_intensity


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
