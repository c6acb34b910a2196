"""Weights to begin with: a model's, or an encoder's from ImageNet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from DeepLabSegLib.bundle import Bundle, read_bundle, read_network
from DeepLabSegLib.catalog import find_model, is_bundle
from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.evaluate import name_key
from DeepLabSegLib.image import Segment
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.models.layers import is_counter
from DeepLabSegLib.weights.files import open_weights
from DeepLabSegLib.weights.load import load_weights, other_arguments
from DeepLabSegLib.weights.names import dims_of

__all__ = ["begin_with", "check_source", "versioned"]

HEAD = ("head.weight", "head.bias")
"""What has a row per class."""


def check_source(source: str) -> None:
    """Raise `BundleError` where `source`, a model's or file's as `begin_with` takes it, isn't there."""
    path = find_model(source)
    if is_bundle(path):
        read_bundle(path)


def versioned(source: str | None) -> str | None:
    """`source`, as `begin_with` takes it, with the start of its checksum, which changes when it is trained anew."""
    if source is None:
        return None
    path = find_model(source)
    checksum = read_bundle(path).sha256 if is_bundle(path) else hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{source} ({checksum[:8]})"


def begin_with(network: DeepLabV3Plus, source: str, labels: Sequence[Segment], whole: bool = False) -> str:
    """Give `network`, whose classes are `labels`, what it shares with `source`; returns in words how much that was.

    `source` is a model's name or path, or a weights file that `load_weights` reads. Tensors of equal name and shape are
    taken. A 2D kernel becomes the middle slice of a 3D one, whose others are zero, so that a volume is first seen slice
    by slice as the 2D network saw it. A class takes its row of the head from the model's class of the same name, and
    begins with a fresh row where there is none; a weights file names no classes, so its head is taken for as many. What
    `source` has otherwise is left.

    Raises `WeightsError` where the encoders share no kernel, or with `whole` where `source` lacks a tensor or is a
    model of other labels or dilation rates.
    """
    path = find_model(source)
    bundle = read_bundle(path) if is_bundle(path) else None
    if bundle is None:
        donor = _file_tensors(path, network.spec)
    else:
        donor = dict(read_network(path, bundle).state_dict())
        head = _head_by_name(network, labels, donor, bundle)
        donor = {name: value for name, value in donor.items() if name not in HEAD} | head
    taken = {}
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not is_counter(name)}
    for name, tensor in wanted.items():
        value = donor.get(name)
        if value is not None and value.shape == tensor.shape:
            taken[name] = value
        elif value is not None and value.shape == (*tensor.shape[:2], *tensor.shape[3:]):
            taken[name] = torch.zeros_like(tensor)
            taken[name][:, :, tensor.shape[2] // 2] = value.to(tensor.dtype)
    if not any(name.startswith("encoder.") and value.ndim > 2 for name, value in taken.items()):
        if bundle is not None and bundle.network.dims > network.spec.dims:
            raise WeightsError(
                f"{source} is a 3D model, whose kernels don't fit into a 2D network; begin with a 2D model, or train "
                "volumes in 3D"
            )
        raise WeightsError(
            f"{source} shares no kernel with the encoder {network.spec.encoder_name}; begin with a model of that "
            "encoder, or choose its encoder"
        )
    if whole and len(taken) < len(wanted):
        raise WeightsError(
            f"{source} has {len(taken)} of the network's {len(wanted)} tensors, so that keep would mix the others with "
            "chance; begin with a model of the same network and labels, or leave keep out"
        )
    known = [] if bundle is None else _keys(bundle.labels)
    if whole and bundle is not None and sorted(known) != sorted(_keys(labels)):
        raise WeightsError(
            f"{source} has the labels {_listed(bundle.labels)}, and these data {_listed(labels)}, so that keep would "
            "mix the weights of different classes; name the labels as the model does (--labels), or leave keep out"
        )
    others = [] if bundle is None else list(other_arguments(asdict(bundle.network), network))
    if whole and others:
        raise WeightsError(
            f"{source}: {'; '.join(others)}, so that keep would mix the weights of different networks; choose the "
            "window that it was trained with (--tile), from which dilation rates follow, or leave keep out"
        )
    with torch.no_grad():
        for name, value in taken.items():
            wanted[name].copy_(value)
    new = [label for label, key in zip(labels, _keys(labels), strict=True) if bundle is not None and key not in known]
    lacking = f", which has no {_listed(new)}" if new else ""
    return "; ".join([f"{len(taken)} of {len(wanted)} tensors from {source}{lacking}", *others])


def _file_tensors(path: Path, spec: DeepLabSpec) -> Mapping[str, Tensor]:
    """Those of a weights file, in the network of `spec` or, where they are 2D, in its 2D twin."""
    with open_weights(path) as file:
        flat = dims_of(file) == 2
    donor = DeepLabV3Plus.from_spec(replace(spec, input_shape=(None, None, spec.in_channels)) if flat else spec)
    load_weights(donor, path)
    return donor.state_dict()


def _head_by_name(
    network: DeepLabV3Plus, labels: Sequence[Segment], donor: Mapping[str, Tensor], bundle: Bundle
) -> dict[str, Tensor]:
    """A head for `labels` of the donor's dimensions; empty where scores or widths of the two have nothing in common."""
    spec, other = network.spec, bundle.network
    if (spec.exclusive, spec.decoder_channels) != (other.exclusive, other.decoder_channels):
        return {}
    ours, theirs = ([""] * spec.exclusive + _keys(some) for some in (labels, bundle.labels))  # "" is background
    head = {}
    for name in HEAD:
        given = donor[name]
        fresh = network.state_dict()[name].reshape(-1, *given.shape[1:])
        rows = [given[theirs.index(key)] if key in theirs else fresh[n] for n, key in enumerate(ours)]
        head[name] = torch.stack(rows)
    return head


def _keys(labels: Sequence[Segment]) -> list[str]:
    return [name_key(label.name) for label in labels]


def _listed(labels: Sequence[Segment]) -> str:
    return ", ".join(label.name for label in labels)
