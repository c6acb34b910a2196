"""Between the computer's memory and a device's, so that neither waits for the other.

A GPU does what it is told in order, and a plain copy waits for all that was told before. So what goes to a CUDA GPU
goes beside its work, and what comes from it is fetched when it has long been there.
"""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Downloads", "Uploads"]


class Uploads:
    """Arrays to tensors on `device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, array: NDArray) -> Tensor:
        """`array` on the device, good for what it is told from now on."""
        tensor = torch.from_numpy(array)
        if self._beside is None:
            return tensor.to(self.device)
        with torch.cuda.stream(self._beside):
            sent = tensor.to(self.device)
        working = torch.cuda.current_stream(self.device)
        working.wait_stream(self._beside)
        sent.record_stream(working)
        return sent


class Downloads:
    """Tensors into parts of arrays, one behind: at the latest by `finish`."""

    def __init__(self) -> None:
        self._coming: list[tuple[NDArray, Tensor, torch.cuda.Event]] = []

    def take(self, tensor: Tensor, place: NDArray) -> None:
        """Write `tensor` to `place`."""
        if tensor.device.type != "cuda":
            place[...] = tensor.cpu().numpy()
            return
        here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        here.copy_(tensor, non_blocking=True)
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(tensor.device))
        self.finish()
        self._coming.append((place, here, there))

    def finish(self) -> None:
        """Write all that is still to come."""
        for place, here, there in self._coming:
            there.synchronize()
            place[...] = here.numpy()
        self._coming.clear()
