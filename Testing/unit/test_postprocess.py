"""What a model knows of its labels together holds under any geometry."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from helpers import make_scan, make_segmenter

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.postprocess import End, end_label, keep_largest_piece, keep_rim
from DeepLabSegLib.preprocess import LETTERS
from DeepLabSegLib.segmenter import Segmenter

STEM, CEREBELLUM, OTHER = 1, 2, 3
END = End(STEM, "I", (CEREBELLUM,))


def body(layers: int = 1) -> np.ndarray:
    """`(layers, z, y, x)`, z growing upward: a stem from 2 on, a cerebellum from 6 on, another label all along."""
    labels = np.zeros((layers, 12, 5, 5), np.uint8)
    labels[0, 2:, 2, 2] = STEM
    labels[-1, 6:, 4, 4] = CEREBELLUM
    labels[-1, :, 0, 0] = OTHER
    return labels


def turned(labels: np.ndarray, letters: str) -> tuple[np.ndarray, Geometry]:
    """The same body with its axes (k, j, i) growing toward `letters`."""
    axes = [LETTERS[letter] for letter in letters]
    array = np.transpose(labels, [0, *(3 - ras for ras, _ in axes)])
    array = np.flip(array, [1 + n for n, (_, sign) in enumerate(axes) if sign < 0])
    rows = tuple(tuple(sign * float(n == ras) for n in range(3)) for ras, sign in axes)
    return np.ascontiguousarray(array), Geometry(array.shape[1:], (2.0, 1.0, 1.5), (5.0, -60.0, 30.0), rows)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("letters", ["SAR", "IPL", "ASL", "RIP"])
def test_a_label_ends_where_those_it_ends_at_do_however_the_scan_lies(letters, layers):
    expected = body(layers)
    expected[0, 2:6, 2, 2] = 0
    labels, geometry = turned(body(layers), letters)
    end_label(labels, geometry, END)
    np.testing.assert_array_equal(labels, turned(expected, letters)[0])


def test_in_a_tilted_scan_height_counts_and_not_the_slice():
    labels = np.zeros((1, 9, 9, 1), np.uint8)
    labels[0, 4, :, 0] = STEM
    labels[0, 4, 4, 0] = CEREBELLUM
    c, s = np.cos(0.3), np.sin(0.3)
    end_label(labels, Geometry((9, 9, 1), direction=((0, -s, c), (0, c, s), (1, 0, 0))), END)  # j rises a little
    assert labels[0, 4, :, 0].tolist() == [0] * 4 + [CEREBELLUM] + [STEM] * 4


def test_voxels_of_the_very_height_of_an_end_are_kept_however_it_rounds():
    turn = ((0.0, -1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0))  # k and j rise alike
    geometry, (k, j) = Geometry((9, 9, 1), (0.3, 0.3, 1.0), (0.0, 0.0, 0.1), turn), np.indices((9, 9))
    for n in range(9):
        labels = np.full((1, 9, 9, 1), STEM, np.uint8)
        labels[0, n, 8 - n, 0] = CEREBELLUM
        expected = np.where((k + j < 8)[..., None], 0, labels)
        end_label(labels, geometry, END)
        np.testing.assert_array_equal(labels, expected)


def test_of_several_labels_to_end_at_the_farthest_counts():
    for at in ((CEREBELLUM, OTHER), (OTHER, CEREBELLUM)):
        labels, geometry = turned(body(), "SAR")
        end_label(labels, geometry, replace(END, at=at))
        np.testing.assert_array_equal(labels, body())


@pytest.mark.parametrize("side", LETTERS)
def test_where_none_of_the_labels_is_seen_nothing_is_cleared(side):
    labels, geometry = turned(body(), "SAR")
    labels[labels == CEREBELLUM] = 0
    before = labels.copy()
    end_label(labels, geometry, replace(END, toward=side))
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("depth", [1, 4])
def test_the_largest_piece_goes_through_all_layers_and_by_faces_alone(depth):
    labels = np.zeros((2, depth, 4, 12), np.uint8)
    labels[0, :, 0, :3], labels[1, :, 1, 2:6] = 1, 2
    expected = labels.copy()
    labels[1, :, 2, 6:11] = 2  # the larger part of its layer, which touches the other's edge
    keep_largest_piece(labels)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("depth", [1, 4])
def test_what_is_doubtful_joins_no_pieces_and_counts_no_farther_than_a_rim(depth):
    labels = np.zeros((1, depth, 3, 20), np.uint8)
    labels[..., 1, :6], labels[..., 1, 6:14], labels[..., 1, 14:17] = 1, 2, 3
    labels[..., 0, 19] = 1
    doubtful = np.zeros(labels.shape[1:], bool)
    doubtful[:, 1, 6:14] = doubtful[:, 0, 19] = True  # a bridge to a smaller piece, and a place of its own
    keep_largest_piece(labels, doubtful)
    assert not labels[..., 1, 14:].any(), "the smaller piece"
    assert (labels[..., 1, 6:14] == 2).all()
    assert (labels[..., 0, 19] == 1).all()
    keep_rim(labels, doubtful, (3.0, 0.5, 0.7))
    expected = np.zeros_like(labels)
    expected[..., 1, :6], expected[..., 1, 6:10] = 1, 2  # 2 mm in steps of 0.5 mm
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(("mm", "kept"), [(8.0, [(0, 0), (0, 1)]), (0.5, [(0, 0), (0, 1), (1, 1)])])
def test_a_rim_is_of_one_voxel_at_least_and_hangs_together_by_faces(mm, kept):
    labels = np.zeros((1, 1, 4, 4), np.uint8)
    labels[0, 0, 0, 0] = labels[0, 0, 0, 1] = labels[0, 0, 1, 1] = labels[0, 0, 0, 3] = labels[0, 0, 2, 2] = 1
    doubtful = labels[0] > 0
    doubtful[0, 0, 0] = False
    keep_rim(labels, doubtful, (mm, mm, mm))
    np.testing.assert_array_equal(np.argwhere(labels[0, 0]), kept)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_models_rim_joins_no_pieces_of_its_result(dims, rng):
    torch.manual_seed(1)  # weights by which what is doubtful lies between pieces
    segmenter, scan = make_segmenter(dims, classes=4), make_scan(rng, (16, 60, 60))
    with torch.no_grad():  # scores near each other: much is doubtful
        segmenter.network.head.weight *= 0.1
        segmenter.network.head.bias *= 0.1
    everything, piece, with_rim = (
        Segmenter(replace(segmenter.bundle, **what), segmenter.network, "cpu").segment(scan).array
        for what in ({}, {"one_piece": True}, {"one_piece": True, "foreground_first": True})
    )
    added = (piece == 0) & (with_rim > 0)
    assert added.any()
    assert not everything[added].any(), "nothing of another piece"
    np.testing.assert_array_equal(with_rim * ~added, piece)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_models_result_ends_where_the_model_says(dims, rng):
    torch.manual_seed(1)  # weights that give both labels
    segmenter, scan = make_segmenter(dims, classes=4), make_scan(rng, (16, 60, 60))
    everything = segmenter.segment(scan)
    for side, (label, other) in product(LETTERS, permutations((1, 2, 3), 2)):
        end, expected = End(label, side, (other,)), everything.layers.copy()
        end_label(expected, everything.geometry, end)
        if (expected != everything.layers).any():
            break
    assert (expected != everything.layers).any(), "something lies beyond, or this test shows nothing"
    found = Segmenter(replace(segmenter.bundle, ends=(end,)), segmenter.network, "cpu").segment(scan)
    np.testing.assert_array_equal(found.layers, expected)


@pytest.mark.parametrize("end", [End(9, "I", (1,)), End(1, "I", (9,)), End(1, "I", ())])
def test_an_end_of_labels_that_a_model_lacks_is_refused(end):
    with pytest.raises(InvalidInput, match="all must be labels of the model"):
        replace(make_segmenter(3).bundle, ends=(end,))
