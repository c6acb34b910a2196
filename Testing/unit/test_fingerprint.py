"""The classes of a data set, summed up from the segments and values of its labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import make_scan
from training_data import CORE, SHELL, ball, checked, write_segments

from DeepLabSegLib.files import write_image, write_labels
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology
from DeepLabSegLib.training.fingerprint import measure, summarize
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare


def test_names_and_colours_of_segments_carry_over_whatever_their_values(tmp_path, rng):
    """Slicer numbers segments in the order in which they were drawn."""
    liver, spleen = Segment(1, "Liver", (221, 130, 101)), Segment(2, "Spleen", (157, 108, 162))
    for name, swapped in (("a", False), ("b", False), ("c", True)):
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        labels = ball(scan.geometry)
        if swapped:
            array = np.choose(labels.array, [0, 2, 1]).astype(np.uint8)
            labels = replace(labels, array=array, segments=(replace(spleen, value=1), replace(liver, value=2)))
        else:
            labels = replace(labels, segments=(liver, spleen))
        write_labels(labels, tmp_path / f"{name}.seg.nrrd")
    data = checked(tmp_path)
    assert not data.faults
    made = plan(data.fingerprint)
    assert [(label.value, label.name, label.color) for label in made.labels] == [
        (1, "Liver", (221, 130, 101)),
        (2, "Spleen", (157, 108, 162)),
    ]
    first, _, third = (case.label() for case in prepare(data.cases, made, tmp_path / "prepared"))
    np.testing.assert_array_equal(first, third)


def test_classes_of_one_colour_are_told_apart_in_the_model(tmp_path, rng):
    """What is drawn first has Slicer's first colour: the kidney in one scan, the liver in the next."""
    green, bone = (128, 174, 128), (241, 214, 145)
    kidney, liver = Segment(1, "Kidney", green), Segment(2, "Liver", bone)
    both = (Segment(1, "Liver", green), Segment(2, "Kidney", bone))
    made = plan(checked(write_segments(tmp_path, rng, {"a": both, "b": (kidney, liver), "c": both})).fingerprint)
    assert [label.color for label in made.labels] == [green, bone]
    (tmp_path / "mixed").mkdir()
    cases = {"a": (kidney, Segment(2, "Spleen", bone)), "b": (Segment(1, "Liver", green), replace(kidney, value=2))}
    made = plan(checked(write_segments(tmp_path / "mixed", rng, cases)).fingerprint)
    assert len({label.color for label in made.labels}) == 3


def test_the_codes_of_segments_go_into_the_model(tmp_path, rng):
    codes = Terminology(("SCT", "123037004", "Anatomical Structure"), ("SCT", "64033007", "Kidney"))
    folder = write_segments(tmp_path, rng, dict.fromkeys("ab", (replace(SHELL, terminology=codes), CORE)))
    fingerprint = checked(folder).fingerprint
    assert [label.terminology for label in plan(fingerprint).labels] == [codes, None]
    renamed = plan(fingerprint, Overrides(names=("Rinde", "Mark"))).labels
    assert [label.terminology for label in renamed] == [codes, None]


def test_segments_of_one_name_are_one_class_of_one_case(tmp_path, rng):
    folder = write_segments(tmp_path, rng, dict.fromkeys("ab", (SHELL, replace(CORE, name="shell"))))
    (found,) = checked(folder).fingerprint.classes
    assert (found.name, found.cases) == ("Shell", 2)


def test_voxel_values_are_looked_at_all_over_a_label_of_whole_rows():
    """A voxel of each hundred, counted along rows of a hundred, would have one value."""
    grid = Geometry((1, 10_000, 100))
    image = Image(np.tile(np.arange(100.0), (1, 1, 10_000, 1)), grid)
    values = measure(image, Labels(np.ones(grid.shape, np.uint8), grid, (SHELL,))).values
    assert values.mean() == pytest.approx(49.5, abs=2)
    assert len(np.unique(values)) == 100


def test_sizes_and_spacings_of_scans_are_told_along_the_same_axes_however_these_are_stored(rng):
    """Of three scans the last is stored as a sagittal series: to the right, up, to the front."""
    sagittal = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0))
    axial = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    grids = [Geometry((20, 30, 10), (2, 3, 1), direction=axial)] * 2 + [
        Geometry((10, 20, 30), (1, 2, 3), direction=sagittal)
    ]
    found = summarize(
        [
            measure(Image(rng.random((1, *grid.shape)), grid), replace(ball(grid), segments=(SHELL, CORE)))
            for grid in grids
        ]
    )
    assert found.orientation == "SAR"
    assert found.shapes == ((20, 30, 10),) * 3
    assert found.spacings == ((2, 3, 1),) * 3
    assert found.spacing("RSA").tolist() == [1, 2, 3]
    assert found.extent("RSA").tolist() == [10, 40, 90]


def summary(*arrays):
    """The fingerprint of `arrays` `(C, 10, 20, 20)`, whose middle slices are labelled."""
    grid = Geometry((10, 20, 20))
    array = np.zeros(grid.shape, np.uint8)
    array[3:7] = 1
    return summarize([measure(Image(values, grid), Labels(array, grid, (SHELL,))) for values in arrays])


def test_scans_with_air_of_minus_1000_are_ct_and_one_odd_mr_or_several_channels_make_none(rng):
    mr, ct = rng.uniform(0, 900, (1, 10, 20, 20)), rng.uniform(-1000, 900, (1, 10, 20, 20))
    assert summary(*[ct] * 5).ct
    assert not summary(*[mr] * 4, ct).ct
    assert not summary(*[np.concatenate([ct, ct])] * 5).ct


def test_a_ct_window_leaves_out_metal_and_a_label_of_one_value_gives_none(rng):
    ct = rng.uniform(-1000, 900, (1, 10, 20, 20))
    ct[0, 5, 5, 5] = 30_000
    scaling = plan(summary(ct, ct)).input.normalization
    assert scaling.method == "window"
    assert -1000 < scaling.lower < -950
    assert 850 < scaling.upper < 900
    ct[0, 3:7] = 40
    assert plan(summary(ct, ct)).input.normalization.method == "zscore"


def test_a_ct_window_is_that_of_what_is_labelled_however_many_healthy_scans_there_are(rng):
    ct = rng.uniform(-1000, 900, (1, 10, 20, 20))
    ct[0, 3:7] = rng.uniform(0, 100, (4, 20, 20))
    grid = Geometry(ct.shape[1:])
    healthy = measure(Image(ct, grid), Labels(np.zeros(grid.shape, np.uint8), grid))
    array = np.zeros(grid.shape, np.uint8)
    array[3:7] = 1
    ill = measure(Image(ct, grid), Labels(array, grid, (SHELL,)))
    assert summarize([ill, healthy, healthy]).values == summarize([ill]).values
