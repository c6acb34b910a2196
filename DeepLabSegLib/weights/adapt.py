"""ImageNet's tensors in the shapes of our encoders: other channels, other constants, the same answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from DeepLabSegLib.models.efficientnet import EfficientNetSpec
from DeepLabSegLib.weights.files import Stored
from DeepLabSegLib.weights.imagenet import Origin

__all__ = ["adapted", "for_channels"]

COLOURS = 3


def adapted(
    found: Mapping[str, Stored], model: nn.Module, origin: Origin
) -> tuple[dict[str, Stored], dict[str, list[str]]]:
    """`found` (by our names) in the shapes of `model`'s tensors, and what was done to which, by rule.

    Layers of one voxel that are linear here lose their empty axes, the first kernel gets the model's channels, gains
    are rescaled to the normalisation's constant. Other shapes stay as they are.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    changed: dict[str, list[str]] = {}
    result = dict(found)
    for name, stored in found.items():
        shape = wanted.get(name)
        if shape is None or shape == stored.shape:
            continue
        if tuple(n for n in stored.shape if n > 1) == tuple(n for n in shape if n > 1):
            result[name] = replace(stored, shape=shape, read=partial(_reshaped, stored, shape))
        elif _is_first(name) and _differ_in_channels(stored.shape, shape):
            channels = shape[1]
            result[name] = replace(stored, shape=shape, read=partial(_for_channels, stored, channels))
            changed.setdefault(f"the first layer's {COLOURS} colours, brought to {channels} channels", []).append(name)
    for name, gain, variance, theirs, ours in _other_constants(result, model, origin):
        result[name] = replace(gain, read=partial(_rescaled, gain, variance, theirs, ours))
        changed.setdefault(f"gains rescaled for the constant {theirs:g} of batch normalisation", []).append(name)
    return result, changed


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """`(out, 3, *S) -> (out, channels, *S)`, such that equal channels give the answer of a grey picture.

    One channel takes the colours' sum and two take half of it each; more take the colours in turn, each divided by
    how often it occurs.
    """
    if channels < COLOURS:
        summed = kernel.sum(1, keepdim=True) / channels
        return summed.repeat(1, channels, *[1] * (kernel.ndim - 2))
    colour = torch.arange(channels) % COLOURS
    share = torch.bincount(colour).to(kernel.dtype)[colour]
    return kernel[:, colour] / share.view(1, -1, *[1] * (kernel.ndim - 2))


def _is_first(name: str) -> bool:
    return re.fullmatch(r"(encoder\.)?(stem\.conv1?|downsamplings\.0\.conv)\.weight", name) is not None


def _differ_in_channels(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    return len(theirs) == len(ours) and theirs[1] == COLOURS and (theirs[0], *theirs[2:]) == (ours[0], *ours[2:])


def _other_constants(
    found: Mapping[str, Stored], model: nn.Module, origin: Origin
) -> Iterator[tuple[str, Stored, Stored, float, float]]:
    """Gains whose normalisation here has another constant: name, gain, variance, their constant and ours."""
    if origin.eps is None or _has_keras_constant(model):
        return
    for name, module in model.named_modules():
        gain, variance = found.get(f"{name}.weight"), found.get(f"{name}.running_var")
        if isinstance(module, nn.BatchNorm2d) and gain and variance and module.eps != origin.eps:
            yield f"{name}.weight", gain, variance, origin.eps, module.eps


def _has_keras_constant(model: nn.Module) -> bool:
    """Whether torchvision gives this efficientnet our constant, as it does from b5 on and in version 2."""
    spec = getattr(getattr(model, "encoder", model), "spec", None)
    return isinstance(spec, EfficientNetSpec) and (spec.version == 2 or spec.width_coefficient > 1.5)


def _reshaped(stored: Stored, shape: tuple[int, ...]) -> Tensor:
    return stored.read().reshape(shape)


def _for_channels(stored: Stored, channels: int) -> Tensor:
    return for_channels(stored.read(), channels)


def _rescaled(gain: Stored, variance: Stored, theirs: float, ours: float) -> Tensor:
    """`gain * sqrt((v + ours) / (v + theirs))`, which makes up for the other constant."""
    v = variance.read().double()
    return (gain.read().double() * ((v + ours) / (v + theirs)).sqrt()).float()
