"""The errors that DeepLabSegLib raises on purpose. Each message names the value, the limit and the remedy."""

from __future__ import annotations

__all__ = ["BundleError", "Cancelled", "DeepLabSegError", "InvalidInput", "OutputError", "WeightsError"]


class DeepLabSegError(Exception):
    """Base of every error raised on purpose; its message is meant for the user."""


class InvalidInput(DeepLabSegError, ValueError):
    """An image, an option or an argument that can't be worked with."""


class BundleError(DeepLabSegError):
    """A model bundle that is missing, incomplete, damaged or not what its `model.json` says."""


class WeightsError(DeepLabSegError):
    """A weights file that can't be read, is damaged or doesn't fit the model."""


class OutputError(DeepLabSegError, OSError):
    """A result that can't be written where it was asked for."""


class Cancelled(DeepLabSegError):
    """The run was stopped through its progress callback; of its scan nothing was written."""
