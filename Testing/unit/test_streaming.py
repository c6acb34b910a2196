"""What is done by slab gives the labels of doing it whole.

The reference here holds everything at once: the scan on the model's grid, each class's scores in full, blended and
resampled back, then decided. Voxels whose two best scores differ by rounding only may fall to either side.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_bundle, make_network, make_scan
from torch.nn import functional as F

import DeepLabSegLib.streaming as streaming
import DeepLabSegLib.tiling as tiling
import DeepLabSegLib.windows as windows
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.passage import Decision, Passage
from DeepLabSegLib.postprocess import keep_rim
from DeepLabSegLib.preprocess import Scaling
from DeepLabSegLib.resampling import resample
from DeepLabSegLib.segmenter import Segmenter, SegmentOptions
from DeepLabSegLib.streaming import entropy, largest, run
from DeepLabSegLib.tiling import Activation, Blender, mirrorings, tile_importance, tile_starts

ROUNDING = 1e-4


def whole_scores(segmenter, scan, options):
    """Class scores `(classes, k, j, i)` on the scan's own grid, everything held at once."""
    network, wanted = segmenter.network, segmenter.bundle.input
    dims = network.spec.dims
    values = wanted.normalization(torch.from_numpy(scan.array.astype(np.float32)))
    grid = segmenter._grid(scan.geometry, options)
    x = resample(values, scan.geometry, grid)
    batch = x.movedim(1, 0) if dims == 2 else x[None]
    tile = options.tile or wanted.tile or tuple(-(-s // network.stride) * network.stride for s in batch.shape[2:])
    lacking = [max(0, t - s) for t, s in zip(tile, batch.shape[2:], strict=True)]
    inner = tuple(slice(n // 2, n // 2 + s) for n, s in zip(lacking, batch.shape[2:], strict=True))
    batch = F.pad(batch, [side for n in reversed(lacking) for side in (n // 2, n - n // 2)])
    starts = [tile_starts(s, t, options.overlap) for s, t in zip(batch.shape[2:], tile, strict=True)]
    importance = tile_importance(tile, options.blending)
    total = torch.zeros(batch.shape[2:])
    scores = torch.zeros(len(batch), network.spec.num_classes, *batch.shape[2:])
    turns = mirrorings(range(2, batch.ndim)) if options.mirror else [()]
    for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, dims).tolist():
        area = tuple(slice(n, n + t) for n, t in zip(corner, tile, strict=True))
        part = batch[(slice(None), slice(None), *area)].clone()
        seen = sum(network(part.flip(turn)).flip(turn) for turn in turns) / len(turns)
        scores[(slice(None), slice(None), *area)] += seen * importance
        total[area] += importance
    scores = (scores / total)[(slice(None), slice(None), *inner)]
    return resample(scores.movedim(0, 1) if dims == 2 else scores[0], grid, scan.geometry)


def check(segmenter, scan, options):
    """The segmenter's labels are those of `whole_scores`, and so are its uncertainty and probabilities."""
    with torch.inference_mode():
        scores = whole_scores(segmenter, scan, options)
    found = segmenter.segment(scan, options)
    if segmenter.bundle.network.exclusive:
        ranks, near = scores, torch.zeros(scan.geometry.shape, dtype=torch.bool)
        if segmenter.bundle.foreground_first:
            near = (scores[0] - 0.5).abs() < ROUNDING
            ranks = torch.cat([torch.where(scores[:1] < 0.5, 0, 1), scores[1:]])
        best = ranks.topk(2, dim=0).values
        sure = ((best[0] - best[1] > ROUNDING) & ~near).numpy()
        expected = ranks.argmax(0).numpy()[None]
        if segmenter.bundle.foreground_first:
            keep_rim(expected, (expected[0] > 0) & (scores.argmax(0) == 0).numpy(), scan.geometry.spacing)
    else:
        sure = ((scores - options.threshold).abs() > ROUNDING).numpy()
        expected = (scores >= options.threshold).numpy() * np.arange(1, len(scores) + 1).reshape(-1, 1, 1, 1)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(np.where(sure, found.layers, 0), np.where(sure, expected, 0))
    if options.uncertainty:
        expected = entropy(scores, segmenter.bundle.network.exclusive).numpy()
        np.testing.assert_allclose(found.uncertainty, expected, atol=1e-3)
    if options.probabilities:
        assert found.probabilities.dtype == np.float16
        np.testing.assert_allclose(found.probabilities, scores.numpy(), atol=1e-3)


@pytest.fixture(autouse=True)
def small_boxes(monkeypatch):
    """Boxes so small that every scan here is cut into many."""
    monkeypatch.setattr(streaming, "SIDE", 12)
    monkeypatch.setattr(streaming, "NUMBERS", 20_000)


def make(dims, classes=3, activation="softmax", foreground_first=False, **more):
    bundle = replace(
        make_bundle(dims, classes=classes, activation=activation, **more), foreground_first=foreground_first
    )
    network = make_network(bundle.network)
    with torch.no_grad():  # scores far from 0 and 1: saturated ones of two windows are often exactly even
        network.head.weight *= 0.1
        network.head.bias *= 0.1
    return Segmenter(bundle, network, "cpu", "fp32")


TILES = {2: [None, (24, 20), (64, 16)], 3: [None, (12, 24, 20), (16, 16, 16), (64, 16, 16)]}
CASES = [(dims, tile) for dims, tiles in TILES.items() for tile in tiles]


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(("dims", "tile"), CASES)
def test_from_one_window_to_many_at_every_overlap(dims, tile, overlap, blending, scan):
    # As the model's own, a tile may be larger than the scan.
    check(make(dims, tile=tile), scan, SegmentOptions(overlap=overlap, blending=blending))


@pytest.mark.parametrize(("dims", "tile"), [(2, (63, 16)), (3, (63, 16, 16))])
def test_in_a_window_that_is_larger_by_an_odd_number_the_voxel_more_comes_after_the_scan(dims, tile, scan):
    check(make(dims, tile=tile), scan, SegmentOptions(probabilities=True))


@pytest.mark.parametrize(("classes", "activation"), [(3, "softmax"), (1, "sigmoid"), (3, "sigmoid"), (4, "linear")])
@pytest.mark.parametrize("orientation", ["SAR", "RIP", "ASL"])
@pytest.mark.parametrize(("dims", "tile"), [(2, None), (2, (16, 16)), (3, None), (3, (16, 16, 16))])
def test_every_activation_on_a_grid_of_other_axes_and_voxels(dims, tile, orientation, classes, activation, scan):
    segmenter = make(dims, classes, activation, orientation=orientation, spacing=(2.0, 1.7, 1.4))
    likely = activation != "linear"
    check(segmenter, scan, SegmentOptions(tile=tile, uncertainty=likely, probabilities=likely))


@pytest.mark.parametrize(("activation", "likely"), [("softmax", False), ("softmax", True), ("sigmoid", False)])
@pytest.mark.parametrize(("dims", "tile"), [(2, None), (2, (16, 24)), (3, None), (3, (16, 16, 24))])
def test_averages_over_mirror_images(dims, tile, activation, likely, scan):
    check(make(dims, activation=activation), scan, SegmentOptions(tile=tile, mirror=True, probabilities=likely))


@pytest.mark.parametrize("likely", [False, True])
@pytest.mark.parametrize("spacing", [(None, None, None), (2.0, 1.7, 1.4)])
@pytest.mark.parametrize(("dims", "tile"), [(2, None), (2, (16, 24)), (3, None), (3, (16, 16, 24))])
def test_background_that_is_likelier_than_each_label_but_not_than_all_gives_way(dims, tile, spacing, likely, scan):
    segmenter = make(dims, 4, spacing=spacing, foreground_first=True)
    check(segmenter, scan, SegmentOptions(tile=tile, uncertainty=likely))
    by_itself = Segmenter(replace(segmenter.bundle, foreground_first=False), segmenter.network, "cpu", "fp32")
    labels, others = (one.segment(scan, SegmentOptions(tile=tile)).array for one in (segmenter, by_itself))
    changed = labels != others
    assert changed.any()
    assert (others[changed] == 0).all()


@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize(("dims", "tile"), [(2, None), (2, (16, 24)), (3, None), (3, (16, 16, 24))])
def test_another_threshold_than_a_half(dims, tile, threshold, scan):
    check(make(dims, activation="sigmoid"), scan, SegmentOptions(tile=tile, threshold=threshold))


def test_windows_of_a_volume_that_follow_each_other_along_one_axis_alone(scan):
    check(make(3), scan, SegmentOptions(tile=(16, 40, 16), overlap=0.5))


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("orientation", ["SAR", "RSA"])  # one axis of the scan changes from slab to slab, or two
@pytest.mark.parametrize(("dims", "tile"), [(2, (16, 24)), (3, (16, 16, 24))])
def test_an_oblique_scan(dims, tile, orientation, gpu, scan, monkeypatch):
    for module in (streaming, windows):
        monkeypatch.setattr(module, "is_gpu", lambda device: gpu)
    turn = ((0.96, 0.28, 0.0), (-0.28, 0.96, 0.0), (0.0, 0.0, 1.0))
    geometry = Geometry(scan.geometry.shape, scan.geometry.spacing, scan.geometry.origin, turn)
    segmenter = make(dims, orientation=orientation, spacing=(2.0, 1.4, 1.4))
    check(segmenter, type(scan)(scan.array, geometry), SegmentOptions(tile=tile))


@pytest.mark.parametrize(("classes", "activation"), [(3, "softmax"), (3, "sigmoid")])
@pytest.mark.parametrize("orientation", ["SAR", "RIP"])
@pytest.mark.parametrize(
    ("dims", "tile", "windows_at_once"), [(2, (16, 16), 5), (3, (16, 16, 24), 2), (3, (16, 16, 24), 99)]
)
def test_in_the_larger_pieces_that_a_gpu_takes(
    dims, tile, windows_at_once, orientation, classes, activation, scan, monkeypatch
):
    for module in (streaming, windows):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr(tiling, "AT_ONCE", windows_at_once * classes * math.prod(tile))
    segmenter = make(dims, classes, activation, orientation=orientation, spacing=(2.0, 1.7, 1.4))
    for kind in (np.float32, np.int16):
        check(segmenter, type(scan)(scan.array.astype(kind), scan.geometry), SegmentOptions(tile=tile, overlap=0.5))


@pytest.mark.parametrize("order", ["as it is", "Fortran", "turned", "read-only"])
@pytest.mark.parametrize(("dims", "tile"), [(2, None), (3, (16, 16, 16)), (3, (1, 64, 64))])
def test_however_an_array_lies_in_memory(dims, tile, order, scan):
    plain = scan.array.astype(np.float32)
    array = {
        "as it is": plain,
        "Fortran": np.asfortranarray(plain),
        "turned": plain[:, ::-1].copy()[:, ::-1],
        "read-only": np.frombuffer(plain.tobytes(), np.float32).reshape(plain.shape),
    }[order]
    segmenter, options = make(dims), SegmentOptions(tile=tile)
    found, wanted = (segmenter.segment(type(scan)(a, scan.geometry), options) for a in (array, plain))
    np.testing.assert_array_equal(found.array, wanted.array)


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.uint16, np.float64])
def test_whatever_the_voxels_type(kind, rng):
    scan = make_scan(rng)
    array = (scan.array - scan.array.min()).clip(0, 250).astype(kind)
    check(make(3, spacing=(2.0, 1.4, 1.4)), type(scan)(array, scan.geometry), SegmentOptions(tile=(16, 16, 16)))


@pytest.mark.parametrize(("classes", "activation"), [(3, "softmax"), (3, "sigmoid")])
@pytest.mark.parametrize(("dims", "tile"), [(2, (16, 16)), (3, (16, 16, 16))])
def test_windows_of_nothing_but_background_are_not_looked_at(dims, tile, classes, activation, rng, monkeypatch):
    scan = make_scan(rng, (16, 48, 48))
    scan.array[:, :, :, 16:] = -1000
    scan.array[:, :, 40, 40] = -950
    options = SegmentOptions(tile=tile, overlap=0.0)
    segmenter = make(dims, classes, activation)
    without = segmenter.segment(scan, options)
    bundle = make_bundle(dims, classes=classes, activation=activation, background=-950)
    skipping, seen = Segmenter(bundle, segmenter.network, "cpu", "fp32"), []
    whole = skipping._logits_of
    monkeypatch.setattr(skipping, "_logits_of", lambda passage: lambda x: seen.append(len(x)) or whole(passage)(x))
    labels = skipping.segment(scan, options)
    assert sum(seen) == (16 if dims == 2 else 1) * 3, "the first column of three"
    np.testing.assert_array_equal(labels.array[..., :16], without.array[..., :16])
    assert not labels.array[..., 16:].any()


@pytest.mark.parametrize(("dims", "tile"), [(2, (16, 16)), (3, (16, 16, 16))])
def test_windows_of_the_very_value_up_to_which_all_is_background_are_not_looked_at(dims, tile, rng, monkeypatch):
    scan, seen = make_scan(rng, (16, 48, 48)), []
    scan.array[:, :, :, 16:] = -1000
    for background in (-1000, -999):
        segmenter = make(dims, spacing=(2.0, 1.4, 1.4), background=background)
        whole = segmenter._logits_of
        seen.append(0)

        def counted(passage, whole=whole):
            return lambda x: seen.append(seen.pop() + len(x)) or whole(passage)(x)

        monkeypatch.setattr(segmenter, "_logits_of", counted)
        segmenter.segment(scan, SegmentOptions(tile=tile, overlap=0.0))
    assert seen[0] == seen[1] > 0


@pytest.mark.parametrize(("dims", "tile"), [(2, (16, 16)), (3, (16, 16, 16))])
def test_a_window_is_background_where_every_channel_is_by_its_own_values(dims, tile, rng, monkeypatch):
    scan, seen = make_scan(rng, (16, 48, 48), channels=2), []
    scan.array[0, :, :, 16:32] = scan.array[1, :, :, 16:] = -1000
    segmenter = make(dims, channels=2, background=-950)
    whole = segmenter._logits_of
    monkeypatch.setattr(segmenter, "_logits_of", lambda passage: lambda x: seen.append(len(x)) or whole(passage)(x))
    segmenter.segment(scan, SegmentOptions(tile=tile, overlap=0.0))
    assert sum(seen) == (16 if dims == 2 else 1) * 3 * 2, "all but the middle column of three"


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_background_that_is_not_looked_at_has_no_label_however_low_the_threshold(dims, classes, gpu, scan, monkeypatch):
    for module in (streaming, windows):
        monkeypatch.setattr(module, "is_gpu", lambda device: gpu)
    dark = slice(4, 7) if dims == 2 else slice(None)  # a volume is one window here
    scan.array[:, dark] -= 2000
    labels = make(dims, classes, "sigmoid", background=-900).segment(scan, SegmentOptions(threshold=0.3))
    assert not labels.layers[:, dark].any()
    assert labels.array.any() == (dims == 2)


def bright_or_dark(dims, activation, source):
    """A run over `source` of a network whose logits are how bright it is, in windows of 16."""
    grid = replace(source.geometry, spacing=(source.geometry.spacing[0], 1.1, 1.1), shape=(12, 54, 39))
    exclusive = activation != "sigmoid"
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    return Passage(
        source=source, scaling=Scaling((0.0,), (1.0,), False, (0.0,), (1.0,)), outside=(0.0,), grid=grid,
        tile=(1, 16, 16) if dims == 2 else (12, 16, 16), dims=dims, overlap=0.5, blending="gaussian",
        activation=Activation(activation, {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid}[activation]),
        decision=Decision(2, exclusive, 1 if exclusive else 2, 0.4, False),
        background=None, mirror_axes=(), at_once=4,
        device=torch.device("cpu"), keep_on=torch.device("cpu"), keep_as=torch.float32,
    ), lambda x: torch.cat([(-1 if exclusive else 1) * pool(x, 2) - 15, pool(x, 2) - 9], 1)[None]  # fmt: skip


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dims", [2, 3])
def test_where_all_windows_agree_nothing_is_blended_and_labels_are_the_same(dims, activation, scan, monkeypatch):
    scan.array[:] = np.where(np.arange(36) < 8, 30, -20)
    passage, logits_of = bright_or_dark(dims, activation, scan)
    labels, blended = [], []
    for verdict in (streaming._verdict, lambda passage: None):
        blended.append(0)

        def counted(blender, box, *more, scores=Blender.scores):
            blended[-1] += np.prod([side.stop - side.start for side in box])
            return scores(blender, box, *more)

        with monkeypatch.context() as patch:
            patch.setattr(streaming, "_verdict", verdict)
            patch.setattr(Blender, "scores", counted)
            labels.append(run(passage, logits_of, lambda *_: None, lambda *_: None).labels)
    np.testing.assert_array_equal(*labels)
    assert labels[0].any()
    assert blended[0] < 0.7 * blended[1]


@pytest.mark.parametrize(("threshold", "found"), [(0.3, True), (0.45, False), (0.6, False)])
@pytest.mark.parametrize("dims", [2, 3])
def test_what_windows_agree_on_is_seen_by_the_threshold(dims, threshold, found, scan):
    passage, logits_of = bright_or_dark(dims, "sigmoid", scan)
    passage = replace(passage, decision=replace(passage.decision, threshold=threshold))
    labels = run(passage, lambda x: torch.full_like(logits_of(x), -0.4), *[lambda *_: None] * 2).labels
    assert (labels > 0).all() == (labels > 0).any() == found, "a score of 0.4 everywhere"


@pytest.mark.parametrize(("each", "label"), [(-0.6, 1), (-0.8, 0)])
@pytest.mark.parametrize("dims", [2, 3])
def test_where_all_windows_find_background_likelier_than_each_label_all_labels_count(dims, each, label, scan):
    passage, logits_of = bright_or_dark(dims, "softmax", scan)
    passage = replace(passage, decision=Decision(3, True, 1, 0.5, foreground_first=True))
    logits = torch.tensor([0.0, each, each - 0.01]).view(1, 1, 3, *[1] * dims)
    labels = run(passage, lambda x: logits.expand(1, len(x), 3, *logits_of(x).shape[3:]), *[lambda *_: None] * 2).labels
    assert (labels == label).all()


@pytest.mark.parametrize(
    ("activation", "classes", "kind"),
    [("softmax", 256, np.uint8), ("softmax", 257, np.uint16), ("sigmoid", 255, np.uint8), ("sigmoid", 256, np.uint16)],
)
def test_labels_have_room_for_the_last_class(activation, classes, kind, scan):
    passage, _ = bright_or_dark(2, activation, scan)
    exclusive = activation == "softmax"
    passage = replace(passage, decision=Decision(classes, exclusive, 1 if exclusive else classes, 0.4))
    last = torch.arange(classes).view(1, 1, -1, 1, 1) == classes - 1
    labels = run(passage, lambda x: (last * 20.0 - 10).expand(1, len(x), -1, 8, 8), *[lambda *_: None] * 2).labels
    assert labels.dtype == kind
    assert (labels[-1] == classes - exclusive).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_numbers_beyond_half_precision_are_told_and_no_background(dims, scan, monkeypatch):
    segmenter = make(dims)
    whole, passage = segmenter._logits_of, segmenter._passage
    monkeypatch.setattr(segmenter, "_passage", lambda *given: replace(passage(*given), keep_as=torch.float16))
    segmenter.segment(scan)
    monkeypatch.setattr(segmenter, "_logits_of", lambda passage: lambda x: whole(passage)(x) * float("nan"))
    with pytest.raises(InvalidInput, match="range of fp16, which ends at 65504; choose bf16 or fp32"):
        segmenter.segment(scan, SegmentOptions(tile=(16,) * dims))


def test_of_equal_scores_the_first_counts_and_what_is_no_number_is_background():
    nan = float("nan")
    scores = torch.tensor([[1.0, 2.0, nan, 0.0], [1.0, 3.0, 1.0, nan], [0.0, 3.0, 2.0, 1.0]])
    assert largest(scores).tolist() == [0, 1, 0, 0]


def test_background_against_all_labels_needs_softmax():
    with pytest.raises(InvalidInput, match="foreground_first is true, but sigmoid"):
        replace(make_bundle(2, activation="sigmoid"), foreground_first=True)


def test_a_threshold_of_background_needs_probabilities():
    with pytest.raises(InvalidInput, match="leave it out"):
        make_bundle(2, activation="linear", background=0.0)
    with pytest.raises(InvalidInput, match="finite"):
        make_bundle(2, background=float("nan"))
