import numpy as np
import pytest

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology


def test_an_affine_survives_the_way_there_and_back():
    turn = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    geometry = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (7.0, -8.0, 9.0), tuple(map(tuple, turn)))
    again = Geometry.from_affine(geometry.shape, geometry.affine)
    np.testing.assert_allclose(again.affine, geometry.affine)
    assert again.is_close(geometry)
    with pytest.raises(ValueError, match="read-only"):  # all who ask share it
        geometry.affine[0, 0] = 2


def test_an_affine_with_an_axis_of_no_length_is_refused():
    with pytest.raises(InvalidInput, match="spacing is 1 x 0 x 1 mm; every axis needs a positive size"):
        Geometry.from_affine((4, 4, 4), np.diag([1, 0, 1, 1]))


def test_directions_may_have_any_length():
    assert Geometry((4, 4, 4), direction=((0, 0, 9), (0, 0.1, 0), (2, 0, 0))) == Geometry((4, 4, 4))


def test_grids_that_differ_by_half_a_voxel_are_not_close():
    for depth in (1, 4):
        assert not Geometry((depth, 4, 4)).is_close(Geometry((depth, 4, 4), origin=(0.5, 0, 0)))


def test_grids_are_close_within_a_thousandth_of_the_smallest_side_at_their_last_voxels():
    grid = Geometry((11, 4, 4), (3.0, 1.0, 1.0))
    assert grid.is_close(Geometry((11, 4, 4), (3.000095, 1.0, 1.0)))
    assert not grid.is_close(Geometry((11, 4, 4), (3.000105, 1.0, 1.0)))
    assert not grid.is_close(Geometry((11, 4, 5), (3.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("shape", (0, 4, 4), "at least one voxel"),
        ("shape", (4.7, 4, 4), "whole numbers"),
        ("shape", None, "whole numbers"),
        ("spacing", (1, 0, 1), "positive"),
        ("spacing", (1, -2, 1), "positive"),
        ("spacing", (1, float("nan"), 1), "finite"),
        ("spacing", ("a", 1, 1), r"spacing is \('a', 1, 1\); it must hold 3 finite numbers"),
        ("origin", (1, float("inf"), 1), "finite"),
        ("direction", ((1, 0, 0), (1, 0, 0), (0, 0, 1)), "singular"),
        ("direction", ((0, 0, 0), (0, 1, 0), (0, 0, 1)), "singular"),
        ("direction", ((0, 1), (0, 1, 0), (0, 0, 1)), "it must hold 3 x 3 finite numbers"),
        ("direction", ((1, 0.2, 0), (0, 1, 0), (0, 0, 1)), "sheared"),
        ("direction", ((1, 0.01, 0), (0, 1, 0), (0, 0, 1)), "sheared"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_with_its_value(field, value, words):
    with pytest.raises(InvalidInput, match=words):
        Geometry(**{"shape": (4, 4, 4), field: value})


def test_a_volume_without_channel_axis_gets_one():
    assert Image(np.zeros((2, 3, 4)), Geometry((2, 3, 4))).array.shape == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 5)), np.zeros((3, 4)), np.zeros((0, 2, 3, 4)), np.zeros((2, 3, 4), complex)]
)
def test_an_array_that_does_not_fit_the_grid_is_refused(array):
    with pytest.raises(InvalidInput):
        Image(array, Geometry((2, 3, 4)))


@pytest.mark.parametrize("kind", [Image, Labels])
@pytest.mark.parametrize("geometry", [None, (3.0, 1.0, 1.0)])
def test_a_geometry_is_asked_for_where_something_else_is_given(kind, geometry):
    with pytest.raises(InvalidInput, match=f"the geometry is a {type(geometry).__name__}; give a Geometry"):
        kind(np.zeros((2, 3, 4)), geometry)


def test_volumes_are_in_millilitres_and_overlapping_segments_count_in_full():
    layers = np.zeros((2, 10, 10, 10), np.uint8)
    layers[0, :5], layers[1, :, :5] = 1, 2
    segments = (Segment(1, "A", (255, 0, 0), layer=0), Segment(2, "B", (0, 255, 0), layer=1))
    labels = Labels(layers, Geometry((10, 10, 10), (4.0, 1.0, 0.5)), segments)
    assert labels.volumes_ml() == {"A": 1.0, "B": 1.0}


def test_segments_of_one_name_have_a_volume_each():
    layers = np.zeros((2, 10, 10, 10), np.uint8)
    layers[0, :5], layers[0, 5:], layers[1, :2] = 1, 2, 1
    named = [Segment(value, "X", (255, 0, 0), layer=layer) for value, layer in ((1, 0), (2, 0), (1, 1))]
    labels = Labels(layers, Geometry((10, 10, 10)), tuple(named))
    assert labels.volumes_ml() == {"X (1)": 0.5, "X (2)": 0.5, "X (1, layer 1)": 0.2}


@pytest.mark.parametrize(
    ("kind", "most", "kept"),
    [(bool, 1, np.uint8), (np.int16, 255, np.uint8), (np.int64, 65535, np.uint16), (float, 256, np.uint16)],
)
def test_labels_are_kept_in_few_bytes(kind, most, kept):
    array = np.array([0, 1, most, 0], kind).reshape(1, 2, 2)
    labels = Labels(array, Geometry((1, 2, 2)))
    assert labels.array.dtype == kept
    np.testing.assert_array_equal(labels.array, array)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 3, 4), 0.5), "fractions"),
        (np.full((2, 3, 4), -3), "from -3"),
        (np.full((2, 3, 4), 65536), "to 65536"),
        (np.full((2, 3, 4), 70000), "to 70000"),
        (np.full((2, 3, 4), np.nan), "whole numbers"),
        (np.full((2, 3, 4), "a"), "of type"),
        (np.zeros((0, 2, 3, 4)), "have shape 0 x 2 x 3 x 4"),
    ],
)
def test_what_are_no_labels_are_refused(array, words):
    with pytest.raises(InvalidInput, match=words):
        Labels(array, Geometry((2, 3, 4)))


@pytest.mark.parametrize("layer", [1, -1])
def test_a_segment_in_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(InvalidInput, match=f"A lies in layer {layer}"):
        Labels(np.zeros((2, 3, 4), np.uint8), Geometry((2, 3, 4)), (Segment(1, "A", (255, 0, 0), layer=layer),))


@pytest.mark.parametrize("codes", ["SCT^1^Structure~^^~^^", "^^~SCT^2^Brain~^^", "SCT^1~SCT^2^Brain~^^", ""])
def test_a_terminology_without_category_or_type_is_none(codes):
    assert Terminology.from_entry(f"List~{codes}~List~^^~^^") is None


def test_images_and_labels_are_told_in_a_line():
    geometry = Geometry((2, 3, 4), (3.0, 1.0, 0.5))
    assert (
        repr(Image(np.zeros((2, 3, 4)), geometry))
        == "<Image: 1 channel(s), 2 x 3 x 4 voxels of 3 x 1 x 0.5 mm, float64>"
    )
    assert "0 segment(s), 2 x 3 x 4 voxels" in repr(Labels(np.zeros((2, 3, 4), np.uint8), geometry))
    assert Image(np.zeros((2, 3, 4)), geometry) != Image(np.zeros((2, 3, 4)), geometry), "each is itself alone"
