"""A model as one folder or one file: tensors as safetensors, and everything a person wants to know in `model.json`.

A folder holds `model.json` and `model.safetensors`; a single `.safetensors` file carries the same JSON in its
metadata under `model.json`. Nothing in either is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from DeepLabSegLib.catalog import JSON_NAME, TENSORS_NAME, read_json, tensors_file
from DeepLabSegLib.checks import check_kind
from DeepLabSegLib.errors import BundleError, InvalidInput, OutputError
from DeepLabSegLib.image import Segment
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.models.layers import is_counter
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.postprocess import End
from DeepLabSegLib.preprocess import Normalization, check_orientation
from DeepLabSegLib.schema import dumps, from_json, to_json
from DeepLabSegLib.texts import some

__all__ = ["Bundle", "ModelInput", "check_ending", "digest", "read_bundle", "read_network", "save_bundle"]

MAX_RATES = 64
FILE_SUFFIXES = (".onnx", ".pt", ".ts", ".pth", ".h5", ".keras", ".json", ".zip")
"""Endings of other files that hold models, by which a bundle's folder isn't called."""


@dataclass(frozen=True)
class ModelInput:
    """What a model wants to be fed.

    Attributes
    ----------
    channels : a name per input channel, for example ("T1",).
    orientation : three letters, the directions in which k, j and i grow; None keeps the scan's own axes. A 2D
        network runs slice by slice along k.
    spacing : mm along (k, j, i) of that orientation; None keeps the scan's own.
    normalization : from voxel values to the network's input.
    tile : sizes of one window, per spatial axis of the network; None takes the whole slice or volume at once.
    background : voxel value of the scan, before normalisation, up to which there is nothing but background, for example
        -900 HU; windows in which no channel exceeds it are not looked at. None looks at all.
    mirror_axes : axes of (k, j, i), 0 to 2, of which both directions look alike to the model, since it learned from
        images that were turned round along them; empty where it tells the ends of every axis apart. None is unknown.
    """

    channels: tuple[str, ...]
    orientation: str | None
    spacing: tuple[float | None, float | None, float | None]
    normalization: Normalization
    tile: tuple[int, ...] | None = None
    background: float | None = None
    mirror_axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_kind("normalization", self.normalization, Normalization)
        if self.background is not None and not isfinite(self.background):
            raise InvalidInput(f"background is {self.background}; it must be a finite voxel value, or None")
        mean = self.normalization.mean
        if mean is not None and len(mean) != len(self.channels):
            raise InvalidInput(
                f"normalization has mean and std for {len(mean)} channels; input.channels names {len(self.channels)}"
            )
        if self.orientation is not None:
            check_orientation(self.orientation)
        if not all(size is None or 0 < size < 1e4 for size in self.spacing):
            raise InvalidInput(f"spacing is {list(self.spacing)}; each must be None or a size in mm above 0")
        if self.tile is not None and (not self.tile or min(self.tile) < 1):
            raise InvalidInput(f"tile is {list(self.tile)}; each size must be at least 1")
        if self.mirror_axes is not None and list(self.mirror_axes) != sorted(set(self.mirror_axes) & {0, 1, 2}):
            raise InvalidInput(f"mirror_axes are {list(self.mirror_axes)}; give some of 0, 1 and 2, in order")


@dataclass(frozen=True)
class Bundle:
    """The content of `model.json`.

    `labels` has one entry per class: values 1, 2, ... in the order of the network's classes, class 0 of a softmax
    being background. `one_piece` says that they hang together, as a brain does: what isn't connected to the largest
    part is left out of a result, and so is what lies beyond one of `ends`. `foreground_first` is for labels that fill a
    whole, as those of a head do: at its rim a voxel is background only where that is likelier than all labels together,
    and else the likeliest of these. `figures` are measured results, by name, and `limits` says what the model is not
    for. `reproduce` is the last command of its training. `sha256` is that of the tensors (see `digest`).
    """

    name: str
    description: str
    network: DeepLabSpec
    input: ModelInput
    labels: tuple[Segment, ...]
    license: str
    training_data: str
    figures: Mapping[str, float] = field(default_factory=dict)
    one_piece: bool = False
    foreground_first: bool = False
    ends: tuple[End, ...] = ()
    limits: str | None = None
    reproduce: str | None = None
    sha256: str = ""
    format: Literal["deeplabseg-model-1"] = "deeplabseg-model-1"

    def __post_init__(self) -> None:
        network = self.network
        check_kind("network", network, DeepLabSpec)
        check_kind("input", self.input, ModelInput)
        for label in self.labels:
            check_kind("a label", label, Segment)
        if network.encoder_name is None:
            raise InvalidInput(
                "network.encoder_name is null; a bundle needs a named encoder, from list_encoders(); keep one of "
                "your own with torch.save"
            )
        if len(self.input.channels) != network.in_channels:
            raise InvalidInput(
                f"input.channels names {len(self.input.channels)} channels, and the network takes {network.in_channels}"
            )
        if self.input.tile is not None and len(self.input.tile) != network.dims:
            raise InvalidInput(
                f"input.tile has {len(self.input.tile)} sizes; the {network.dims}D network needs {network.dims}"
            )
        if self.input.background is not None and network.classifier_activation not in ("softmax", "sigmoid"):
            raise InvalidInput(
                f"input.background is {self.input.background}, but with {network.classifier_activation} nothing says "
                "which scores background has; leave it out"
            )
        if self.foreground_first and network.classifier_activation != "softmax":
            raise InvalidInput(
                f"foreground_first is true, but {network.classifier_activation} gives background no probability; leave "
                "it out"
            )
        if network.classifier_activation == "glu":
            raise InvalidInput("network.classifier_activation is glu, which leaves half of the classes; use softmax")
        foreground = network.foreground_classes
        if foreground < 1:
            raise InvalidInput(f"one class with {network.classifier_activation} leaves no foreground; use sigmoid")
        values = [segment.value for segment in self.labels]
        # The length first: num_classes may be any number, and the list is no longer than the file.
        if len(values) != foreground or values != list(range(1, len(values) + 1)):
            raise InvalidInput(
                f"labels have the values {values}; a {network.classifier_activation} network of {network.num_classes} "
                f"classes needs 1 to {foreground}, in order{', class 0 being background' if network.exclusive else ''}"
            )
        for segment in self.labels:
            if not all(0 <= part <= 255 for part in segment.color):
                raise InvalidInput(
                    f"the colour of {segment.name!r} is {list(segment.color)}; each part must be 0 to 255"
                )
        for end in self.ends:
            if not {end.label, *end.at} <= set(values) or not end.at:
                raise InvalidInput(
                    f"ends: label {end.label} ends at {list(end.at)}; "
                    f"all must be labels of the model, 1 to {foreground}"
                )

    @property
    def overlapping(self) -> bool:
        """Whether a voxel may belong to several labels: sigmoid with several classes."""
        return not self.network.exclusive and self.network.num_classes > 1

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The labels with the layer of `Labels.array` that each lies in."""
        return tuple(replace(segment, layer=n * self.overlapping) for n, segment in enumerate(self.labels))

    @property
    def version(self) -> str:
        """Short for all that decides about a result: the tensors, and what is done before and after them.

        What the model says of itself otherwise may change. Empty where the tensors' checksum isn't known.
        """
        parts = (self.network, self.input, self.one_piece, self.foreground_first, self.ends)
        names = [label.name for label in self.labels]
        rest = hashlib.sha256(json.dumps([names, *map(to_json, parts)], sort_keys=True).encode()).hexdigest()
        return f"{self.sha256[:8]}-{rest[:8]}" if self.sha256 else ""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and check a bundle's `model.json`: `path` is its folder, its `model.json` or a single `.safetensors` file.

    Raises `BundleError` that names the file and the key.
    """
    return read_json(path, partial(from_json, Bundle))


def read_network(path: str | os.PathLike[str], bundle: Bundle) -> DeepLabV3Plus:
    """The network of the bundle at `path`, float32, in evaluation mode.

    Names and shapes are compared before any tensor is read, then the checksum. Raises `BundleError`.
    """
    source = tensors_file(path)
    if len(bundle.network.decoder_dilation_rates) > MAX_RATES:  # a branch each, before any tensor is compared
        raise BundleError(
            f"{path}: model.json: network.decoder_dilation_rates has {len(bundle.network.decoder_dilation_rates)} "
            f"entries; at most {MAX_RATES} are read"
        )
    try:
        with torch.device("meta"):
            network = DeepLabV3Plus.from_spec(bundle.network)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's, over sizes that no memory could hold
        raise BundleError(f"{path}: model.json: network makes no network: {error}") from None
    # The counters of batch normalisation say nothing at inference and are not stored.
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not is_counter(name)}
    try:
        with safe_open(source, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 no mapping
            _check_shapes(source, shapes, wanted)
            state = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{source} can't be read as safetensors ({error}); copy the model again") from None
    found = digest(state)
    if found != bundle.sha256:
        raise BundleError(
            f"{source} doesn't match the sha256 in its model.json ({found} instead of {bundle.sha256 or 'none'}); "
            "copy the model again from where you had it"
        )
    # Copied in any case: the file's own place in memory would keep it from being replaced or deleted on Windows.
    state = {name: tensor.to(wanted[name].dtype, copy=True) for name, tensor in state.items()}
    counters = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if is_counter(name)}
    network.load_state_dict(state | counters, assign=True)
    return network.eval()


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _check_shapes(source: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        parts = [f"lacks {some(missing, 3)}"] if missing else []
        parts += [f"has {some(extra, 3)}, which the network doesn't"] if extra else []
        raise BundleError(f"{source} {' and '.join(parts)}; model.json and the tensors belong to different networks")
    for name, tensor in wanted.items():
        if found[name] != tuple(tensor.shape):
            raise BundleError(f"{source}: {name} has shape {found[name]}, and the network needs {tuple(tensor.shape)}")


# --- writing ---------------------------------------------------------------------------------------------------------


def save_bundle(
    path: str | os.PathLike[str], bundle: Bundle, network: DeepLabV3Plus, *, half: bool = True, overwrite: bool = False
) -> Bundle:
    """Write a bundle: a folder, or a single file where `path` ends in `.safetensors`. `half` stores float16.

    Folders that lead there are made. Returns the bundle with its checksum.

    Raises
    ------
    InvalidInput : `network` isn't the one that `bundle` tells of, has layers that were exchanged or wrapped, or holds
        numbers that aren't finite; or something in `bundle` is of another type than declared, so that it couldn't be
        read.
    OutputError : a name of another kind of file; something is there already or can't be written.
    """
    check_ending(path)
    _check_network(bundle.network, network.spec)
    _check_numbers(network)
    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; choose another name or overwrite it")
    state = {name: _stored(tensor, half) for name, tensor in network.state_dict().items() if not is_counter(name)}
    with torch.device("meta"):
        _check_layers(state, DeepLabV3Plus.from_spec(bundle.network).state_dict())
    bundle = from_json(Bundle, to_json(replace(bundle, sha256=digest(state))))  # as it will be read
    text = dumps(to_json(bundle)) + "\n"
    try:
        if target.suffix == ".safetensors":
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary:
                temporary.write_bytes(save(state, {JSON_NAME: text}))
        else:
            target.mkdir(parents=True, exist_ok=True)
            # Neither takes its place before both are written: each is of no use beside another's.
            with replacing(target / JSON_NAME) as card, replacing(target / TENSORS_NAME) as tensors:
                card.write_text(text, encoding="utf-8")
                tensors.write_bytes(save(state))
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise OutputError(f"{target} can't be written ({said}); choose another place or name") from None
    return bundle


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raise `OutputError` where a bundle at `path` would be a folder with the name of a file."""
    if Path(path).suffix.lower() in FILE_SUFFIXES:
        raise OutputError(
            f"{path} is called like a file of another kind, and a bundle is a folder, or a file that ends in "
            ".safetensors; give such a name (`deeplabseg export` writes ONNX and TorchScript)"
        )


def _check_network(told: DeepLabSpec, given: DeepLabSpec) -> None:
    """Raise `InvalidInput` unless both are one network, whatever its images' sizes."""
    ours, theirs = (
        asdict(replace(spec, input_shape=(*(None,) * spec.dims, spec.in_channels))) for spec in (told, given)
    )
    differing = [f"{key} is {ours[key]!r} there and {theirs[key]!r} here" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise InvalidInput(
            f"the network isn't the one that the bundle tells of: {'; '.join(differing)}; "
            "make it with DeepLabV3Plus.from_spec(bundle.network), or let the bundle's network be its spec"
        )


def _check_layers(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise `InvalidInput` unless these are the tensors of a network as it is made, whose layers nobody exchanged."""
    shapes, told = ({n: tuple(t.shape) for n, t in tensors.items() if not is_counter(n)} for tensors in (found, wanted))
    others = sorted({name for name, _ in shapes.items() ^ told.items()})
    if others:
        raise InvalidInput(
            f"the network has other layers than its spec says ({some(others, 3)}); take wrappers, such as "
            "torch.compile's, off its layers, or make it by arguments that fit, such as num_classes"
        )


def _check_numbers(network: DeepLabV3Plus) -> None:
    """Raise `InvalidInput` where a network would call everything background, since its weights aren't finite."""
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise InvalidInput(
                f"{name} holds infinite numbers or NaN, as a training that went astray leaves them; "
                "save weights from before that"
            )


def _stored(tensor: Tensor, half: bool) -> Tensor:
    """`tensor` for the file, in half precision where it is wanted and can hold the values."""
    tensor = tensor.detach().cpu().contiguous()
    if half and tensor.is_floating_point() and tensor.half().isfinite().all():
        return tensor.half()
    return tensor
