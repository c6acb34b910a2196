"""What runs on an NVIDIA GPU gives what the CPU gives: `pytest -m gpu Testing/unit/test_gpu.py` where there is one.

Half precision is held to what rounding to eight bits may do, float32 to float32.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_bundle, make_network, make_scan, physically_equal
from test_optimize import FAMILIES, make
from test_training import SPEC, BrightFromDark, Killed, network

from DeepLabSegLib import load_model, read_image
from DeepLabSegLib.devices import choose_precision
from DeepLabSegLib.evaluate import dice
from DeepLabSegLib.optimize import fast_form
from DeepLabSegLib.segmenter import Segmenter, SegmentOptions
from DeepLabSegLib.training.head_mri import CONTRASTS
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.synthesis import LabelMap, SynthesisSpec, synthesize
from DeepLabSegLib.training.trainer import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

GPU = torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("encoder", FAMILIES)
def test_every_family_gives_the_same_numbers_from_a_recorded_graph(encoder, dims, precision):
    net = make(dims, encoder)
    x = torch.randn(2, 2, *((45, 66) if dims == 2 else (33, 34, 47)))
    with torch.inference_mode():
        exact = copy.deepcopy(net).double().coarse_logits(x.double())
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.autocast("cpu", kind, enabled=kind is not None):
            plain = net.coarse_logits(x)
    form = fast_form(net, x.shape, GPU, precision)
    assert form.how.endswith("CUDA graph")
    off, plain_off = (float((found.double().cpu() - exact).norm() / exact.norm()) for found in (form(x), plain))
    assert off < max(1e-5 if precision == "fp32" else 3e-2, 4 * plain_off)
    again = form(-x)
    torch.testing.assert_close(form(x[:1])[0], form(x)[0])
    assert not torch.equal(again, form(x))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("tile", [16, 32])
def test_scans_are_segmented_as_by_the_cpu(dims, tile, mirror, activation, rng):
    scan = physically_equal(make_scan(rng, shape=(20, 44, 39)), (2, 0, 1), (1, 2))
    bundle = make_bundle(dims, activation=activation, spacing=(2.0, 1.4, 1.3), background=0.0)
    net = make_network(bundle.network)
    # Of mirror images a random network may be sure of either; their average is then no number to compare with 0.5.
    threshold = 0.4 if activation == "sigmoid" else 0.5
    options = SegmentOptions(tile=(tile,) * dims, overlap=0.5, mirror=mirror, uncertainty=True, threshold=threshold)
    wanted = Segmenter(bundle, copy.deepcopy(net), "cpu").segment(scan, options)
    found = Segmenter(bundle, net, "cuda", "fp32").segment(scan, options)
    assert found.array.dtype == wanted.array.dtype
    assert (found.array == wanted.array).mean() > 0.999
    np.testing.assert_allclose(found.uncertainty, wanted.uncertainty, atol=2e-3)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_kind_of_voxel_goes_to_the_gpu(kind, scan):
    scan = replace(scan, array=scan.array.clip(0, 255).astype(kind))
    bundle = make_bundle(3)
    net = make_network(bundle.network)
    wanted = Segmenter(bundle, copy.deepcopy(net), "cpu").segment(scan, SegmentOptions(tile=(16, 16, 16)))
    found = Segmenter(bundle, net, "cuda", "fp32").segment(scan, SegmentOptions(tile=(16, 16, 16)))
    assert (found.array == wanted.array).mean() > 0.999


@pytest.mark.parametrize(("precision", "same"), [("fp32", 0.9995), ("bf16", 0.99)])
def test_the_shipped_models_segment_the_shipped_scan_as_on_the_cpu(precision, same):
    scan = read_image(SAMPLE)
    wanted = load_model("head-mri-fast", "cpu").segment(scan)
    found = load_model("head-mri-fast", "cuda", precision).segment(scan)
    assert (found.array == wanted.array).mean() > same
    for segment in wanted.segments:
        assert dice(found.mask(segment), wanted.mask(segment)) > 1 - 10 * (1 - same), segment.name


def test_when_the_gpus_memory_runs_out_the_run_goes_on_with_less(scan):
    bundle = make_bundle(3)
    net = make_network(bundle.network)
    options = SegmentOptions(tile=(160, 160, 160))
    wanted = Segmenter(bundle, copy.deepcopy(net), "cpu").segment(scan, options)
    segmenter, notes = Segmenter(bundle, net, "cuda", "fp32"), []
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4e8) / total)
    try:
        found = segmenter.segment(scan, options, lambda step: notes.append(step.note) if step.note else None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert notes
    assert notes[0].startswith("Not enough memory on CUDA: 4 windows go")
    assert (found.array == wanted.array).mean() > 0.999


def test_auto_takes_the_gpu_and_half_precision_that_computes_right():
    model = load_model("head-mri-fast")
    assert model.describe()["device"].startswith("cuda")
    assert model.precision == choose_precision("auto", GPU) == "bf16"


@pytest.mark.parametrize("size", [(40, 32), (24, 40, 32)])
def test_a_pair_synthesised_on_the_gpu_has_the_cpus_labels_and_contrast(size):
    axes = np.meshgrid(*(np.arange(48) - 23.5,) * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    structures = torch.from_numpy((radius < 20).astype(np.uint8) + (radius < 13))
    here = LabelMap(structures, torch.tensor([0, 2, 1]), torch.arange(3), (1.0, 1.0, 1.0), ((20,) * 3, (28,) * 3))
    there = replace(here, structures=structures.to(GPU))
    # Random fields differ from device to device.
    spec = SynthesisSpec(noise=0.0, bias=0.0, texture=0.0, mirror_axes=(2,))
    draws = [torch.Generator().manual_seed(4) for _ in range(2)]
    for _ in range(4):
        (image, target), (gpu_image, gpu_target) = (
            synthesize(label_map, size, (1.0,) * len(size), spec, CONTRASTS, generator)
            for label_map, generator in zip((here, there), draws, strict=True)
        )
        assert gpu_image.device.type == gpu_target.device.type == "cuda"
        assert (gpu_target.cpu() == target).float().mean() > 0.999
        torch.testing.assert_close(gpu_image.cpu(), image, atol=0.02, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_training_gives_the_cpus_curve(dims, tmp_path):
    curves = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        losses: list[float] = []
        folder = Path(tmp_path / f"{device}-{precision}")
        folder.mkdir()
        train(
            network(dims),
            BrightFromDark(dims),
            replace(SPEC, precision=precision),
            folder,
            Processes(0, 1, torch.device(device)),
            on_step=lambda _, loss, losses=losses: losses.append(loss),
        )
        curves[device, precision] = losses
    assert curves["cuda", "fp32"][:4] == pytest.approx(curves["cpu", "fp32"][:4], rel=0.02)
    assert curves["cuda", "bf16"] == pytest.approx(curves["cpu", "fp32"], rel=0.1)
    assert curves["cuda", "bf16"][-1] < 0.98 * curves["cuda", "bf16"][0]


def test_a_killed_training_goes_on(tmp_path):
    def kill(step: int, _: float) -> None:
        if step == 10:
            raise Killed

    processes, losses = Processes(0, 1, GPU), []
    with pytest.raises(Killed):
        train(network(3), BrightFromDark(3), SPEC, tmp_path, processes, on_step=kill)
    trained = train(
        network(3), BrightFromDark(3), SPEC, tmp_path, processes, on_step=lambda step, _: losses.append(step)
    )
    assert losses == [9, 10, 11, 12]
    assert trained.step == 12
