from itertools import pairwise

import pytest
import torch

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.tiling import predict, tile_importance, tile_starts

CPU = torch.device("cpu")


def run(network, x, tile, overlap=0.25, blending="gaussian", batch=1, on_tile=lambda done, total: None):
    return predict(network, x, tile, overlap=overlap, blending=blending, batch=batch, device=CPU, on_tile=on_tile)


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    ("shape", "tile"), [((50, 41), (16, 16)), ((20, 33, 17), (16, 8, 16)), ((5, 7), (9, 9)), ((1, 1), (4, 4))]
)
def test_blending_a_network_that_copies_gives_the_image_back(shape, tile, overlap, blending):
    x = torch.randn(2, 3, *shape)
    torch.testing.assert_close(run(lambda t: t.clone(), x, tile, overlap, blending), x, atol=1e-5, rtol=1e-5)


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


def test_the_middle_of_a_tile_counts_most_and_no_voxel_less_than_a_thousandth():
    importance = tile_importance((16, 9), "gaussian")
    assert importance.shape == (16, 9)
    assert importance.argmax() in (7 * 9 + 4, 8 * 9 + 4)
    assert importance.min() == pytest.approx(1e-3)
    torch.testing.assert_close(importance, importance.flip(0, 1))
    assert (tile_importance((4, 4), "constant") == 1).all()


def test_without_a_tile_the_whole_image_goes_through_at_once():
    seen = []
    run(lambda t: seen.append(tuple(t.shape)) or t.clone(), torch.randn(5, 1, 9, 11), None, batch=2)
    assert seen == [(2, 1, 9, 11), (2, 1, 9, 11), (1, 1, 9, 11)]


def test_an_image_smaller_than_the_tile_is_padded_with_zeros_on_both_sides():
    seen = []
    x = torch.ones(1, 1, 3, 8)
    result = run(lambda t: seen.append(t) or t.clone(), x, (6, 8))
    torch.testing.assert_close(seen[0][0, 0, :, 0], torch.tensor([0.0, 1, 1, 1, 0, 0]))
    torch.testing.assert_close(result, x)


def test_the_whole_image_is_rounded_up_to_what_the_network_divides_by():
    seen = []
    x = torch.randn(1, 1, 9, 16)
    result = predict(
        lambda t: seen.append(tuple(t.shape)) or t.clone(), x, None, overlap=0, blending="gaussian", multiple=8,
        batch=1, device=CPU, on_tile=lambda done, total: None,
    )  # fmt: skip
    assert seen == [(1, 1, 16, 16)]
    torch.testing.assert_close(result, x)


def test_progress_counts_every_step_and_may_stop_the_run():
    steps = []

    def stop_at_three(done, total):
        steps.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lambda t: t.clone(), torch.randn(1, 1, 32, 32), (16, 16), 0.0, on_tile=stop_at_three)
    assert steps == [(1, 4), (2, 4), (3, 4)]


def test_a_network_that_changes_the_size_is_refused_in_words():
    with pytest.raises(InvalidInput, match="head_upsample"):
        run(lambda t: t[..., ::2], torch.randn(1, 1, 8, 8), None)
