"""`load_weights`: a file's tensors into a model, each one loaded, ignored by a named rule, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from DeepLabSegLib.bundle import read_bundle
from DeepLabSegLib.catalog import is_described
from DeepLabSegLib.errors import BundleError, InvalidInput, WeightsError
from DeepLabSegLib.models.activations import ACTIVATIONS
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.models.layers import is_counter
from DeepLabSegLib.weights import imagenet
from DeepLabSegLib.weights.files import Stored, WeightsFile, open_weights
from DeepLabSegLib.weights.names import dims_of, from_imagenet, from_keras, from_torch
from DeepLabSegLib.weights.report import LoadReport, listed
from DeepLabSegLib.weights.rules import account_for_rest
from DeepLabSegLib.weights.shapes import as_ours, misfits

__all__ = ["check_memory", "load_silently", "load_weights", "match", "other_arguments"]

TOLD_BY_NO_TENSOR = (
    "classifier_activation",
    "decoder_activation",
    "decoder_dilation_rates",
    "decoder_normalization",
)
"""Arguments of a `DeepLabV3Plus` without which the same tensors give other numbers."""


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load the weights in `path` into `model`, a `DeepLabV3Plus` or one of the encoders.

    Read are medicai's `.weights.h5` and `.keras` files (with h5py), safetensors and torch state_dicts, also under a
    `state_dict` key, where a moving average beside it (`state_dict_ema`, `model_ema`, `ema`) comes first as in timm, or
    with prefixes of wrappers, around the network or its encoder; of a whole network or of a backbone alone, which then
    fills the encoder; and ImageNet's encoders in torchvision's and timm's names, into 2D encoders with any number of
    channels (see `weights.imagenet`; `inflate` carries them on to 3D), or, as MedicalNet's and MONAI's, of volumes into
    3D encoders. Nothing in the file is executed. The model changes only if everything fits. A `.keras` file, and
    a bundle's `model.json`, tell arguments that no tensor does: where the model has others, a warning names them, and
    so does the report.

    Raises
    ------
    WeightsError : the file can't be read safely; a tensor has no place, is missing or has another shape, and the
        message names it and both shapes; its values are no finite fractions; or the model has no memory for them.
    """
    report, others = load_silently(model, path)
    for text in others:
        warnings.warn(f"{path}: {text}, so that it computes other numbers", stacklevel=2)
    return report


def load_silently(model: nn.Module, path: str | Path) -> tuple[LoadReport, tuple[str, ...]]:
    """`load_weights` without its warnings, which come with the report."""
    check_memory(model)
    with open_weights(path) as file:
        found, report = match(file, model, str(path))
        wanted = model.state_dict()
        values = {}
        for name, stored in found.items():
            value = _checked(stored.read(), stored.name, str(path))
            values[name] = as_ours(value, name, model, file.origin)
            report.loaded[name] = stored.name
        with torch.no_grad():
            for name, value in values.items():
                wanted[name].copy_(value)
        others = tuple(other_arguments(_stated(file, path), model))
    report.differs += others
    return report, others


def match(file: WeightsFile, model: nn.Module, path: str) -> tuple[dict[str, Stored], LoadReport]:
    """The file's tensor for each of the model's names, before any is read; what is ignored or kept is in the report.

    Raises `WeightsError`, whose message starts with `path`, unless every tensor is accounted for.
    """
    report = LoadReport()
    report.ignore("tensors beside the network, outside of its wrapper", list(file.beside))
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not is_counter(name)}
    origin = imagenet.origin_of(file.tensors) if file.origin == "torch" else None
    if file.origin == "keras":
        found = from_keras(file, model, report)
    elif origin is not None:
        found = from_imagenet(file, origin, model, report)
    else:
        found = from_torch(file, model, report)
    problems = misfits(found, wanted, model, file.origin)
    rest = {name: tensor for name, tensor in wanted.items() if name not in found}
    problems += account_for_rest(rest, found, file.origin if origin is None else "imagenet", model, report)
    if problems:
        what = ""
        if origin is not None and dims_of(file) == 3:  # no row of the table is 3D
            what = f"holds a 3D {origin.family} of another origin, such as MedicalNet's or MONAI's, and "
        remedy = "weights.detect(path), or `deeplabseg info`, says which network it is of"
        if isinstance(model, DeepLabV3Plus):
            remedy += "; load_weights(model.encoder, path) takes its encoder alone"
        raise WeightsError(f"{path} {what}doesn't fit the model:\n{listed(problems)}\n{remedy}")
    return found, report


def check_memory(model: nn.Module) -> None:
    """Raise `WeightsError` where `model` was made on torch's device "meta", which keeps shapes and no numbers."""
    name = next((name for name, tensor in model.state_dict().items() if tensor.is_meta), None)
    if name is not None:
        raise WeightsError(
            f"{name} is on torch's device meta, which holds no numbers; call the model's to_empty(device='cpu') first"
        )


def _checked(value: Tensor, name: str, path: str) -> Tensor:
    """`value`, or `WeightsError` where its numbers can be no weights."""
    if not value.is_floating_point():
        raise WeightsError(f"{path}: {name} is of type {value.dtype}; weights are floating-point numbers")
    if not value.float().isfinite().all():
        raise WeightsError(
            f"{path}: {name} holds infinite numbers or NaN, as a training that went astray leaves them; "
            "give weights from before that"
        )
    return value


def _stated(file: WeightsFile, path: str | Path) -> object:
    """The network's arguments as a `.keras` file or a bundle states them; None where nothing does."""
    with suppress(BundleError):  # whoever wants the bundle is told of that
        return asdict(read_bundle(path).network) if is_described(path) else (file.config or {}).get("config")
    return None


def other_arguments(stated: object, model: nn.Module) -> Iterator[str]:
    """What `stated` says that no tensor tells, where `model` is made otherwise."""
    if not isinstance(model, DeepLabV3Plus) or not isinstance(stated, Mapping):
        return
    for name in filter(stated.__contains__, TOLD_BY_NO_TENSOR):
        try:
            theirs = getattr(replace(model.spec, **{name: stated[name]}), name)
        except InvalidInput:  # a function of somebody's own
            continue
        ours = getattr(model.spec, name)
        logits = name == "classifier_activation" and ours == "linear"
        same = ACTIVATIONS.get(theirs, theirs) == ACTIVATIONS.get(ours, ours)  # silu is swish
        if not same and not logits and {theirs, ours} != {"batch", "sync_batch"}:
            yield f"its network has {name} {theirs!r}, and the model {ours!r}"
