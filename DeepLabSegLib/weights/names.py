"""Names of a file's tensors as the model's, by where the file is from."""

from __future__ import annotations

from torch import nn

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.models.convnext import ConvNeXtBackbone
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.models.densenet import DenseNetBackbone
from DeepLabSegLib.models.efficientnet import EfficientNetBackbone
from DeepLabSegLib.models.encoder import Encoder
from DeepLabSegLib.models.layers import is_counter
from DeepLabSegLib.models.resnet import ResNetBackbone
from DeepLabSegLib.weights import imagenet, medicai
from DeepLabSegLib.weights.adapt import adapted
from DeepLabSegLib.weights.files import Stored, WeightsFile
from DeepLabSegLib.weights.report import SHOWN, LoadReport
from DeepLabSegLib.weights.rules import not_built, training_state

__all__ = ["dims_of", "from_imagenet", "from_keras", "from_torch"]

FAMILY_OF = {
    ResNetBackbone: "resnet",
    DenseNetBackbone: "densenet",
    EfficientNetBackbone: "efficientnet",
    ConvNeXtBackbone: "convnext",
}


def from_torch(file: WeightsFile, model: nn.Module, report: LoadReport) -> dict[str, Stored]:
    """Our own names, of the whole network or of the encoder alone."""
    tensors = dict(file.tensors)
    written = {stored.name: stored for stored in tensors.values()}
    wanted = {name for name in model.state_dict() if not is_counter(name)}
    if {name for name in written if not is_counter(name)} == wanted:
        tensors = written  # the model's encoder is wrapped as the file's
    of_network = any(name.startswith("encoder.") for name in tensors)
    if isinstance(model, Encoder) and of_network:
        decoder = [name for name in tensors if not name.startswith("encoder.")]
        report.ignore("the decoder, for an encoder alone", decoder)
        tensors = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    elif isinstance(model, DeepLabV3Plus) and not of_network:
        tensors = {f"encoder.{name}": t for name, t in tensors.items()}
    encoder, prefix = _encoder_of(model)
    found = {}
    for name, stored in tensors.items():
        if is_counter(name):
            report.ignore("counts of batches seen", [stored.name])
        elif rule := not_built(name.removeprefix(prefix), encoder):
            report.ignore(rule, [stored.name])
        else:
            found[name] = stored
    return found


def from_imagenet(
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
    dims = dims_of(file)
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
            report.ignore(imagenet.CLASSIFIER, [name])
        elif is_counter(name):
            report.ignore("counts of batches seen", [name])
        elif rule := not_built(target, encoder):
            report.ignore(rule, [name])
        else:
            found[prefix + target] = file.tensors[name]
    found, changed = adapted(found, model, origin)
    report.changed.update(changed)
    report.differs = (*origin.differs, imagenet.VOLUMES) if dims == 3 else origin.differs
    return found


def from_keras(file: WeightsFile, model: nn.Module, report: LoadReport) -> dict[str, Stored]:
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
        rule = training_state(name)
        if rule:
            report.ignore(rule, [name])
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
            rule = not_built(module, encoder)
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
            report.ignore(rule, names)
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
            report.ignore("counts of samples seen", [name])
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


def dims_of(file: WeightsFile) -> int:
    """2 or 3: whether a file's kernels are for images or for volumes."""
    return 3 if any(len(stored.shape) == 5 for stored in file.tensors.values()) else 2


def _family_of(encoder: nn.Module) -> str | None:
    return next((name for kind, name in FAMILY_OF.items() if isinstance(encoder, kind)), None)


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
