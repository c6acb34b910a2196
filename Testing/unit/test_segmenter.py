import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import itk, make_bundle, make_network, make_scan, make_segmenter, physically_equal, save_model
from scipy import ndimage

import DeepLabSegLib.devices as devices
import DeepLabSegLib.segmenter as segmenting
import DeepLabSegLib.streaming as streaming
from DeepLabSegLib.devices import choose_device, choose_precision, computes_right, list_devices, memory_of
from DeepLabSegLib.errors import Cancelled, InvalidInput
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.segmenter import Segmenter, SegmentOptions, load_model


@pytest.mark.parametrize("dims", [2, 3])
def test_softmax_gives_a_partition_on_the_scans_own_grid(dims, scan):
    labels = make_segmenter(dims).segment(scan)
    assert labels.array.shape == scan.geometry.shape
    assert labels.array.dtype == np.uint8
    assert labels.geometry == scan.geometry
    assert set(np.unique(labels.array)) <= {0, 1, 2}
    assert len(np.unique(labels.array)) > 1
    assert [segment.name for segment in labels.segments] == ["Part 1", "Part 2"]


@pytest.mark.parametrize("dims", [2, 3])
def test_sigmoid_with_one_class_gives_a_mask(dims, scan):
    labels = make_segmenter(dims, classes=1, activation="sigmoid").segment(scan)
    assert set(np.unique(labels.array)) == {0, 1}


@pytest.mark.parametrize("dims", [2, 3])
def test_sigmoid_with_several_classes_keeps_every_segment_whole(dims, scan):
    segmenter = make_segmenter(dims, classes=3, activation="sigmoid")
    labels = segmenter.segment(scan)
    assert labels.array.shape == (3, *scan.geometry.shape)
    masks = np.array([labels.mask(segment) for segment in labels.segments])
    assert (masks.sum(axis=0) > 1).any(), "the segments overlap somewhere, or this test shows nothing"
    for n, segment in enumerate(labels.segments):
        alone = make_bundle(dims, classes=1, activation="sigmoid")
        network = make_network(alone.network)
        state = segmenter.network.state_dict()
        state |= {"head.weight": state["head.weight"][n : n + 1], "head.bias": state["head.bias"][n : n + 1]}
        network.load_state_dict(state)
        expected = Segmenter(alone, network, "cpu").segment(scan).array > 0
        np.testing.assert_array_equal(labels.mask(segment), expected)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("permutation", "flips"), [((2, 0, 1), (1,)), ((0, 2, 1), (0, 2))])
def test_however_a_scan_is_stored_the_segmentation_is_the_same_in_space(dims, permutation, flips, scan):
    segmenter = make_segmenter(dims, orientation="ASR", spacing=(None, 1.4, 1.4) if dims == 2 else (2.0, 1.4, 1.4))
    labels = segmenter.segment(scan)
    stored = segmenter.segment(physically_equal(scan, permutation, flips))
    expected = physically_equal(Image(labels.array, scan.geometry), permutation, flips)
    # Means are summed in another order, so a voxel on the edge between two classes may fall to the other side.
    assert (stored.array == expected.array[0]).mean() > 0.999
    assert stored.geometry.is_close(expected.geometry)


def test_a_2d_network_sees_the_slices_one_by_one(rng):
    segmenter, scan = make_segmenter(2), make_scan(rng, (12, 40, 32))
    whole = segmenter.segment(scan).array
    values = (scan.array - scan.array.mean()) / scan.array.std(ddof=1)
    for k in (0, 5, 11):
        with torch.inference_mode():
            slice_alone = segmenter.network(torch.from_numpy(values[:, None, k]).float())[0].argmax(0)
        assert (whole[k] == slice_alone.numpy()).mean() > 0.999


def test_a_2d_network_sees_no_slices_far_beside_the_scan(rng):
    seen = []
    scan = make_scan(rng, (4, 40, 36), (3.3, 1.5, 1.2))
    make_segmenter(2, spacing=(3.0, 1.0, 1.0)).segment(scan, on_progress=seen.append)
    assert max(step.total for step in seen if step.stage == "segment") <= 6, "4 x 3.3 mm in slices of 3 mm"


def test_slices_run_along_the_chosen_axis(scan):
    segmenter = make_segmenter(2)
    turned = make_segmenter(2, orientation="RSA")
    turned.network.load_state_dict(segmenter.network.state_dict())
    sagittal = segmenter.segment(scan, SegmentOptions(slice_axis="sagittal"))
    np.testing.assert_array_equal(sagittal.array, turned.segment(scan).array)
    assert (sagittal.array != segmenter.segment(scan).array).any()


@pytest.mark.parametrize(("dims", "tile", "steps"), [(2, (24, 20), 12 * 6), (3, (12, 24, 20), 6)])
def test_a_scan_larger_than_the_tile_goes_through_in_overlapping_tiles(dims, tile, steps, scan):
    segmenter, seen = make_segmenter(dims), []
    tiled = segmenter.segment(scan, SegmentOptions(tile=tile, overlap=0.25), seen.append)
    assert max(step.total for step in seen if step.stage == "segment") == steps
    assert tiled.array.shape == scan.geometry.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_a_window_is_no_larger_than_the_scan_or_the_models_own(dims, scan):
    segmenter = make_segmenter(dims)
    whole = segmenter.segment(scan).array
    np.testing.assert_array_equal(segmenter.segment(scan, SegmentOptions(tile=(99999,) * dims)).array, whole)
    large = Segmenter(
        replace(segmenter.bundle, input=replace(segmenter.bundle.input, tile=(64,) * dims)), segmenter.network
    )
    own = large.segment(scan).array
    np.testing.assert_array_equal(large.segment(scan, SegmentOptions(tile=(99999,) * dims)).array, own)


def test_progress_names_its_stages_and_ends_complete(scan):
    seen = []
    make_segmenter(2).segment(scan, on_progress=seen.append)
    assert list(dict.fromkeys(step.stage for step in seen)) == ["prepare", "segment", "restore"]
    last = {step.stage: step for step in seen}
    assert all(step.done == step.total for step in last.values())


@pytest.mark.parametrize("stage", ["prepare", "segment", "restore"])
def test_returning_false_cancels_at_any_stage(stage, scan):
    with pytest.raises(Cancelled, match=stage):
        make_segmenter(2).segment(scan, on_progress=lambda step: step.stage != stage)


def test_a_colour_picture_is_one_slice(rng):
    picture = Image(rng.integers(0, 255, (3, 1, 40, 50)).astype(np.uint8), Geometry((1, 40, 50)))
    segmenter = make_segmenter(2, channels=3, orientation=None)
    assert segmenter.segment(picture).array.shape == (1, 40, 50)
    picture.array[1:] = 0  # as under a microscope with one dye
    assert segmenter.segment(picture).array.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 0.95}, "between 0 and 0.9"),
        ({"overlap": -0.1}, "between 0 and 0.9"),
        ({"threshold": 0.0}, "between 0 and 1"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"tile": (0, 4)}, "at least 1"),
        ({"tile": 96}, "such as"),
        ({"tile": "96x96x96"}, "such as"),
        ({"tile": (64.5, 64)}, "whole numbers"),
        ({"overlap": "0.5"}, "between 0 and 0.9"),
        ({"region": (1, 2)}, "DeepLabSegLib.Region"),
        ({"blending": "linear"}, "'gaussian'"),
        ({"slice_axis": "oblique"}, "'coronal'"),
        ({"mirror": "yes"}, "mirror is 'yes'"),
        ({"uncertainty": "entropy.nii.gz"}, "uncertainty is 'entropy.nii.gz'"),
    ],
)
def test_an_option_out_of_range_is_refused(options, words):
    with pytest.raises(InvalidInput, match=words):
        SegmentOptions(**options)


def test_equal_options_are_written_alike():
    assert repr(SegmentOptions(tile=[8, 9])) == repr(SegmentOptions(tile=tuple(np.array([8, 9]))))
    assert SegmentOptions(tile=[8, 9]) == SegmentOptions(tile=(8, 9))


def test_what_does_not_fit_the_model_is_refused_before_work_begins(scan, rng):
    flat, solid, acquired = make_segmenter(2), make_segmenter(3), make_segmenter(2, orientation=None)
    with pytest.raises(InvalidInput, match="has 2 channels, and the model tiny-2d takes 1"):
        flat.segment(make_scan(rng, channels=2))
    with pytest.raises(InvalidInput, match="the image is a ndarray; read it with read_image"):
        flat.segment(scan.array)
    with pytest.raises(InvalidInput, match=r"the image is a SimpleITK\.Image; read it with read_image"):
        flat.segment(itk(scan))
    with pytest.raises(InvalidInput, match="options are a dict"):
        flat.segment(scan, {"mirror": True})
    with pytest.raises(InvalidInput, match="3D and needs 3"):
        solid.segment(scan, SegmentOptions(tile=(8, 8)))
    with pytest.raises(InvalidInput, match="is 3D; leave it out"):
        solid.segment(scan, SegmentOptions(slice_axis="axial"))
    with pytest.raises(InvalidInput, match="as they were acquired"):
        acquired.segment(scan, SegmentOptions(slice_axis="axial"))
    for segmenter in (flat, make_segmenter(3, activation="linear")):
        with pytest.raises(InvalidInput, match=r"threshold is 0\.3.* one class, that of the largest score"):
            segmenter.segment(scan, SegmentOptions(threshold=0.3))
    with pytest.raises(InvalidInput, match="choose another slice direction"):
        flat.segment(Image(scan.array[:, :1], Geometry((1, 40, 36))), SegmentOptions(slice_axis="coronal"))
    with pytest.raises(InvalidInput, match="choose a 2D model, or give all slices"):
        solid.segment(Image(scan.array[:, :1], Geometry((1, 40, 36))))
    with pytest.raises(InvalidInput, match="takes slices as they are stored, with their plane along the first"):
        acquired.segment(Image(scan.array[..., :1], Geometry((12, 40, 1))))
    small = replace(flat.bundle, network=replace(flat.bundle.network, head_upsample=2))
    with pytest.raises(InvalidInput, match="set head_upsample to None"):
        Segmenter(small, make_network(small.network), "cpu").segment(scan)
    single = Image(scan.array[:, :1], Geometry((1, 40, 36), (5.0, 1.0, 1.0)))
    with pytest.raises(InvalidInput, match="1 x 36 voxels of the scan at once"):
        make_segmenter(2, orientation="ASR", spacing=(None, 0.8, 0.8)).segment(single)
    large = Image(np.resize(np.arange(9.0, dtype=np.float32), (165, 165, 165)), Geometry((165, 165, 165)))
    with pytest.raises(InvalidInput, match=r"4492125 windows of 1 x 1 x 1 voxels .* more than 4194304; .* larger tile"):
        solid.segment(large, SegmentOptions(tile=(1, 1, 1)))
    with pytest.raises(InvalidInput, match="check the spacing"):
        make_segmenter(3, spacing=(1.0, 1.0, 1.0)).segment(Image(scan.array, Geometry((12, 40, 36), (1e3, 1e3, 1e3))))


def test_a_device_that_is_not_here_is_refused():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(InvalidInput, match="choose auto"):
        choose_device("gpu please")
    with pytest.raises(InvalidInput, match="isn't available"):
        choose_device("cuda:77")
    with pytest.raises(InvalidInput, match="device is None"):
        choose_device(None)
    assert choose_device("cpu:0") == torch.device("cpu")


@pytest.mark.parametrize("dims", [2, 3])
def test_with_mirroring_a_mirrored_scan_gives_the_mirrored_labels(dims, scan):
    segmenter = make_segmenter(dims)
    options = SegmentOptions(mirror=True)
    labels = segmenter.segment(scan, options).array
    turned = segmenter.segment(Image(scan.array[..., ::-1].copy(), scan.geometry), options).array[..., ::-1]
    plain = segmenter.segment(Image(scan.array[..., ::-1].copy(), scan.geometry)).array[..., ::-1]
    assert (labels == turned).mean() > 0.999
    assert (labels == plain).mean() < 0.99, "without mirroring they differ, or this test shows nothing"


@pytest.mark.parametrize("dims", [2, 3])
def test_mirror_images_are_averaged_along_the_axes_that_the_model_knows_from_both_sides(dims, scan):
    segmenter = with_mirror_axes(make_segmenter(dims), (2,))
    options = SegmentOptions(mirror=True)
    labels = segmenter.segment(scan, options).array

    def turned(axis: int) -> np.ndarray:
        image = Image(np.flip(scan.array, axis).copy(), scan.geometry)
        return np.flip(segmenter.segment(image, options).array, axis)

    assert (labels == turned(-1)).mean() > 0.999
    assert (labels == turned(-2)).mean() < 0.99


def test_mirror_axes_follow_the_direction_of_the_slices(scan):
    segmenter = with_mirror_axes(make_segmenter(2, orientation="SAR"), (2,))
    options = SegmentOptions(mirror=True, slice_axis="coronal")
    labels = segmenter.segment(scan, options).array
    turned = segmenter.segment(Image(scan.array[..., ::-1].copy(), scan.geometry), options).array[..., ::-1]
    assert (labels == turned).mean() > 0.999
    with pytest.raises(InvalidInput, match="tells the ends of every axis apart"):  # left and right are across these
        segmenter.segment(scan, SegmentOptions(mirror=True, slice_axis="sagittal"))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_that_tells_sides_apart_is_not_mirrored(dims, scan):
    segmenter = with_mirror_axes(make_segmenter(dims), ())
    with pytest.raises(InvalidInput, match="tells the ends of every axis apart; leave it out"):
        segmenter.segment(scan, SegmentOptions(mirror=True))


def with_mirror_axes(segmenter: Segmenter, axes: tuple[int, ...]) -> Segmenter:
    segmenter.bundle = replace(segmenter.bundle, input=replace(segmenter.bundle.input, mirror_axes=axes))
    return segmenter


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("classes", "activation"), [(3, "softmax"), (1, "sigmoid"), (3, "sigmoid")])
def test_uncertainty_is_the_entropy_of_the_scores(dims, classes, activation, rng):
    scan = make_scan(rng, (16, 32, 32), (1.0, 1.0, 1.0))
    segmenter = make_segmenter(dims, classes=classes, activation=activation, orientation=None)
    labels = segmenter.segment(scan, SegmentOptions(uncertainty=True))
    x = torch.from_numpy((scan.array - scan.array.mean()) / scan.array.std(ddof=1))
    with torch.inference_mode():
        scores = segmenter.network(x.movedim(1, 0))[:].movedim(0, 1) if dims == 2 else segmenter.network(x[None])[0]
    p = scores.numpy().clip(1e-12, 1 - 1e-7)
    if activation == "softmax":
        expected = -(p * np.log(p)).sum(0) / np.log(classes)
    else:
        expected = (-(p * np.log2(p) + (1 - p) * np.log2(1 - p))).max(0)
    np.testing.assert_allclose(labels.uncertainty, expected, atol=1e-3)
    assert segmenter.segment(scan).uncertainty is None


@pytest.mark.parametrize("what", ["uncertainty", "probabilities"])
def test_scores_that_are_no_probabilities_give_none(what, scan):
    segmenter = make_segmenter(2, activation="linear")
    with pytest.raises(InvalidInput, match=f"{what}.*ends with linear"):
        segmenter.segment(scan, SegmentOptions(**{what: True}))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_likeliest_class_is_the_label(dims, scan):
    labels = make_segmenter(dims).segment(scan, SegmentOptions(probabilities=True))
    assert labels.probabilities.shape == (3, *scan.geometry.shape)
    np.testing.assert_allclose(labels.probabilities.sum(0, dtype=np.float32), 1, atol=2e-3)
    chosen = np.take_along_axis(labels.probabilities, labels.array[None].astype(int), 0)[0]
    np.testing.assert_array_equal(chosen, labels.probabilities.max(0))


@pytest.mark.parametrize("dims", [2, 3])
def test_bf16_gives_nearly_the_labels_of_fp32(dims, scan, monkeypatch):
    monkeypatch.setattr("DeepLabSegLib.devices.cpu_has_bf16", lambda: True)  # others are slow, but not wrong
    segmenter = make_segmenter(dims)
    half = Segmenter(segmenter.bundle, segmenter.network, "cpu", "bf16")
    assert (half.precision, segmenter.precision) == ("bf16", "fp32")
    assert (half.segment(scan).array == segmenter.segment(scan).array).mean() > 0.97


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_network_that_was_trained_on_its_logits_gives_the_scores_that_its_bundle_says(dims, activation, scan):
    segmenter = make_segmenter(dims, activation=activation)
    on_logits = DeepLabV3Plus.from_spec(replace(segmenter.network.spec, classifier_activation=None))
    on_logits.load_state_dict(segmenter.network.state_dict())
    options = SegmentOptions(uncertainty=True, probabilities=True)
    wanted = segmenter.segment(scan, options)
    found = Segmenter(segmenter.bundle, on_logits, "cpu").segment(scan, options)
    for field in ("array", "uncertainty", "probabilities"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 1}, "gives 1 classes, and its bundle tells of 3"),
        ({"num_classes": 5}, "gives 5 classes, and its bundle tells of 3"),
        ({"input_shape": (None, None, 2)}, r"takes \(batch, 2, height, width"),
        ({"input_shape": (None, None, None, 2)}, r"takes \(batch, 2, depth, height, width"),
    ],
)
def test_a_network_that_the_bundle_does_not_tell_of_is_refused(change, words, dims, scan):
    bundle = make_bundle(dims)
    network = DeepLabV3Plus.from_spec(replace(bundle.network, **change))
    with pytest.raises(InvalidInput, match=words):
        Segmenter(bundle, network, "cpu").segment(scan)


def test_a_network_with_another_head_is_what_its_bundle_says(scan):
    network = make_segmenter(2, classes=3).network
    network.head = torch.nn.Conv2d(network.spec.decoder_channels, 5, 1)
    labels = Segmenter(make_bundle(2, classes=5), network.eval(), "cpu").segment(scan)
    assert labels.array.max() <= 4 == len(labels.segments)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_that_is_not_for_the_device_is_refused(precision):
    bundle = make_bundle(2)
    with pytest.raises(InvalidInput, match=f"precision.*{precision}.*fp32"):
        Segmenter(bundle, make_network(bundle.network), "cpu", precision)


def test_bf16_is_refused_on_a_processor_without_it(monkeypatch):
    monkeypatch.setattr("DeepLabSegLib.devices.cpu_has_bf16", lambda: False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(InvalidInput, match=r"AVX-512.*choose auto or fp32"):
        choose_precision("bf16", torch.device("cpu"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_convolutions_in_every_precision_are_compared_with_float32(precision):
    assert computes_right(torch.device("cpu"), precision)


@pytest.mark.parametrize("fault", [lambda x: x * 1.1, lambda x: x.roll(1, -1), lambda x: x * float("nan")])
def test_a_fault_in_one_kind_of_convolution_is_found(fault, monkeypatch):
    conv3d = torch.nn.functional.conv3d

    def faulty(x, *more, groups, **others):
        found = conv3d(x, *more, groups=groups, **others)
        return fault(found) if x.dtype == torch.bfloat16 and groups > 1 else found

    monkeypatch.setattr(torch.nn.functional, "conv3d", faulty)
    assert not computes_right.__wrapped__(torch.device("cpu"), "bf16")
    assert computes_right.__wrapped__(torch.device("cpu"), "fp32")


def test_a_gpu_on_which_this_torch_computes_nothing_is_passed_over_and_refused_by_name(monkeypatch):
    def ones(*_: object, device: torch.device) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand much more")

    def full(_: int) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    monkeypatch.setattr(torch, "ones", ones)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(
        InvalidInput, match=r"can't compute on it \(CUDA error: no kernel .* device\); choose auto or cpu"
    ):
        choose_device("cuda:0")
    with pytest.raises(InvalidInput, match="'cuda:1' isn't available"):
        choose_device("cuda:1")
    assert [device.name for device in list_devices()] == ["cpu"]


@pytest.mark.parametrize(("right", "emulated"), [(True, False), (False, False), (True, True)])
def test_half_precision_that_a_gpu_computes_wrong_or_only_emulates_is_not_taken_by_itself(right, emulated, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    monkeypatch.setattr(devices, "computes_right", lambda *_: right)
    gpu = torch.device("cuda:0")
    assert choose_precision("auto", gpu) == ("bf16" if right and not emulated else "fp32")
    if right:
        assert choose_precision("bf16", gpu) == "bf16"
    else:
        with pytest.raises(InvalidInput, match="computes convolutions in bf16 wrongly on cuda:0; choose fp32"):
            choose_precision("bf16", gpu)


@pytest.mark.skipif(devices._gnu_c_library() is None, reason="is for GNU's C library")
def test_memory_that_is_kept_during_a_run_goes_back_to_the_system_at_its_end_even_if_it_fails():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @devices.kept_pages()
    def fail() -> None:
        bytearray(200_000_000)
        assert resident() - start > 150_000_000
        raise MemoryError

    start = resident()
    with pytest.raises(MemoryError):
        fail()
    assert resident() - start < 50_000_000


def test_a_gpus_memory_is_asked_for_by_its_number_as_older_torch_wants_it(monkeypatch):
    def mem_get_info(device: int | None = None) -> tuple[int, int]:
        assert device is None or isinstance(device, int)
        return 2**26, 2**27

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    for name in ("cuda", "cuda:1"):
        assert memory_of(torch.device(name)) == 2**27
        assert streaming._numbers_at_once(torch.device(name)) == 2**20


def test_the_devices_that_are_listed_can_be_chosen():
    assert [choose_device(device.name).type for device in list_devices()][-1] == "cpu"


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_of_one_piece_leaves_out_what_hangs_apart(dims, rng):
    torch.manual_seed(1)  # weights whose labels hang apart
    segmenter = make_segmenter(dims)
    scan = make_scan(rng, (16, 60, 60))
    everything = segmenter.segment(scan)
    pieces, count = ndimage.label((everything.layers > 0).any(axis=0))
    assert count > 1, "there are several pieces, or this test shows nothing"
    largest = pieces == np.bincount(pieces[pieces > 0]).argmax()
    whole = Segmenter(replace(segmenter.bundle, one_piece=True), segmenter.network, "cpu").segment(scan)
    np.testing.assert_array_equal(whole.layers, everything.layers * largest)


@pytest.mark.parametrize(
    ("tile", "count", "gigabytes", "wanted"),
    [
        ((96, 96, 96), 400, 80, 32),  # as many as a GPU gains by
        ((96, 96, 96), 400, 4, 16),  # what its memory holds
        ((96, 96, 96), 400, None, 8),  # where nobody can tell of it
        ((96, 96, 96), 60, 80, 8),  # few windows: most of the last batch might be empty
        ((256, 256, 256), 400, 80, 2),
        ((512, 512), 400, 80, 64),
        ((1, 1), 0, 80, 8),
    ],
)
def test_a_gpu_takes_more_windows_at_once_the_more_there_are_and_fit(monkeypatch, tile, count, gigabytes, wanted):
    segmenter = make_segmenter(len(tile))
    segmenter.device, segmenter.precision = torch.device("cuda"), "bf16"
    monkeypatch.setattr(segmenting, "memory_of", lambda device: gigabytes and gigabytes * 2**30)
    assert segmenter._at_once(tile, count) == wanted


@pytest.mark.parametrize(("slices", "wanted"), [(1, 1), (3, 3), (8, 8), (9, 5), (12, 6), (17, 6)])
def test_a_cpu_computes_hardly_more_slices_than_there_are(slices, wanted, rng, monkeypatch):
    segmenter, made = make_segmenter(2), []
    of = segmenter._forms.of
    monkeypatch.setattr(segmenter._forms, "of", lambda shape, *how: made.append(shape[0]) or of(shape, *how))
    segmenter.segment(make_scan(rng, (slices, 40, 36)))
    assert made == [wanted]


def test_what_a_model_says_of_itself_is_not_said_again(tmp_path):
    path = save_model(tmp_path / "tiny", make_segmenter(2))
    with pytest.raises(InvalidInput, match="says its labels, network and input itself"):
        load_model(path, "cpu", labels=["Liver"])
    assert repr(load_model(path, "cpu")) == "<Segmenter: tiny-2d, cpu, fp32>"
