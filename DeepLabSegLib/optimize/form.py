"""A network made ready to run on windows of one size."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from DeepLabSegLib.devices import PRECISIONS
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.ladder import out_of_memory
from DeepLabSegLib.models.deeplab import CoarseLogits, DeepLabV3Plus
from DeepLabSegLib.optimize.capture import NotCapturable, capture
from DeepLabSegLib.optimize.enlarged import convolve_before_enlarging
from DeepLabSegLib.optimize.gpu import channels_last
from DeepLabSegLib.optimize.lower import Library, lower, works
from DeepLabSegLib.optimize.rewrite import rewrite
from DeepLabSegLib.startup import uncollected

__all__ = ["FastForm", "FastForms", "fast_form"]

OWN: dict[str, Library] = {"cpu": "onednn", "cuda": "cudnn"}
"""Type of device -> the library that has operators of its own for it."""

CONVOLUTIONS: dict[Library, str] = {
    "onednn": "oneDNN fused and prepacked",
    "cudnn": "cuDNN fused",
    "torch": "torch convolutions",
}

RECORDING = threading.Lock()
"""Of CUDA graphs torch records one at a time in a process."""


class _Exact:
    """On a GPU float32 is float32, not TF32; cuDNN's own choice of algorithms was as good as trying them all.

    Torch has one such flag for all threads, so the first to come sets it and the last to go resets it.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._changing = threading.Lock()
        self._flags = ExitStack()

    def __enter__(self) -> None:
        with self._changing:
            if self._inside == 0:
                self._flags.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changing:
            self._inside -= 1
            if self._inside == 0:
                self._flags.close()


EXACT = _Exact()


@dataclass(frozen=True)
class FastForm:
    """A network that takes `(N, C, *S)` of the shape it was made for and gives logits `(N, classes, *sizes of P2)`.

    `how` says in words what runs; `shape`, `device` and `dtype` are those of the input that `run` takes. A call takes
    as many images or fewer, on any device and of any type, and raises `InvalidInput` for another shape.
    """

    run: Callable[[Tensor], Tensor]
    how: str
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape[1:] or len(x) > self.shape[0]:
            raise InvalidInput(
                f"input has shape {tuple(x.shape)}; this form was made for {self.shape}, or fewer images; "
                "make one for the input's shape"
            )
        # A fresh tensor: a view's strides can read as channels last and slow the whole network down.
        given = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        given[: len(x)] = x
        given[len(x) :] = 0
        with EXACT:
            return self.run(given)[: len(x)]


def fast_form(
    network: DeepLabV3Plus, shape: Sequence[int], device: torch.device, precision: str, compiled: bool = False
) -> FastForm:
    """The fastest form of `network`, which is in evaluation mode, for inputs `(N, C, *S)` of exactly that `shape`.

    On the CPU that is oneDNN's fused convolutions on weights in its own layout, on NVIDIA's GPUs cuDNN's, where this
    torch has them; elsewhere torch's convolutions, with batch normalisation folded in. A network that can't be
    captured, such as one with an encoder that looks at its input's values, runs as it is; so does one with an encoder
    of somebody's own that fails when it is tried. A form may share weights with `network`: once these change, make
    another, as `FastForms` does.

    `compiled` has `torch.compile` write kernels for torch's operations, which takes up to a minute. Whether that pays
    must be tried: on an H100 resnet50 gained nothing.

    Raises
    ------
    InvalidInput : a part of `network` is in training mode, or can't be copied to another device or precision; or torch
        has no compiler.
    """
    training = next((name for name, module in network.named_modules() if module.training), None)
    if training is not None:
        raise InvalidInput(
            f"the network is in training mode ({training or 'all of it'}), with dropout and statistics of each batch; "
            "call its eval() first"
        )
    size, dtype = tuple(shape), PRECISIONS[precision]
    by = OWN.get(device.type, "torch")
    if by != "torch" and (compiled or not works(by, device, dtype)):  # oneDNN's weights are no tensors to a compiler
        by = "torch"
    try:
        with uncollected():
            module = _folded(network, size, device, dtype, by)
            if network.spec.encoder_name is None:
                _try(module, size, device, dtype)
    except NotCapturable as reason:
        plain = network if (device, dtype) == _place(network) else _copied(network, device, dtype)
        return FastForm(plain.coarse_logits, f"as written ({reason})", size, device, dtype)
    how = f"folded, {CONVOLUTIONS[by]}, {precision}"
    if compiled:
        module, how = _compiled(module, size, device, dtype), f"{how}, compiled"
    if device.type == "cuda":
        try:
            graph_run = _CudaGraph(module, size, device, dtype)
            return FastForm(graph_run, f"{how}, CUDA graph", size, device, dtype)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as reason:  # an operation that can't be recorded
            how = f"{how}, without CUDA graph ({reason})"
    return FastForm(module, how, size, device, dtype)


def _folded(
    network: DeepLabV3Plus, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, by: Library
) -> Callable[[Tensor], Tensor]:
    """The rewritten network as a function. Raises `NotCapturable`."""
    coarse = CoarseLogits(network)
    graph = capture(coarse, shape, dtype)
    tensors = {name: tensor.detach() for name, tensor in coarse.state_dict().items()}
    tensors |= {name: tensor for name, tensor in coarse.named_buffers() if name not in tensors}
    with torch.inference_mode():
        for name, tensor in tensors.items():  # what is folded isn't to be rounded to the network's half precision
            tensors[name] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        rewrite(graph, tensors)
        convolve_before_enlarging(graph, tensors)
        lower(graph, tensors, device, dtype, by)
        return fx.GraphModule(tensors, graph)


def _copied(network: DeepLabV3Plus, device: torch.device, dtype: torch.dtype) -> DeepLabV3Plus:
    try:
        return copy.deepcopy(network).to(device, dtype)
    except Exception as error:  # of any kind, as what a module of one's own raises
        if out_of_memory(error):
            raise
        where, kind = _place(network)
        raise InvalidInput(
            f"the network can't be copied ({error}), so it runs on {where} in {kind} only; choose these"
        ) from error


def _try(module: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
    """Run it once: somebody's own encoder may ask for what torch can't do in the layout that is fast.

    Raises `NotCapturable` where that is so.
    """
    try:
        with torch.inference_mode(), EXACT:
            module(torch.zeros(shape, dtype=dtype, device=device))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise NotCapturable(str(error).partition("\n")[0]) from error


class FastForms:
    """The fast form of one network for whatever is asked, made anew only for something else or for other weights.

    Threads may share it. What is written into weights through their `data` leaves no trace in torch, and isn't noticed;
    nor is an optimizer with `fused=True`, where batch normalisation doesn't count batches meanwhile.
    """

    def __init__(self, network: DeepLabV3Plus) -> None:
        self.network = network
        self._made: tuple[object, FastForm] | None = None
        self._making = threading.Lock()

    def __reduce__(self) -> tuple[type[FastForms], tuple[DeepLabV3Plus]]:
        return FastForms, (self.network,)  # oneDNN's weights can't be copied, and are made anew

    def of(self, shape: Sequence[int], device: torch.device, precision: str, compiled: bool = False) -> FastForm:
        """See `fast_form`. Only the latest is kept, for the memory of its weights."""
        key = (
            tuple(shape),
            device,
            precision,
            compiled,
            *(_identity(tensor) for tensor in self.network.state_dict().values()),
        )
        with self._making:
            if self._made is None or self._made[0] != key:
                self._made = None  # the old one goes before the new one comes
                self._made = (key, fast_form(self.network, shape, device, precision, compiled))
            return self._made[1]


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers lie and how often they were written over."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _place(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    first = next(network.parameters())
    return first.device, first.dtype


def _compiled(
    module: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """`module` by `torch.compile`, here and now rather than at the first window."""
    try:
        made = torch.compile(module, dynamic=False)
        with torch.inference_mode(), EXACT:
            made(torch.zeros(shape, dtype=dtype, device=device))
    except Exception as error:  # compilers fail in ways of their own
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InvalidInput(
            f"torch can't compile the network for {device} ({reason}); it needs a C++ compiler for the CPU and Triton "
            "for a GPU, or leave --compile (compiled=True) out"
        ) from error
    return made


class _CudaGraph:
    """`module` recorded once as a CUDA graph and replayed: one launch instead of one per operation.

    Input and result live at fixed places; a call copies into the one and out of the other, one call at a time.
    """

    def __init__(
        self, module: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.module = module  # its weights are read at every replay
        self._running = threading.Lock()
        self.given = torch.zeros(shape, dtype=dtype, device=device)
        if dtype != torch.float32:  # tensor cores want a voxel's channels side by side
            self.given = self.given.contiguous(memory_format=channels_last(len(shape)))
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.inference_mode(), torch.cuda.stream(side), EXACT:
            for _ in range(3):  # libraries choose their algorithms first
                module(self.given)
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with RECORDING, torch.inference_mode(), torch.cuda.device(device), EXACT, self._recording(device):
            self.result = module(self.given)

    def _recording(self, device: torch.device) -> torch.cuda.graph:
        # Torch's own stream for it is on the GPU that was the first to be recorded on.
        stream = torch.cuda.Stream(device)
        # Other threads, such as a data loader's, may go on using the GPU.
        return torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local")

    def __call__(self, x: Tensor) -> Tensor:
        with self._running:
            self.given.copy_(x)
            self.graph.replay()
            return self.result.clone()
