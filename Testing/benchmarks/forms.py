"""One thing to be measured, in a process of its own: made ready, then run as often as it is asked to.

    python forms.py NAME '{"argument": value}'

writes a line of JSON when it is ready, and another with wall seconds, CPU seconds and the peak of memory above what was
held before (bytes) for every line that it reads. `run.py` starts these processes and takes turns between them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
sys.path.insert(0, str(Path(__file__).parents[2]))

Run = Callable[[], Any]

WINDOW = 96
PROCESS = ExitStack()
"""What holds for as long as the process lives; a context that nobody refers to would end at once."""


# --- the machine -----------------------------------------------------------------------------------------------------


def matrix(precision: str) -> Run:
    """A product of two matrices of 4096 x 4096."""
    import torch

    a = torch.randn(4096, 4096).to(getattr(torch, precision))
    return lambda: a @ a


def copy() -> Run:
    """A copy of 256 MiB."""
    import torch

    a, b = torch.ones(2**26), torch.ones(2**26)
    return lambda: b.copy_(a)


# --- one window ------------------------------------------------------------------------------------------------------


def _ours(encoder: str, size: list[int], classes: int = 3) -> Any:
    import torch

    from DeepLabSegLib import DeepLabV3Plus

    network = DeepLabV3Plus(
        encoder_name=encoder,
        input_shape=(*(None,) * len(size), 1),
        num_classes=classes,
        encoder_depth=4 if "convnext" in encoder else 5,
        classifier_activation="softmax",
    )
    return network.eval(), torch.randn(1, 1, *size)


def plain(encoder: str, size: list[int]) -> Run:
    """Our network as it is written."""
    import torch

    network, x = _ours(encoder, size)
    return torch.inference_mode()(lambda: network(x))


def fast(encoder: str, size: list[int], precision: str) -> Run:
    """Our network in its fast form, up to class scores, as a segmenter runs it in a process of its own."""
    from DeepLabSegLib.startup import load_torch

    load_torch()
    import torch

    from DeepLabSegLib.devices import kept_pages
    from DeepLabSegLib.optimize import fast_form
    from DeepLabSegLib.tiling import Activation, Blender, Tiling

    network, x = _ours(encoder, size)
    cpu, tile = torch.device("cpu"), (*(1,) * (3 - len(size)), *size)
    form = fast_form(network, x.shape, cpu, precision)
    tiling = Tiling(tile, tile, 0.0)

    @torch.inference_mode()
    def run() -> Any:
        logits = form(x)
        blender = Blender(tiling, "gaussian", Activation("softmax", network.classifier), cpu, cpu)
        blender.add((0, 0, 0), logits if len(size) == 3 else logits[:, :, None])
        return blender.scores([slice(0, side) for side in tile], logits.shape[1])

    PROCESS.enter_context(kept_pages())
    return run


def medicai(encoder: str, size: list[int]) -> Run:
    """The reference, on torch."""
    import numpy as np
    import torch
    from medicai.models import DeepLabV3Plus

    network = DeepLabV3Plus(
        encoder_name=encoder, input_shape=(*size, 1), num_classes=3, classifier_activation="softmax"
    )
    x = np.random.default_rng(0).normal(size=(1, *size, 1)).astype("float32")

    def run() -> Any:
        with torch.no_grad():
            return network(x, training=False)

    return run


SMP_NAMES = {"seresnext50": "se_resnext50_32x4d", "efficientnet_b0": "efficientnet-b0"}


def smp(encoder: str, size: list[int]) -> Run:
    """segmentation-models-pytorch's (for volumes -3d's) DeepLabV3+ of that encoder: the architecture, not the weights.

    Both import torchvision, whose builds on PyPI are for a torch with CUDA: beside another it asks in vain for
    operators of its own. None of them is run here, so it is enough that they have a name.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float most) -> Tensor")
    if len(size) == 2:
        from segmentation_models_pytorch import DeepLabV3Plus
    else:
        from segmentation_models_pytorch_3d import DeepLabV3Plus
    network = DeepLabV3Plus(SMP_NAMES.get(encoder, encoder), encoder_weights=None, in_channels=1, classes=3).eval()
    x = torch.randn(1, 1, *size)
    return torch.inference_mode()(lambda: network(x))


# --- a volume of windows, the network being free ---------------------------------------------------------------------


def _volume(shape: list[int]) -> Any:
    import numpy as np

    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def after_a_few_windows(make: Callable[..., Run]) -> Callable[..., Run]:
    """Runs `make` on a small volume first: what windows need, and libraries load, is not the large volume's."""

    @wraps(make)
    def made(shape: list[int], **arguments: Any) -> Run:
        make([4 * WINDOW // 3] * 3, **arguments)()
        return make(shape, **arguments)

    return made


@after_a_few_windows
def stitch_ours(
    shape: list[int], classes: int, overlap: float = 0.5, precision: str = "float32", background: float = 0.0
) -> Run:
    """Low-resolution logits kept, in `precision`, and enlarged when a block of planes is complete.

    `background` is the share of each window's depth that is clearly of the first class; the rest is random.
    """
    import torch

    from DeepLabSegLib.image import Geometry, Image
    from DeepLabSegLib.passage import Decision, Passage
    from DeepLabSegLib.preprocess import Scaling
    from DeepLabSegLib.streaming import run
    from DeepLabSegLib.tiling import Activation

    image, cpu = Image(_volume(shape), Geometry(tuple(shape))), torch.device("cpu")
    passage = Passage(
        source=image,
        scaling=Scaling((0.0,), (1.0,), False, (0.0,), (1.0,)),
        outside=(0.0,),
        grid=image.geometry,
        tile=(WINDOW,) * 3,
        dims=3,
        overlap=overlap,
        blending="gaussian",
        activation=Activation("linear", lambda x: x),
        decision=Decision(classes, True, 1, 0.5, False),
        background=None,
        mirror_axes=(),
        at_once=1,
        device=cpu,
        keep_on=cpu,
        keep_as=getattr(torch, precision),
    )
    logits = torch.randn(1, 1, classes, *(WINDOW // 4,) * 3)
    logits[:, :, 0, : round(background * WINDOW // 4)] += 100
    return lambda: run(passage, lambda x: logits, lambda *_: None, lambda *_: None)


def _enlarging(classes: int) -> Callable[[Any], Any]:
    """A network that does nothing but enlarge its logits to the window, as every DeepLabV3+ does at its end."""
    import torch

    logits = torch.randn(1, classes, *(WINDOW // 4,) * 3)
    return lambda x: torch.nn.functional.interpolate(logits, size=x.shape[2:], mode="trilinear")


@after_a_few_windows
def stitch_monai(shape: list[int], classes: int, overlap: float = 0.5) -> Run:
    """MONAI's sliding window, then argmax."""
    import torch
    from monai.inferers import sliding_window_inference

    x, network = torch.from_numpy(_volume(shape))[None, None], _enlarging(classes)
    return torch.inference_mode()(
        lambda: sliding_window_inference(x, (WINDOW,) * 3, 1, network, overlap, mode="gaussian").argmax(1)
    )


@after_a_few_windows
def stitch_nnunet(shape: list[int], classes: int, overlap: float = 0.5) -> Run:
    """nnU-Net's sliding window (in half precision, as it is), then argmax."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1 - overlap, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    enlarged = _enlarging(classes)

    class Free(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return enlarged(x)

    class Said:
        num_segmentation_heads = classes

    class Configured:
        patch_size = (WINDOW,) * 3

    predictor.network = Free()
    predictor.label_manager = Said()
    predictor.configuration_manager = Configured()
    predictor.allowed_mirroring_axes = None
    x = torch.from_numpy(_volume(shape))[None]
    return lambda: predictor.predict_sliding_window_return_logits(x).argmax(0)


# --- from scan to labels ---------------------------------------------------------------------------------------------


def _segmenter(network: Any, device: str, precision: str, compiled: bool = False) -> Any:
    """Windows of 96^3 of a scan on its own grid, its values as they are."""
    from DeepLabSegLib.bundle import Bundle, ModelInput
    from DeepLabSegLib.image import Segment
    from DeepLabSegLib.preprocess import Normalization
    from DeepLabSegLib.segmenter import Segmenter

    segments = tuple(Segment(n, str(n), (0, 0, 0)) for n in range(1, network.spec.num_classes))
    given = ModelInput(("CT",), None, (None,) * 3, Normalization("none"), (WINDOW,) * 3)
    bundle = Bundle("benchmark", "", network.spec, given, segments, "", "")
    return Segmenter(bundle, network, device, precision, compiled)


def end_to_end(shape: list[int], precision: str, weights: str, labels: str) -> Run:
    """The library, in a process that keeps its pages as the worker and the command line do; writes `labels`."""
    import numpy as np

    from DeepLabSegLib.devices import kept_pages
    from DeepLabSegLib.image import Geometry, Image
    from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
    from DeepLabSegLib.segmenter import SegmentOptions
    from DeepLabSegLib.weights import load_weights

    spec = DeepLabSpec("resnet50", (None,) * 3 + (1,), num_classes=3, classifier_activation="softmax")
    network = DeepLabV3Plus.from_spec(spec)
    load_weights(network, weights)
    segmenter = _segmenter(network, "cpu", precision)
    image = Image(_volume(shape), Geometry(tuple(shape)))
    PROCESS.enter_context(kept_pages())

    def run() -> None:
        np.save(labels, segmenter.segment(image, SegmentOptions(overlap=0.25)).array)

    return run


def end_to_end_medicai(shape: list[int], weights: str, labels: str) -> Run:
    """The reference's network and sliding window, then argmax; its weights are written to the file `weights`.

    They are the same in every run, since random networks differ in how near the largest scores come to each other.
    """
    import keras
    import numpy as np
    import torch
    from medicai.models import DeepLabV3Plus
    from medicai.utils import SlidingWindowInference

    keras.utils.set_random_seed(0)
    network = DeepLabV3Plus(
        encoder_name="resnet50", input_shape=(WINDOW,) * 3 + (1,), num_classes=3, classifier_activation="softmax",
        head_upsample=4,
    )  # fmt: skip
    network.save_weights(weights)
    infer = SlidingWindowInference(network, 3, (WINDOW,) * 3, 1, 0.25, "gaussian", 0.125)
    x = _volume(shape)[None, ..., None]

    def run() -> None:
        with torch.no_grad():
            np.save(labels, np.asarray(infer(x))[0].argmax(-1))

    return run


# --- a GPU -----------------------------------------------------------------------------------------------------------


def gpu_matrix(size: int) -> Run:
    """A product of two matrices of `size` x `size` in bf16."""
    import torch

    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return lambda: (a @ a, torch.cuda.synchronize())


def gpu_copy(size: int) -> Run:
    """A copy of `size` bytes within the GPU."""
    import torch

    a = torch.ones(size, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return lambda: (b.copy_(a), torch.cuda.synchronize())


def gpu_window(encoder: str, size: list[int], count: int, precision: str) -> Run:
    """The network alone, on `count` windows at once."""
    import torch

    from DeepLabSegLib.optimize import fast_form

    network, _ = _ours(encoder, size)
    gpu = torch.device("cuda")
    x = torch.randn(count, 1, *size, device=gpu)
    form = fast_form(network, x.shape, gpu, precision)
    return lambda: (form(x), torch.cuda.synchronize())


def gpu_volume(encoder: str, shape: list[int], classes: int, precision: str, compiled: bool = False) -> Run:
    """From an int16 scan in the computer's memory to its labels there: windows of 96^3, overlap 0.5."""
    from DeepLabSegLib.image import Geometry, Image
    from DeepLabSegLib.segmenter import SegmentOptions

    segmenter = _segmenter(_ours(encoder, [WINDOW] * 3, classes)[0], "cuda", precision, compiled)
    image = Image((100 * _volume(shape)).astype("int16"), Geometry(tuple(shape)))
    return lambda: segmenter.segment(image, SegmentOptions(overlap=0.5)).array


# --- resampling ------------------------------------------------------------------------------------------------------

SOURCE, SPACING, WANTED = (300, 512, 512), (1.0, 0.8, 0.8), (1.5, 1.5, 1.5)


def _grids() -> Any:
    from DeepLabSegLib.image import Geometry
    from DeepLabSegLib.preprocess import model_grid

    source = Geometry(SOURCE, SPACING)
    return source, model_grid(source, None, WANTED)


def resample_ours() -> Run:
    """int16 to 1.5 mm."""
    import torch

    from DeepLabSegLib.resampling import resample

    source, grid = _grids()
    x = torch.from_numpy((_volume(list(SOURCE)) * 100).astype("int16"))[None]
    return torch.inference_mode()(lambda: resample(x, source, grid))


def resample_simpleitk() -> Run:
    """The same by SimpleITK's linear interpolation."""
    import SimpleITK as sitk

    _, grid = _grids()
    image = sitk.GetImageFromArray((_volume(list(SOURCE)) * 100).astype("int16"))
    image.SetSpacing(SPACING[::-1])
    size = [int(n) for n in grid.shape[::-1]]
    return lambda: sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing[::-1], image.GetDirection()
    )


def back_ours(classes: int) -> Run:
    """Logits at 1.5 mm to labels on the scan's grid, by slab with argmax."""
    import numpy as np
    import torch

    from DeepLabSegLib.resampling import Way
    from DeepLabSegLib.streaming import SIDE, largest

    source, grid = _grids()
    scores = torch.randn(classes, *grid.shape)
    way = Way.between(grid, source)

    def run() -> Any:
        labels = np.zeros(source.shape, np.uint8)
        for k in range(0, source.shape[0], 4):
            for j in range(0, source.shape[1], SIDE):
                box = (slice(k, k + 4), slice(j, j + SIDE), slice(0, source.shape[2]))
                labels[box] = largest(way.resample(scores, box)).numpy()
        return labels

    return torch.inference_mode()(run)


def back_torch(classes: int) -> Run:
    """The same by one trilinear interpolation of torch's, then argmax."""
    import torch

    source, grid = _grids()
    scores = torch.randn(1, classes, *grid.shape)
    return torch.inference_mode()(
        lambda: torch.nn.functional.interpolate(scores, size=source.shape, mode="trilinear").argmax(1)
    )


def back_nnunet(classes: int) -> Run:
    """nnU-Net's default way, then argmax."""
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    source, grid = _grids()
    scores = torch.randn(classes, *grid.shape).numpy()
    return lambda: resample_data_or_seg_to_shape(
        scores, source.shape, grid.spacing, source.spacing, is_seg=False, order=1, order_z=0
    ).argmax(0)


# --- measuring -------------------------------------------------------------------------------------------------------


def _memory(field: str) -> int:
    """Bytes this process holds (`VmRSS`), or has held at most since the last reset (`VmHWM`). Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def measure(run: Run) -> dict[str, float]:
    """Wall seconds, CPU seconds and the peak of memory above what was held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _memory("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak": _memory("VmHWM") - before}


def main() -> None:
    """Make the form of the command line ready, and run it for every line read."""
    started = time.perf_counter()
    run = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps({"ready": time.perf_counter() - started}), flush=True)  # noqa: T201 its purpose
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back: the first run would have it for nothing
    for _ in sys.stdin:
        print(json.dumps(measure(run)), flush=True)  # noqa: T201 its purpose


if __name__ == "__main__":
    main()
