"""`load_weights`: a file's tensors into a model, each one loaded, ignored by a named rule, or an error."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from DeepLabSegLib.errors import InvalidInput, WeightsError
from DeepLabSegLib.models.convnext import ConvNeXtBackbone
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.models.densenet import DenseNetBackbone
from DeepLabSegLib.models.efficientnet import EfficientNetBackbone
from DeepLabSegLib.models.encoder import Encoder
from DeepLabSegLib.models.layers import ACTIVATIONS, is_counter
from DeepLabSegLib.models.resnet import ResNetBackbone
from DeepLabSegLib.weights import imagenet, medicai
from DeepLabSegLib.weights.adapt import adapted
from DeepLabSegLib.weights.files import Stored, WeightsFile, open_weights

__all__ = ["LoadReport", "check_memory", "listed", "load_weights", "match"]

SHOWN = 6  # problems that a message names; the rest are counted

TOLD_BY_NO_TENSOR = (
    "classifier_activation",
    "decoder_activation",
    "decoder_dilation_rates",
    "decoder_normalization",
)
"""Arguments of a `DeepLabV3Plus` without which the same tensors give other numbers."""

FAMILY_OF = {
    ResNetBackbone: "resnet",
    DenseNetBackbone: "densenet",
    EfficientNetBackbone: "efficientnet",
    ConvNeXtBackbone: "convnext",
}


@dataclass
class LoadReport:
    """What became of every tensor: of the file's (`loaded`, `ignored`) and of the model's (`loaded`, `kept`).

    `loaded` maps the model's names to the file's; `ignored`, `kept` and `changed` (tensors loaded with other numbers
    than the file's) map a rule to the names it covers. `differs` says what computes otherwise where the file is from.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"{len(names)} of the file ignored: {rule}" for rule, names in self.ignored.items()]
        lines += [f"{len(names)} of the model kept as they were: {rule}" for rule, names in self.kept.items()]
        lines += [f"{len(names)} changed: {rule}" for rule, names in self.changed.items()]
        lines += [f"differs: {text}" for text in self.differs]
        return "\n".join(lines)


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load the weights in `path` into `model`, a `DeepLabV3Plus` or one of the encoders.

    Read are medicai's `.weights.h5` and `.keras` files (with h5py), safetensors and torch state_dicts, also under a
    `state_dict` key, where a moving average beside it (`state_dict_ema`, `model_ema`) comes first as in timm, or with
    wrappers' prefixes; of a whole network or of a backbone alone, which then fills the encoder; and ImageNet's encoders
    in torchvision's and timm's names, into 2D encoders with any number of channels (see `weights.imagenet`; `inflate`
    carries them on to 3D), or, as MedicalNet's and MONAI's, of volumes into 3D encoders. Nothing in the file is
    executed. The model changes only if everything fits. A `.keras` file tells arguments that no tensor does: where the
    model has others, a warning names them, and so does the report.

    Raises
    ------
    WeightsError : the file can't be read safely; a tensor has no place, is missing or has another shape, and the
        message names it and both shapes; its values are no finite fractions; or the model has no memory for them.
    """
    check_memory(model)
    with open_weights(path) as file:
        found, report = match(file, model, str(path))
        wanted = model.state_dict()
        values = {}
        for name, stored in found.items():
            value = _checked(stored.read(), stored.name, str(path))
            values[name] = _as_ours(value, name, model, file.origin).to(wanted[name].dtype)
            report.loaded[name] = stored.name
        with torch.no_grad():
            for name, value in values.items():
                wanted[name].copy_(value)
        others = tuple(_other_arguments(file, model))
    report.differs += others
    for text in others:
        warnings.warn(f"{path}: {text}, so that it computes other numbers", stacklevel=2)
    return report


def match(file: WeightsFile, model: nn.Module, path: str) -> tuple[dict[str, Stored], LoadReport]:
    """The file's tensor for each of the model's names, before any is read; what is ignored or kept is in the report.

    Raises `WeightsError`, whose message starts with `path`, unless every tensor is accounted for.
    """
    report = LoadReport()
    _ignore(report, "tensors beside the network, outside of its wrapper", list(file.beside))
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not is_counter(name)}
    from_imagenet = imagenet.origin_of(file.tensors) if file.origin == "torch" else None
    if file.origin == "keras":
        found = _from_keras(file, model, report)
    elif from_imagenet is not None:
        found = _from_imagenet(file, from_imagenet, model, report)
    else:
        found = _from_torch(file, model, report)
    problems = _misfits(found, wanted, model, file.origin)
    rest = {name: tensor for name, tensor in wanted.items() if name not in found}
    problems += _account_for_rest(rest, found, file.origin if from_imagenet is None else "imagenet", model, report)
    if problems:
        what = ""
        if from_imagenet is not None and _dims(file) == 3:  # no row of the table is 3D
            what = f"holds a 3D {from_imagenet.family} of another origin, such as MedicalNet's or MONAI's, and "
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


def listed(problems: Sequence[str]) -> str:
    """The first problems, a line each, and how many more there are."""
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([*problems[:SHOWN], *more])


# --- names -----------------------------------------------------------------------------------------------------------


def _from_torch(file: WeightsFile, model: nn.Module, report: LoadReport) -> dict[str, Stored]:
    """Our own names, of the whole network or of the encoder alone."""
    tensors = dict(file.tensors)
    of_network = any(name.startswith("encoder.") for name in tensors)
    if isinstance(model, Encoder) and of_network:
        decoder = [name for name in tensors if not name.startswith("encoder.")]
        _ignore(report, "the decoder, for an encoder alone", decoder)
        tensors = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    elif isinstance(model, DeepLabV3Plus) and not of_network:
        tensors = {f"encoder.{name}": t for name, t in tensors.items()}
    encoder, prefix = _encoder_of(model)
    found = {}
    for name, stored in tensors.items():
        if is_counter(name):
            _ignore(report, "counts of batches seen", [stored.name])
        elif rule := _not_built(name.removeprefix(prefix), encoder):
            _ignore(report, rule, [stored.name])
        else:
            found[name] = stored
    return found


def _from_imagenet(
    file: WeightsFile, origin: imagenet.Origin, model: nn.Module, report: LoadReport
) -> dict[str, Stored]:
    """torchvision's and timm's names, by the origin's table."""
    encoder, prefix = _encoder_of(model)
    family = _family_of(encoder)
    if family != origin.family:
        raise WeightsError(
            f"the file holds {origin.name}, and the model's encoder is a {family or type(encoder).__name__}; "
            "build the model to match"
        )
    dims = _dims(file)
    if (dims, encoder.dims) == (2, 3):
        raise WeightsError(
            f"the file holds {origin.name}, which is 2D, and the model is 3D; load it into the 2D model "
            "and carry that over with weights.inflate"
        )
    if (dims, encoder.dims) == (3, 2):
        raise WeightsError(f"the file holds a 3D {family}, and the model is 2D; build the 3D model")
    found = {}
    for name, target in imagenet.renamed(origin, file.tensors).items():
        if target is None:
            _ignore(report, imagenet.CLASSIFIER, [name])
        elif is_counter(name):
            _ignore(report, "counts of batches seen", [name])
        elif rule := _not_built(target, encoder):
            _ignore(report, rule, [name])
        else:
            found[prefix + target] = file.tensors[name]
    found, changed = adapted(found, model, origin)
    report.changed.update(changed)
    report.differs = (*origin.differs, imagenet.VOLUMES) if dims == 3 else origin.differs
    return found


def _other_arguments(file: WeightsFile, model: nn.Module) -> Iterator[str]:
    """What a `.keras` file says of its network that no tensor tells, where `model` is made otherwise."""
    stated = (file.config or {}).get("config")
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


def _dims(file: WeightsFile) -> int:
    """Whether kernels in a file of torch's are for images or for volumes."""
    return 3 if any(len(stored.shape) == 5 for stored in file.tensors.values()) else 2


def _family_of(encoder: nn.Module) -> str | None:
    return next((name for kind, name in FAMILY_OF.items() if isinstance(encoder, kind)), None)


def _from_keras(file: WeightsFile, model: nn.Module, report: LoadReport) -> dict[str, Stored]:
    """medicai's layer names, by the table of the encoder's family."""
    encoder, prefix = _encoder_of(model)
    family = _family_of(encoder)
    if family is None:
        raise WeightsError(
            f"Keras weights can't be matched with the encoder {type(encoder).__name__}: tables exist for "
            f"{', '.join(medicai.ENCODERS)}; save its weights with torch instead"
        )
    table = medicai.ENCODERS[family]
    groups: dict[str, list[str]] = {}
    for name in file.tensors:
        group, vars_, _ = name.rpartition("/vars/")
        rule = _training_state(name)
        if rule:
            _ignore(report, rule, [name])
        elif not vars_:
            raise WeightsError(
                f"the file holds {name}, which is no layer's variable as Keras 3 writes it; save the model again, "
                'as "name.keras" or with save_weights("name.weights.h5")'
            )
        else:
            groups.setdefault(group, []).append(name)
    if not any(group in file.layers for group in groups):
        raise WeightsError(
            "the file has no layer names, as Keras before 3.7 wrote it; open it with medicai under a later Keras and "
            "save it again"
        )

    found: dict[str, Stored] = {}
    unknown = []
    for group, key in medicai.layer_keys(file.layers, groups).items():
        names = sorted(groups[group], key=lambda name: (len(name), name))
        module = medicai.rename(key, table)
        in_decoder = medicai.rename(key, medicai.DECODER)
        if module is not None:
            rule = _not_built(module, encoder)
            module = prefix + module
        elif in_decoder is not None:
            rule = "the decoder, for an encoder alone" if model is encoder else None
            module = in_decoder
        elif key in ("predictions", "head_norm"):
            rule = imagenet.CLASSIFIER
        else:
            unknown.append(key)
            continue
        if rule:
            _ignore(report, rule, names)
        else:
            _place(names, key, str(module), file, model, found, report)
    if unknown:
        raise WeightsError(_unknown_message(unknown, family))
    return found


def _place(
    names: list[str],
    key: str,
    module_name: str,
    file: WeightsFile,
    model: nn.Module,
    found: dict[str, Stored],
    report: LoadReport,
) -> None:
    """A layer's variables, in Keras's order, to our module's tensors."""
    targets = _tensors_of(module_name, model)
    for n, name in enumerate(names):
        stored = file.tensors[name]
        named = Stored(f"{name} ({key})", stored.shape, stored.read)
        if n == 2 and targets[-1:] == ["variance"]:
            _ignore(report, "counts of samples seen", [name])
            continue
        target = f"{module_name}.{targets[n]}".removesuffix(".") if n < len(targets) else f"{module_name}.<{n}>"
        if target in found:
            raise WeightsError(
                f"{found[target].name} and {named.name} both go to {target}; the file holds two networks"
            )
        found[target] = named


def _tensors_of(module_name: str, model: nn.Module) -> list[str]:
    """Names under `module_name` in the order in which Keras keeps them; `[""]` for a bare parameter."""
    try:
        module = model.get_submodule(module_name)
    except AttributeError:
        return [""] if module_name in dict(model.named_parameters()) else []
    names = [name for name in module.state_dict() if not is_counter(name)]
    order = ("weight", "bias", "running_mean", "running_var", "depthwise.weight", "pointwise.weight")
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _encoder_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The encoder in `model`, and the prefix of its names."""
    if isinstance(model, DeepLabV3Plus):
        return model.encoder, "encoder."
    if isinstance(model, Encoder):
        return model, ""
    raise WeightsError(
        f"weights load into a DeepLabV3Plus or one of its encoders, and this is a {type(model).__name__}; "
        "give the network inside, where it is wrapped"
    )


# --- rules -----------------------------------------------------------------------------------------------------------


def _ignore(report: LoadReport, rule: str, names: list[str]) -> None:
    if names:
        report.ignored.setdefault(rule, []).extend(names)


def _training_state(name: str) -> str | None:
    """The rule for Keras variables that a segmentation doesn't need."""
    first, *_ = name.split("/", 1)
    if first == "optimizer":
        return "the optimizer's state"
    if first not in ("layers", "encoder", "_layer_checkpoint_dependencies") and re.search("metric|loss|tracker", first):
        return "metrics"
    if re.search(r"/seed(_generator)?/", name):
        return "states of random generators"
    return None


def _not_built(name: str, encoder: nn.Module) -> str | None:
    """The rule for what an encoder of ours leaves out; `name` is without the encoder's prefix."""
    part, _, rest = name.partition(".")
    parts = getattr(encoder, part, None)
    index = rest.partition(".")[0]
    if isinstance(parts, nn.ModuleList) and index.isdigit():
        if int(index) >= len(parts) and len(parts):
            return "levels beyond encoder_depth"
        if part == "norms" and isinstance(parts[int(index)], nn.Identity):
            return "normalisations of levels that the decoder doesn't read"
    if part in ("post_norm", "top") and parts is None and _is_cut(encoder):
        return "levels beyond encoder_depth"
    return None


def _is_cut(encoder: nn.Module) -> bool:
    """Whether the encoder was built with fewer levels than its family has."""
    spec = getattr(encoder, "spec", None)
    stages: Mapping[type[nn.Module], int] = {
        ResNetBackbone: len(getattr(spec, "num_blocks", ())),
        DenseNetBackbone: len(getattr(spec, "blocks", ())),
        EfficientNetBackbone: len(getattr(spec, "blocks_args", ())),
    }
    total = next((count for kind, count in stages.items() if isinstance(encoder, kind)), 0)
    return total > 0 and len(encoder.stages) < total  # type: ignore[arg-type]


def _account_for_rest(
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
            problems.append(f"  {name} {_shape(tensor.shape)} is missing in the file")
            continue
        report.kept.setdefault(rule, []).append(name)
    return problems


# --- shapes ----------------------------------------------------------------------------------------------------------


def _misfits(found: Mapping[str, Stored], wanted: Mapping[str, Tensor], model: nn.Module, origin: str) -> list[str]:
    """A line per tensor of the file that has no place in the model or another shape."""
    problems = []
    for name, stored in found.items():
        if name not in wanted:
            problems.append(f"  {stored.name} {_shape(stored.shape)} has no place: the model has no {name}")
            continue
        shape = tuple(wanted[name].shape)
        here = (
            _our_shape(stored.shape, name, model) if stored.name.startswith(("layers/", "encoder/")) else stored.shape
        )
        if here != shape:
            problems.append(
                f"  {stored.name} has shape {_shape(stored.shape)}; {name} in the model has {_shape(shape)}"
            )
    return problems


def _permutation(name: str, model: nn.Module, ndim: int) -> tuple[int, ...]:
    """The axes of a Keras kernel in our order."""
    module = model.get_submodule(name.rpartition(".")[0]) if "." in name else model
    if name.endswith(".weight") and isinstance(module, nn.Linear):
        return (1, 0)
    if name.endswith(".weight") and isinstance(module, nn.Conv2d | nn.Conv3d):
        spatial = tuple(range(ndim - 2))
        # Keras's depthwise kernel in 2D is (h, w, channels, 1); all others, also in 3D, end with (in, out).
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels:
            return (ndim - 2, ndim - 1, *spatial)
        return (ndim - 1, ndim - 2, *spatial)
    return tuple(range(ndim))


def _our_shape(shape: tuple[int, ...], name: str, model: nn.Module) -> tuple[int, ...]:
    """The shape that `_as_ours` gives a Keras variable of `shape`."""
    if name.endswith((".grn.weight", ".grn.bias")) and set(shape[:-1]) == {1}:
        return shape[-1:]
    axes = _permutation(name, model, len(shape))
    return tuple(shape[axis] for axis in axes) if len(axes) == len(shape) else shape


def _as_ours(value: Tensor, name: str, model: nn.Module, origin: str) -> Tensor:
    """A file's tensor with our order of axes."""
    if origin != "keras":
        return value
    if name.endswith((".grn.weight", ".grn.bias")):
        return value.reshape(-1)
    return value.permute(_permutation(name, model, value.ndim))


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _unknown_message(unknown: list[str], family: str) -> str:
    """What a file with unknown layers probably is."""
    fits = [
        name
        for name, table in medicai.ENCODERS.items()
        if name != "senet"
        and all(medicai.rename(key, table) or medicai.rename(key, medicai.DECODER) for key in unknown)
    ]
    shown = ", ".join(repr(key) for key in unknown[:SHOWN]) + (" ..." if len(unknown) > SHOWN else "")
    if fits:
        return f"the file holds a {fits[0]}, and the model's encoder is a {family} ({shown}); build the model to match"
    return f"the file has layers that medicai's DeepLabV3Plus over a {family} doesn't have: {shown}"
