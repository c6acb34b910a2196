"""Weights to begin with: a model's, or an encoder's from ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from DeepLabSegLib.bundle import read_bundle, read_network
from DeepLabSegLib.catalog import find_model, is_bundle
from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.models.layers import is_counter
from DeepLabSegLib.weights.load import load_weights

__all__ = ["begin_with", "check_source"]


def check_source(source: str) -> None:
    """Raise `BundleError` where `source`, a model's or file's as `begin_with` takes it, isn't there."""
    path = find_model(source)
    if is_bundle(path):
        read_bundle(path)


def begin_with(network: DeepLabV3Plus, source: str, whole: bool = False) -> str:
    """Give `network` what it shares with `source`; returns in words how much that was.

    `source` is a model's name or path, or a weights file that `load_weights` reads. Tensors of equal name and shape are
    taken. A 2D kernel becomes the middle slice of a 3D one, whose others are zero, so that a volume is first seen slice
    by slice as the 2D network saw it. What `source` has otherwise, such as a head for other labels, is left.

    Raises `WeightsError` where the encoders share no kernel, or with `whole` where `source` lacks a tensor.
    """
    donor = _donor(network, source)
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
        raise WeightsError(
            f"{source} shares no kernel with the encoder {network.spec.encoder_name}; begin with a model of that "
            "encoder, or choose its encoder"
        )
    if whole and len(taken) < len(wanted):
        raise WeightsError(
            f"{source} has {len(taken)} of the network's {len(wanted)} tensors, so that keep would mix the others with "
            "chance; begin with a model of the same network and labels, or leave keep out"
        )
    with torch.no_grad():
        for name, value in taken.items():
            wanted[name].copy_(value)
    return f"{len(taken)} of {len(wanted)} tensors from {source}"


def _donor(network: DeepLabV3Plus, source: str) -> Mapping[str, Tensor]:
    path = find_model(source)
    if is_bundle(path):
        return read_network(path, read_bundle(path)).state_dict()
    spec = network.spec
    flat = replace(spec, input_shape=(None, None, spec.in_channels))
    problem = None
    for twin in dict.fromkeys((spec, flat)):
        donor = DeepLabV3Plus.from_spec(twin)
        try:
            load_weights(donor, path)
        except WeightsError as error:
            problem = error
        else:
            return donor.state_dict()
    raise WeightsError(str(problem))
