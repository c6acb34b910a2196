"""The catalogue of encoders: families, names and how to make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from DeepLabSegLib.checks import check_choice, known_name
from DeepLabSegLib.models.convnext import CONVNEXTS, ConvNeXtBackbone
from DeepLabSegLib.models.densenet import DENSENETS, DenseNetBackbone
from DeepLabSegLib.models.efficientnet import EFFICIENTNETS, EfficientNetBackbone
from DeepLabSegLib.models.encoder import Encoder
from DeepLabSegLib.models.resnet import RESNETS, SENETS, ResNetBackbone

__all__ = ["ENCODERS", "FAMILIES", "list_encoders", "make_encoder"]

FAMILIES: dict[str, tuple[type[Any], Mapping[str, Any]]] = {
    "resnet": (ResNetBackbone, RESNETS),
    "densenet": (DenseNetBackbone, DENSENETS),
    "efficientnet": (EfficientNetBackbone, EFFICIENTNETS),
    "convnext": (ConvNeXtBackbone, CONVNEXTS),
    "senet": (ResNetBackbone, SENETS),
}
"""Family -> the class that builds it and its variants, one row (a frozen spec) each."""

ENCODERS = {name: family for family, (_, rows) in FAMILIES.items() for name in rows}
"""Encoder name -> family."""


def make_encoder(name: str, input_shape: Sequence[int | None], encoder_depth: int = 5) -> Encoder:
    """The encoder `name` (any case) for `(*sizes, channels)`, built up to `P(encoder_depth)`.

    ConvNeXt ends with P4. Raises `InvalidInput` for a name that `list_encoders` doesn't list.
    """
    key = known_name("encoder_name", name, ENCODERS)
    build, rows = FAMILIES[ENCODERS[key]]
    return build(input_shape, encoder_depth=encoder_depth, **vars(rows[key]))


def list_encoders(family: str | None = None) -> list[str]:
    """Print the encoder names by family, and return them; `family` restricts both."""
    if family is not None:
        check_choice("family", family, FAMILIES)
    names = [name for name, its_family in ENCODERS.items() if family in (None, its_family)]
    for key in FAMILIES:
        if family in (None, key):
            print(f"{key}: {', '.join(name for name in names if ENCODERS[name] == key)}")  # noqa: T201 its purpose
    return names
