"""Memory that runs out: failures are injected, GPUs are only named. None of this has run on a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_scan, make_segmenter

import DeepLabSegLib.ladder as ladder
import DeepLabSegLib.segmenter as segmenting
from DeepLabSegLib.errors import Cancelled, InvalidInput
from DeepLabSegLib.files import read_image
from DeepLabSegLib.ladder import next_step, out_of_memory
from DeepLabSegLib.region import crop
from DeepLabSegLib.segmenter import SegmentOptions, load_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def failing(monkeypatch, segmenter, fits):
    """Let the network run out of memory on every passage for which `fits` is false."""
    whole = segmenter._logits_of

    def logits_of(passage):
        if not fits(passage):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(passage)

    monkeypatch.setattr(segmenter, "_logits_of", logits_of)


def run(segmenter, scan, options=None):
    """Labels, and the notes on the way."""
    seen = []
    return segmenter.segment(scan, options, seen.append).array, [step.note for step in seen if step.note]


def test_fewer_slices_at_once_change_nothing(monkeypatch, scan):
    segmenter = make_segmenter(2)
    expected, notes = run(segmenter, scan)
    assert notes == []
    failing(monkeypatch, segmenter, lambda passage: passage.at_once == 1)
    found, notes = run(segmenter, scan)
    np.testing.assert_array_equal(found, expected)
    assert notes == [
        "Not enough memory on CPU: 3 windows go through the network at once.",
        "Not enough memory on CPU: one window goes through the network at once.",
    ]


@pytest.mark.parametrize("dims", [2, 3])
def test_windows_shrink_along_their_longest_side(monkeypatch, dims, rng):
    monkeypatch.setattr(ladder, "SMALLEST_TILE", 16)
    segmenter = make_segmenter(dims)
    failing(monkeypatch, segmenter, lambda passage: max(passage.tile) <= 48)
    options = SegmentOptions(tile=(16, 64, 48)[-dims:], overlap=0.5)
    _, notes = run(segmenter, make_scan(rng, (16, 64, 48)), options)
    assert notes[-1] == (
        f"Not enough memory on CPU: windows shrink to {'16 x ' * (dims == 3)}32 x 48 voxels, so labels may differ "
        "a little."
    )


def test_smaller_windows_change_few_labels_of_a_trained_model(monkeypatch):
    segmenter = load_model("head-mri-2d", "cpu")
    whole = read_image(SAMPLE)
    middle = whole.geometry.shape[0] // 2
    scan = crop(
        whole, (slice(middle, middle + 4), slice(0, whole.geometry.shape[1]), slice(0, whole.geometry.shape[2]))
    )
    expected, _ = run(segmenter, scan)
    longest = []
    failing(monkeypatch, segmenter, lambda passage: longest.append(max(passage.tile)) or longest[-1] < longest[0])
    found, notes = run(segmenter, scan)
    assert "windows shrink" in notes[-1]
    assert (found == expected).mean() > 0.97


@pytest.mark.parametrize("dims", [2, 3])
def test_from_a_gpu_the_cpu_takes_over_with_the_same_result(monkeypatch, dims, scan):
    segmenter = make_segmenter(dims)
    options = SegmentOptions(tile=(32, 32, 32)[-dims:])
    expected, _ = run(segmenter, scan, options)
    segmenter.device, segmenter._compiled = CUDA, True
    whole, tried, of, made = segmenting.run, [], segmenter._forms.of, []
    monkeypatch.setattr(segmenter._forms, "of", lambda shape, *how: made.append(how) or of(shape, CPU, "fp32", False))

    def run_on(passage, *more):
        tried.append((passage.at_once, passage.keep_on.type, passage.device.type))
        if passage.device == CUDA:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(passage, *more)

    monkeypatch.setattr(segmenting, "run", run_on)
    monkeypatch.setattr(segmenting, "release", lambda device: None)
    found, notes = run(segmenter, scan, options)
    np.testing.assert_array_equal(found, expected)
    assert made == [(CPU, "fp32", False)], "there may be no compiler"
    assert tried[0] == (8, "cuda", "cuda")
    assert tried[-2:] == [(1, "cpu", "cuda"), (1, "cpu", "cpu")]
    assert len(notes) == len(tried) - 1
    assert notes[-2:] == [
        "Not enough memory on CUDA: intermediate results are kept in the computer's memory.",
        "Not enough memory on CUDA: the CPU takes over, which is slower.",
    ]


@pytest.mark.parametrize("dims", [2, 3])
def test_what_torch_lacks_on_a_gpu_the_cpu_does_with_the_same_result(monkeypatch, dims, scan):
    segmenter = make_segmenter(dims)
    options = SegmentOptions(tile=(32, 32, 32)[-dims:], overlap=0.8)
    expected, _ = run(segmenter, scan, options)
    segmenter.device = torch.device("mps")
    whole, tried = segmenting.run, []

    def run_on(passage, *more):
        tried.append((passage.at_once, passage.keep_on.type, passage.device.type))
        if passage.device.type == "mps":
            raise NotImplementedError(
                "The operator 'aten::max_pool3d_with_indices' is not implemented for the MPS device"
            )
        return whole(passage, *more)

    monkeypatch.setattr(segmenting, "run", run_on)
    monkeypatch.setattr(segmenting, "release", lambda device: None)
    found, notes = run(segmenter, scan, options)
    np.testing.assert_array_equal(found, expected)
    assert [where for _, *where in tried] == [["mps", "mps"], ["cpu", "cpu"]]
    assert [windows for windows, *_ in tried] == ([16, 8] if dims == 2 else [8, 1])
    assert notes == [
        f"This torch ({torch.__version__}) can't run the model on MPS: the CPU takes over, which is slower."
    ]


def test_what_torch_lacks_on_the_cpu_is_said(monkeypatch, scan):
    def lacking(passage):
        raise NotImplementedError("no such operation")

    segmenter = make_segmenter(2)
    monkeypatch.setattr(segmenter, "_logits_of", lacking)
    with pytest.raises(NotImplementedError, match="no such operation"):
        segmenter.segment(scan)


def test_where_logits_wait_makes_no_difference(scan):
    segmenter = make_segmenter(3)
    options = SegmentOptions(tile=(16, 16, 16))
    expected, _ = run(segmenter, scan, options)
    whole = segmenter._run
    segmenter._run = lambda passage, report: whole(replace(passage, keep_on=torch.device("cpu")), report)
    np.testing.assert_array_equal(run(segmenter, scan, options)[0], expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dims", [2, 3])
def test_on_the_cpu_logits_wait_in_half_precision_and_few_labels_change(monkeypatch, dims, activation, scan):
    segmenter = make_segmenter(dims, activation=activation)
    options = SegmentOptions(tile=(16, 16, 16)[-dims:])
    expected, _ = run(segmenter, scan, options)
    with torch.no_grad():
        segmenter.network.head.bias += 1e5 * (activation == "softmax")  # beyond what half precision holds
    failing(monkeypatch, segmenter, lambda passage: passage.keep_as == torch.float16)
    found, notes = run(segmenter, scan, options)
    assert notes[-1].startswith("Not enough memory on CPU: intermediate results are kept in half precision")
    assert (found == expected).mean() > 0.99


def test_at_the_foot_of_the_ladder_the_error_says_what_helps(monkeypatch, scan):
    segmenter = make_segmenter(3)
    failing(monkeypatch, segmenter, lambda passage: False)
    with pytest.raises(InvalidInput, match="choose a region, or close other programs"):
        segmenter.segment(scan)


def test_a_step_of_the_ladder_may_be_declined(monkeypatch, scan):
    segmenter = make_segmenter(2)
    failing(monkeypatch, segmenter, lambda passage: False)
    with pytest.raises(Cancelled):
        segmenter.segment(scan, on_progress=lambda step: step.note is None)


def test_other_errors_are_not_taken_for_want_of_memory(monkeypatch, scan):
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"))  # Windows'
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))
    assert out_of_memory(RuntimeError("Invalid buffer size: 19.45 GiB"))  # MPS's
    assert out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))  # cuDNN's
    assert not out_of_memory(RuntimeError("shape '[2]' is invalid"))
    assert not out_of_memory(InvalidInput("out of memory"))
    segmenter = make_segmenter(2)

    def broken(passage):
        raise RuntimeError("something else")

    monkeypatch.setattr(segmenter, "_logits_of", broken)
    with pytest.raises(RuntimeError, match="something else"):
        segmenter.segment(scan)


def first_passage(monkeypatch, segmenter, scan):
    """How a segmentation of `scan` would begin."""
    passages = []

    def keep(passage, report):
        passages.append(passage)
        raise KeyboardInterrupt

    monkeypatch.setattr(segmenter, "_run", keep)
    with pytest.raises(KeyboardInterrupt):
        segmenter.segment(scan)
    return passages[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_windows_are_halved_to_whole_strides_until_a_network_would_see_too_little(monkeypatch, dims, scan):
    tile = (1 if dims == 2 else 72, 200, 72)
    passage = first_passage(monkeypatch, make_segmenter(dims), scan)
    passage, sides = replace(passage, tile=tile, at_once=1, keep_as=torch.float16), []
    while (found := next_step(passage, 16)) is not None:
        passage = found[0]
        sides.append(passage.tile[1])
    assert sides == [112, 64]


def test_every_step_takes_less_and_the_last_is_the_cpu(monkeypatch, scan):
    first = first_passage(monkeypatch, make_segmenter(3), scan)
    passages = [replace(first, tile=(96, 96, 96), device=CUDA, keep_on=CUDA, at_once=8)]
    while (found := next_step(passages[-1], 16)) is not None:
        passages.append(found[0])
    assert [p.at_once for p in passages[:4]] == [8, 4, 2, 1]
    assert passages[4].keep_on == CPU
    assert [(p.device.type, max(p.tile)) for p in passages[4:]] == [("cuda", 96), ("cpu", 96), ("cpu", 96)]
    assert [p.keep_as for p in passages[4:]] == [torch.float32, torch.float32, torch.float16]
