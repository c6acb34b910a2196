"""What there is to choose from: encoders by name, the models that are here and what each says of itself.

It needs neither torch nor the tensors, so that a panel can list them. A model is a folder with `model.json` and
`model.safetensors`, or a single `.safetensors` file that carries the same JSON in its metadata under `model.json`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from DeepLabSegLib.errors import BundleError
from DeepLabSegLib.image import Segment
from DeepLabSegLib.schema import from_json, parse_json

__all__ = [
    "DEFAULT_MODEL",
    "ENCODERS",
    "ModelCard",
    "find_model",
    "installed_models",
    "is_bundle",
    "is_described",
    "list_models",
    "model_folders",
    "model_state",
    "read_card",
    "read_json",
    "resource",
    "sample_scan",
    "tensors_file",
    "to_card",
    "user_models",
]

T = TypeVar("T")

DEFAULT_MODEL = "head-mri"
JSON_NAME = "model.json"
TENSORS_NAME = "model.safetensors"
MAX_JSON_BYTES = 2**20
MAX_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors format

ENCODERS: dict[str, tuple[str, ...]] = {
    family: tuple(names.split())
    for family, names in {
        "resnet": "resnet18 resnet34 resnet50 resnet101 resnet152 resnet50_v2 resnet101_v2 resnet152_v2 resnet50_vd "
        "resnet200_vd resnext50 resnext101",
        "densenet": "densenet121 densenet169 densenet201 densenet264",
        "efficientnet": "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
        "efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_b8 efficientnet_l2 efficientnet_v2_b0 "
        "efficientnet_v2_b1 efficientnet_v2_b2 efficientnet_v2_b3 efficientnet_v2_s efficientnet_v2_m "
        "efficientnet_v2_l",
        "convnext": "convnext_tiny convnext_small convnext_base convnext_large convnext_xlarge convnext_v2_atto "
        "convnext_v2_femto convnext_v2_pico convnext_v2_nano convnext_v2_tiny convnext_v2_small "
        "convnext_v2_base convnext_v2_large convnext_v2_huge",
        "senet": "seresnet18 seresnet34 seresnet50 seresnet101 seresnet152 seresnet50_v2 seresnet101_v2 seresnet152_v2 "
        "seresnet50_vd seresnet200_vd seresnext50 seresnext101",
    }.items()
}
"""Family -> encoder names: those of the tables in `models`, which can't be read without torch."""


@dataclass(frozen=True)
class CardNetwork:
    """What a card tells of the network; the fields are those of `DeepLabSpec`."""

    encoder_name: str
    input_shape: tuple[int | None, ...]
    encoder_depth: int = 5
    num_classes: int = 1
    classifier_activation: str | None = "sigmoid"

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.input_shape) - 1


@dataclass(frozen=True)
class CardInput:
    """What a card tells of the input; the fields are those of `ModelInput`."""

    channels: tuple[str, ...]
    orientation: str | None = None
    mirror_axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModelCard:
    """The part of a `model.json` that a person chooses by; `bundle.Bundle` is the whole."""

    name: str
    description: str
    network: CardNetwork
    input: CardInput
    labels: tuple[Segment, ...]
    license: str
    training_data: str
    figures: Mapping[str, float] = field(default_factory=dict)
    limits: str | None = None


# --- where models are ------------------------------------------------------------------------------------------------


def model_folders() -> Iterator[Path]:
    """Folders that are searched: those in `DEEPLABSEG_MODELS`, the user's own, then the one that is shipped."""
    for entry in os.environ.get("DEEPLABSEG_MODELS", "").split(os.pathsep):
        if entry:
            yield Path(entry)
    with suppress(RuntimeError):  # nobody's home, as of a user without a name in a container
        yield user_models()
    yield resource("Models")


def user_models() -> Path:
    """The user's own folder of models, `.deeplabseg/models` in the home folder; it need not exist."""
    return Path.home() / ".deeplabseg" / "models"


def resource(name: str) -> Path:
    """A shipped file or folder: inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    installed = package / "Resources" / name
    return installed if installed.exists() else package.parent / "Resources" / name


def sample_scan() -> Path:
    """The shipped scan, a T1-weighted head."""
    return resource("SampleData/head-t1-colin27.nii.gz")


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The path of a model by name or path; warns of a name that a model in the working folder has as well.

    Raises `BundleError` that lists the names.
    """
    name = os.fspath(name_or_path)
    here = installed_models()
    if name in here:
        if (Path(name) / JSON_NAME).is_file() and not Path(name).samefile(here[name]):
            warnings.warn(
                f"{name} is the model in {here[name].parent}, not that in this folder; for the latter write .{os.sep}"
                f"{name}",
                stacklevel=2,
            )
        return here[name]
    if Path(name).exists() or os.sep in name or Path(name).suffix:
        return Path(name)
    raise BundleError(f"there is no model {name!r}; here are {', '.join(here) or 'none'}, or give the path of a bundle")


def list_models() -> list[str]:
    """Print the models that are here with a line on each, and return the names of those that can be read."""
    names = []
    for name, path in installed_models().items():
        try:
            line = read_card(path).description
            names.append(name)
        except BundleError as error:
            line = str(error)
        print(f"{name}: {line}")  # noqa: T201 its purpose
    return names


def installed_models() -> dict[str, Path]:
    """Name -> path of every model in `model_folders`; the first of a name counts, and what is closed to us doesn't."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        for path in _paths_in(folder):
            with suppress(OSError):
                if (path / JSON_NAME).is_file() or path.suffix == ".safetensors":
                    found.setdefault(path.name.removesuffix(".safetensors"), path)
    return found


def _paths_in(folder: Path) -> list[Path]:
    with suppress(OSError):
        # Hidden are what a Mac leaves beside files of other disks, and what a killed process was writing.
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return []


# --- what a model says of itself -------------------------------------------------------------------------------------


def model_state(path: Path) -> object:
    """Changes when the model on disk does; empty where there is none."""
    if path.name in (JSON_NAME, TENSORS_NAME):
        files = [path.with_name(JSON_NAME), path.with_name(TENSORS_NAME)]
    else:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, (found := file.stat()).st_mtime_ns, found.st_size) for file in files if file.exists()]


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is meant as a bundle; otherwise it may be bare weights."""
    source = Path(path)
    if source.is_dir() or source.name == JSON_NAME or not source.is_file():
        return True
    if source.suffix != ".safetensors":
        return False
    try:
        return _has_json(source)
    except BundleError:
        return True  # reading it as one says what is wrong


def is_described(path: str | os.PathLike[str]) -> bool:
    """Whether the weights at `path` have a `model.json`, beside them or in their metadata."""
    with suppress(BundleError):
        return _has_json(tensors_file(path))
    return False


def _has_json(tensors: Path) -> bool:
    return _json_beside(tensors) is not None or JSON_NAME in _metadata(tensors)


def _json_beside(tensors: Path) -> Path | None:
    beside = tensors.with_name(JSON_NAME)
    return beside if tensors.name == TENSORS_NAME and beside.is_file() else None


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """The card of the bundle at `path`: its folder, its `model.json` or a single `.safetensors` file.

    Raises `BundleError` that names the file and the key.
    """
    return read_json(path, to_card)


def to_card(content: object) -> ModelCard:
    """The card in the decoded content of a `model.json`. Raises `ValueError` that names the key."""
    known = _known(ModelCard, content)
    known["network"] = _known(CardNetwork, known.get("network"))
    known["input"] = _known(CardInput, known.get("input"))
    return from_json(ModelCard, known)


def _known(cls: type, content: object) -> dict[str, object]:
    """The entries of a JSON object that `cls` has fields for."""
    names = {f.name for f in fields(cls)}
    if not isinstance(content, dict):
        raise ValueError(f"{content!r} stands where an object with {', '.join(sorted(names))} must be")
    return {key: value for key, value in content.items() if key in names}


def read_json(path: str | os.PathLike[str], convert: Callable[[object], T]) -> T:
    """What `convert` makes of the decoded `model.json` of the bundle at `path`.

    Raises `BundleError`, also for a `ValueError` of `convert`.
    """
    try:
        return convert(parse_json(_model_json(path)))
    except (ValueError, OverflowError, OSError) as error:  # InvalidInput is a ValueError
        raise BundleError(f"{path}: model.json: {error}") from None


def _model_json(path: str | os.PathLike[str]) -> bytes:
    source = tensors_file(path)
    beside = _json_beside(source)
    if beside is not None:
        if beside.stat().st_size > MAX_JSON_BYTES:
            raise BundleError(f"{beside} has {beside.stat().st_size} bytes; a model.json has at most {MAX_JSON_BYTES}")
        return beside.read_bytes()
    metadata = _metadata(source)
    if JSON_NAME not in metadata:
        raise BundleError(f"{source} carries no {JSON_NAME} in its metadata and has none beside it; it is bare weights")
    return metadata[JSON_NAME].encode()


def tensors_file(path: str | os.PathLike[str]) -> Path:
    """The safetensors file of the bundle at `path`. Raises `BundleError` where there is none."""
    source = Path(path)
    if source.name == JSON_NAME:
        source = source.parent
    if source.is_dir():
        for name in (JSON_NAME, TENSORS_NAME):
            if not (source / name).is_file():
                raise BundleError(f"{source} lacks {name}; a model folder holds {JSON_NAME} and {TENSORS_NAME}")
        return source / TENSORS_NAME
    if not source.is_file():
        raise BundleError(f"{source} does not exist; `deeplabseg models` lists the models that are here")
    if source.suffix != ".safetensors":
        raise BundleError(f"{source} is no model bundle; give a folder with {JSON_NAME}, or a .safetensors file")
    return source


def _metadata(source: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file: its length in 8 bytes, then JSON."""
    try:
        with source.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(MAX_HEADER_BYTES, source.stat().st_size):
                raise ValueError(f"its header claims {size} bytes")
            texts = json.loads(file.read(size)).get("__metadata__", {})
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("its metadata holds more than texts")
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise BundleError(f"{source} can't be read as safetensors ({error}); copy the model again") from None
    return texts
