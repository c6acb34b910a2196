"""The rules by which a tensor may be left out: the file's is ignored, or the model's keeps its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.models.densenet import DenseNetBackbone
from DeepLabSegLib.models.efficientnet import EfficientNetBackbone
from DeepLabSegLib.models.resnet import ResNetBackbone
from DeepLabSegLib.weights.files import Stored
from DeepLabSegLib.weights.report import LoadReport
from DeepLabSegLib.weights.shapes import shape_text

__all__ = ["BEYOND_DEPTH", "account_for_rest", "not_built", "training_state"]

BEYOND_DEPTH = "levels beyond encoder_depth"


def training_state(name: str) -> str | None:
    """The rule for Keras variables that a segmentation doesn't need."""
    first, *_ = name.split("/", 1)
    if first == "optimizer":
        return "the optimizer's state"
    if first not in ("layers", "encoder", "_layer_checkpoint_dependencies") and re.search("metric|loss|tracker", first):
        return "metrics"
    if re.search(r"/seed(_generator)?/", name):
        return "states of random generators"
    return None


def not_built(name: str, encoder: nn.Module) -> str | None:
    """The rule for what an encoder of ours leaves out; `name` is without the encoder's prefix."""
    part, _, rest = name.partition(".")
    parts = getattr(encoder, part, None)
    index = rest.partition(".")[0]
    if isinstance(parts, nn.ModuleList) and index.isdigit():
        if int(index) >= len(parts):
            return BEYOND_DEPTH
        if part == "norms" and isinstance(parts[int(index)], nn.Identity):
            return "normalisations of levels that the decoder doesn't read"
    of_ours = isinstance(encoder, ResNetBackbone | DenseNetBackbone | EfficientNetBackbone)
    if part in ("post_norm", "top") and parts is None and of_ours:  # these follow the last level
        return BEYOND_DEPTH
    return None


def account_for_rest(
    rest: Mapping[str, Tensor], found: Mapping[str, Stored], origin: str, model: nn.Module, report: LoadReport
) -> list[str]:
    """Model tensors that the file lacks: kept by a named rule, or a problem each."""
    problems = []
    whole = isinstance(model, DeepLabV3Plus)
    backbone = whole and all(name.startswith("encoder.") for name in found)
    read = {2, model.spec.encoder_depth} if isinstance(model, DeepLabV3Plus) else set()
    for name, tensor in rest.items():
        norm = re.match(r"(?:encoder\.)?norms\.(\d+)\.", name)
        if backbone and not name.startswith("encoder."):
            rule = "the decoder: the file holds a backbone alone"
        elif norm and whole and int(norm[1]) + 1 not in read:
            rule = "normalisations of levels that the decoder doesn't read"
        elif norm and origin == "keras" and (backbone or not whole):
            rule = "normalisations that medicai builds only where a decoder reads them"
        elif norm and origin == "imagenet":
            rule = "normalisations of levels, which an encoder that classifies doesn't have"
        else:
            problems.append(f"  {name} {shape_text(tensor.shape)} is missing in the file")
            continue
        report.kept.setdefault(rule, []).append(name)
    return problems
