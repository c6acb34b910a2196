"""`deeplabseg models`, `encoders`, `info`, `convert` and `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import DeepLabSegLib
from DeepLabSegLib.commands.arguments import Commands, typed
from DeepLabSegLib.commands.telling import Report, table
from DeepLabSegLib.errors import BundleError, InvalidInput, OutputError
from DeepLabSegLib.image import Segment
from DeepLabSegLib.outputs import check_output
from DeepLabSegLib.schema import from_json, load_json, to_json
from DeepLabSegLib.texts import parse_names, parse_sizes, parse_spacing

__all__ = ["COMMANDS"]


def models(options: argparse.Namespace) -> Report:
    """List the models that are here."""
    from DeepLabSegLib import bundle, catalog

    data: list[Any] = []
    rows = []
    for name, path in catalog.installed_models().items():
        try:
            b = bundle.read_bundle(path)
            data.append(to_json(b))
            rows.append((name, f"{b.network.dims}D {b.network.encoder_name}", b.description))
        except BundleError as error:
            data.append({"name": name, "error": str(error)})
            rows.append((name, "unreadable", str(error)))
    return data, table(rows)


def encoders(options: argparse.Namespace) -> Report:
    """List the encoders by family."""
    from DeepLabSegLib.models.encoders import FAMILIES

    catalogue = {family: list(rows) for family, (_, rows) in FAMILIES.items()}
    return catalogue, table([(family, ", ".join(names)) for family, names in catalogue.items()])


def info(options: argparse.Namespace) -> Report:
    """Show all that a model or weights file says of itself, after checking its tensors; and how it runs on a device."""
    from DeepLabSegLib import bundle, catalog

    path = catalog.find_model(options.model)
    runs = {} if options.device is None else DeepLabSegLib.load_model(path, options.device).describe()
    if not catalog.is_bundle(path):
        return _weights_info(path, runs)
    content = bundle.read_bundle(path)
    parameters = sum(p.numel() for p in bundle.read_network(path, content).parameters())
    rows = [
        ("name", content.name),
        ("description", content.description),
        ("network", f"{_network(content.network)}, {parameters / 1e6:.2f} million parameters"),
        ("input", f"{', '.join(content.input.channels)}; orientation {content.input.orientation or 'as acquired'}; "
                  f"spacing {' x '.join('as acquired' if s is None else f'{s:g} mm' for s in content.input.spacing)}; "
                  f"values {_values(content.input.normalization)}; window "
                  f"{' x '.join(map(str, content.input.tile)) if content.input.tile else 'the whole image'}"),
        ("labels", ", ".join(f"{label.value} {label.name}" for label in content.labels)),
        ("license", content.license),
        ("training data", content.training_data),
        *([("limits", content.limits)] if content.limits else []),
        *((f"figure: {name}", f"{value:g}") for name, value in content.figures.items()),
        *([("reproduce", content.reproduce)] if content.reproduce else []),
        ("sha256", content.sha256),
        *((f"runs: {name}", text) for name, text in runs.items()),
    ]  # fmt: skip
    return to_json(content) | {"parameters": parameters, **({"runs": runs} if runs else {})}, table(rows)


def convert(options: argparse.Namespace) -> Report:
    """Make a model bundle from a weights file (medicai's, ours, or a torch state_dict of ours) or another bundle."""
    from DeepLabSegLib import bundle, catalog, weights

    target = Path(options.output)
    if target.exists() and not options.overwrite:
        raise OutputError(f"{target} exists; give another name, or --overwrite")
    given = {
        "encoder_name": options.encoder,
        "encoder_depth": options.depth,
        "classifier_activation": options.activation,
        "decoder_activation": options.decoder_activation,
        "decoder_normalization": options.decoder_normalization,
        "decoder_dilation_rates": options.dilation_rates,
        "head_upsample": options.head_upsample,
    }
    network = {name: value for name, value in given.items() if value is not None}
    source = catalog.find_model(options.weights)
    model_input = weights.parse_input(
        source, options.normalization, options.channels, options.orientation, options.spacing, options.tile
    )
    content, model, assumed = weights.convert(
        source,
        labels=_labels(options.labels),
        network=network,
        model_input=model_input,
        name=options.name or target.name.removesuffix(".safetensors"),
        license=options.license,
        training_data=options.training_data,
    )
    content = bundle.save_bundle(target, content, model, half=options.half, overwrite=options.overwrite)
    data = {"output": str(target), "network": to_json(content.network), "assumed": list(assumed)}
    lines = [f"{target}: {_network(content.network)}", *(f"assumed, for want of knowledge: {text}" for text in assumed)]
    return data, "\n".join(lines)


def export(options: argparse.Namespace) -> Report:
    """Write a model's network as ONNX (.onnx) or TorchScript (.pt), and check what was written by running it."""
    from DeepLabSegLib import export as exporting

    output = check_output(options.output, exporting.EXPORT_SUFFIXES, options.overwrite)
    segmenter = DeepLabSegLib.load_model(options.model, "cpu")
    size = options.size or segmenter.bundle.input.tile
    if size is None:
        raise InvalidInput(
            f"the model {segmenter.bundle.name} has no tile of its own; give --size, for example 256x256"
        )
    difference = exporting.export(segmenter.network, output, size)
    text = (
        f"{output} takes (1, {segmenter.bundle.network.in_channels}, {', '.join(map(str, size))}); largest difference"
    )
    return {"output": str(output), "size": list(size), "difference": difference}, f"{text} {difference:.1e}"


def _weights_info(path: Path, runs: dict[str, str]) -> Report:
    from DeepLabSegLib import weights

    found = weights.detect(path)
    spec = None if found.spec is None else to_json(found.spec)
    lines = [str(found), *(f"runs: {name}: {text}" for name, text in runs.items())]
    return to_json(found) | {"sure": found.sure, "spec": spec, **({"runs": runs} if runs else {})}, "\n".join(lines)


def _network(spec: Any) -> str:
    return f"DeepLabV3+ {spec.dims}D, {spec.encoder_name}, depth {spec.encoder_depth}, {spec.num_classes} classes"


def _values(normalization: Any) -> str:
    bounds = "" if normalization.lower is None else f" {normalization.lower:g} to {normalization.upper:g}"
    return f"{normalization.method}{bounds}"


def _labels(text: str | None) -> list[Any] | None:
    """Names between commas, or a JSON file with segments as in `model.json`."""
    if text is None:
        return None
    if not text.endswith(".json"):
        return parse_names(text)
    try:
        content = load_json(text)
        if not isinstance(content, list):
            raise InvalidInput("a list of labels is needed")
        return [
            label if isinstance(label, str) else from_json(Segment, label, f"[{n}]") for n, label in enumerate(content)
        ]
    except InvalidInput as error:
        raise InvalidInput(f"{text} can't be read as labels: {error}") from None


def _info_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", help="a name from `deeplabseg models`, a bundle's path, or a weights file")
    sub.add_argument("--device", help="also say how it runs there: auto, cpu, cuda, cuda:N or mps")


def _convert_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "weights",
        help=".weights.h5, .keras, .safetensors or a torch state_dict; or a bundle, to be changed or rewritten",
    )
    sub.add_argument(
        "-o", "--output", required=True, help="bundle to write: a folder, or a file ending in .safetensors"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    sub.add_argument("--labels", help="names between commas, or a JSON file with labels as in model.json")
    sub.add_argument("--name", help="the model's name (default: the bundle's)")
    sub.add_argument("--license", help="licence of the weights (default: unknown, or the bundle's)")
    sub.add_argument("--training-data", help="what the weights were trained on (default: unknown, or the bundle's)")
    sub.add_argument("--half", action="store_true", help="store half precision, half the size")
    network = sub.add_argument_group("the network, where the file can't tell")
    network.add_argument("--encoder", help="a name from `deeplabseg encoders`")
    network.add_argument("--depth", type=int, choices=(3, 4, 5), help="stages of the encoder, each of half the size")
    network.add_argument("--activation", help="the classifier's, for example softmax (default: by the labels)")
    network.add_argument("--decoder-activation", help="for example relu")
    network.add_argument("--decoder-normalization", help="for example batch")
    network.add_argument("--dilation-rates", type=typed(parse_sizes), help="for example 6x12x18")
    network.add_argument("--head-upsample", type=float, help="a fixed factor instead of the input's size")
    intake = sub.add_argument_group("the input, which no weights file tells")
    intake.add_argument("--normalization", help="none, zscore, percentile:0.5:99.5 or window:-160:240")
    intake.add_argument("--channels", type=typed(parse_names), help="their names between commas")
    intake.add_argument(
        "--orientation", help="three letters, where k, j, i grow to, for example SAR (default: the scan's)"
    )
    intake.add_argument(
        "--spacing", type=typed(parse_spacing), help="mm along k, j, i, for example 1.5x1x1; 0x0x0 keeps the scan's"
    )
    intake.add_argument(
        "--tile", type=typed(parse_sizes), help="window, for example 96x96x96 (default: the whole image)"
    )


def _export_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", help="a name from `deeplabseg models`, a bundle's path, or a weights file")
    sub.add_argument("-o", "--output", required=True, help="file to write: .onnx, .pt or .ts (TorchScript)")
    sub.add_argument(
        "--size", type=typed(parse_sizes), help="size of the one window that it takes (default: the model's tile)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _no_arguments(sub: argparse.ArgumentParser) -> None:
    pass


COMMANDS: Commands = {
    models: _no_arguments,
    encoders: _no_arguments,
    info: _info_arguments,
    convert: _convert_arguments,
    export: _export_arguments,
}
