from dataclasses import replace

import numpy as np
import pytest
from helpers import make_scan, make_segmenter, physically_equal

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.preprocess import stack_channels
from DeepLabSegLib.region import Region, crop
from DeepLabSegLib.segmenter import SegmentOptions

GRID = Geometry((10, 20, 30), (3.0, 2.0, 1.0), (-15.0, -20.0, 5.0))
TURN = ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
SHEARED = ((0.8, 0.6, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # as a transform in Slicer may leave it


def inside(region: Region, geometry: Geometry) -> np.ndarray:
    """From the definition: every voxel centre, in the box's own axes."""
    k, j, i = np.indices(geometry.shape)
    points = np.stack([k, j, i, np.ones_like(k)], -1) @ geometry.affine[:3].T
    away = np.abs((points - region.center) @ np.linalg.inv(region.axes))
    return (away <= np.array(region.size) / 2 + 1e-6).all(-1)


@pytest.mark.parametrize("axes", [((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), TURN, SHEARED])
def test_the_box_is_tight_around_the_voxels_inside(axes):
    region = Region((0.0, 0.0, 20.0), (8.0, 10.0, 12.0), axes)
    box, mask = region.box(GRID), inside(region, GRID)
    outside = mask.copy()
    outside[box] = False
    assert mask.any()
    assert not outside.any()
    if axes not in (TURN, SHEARED):
        assert mask[box].all()
    labels = np.ones((2, *GRID.shape), np.uint8)
    region.clear_outside(labels, GRID)
    np.testing.assert_array_equal(labels[1], mask)


def test_the_margin_is_in_mm_along_each_axis_of_the_grid():
    region = Region((0.0, 0.0, 20.0), (8.0, 10.0, 12.0))
    for axis, size in enumerate(GRID.spacing):
        margin = np.eye(3)[axis] * 6.0
        box, wider = region.box(GRID), region.box(GRID, margin)
        grown = [(near.start - far.start, far.stop - near.stop) for near, far in zip(box, wider, strict=True)]
        assert grown == [(6 / size, 6 / size) if n == axis else (0, 0) for n in range(3)]


def test_a_region_that_ends_at_the_very_centres_of_voxels_holds_these_however_it_rounds():
    grid = Geometry((5, 40, 40), (3.0, 0.7, 0.3), (-15.1, -20.3, 5.7), TURN)
    for n in range(1, 16):
        center, size = (grid.affine @ [2, 20, 20, 1])[:3], 2 * n * np.array([0.1, 0.7, 0.3])
        box = Region(tuple(center), tuple(size), TURN).box(grid)
        assert box[1:] == (slice(20 - n, 21 + n),) * 2


def test_the_axes_of_a_region_are_directions_however_long():
    region = Region((0.0, 0.0, 20.0), (8.0, 10.0, 12.0), TURN)
    longer = replace(region, axes=tuple(map(tuple, np.array(TURN) * [[2.0], [3.0], [0.5]])))
    assert longer.box(GRID) == region.box(GRID)
    labels = np.ones(GRID.shape, np.uint8)
    longer.clear_outside(labels, GRID)
    np.testing.assert_array_equal(labels, inside(region, GRID))
    shorter = replace(region, axes=tuple(map(tuple, np.array(TURN) / 1000)))
    assert shorter.box(GRID) == region.box(GRID)
    for axes in ((TURN[0], TURN[0], TURN[2]), (TURN[0], (0.0, 0.0, 0.0), TURN[2])):
        with pytest.raises(InvalidInput, match="two of them coincide"):
            replace(region, axes=axes)


def test_a_region_of_arrays_is_equal_to_one_of_tuples_and_written_alike():
    plain = Region((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), TURN)
    given = Region(np.array([1, 2, 3]), [4, 5, 6], np.array(TURN))
    assert given == plain
    assert repr(given) == repr(plain)
    assert hash(given) == hash(plain)


def test_a_crop_keeps_its_place_in_space():
    image = Image(np.arange(6000.0).reshape(GRID.shape), GRID)
    part = crop(image, (slice(2, 5), slice(4, 9), slice(10, 12)))
    assert part.array[0, 0, 0, 0] == image.array[0, 2, 4, 10]
    np.testing.assert_allclose(part.geometry.origin, (GRID.affine @ [2, 4, 10, 1])[:3])


@pytest.mark.parametrize(
    ("center", "size", "words"),
    [
        ((500.0, 0.0, 0.0), (9.0, 9.0, 9.0), "no voxel of the volume lies in the region"),
        ((0.5, 0.0, 20.3), (0.1, 9.0, 0.1), "no voxel of the volume lies in the region"),
        ((0.0, 0.0, 0.0), (9.0, 0.0, 9.0), "9 x 0 x 9 mm; each side must be longer than 0"),
        ((float("nan"), 0.0, 0.0), (9.0, 9.0, 9.0), "finite"),
        (("a", 0.0, 0.0), (9.0, 9.0, 9.0), r"Region\(center=\('a', 0\.0, 0\.0\).*must be 3, 3 and 3 x 3 finite"),
        ((0.0, 0.0, 0.0), 9.0, "finite"),
    ],
)
def test_a_region_that_holds_nothing_is_refused(center, size, words):
    with pytest.raises(InvalidInput, match=words):
        Region(center, size).box(GRID)


@pytest.mark.parametrize("dims", [2, 3])
def test_in_a_region_the_labels_are_nearly_those_of_the_whole_scan_and_elsewhere_nothing(dims, rng):
    scan = make_scan(rng, (20, 64, 64), (2.0, 1.0, 1.0))
    segmenter = make_segmenter(dims)
    whole = segmenter.segment(scan).array
    center = (scan.geometry.affine @ [10, 32, 32, 1])[:3]
    region = Region(tuple(center), (30.0, 26.0, 20.0), TURN)
    labels = segmenter.segment(scan, SegmentOptions(region=region, uncertainty=True, probabilities=True))
    mask = inside(region, scan.geometry)
    assert labels.array.shape == scan.geometry.shape
    assert not labels.array[~mask].any()
    assert not labels.uncertainty[~mask].any()
    assert labels.uncertainty[mask].any()
    assert (labels.probabilities[0, ~mask] == 1).all()
    assert not labels.probabilities[1:, ~mask].any()
    assert labels.probabilities[1:, mask].any()
    assert (labels.array[mask] == whole[mask]).mean() > 0.8, "the pooled branch sees less; the rest agrees"


@pytest.mark.parametrize("dims", [2, 3])
def test_outside_a_region_none_of_the_labels_that_may_overlap_is_likely(dims, scan):
    region = Region(tuple((scan.geometry.affine @ [6, 20, 18, 1])[:3]), (20.0, 30.0, 20.0))
    options = SegmentOptions(region=region, probabilities=True)
    probabilities = make_segmenter(dims, activation="sigmoid").segment(scan, options).probabilities
    mask = inside(region, scan.geometry)
    assert not probabilities[:, ~mask].any()
    assert probabilities[:, mask].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_region_means_the_same_however_the_scan_is_stored(dims, scan):
    segmenter = make_segmenter(dims, orientation="ASR", spacing=(None, 1.4, 1.4) if dims == 2 else (2.0, 1.4, 1.4))
    region = Region(tuple((scan.geometry.affine @ [6, 20, 18, 1])[:3]), (20.0, 30.0, 20.0))
    options = SegmentOptions(region=region)
    labels = segmenter.segment(scan, options)
    stored = segmenter.segment(physically_equal(scan, (2, 0, 1), (1,)), options)
    expected = physically_equal(Image(labels.array, scan.geometry), (2, 0, 1), (1,))
    assert labels.array.any()
    assert (stored.array == expected.array[0]).mean() > 0.999


@pytest.mark.parametrize(("dims", "slices"), [(2, 1), (3, 12)])
def test_the_network_sees_around_a_region_what_it_can_make_use_of(dims, slices, rng):
    scan = make_scan(rng, (12, 56, 60))
    region = Region(tuple((scan.geometry.affine @ [6, 28, 30, 1])[:3]), (1.0, 1.0, 1.0))
    stored = physically_equal(scan, (2, 0, 1), (1,)).geometry
    box = make_segmenter(dims)._box(stored, SegmentOptions(region=region))
    seen = 2 * 3 * 8 + 1  # three times the stride to either side
    assert [side.stop - side.start for side in box] == [seen, slices, seen]


@pytest.mark.parametrize(
    "grid",
    [Geometry((30, 30, 30), (1.7, 2.1, 1.9), (-1.4, -39.0, -7.5), TURN), replace(GRID, origin=(-14.6, -20.7, 6.1))],
    ids=["turned", "moved"],
)
def test_channels_on_another_grid_are_resampled_in_space(grid):
    def ramp(geometry: Geometry) -> Image:
        k, j, i = np.indices(geometry.shape)
        x, y, z = np.moveaxis(np.stack([k, j, i, np.ones_like(k)], -1) @ geometry.affine[:3].T, -1, 0)
        return Image((x + 2 * y - z).astype(np.float32), geometry)

    first = ramp(GRID)
    stacked = stack_channels([first, ramp(grid)])
    assert stacked.geometry == GRID
    reached = (slice(3, 7), slice(6, 14), slice(8, 22))
    np.testing.assert_allclose(stacked.array[1][reached], first.array[0][reached], atol=2e-3)


@pytest.mark.parametrize("turn", [GRID.direction, TURN])
def test_a_channel_that_lies_wholly_elsewhere_is_refused(turn, rng):
    first = Image(rng.normal(size=(1, *GRID.shape)), GRID)
    here, there = (Geometry((5, 6, 7), (1.0, 1.0, 1.0), origin, turn) for origin in ((-16, -21, 4), (300, -20, 5)))
    assert stack_channels([first, Image(rng.normal(size=(1, *here.shape)), here)]).channels == 2
    centre = ", ".join(f"{mm:.0f}" for mm in (there.affine @ [2, 2.5, 3, 1])[:3])
    with pytest.raises(InvalidInput, match=f"image 2 lies wholly beside the first: its centre is at {centre} mm"):
        stack_channels([first, Image(rng.normal(size=(1, *there.shape)), there)])


def test_a_channel_that_is_constant_on_the_grid_of_the_first_is_refused(rng):
    first = Image(rng.normal(size=(1, *GRID.shape)), GRID)
    flat = Image(np.full((1, *GRID.shape), 3.0), GRID)
    beside = replace(GRID, origin=tuple((GRID.affine @ [0, 0, 29.6, 1])[:3]))  # no centre of the first's lies in it
    for images, number in (([first, flat], 2), ([flat, first], 1), ([first, Image(first.array, beside)], 2)):
        with pytest.raises(InvalidInput, match=f"image {number} is constant .* in every voxel of the first's grid"):
            stack_channels(images)


def test_a_channel_may_reach_the_first_by_any_of_its_faces_but_must_reach_it(rng):
    first = Image(rng.normal(size=(1, *GRID.shape)), GRID)
    for axis, size in enumerate(GRID.shape):
        ends = ((-5.2, size + 0.2, "wholly beside"), (-4.8, size - 0.2, "is constant"), (-4.4, size - 0.6, None))
        for start, refused in ((place, words) for *places, words in ends for place in places):
            corner = np.where(np.eye(3, dtype=bool)[axis], start, 2)
            origin = tuple((GRID.affine @ [*corner, 1])[:3])
            other = Image(rng.normal(size=(1, 5, 5, 5)), replace(GRID, shape=(5, 5, 5), origin=origin))
            if refused is None:
                assert stack_channels([first, other]).channels == 2
            else:
                with pytest.raises(InvalidInput, match=refused):
                    stack_channels([first, other])
