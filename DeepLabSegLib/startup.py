"""What processes of our own do before they work; in another's program a library has no say in it."""

from __future__ import annotations

import gc
import sys

__all__ = ["load_torch"]


def load_torch() -> None:
    """Import torch, whose quarter of a million objects Python's collector would search at once and again and again.

    They stay for as long as the process lives, so it passes them by from now on.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
