import numpy as np
import pytest
from helpers import physically_equal

from DeepLabSegLib.evaluate import Group, Scores, compare
from DeepLabSegLib.image import Geometry, Image, Labels, Segment
from DeepLabSegLib.overlay import (
    MARGIN,
    PREDICTION_COLOR,
    REFERENCE_COLOR,
    WHITE,
    _colors,
    _Cut,
    _dice_legend,
    render,
    render_comparison,
)

RED = Segment(1, "Right ball", (255, 0, 0))


def ball(centre_ras: tuple[float, float, float], geometry: Geometry) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), -1)
    points = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return np.linalg.norm(points - centre_ras, axis=-1) < 10


def red_columns(picture) -> np.ndarray:
    pixels = np.asarray(picture).astype(int)
    return np.flatnonzero((pixels[..., 0] > pixels[..., 1] + 60).any(axis=0))


def test_the_patients_right_is_on_the_left_however_the_scan_is_stored():
    geometry = Geometry((50, 60, 70), (2.0, 2.0, 2.0), (-70.0, -60.0, -50.0))
    right = ball((40, 0, 0), geometry)
    image = Image((ball((0, 0, 0), geometry) + 2.0 * right)[None], geometry)
    for permutation, flips in [((0, 1, 2), ()), ((2, 0, 1), (0, 2))]:
        stored = physically_equal(image, permutation, flips)
        mask = physically_equal(Image(right.astype(np.uint8), geometry), permutation, flips).array[0]
        labels = Labels(mask, stored.geometry, (RED,))
        picture = render(stored, labels, height=200)
        axial_width = 200 * 140 / 120  # of the pixels' sizes: 140 mm to the side, 120 to the front
        first = red_columns(picture)[0]
        assert MARGIN < first < MARGIN + axial_width / 2
        assert abs(first - (MARGIN + axial_width * (70 - 50) / 140)) < 5


def test_an_empty_result_still_makes_a_picture(scan):
    labels = Labels(np.zeros(scan.geometry.shape, np.uint8), scan.geometry, (RED,))
    assert render(scan, labels, height=100).height > 100


def pixels(picture, color) -> np.ndarray:
    """Rows and columns of `color` left of the legend's first square, which has it too."""
    found = np.argwhere((np.asarray(picture) == color).all(axis=-1))
    legend = found[:, 1].max() - 14
    return found[found[:, 1] < legend]


def stored_in(image: Image, permutation, flips) -> Labels:
    stored = physically_equal(image, permutation, flips)
    return Labels(stored.array[0].astype(np.uint8), stored.geometry, (RED,))


@pytest.mark.parametrize(("permutation", "flips"), [((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 2, 0), (1,))])
def test_a_comparison_shows_the_prediction_on_the_patients_side_however_it_is_stored(permutation, flips):
    geometry = Geometry((50, 60, 70), (2.0, 2.0, 2.0), (-70.0, -60.0, -50.0))
    right, left = (
        stored_in(Image(ball((x, 0, 0), geometry).astype(float), geometry), permutation, flips) for x in (30, -30)
    )
    groups = {"Ball": Group()}
    picture = render_comparison(right, left, groups, compare(right, left, groups), side=200)
    ours, theirs = pixels(picture, PREDICTION_COLOR), pixels(picture, REFERENCE_COLOR)
    assert ours[:, 1].max() < theirs[:, 1].min()
    assert abs(ours[:, 0].mean() - theirs[:, 0].mean()) < 5


def test_the_slice_is_the_one_with_most_disagreement(scan):
    empty = np.zeros(scan.geometry.shape, np.uint8)
    array = empty.copy()
    array[2, 5:10, 5:10] = 1
    array[7, 5:30, 5:30] = 1
    ours, theirs = (Labels(values, scan.geometry, (RED,)) for values in (array, empty))
    groups = {"Part": Group((1,), (1,))}
    picture = render_comparison(ours, theirs, groups, compare(ours, theirs, groups), scan, side=200)
    outline = pixels(picture, PREDICTION_COLOR)
    # Voxels are 3 mm thick, so only planes along k are shown; 25 x 1.5 mm by 25 x 1.2 mm in k = 7.
    height, width = np.ptp(outline, axis=0) + 1
    assert height / width == pytest.approx(1.5 / 1.2, rel=0.05)


def test_what_both_sides_have_is_no_disagreement_however_large(scan):
    theirs = np.zeros(scan.geometry.shape, np.uint8)
    theirs[7, 5:30, 5:30] = 1
    ours = theirs.copy()
    ours[2, 5:10, 5:13] = 1
    ours, theirs = (Labels(values, scan.geometry, (RED,)) for values in (ours, theirs))
    groups = {"Part": Group((1,), (1,))}
    outline = pixels(render_comparison(ours, theirs, groups, compare(ours, theirs, groups), side=200), PREDICTION_COLOR)
    height, width = np.ptp(outline, axis=0) + 1
    assert height / width == pytest.approx(5 * 1.5 / (8 * 1.2), rel=0.05)


@pytest.mark.parametrize(("z_mm", "name"), [(7.25, "axial, S 28.2 mm"), (-60.0, "axial, I 39.0 mm")])
def test_the_slice_is_named_by_where_it_lies_in_the_patient(z_mm, name):
    geometry = Geometry((12, 40, 36), (3.0, 1.5, 1.2), (-20.0, 35.5, z_mm))
    array = np.zeros(geometry.shape, np.uint8)
    array[7, 5:30, 5:30] = 1
    labels, empty = (Labels(values, geometry, (RED,)) for values in (array, 0 * array))
    assert _Cut(labels, empty, {"All": Group()}, 100).name == name


def test_the_legend_begins_with_the_lowest_dice_and_leaves_out_what_has_none():
    scores = {name: Scores(dice, 1.0, 1.0, 1.0) for name, dice in [("a", 0.9), ("b", 0.5), ("c", float("nan"))]}
    colors = dict.fromkeys(scores, RED.color)
    assert [text for _, text in _dice_legend(scores, colors)] == ["Dice, mean 0.700", "0.500  b", "0.900  a"]


def test_the_legend_of_an_atlas_says_how_many_it_leaves_out():
    scores = {f"Part {n}": Scores(n / 20, 1.0, 1.0, 1.0) for n in range(20)}
    *others, last = _dice_legend(scores, dict.fromkeys(scores, RED.color))
    assert (len(others), last) == (19, (None, "and 2 with a higher Dice"))


def test_a_group_has_the_colour_of_the_one_segment_that_it_names():
    labels = Labels(np.ones((1, 4, 4), np.uint8), Geometry((1, 4, 4)), (RED, Segment(2, "Left ball", (0, 0, 255))))
    groups = {"One": Group(("Left ball",)), "Value": Group((1,)), "Both": Group((1, "Left ball")), "All": Group()}
    colors = _colors(labels, groups)
    assert (colors["One"], colors["Value"], colors["All"]) == ((0, 0, 255), RED.color, WHITE)
    assert colors["Both"] not in (RED.color, (0, 0, 255), WHITE)


def test_a_picture_keeps_its_rows_and_columns():
    shape = (1, 40, 60)
    geometry = Geometry(shape, direction=((0, 0, 1), (0, -1, 0), (-1, 0, 0)))  # as files.read_labels gives a PNG
    ours, theirs = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    ours[0, 2:8, 3:9], theirs[0, 30:38, 50:58] = 1, 1
    ours, theirs = (Labels(array, geometry, (RED,)) for array in (ours, theirs))
    groups = {"Part": Group()}
    picture = render_comparison(ours, theirs, groups, compare(ours, theirs, groups), side=120)
    upper_left, lower_right = pixels(picture, PREDICTION_COLOR), pixels(picture, REFERENCE_COLOR)
    assert (upper_left.max(axis=0) < lower_right.min(axis=0)).all()


def test_several_labels_are_painted_beside_each_other_in_their_colours(scan):
    array = np.zeros(scan.geometry.shape, np.uint8)
    array[3:9, 5:20, 5:20] = 1
    ours = Labels(array, scan.geometry, (RED,))
    theirs = Labels(np.roll(array, 9, axis=2), scan.geometry, (RED,))
    groups = {"All": Group(), "Part": Group((1,), (1,))}
    picture = render_comparison(ours, theirs, groups, compare(ours, theirs, groups), scan, "Title", side=200)
    columns = np.flatnonzero(np.diff(red_columns(picture)) > 20)
    assert len(columns) == 2, "red in the prediction's panel, in the reference's, and in the legend"


def test_perfect_and_empty_labels_have_a_picture_too(scan):
    for value in (0, 1):
        labels = Labels(np.full(scan.geometry.shape, value, np.uint8), scan.geometry, (RED,))
        groups = {"All": Group()}
        picture = render_comparison(labels, labels, groups, compare(labels, labels, groups), scan, side=100)
        assert picture.height > 100
