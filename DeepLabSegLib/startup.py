"""How a process of our own begins: without the pauses of Python's collector, and ready to share its processors."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["load_torch", "uncollected", "wait_briefly"]

SPINS = "2000"
"""About as long as it takes to wake a thread."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Put off Python's search for unreachable objects, which among all of torch's takes a tenth of a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def wait_briefly() -> None:
    """Have threads that wait for each other fall asleep soon, where GNU's OpenMP runs them, as torch's on Linux.

    By itself it lets them turn in circles for milliseconds, which where others use the processors as well keeps from
    running what they wait for. Before torch is imported, and for processes of our own. Who has set OMP_WAIT_POLICY or
    GOMP_SPINCOUNT keeps to it.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def load_torch() -> None:
    """Import torch, and have Python's collector pass by its quarter of a million objects from now on.

    They stay for as long as the process lives. For processes of our own: in another's program a library has no say in
    what is collected.
    """
    if "torch" in sys.modules:
        return
    with uncollected():
        import torch  # noqa: F401

        gc.freeze()
