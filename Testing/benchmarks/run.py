"""How fast this library is and how much memory it takes, beside others, in one command.

    python Testing/benchmarks/run.py                      everything, written to Testing/benchmarks/TABLE.md
    python Testing/benchmarks/run.py -o - window-3d       one part, printed
    python Testing/benchmarks/run.py --python PATH        the others are in that interpreter's packages

The others come with `pip install DeepLabSegLib[benchmarks]`; what isn't there is left out of the table. Each form runs
in a process of its own, and they take turns, so that whatever else the machine does meets all of them. Ratios are of
medians. The machine's own rates are measured in the same turns. Linux only, for the peaks of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from DeepLabSegLib.devices import cpu_has_bf16  # noqa: E402 found above
from DeepLabSegLib.tiling import tile_starts  # noqa: E402
from DeepLabSegLib.worker import ENVIRONMENT  # noqa: E402

OTHERS = ("medicai", "smp", "stitch_monai", "stitch_nnunet", "end_to_end_medicai", "back_nnunet")


@dataclass(frozen=True)
class Result:
    """Medians of a form's turns; `peak` is the first turn's, in bytes above what the process held when ready."""

    wall: float
    cpu: float
    peak: float


Results = Mapping[str, Result]


class Bench:
    """Runs forms and remembers what has been seen."""

    def __init__(self, others: str, turns: int) -> None:
        self.others = others
        self.turns = turns

    def start(self, function: str, arguments: dict[str, Any]) -> subprocess.Popen[str]:
        """A process that makes a function of `forms.py` ready, in the environment that the worker has."""
        interpreter = self.others if function in OTHERS else sys.executable
        return subprocess.Popen(
            [interpreter, str(HERE / "forms.py"), function, json.dumps(arguments)],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, forms: Mapping[str, tuple[str, dict[str, Any]]], turns: int | None = None) -> dict[str, Result]:
        """`forms`: title -> (function of `forms.py`, arguments). Those that can't be made ready are left out."""
        running = {}
        for title, (function, arguments) in forms.items():
            process = self.start(function, arguments)
            if _answer(process) is None:
                said = process.communicate()[1].strip().splitlines()[-1:]
                print(f"{title} is left out: {' '.join(said)}", file=sys.stderr)  # noqa: T201 its purpose
            else:
                running[title] = process
        seen: dict[str, list[dict[str, float]]] = {title: [] for title in running}
        for _ in range(turns or self.turns):
            for title, process in list(running.items()):
                found = _turn(process)
                if found is None:
                    print(f"{title} failed: {process.communicate()[1][-300:]}", file=sys.stderr)  # noqa: T201
                    del running[title]
                    continue
                seen[title].append(found)
        for process in running.values():
            process.communicate()
        return {title: _summary(turns) for title, turns in seen.items() if turns}


def _turn(process: subprocess.Popen[str]) -> dict[str, float] | None:
    """What `process` says of one more turn."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, float] | None:
    """The next line of JSON that `process` writes; None where it ended. Other lines are its libraries' own."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    return None


def _summary(turns: list[dict[str, float]]) -> Result:
    warm = turns[1:] or turns  # the first turn warms up
    return Result(median(t["wall"] for t in warm), median(t["cpu"] for t in warm), turns[0]["peak"])


# --- parts of the table ----------------------------------------------------------------------------------------------


def window(bench: Bench, cases: list[tuple[str, list[int], float]]) -> list[str]:
    """One window through the network, batch 1."""
    lines = [
        "| network | form | wall s | CPU s | peak MB | against medicai: CPU (wall) | share of the matrix rate |",
        "|---|---|---|---|---|---|---|",
    ]
    bars = []
    for encoder, size, bar in cases:
        given = {"encoder": encoder, "size": size}
        title = f"{encoder} {' x '.join(map(str, size))}"
        forms = {
            "medicai": ("medicai", given),
            "segmentation-models-pytorch": ("smp", given),
            "ours, as written": ("plain", given),
            "ours": ("fast", {**given, "precision": "fp32"}),
            "fp32": ("matrix", {"precision": "float32"}),
        }
        if cpu_has_bf16():
            forms["ours, bf16"] = ("fast", {**given, "precision": "bf16"})
            forms["bf16"] = ("matrix", {"precision": "bfloat16"})
        found = bench(forms)
        rate = {name: 2 * 4096**3 / found[name].cpu for name in ("fp32", "bf16") if name in found}
        flops = _flops(encoder, size)
        for form, result in found.items():
            if form in rate:
                continue
            kind = "bf16" if "bf16" in form else "fp32"
            share = f"{100 * flops / result.cpu / rate[kind]:.0f}%" if form in ("ours", "ours, bf16") else ""
            lines.append(
                f"| {title} | {form} | {result.wall:.3f} | {result.cpu:.3f} | {result.peak / 1e6:.0f} | "
                f"{_times(found, 'medicai', form)} | {share} |"
            )
        rates = ", ".join(f"{name} {number / 1e9:.0f}" for name, number in rate.items())
        lines.append(f"| | the machine: {rates} GFLOP/s | | | | | |")
        if "medicai" in found:
            bars.append(_bar(f"{title} against medicai, CPU", found["medicai"].cpu / found["ours"].cpu, bar, "times"))
            bars.append(
                _bar(f"{title}: medicai's peak over ours", found["medicai"].peak / found["ours"].peak, 7, "times")
            )
        bars.append(
            _bar(
                f"{title} against ours as written, CPU", found["ours, as written"].cpu / found["ours"].cpu, 1.4, "times"
            )
        )
        if "ours, bf16" in found:
            gain = found["ours"].cpu / found["ours, bf16"].cpu
            bars.append(_bar(f"{title}: bf16 against fp32, CPU", gain, 1.6, "times"))
        if encoder == "resnet50":
            wanted = 95 if size == [512, 512] else 90
            bars.append(
                _bar(f"{title}: share of the matrix rate", 100 * flops / found["ours"].cpu / rate["fp32"], wanted, "%")
            )
    return [*lines, "", *_bars(bars)]


def stitching(bench: Bench, shape: list[int]) -> list[str]:
    """Windows of 96^3, overlap 0.5, Gaussian; the network is free and its logits linear."""
    voxels = int(np.prod(shape))
    lines, bars = ["| classes | form | CPU s | peak MB | bytes per voxel |", "|---|---|---|---|---|"], []
    for classes in (3, 25, 104):
        given = {"shape": shape, "classes": classes}
        forms = {
            "ours": ("stitch_ours", given),
            "ours, logits in fp16": ("stitch_ours", {**given, "precision": "float16"}),
            "ours, windows agree on half of it": ("stitch_ours", {**given, "background": 0.75}),
        }
        if classes < 104:  # more than 18 GB otherwise
            forms |= {"MONAI": ("stitch_monai", given), "nnU-Net": ("stitch_nnunet", given)}
        found = bench(forms, turns=1)
        for form, result in found.items():
            lines.append(
                f"| {classes} | {form} | {result.cpu:.1f} | {result.peak / 1e6:.0f} | {result.peak / voxels:.1f} |"
            )
        for form, share in (("ours", 0.15), ("ours, logits in fp16", 0.09)):
            title, seen = f"{form}: bytes per voxel, {classes} classes", found[form].peak / voxels
            bars.append(_bar(title, seen, 2 + share * classes, "bytes", most=True))
        if classes == 104:
            bars.append(_bar("peak, 104 classes", found["ours"].peak / 1e9, 1.0, "GB", most=True))
        if classes == 25 and "MONAI" in found:
            bars.append(_bar("CPU against MONAI, 25 classes", found["MONAI"].cpu / found["ours"].cpu, 4, "times"))
    return [*lines, "", *_bars(bars)]


def growth(bench: Bench, depths: list[int]) -> list[str]:
    """Ever more slices of 256 x 512, 3 classes. All are thicker than a window, and windows overlap equally in each."""
    plane = [256, 512]
    forms = {
        f"{math.prod([depth, *plane]) / 1e6:.0f}": ("stitch_ours", {"shape": [depth, *plane], "classes": 3})
        for depth in depths
    }
    found = bench(forms, 3 * bench.turns)  # seconds each, and small differences
    rates = [result.cpu / math.prod([depth, *plane]) for depth, result in zip(depths, found.values(), strict=True)]
    lines = ["| million voxels | CPU s | ns per voxel | peak MB |", "|---|---|---|---|"]
    for (million, result), rate in zip(found.items(), rates, strict=True):
        lines.append(f"| {million} | {result.cpu:.2f} | {1e9 * rate:.0f} | {result.peak / 1e6:.0f} |")
    spread = 100 * (max(rates) / min(rates) - 1)
    return [*lines, "", *_bars([_bar("time per voxel, largest against smallest", spread, 15, "% apart", most=True)])]


def end_to_end(bench: Bench, shape: list[int]) -> list[str]:
    """Scan in, labels out: resnet50, windows of 96^3, overlap 0.25, Gaussian, the same weights.

    The sizes are such that the reference's windows, 72 apart, are evenly spread as ours are.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "r50.weights.h5")
        at = {form: str(Path(folder) / f"{form}.npy") for form in ("medicai", "ours", "bf16")}
        given = {"shape": shape, "weights": weights}
        forms = {
            "medicai": ("end_to_end_medicai", {**given, "labels": at["medicai"]}),
            "ours": ("end_to_end", {**given, "precision": "fp32", "labels": at["ours"]}),
        }
        if cpu_has_bf16():
            forms["ours, bf16"] = ("end_to_end", {**given, "precision": "bf16", "labels": at["bf16"]})
        found = bench(forms)
        lines = ["| form | wall s | CPU s | peak MB | against medicai: CPU (wall) |", "|---|---|---|---|---|"]
        for form, result in found.items():
            lines.append(
                f"| {form} | {result.wall:.1f} | {result.cpu:.1f} | {result.peak / 1e6:.0f} | "
                f"{_times(found, 'medicai', form)} |"
            )
        if "medicai" not in found:
            return lines
        differ = float((np.load(at["medicai"]) != np.load(at["ours"])).mean())
    bars = [
        _bar("against medicai, CPU", found["medicai"].cpu / found["ours"].cpu, 5.5, "times"),
        _bar("labels that differ", 1e5 * differ, 1, "in 100000", most=True),
    ]
    return [*lines, "", *_bars(bars)]


def resampling(bench: Bench) -> list[str]:
    """512 x 512 x 300 int16 to 1.5 mm, and 25 classes' logits back to labels."""
    voxels = 512 * 512 * 300
    into = bench({"ours": ("resample_ours", {}), "SimpleITK, linear": ("resample_simpleitk", {})})
    back = bench(
        {
            "ours": ("back_ours", {"classes": 25}),
            "torch, at once": ("back_torch", {"classes": 25}),
            "nnU-Net's default": ("back_nnunet", {"classes": 25}),
        },
        turns=1,
    )
    lines = ["| | form | wall s | CPU s | bytes per voxel |", "|---|---|---|---|---|"]
    for way, found in (("in", into), ("back", back)):
        for form, result in found.items():
            lines.append(f"| {way} | {form} | {result.wall:.2f} | {result.cpu:.2f} | {result.peak / voxels:.1f} |")
    bars = [
        _bar("in, CPU over SimpleITK's", into["ours"].cpu / into["SimpleITK, linear"].cpu, 2, "times", most=True),
        _bar("in, memory", into["ours"].peak / voxels, 2, "bytes per voxel", most=True),
        _bar("back, memory", back["ours"].peak / voxels, 6.5, "bytes per voxel", most=True),
    ]
    if "nnU-Net's default" in back:
        bars.append(_bar("back, against nnU-Net, CPU", back["nnU-Net's default"].cpu / back["ours"].cpu, 15, "times"))
    return [*lines, "", *_bars(bars)]


def cold(bench: Bench) -> list[str]:
    """From starting Python to the first window's class scores, resnet50 96^3; the network's weights are drawn."""
    given = {"encoder": "resnet50", "size": [96] * 3}
    forms = {"medicai": ("medicai", given), "ours": ("fast", {**given, "precision": "fp32"})}
    seen: dict[str, list[float]] = {title: [] for title in forms}
    for _ in range(bench.turns):
        for title, (function, arguments) in forms.items():
            started = time.perf_counter()
            process = bench.start(function, arguments)
            if _answer(process) is not None and _turn(process) is not None:
                seen[title].append(time.perf_counter() - started)
            process.communicate()
    found = {title: median(times) for title, times in seen.items() if times}
    lines = ["| form | wall s |", "|---|---|", *(f"| {title} | {seconds:.1f} |" for title, seconds in found.items())]
    if "medicai" not in found:
        return lines
    return [*lines, "", *_bars([_bar("ours over medicai's", found["ours"] / found["medicai"], 0.35, "", most=True)])]


def gpu(bench: Bench, encoder: str, shape: list[int]) -> list[str]:
    """A whole run on an NVIDIA GPU, beside the least time in which its bytes could be moved."""
    matrix, copied, count = 8192, 2**32, 8
    window = {"encoder": encoder, "size": [96] * 3, "count": count}
    volume = {"encoder": encoder, "shape": shape}
    found = bench(
        {
            "copy": ("gpu_copy", {"size": copied}),
            "matrix": ("gpu_matrix", {"size": matrix}),
            **{f"{count} windows, {name}": ("gpu_window", {**window, "precision": name}) for name in ("fp32", "bf16")},
            **{
                f"volume, {classes} classes, {name}": ("gpu_volume", {**volume, "classes": classes, "precision": name})
                for name, classes in (("fp32", 3), ("bf16", 3), ("bf16", 25))
            },
            "volume, 3 classes, bf16, compiled": (
                "gpu_volume",
                {**volume, "classes": 3, "precision": "bf16", "compiled": True},
            ),
        }
    )
    if "copy" not in found:
        return ["There was no GPU."]
    import torch

    rate, flops_rate = 2 * copied / found["copy"].wall, 2 * matrix**3 / found["matrix"].wall
    flops, moved = _flops(encoder, [96] * 3), 2 * _moved(encoder, [96] * 3, count)
    least = max(flops / flops_rate, moved / rate)
    windows = math.prod(len(tile_starts(size, 96, 0.5)) for size in shape)
    floor = windows * least + 3 * math.prod(shape) / rate
    lines = [
        f"{torch.cuda.get_device_name()}: copies {rate / 1e12:.2f} TB/s, bf16 matrix products "
        f"{flops_rate / 1e12:.0f} TFLOP/s. In bf16 a window of 96^3 has {moved / 1e6:.0f} MB to move and "
        f"{flops / 1e9:.0f} GFLOP to compute, so {1e6 * least:.0f} us; {windows} windows {1e3 * floor:.0f} ms.",
        "",
        "| form | wall ms | times the floor |",
        "|---|---|---|",
    ]
    for form, result in found.items():
        if form not in ("copy", "matrix"):
            part = result.wall / (floor if form.startswith("volume") else count * least)
            lines.append(f"| {form} | {1e3 * result.wall:.1f} | {part:.1f} |")
    seen = found["volume, 3 classes, bf16"].wall / floor
    return [*lines, "", *_bars([_bar("volume in bf16 over the floor", seen, 5, "times", most=True)])]


# --- helpers ---------------------------------------------------------------------------------------------------------


def _flops(encoder: str, size: list[int]) -> float:
    """Additions and multiplications of the convolutions that the fast form carries out."""
    return sum(2.0 * result[0, 0].numel() * weight.numel() for _, weight, result in _convolutions(encoder, size))


def _moved(encoder: str, size: list[int], count: int) -> float:
    """Numbers that these read and write for a window, of `count` that share the weights."""
    return sum(x.numel() + weight.numel() / count + y.numel() for x, weight, y in _convolutions(encoder, size))


def _convolutions(encoder: str, size: list[int]) -> list[tuple[Any, Any, Any]]:
    """Input, weight and result of each convolution of the fast form."""
    import torch

    from DeepLabSegLib import DeepLabV3Plus
    from DeepLabSegLib.optimize.capture import capture, value
    from DeepLabSegLib.optimize.rewrite import convolution, rewrite

    network = DeepLabV3Plus(encoder_name=encoder, input_shape=(*(None,) * len(size), 1), num_classes=3).eval()
    network.forward = network.coarse_logits  # type: ignore[method-assign]
    graph = capture(network, (1, 1, *size), torch.float32)
    with torch.inference_mode():
        rewrite(graph, dict(network.state_dict()))
    nodes = graph.find_nodes(op="call_function", target=convolution)
    return [(value(n.args[0]), n.meta["conv"].weight, value(n)) for n in nodes]


def _times(found: Results, other: str, form: str) -> str:
    if other not in found or form == other:
        return ""
    a, b = found[other], found[form]
    return f"{a.cpu / b.cpu:.1f} ({a.wall / b.wall:.1f})"


def _bar(what: str, seen: float, wanted: float, unit: str, *, most: bool = False) -> str:
    good = seen <= wanted if most else seen >= wanted
    off = "" if good else f"no, {100 * abs(seen / wanted - 1):.0f}% off"
    return f"| {what} | {'at most' if most else 'at least'} {wanted:g} {unit} | {seen:.3g} | {'yes' if good else off} |"


def _bars(lines: list[str]) -> list[str]:
    return ["| bar | wanted | seen | reached |", "|---|---|---|---|", *lines]


PARTS: dict[str, tuple[str, Callable[[Bench], list[str]]]] = {
    "window-3d": (
        "One window, 3D",
        lambda bench: window(bench, [
            ("resnet50", [96] * 3, 5.5), ("resnet50", [128] * 3, 4.6), ("seresnext50", [96] * 3, 5.5),
            ("efficientnet_b0", [96] * 3, 8),
        ]),
    ),
    "window-2d": (
        "One window, 2D",
        lambda bench: window(bench, [("resnet50", [224] * 2, 4), ("resnet50", [512] * 2, 3)]),
    ),
    "stitching": ("Stitching a volume of 512 x 512 x 200", lambda bench: stitching(bench, [512, 512, 200])),
    "growth": ("Growth with the volume", lambda bench: growth(bench, [100, 200, 400, 800])),
    "end-to-end": ("From scan to labels, 240 x 240 x 168", lambda bench: end_to_end(bench, [240, 240, 168])),
    "resampling": ("Resampling 512 x 512 x 300", resampling),
    "cold": ("First result from cold", cold),
    "gpu": ("A volume of 512 x 512 x 200 on a GPU", lambda bench: gpu(bench, "resnet50", [512, 512, 200])),
}  # fmt: skip

HEAD = """# Speed and memory

Made by `python Testing/benchmarks/run.py` on {machine}, torch {torch}, {threads} threads; load of the machine at the
start {load:.1f}. Random weights. Forms run in processes of their own and take turns; figures are medians of {turns}
turns (of one, where a turn takes minutes), peaks are what a first run takes above what the process holds when ready.
All run in the environment that the worker behind Slicer's window has (`worker.ENVIRONMENT`).
"""

NOTES = HERE / "NOTES.md"


def _processor() -> str:
    """Its name, and where it is told its family and model: generations of half and of double the rate share a name."""
    with Path("/proc/cpuinfo").open() as file:
        told = dict(map(str.strip, line.split(":", 1)) for line in takewhile(str.strip, file))
    which = ", ".join(f"{name} {told[name]}" for name in ("cpu family", "model") if name in told)
    return f"{told.get('model name', platform.processor())}{which and f', {which}'}"


def main() -> None:
    """Measure the parts that are asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("-o", "--output", default=str(HERE / "TABLE.md"), help="file to write, - to print")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the other packages")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    import torch

    text = HEAD.format(
        machine=f"{_processor()} ({os.cpu_count()} cores)", torch=torch.__version__,
        threads=torch.get_num_threads(), load=os.getloadavg()[0], turns=options.turns,
    )  # fmt: skip
    bench = Bench(options.python, options.turns)
    for name in options.parts or PARTS:
        title, part = PARTS[name]
        text += f"\n## {title}\n\n" + "\n".join(part(bench)) + "\n"
        if options.output != "-":
            Path(options.output).write_text(text + (NOTES.read_text() if NOTES.exists() else ""), encoding="utf-8")
    if options.output == "-":
        print(text)  # noqa: T201 its purpose


if __name__ == "__main__":
    main()
