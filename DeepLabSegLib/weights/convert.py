"""From bare weights to a model: what the file tells is detected, what it can't tell is given or said to be assumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from DeepLabSegLib.bundle import Bundle, ModelInput, read_bundle, read_network
from DeepLabSegLib.catalog import is_described, tensors_file
from DeepLabSegLib.errors import InvalidInput, WeightsError
from DeepLabSegLib.image import Segment, default_color
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.schema import from_json
from DeepLabSegLib.weights.detect import detect
from DeepLabSegLib.weights.load import load_silently, load_weights

__all__ = ["convert", "parse_input", "parse_normalization"]

UNKNOWN = "unknown"


def convert(
    path: str | os.PathLike[str],
    *,
    labels: Sequence[Segment | str] | None = None,
    network: Mapping[str, Any] | None = None,
    model_input: ModelInput | None = None,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    training_data: str | None = None,
) -> tuple[Bundle, DeepLabV3Plus, tuple[str, ...]]:
    """A bundle and its network from a weights file; and, in words, what had to be assumed.

    Of weights that have a `model.json`, all that isn't given is as it says; figures and command are left out where
    labels, network or input are given.

    Parameters
    ----------
    path : a weights file that `load_weights` reads, or a bundle.
    labels : a segment or a name per class, in the classes' order. Where the file says neither softmax nor sigmoid, a
        label less than classes means that class 0 is background (softmax); a label each means that classes may overlap
        (sigmoid). None names them "Class 1", ...
    network : fields of `DeepLabSpec` that the file can't tell, for example `decoder_dilation_rates`.
    model_input : channels, orientation, spacing, normalisation and tile; None takes images as they are.
    name, description, license, training_data : what the bundle says of itself; if None the name is the file's, and
        what nobody says is "unknown".

    Raises
    ------
    BundleError : a bundle that is damaged or inconsistent.
    WeightsError : a file that can't be read, is of no known network, or doesn't fit `network`.
    InvalidInput : labels or fields that don't fit the network.
    """
    source = Path(path)
    network = dict(network or {})
    unknown = sorted(set(network) - {f.name for f in fields(DeepLabSpec)})
    if unknown:
        raise InvalidInput(f"network has unknown fields {', '.join(unknown)}; see DeepLabSpec")
    if is_described(source):
        card = {"name": name, "description": description, "license": license, "training_data": training_data}
        return *_changed(source, labels, network, model_input, card), ()
    found = detect(source)
    if found.num_classes is None:
        raise WeightsError(f"{source} holds an encoder alone ({found}); train a decoder, or give a whole network")
    spec = found.spec
    if spec is None:
        raise WeightsError(f"{source}: {found}; a bundle needs an encoder of the tables")
    if labels is not None:
        told = not any(text.startswith("classifier_activation") for text in found.open)
        if not told or spec.classifier_activation not in ("softmax", "sigmoid"):
            network.setdefault("classifier_activation", _activation(len(labels), spec.num_classes))
    open_questions = [text for text in found.open if text.split(" ")[0] not in network]
    spec = replace(spec, **network)
    if model_input is None:
        model_input = ModelInput(_channel_names(spec.in_channels), None, (None, None, None), Normalization("none"))
        open_questions.append("the input (assumed: images as they are, without normalisation)")
    if labels is None:
        labels = [f"Class {n}" for n in range(1, spec.foreground_classes + 1)]
    bundle = Bundle(
        name=name or source.stem.removesuffix(".weights"),
        description=description or f"Converted from {source.name}",
        license=license or UNKNOWN,
        training_data=training_data or UNKNOWN,
        network=spec,
        input=model_input,
        labels=_segments(labels),
    )
    model = DeepLabV3Plus.from_spec(spec)
    load_weights(model, source)
    return bundle, model.eval(), tuple(open_questions)


def _changed(
    source: Path,
    labels: Sequence[Segment | str] | None,
    network: dict[str, Any],
    model_input: ModelInput | None,
    card: Mapping[str, str | None],
) -> tuple[Bundle, DeepLabV3Plus]:
    """The bundle at `source` with what is given in place of its own."""
    bundle = read_bundle(source)
    model = read_network(source, bundle)
    if network:
        model = DeepLabV3Plus.from_spec(replace(bundle.network, **network)).eval()
        load_silently(model, tensors_file(source))
    if labels or network or model_input:
        bundle = replace(bundle, description=f"Converted from {bundle.name}", figures={}, reproduce=None)
    bundle = replace(
        bundle,
        network=model.spec,
        input=model_input or bundle.input,
        labels=bundle.labels if labels is None else _segments(labels),
        **{key: text for key, text in card.items() if text is not None},  # type: ignore[arg-type]
    )
    return bundle, model


def parse_input(
    path: str | os.PathLike[str],
    normalization: str | None,
    channels: Sequence[str] | None = None,
    orientation: str | None = None,
    spacing: tuple[float | None, ...] | None = None,
    tile: tuple[int, ...] | None = None,
) -> ModelInput | None:
    """What the weights at `path` want to be fed, as a person says it; None where nothing is said.

    `normalization` is "none", "zscore", "percentile:L:U" or "window:L:U"; the rest is as in `ModelInput`. What isn't
    said is as the weights' `model.json` has it, if there is one. Raises `InvalidInput` where it can't be understood, or
    is missing while something else is said, and `BundleError` for a damaged `model.json`.
    """
    said = {
        "channels": tuple(channels or ()),
        "orientation": orientation,
        "spacing": spacing,
        "normalization": normalization and parse_normalization(normalization),
        "tile": tile,
    }
    said = {name: value for name, value in said.items() if value}
    if not said:
        return None
    if is_described(path):
        return replace(read_bundle(path).input, **said)  # type: ignore[arg-type]
    if "normalization" not in said:
        raise InvalidInput(
            "say with --normalization how voxel values go in: none, zscore, percentile:L:U or window:L:U"
        )
    if "channels" not in said:
        said["channels"] = _channel_names(detect(Path(path)).in_channels)
    return ModelInput(**({"orientation": None, "spacing": (None, None, None)} | said))  # type: ignore[arg-type]


def parse_normalization(text: str) -> Normalization:
    """`"zscore"` or `"percentile:0.5:99.5"` as a `Normalization`. Raises `InvalidInput`."""
    method, *bounds = text.split(":")
    if bounds and method in ("zscore", "none"):
        raise InvalidInput(f"normalization is {text!r}, but {method} takes no bounds; leave them out")
    try:
        lower, upper = map(float, bounds) if bounds else (None, None)
    except ValueError:
        raise InvalidInput(f"normalization is {text!r}; write for example zscore, or percentile:0.5:99.5") from None
    return from_json(Normalization, {"method": method, "lower": lower, "upper": upper}, "normalization")


def _channel_names(count: int) -> tuple[str, ...]:
    return tuple(f"channel {n}" for n in range(1, count + 1))


def _activation(labels: int, classes: int) -> str:
    if labels not in (classes, classes - 1):
        raise InvalidInput(
            f"{labels} labels are given, and the network has {classes} classes; give {classes} for overlapping "
            f"classes, or {classes - 1} where class 0 is background"
        )
    return "sigmoid" if labels == classes else "softmax"


def _segments(labels: Sequence[Segment | str]) -> tuple[Segment, ...]:
    return tuple(
        Segment(value, label, default_color(value)) if isinstance(label, str) else label
        for value, label in enumerate(labels, start=1)
    )
