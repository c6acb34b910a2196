import numpy as np
import pytest

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image, Labels, Segment


def test_an_affine_survives_the_way_there_and_back():
    turn = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    geometry = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (7.0, -8.0, 9.0), tuple(map(tuple, turn)))
    again = Geometry.from_affine(geometry.shape, geometry.affine)
    np.testing.assert_allclose(again.affine, geometry.affine)
    assert again.is_close(geometry)


def test_grids_that_differ_by_half_a_voxel_are_not_close():
    assert not Geometry((4, 4, 4)).is_close(Geometry((4, 4, 4), origin=(0.5, 0, 0)))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("shape", (0, 4, 4), "at least one voxel"),
        ("spacing", (1, 0, 1), "positive"),
        ("spacing", (1, -2, 1), "positive"),
        ("spacing", (1, float("nan"), 1), "finite"),
        ("origin", (1, float("inf"), 1), "finite"),
        ("direction", ((1, 0, 0), (1, 0, 0), (0, 0, 1)), "singular"),
        ("direction", ((0, 0, 0), (0, 1, 0), (0, 0, 1)), "singular"),
        ("direction", ((1, 0.2, 0), (0, 1, 0), (0, 0, 1)), "sheared"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_with_its_value(field, value, words):
    with pytest.raises(InvalidInput, match=words):
        Geometry(**{"shape": (4, 4, 4), field: value})


def test_a_volume_without_channel_axis_gets_one():
    assert Image(np.zeros((2, 3, 4)), Geometry((2, 3, 4))).array.shape == (1, 2, 3, 4)


@pytest.mark.parametrize("array", [np.zeros((2, 3, 5)), np.zeros((3, 4)), np.zeros((2, 3, 4), complex)])
def test_an_array_that_does_not_fit_the_grid_is_refused(array):
    with pytest.raises(InvalidInput):
        Image(array, Geometry((2, 3, 4)))


def test_volumes_are_in_millilitres_and_overlapping_segments_count_in_full():
    layers = np.zeros((2, 10, 10, 10), np.uint8)
    layers[0, :5], layers[1, :, :5] = 1, 2
    segments = (Segment(1, "A", (255, 0, 0), layer=0), Segment(2, "B", (0, 255, 0), layer=1))
    labels = Labels(layers, Geometry((10, 10, 10), (2.0, 1.0, 1.0)), segments)
    assert labels.volumes_ml() == {"A": 1.0, "B": 1.0}
