"""Where a network runs, and in which precision."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from DeepLabSegLib.errors import InvalidInput

__all__ = [
    "PRECISIONS",
    "Device",
    "choose_device",
    "choose_precision",
    "computes_right",
    "cpu_has_bf16",
    "is_gpu",
    "kept_pages",
    "list_devices",
    "memory_of",
]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> torch's type. "auto" besides these takes what the device is fit for."""

CHANNELS = 16
"""Of the convolutions that are tried: a multiple of what the hardware's matrix units take."""

ROUNDING = 0.02
"""Relative error that half precision may have: several times what rounding gives, far below what faults do."""


@dataclass(frozen=True)
class Device:
    """A place to run: torch's `name` for it, a `title` for people, and its memory in bytes where it has its own."""

    name: str
    title: str
    free_bytes: int | None = None
    total_bytes: int | None = None


def list_devices() -> list[Device]:
    """The CPU and every GPU that this torch can use, GPUs first."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        with suppress(RuntimeError):  # another program may have all of its memory
            free, total = torch.cuda.mem_get_info(index)
            found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), free, total))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU"))
    return [*found, Device("cpu", f"CPU, {torch.get_num_threads()} threads")]


def choose_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is a CUDA GPU, else Apple's, else the CPU, the first that computes.

    Raises `InvalidInput`.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        gpus = [torch.device(kind) for kind, there in (("cuda", cuda), ("mps", mps)) if there]
        return next((device for device in gpus if _fault(device) is None), torch.device("cpu"))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InvalidInput(f"device is {name!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    here = {"cpu": True, "mps": mps, "cuda": cuda and (device.index or 0) < torch.cuda.device_count()}
    if not here.get(device.type, False):
        raise InvalidInput(f"device {name!r} isn't available to this torch ({torch.__version__}); choose auto or cpu")
    if not is_gpu(device):
        return torch.device("cpu")  # which "cpu:0" isn't equal to
    if (fault := _fault(device)) is not None:
        raise InvalidInput(
            f"device {name!r} is there, but this torch ({torch.__version__}) can't compute on it ({fault}); choose "
            "auto or cpu, or install a torch for it"
        )
    return device


def _fault(device: torch.device) -> str | None:
    """Why nothing can be computed on a GPU, in torch's words; None where it can.

    Of a GPU that is older than a torch's kernels torch says that it is available; so it does where another program has
    all of its memory, or has it for itself.
    """
    try:
        torch.ones(1, device=device).add(1).cpu()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def memory_of(device: torch.device) -> int | None:
    """The bytes of a CUDA GPU, used ones too; None for other devices, which don't tell."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info(device.index)[1]  # torch 2.4 takes no device without a number


def is_gpu(device: torch.device) -> bool:
    """Whether it works apart from the processor, on what is sent to it, and best in large pieces."""
    return device.type != "cpu"


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; "auto" is bf16 on a CUDA GPU that has it and computes right in it, else fp32.

    Raises `InvalidInput` where the device isn't fit for it.
    """
    if name == "auto":
        fit = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fit and computes_right(device, "bf16") else "fp32"
    if name not in PRECISIONS:
        raise InvalidInput(f"precision is {name!r}; choose auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise InvalidInput("precision fp16 is for GPUs; on the CPU choose fp32, or bf16 where the processor has it")
    if name == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        raise InvalidInput(
            "precision bf16 on the CPU needs a processor with AVX-512 or Arm's bf16, which this one lacks: it would "
            "take a hundred times longer than fp32; choose auto or fp32"
        )
    if name != "fp32" and device.type != "cpu" and not computes_right(device, name):
        raise InvalidInput(
            f"this torch ({torch.__version__}) computes convolutions in {name} wrongly on {device}; choose fp32, or "
            "install another torch or driver"
        )
    return name


@cache
def computes_right(device: torch.device, precision: str) -> bool:
    """Whether convolutions in `precision` on `device` agree with the CPU's in float32, as far as rounding allows.

    Releases of cuDNN and oneDNN have computed some in half precision wrongly and said nothing (pytorch#163539, #163347,
    #40275). Tried are the kinds that the networks are made of: strided, dilated, depthwise, of one tap.
    """
    generator = torch.Generator().manual_seed(0)
    functions: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
    for dims, function in functions.items():
        for taps, stride, dilation, groups in ((3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, CHANNELS), (1, 1, 1, 1)):
            x = torch.randn(2, CHANNELS, *(9, 8, 7)[:dims], generator=generator)
            weight = torch.randn(CHANNELS, CHANNELS // groups, *[taps] * dims, generator=generator)
            shape = {"stride": stride, "padding": dilation * (taps // 2), "dilation": dilation, "groups": groups}
            wanted = function(x, weight, **shape)
            kind = PRECISIONS[precision]
            found = function(x.to(device, kind), weight.to(device, kind), **shape).float().cpu()
            if not (found - wanted).norm() < ROUNDING * wanted.norm():  # also where it isn't a number
                return False
    return True


def cpu_has_bf16() -> bool:
    """Whether torch computes convolutions in bf16 on this processor by oneDNN, and not number by number."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False


def _gnu_c_library() -> ctypes.CDLL | None:
    """None where it is another's. Not a part of `kept_pages`: who yields within `except` closes a cycle of frames."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 others have a mallopt with other meanings
    except (AttributeError, OSError, TypeError):
        return None
    return library


@contextmanager
def kept_pages() -> Iterator[None]:
    """Let the memory that is freed here be taken again at once, and give it back to the system at the end.

    A network's maps are so large that the C library would fetch each from the system anew, page by page, which costs
    up to a sixth of the time. It holds for the whole process, so it is for programs, such as the command line and the
    worker, and not for libraries. Does nothing where the C library isn't GNU's.
    """
    library = _gnu_c_library()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, 65536)  # the defaults
        library.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
        library.malloc_trim(0)
