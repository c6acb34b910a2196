"""An image and its labels on disk: what makes a pair, and where a label lies on its image."""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import make_scan, physically_equal
from PIL import Image as Picture
from PIL import ImageFilter
from scipy import ndimage
from scipy.spatial import cKDTree
from training_data import CORE, SHELL, ball, checked, write_data, write_pictures, write_volumes

from DeepLabSegLib.files import read_image, read_labels, write_image, write_labels
from DeepLabSegLib.image import AXIS_ALIGNED, Geometry, Image, Labels, Segment
from DeepLabSegLib.training import pairs
from DeepLabSegLib.training.cases import Case
from DeepLabSegLib.training.pairs import BadPair, class_of, on_grid, read_pair
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare

# --- values of labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "faults"), [("P", 1), ("RGB", 1), ("RGBA", 0)], ids=["palette", "colours", "grey"])
def test_a_mask_has_one_grey_value_per_class(kind, faults, tmp_path, rng):
    folder = write_pictures(tmp_path, "abc", rng)
    mask = Picture.open(folder / "labels/b.png")
    if faults:
        mask = mask.convert("P")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    mask.convert(kind).save(folder / "labels/b.png")
    found = checked(folder).faults
    assert [fault.name for fault in found] == ["b"] * faults
    assert all("save the mask with one grey value per class" in fault.problem for fault in found)


def soft(mask: np.ndarray, how: str) -> np.ndarray:
    """A mask as programs spoil it that smooth its edges."""
    picture, size = Picture.fromarray(mask), mask.shape[::-1]
    if how == "blurred":
        return np.array(picture.filter(ImageFilter.GaussianBlur(2)))
    if how == "jpeg":
        buffer = BytesIO()
        picture.save(buffer, "JPEG")
        return np.array(Picture.open(buffer))
    if how == "enlarged":
        half = picture.resize([n // 2 for n in size], Picture.Resampling.NEAREST)
        return np.array(half.resize(size, Picture.Resampling.BILINEAR))
    drawn = np.roll(np.kron(mask, np.ones((2, 2), np.uint8)), 1, (0, 1))
    return np.array(Picture.fromarray(drawn).resize(size, Picture.Resampling.BOX))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("how", ["blurred", "jpeg", "enlarged", "reduced"])
def test_a_mask_with_smoothed_edges_is_refused(dims, how, tmp_path, rng):
    folder = write_data(dims, tmp_path, rng)
    for path in (folder / "labels").iterdir():
        labels = read_labels(path)
        array = np.where(labels.array > 0, 255, 0).astype(np.uint8)
        if path.name.startswith("b"):
            array = np.stack([soft(plane, how) for plane in array])
        write_labels(replace(labels, array=array), path, overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "only rim others" in fault.problem
    assert "nearest neighbour" in fault.problem


def regions(shape: tuple[int, int, int], points: int, classes: int) -> np.ndarray:
    """Classes in no order that fill a grid, a region around each point."""
    rng = np.random.default_rng(0)
    tree = cKDTree(rng.uniform(0, shape, (points, 3)))
    nearest = tree.query(np.argwhere(np.ones(shape)))[1].reshape(shape)
    return rng.permutation(np.arange(points) % classes)[nearest].astype(np.uint8)


def landmarks(shape: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[0, 1:-1:5, 1:-1:5].flat[:30] = np.arange(1, 31)
    return array


def layers(shape: tuple[int, int, int]) -> np.ndarray:
    """Nine of them, two voxels thick."""
    return np.broadcast_to(np.clip(np.arange(shape[1])[:, None] // 2 - 4, 0, 9), shape).astype(np.uint8)


def thin_layers(shape: tuple[int, int, int]) -> np.ndarray:
    """Three layers of a voxel among nine, each between a smaller value and a larger one."""
    values = np.repeat(np.arange(10), [15, 3, 3, 1, 3, 1, 3, 1, 3, shape[1] - 33])
    return np.broadcast_to(values[:, None], shape).astype(np.uint8)


def contours(shape: tuple[int, int, int]) -> np.ndarray:
    """Two bodies in skins that are a voxel thick and have values in between."""
    inner = ball(Geometry(shape)).array > 0
    skin = inner & ~ndimage.binary_erosion(inner, np.ones((1, 3, 3)))
    return np.where(skin, 1, 2 * inner) + np.where(np.arange(shape[2]) < shape[2] // 2, 0, 2 * inner).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 96, 96), (12, 48, 48)])
@pytest.mark.parametrize(
    "honest",
    [
        lambda shape: regions(shape, 200, 34),
        lambda shape: regions(shape, 400, 150),
        landmarks,
        layers,
        thin_layers,
        contours,
    ],
    ids=["34 classes", "150 classes", "landmarks", "layers", "thin layers", "contours"],
)
def test_labels_of_many_classes_small_or_thin_ones_are_none_with_smoothed_edges(honest, shape, tmp_path, rng):
    for name in "ab":
        scan = make_scan(rng, shape)
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(Labels(honest(shape), scan.geometry), tmp_path / f"{name}_seg.nrrd")
    data = checked(tmp_path)
    assert not data.faults
    assert len(data.fingerprint.classes) >= 4


def test_segments_with_names_may_be_as_thin_as_smoothed_edges(tmp_path, rng):
    for name in "ab":
        scan = make_scan(rng)
        array = np.broadcast_to(np.arange(scan.geometry.shape[1])[:, None] % 20, scan.geometry.shape).astype(np.uint8)
        segments = tuple(Segment(value, f"Layer {value}", (9, 9, 9)) for value in range(1, 20))
        write_image(scan, tmp_path / f"{name}.nrrd")
        write_labels(Labels(array, scan.geometry, segments), tmp_path / f"{name}.seg.nrrd")
    assert not checked(tmp_path).faults


@pytest.mark.parametrize("shape", [(1, 40, 36), (12, 40, 36)])
def test_a_label_of_more_values_than_a_byte_holds_is_refused(shape, tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng, shape)
    path, array = folder / "labels/b.nii.gz", np.arange(np.prod(shape)).reshape(shape) % 257
    write_labels(replace(read_labels(path), array=array, segments=()), path, overwrite=True)
    faults = checked(folder).faults
    assert {fault.name for fault in faults} == {"b"}
    assert any("holds 256 different values; a label has at most 255" in fault.problem for fault in faults)


def test_layers_that_do_not_overlap_become_one_and_others_are_refused(tmp_path, rng):
    for name, overlap in (("a", False), ("b", False), ("c", True)):
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        values = ball(scan.geometry).array
        layers = np.stack([values == 1, (values > 0) if overlap else (values == 2)]).astype(np.uint8)
        segments = (Segment(1, "Shell", (9, 9, 9), layer=0), Segment(1, "Core", (8, 8, 8), layer=1))
        write_labels(Labels(layers, scan.geometry, segments), tmp_path / f"{name}.seg.nrrd")
    data = checked(tmp_path)
    assert [case.name for case in data.cases] == ["a", "b"]
    (fault,) = data.faults
    assert "the segments 'Shell' and 'Core' overlap in" in fault.problem
    made = plan(data.fingerprint)
    assert [label.name for label in made.labels] == ["Shell", "Core"]
    assert set(np.unique(prepare(data.cases, made, tmp_path / "prepared")[0].label())) == {0, 1, 2}


# --- places of labels ------------------------------------------------------------------------------------------------


def test_a_picture_and_a_label_of_another_size_are_refused(tmp_path, rng):
    folder = write_pictures(tmp_path, ["a", "b", "c"], rng)
    write_labels(ball(Geometry((1, 30, 24))), folder / "labels" / "b.png", overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "1 x 30 x 24 voxels and its image 1 x 60 x 48" in fault.problem


def test_a_picture_and_its_label_lie_on_each_other_whatever_size_of_voxels_they_name(tmp_path, rng):
    folder = write_pictures(tmp_path / "data", "abc", rng)
    for path in (folder / "images").iterdir():
        picture = sitk.ReadImage(path)
        picture.SetSpacing((0.5, 0.5))
        sitk.WriteImage(picture, path.with_suffix(".nrrd"))
        path.unlink()
    data = checked(folder)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None)))
    label = read_labels(data.cases[0].label).array
    np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[0].label(), label)


def change_header(path: Path, **parts) -> None:
    """Write an image file again with another spacing, origin or direction."""
    found = read_image(path)
    write_image(replace(found, geometry=replace(found.geometry, **parts)), path, overwrite=True)


def oblique(degrees: float, axes=AXIS_ALIGNED):
    """Directions that are turned about k."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return tuple(map(tuple, np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ axes))


NO_HEADER = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": AXIS_ALIGNED}
ITK_AXES = ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "lost",
    [
        {"spacing": (1.0, 1.0, 1.0)},
        {"origin": (0.0, 0.0, 0.0)},
        {"direction": AXIS_ALIGNED},
        NO_HEADER,
        {**NO_HEADER, "direction": ITK_AXES},
    ],
    ids=["spacing", "origin", "direction", "NIfTI's default", "ITK's default"],
)
def test_a_label_without_its_images_header_is_refused(lost, tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng)
    direction = oblique(10, lost.get("direction", AXIS_ALIGNED))
    for part in ("images", "labels"):
        change_header(folder / part / "b.nii.gz", origin=(9.0, 8.0, -6.0), direction=direction)
    change_header(folder / "labels/b.nii.gz", **lost)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "its image's 12 x 40 x 36 voxels at other places" in fault.problem
    assert "copy the image's header" in fault.problem
    _, own, its = re.split(r"at other places: |, and the image |; copy", fault.problem)[:3]
    assert own != its


@pytest.mark.parametrize(
    "own",
    [
        {"origin": (-17.0, 38.5, 10.25)},
        {"spacing": (2.5, 1.0, 1.0), "origin": (-15.0, 40.0, 8.0)},
        {"spacing": (1.0, 1.0, 1.0), "origin": (-15.0, 40.0, 12.0)},
        {"direction": oblique(3)},
    ],
    ids=["another part", "around an organ", "conformed", "turned"],
)
def test_a_label_of_its_images_shape_lies_where_its_own_header_says(own, tmp_path, rng):
    folder = write_volumes(tmp_path / "data", "ab", rng)
    change_header(folder / "labels/b.nii.gz", **own)
    data = checked(folder)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None), orientation="SAR"))
    label = prepare(data.cases, made, tmp_path / "prepared")[1].label()
    labels, image = read_labels(folder / "labels/b.nii.gz"), read_image(folder / "images/b.nii.gz")
    np.testing.assert_array_equal(label, on_grid(labels, image.geometry))
    assert (label != labels.array).any()


@pytest.mark.parametrize("depth", [1, 3])
def test_on_a_finer_and_larger_grid_a_label_has_its_own_values_and_none_beyond(depth):
    array = np.random.default_rng(0).choice([2, 5], (depth, 6, 7)).astype(np.uint8)
    labels = Labels(array, Geometry(array.shape, (1.0, 2.0, 2.0), (9.0, 8.0, -6.0)))
    finer = Geometry((depth, 16, 18), (1.0, 1.0, 1.0), (6.5, 5.5, -6.0))  # two voxels more on each side
    expected = np.pad(array.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(on_grid(labels, finer), expected)


@pytest.mark.parametrize(("voxels", "faults"), [(0.5, 0), (-0.5, 0), (1.0, 1), (-1.0, 1)])
def test_a_label_that_is_counted_from_the_corner_lies_on_its_image(voxels, faults, tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng, spacing=(3.3, 0.7, 0.7))
    change_header(folder / "images/b.nii.gz", origin=tuple(voxels * mm for mm in (0.7, 0.7, 3.3)))
    change_header(folder / "labels/b.nii.gz", origin=(0.0, 0.0, 0.0))  # as a lost one, but hardly elsewhere
    assert [fault.name for fault in checked(folder).faults] == ["b"] * faults


def test_a_label_whose_axes_are_turned_round_lies_at_its_place(tmp_path, rng):
    folder = write_volumes(tmp_path / "data", "ab", rng)
    labels = read_labels(folder / "labels/b.nii.gz")
    turned = physically_equal(Image(labels.array, labels.geometry), (0, 1, 2), (0, 2))
    write_labels(Labels(turned.array[0], turned.geometry), folder / "labels/b.nii.gz", overwrite=True)
    data = checked(folder)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None), orientation="SAR"))
    np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[1].label(), labels.array)


def test_a_structure_smaller_than_a_voxel_of_its_image_lies_on_it_by_its_place(tmp_path, rng):
    folder = write_volumes(tmp_path, "abc", rng, (12, 40, 36), (6.0, 2.0, 2.0))
    small = np.zeros((48, 40, 36), np.uint8)
    small[20, 20, 18] = 1  # the image's slices lie at other places
    for name, away in (("b", 0.0), ("c", 90.0)):
        geometry = read_image(folder / f"images/{name}.nii.gz").geometry
        origin = tuple(np.subtract(geometry.origin, (0, 0, 2.25 + away)))
        fine = replace(geometry, shape=small.shape, spacing=(1.5, 2.0, 2.0), origin=origin)
        write_labels(Labels(small, fine), folder / f"labels/{name}.nii.gz", overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "c"
    assert "lies to 0% on its image" in fault.problem


def test_a_segmentation_cropped_to_its_segments_lies_at_its_place(tmp_path, rng):
    for name in "ab":
        scan = make_scan(rng)
        write_image(scan, tmp_path / f"{name}.nrrd")
        labels = ball(scan.geometry)
        box = tuple(slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(labels.array))
        origin = (scan.geometry.affine @ [*(side.start for side in box), 1])[:3]
        array = labels.array[box]
        cropped = Labels(array, replace(scan.geometry, shape=array.shape, origin=tuple(origin)))
        write_labels(cropped, tmp_path / f"{name}_seg.nrrd")
    data = checked(tmp_path)
    assert not data.faults
    made = plan(data.fingerprint, Overrides(spacing=(None, None, None), orientation="SAR"))
    np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[0].label(), labels.array)


@pytest.mark.parametrize("moved", [False, True])
def test_a_segmentation_of_a_picture_may_be_cropped_to_its_segments(moved, tmp_path, rng):
    folder = write_pictures(tmp_path / "data", "ab", rng)
    whole = read_labels(folder / "labels/b.png")
    geometry = read_image(folder / "images/b.png").geometry
    box = tuple(slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(whole.array))
    origin = (geometry.affine @ [*(side.start + 0.5 * moved for side in box), 1])[:3]
    part = Labels(
        whole.array[box], replace(geometry, shape=whole.array[box].shape, origin=tuple(origin)), (SHELL, CORE)
    )
    (folder / "labels/b.png").unlink()
    write_labels(part, folder / "labels/b.seg.nrrd")
    write_pictures(tmp_path / "data", "c", rng)
    data = checked(folder)
    assert [fault.name for fault in data.faults] == ["b"] * moved
    if not moved:
        made = plan(data.fingerprint, Overrides(spacing=(None, None, None)))
        np.testing.assert_array_equal(prepare(data.cases, made, tmp_path / "prepared")[1].label(), whole.array)


@pytest.mark.parametrize(
    ("first", "pixel", "rim", "name"),
    [
        ((0, -4, 8), 1.0, 0, "b.seg.nrrd"),
        ((0, 8, 36), 1.0, 0, "b.seg.nrrd"),
        ((0, 8, 8), 0.5, 0, "b.seg.nrrd"),
        ((0, 8, 8), 1.0, 1, "b.seg.nrrd"),
        ((0, 8, 8), 1.0, 0, "b.nrrd"),
    ],
    ids=["before it", "beyond it", "other pixels", "an empty rim", "no segmentation"],
)
def test_a_part_of_a_picture_that_is_no_segmentation_cropped_to_its_segments_is_refused(
    first, pixel, rim, name, tmp_path, rng
):
    folder = write_pictures(tmp_path, "abc", rng)
    (folder / "labels/b.png").unlink()
    geometry = read_image(folder / "images/b.png").geometry
    array = np.pad(np.ones((1, 20, 16), np.uint8), ((0, 0), (rim, rim), (rim, rim)))
    origin = tuple((geometry.affine @ [*first, 1])[:3])
    part = replace(geometry, shape=array.shape, spacing=(1.0, pixel, pixel), origin=origin)
    write_labels(Labels(array, part, (SHELL,)), folder / "labels" / name)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert "pictures have no positions, so save the label at the image's size" in fault.problem


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("beyond", [False, True])
def test_most_of_a_label_must_lie_on_its_image(beyond, axis, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(pairs, "SAMPLE", 100)  # of 1000 voxels: every tenth would lie in one plane
    folder = write_volumes(tmp_path, "abc", rng)
    geometry = read_image(folder / "images/b.nii.gz").geometry
    for name, planes in (("b", 3), ("c", 7)):
        first = np.ones(4)
        first[axis] = geometry.shape[axis] - planes if beyond else planes - 10
        part = replace(geometry, shape=(10, 10, 10), origin=tuple((geometry.affine @ first)[:3]))
        write_labels(Labels(np.ones(part.shape, np.uint8), part), folder / f"labels/{name}.nii.gz", overwrite=True)
    (fault,) = checked(folder).faults
    assert fault.name == "b"
    assert re.search(r"lies to [23]\d% on its image", fault.problem)


@pytest.mark.parametrize("beside", [-100.0, 100.0])
def test_a_channel_that_lies_elsewhere_than_the_first_is_named(beside, tmp_path, rng):
    folder = write_volumes(tmp_path, "ab", rng)
    change_header(folder / "images/b.nii.gz", origin=(beside, 0.0, 0.0))
    case = Case("a", (folder / "images/a.nii.gz", folder / "images/b.nii.gz"), folder / "labels/b.nii.gz", "a")
    with pytest.raises(BadPair, match=r"b\.nii\.gz lies elsewhere than .*a\.nii\.gz; register the channels"):
        read_pair(case)


def test_the_name_of_a_segment_decides_its_class_and_its_value_where_it_has_none():
    names, values = ("Shell", "Core"), (1, 2)
    found = {name: class_of(Segment(1, name, (9, 9, 9)), names, values) for name in ("core ", "Label 1", "Lesion")}
    assert found == {"core ": 1, "Label 1": 0, "Lesion": None}
