"""Arguments that commands share, and how what is typed becomes a value."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from DeepLabSegLib.catalog import DEFAULT_MODEL
from DeepLabSegLib.commands.telling import Report
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.texts import parse_sizes

__all__ = ["Commands", "engine_options", "run_options", "typed"]

Commands = dict[Callable[[argparse.Namespace], Report], Callable[[argparse.ArgumentParser], None]]
"""What commands do -> what adds their arguments."""


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` as a type of argparse's: what it says against a text becomes the message."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except InvalidInput as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def run_options(sub: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    sub.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a name from `deeplabseg models`, a bundle's path, or a weights file (default: %(default)s)",
    )
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    sub.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s)")
    sub.add_argument(
        "--compile", action="store_true", help="let torch.compile write kernels, in up to a minute; try if it pays"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing output")


def engine_options(sub: argparse.ArgumentParser) -> None:
    """How a scan is gone through."""
    sub.add_argument("--tile", type=typed(parse_sizes), help="window, for example 96x96x96 (default: the model's)")
    sub.add_argument("--overlap", type=float, help="share that neighbours have in common, 0 to 0.9 (default: 0.25)")
    sub.add_argument(
        "--blending",
        choices=("gaussian", "constant"),
        help="how overlapping windows are weighed (default: gaussian)",
    )
    sub.add_argument(
        "--slice-axis",
        choices=("axial", "coronal", "sagittal"),
        help="slices for a 2D model (default: the model's)",
    )
    sub.add_argument(
        "--threshold", type=float, help="score from which a voxel counts, for sigmoid models (default: 0.5)"
    )
    sub.add_argument(
        "--mirror",
        action="store_true",
        help="average over mirror images, twice the time with each axis; often a little better",
    )
