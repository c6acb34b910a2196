"""The same network in the reference and here: built, given random weights, carried over, compared.

Needs `medicai`, which runs on Keras over torch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import torch
from keras import layers as keras_layers
from keras.src.saving import saving_lib
from medicai.models import DeepLabV3Plus as ReferenceNetwork

from DeepLabSegLib.models import DeepLabV3Plus
from DeepLabSegLib.weights import load_weights
from DeepLabSegLib.weights.files import Stored, WeightsFile
from DeepLabSegLib.weights.load import match

# Keras goes through a network layer by layer, each a call deeper; efficientnet_l2 has more than Python's 1000.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 10_000))

MEASURED, COMPARED = 6, 2
"""Images that statistics are measured on, and those of them that are compared."""

READ_ALWAYS = 2  # the level of the decoder's skip connection


@dataclass(frozen=True)
class Case:
    """A network and an input size."""

    name: str
    size: tuple[int, ...]
    channels: int = 1
    depth: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(*size, channels)`."""
        return (*self.size, self.channels)

    @property
    def arguments(self) -> dict[str, Any]:
        """What both networks are built with; the head is left linear, so that outputs are logits."""
        fixed = {"num_classes": 3, "classifier_activation": "linear", "head_upsample": 4}
        return {**fixed, "input_shape": self.shape, "encoder_depth": self.depth, **self.options}


def compare(case: Case, seed: int = 0) -> dict[str, float]:
    """`{"P1": ..., "logits": ...}`: max|ours - theirs| / max|theirs| of every level and of the logits."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    theirs = ReferenceNetwork(encoder_name=case.name, **case.arguments)
    images = pictures(case.shape, seed)
    randomize(theirs, images, seed)
    image = images[:COMPARED]
    outputs = [*levels(theirs, case), theirs.output]
    with torch.no_grad():
        expected = [y.movedim(-1, 1) for y in keras.Model(theirs.inputs, outputs)([image], training=False)]
    ours = carried_over(theirs, DeepLabV3Plus(encoder_name=case.name, **case.arguments))
    del theirs
    with torch.no_grad():
        x = torch.from_numpy(image).movedim(-1, 1)
        got = [*ours.encoder(x), ours(x)]
    names = [*(f"P{n}" for n in range(1, case.depth + 1)), "logits"]
    return {name: difference(a, b) for name, a, b in zip(names, got, expected, strict=True)}


def compare_backbones(theirs: keras.Model, ours: torch.nn.Module, seed: int = 0) -> list[float]:
    """The differences of the levels of two backbones built alike, for the weights of `theirs`."""
    images = pictures(theirs.input_shape[1:], seed)
    randomize(theirs, images, seed)
    pyramid = keras.Model(theirs.inputs, list(theirs.pyramid_outputs.values()))
    with torch.no_grad():
        expected = [y.movedim(-1, 1) for y in pyramid([images[:COMPARED]], training=False)]
        got = carried_over(theirs, ours)(torch.from_numpy(images[:COMPARED]).movedim(-1, 1))
    return [difference(a, b) for a, b in zip(got, expected, strict=True)]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|ours - theirs| / max|theirs|; infinite where shapes differ or theirs says nothing."""
    largest = theirs.abs().max().item()
    if ours.shape != theirs.shape or not np.isfinite(largest) or largest < 1e-6 or theirs.std() < 1e-3 * largest:
        return float("inf")
    return (ours - theirs).abs().max().item() / largest


def carried_over(theirs: keras.Model, ours: torch.nn.Module) -> torch.nn.Module:
    """`ours` with the weights of `theirs`, through a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.weights.h5"
        theirs.save_weights(path)
        load_weights(ours, path)
    return ours.eval()


def levels(theirs: keras.Model, case: Case) -> list[Any]:
    """The reference's pyramid up to `case.depth`.

    ConvNeXt's levels that the decoder doesn't read are taken before their normalisation, which is then no part of the
    network or its file.
    """
    found = []
    for n in range(1, case.depth + 1):
        level = theirs.encoder.pyramid_outputs[f"P{n}"]
        if case.name.startswith("convnext") and n not in (READ_ALWAYS, case.depth):
            level = level._keras_history.operation.input
        found.append(level)
    return found


def pictures(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """`(MEASURED, *size, channels)`: noise over smooth fields, so that images differ in more than their noise.

    From noise alone deep levels are nearly equal for all images, and normalising by such differences would measure
    rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    *size, channels = shape
    noise = torch.randn(MEASURED, channels, *size, generator=generator)
    coarse = torch.randn(MEASURED, channels, *[3] * len(size), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(size), mode=mode)
    level = torch.randn(MEASURED, channels, *[1] * len(size), generator=generator)
    return (0.5 * noise + 1.5 * smooth + level).movedim(1, -1).contiguous().numpy()


def randomize(model: keras.Model, images: np.ndarray, seed: int) -> None:
    """Draw every weight, bias and statistic at random, such that activations neither vanish nor explode.

    Running statistics are first measured on `images`, then disturbed; variances stay positive.
    """
    rng = np.random.default_rng(seed + 1)
    norms = []
    for layer in model._flatten_layers():
        if isinstance(layer, keras_layers.BatchNormalization):
            norms.append(layer)
            layer.gamma.assign(rng.uniform(0.6, 1.4, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
            continue
        for variable in layer._trainable_variables:
            shape = tuple(variable.shape)
            if len(shape) > 1 and min(shape) > 0 and variable.name not in ("gamma", "beta"):
                depthwise = shape[-1] == 1 or "depthwise" in variable.path
                fan_in = np.prod(shape[:-2]) if depthwise else np.prod(shape[:-1])
                variable.assign(rng.normal(0, 1.2 / np.sqrt(fan_in), shape))
            elif variable.name in ("gamma", "variable") or "layer_scale" in variable.path:
                variable.assign(rng.normal(0.6, 0.2, shape))
            else:
                variable.assign(rng.normal(0, 0.3, shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    with torch.no_grad():
        model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = (np.asarray(v.value.detach()) for v in (norm.moving_mean, norm.moving_variance))
        spread = np.sqrt(variance.mean() + 0.3 * np.square(mean).mean() + 1e-3)
        norm.moving_mean.assign(mean + rng.normal(0, 0.2, mean.shape) * spread)
        norm.moving_variance.assign(variance * rng.uniform(0.6, 1.4, mean.shape) + 0.3 * spread**2)


# --- networks too large to be filled ---------------------------------------------------------------------------------


def check_names(case: Case) -> tuple[int, int]:
    """Numbers of both networks (parameters and running statistics), all of whose names and shapes match.

    Nothing is allocated. Raises `WeightsError` where a tensor has no counterpart of its shape.
    """
    keras.utils.clear_session()
    with keras.device("meta"):
        theirs = ReferenceNetwork(encoder_name=case.name, **case.arguments)
    with torch.device("meta"):
        ours = DeepLabV3Plus(encoder_name=case.name, **case.arguments)
    found, _ = match(described(theirs), ours, case.name)
    return (
        sum(t.numel() for name, t in ours.state_dict().items() if name in found),
        theirs.count_params(),
    )


def described(model: keras.Model) -> WeightsFile:
    """What `model.save_weights` would write, without the numbers."""
    tensors: dict[str, Stored] = {}
    names: dict[str, str] = {}

    saving_lib._save_state(
        model,
        weights_store=DescribingStore(tensors, names),
        assets_store=None,
        inner_path="",
        visited_saveables=set(),
    )
    return WeightsFile("keras", tensors, names)


class DescribingStore(saving_lib.H5IOStore):
    """A store that notes names and shapes in place of writing a file."""

    def __init__(self, tensors: dict[str, Stored], names: dict[str, str]) -> None:
        self.tensors = tensors
        self.names = names

    def make(self, path: str, metadata: dict[str, str] | None = None) -> Any:
        path = path.lstrip("/")
        if metadata:
            self.names[path] = metadata["name"]
        return Group(path, self.tensors)

    def __bool__(self) -> bool:
        return True


class Group(dict):
    """A layer's variables, of which only shapes are kept."""

    def __init__(self, path: str, tensors: dict[str, Stored]) -> None:
        super().__init__()
        self.path = path
        self.tensors = tensors

    def __setitem__(self, key: str, value: Any) -> None:
        name = f"{self.path}/vars/{key}"
        self.tensors[name] = Stored(name, tuple(value.shape), lambda: torch.empty(0))
