"""What to do when memory runs out, or a GPU lacks something: the next way to run, in steps that cost ever more time."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from DeepLabSegLib.passage import Passage

__all__ = ["next_step", "on_cpu", "out_of_memory", "release"]

CPU = torch.device("cpu")

SMALLEST_TILE = 64
"""Sides of a window are not halved below this: a network would see too little around a voxel."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, of a GPU or the computer's own."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = (
        "out of memory",  # MPS's
        "invalid buffer size",  # MPS's, for a single tensor
        "can't allocate memory",  # the CPU's, on Windows the next
        "not enough memory",
        "alloc_failed",  # cuBLAS's
        "allocation_failed",  # cuDNN's
        "unable to find an engine",  # cuDNN's, where no algorithm has the room that it works in
    )
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in words)


def on_cpu(passage: Passage, error: BaseException, at_once: int) -> tuple[Passage, str] | None:
    """`passage` on the CPU, `at_once` windows at a time, and a sentence about it, where a GPU lacks an operation.

    Torch 2.4, for one, has neither pooling nor interpolation of volumes for Apple's GPUs. None for other errors.
    """
    if passage.device == CPU or not isinstance(error, NotImplementedError):
        return None
    note = f"This torch ({torch.__version__}) can't run the model on {passage.device.type.upper()}"
    fewer = min(at_once, passage.at_once)
    return replace(passage, device=CPU, keep_on=CPU, at_once=fewer), f"{note}: the CPU takes over, which is slower."


def release(device: torch.device) -> None:
    """Give back what `device` holds without need. The error that told of it must have been let go."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def next_step(passage: Passage, stride: int) -> tuple[Passage, str] | None:
    """`passage` in less memory and a sentence about it; None where nothing is left to try.

    First fewer windows at once, then logits in the computer's memory: the result stays the same. Then, on the CPU,
    logits in half precision, and smaller windows, sides being multiples of `stride`, which change labels a little; at
    last the CPU.
    """
    title = f"Not enough memory on {passage.device.type.upper()}"
    if passage.at_once > 1:
        count = passage.at_once // 2
        windows = "one window goes" if count == 1 else f"{count} windows go"
        return replace(passage, at_once=count), f"{title}: {windows} through the network at once."
    if passage.keep_on != CPU:
        return replace(passage, keep_on=CPU), f"{title}: intermediate results are kept in the computer's memory."
    if passage.device == CPU and passage.keep_as == torch.float32:
        note = f"{title}: intermediate results are kept in half precision, so a label in thousands may differ."
        return replace(passage, keep_as=torch.float16), note
    longest = max(range(3), key=lambda axis: passage.tile[axis])
    half = -(-passage.tile[longest] // (2 * stride)) * stride
    if SMALLEST_TILE <= half < passage.tile[longest]:
        tile = tuple(half if axis == longest else size for axis, size in enumerate(passage.tile))
        sizes = " x ".join(str(size) for size in tile[-passage.dims :])
        note = f"{title}: windows shrink to {sizes} voxels, so labels may differ a little."
        return replace(passage, tile=tile), note  # type: ignore[arg-type]
    if passage.device != CPU:
        return replace(passage, device=CPU), f"{title}: the CPU takes over, which is slower."
    return None
