"""Training pairs: the same for the same number, cut from prepared cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_scan
from training_data import STILL, checked, prepared, write_volumes

from DeepLabSegLib.files import read_image, write_image, write_labels
from DeepLabSegLib.image import Image, Labels
from DeepLabSegLib.training.augment import Augmentation
from DeepLabSegLib.training.deformation import sample_linear, sample_nearest
from DeepLabSegLib.training.draw import Draw
from DeepLabSegLib.training.patches import Patches, _read
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_the_same_index_gives_the_same_pair(dims, augmentation, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng)
    one, again = (Patches(cases, made, augmentation, seed=5) for _ in range(2))
    _ = again[3]
    for index in (0, 7, 10**6):
        for a, b in zip(one[index], again[index], strict=True):
            assert torch.equal(a, b)
    image, target = one[0]
    assert image.shape == (1, *made.input.tile)
    assert image.dtype == torch.float32
    assert target.shape == made.input.tile
    assert target.dtype == torch.int64
    other = Patches(cases, made, augmentation, seed=6)
    assert any(not torch.equal(one[n][0], other[n][0]) for n in range(6))


@pytest.mark.parametrize(("dims", "tile"), [(2, (32, 16)), (3, (16, 32, 16)), (2, (96, 96))])
def test_a_patch_without_augmentation_is_a_crop(dims, tile, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng, tile=tile, depth=3)
    patches = Patches(cases, made, seed=1)
    lowest, highest = np.minimum(0, np.subtract(cases[0].shape, made.tile)), np.subtract(cases[0].shape, made.tile)
    for index in range(6):
        image, target = (part.numpy().reshape(made.tile) for part in patches[index])
        case = cases[patches._turn(index)]
        whole = np.pad(case.image()[0].astype(np.float32), [(n, n) for n in made.tile])
        label = np.pad(case.label(), [(n, n) for n in made.tile])
        found = []
        for corner in np.ndindex(*(np.maximum(highest, 0) - lowest + 1)):
            place = tuple(slice(a + b + n, a + b + 2 * n) for a, b, n in zip(corner, lowest, made.tile, strict=True))
            if np.abs(whole[place][:2, :2, :2] - image[:2, :2, :2]).max() < 1e-3:
                found.append(place)
        assert any(
            np.abs(whole[place] - image).max() < 1e-3 and np.array_equal(label[place], target) for place in found
        )


def test_a_patch_between_the_voxels_has_the_values_that_the_whole_image_has_there(tmp_path, rng):
    (case, *_), _ = prepared(3, tmp_path, rng)
    points = 4 + 2 * torch.rand((3, 3, 3, 3), generator=torch.Generator().manual_seed(0))
    image, target, inside = _read(case, points)
    whole, label = (torch.from_numpy(np.array(part)) for part in (case.image(), case.label()))
    torch.testing.assert_close(image, sample_linear(whole.float(), points))
    assert torch.equal(target, sample_nearest(label.long(), points))
    assert inside.all()


def test_every_case_has_a_patch_before_one_has_a_second(tmp_path, rng):
    cases, made = prepared(2, tmp_path, rng)
    patches = Patches(cases, made)
    assert all({patches._turn(n) for n in range(start, start + 3)} == {0, 1, 2} for start in (0, 3, 300))


def test_classes_are_seen_evenly_however_small_they_are(tmp_path, rng):
    (tmp_path / "data").mkdir()
    for name in "ab":
        scan = make_scan(rng, (1, 300, 300))
        array = np.zeros((1, 300, 300), np.uint8)
        array[0, :150] = 1
        array[0, 290:293, 290:293] = 2
        write_image(scan, tmp_path / "data" / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry), tmp_path / "data" / f"{name}_seg.nrrd")
    data = checked(tmp_path / "data")
    made = plan(data.fingerprint, Overrides(tile=(32, 32), depth=3))
    patches = Patches(prepare(data.cases, made, tmp_path / "prepared"), made)
    share = np.mean([bool((patches[n][1] == 2).any()) for n in range(150)])
    assert 0.2 < share < 0.5
    draws = (Draw(torch.device("cpu"), torch.Generator().manual_seed(n)) for n in range(60))
    assert len({tuple(patches._centre(patches.cases[0], draw).tolist()) for draw in draws}) > 30


def test_two_of_three_patches_have_a_voxel_of_a_class_in_their_middle(tmp_path, rng):
    (tmp_path / "data").mkdir()
    for name in "ab":
        scan = make_scan(rng, (1, 200, 200))
        array = np.zeros((1, 200, 200), np.uint8)
        array[0, 100, 90] = 1
        write_image(scan, tmp_path / "data" / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry), tmp_path / "data" / f"{name}_seg.nrrd")
    data = checked(tmp_path / "data")
    made = plan(data.fingerprint, Overrides(tile=(32, 32), spacing=(None, None), depth=3))
    patches = Patches(prepare(data.cases, made, tmp_path / "prepared"), made)
    assert np.mean([bool(patches[n][1][16, 16] == 1) for n in range(150)]) == pytest.approx(2 / 3, abs=0.1)


def test_thick_slices_are_not_blurred_into_each_other(tmp_path, rng):
    """Each slice of these images has one value, of which a change within the slices leaves nothing to see."""
    write_volumes(tmp_path / "data", "ab", rng, (20, 48, 48), (5.0, 1.0, 1.0))
    for path in (tmp_path / "data" / "images").iterdir():
        scan = read_image(path)
        values = np.broadcast_to(np.arange(20.0)[:, None, None] ** 2 % 7, scan.array.shape)
        write_image(Image(values, scan.geometry), path, overwrite=True)
    data = checked(tmp_path / "data")
    made = plan(data.fingerprint, Overrides(dims=3, tile=(16, 32, 32), spacing=(5.0, 1.0, 1.0), depth=3))
    cases = prepare(data.cases, made, tmp_path / "prepared")
    coarser = replace(STILL, pose_share=0, elastic_share=0, mirror=False, blur_share=1, resolution_share=1)
    changed, plain = Patches(cases, made, coarser), Patches(cases, made)
    for index in range(4):
        torch.testing.assert_close(changed[index][0], plain[index][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_lies_outside_of_the_image_is_zero_however_values_are_changed(dims, tmp_path, rng):
    cases, made = prepared(dims, tmp_path, rng, tile=(96,) * dims, spacing=(None,) * dims)
    noisy = replace(STILL, pose_share=0, elastic_share=0, noise_share=1, noise=(0.5, 0.5))
    for index in range(3):
        assert int((Patches(cases, made, noisy)[index][0] != 0).sum()) == np.prod(cases[0].shape)
