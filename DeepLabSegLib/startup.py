"""What costs a start time that it need not: Python's collector among the many objects that torch makes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["load_torch", "uncollected"]


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
