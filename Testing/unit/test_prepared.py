"""Cases on the model's grid: as the network is fed with them, and made once."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from dicom_files import write_series
from helpers import make_network
from training_data import ball, checked, prepared, write_pictures, write_volumes

import DeepLabSegLib.training.prepared
from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_image, write_image, write_labels
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.segmenter import Segmenter
from DeepLabSegLib.tiling import Tiling
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import case_key, prepare


@pytest.mark.parametrize("dims", [2, 3])
def test_a_prepared_case_is_what_the_segmenter_feeds_its_network(dims, tmp_path, rng, monkeypatch):
    (case, *_), made = prepared(dims, tmp_path, rng)
    bundle = Bundle("t", "t", made.network, made.input, made.labels, "none", "none")
    segmenter = Segmenter(bundle, make_network(made.network), "cpu")
    fed: list[torch.Tensor] = []
    original = Segmenter._logits_of

    def listening(self, passage):
        return lambda x: fed.extend(x) or original(self, passage)(x)

    monkeypatch.setattr(Segmenter, "_logits_of", listening)
    path = next((tmp_path / "data" / "images").glob("a.*"))
    segmenter.segment(read_image(path))
    pair = Patches([case], made)[0]
    assert len(Tiling(case.shape, made.tile, 0.25).corners) == len(fed) == 1
    torch.testing.assert_close(pair[0], fed[0], atol=2e-3, rtol=0)


def test_prepared_cases_are_made_once_and_again_when_something_changed(tmp_path, rng):
    data = checked(write_pictures(tmp_path / "data", "ab", rng))
    made, folder = plan(data.fingerprint), tmp_path / "prepared"

    def stamps() -> list[int]:
        prepare(data.cases, made, folder)
        return [path.stat().st_ino for path in sorted(folder.glob("*.image.npy"))]

    first = stamps()
    assert stamps() == first
    write_labels(ball(Geometry((1, 60, 48))), data.cases[1].label, overwrite=True)
    second = stamps()
    assert second[0] == first[0]
    assert second[1] != first[1]
    made = plan(data.fingerprint, Overrides(spacing=(2.0, 2.0)))
    assert not set(stamps()) & set(second)
    assert prepare(data.cases, made, folder)[0].spacing == (1.0, 2.0, 2.0)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    chosen = Overrides(spacing=(2.0, 2.0))
    for changed in ({"normalization": Normalization("zscore")}, {"names": ("Label 2", "Label 1")}):
        chosen = replace(chosen, **changed)
        before, made = stamps(), plan(data.fingerprint, chosen)
        assert all(one != other for one, other in zip(before, stamps(), strict=True))
    for path in [*folder.glob("*.npy")]:
        path.unlink()
        assert prepare(data.cases, made, folder)
        assert path.exists()


def test_a_file_of_another_size_is_another_one_even_where_archives_have_given_both_one_time(tmp_path, rng):
    data = checked(write_pictures(tmp_path, "ab", rng))
    case, made = data.cases[0], plan(data.fingerprint)
    keys = []
    for more in (b"", b"\0"):
        case.label.write_bytes(case.label.read_bytes() + more)
        os.utime(case.label, (0, 0))
        keys.append(case_key(case, made))
    assert keys[0] != keys[1]


def test_a_dicom_series_with_another_slice_is_prepared_again(tmp_path, rng):
    folder = write_volumes(tmp_path / "data", "ab", rng)
    data = checked(folder)
    scan = read_image(data.cases[0].images[0])
    case, made = replace(data.cases[0], images=(folder / "series",)), plan(data.fingerprint)
    kept = []
    for array in (scan.array, scan.array[..., ::-1]):
        write_series(folder / "series", replace(scan, array=1000 * array))
        (one,) = prepare([case], made, tmp_path / "prepared")
        kept.append(np.array(one.image()))
    assert not np.array_equal(*kept)


def test_values_as_they_are_are_kept_in_full(tmp_path, rng):
    data = checked(write_volumes(tmp_path / "data", "ab", rng))
    for path in (tmp_path / "data" / "images").iterdir():
        scan = read_image(path)
        write_image(replace(scan, array=scan.array * 1e6), path, overwrite=True)
    asked = Overrides(normalization=Normalization("none"), spacing=(None, None, None))
    (case, _) = prepare(data.cases, plan(data.fingerprint, asked), tmp_path / "prepared")
    np.testing.assert_allclose(np.abs(case.image()).max(), np.abs(read_image(data.cases[0].images[0]).array).max())


def test_cases_whose_names_differ_by_what_files_cannot_be_called_are_kept_apart(tmp_path, rng):
    data = checked(write_pictures(tmp_path / "data", "ab", rng))
    cases = [replace(case, name=name) for case, name in zip(data.cases, ("scan:1", "scan/1"), strict=True)]
    first, second = prepare(cases, plan(data.fingerprint), tmp_path / "prepared")
    assert first.stem.casefold() != second.stem.casefold()
    assert not np.array_equal(first.image(), second.image())


def test_a_case_that_is_too_large_at_the_plans_spacing_is_named(tmp_path, rng, monkeypatch):
    data = checked(write_volumes(tmp_path / "data", "ab", rng))
    monkeypatch.setattr(DeepLabSegLib.training.prepared, "MAX_VOXELS", 1000)
    with pytest.raises(InvalidInput, match=r"^a: at the plan's spacing the image has .* voxels, more than 1000"):
        prepare(data.cases, plan(data.fingerprint), tmp_path / "prepared")


@pytest.mark.parametrize("dims", [2, 3])
def test_of_a_preparation_that_was_cut_off_nothing_is_taken_for_another_plan(dims, tmp_path, rng, monkeypatch):
    cases, fine = prepared(dims, tmp_path, rng)
    data = checked(tmp_path / "data")
    coarse = plan(data.fingerprint, Overrides(spacing=(3.0,) * dims))
    kept = DeepLabSegLib.training.prepared._save

    def killed(path, array):
        kept(path, array)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeepLabSegLib.training.prepared, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(data.cases, coarse, tmp_path / "prepared")
    again, *_ = prepare(data.cases, fine, tmp_path / "prepared")
    assert again.image().shape[1:] == again.label().shape == cases[0].shape


@pytest.mark.parametrize("part", ["image", "label", "positions"])
@pytest.mark.parametrize("left", [0, 60, 200])
def test_of_what_a_power_cut_has_left_in_part_all_is_made_again(part, left, tmp_path, rng):
    (case, *_), made = prepared(2, tmp_path, rng)
    path = case.folder / f"{case.stem}.{part}.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    prepare(checked(tmp_path / "data").cases, made, case.folder)
    assert path.read_bytes() == whole


def test_what_a_kill_left_half_written_is_deleted(tmp_path, rng):
    (case, *_), made = prepared(2, tmp_path, rng)
    with replacing(case.folder / f"{case.stem}.image.npy") as half:
        half.write_bytes(b"whole")
    half.write_bytes(b"half")
    prepare(checked(tmp_path / "data").cases, made, case.folder)
    assert not half.exists()


def test_patches_are_centred_all_over_a_class_whose_rows_are_as_long_as_the_steps_between_its_voxels():
    """A voxel of each hundred, counted along rows of a hundred, would be those of one column."""
    classes = np.ones((1, 10_000, 100), np.uint8)
    positions = DeepLabSegLib.training.prepared._positions(classes)
    assert len(positions) == 10_000
    assert [len(np.unique(positions[:, axis])) > size / 2 for axis, size in ((2, 10_000), (3, 100))] == [True, True]
