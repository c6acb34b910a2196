from itertools import pairwise

import pytest
import torch

from DeepLabSegLib.tiling import Activation, Blender, Tiling, mirrorings, tile_importance, tile_starts

CPU = torch.device("cpu")
LINEAR = Activation("linear", lambda x: x)
SOFTMAX, SIGMOID = Activation("softmax", lambda x: x.softmax(1)), Activation("sigmoid", torch.sigmoid)


def planes_of(x, start, stop):
    return slice(start, stop), *(slice(0, size) for size in x.shape[2:])


def blended(x, tile, overlap, blending, planes=3):
    """`x` `(C, *S)` cut into windows and put together again, `planes` at a time."""
    tiling = Tiling(tuple(x.shape[1:]), tile, overlap)
    blender = Blender(tiling, blending, LINEAR, CPU, CPU)
    padded = torch.nn.functional.pad(
        x, [n for t, s, b in reversed(list(zip(tile, x.shape[1:], tiling.before, strict=True)))
            for n in (b, max(0, t - s) - b)]
    )  # fmt: skip
    corners, parts, done = tiling.corners, [], 0
    for n, corner in enumerate(corners):
        area = tuple(slice(c + b, c + b + t) for c, b, t in zip(corner, tiling.before, tile, strict=True))
        blender.add(corner, padded[(None, slice(None), *area)].clone())
        finished = corners[n + 1][0] if n + 1 < len(corners) else x.shape[1]
        while done < finished:
            stop = min(done + planes, finished)
            parts.append(blender.scores(planes_of(x, done, stop), len(x)).clone())
            done = stop
    return torch.cat(parts, 1)


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    ("shape", "tile"),
    [((4, 50, 41), (1, 16, 16)), ((20, 33, 17), (16, 8, 16)), ((5, 7, 20), (9, 9, 9)), ((1, 1, 1), (4, 4, 4))],
)
def test_blending_a_network_that_copies_gives_the_image_back(shape, tile, overlap, blending):
    x = torch.randn(3, *shape)
    torch.testing.assert_close(blended(x, tile, overlap, blending), x, atol=1e-5, rtol=1e-5)


def test_any_box_may_be_asked_for_and_asked_for_again():
    x = torch.randn(2, 20, 18, 8)
    tiling = Tiling((20, 18, 8), (8, 8, 8), 0.5)
    blender = Blender(tiling, "gaussian", LINEAR, CPU, CPU)
    for k, j, i in tiling.corners:
        blender.add((k, j, i), x[None, :, k : k + 8, j : j + 8, i : i + 8].clone())
    again = ((1, 9), (5, 6), (2, 7))
    for sides in [((0, 3), (0, 18), (0, 8)), again, again, ((7, 20), (3, 18), (0, 1))]:
        box = tuple(slice(*side) for side in sides)
        averages = blender.scores(box, 2).clone()
        torch.testing.assert_close(averages, x[(slice(None), *box)], atol=1e-5, rtol=1e-5)
        shares = blender.scores(box, 2, averaged=False) / averages
        assert shares.min() > 0
        torch.testing.assert_close(shares[0], shares[1], atol=1e-4, rtol=1e-3)


def test_windows_agree_on_a_box_where_every_cell_that_it_is_made_of_has_one_label():
    tiling = Tiling((8, 8, 12), (8, 8, 8), 0.5)
    blender = Blender(tiling, "gaussian", LINEAR, CPU, CPU, verdict=lambda logits: logits.argmax(1)[0])
    left, right = torch.zeros(2, 1, 2, 2, 2, 2)
    left[:, 1, :, :, 0] = 1  # class 1 in the first of its two columns of cells, class 0 in the other
    blender.add((0, 0, 0), left)
    blender.add((0, 0, 4), right)
    rows = slice(0, 8), slice(0, 8)
    assert blender.agreed((*rows, slice(0, 2))) == 1
    assert blender.agreed((*rows, slice(0, 3))) is None, "between two cells"
    assert blender.agreed((*rows, slice(6, 12))) == 0
    right[:, 1] = 1
    blender.add((0, 0, 4), right)
    assert blender.agreed((*rows, slice(6, 8))) is None, "one window says 0, the other 1"
    blender.add((0, 0, 4), None)
    assert blender.agreed((*rows, slice(6, 12))) == 0, "a window of background says 0"
    assert blender.agreed((*rows, slice(3, 8))) is None


def test_windows_are_forgotten_when_their_last_plane_is_done():
    tiling = Tiling((64, 8, 8), (8, 8, 8), 0.5)
    blender, most = Blender(tiling, "gaussian", LINEAR, CPU, CPU), 0
    for corner in tiling.corners:
        blender.add(corner, torch.zeros(1, 2, 2, 2, 2))
        blender.forget(corner[0])
        most = max(most, len(blender.open))
    assert most == 2


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_softmax_is_torchs_however_far_apart_the_logits_are(spread):
    logits = spread * torch.randn(1, 5, 4, 4, 4)
    tiling = Tiling((8, 8, 8), (8, 8, 8), 0)
    blender = Blender(tiling, "gaussian", SOFTMAX, CPU, CPU)
    blender.add((0, 0, 0), logits)
    expected = torch.nn.functional.interpolate(logits, size=(8, 8, 8), mode="trilinear").softmax(1)[0]
    torch.testing.assert_close(blender.scores((slice(0, 8),) * 3, 5), expected, atol=1e-5, rtol=1e-4)


def test_neighbours_whose_logits_lie_near_and_far_apart_are_scored_each_by_its_own():
    windows = [spread * torch.randn(1, 5, 4, 4, 4) for spread in (1.0, 300.0, 1.0)]
    blender = Blender(Tiling((8, 8, 24), (8, 8, 8), 0), "gaussian", SOFTMAX, CPU, CPU)
    for n, logits in enumerate(windows):
        blender.add((0, 0, 8 * n), logits)
    enlarged = [torch.nn.functional.interpolate(logits, size=(8, 8, 8), mode="trilinear") for logits in windows]
    expected = torch.cat(enlarged, -1).softmax(1)[0]
    found = blender.scores((slice(0, 8), slice(0, 8), slice(0, 24)), 5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("activation", "background"), [(SOFTMAX, (1.0, 0.0)), (SIGMOID, (0.0, 0.0))])
def test_a_window_of_background_has_its_say_where_windows_overlap(activation, background):
    blender = Blender(Tiling((8, 8, 12), (8, 8, 8), 0.5), "gaussian", activation, CPU, CPU)
    blender.add((0, 0, 0), torch.zeros(1, 2, 2, 2, 2))
    blender.add((0, 0, 4), None)
    importance = tile_importance((8, 8, 8), "gaussian")
    seen, dark = importance[..., 4:], importance[..., :4]
    found = blender.scores((slice(0, 8), slice(0, 8), slice(4, 8)), 2)
    for score, of_background in zip(found, background, strict=True):
        torch.testing.assert_close(score, (0.5 * seen + of_background * dark) / (seen + dark))


def test_logits_beyond_half_precision_leave_their_neighbours_alone():
    blender = Blender(Tiling((8, 8, 8), (8, 8, 8), 0), "gaussian", LINEAR, CPU, CPU, torch.float16)
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[0, 1, 0] = 1e5
    blender.add((0, 0, 0), logits)
    scores = blender.scores((slice(0, 8),) * 3, 2)
    assert (scores[1, :2] > 6e4).all()
    assert not scores[:, 6:].any()


@pytest.mark.parametrize("size", [1, 7, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_tiles_cover_every_voxel_are_evenly_spread_and_share_what_was_asked(size, overlap):
    tile = min(16, size)
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - tile
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= max(1, int(tile * (1 - overlap))) for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


@pytest.mark.parametrize(("tile", "overlap", "step"), [(20, 0.9, 2), (160, 0.8, 32), (100, 0.55, 45)])
def test_tiles_are_the_fewest_however_their_step_rounds(tile, overlap, step):
    assert tile_starts(tile + 2 * step, tile, overlap) == [0, step, 2 * step]


def test_the_middle_of_a_tile_counts_most_and_no_voxel_less_than_a_thousandth():
    importance = tile_importance((16, 9), "gaussian")
    assert importance.shape == (16, 9)
    assert importance.argmax() in (7 * 9 + 4, 8 * 9 + 4)
    assert importance.min() == pytest.approx(1e-3)
    torch.testing.assert_close(importance, importance.flip(0, 1))
    assert (tile_importance((4, 4), "constant") == 1).all()


def test_mirror_images_are_four_in_2d_and_eight_in_3d():
    assert mirrorings(range(2, 4)) == [(), (2,), (3,), (2, 3)]
    assert len(set(mirrorings(range(2, 5)))) == 8
    assert mirrorings([]) == [()]


@pytest.mark.parametrize(("shape", "tile"), [((5, 40, 33), (1, 16, 16)), ((40, 9, 33), (16, 16, 12))])
def test_the_windows_that_touch_a_box_are_those_that_cover_a_part_of_it(shape, tile, rng):
    tiling = Tiling(shape, tile, 0.5)
    for _ in range(50):
        box = [slice(first := int(rng.integers(size)), int(rng.integers(first, size)) + 1) for size in shape]
        parts = {corner: tiling.inside(corner, box) for corner in tiling.corners}
        assert list(tiling.touching(box)) == [c for c, sides in parts.items() if all(s.start < s.stop for s in sides)]
