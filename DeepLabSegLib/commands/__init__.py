"""What each command of `deeplabseg` does; it returns its report as data and as text."""

from DeepLabSegLib.commands.bundles import convert, encoders, export, info, models
from DeepLabSegLib.commands.comparing import evaluate
from DeepLabSegLib.commands.segmenting import batch, demo, segment
from DeepLabSegLib.commands.telling import Report
from DeepLabSegLib.commands.training import train

__all__ = [
    "Report",
    "batch",
    "convert",
    "demo",
    "encoders",
    "evaluate",
    "export",
    "info",
    "models",
    "segment",
    "train",
]
