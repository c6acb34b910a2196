"""What a data set's fingerprint makes of a training: grid, tile, scaling, classes, mirror axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import make_scan, physically_equal
from training_data import ball, checked, write_pictures, write_segments, write_volumes

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import write_image, write_labels
from DeepLabSegLib.image import Labels, Segment, Terminology
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training.planning import Overrides, _tile, plan
from DeepLabSegLib.training.prepared import prepare

# --- grid, tile and scaling ------------------------------------------------------------------------------------------


def test_an_image_that_fits_into_the_tile_is_worked_on_finer(tmp_path, rng):
    made = plan(checked(write_volumes(tmp_path, "ab", rng, (36, 50, 35), (1, 1, 1))).fingerprint)
    assert made.network.dims == 3
    assert made.input.spacing == (0.5, 0.5, 0.5)
    assert made.input.tile == (80, 112, 80)
    assert made.network.encoder_depth == 3
    assert [label.name for label in made.labels] == ["Label 1", "Label 2"]


def test_a_tile_has_room_for_the_part_of_a_voxel_more_that_a_finer_grid_needs(tmp_path, rng):
    made = plan(checked(write_volumes(tmp_path, "ab", rng, (32, 48, 40), (1, 1, 1))).fingerprint)
    assert (made.input.spacing, made.input.tile) == ((0.5, 0.5, 0.5), (80, 112, 96))


@pytest.mark.parametrize(("thickness", "orientation"), [(1.2, "SAR"), (1.5, "RSA")])
def test_axes_keep_their_order_unless_one_is_clearly_thicker(thickness, orientation, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng, (30, 36, 30), (1, 1, thickness))).fingerprint
    assert fingerprint.orientation == "SAR"
    assert plan(fingerprint).input.orientation == orientation


def test_an_image_larger_than_the_tile_keeps_its_spacing(tmp_path, rng):
    made = plan(checked(write_pictures(tmp_path, "ab", rng, (500, 700))).fingerprint)
    assert made.network.dims == 2
    assert made.input.orientation is None
    assert made.input.spacing == (None, 1.0, 1.0)
    assert np.prod(made.input.tile) <= 400**2
    assert all(size % 16 == 0 for size in made.input.tile)


@pytest.mark.parametrize(("slices", "dims", "spacing"), [(8, 2, (None, 0.5, 0.5)), (20, 3, (6.0, 0.5, 0.5))])
def test_thick_slices_are_never_refined_and_few_of_them_are_worked_on_one_by_one(slices, dims, spacing, tmp_path, rng):
    made = plan(checked(write_volumes(tmp_path, "ab", rng, (slices, 40, 36), (6, 1, 1))).fingerprint)
    assert made.network.dims == dims
    assert made.input.spacing == spacing
    assert made.planar


def test_few_slices_that_are_not_thick_are_a_volume(tmp_path, rng):
    assert plan(checked(write_volumes(tmp_path, "ab", rng, (10, 40, 36), (1.5, 1, 1))).fingerprint).network.dims == 3


def test_a_tile_is_cut_where_it_is_longest_in_mm():
    assert _tile(np.array([120, 140, 140]), np.array([2.9, 1.0, 1.0]), 3, 16) == (48, 128, 144)


def test_the_thickest_voxels_come_first_however_scans_are_stored(tmp_path, rng):
    for name, order in (("a", (0, 1, 2)), ("b", (2, 1, 0)), ("c", (2, 1, 0))):
        scan = physically_equal(make_scan(rng), order, (1,))
        write_image(scan, tmp_path / f"{name}.nii.gz")
        write_labels(ball(scan.geometry), tmp_path / f"{name}_seg.nii.gz")
    made = plan(checked(tmp_path).fingerprint)
    assert made.input.orientation == "SRA"


def test_ct_gets_one_window_for_all_scans(tmp_path, rng):
    for name in "abc":
        scan = make_scan(rng)
        write_image(replace(scan, array=scan.array * 3 - 1000), tmp_path / f"{name}.nii.gz")
        write_labels(ball(scan.geometry), tmp_path / f"{name}_seg.nii.gz")
    scaling = plan(checked(tmp_path).fingerprint).input.normalization
    assert scaling.method == "window"
    assert scaling.mean is not None


# --- choices ---------------------------------------------------------------------------------------------------------


def test_everything_can_be_chosen(tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    chosen = Overrides(
        encoder="densenet121", depth=4, dims=2, spacing=(None, 2.0, 2.0), tile=(32, 48), batch_size=3,
        normalization=Normalization("zscore"), orientation="ASR", names=("Shell", "Core"), channels=("T1",),
    )  # fmt: skip
    made = plan(fingerprint, chosen)
    assert (made.network.encoder_name, made.network.encoder_depth, made.network.dims) == ("densenet121", 4, 2)
    assert made.input.spacing == (None, 2.0, 2.0)
    assert made.tile == (1, 32, 48)
    assert made.batch_size == 3
    assert made.input.normalization.method == "zscore"
    assert made.input.orientation == "ASR"
    assert [label.name for label in made.labels] == ["Shell", "Core"]
    assert made.names == ("Label 1", "Label 2")
    assert plan(fingerprint, Overrides(dims=2, spacing=(2.0, 2.0))).input.spacing == (None, 2.0, 2.0)
    assert plan(fingerprint, Overrides(dims=3, depth=5)).input.tile == (32, 96, 96)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dims": 4}, "dims"),
        ({"tile": (30, 32, 32)}, "32x32x32"),
        ({"tile": (32, 32)}, "needs 3 sizes"),
        ({"names": ("one",)}, r"2 classes \(1, 2\); give as many names, not 1"),
        ({"names": ("one", " ")}, "hold an empty one"),
        ({"names": ("one", "One ")}, "hold one twice"),
        ({"mirror_axes": (0, 3)}, "mirror_axes are k, 3; .* a 3D network has k, j, i$"),
        ({"dims": 2, "mirror_axes": (0,)}, "mirror_axes are k; .* a 2D network has j, i$"),
        ({"channels": ("a", "b")}, "2 channels"),
        ({"spacing": (1.0,)}, "spacing"),
        ({"spacing": (1.0, 0.0, 1.0)}, "above 0"),
        ({"spacing": (1e-3, 1e-3, 1e-3)}, "voxels, more than .* choose a coarser one"),
        ({"orientation": "SAA"}, "orientation"),
        ({"batch_size": 0}, "batch_size"),
        ({"encoder": "resnet1"}, "encoder_name"),
        ({"depth": 6}, "depth"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(wrong, words, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    with pytest.raises(InvalidInput, match=words):
        plan(fingerprint, Overrides(**{"dims": 3, **wrong}))


# --- classes and the sides that their names tell apart ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (None, "labels 1 Spleen, 2 Liver"),
        (("Liver", "Spleen"), "labels 1 Liver, 2 Spleen"),
        (("liver", "Spleen"), "labels 1 Liver -> liver, 2 Spleen"),
        (("Milz", "Leber"), "labels 1 Spleen -> Milz, 2 Liver -> Leber"),
    ],
)
def test_names_that_segments_have_already_say_their_order_and_others_are_new(names, words, tmp_path, rng):
    spleen, liver = Segment(1, "Spleen", (157, 108, 162)), Segment(2, "Liver", (221, 130, 101))
    for name in "ab":
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(replace(ball(scan.geometry), segments=(spleen, liver)), tmp_path / f"{name}.seg.nrrd")
    data = checked(tmp_path)
    made = plan(data.fingerprint, Overrides(names=names, spacing=(None, None, None), orientation="SAR"))
    assert words in made.lines()
    found = prepare(data.cases, made, tmp_path / "prepared")[0].label()
    first, core = made.labels[0], ball(scan.geometry).array == 2
    np.testing.assert_array_equal(found == (1 if first.color == liver.color else 2), core)


@pytest.mark.parametrize("names", [("Liver", "Milz"), ("Milz", "spleen ")])
def test_a_name_of_one_class_is_never_given_to_another(names, tmp_path, rng):
    segments = (Segment(1, "Spleen", (157, 108, 162)), Segment(2, "Liver", (221, 130, 101)))
    fingerprint = checked(write_segments(tmp_path, rng, {"a": segments, "b": segments})).fingerprint
    with pytest.raises(InvalidInput, match=f"names Spleen, Liver, and .{names[names[0] == 'Milz']}. .* in the model's"):
        plan(fingerprint, Overrides(names=names))
    with pytest.raises(InvalidInput, match=r"2 classes \(Spleen, Liver\); give as many names, not 1"):
        plan(fingerprint, Overrides(names=("Liver",)))
    assert plan(fingerprint, Overrides(names=("Milz", "liver"))).names == ("Spleen", "Liver")


def test_more_classes_than_a_byte_holds_are_refused(tmp_path, rng):
    for name, first in (("a", 1), ("b", 201)):
        scan = make_scan(rng)
        array = np.zeros(scan.geometry.shape, np.uint16)
        array[0, ::2, ::2].flat[:200] = np.arange(first, first + 200)
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry), tmp_path / f"{name}_seg.nrrd")
    with pytest.raises(InvalidInput, match="hold 400 classes; at most 255"):
        plan(checked(tmp_path).fingerprint)


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("Liver", "Spleen"), (0, 1, 2)),
        (("Left kidney", "Right kidney"), (0, 1)),
        (("LeftKidney", "RightKidney"), (0, 1)),
        (("Kidney L", "Kidney R"), (0, 1)),
        (("Kidney L/R", "RKidney"), (0, 1)),
        (("Lung (left)", "Lung (right)"), (0, 1)),
        (("LUNG_LT", "LUNG_RT"), (0, 1)),
        (("ctx-lh-cuneus", "ctx-rh-cuneus"), (0, 1)),
        (("kidneyLeft1", "kidneyRight1"), (0, 1)),
        (("vertebrae_L1", "Artère l3"), (0, 1)),
        (("vertebrae_L1", "Artériel"), (0, 1, 2)),
        (("Anterior", "Posterior"), (0, 2)),
        (("leftkidney", "rightkidney"), (0, 1)),
        (("Niere links", "Niere rechts"), (0, 1)),
        (("Rein gauche", "Rein droit"), (0, 1)),
        (("Riñón izquierdo", "Riñón derecho"), (0, 1)),
        (("A. carotis sin.", "A. carotis dext."), (0, 1)),
        (("LUL", "RUL"), (0, 1)),
        (("LV myocardium", "RV"), (0, 1)),
        (("LUL", "RLL"), (0, 1, 2)),
        (("Hippocampus_ant", "Hippocampus_post"), (0, 2)),
        (("Cranial part", "Gyrus temp. inf."), (1, 2)),
    ],
)
def test_an_axis_that_names_tell_apart_is_not_turned_round(names, axes, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    assert plan(fingerprint, Overrides(dims=3, orientation="SAR", names=names)).input.mirror_axes == axes


def test_an_axis_that_meanings_of_segments_tell_apart_is_not_turned_round(tmp_path, rng):
    tissue, kidney = ("SCT", "123037004", "Anatomical Structure"), ("SCT", "64033007", "Kidney")
    sides = (("SCT", "7771000", "Left"), ("SCT", "24028007", "Right"))
    segments = tuple(
        Segment(n, f"Kidney {n}", (n, n, n), Terminology(tissue, kidney, side)) for n, side in enumerate(sides, 1)
    )
    fingerprint = checked(write_segments(tmp_path, rng, {"a": segments, "b": segments})).fingerprint
    assert plan(fingerprint, Overrides(dims=3, orientation="SAR")).input.mirror_axes == (0, 1)


@pytest.mark.parametrize(("axes", "words"), [((0, 2), "mirrored along k, i"), ((), "mirrored along no axis")])
def test_the_axes_of_mirror_images_are_said_and_can_be_chosen(axes, words, tmp_path, rng):
    fingerprint = checked(write_volumes(tmp_path, "ab", rng)).fingerprint
    assert "mirrored along k, j, i" in plan(fingerprint, Overrides(dims=3)).lines()
    made = plan(fingerprint, Overrides(dims=3, mirror_axes=axes))
    assert made.input.mirror_axes == axes
    assert words in made.lines()
