import numpy as np
import pytest
import torch
from helpers import make_scan, physically_equal

from DeepLabSegLib import resampling
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.preprocess import Normalization, axis_letters, check_orientation, check_voxels, model_grid
from DeepLabSegLib.resampling import Way, permuted, resample


def tensor(image: Image) -> torch.Tensor:
    return torch.from_numpy(image.array)


@pytest.mark.parametrize("orientation", ["SAR", "ASR", "LIP", "PRI"])
def test_a_flipped_or_permuted_grid_copies_voxels_and_gives_them_back(scan, orientation):
    grid = model_grid(scan.geometry, orientation, (None, None, None))
    assert axis_letters(grid) == orientation
    there = resample(tensor(scan), scan.geometry, grid)
    assert sorted(there.flatten().tolist()) == sorted(scan.array.ravel().tolist())
    back = resample(there, grid, scan.geometry)
    np.testing.assert_array_equal(back.numpy(), scan.array)


@pytest.mark.parametrize(("permutation", "flips"), [((2, 0, 1), (1,)), ((1, 2, 0), (0, 2)), ((0, 1, 2), (0, 1, 2))])
def test_however_a_scan_is_stored_the_model_sees_the_same_voxels(scan, permutation, flips):
    stored = physically_equal(scan, permutation, flips)
    seen = [
        resample(tensor(image), image.geometry, model_grid(image.geometry, "ASR", (None, None, None))).numpy()
        for image in (scan, stored)
    ]
    np.testing.assert_array_equal(*seen)


def plane(geometry: Geometry) -> torch.Tensor:
    """A grey value that grows evenly through space: linear interpolation must give it exactly."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), -1)
    points = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return torch.from_numpy((points @ [0.5, -0.25, 1.0])[None].astype(np.float32))


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 3.0)])
def test_interpolation_puts_values_where_the_geometry_says(degrees, spacing):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = ((c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c))
    source = Geometry((30, 30, 30), (1.5, 1.5, 1.5), (4.0, -3.0, 8.0), turn)
    target = model_grid(source, "SAR", spacing)
    result, expected = resample(plane(source), source, target), plane(target)
    inside = tuple(slice(n // 3, n - n // 3) for n in target.shape)
    torch.testing.assert_close(result[0][inside], expected[0][inside], atol=2e-3, rtol=1e-4)


def test_the_models_grid_covers_the_scan():
    turn = ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
    source = Geometry((10, 20, 30), (5.0, 1.0, 1.0), (1.0, 2.0, 3.0), turn)
    grid = model_grid(source, "SAR", (None, 0.8, 0.8))
    corners = np.array([[k, j, i, 1] for k in (0, 9) for j in (0, 19) for i in (0, 29)])
    index = (np.linalg.inv(grid.affine) @ source.affine @ corners.T)[:3].T
    assert (index >= -0.5).all()
    assert (index <= np.array(grid.shape) - 0.5).all()
    assert grid.spacing == pytest.approx((1.0, 0.8, 0.8))  # i points up, and its 1 mm is kept


@pytest.mark.parametrize("cell", [1, 16])
def test_a_cropped_scan_meets_the_same_places_of_the_models_grid(scan, cell):
    cropped = Geometry((12, 30, 20), scan.geometry.spacing, tuple((scan.geometry.affine @ [0, 7, 11, 1])[:3]))
    grids = [model_grid(geometry, "SAR", (None, 0.8, 0.8), cell) for geometry in (scan.geometry, cropped)]
    apart = np.linalg.inv(grids[0].affine) @ [*grids[1].origin, 1]
    np.testing.assert_allclose(apart[1:3] / cell, np.rint(apart[1:3] / cell), atol=1e-6)
    assert all(size % cell == 0 for grid in grids for size in grid.shape[1:])


def test_voxels_that_keep_their_size_keep_their_places(scan):
    grid = model_grid(scan.geometry, "SAR", scan.geometry.spacing, 16)
    assert grid.is_close(scan.geometry)


def test_on_axes_of_its_own_a_grid_of_the_scans_voxels_is_the_scans_however_it_rounds(rng):
    for _ in range(100):
        direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        source = Geometry((26, 224, 384), (3.3, 0.7, 0.43), (-40, -120, -110), direction)
        assert model_grid(source, None, (None, None, None), 16).is_close(source)


def test_voxels_of_nearly_the_models_size_fill_whole_cells_too():
    grid = model_grid(Geometry((20, 50, 50), (1.0, 0.82, 0.82)), "SAR", (None, 0.8, 0.8), 16)
    assert grid.shape[0] == 20
    assert [size % 16 for size in grid.shape[1:]] == [0, 0]


def test_across_a_turned_scan_only_voxels_of_a_given_size_fill_whole_cells():
    source = Geometry((10, 20, 30), (5.0, 1.0, 1.0), (1.0, 2.0, 3.0), TURN)
    kept, given = (model_grid(source, "SAR", spacing, 16) for spacing in ((None, None, None), (1.0, 1.0, 5.0)))
    assert kept.spacing == given.spacing == (1.0, 1.0, 5.0)
    assert kept.shape == (30, 46, 11), "0.6 x 50 + 0.8 x 20 mm, and 0.8 x 50 + 0.6 x 20 mm in voxels of 5 mm"
    assert given.shape[0] == 30, "up its voxels keep their size"
    assert [size % 16 for size in given.shape[1:]] == [0, 0]


def test_a_scan_that_fills_whole_cells_is_covered_by_these_alone_however_it_rounds():
    for n in range(1, 30):  # cells of 16 voxels of 0.7 mm, on either side of 0
        source = Geometry((32 * n,) * 3, (0.7,) * 3, (-11.2 * n + 0.35,) * 3)
        fine = Geometry((64 * n,) * 3, (0.35,) * 3, (-11.2 * n + 0.175,) * 3)
        assert model_grid(fine, "SAR", (0.7, 0.7, 0.7), 16).is_close(source)
    thin = Geometry((1, 64, 64), (0.01, 0.35, 0.35))
    assert model_grid(thin, "SAR", (0.7, 0.7, 0.7), 16).shape[0] == 16


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("shift", [-10.4, -10.0])
def test_what_lies_outside_the_scan_is_as_dark_as_its_darkest_voxel(scan, shift, mode):
    larger = Geometry((12, 60, 36), scan.geometry.spacing, tuple((scan.geometry.affine @ [0, shift, 0, 1])[:3]))
    result = resample(tensor(scan), scan.geometry, larger, mode)
    assert (result[:, :, :10] == tensor(scan).min()).all()
    assert (result[:, :, 10:40] > tensor(scan).min()).any()


SOURCE = Geometry((9, 20, 18), (3.0, 1.5, 1.2), (-20.0, 35.5, 7.25))
TURN = ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0), (0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    "target",
    [
        Geometry((24, 60, 50), (1.3, 0.7, 0.61), (-25.17, 30.31, 2.03)),
        Geometry((9, 16, 16), (3.9, 1.95, 1.56), (-19.88, 35.65, 7.55)),
        Geometry((24, 60, 50), (1.3, 0.7, 0.61), (7.31, 70.13, 2.03), ((0, -1, 0), (-1, 0, 0), (0, 0, 1))),
        Geometry((30, 40, 60), (1.1, 1.3, 0.7), (-11.17, 20.31, -2.03), TURN),
        Geometry((8, 10, 16), (5.1, 4.3, 4.7), (-11.17, 20.31, -2.03), TURN),
    ],
    ids=["finer", "coarser", "other axes", "turned", "turned and coarser"],
)
def test_voxels_outside_the_scan_are_filled_and_no_others(target, rng):
    index = np.stack([*np.indices(target.shape), np.ones(target.shape)], -1)
    places = index @ (np.linalg.inv(SOURCE.affine) @ target.affine)[:3].T
    inside = ((places >= -0.5) & (places <= np.array(SOURCE.shape) - 0.5)).all(-1)
    nearest = np.clip(np.rint(places), 0, np.array(SOURCE.shape) - 1).astype(int)
    values, fill = rng.integers(0, 99, (2, *SOURCE.shape)).astype(np.int32), torch.tensor([-5.0, -7.0])
    expected = np.where(inside, values[(slice(None), *np.moveaxis(nearest, -1, 0))], fill.view(2, 1, 1, 1))
    np.testing.assert_array_equal(resample(torch.from_numpy(values), SOURCE, target, "nearest", fill), expected)
    even = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, *SOURCE.shape)
    found = resample(even, SOURCE, target, fill=fill).numpy()
    np.testing.assert_allclose(found, np.where(inside, even[:, :1, :1, :1], fill.view(2, 1, 1, 1)), rtol=1e-5)
    torch.testing.assert_close(resample(even, SOURCE, target), even[:, :1, :1, :1].expand(2, *target.shape))


def test_a_slice_beside_a_single_one_is_filled_and_leaves_it_as_it_was():
    slice_ = torch.arange(1.0, 13).view(1, 1, 3, 4)
    grid = Geometry((1, 3, 4))
    assert not resample(slice_, grid, Geometry((1, 3, 4), origin=(0.0, 0.0, 2.0)), fill=torch.zeros(1)).any()
    assert (slice_ > 0).all()


def test_products_are_written_to_places_apart_only_where_torch_does_so(monkeypatch):
    def mm(*_: object, out: torch.Tensor) -> None:
        raise AssertionError("on Apple's GPUs the places would stay as they were")

    monkeypatch.setattr(torch, "mm", mm)
    other = torch.empty((2, 5, 40), device="meta")
    assert resampling._interpolate(other, 2, np.linspace(0, 39, 70), 1.0).shape == (2, 5, 70)


@pytest.mark.parametrize(
    ("degrees", "origin"), [(0.01, (4.0, -3.0, 8.0)), (0.0, (4.05, -3.0, 8.0))], ids=["tilted", "aside"]
)
def test_a_grid_that_is_nearly_the_same_is_interpolated(degrees, origin):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    source = Geometry((4, 4, 900), origin=(4.0, -3.0, 8.0))
    target = Geometry((4, 4, 900), origin=origin, direction=((0.0, 0.0, 1.0), (-s, c, 0.0), (c, s, 0.0)))
    found, expected = (x[0, 1:3, 1:3, 2:-2] for x in (resample(plane(source), source, target), plane(target)))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("degrees", [0, 3, 20, 45])
def test_shrinking_averages_instead_of_picking_single_voxels(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    source = Geometry((1, 64, 64), direction=((0.0, 0.0, 1.0), (s, c, 0.0), (c, -s, 0.0)))
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1
    small = resample(stripes, source, model_grid(source, "SAR", (None, 4.0, 4.0)))
    inner = small[..., small.shape[2] // 3 : -(small.shape[2] // 3), small.shape[3] // 3 : -(small.shape[3] // 3)]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.05, rtol=0)


def test_every_oblique_grid_is_reached_in_two_steps_at_most(rng):
    """A direction that is normalised again may differ in its last digit, and a grid from itself."""
    for _ in range(300):
        direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        spacing = (rng.choice([1.0, 3.0, 5.0]), *[rng.choice([0.43, 0.7, 0.9375, 1.0])] * 2)
        source = Geometry((26, 224, 384), spacing, (-40, -120, -110), direction)
        way = Way.between(source, model_grid(source, "SAR", (1.0, 1.0, 1.0)))
        for step in way.steps or ():
            assert step.steps is None
            assert (step is way.steps[1]) == (step.axes is None)


def test_nearest_neighbour_makes_no_new_values(scan):
    labels = torch.from_numpy((scan.array > 300).astype(np.int32) * 7)
    for spacing in [(1.1, 0.9, 2.2), (None, None, None)]:
        grid = model_grid(scan.geometry, "ASR", spacing)
        assert set(resample(labels, scan.geometry, grid, "nearest").unique().tolist()) == {0, 7}


def test_labels_stay_labels_on_an_oblique_grid(scan):
    labels = torch.from_numpy((scan.array > 300).astype(np.uint8) * 7)
    turn = ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
    moved = resample(labels, scan.geometry, Geometry((20, 30, 30), (2, 2, 2), (-20, 30, 10), turn), "nearest")
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {0, 7}


def test_on_the_face_of_an_oblique_scan_a_part_of_a_grid_says_the_same_as_the_whole():
    turned = Geometry((20, 20, 20), direction=((0.0, 0.0, 1.0), (0.6, 0.8, 0.0), (0.8, -0.6, 0.0)))
    beyond = 0.0006  # voxels beyond the outer face: rounding for the whole, and for a part
    first = (turned.affine @ [10, 19.5 + beyond, 10, 1])[:3]
    way = Way.between(turned, Geometry((1, 1, 1), origin=tuple(first)))
    values, fill = torch.ones(1, 20, 20, 20), torch.zeros(1)
    box = (slice(0, 1),) * 3
    held = way.reach(box)
    assert way.resample(values, fill=fill) == way.resample(values[(slice(None), *held)], box, held, fill=fill) == 1


def test_a_part_of_a_grid_and_the_same_in_another_order_have_their_voxels_where_they_were():
    grid = Geometry((9, 20, 18), (3.0, 1.5, 1.2), (-20.0, 35.5, 7.25), TURN)
    place = grid.affine @ [2, 5, 11, 1]
    piece, ordered = grid.part((slice(1, 4), slice(3, 9), slice(7, 17))), permuted(grid, (2, 0, 1))
    assert (piece.shape, ordered.shape) == ((3, 6, 10), (18, 9, 20))
    np.testing.assert_allclose(piece.affine @ [1, 2, 4, 1], place)
    np.testing.assert_allclose(ordered.affine @ [11, 2, 5, 1], place)


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("spacing", [(None, None, None), (2.0, 2.0, 0.7), (4.1, 1.1, 1.2)])
def test_any_part_of_a_grid_can_be_had_alone_from_the_part_of_the_scan_that_it_reaches(
    rng, spacing, degrees, monkeypatch
):
    image = make_scan(rng, (11, 40, 36))
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = Geometry(image.geometry.shape, (3.0, 1.5, 1.2), (1, 2, 3), ((c, s, 0.0), (-s, c, 0.0), (0, 0, 1)))
    grid, fill = model_grid(turned, "ASL", spacing), tensor(image).amin().view(1)
    whole = resample(tensor(image), turned, grid)
    way = Way.between(turned, grid)
    planes = [(slice(n, n + 1), *(slice(0, size) for size in grid.shape[1:])) for n in range(grid.shape[0])]
    assert way.reach_of_planes() == [way.reach(plane)[0] for plane in planes]
    for box in [(slice(3, 9), slice(0, 5), slice(2, 9)), (slice(0, 1), slice(0, grid.shape[1]), slice(7, 8))]:
        needed = way.reach(box)
        found = way.resample(tensor(image)[(slice(None), *needed)], box, needed, fill=fill)
        torch.testing.assert_close(found, whole[(slice(None), *box)], atol=1e-3, rtol=1e-5)
        with monkeypatch.context() as few:
            few.setattr(resampling, "SLAB", 60)
            few.setattr(resampling, "POINTS", 60)
            by_planes = way.resample(tensor(image)[(slice(None), *needed)], box, needed, fill=fill)
        torch.testing.assert_close(by_planes, found, atol=1e-3, rtol=1e-5)


def test_every_grid_has_a_letter_of_each_axis_however_it_is_turned(rng):
    for _ in range(100):
        direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        check_orientation(axis_letters(Geometry((2, 2, 2), direction=direction)))


@pytest.mark.parametrize("letters", ["SA", "SAA", "SAL ", "XYZ", "sar", "SIR"])
def test_an_orientation_that_names_no_three_axes_is_refused(letters):
    with pytest.raises(InvalidInput, match="three letters"):
        model_grid(Geometry((2, 2, 2)), letters, (None, None, None))


def test_each_normalisation_does_what_it_says():
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0, 100.0]])
    torch.testing.assert_close(Normalization("window", 0, 2)(x), torch.tensor([[0, 0.5, 1, 1, 1]]))
    torch.testing.assert_close(Normalization("percentile", 0, 75)(x), torch.tensor([[0, 1 / 3, 2 / 3, 1, 1]]))
    z = Normalization("zscore")(x)
    assert abs(float(z.mean())) < 1e-6
    assert float(z.std()) == pytest.approx(1, abs=1e-5)
    assert Normalization("none")(x) is x
    shifted = Normalization("none", mean=(1.0,), std=(2.0,))(x)
    torch.testing.assert_close(shifted, (x - 1) / 2)


def test_a_scale_is_applied_where_only_one_part_of_it_is_not_trivial():
    x = torch.tensor([[-2.0, 0.0, 2.0]])
    torch.testing.assert_close(Normalization("zscore")(x), x / 2)
    torch.testing.assert_close(Normalization("none", mean=(1.0,), std=(1.0,))(x), x - 1)
    torch.testing.assert_close(Normalization("none", mean=(0.0,), std=(2.0,))(x), x / 2)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_the_scale_of_each_channel_is_that_of_its_values_of_any_type(kind, rng):
    array = rng.integers(-99, 99, (2, 5, 6, 7)).astype(kind)
    array[1] //= 3
    values = array.reshape(2, -1)
    counted, moments = (Normalization(*method).measure(array) for method in (("percentile", 3, 71), ("zscore",)))
    low, high = np.percentile(values, [3, 71], axis=1)
    np.testing.assert_allclose((counted.low, counted.span), (low, high - low))
    np.testing.assert_allclose((moments.low, moments.span), (values.mean(axis=1), values.std(axis=1, ddof=1)))


@pytest.mark.parametrize("method", [("zscore",), ("percentile", 1, 99)])
def test_values_without_spread_become_zeros(method):
    assert not Normalization(*method)(torch.full((2, 3, 4), 7.0)).any()


@pytest.mark.parametrize(
    "arguments",
    [
        ("best",),
        ("window", 3, 3),
        ("window", -np.inf, 3),
        ("percentile", -1, 50),
        ("percentile",),
        ("none", None, None, (1.0,), None),
        ("none", None, None, (1.0, 2.0), (1.0,)),
        ("none", None, None, (np.nan,), (1.0,)),
        ("none", None, None, (0.0,), (np.inf,)),
    ],
)
def test_a_normalisation_without_sense_is_refused(arguments):
    with pytest.raises(InvalidInput):
        Normalization(*arguments)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_infinite_voxels_are_refused_in_every_type_and_others_are_not(kind):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    check_voxels(Image(array, Geometry((2, 3, 4))))
    array[0, 0, 0] = np.inf
    with pytest.raises(InvalidInput, match="1 of 24 voxels"):
        check_voxels(Image(array, Geometry((2, 3, 4))))


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "1 of 24 voxels"), (np.inf, "NaN, infinite"), (-1e40, "beyond 3.4e"), (1e39, "beyond 3.4e")],
)
def test_voxels_that_are_no_numbers_are_counted_and_refused(value, words):
    array = np.arange(24.0).reshape(2, 3, 4)
    array[0, 0, 0] = value
    with pytest.raises(InvalidInput, match=words):
        check_voxels(Image(array, Geometry((2, 3, 4))))


@pytest.mark.parametrize("method", [("zscore",), ("percentile", 1, 99)])
def test_how_small_values_are_makes_no_difference(method, rng):
    scan = rng.normal(size=(1, 5, 6, 7))
    small = (scan * 1e-20).astype(np.float32)
    for array in (scan.astype(np.float32), small):
        scaled = Normalization(*method)(torch.from_numpy(array))
        torch.testing.assert_close(scaled, Normalization(*method)(torch.from_numpy(scan)).float(), atol=1e-4, rtol=1e-4)


def test_the_scale_of_voxels_in_half_precision_is_that_of_the_same_in_full(rng):
    values = rng.choice([-6e4, 6e4], p=[0.1, 0.9], size=(1, 5, 6, 7)).astype(np.float16)
    half, full = (Normalization("zscore").measure(array) for array in (values, values.astype(np.float64)))
    np.testing.assert_allclose((half.low, half.span), (full.low, full.span))


def test_a_constant_image_is_refused():
    with pytest.raises(InvalidInput, match="channel 0 is constant"):
        check_voxels(Image(np.full((2, 3, 4), 5), Geometry((2, 3, 4))))
    array = np.zeros((2, 2, 3, 4))
    array[1] = 7
    with pytest.raises(InvalidInput, match=r"all channels are constant \(0.0, 7.0 in every voxel\)"):
        check_voxels(Image(array, Geometry((2, 3, 4))))
    array[0, 1] = 1  # after a first slice of nothing but air
    check_voxels(Image(array, Geometry((2, 3, 4))))
