"""Encoders trained on ImageNet, in torchvision's and timm's names, and where each tensor is in our 2D encoders.

A row of `ORIGINS` per origin and family: the names that only it has, the table of its names, what it has for
classifying, what makes it another network than any of ours, and what differs though it is loaded. Checked against
torchvision 0.29.2 and timm 1.0.31.

Loaded are: resnet18 to resnet152, resnext50_32x4d and resnext101_32x8d; timm's resnet50d as resnet50_vd and its
resnetv2_50, 101, 152 as resnet50_v2 and so on; densenet121, 169, 201; efficientnet b0 to b8, l2 and version 2;
convnext and its version 2. The same numbers come out of all of them, with two exceptions:

- Strided layers of densenet and efficientnet pad as Keras does, an odd rest at the end. timm's `tf_efficientnet` do
  too; torchvision's and timm's others pad both ends alike, which is the same where a size is odd, and a shift by half a
  voxel of that layer where it is even.
- The constant in the batch normalisation of efficientnet is 1e-3 here and in timm's `tf_efficientnet`, and 1e-5 in
  timm's others; the names don't tell them apart, so the tensors are taken as they are. Where the names tell
  (densenet and torchvision's efficientnet), gains are rescaled so that the other constant gives the same numbers.

Variants that differ from one of ours in layers without tensors (timm's resnetaa and resnetblur) can't be told from it,
and load as it. Refused are squeeze-and-excitation resnets: the gate follows the block's last normalisation there, and
precedes it in the reference and here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.weights.medicai import Table, rename

__all__ = ["CLASSIFIER", "VOLUMES", "Origin", "origin_of", "renamed"]

CLASSIFIER = "the classifier of an encoder that was trained to classify"

RESNET: Table = (
    (r"(conv|bn)1", "stem.{0}1"),
    (r"layer(\d+)\.(\d+)\.(conv|bn)([123])", "stages.{0-}.{1}.body.{2}{3}"),
    (r"layer(\d+)\.(\d+)\.downsample\.([01])", "stages.{0-}.{1}.shortcut.{2n}"),
)

RESNET_VD: Table = (
    (r"conv1\.0", "stem.conv1"),
    (r"conv1\.1", "stem.norm1"),
    (r"conv1\.3", "stem.conv2"),
    (r"conv1\.4", "stem.norm2"),
    (r"conv1\.6", "stem.conv3"),
    (r"bn1", "stem.norm3"),
    (r"layer(\d+)\.(\d+)\.(conv|bn)([123])", "stages.{0-}.{1}.body.{2}{3}"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", "stages.{0-}.{1}.shortcut.conv"),
    (r"layer(\d+)\.(\d+)\.downsample\.2", "stages.{0-}.{1}.shortcut.norm"),
)

RESNET_V2: Table = (
    (r"stem\.conv", "stem.conv1"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm1", "stages.{0}.{1}.pre_norm"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm([23])", "stages.{0}.{1}.body.norm{2-}"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv([123])", "stages.{0}.{1}.body.conv{2}"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv", "stages.{0}.{1}.shortcut.conv"),
    (r"norm", "post_norm"),
)

DENSENET: Table = (
    (r"features\.(conv|norm)0", "stem.{0}"),
    # torchvision's own files write norm.1 for norm1
    (r"features\.denseblock(\d+)\.denselayer(\d+)\.(conv|norm)\.?([12])", "stages.{0-}.{1-}.{2}{3}"),
    (r"features\.transition(\d+)\.(conv|norm)", "transitions.{0-}.{1}"),
    (r"features\.norm5", "post_norm"),
)

# A block's kind stands before its names: what "bn1" or "block.0" is depends on it.
EFFICIENTNET_TIMM: Table = (
    (r"conv_stem", "stem.conv"),
    (r"bn1", "stem.norm"),
    (r"\w+ blocks\.(\d+)\.(\d+)\.se\.conv_(reduce|expand)", "stages.{0}.{1}.body.se.{2}"),
    (r"wide blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_pw|1)", "stages.{0}.{1}.body.expand.{2}"),
    (r"wide blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_dw|2)", "stages.{0}.{1}.body.depthwise.{2}"),
    (r"wide blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_pwl|3)", "stages.{0}.{1}.body.project.{2}"),
    (r"narrow blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_dw|1)", "stages.{0}.{1}.body.depthwise.{2}"),
    (r"narrow blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_pw|2)", "stages.{0}.{1}.body.project.{2}"),
    (r"fused_wide blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_exp|1)", "stages.{0}.{1}.body.expand.{2}"),
    (r"fused_wide blocks\.(\d+)\.(\d+)\.(conv|bn)(?:_pwl|2)", "stages.{0}.{1}.body.project.{2}"),
    (r"fused blocks\.(\d+)\.(\d+)\.(conv|bn)1?", "stages.{0}.{1}.body.project.{2}"),
    (r"conv_head", "top.conv"),
    (r"bn2", "top.norm"),
)

EFFICIENTNET_TORCHVISION: Table = (
    (r"features\.0\.([01])", "stem.{0n}"),
    (r"wide features\.(\d+)\.(\d+)\.block\.0\.([01])", "stages.{0-}.{1}.body.expand.{2n}"),
    (r"wide features\.(\d+)\.(\d+)\.block\.1\.([01])", "stages.{0-}.{1}.body.depthwise.{2n}"),
    (r"wide features\.(\d+)\.(\d+)\.block\.3\.([01])", "stages.{0-}.{1}.body.project.{2n}"),
    (r"narrow features\.(\d+)\.(\d+)\.block\.0\.([01])", "stages.{0-}.{1}.body.depthwise.{2n}"),
    (r"narrow features\.(\d+)\.(\d+)\.block\.2\.([01])", "stages.{0-}.{1}.body.project.{2n}"),
    (r"fused_wide features\.(\d+)\.(\d+)\.block\.0\.([01])", "stages.{0-}.{1}.body.expand.{2n}"),
    (r"fused_wide features\.(\d+)\.(\d+)\.block\.1\.([01])", "stages.{0-}.{1}.body.project.{2n}"),
    (r"fused features\.(\d+)\.(\d+)\.block\.0\.([01])", "stages.{0-}.{1}.body.project.{2n}"),
    (r"\w+ features\.(\d+)\.(\d+)\.block\.[12]\.fc1", "stages.{0-}.{1}.body.se.reduce"),
    (r"\w+ features\.(\d+)\.(\d+)\.block\.[12]\.fc2", "stages.{0-}.{1}.body.se.expand"),
    (r"features\.[1-9]\.([01])", "top.{0n}"),
)

CONVNEXT_TIMM: Table = (
    (r"stem\.([01])", "downsamplings.0.{0n}"),
    (r"stages\.(\d+)\.downsample\.0", "downsamplings.{0}.norm"),
    (r"stages\.(\d+)\.downsample\.1", "downsamplings.{0}.conv"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw", "stages.{0}.{1}.depthwise"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm", "stages.{0}.{1}.norm"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc1", "stages.{0}.{1}.expand"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.grn", "stages.{0}.{1}.grn"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2", "stages.{0}.{1}.contract"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", "stages.{0}.{1}.scale"),
)

# Odd parts are stages, even ones the layers between them.
CONVNEXT_TORCHVISION: Table = (
    (r"features\.0\.([01])", "downsamplings.0.{0n}"),
    (r"features\.([246])\.0", "downsamplings.{0h}.norm"),
    (r"features\.([246])\.1", "downsamplings.{0h}.conv"),
    (r"features\.([1357])\.(\d+)\.block\.0", "stages.{0h}.{1}.depthwise"),
    (r"features\.([1357])\.(\d+)\.block\.2", "stages.{0h}.{1}.norm"),
    (r"features\.([1357])\.(\d+)\.block\.3", "stages.{0h}.{1}.expand"),
    (r"features\.([1357])\.(\d+)\.block\.5", "stages.{0h}.{1}.contract"),
    (r"features\.([1357])\.(\d+)\.layer_scale", "stages.{0h}.{1}.scale"),
)

GATED = (
    r"layer\d+\.\d+\.(?:se|se_module)\..*",
    "its squeeze-and-excitation follows each block's last normalisation, and precedes it in the seresnets here",
)
STRIDED = (
    r"layer\d+\.\d+\.downsample\.0\..*",
    "its shortcuts convolve with a stride, and the vd networks here pool first",
)
EVOLVED = (
    r"stem\.(?:conv\d|norm).*",
    "its stem has several convolutions or a normalisation, and the pre-activation networks here begin with one alone",
)
PADDING = (
    "strided layers pad as Keras's, an odd rest at the end; theirs, except timm's tf_ ones, pad both ends alike, which "
    "differs where a size is even"
)
EPSILON = "batch normalisation adds 1e-3 to variances, as timm's tf_ networks; timm's others add 1e-5"
VOLUMES = "3D encoders of these names have strides and dilations of their own, which no tensor tells; ours are taken"
LEVEL_NORMS = "the last normalisation belongs to the classifier there; here each level has its own, kept as it was"


@dataclass(frozen=True)
class Origin:
    """Whose names a file has, for one family of encoders.

    Attributes
    ----------
    name : for people.
    family : the family of `models.encoders.FAMILIES`.
    sign : a name that only this origin has.
    table : its modules and ours.
    classifier : names that aren't loaded.
    refused : names that make it another network than any of ours, each with the difference in words.
    differs : what gives other numbers though it is loaded.
    eps : its constant in batch normalisation where names tell it; None leaves gains as they are.
    """

    name: str
    family: str
    sign: str
    table: Table
    classifier: str
    refused: tuple[tuple[str, str], ...] = ()
    differs: tuple[str, ...] = ()
    eps: float | None = None


ORIGINS = (
    Origin(
        "torchvision's or timm's resnet",
        "resnet",
        r"(layer0\.)?conv1\.weight",
        RESNET,
        r"fc\..*|last_linear\..*",
        (GATED,),
    ),
    Origin("timm's resnet with a deep stem", "resnet", r"conv1\.0\.weight", RESNET_VD, r"fc\..*", (GATED, STRIDED)),
    Origin(
        "timm's resnetv2",
        "resnet",
        r"stages\.0\.blocks\.0\.conv1\.weight",
        RESNET_V2,
        r"head\..*",
        (EVOLVED,),
    ),
    Origin(
        "torchvision's or timm's densenet",
        "densenet",
        r"features\.denseblock1\.denselayer1\.norm\.?1\.weight",
        DENSENET,
        r"classifier\..*",
        differs=(PADDING,),
        eps=1e-5,
    ),
    Origin(
        "timm's efficientnet",
        "efficientnet",
        r"conv_stem\.weight",
        EFFICIENTNET_TIMM,
        r"classifier\..*",
        differs=(PADDING, EPSILON),
    ),
    Origin(
        "torchvision's efficientnet",
        "efficientnet",
        r"features\.1\.0\.block\.0\.0\.weight",
        EFFICIENTNET_TORCHVISION,
        r"classifier\..*",
        differs=(PADDING,),
        eps=1e-5,
    ),
    Origin(
        "timm's convnext",
        "convnext",
        r"stages\.0\.blocks\.0\.conv_dw\.weight",
        CONVNEXT_TIMM,
        r"head\..*",
        differs=(LEVEL_NORMS,),
    ),
    Origin(
        "torchvision's convnext",
        "convnext",
        r"features\.1\.0\.block\.0\.weight",
        CONVNEXT_TORCHVISION,
        r"classifier\..*",
        differs=(LEVEL_NORMS,),
    ),
)


def origin_of(names: Iterable[str]) -> Origin | None:
    """The row whose sign `names` show, or None: they are nobody's listed here."""
    listed = list(names)
    return next((o for o in ORIGINS if any(re.fullmatch(o.sign, name) for name in listed)), None)


def renamed(origin: Origin, names: Iterable[str]) -> dict[str, str | None]:
    """Our name for each of the file's; None for the classifier.

    Raises `WeightsError` where names are of another network than any of ours, or of none that the table knows.
    """
    names = list(names)
    for pattern, why in origin.refused:
        found = next((name for name in names if re.fullmatch(pattern, name)), None)
        if found is not None:
            raise WeightsError(f"the file has {origin.name} with {found!r}, which is another network: {why}")
    kinds = _kinds(names)
    ours: dict[str, str | None] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        kind = kinds.get(name, "")
        target = rename(name, origin.table)
        within = rename(f"{kind} {module}".strip(), origin.table)
        if target is None and within is not None:
            target = f"{within}.{leaf}"
        if target is None and not re.fullmatch(origin.classifier, name):
            raise WeightsError(
                f"the file has {origin.name}, and {name!r} is no layer of it that an encoder here has; "
                "give a variant that one of list_encoders() names"
            )
        ours[name] = target
    return ours


BLOCK = re.compile(r"(blocks\.\d+\.\d+|features\.\d+\.\d+)\.(?:block\.)?([^.]+)")
"""A block of an efficientnet, and one of its layers."""

KINDS = {
    frozenset({"0", "1", "2", "3"}): "wide",
    frozenset({"0", "1", "2"}): "narrow",
    frozenset({"0", "1"}): "fused_wide",
    frozenset({"0"}): "fused",
    "conv_pwl": "wide",
    "conv_dw": "narrow",
    "conv_exp": "fused_wide",
    "conv": "fused",
}
"""Kinds of blocks by all their layers' numbers (torchvision), or by one layer that later rows don't have (timm)."""


def _kinds(names: Iterable[str]) -> dict[str, str]:
    """The kind of the block that a name is in, for all that are in one."""
    places = {name: found for name in names if (found := BLOCK.match(name))}
    layers: dict[str, set[str]] = {}
    for found in places.values():
        layers.setdefault(found[1], set()).add(found[2])
    kinds = {}
    for block, parts in layers.items():
        # An expanding fused block has conv_pwl as well, and is told by conv_exp.
        single = next((key for key in ("conv_exp", "conv_pwl", "conv_dw", "conv") if key in parts), "")
        kinds[block] = KINDS.get(frozenset(parts), KINDS.get(single, ""))
    return {name: kinds[found[1]] for name, found in places.items()}
