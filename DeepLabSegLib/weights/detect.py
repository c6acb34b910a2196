"""`detect`: which network a weights file belongs to, from names and shapes alone.

Names give the family and the number of blocks, which leave few candidates; each is then built without memory and
matched tensor by tensor, so that what is reported is what `load_weights` accepts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from DeepLabSegLib.errors import InvalidInput, WeightsError
from DeepLabSegLib.models.convnext import ConvNeXtSpec
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.models.densenet import DenseNetSpec
from DeepLabSegLib.models.efficientnet import EfficientNetSpec
from DeepLabSegLib.models.encoders import FAMILIES, make_encoder
from DeepLabSegLib.models.layers import is_counter
from DeepLabSegLib.models.resnet import ResNetSpec
from DeepLabSegLib.weights import imagenet, medicai
from DeepLabSegLib.weights.files import WeightsFile, open_weights
from DeepLabSegLib.weights.load import match
from DeepLabSegLib.weights.rules import BEYOND_DEPTH

__all__ = ["Detection", "detect", "detect_in"]

DEPTHS = (5, 4, 3)

SIGNS = {
    "convnext": r"downsamplings\.0\.conv",
    "densenet": r"stages\.0\.0\.norm1",
    "efficientnet": r"stages\.0\.0\.body\.project\.conv",
    "resnet": r"stages\.0\.0\.body\.conv1",
}
"""A module that only this family has, in our names."""

NORMS_BY_COUNT = {4: ("batch", "sync_batch"), 2: ("layer", "group"), 0: ("unit", "instance")}
"""Decoder normalisations by the number of their tensors; those of one row can't be told apart."""

FROM_CONFIG = (
    "decoder_dilation_rates",
    "decoder_normalization",
    "decoder_activation",
    "decoder_aspp_dropout",
    "classifier_activation",
    "head_upsample",
)
"""What no tensor tells; a `.keras` file's configuration does."""


@dataclass(frozen=True)
class Detection:
    """What a file holds.

    Attributes
    ----------
    origin : `"medicai"` or `"torch"`, whose names the file has.
    dims, in_channels : 2 or 3, and channels of the input.
    family : the encoder's family.
    names : encoder names that fit every tensor. Several are the same network up to the file's depth; none, where the
        encoder is no variant of the tables.
    encoder_depth : None for a backbone alone, and where no name fits.
    num_classes : None for a backbone alone.
    spec : the network to build for `load_weights`, with the reference's defaults for what is open; None for a backbone
        alone and where no name fits.
    open : what the file can't tell, in words; what is a field of `DeepLabSpec` begins with its name.
    """

    origin: str
    dims: int
    in_channels: int
    family: str
    names: tuple[str, ...]
    encoder_depth: int | None = None
    num_classes: int | None = None
    spec: DeepLabSpec | None = None
    open: tuple[str, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether exactly one encoder name fits every tensor."""
        return len(self.names) == 1

    def __str__(self) -> str:
        name = " or ".join(self.names) or f"no known variant of {self.family}"
        what = "backbone" if self.num_classes is None else f"DeepLabV3+, {self.num_classes} classes"
        if self.encoder_depth is not None:
            what += f", depth {self.encoder_depth}"
        lines = [f"{name}, {self.dims}D, {self.in_channels} channels in, {what} ({self.origin} names)"]
        return "\n".join([*lines, *(f"open: {text}" for text in self.open)])


def detect(path: str | Path) -> Detection:
    """The network that the weights in `path` belong to. Raises `WeightsError` where they are of no kind known here."""
    with open_weights(path) as file:
        return detect_in(file, str(path))


def detect_in(file: WeightsFile, path: str) -> Detection:
    """`detect` for a file that is open."""
    modules = _modules(file)
    encoder = {name.removeprefix("encoder."): shapes for name, shapes in modules.items() if _in_encoder(name)}
    family = next((key for key, sign in SIGNS.items() if any(re.match(sign, name) for name in encoder)), None)
    if family is None:
        raise WeightsError(
            f"{path}: its names are of no network known here; known are medicai's DeepLabV3Plus and DeepLabSegLib's, "
            f"over {', '.join(FAMILIES)}"
        )
    if family == "resnet" and any(".se." in name for name in encoder):
        family = "senet"
    first = _first_kernel(family, encoder, path)
    keras = file.origin == "keras"
    if len(first) not in (4, 5) or 0 in first:
        raise WeightsError(f"{path}: its first kernel has shape {first}; one for images or volumes has 4 or 5 axes")
    in_channels = first[-2] if keras else first[1]
    found = Detection("medicai" if keras else "torch", len(first) - 2, in_channels, family, ())
    blocks = _blocks(encoder)
    names = list(_fitting_names(family, blocks))
    try:
        if "head" not in modules:
            return _of_backbone(file, found, names)
        depths = [depth for depth in DEPTHS if _stages(family, depth) <= len(blocks)]
        return _of_network(file, found, [(name, depth) for depth in depths for name in names], modules, path)
    except RuntimeError as error:  # torch's, over sizes that no memory could hold
        raise WeightsError(f"{path}: its shapes make no network: {error}") from error


def _of_backbone(file: WeightsFile, found: Detection, names: list[str]) -> Detection:
    fitting: list[str] = []
    shape = (*(None,) * found.dims, found.in_channels)
    for depth in (*DEPTHS, 2, 1):
        for name in names:
            with torch.device("meta"):
                model = make_encoder(name, shape, depth)
            if _misplaced(file, model) is not None:
                fitting.append(name)
        if fitting:
            break
    asked = ("the decoder: the file holds a backbone alone", *_which(fitting, found.family))
    return replace(found, names=tuple(fitting), open=asked)


def _of_network(
    file: WeightsFile,
    found: Detection,
    candidates: list[tuple[str, int]],
    modules: Mapping[str, list[tuple[int, ...]]],
    path: str,
) -> Detection:
    options, doubts = _decoder_options(modules, file, path)
    options["input_shape"] = (*(None,) * found.dims, found.in_channels)
    known = _from_config(file.config, options)
    if len(known.get("decoder_dilation_rates", ())) != len(options["decoder_dilation_rates"]):
        known.pop("decoder_dilation_rates", None)  # a branch each, and the tensors have another number of branches
    matches: list[tuple[int, DeepLabSpec]] = []
    for name, depth in candidates:
        if file.origin == "torch" and matches and matches[-1][1].encoder_depth > depth:
            break  # torch's files hold the levels that were built, and no more
        try:
            spec = DeepLabSpec(**{"encoder_name": name, "encoder_depth": depth, **options, **known})
            with torch.device("meta"):
                model = DeepLabV3Plus.from_spec(spec)
        except InvalidInput:  # no such level
            continue
        misplaced = _misplaced(file, model)
        if misplaced is not None:
            matches.append((misplaced, spec))
    fewest = min((count for count, _ in matches), default=0)
    fitting = [spec for count, spec in matches if count == fewest]
    fitted = tuple(dict.fromkeys(str(spec.encoder_name) for spec in fitting))
    depths = sorted({spec.encoder_depth for spec in fitting})
    if len(depths) > 1:
        doubts["encoder_depth"] = f"encoder_depth ({' or '.join(map(str, depths))})"
    asked = [text for key, text in doubts.items() if key not in known] + _which(list(fitted), found.family)
    if not fitting:
        return replace(found, num_classes=options["num_classes"], open=tuple(asked))
    return replace(
        found,
        names=fitted,
        encoder_depth=fitting[0].encoder_depth,
        num_classes=fitting[0].num_classes,
        spec=fitting[0],
        open=tuple(asked),
    )


def _misplaced(file: WeightsFile, model: torch.nn.Module) -> int | None:
    """None unless the file fits; else how many encoder tensors lie where a network of this depth wouldn't have them.

    medicai writes all levels, and the layers that the network runs apart from those that it doesn't. Where two levels
    have equally many channels, as densenet121's P4 and P5, this alone tells the depth.
    """
    try:
        found, report = match(file, model, "")
    except WeightsError:
        return None
    run = [stored.name for name, stored in found.items() if name.startswith("encoder.") and "post_norm" not in name]
    beyond = report.ignored.get(BEYOND_DEPTH, [])
    return sum("encoder/" in name for name in run) + sum("encoder/" not in name for name in beyond)


def _which(names: list[str], family: str) -> list[str]:
    if not names:
        return [f"the variant: it is none of {', '.join(FAMILIES[family][1])}; build the {family} backbone by hand"]
    if len(names) > 1:
        return [f"encoder_name ({' or '.join(names)}: up to this depth they are one network)"]
    return []


# --- reading names and shapes ----------------------------------------------------------------------------------------


def _modules(file: WeightsFile) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the tensors by module, in our names; a kernel's axes stay in the file's order."""
    found: dict[str, list[tuple[int, ...]]] = {}
    if file.origin == "torch":
        of_imagenet = imagenet.origin_of(file.tensors)
        ours = imagenet.renamed(of_imagenet, file.tensors) if of_imagenet else {name: name for name in file.tensors}
        for name, stored in file.tensors.items():
            if ours[name] is not None and not is_counter(name):
                found.setdefault(str(ours[name]).rpartition(".")[0], []).append(stored.shape)
        return found
    groups: dict[str, list[tuple[int, ...]]] = {}
    for name, stored in file.tensors.items():
        group, is_variable, _ = name.rpartition("/vars/")
        if is_variable and group in file.layers and not name.startswith("optimizer"):
            groups.setdefault(group, []).append(stored.shape)
    keys = medicai.layer_keys(file.layers, groups)
    # Families share some names ("stem_conv"): the table that knows most is the file's.
    table = max(
        medicai.ENCODERS.values(), key=lambda t: sum(medicai.rename(key, t) is not None for key in keys.values())
    )
    for group, key in keys.items():
        renamed = medicai.rename(key, table) or medicai.rename(key, medicai.DECODER)
        if renamed is not None:
            found[renamed] = groups[group]
    return found


def _in_encoder(name: str) -> bool:
    return name.partition(".")[0] not in ("aspp", "refine", "skip", "fuse", "head")


def _blocks(encoder: Mapping[str, Any]) -> tuple[int, ...]:
    """Blocks of each stage that the names show."""
    counts: dict[int, int] = {}
    for name in encoder:
        at = re.match(r"stages\.(\d+)\.(\d+)\.", f"{name}.")
        if at:
            counts[int(at[1])] = max(counts.get(int(at[1]), 0), int(at[2]) + 1)
    return tuple(counts[n] for n in sorted(counts))


def _stages(family: str, depth: int) -> int:
    """The fewest stages that an encoder of `depth` levels has."""
    if family == "convnext":
        return min(depth, 4)
    return depth - 1  # an efficientnet has more, as its later stages keep their size


def _fitting_names(family: str, blocks: tuple[int, ...]) -> Iterator[str]:
    """Variants whose first stages have as many blocks."""
    for name, spec in FAMILIES[family][1].items():
        if _stage_blocks(spec)[: len(blocks)] == blocks:
            yield name


def _stage_blocks(spec: object) -> tuple[int, ...]:
    """Blocks of each stage of a variant."""
    match spec:
        case ResNetSpec():
            return tuple(spec.num_blocks)
        case DenseNetSpec():
            return tuple(spec.blocks)
        case ConvNeXtSpec():
            return tuple(spec.depths)
        case EfficientNetSpec():
            return tuple(row.repeats for row in spec.rows)
    return ()


def _first_kernel(family: str, encoder: Mapping[str, list[tuple[int, ...]]], path: str) -> tuple[int, ...]:
    names = ("downsamplings.0.conv",) if family == "convnext" else ("stem.conv", "stem.conv1", "downsamplings.0.conv")
    shapes = next((encoder[name] for name in names if name in encoder), [])
    kernel = max(shapes, key=len, default=())
    if not kernel:
        raise WeightsError(f"{path}: the encoder's first convolution is missing")
    return kernel


def _decoder_options(
    modules: Mapping[str, list[tuple[int, ...]]], file: WeightsFile, path: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments of the decoder that shapes tell, and what they leave open by argument."""
    keras = file.origin == "keras"

    def kernel(name: str) -> tuple[int, int]:
        """Channels in and out."""
        shape = max(modules.get(name, []), key=len, default=())
        if len(shape) < 3:
            raise WeightsError(f"{path}: the decoder's {name} is missing")
        return (shape[-2], shape[-1]) if keras else (shape[1], shape[0])

    branches = {int(at[1]) for name in modules if (at := re.match(r"aspp\.branches\.(\d+)\.", f"{name}."))}
    rates = tuple(12 * n for n in range(1, max(len(branches), 2)))
    width, classes = kernel("head")
    skip_width = kernel("skip.conv")[1]
    norms: tuple[str, ...] = NORMS_BY_COUNT.get(len(modules.get("refine.norm", [])), ("batch",))
    if width % 32 or skip_width % 32:
        norms = tuple(name for name in norms if name != "group")
    # Keras in 2D keeps both kernels of a separable convolution in one layer.
    separable = any(name.startswith("aspp.branches.1.conv.") for name in modules)
    separable |= keras and len(modules.get("aspp.branches.1.conv", [])) == 2
    options: dict[str, Any] = {
        "num_classes": classes,
        "decoder_channels": width,
        "projection_filters": skip_width,
        "decoder_aspp_separable": separable,
        "decoder_dilation_rates": rates,
        "decoder_normalization": norms[0],
    }
    asked = {
        "decoder_dilation_rates": f"decoder_dilation_rates ({len(rates)} of them; assumed {rates})",
        "decoder_activation": "decoder_activation (assumed relu)",
        "classifier_activation": "classifier_activation (assumed sigmoid)",
        "head_upsample": "head_upsample (assumed: to the input's size)",
    }
    if norms[0] != "batch" and len(norms) > 1:
        asked["decoder_normalization"] = f"decoder_normalization ({' or '.join(norms)}; assumed {norms[0]})"
    return options, asked


def _from_config(config: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a `.keras` file states and no tensor tells, as they go with `options`, those that tensors tell."""
    inner = (config or {}).get("config")
    if not isinstance(inner, Mapping):
        return {}
    found: dict[str, Any] = {}
    for key in FROM_CONFIG:
        with suppress(InvalidInput, KeyError):  # not stated, or a function of somebody's own
            found[key] = getattr(DeepLabSpec(None, **{**options, key: inner[key]}), key)
    return found
