"""The commands of `deeplabseg`: what each does, and its arguments. It returns its report as data and as text."""

from DeepLabSegLib.commands import bundles, comparing, segmenting, training

__all__ = ["COMMANDS"]

COMMANDS = segmenting.COMMANDS | comparing.COMMANDS | bundles.COMMANDS | training.COMMANDS
