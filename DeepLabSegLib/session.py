"""A model kept warm: what was asked for, and the `Segmenter` that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DeepLabSegLib.bundle import Bundle, read_bundle
from DeepLabSegLib.catalog import DEFAULT_MODEL, find_model, is_bundle, model_state
from DeepLabSegLib.segmenter import Segmenter, load_model
from DeepLabSegLib.weights.convert import convert, parse_input

__all__ = ["ModelChoice", "WarmModel", "describe_model"]


@dataclass(frozen=True)
class ModelChoice:
    """Which model, where it runs, how precisely; and, for bare weights, what a person says of them.

    Attributes
    ----------
    model : a model's name, or the path of a bundle or weights file.
    device, precision : as in `load_model`.
    labels : names of the classes, see `weights.convert`.
    network : fields of `DeepLabSpec` that the file can't tell.
    normalization, orientation, spacing : how the scan goes in, see `weights.parse_input`.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    precision: str = "auto"
    labels: tuple[str, ...] | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    normalization: str | None = None
    orientation: str | None = None
    spacing: tuple[float | None, ...] | None = None


def describe_model(choice: ModelChoice) -> tuple[Bundle, tuple[str, ...]]:
    """What the choice amounts to, and in words what had to be assumed. Raises what `WarmModel.get` raises."""
    path = find_model(choice.model)
    if is_bundle(path):
        return read_bundle(path), ()
    bundle, _, assumed = convert(path, **_said(path, choice))
    return bundle, assumed


class WarmModel:
    """The model of the last call, kept until another is asked for or its file changes."""

    def __init__(self) -> None:
        self._key: object = None
        self._segmenter: Segmenter | None = None

    def get(self, choice: ModelChoice) -> Segmenter:
        """The segmenter for `choice`, loaded if need be. Raises what `load_model` raises."""
        path = find_model(choice.model)
        key = (choice, model_state(path))
        if self._segmenter is None or self._key != key:
            self.unload()
            said = {} if is_bundle(path) else _said(path, choice)
            self._segmenter = load_model(path, choice.device, choice.precision, **said)
            self._key = key
        return self._segmenter

    def unload(self) -> None:
        """Let go of the model."""
        self._key = self._segmenter = None


def _said(path: Path, choice: ModelChoice) -> dict[str, Any]:
    """What `choice` says of the bare weights at `path`, as `convert` takes it."""
    model_input = parse_input(path, choice.normalization, None, choice.orientation, choice.spacing)
    return {"labels": choice.labels, "network": choice.network, "model_input": model_input}
