"""A network for other programs: ONNX and TorchScript, for one size of window, checked by running what was written."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor

from DeepLabSegLib.checks import counts
from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.outputs import replacing

__all__ = ["EXPORT_SUFFIXES", "export"]

TOLERANCE = 1e-4
"""Of probabilities; of values beyond 1, such as logits, the share of the largest."""


def export(network: DeepLabV3Plus, path: str | os.PathLike[str], size: Sequence[int]) -> float:
    """Write `network` to `path` (`.onnx`, or `.pt`/`.ts` for TorchScript) for inputs `(1, C, *size)`.

    What was written is run on noise and compared: returned is the largest difference, of values after the
    classifier's activation. `network` stays as it is, and a file at `path` is replaced only where all went well.

    Raises
    ------
    InvalidInput : sizes that don't fit the network, or another ending.
    OutputError : a missing folder or package, or a written file whose results differ by more than `TOLERANCE` allows.
    """
    spec = network.spec
    if len(counts("size", size)) != spec.dims:
        raise InvalidInput(f"size is {tuple(size)}; this network needs {spec.dims} sizes of at least 1")
    target = Path(path)
    exporter = EXPORTERS.get(target.suffix.lower())
    if exporter is None:
        raise InvalidInput(f"{target} has no known ending; choose one of {', '.join(EXPORT_SUFFIXES)}")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is no folder; make it first")
    network = copy.deepcopy(network).cpu().float().eval()
    example = torch.randn(1, spec.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _quiet(), replacing(target) as temporary:
        expected = network(example)
        difference = float((exporter(network, example, temporary) - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise OutputError(
                f"the exported network differs by {difference:.2g}, more than {allowed:.2g}; it is not kept"
            )
    return difference


def _torchscript(network: DeepLabV3Plus, example: Tensor, path: Path) -> Tensor:
    torch.jit.save(torch.jit.trace(network, example), path)
    return torch.jit.load(path)(example)


def _onnx(network: DeepLabV3Plus, example: Tensor, path: Path) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 torch.onnx needs it
    except ImportError as error:
        raise OutputError(
            f"ONNX needs the package {error.name}, which is missing; pip install onnxscript onnxruntime"
        ) from None
    if "external_data" not in signature(torch.onnx.export).parameters:  # as in torch 2.4
        raise OutputError(f"ONNX needs a newer torch than {torch.__version__}; install it, or choose an ending .ts")
    torch.onnx.export(network, (example,), path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: example.numpy()})[0])


EXPORTERS: dict[str, Callable[[DeepLabV3Plus, Tensor, Path], Tensor]] = {
    ".onnx": _onnx,
    ".pt": _torchscript,
    ".ts": _torchscript,
}
EXPORT_SUFFIXES = tuple(EXPORTERS)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn of themselves and of packages that play no part here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
