"""Weights files as named tensors, read without executing anything in them.

Nothing is allocated on the word of a header alone: a tensor's declared size is checked against the file first, and a
tensor is read only when asked for, after its shape has been accepted.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DeepLabSegLib.catalog import TENSORS_NAME
from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.weights.imagenet import origin_of

__all__ = ["Stored", "WeightsFile", "open_weights"]

MAX_JSON = 16 << 20
"""Bytes of a `.keras` file's configuration that are read; medicai's are about a thousandth of it."""

STATE_DICT_KEYS = (
    *("state_dict_ema", "model_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network_weights", "module"),
)
"""Where training scripts put the weights in a checkpoint: a moving average before what it is of, as timm takes it."""

WRAPPERS = re.compile(r"(?:(?:module|model|_orig_mod|net|network)\.)*")
"""What wrappers put before every name."""

OURS = re.compile(r"((?:.*?\.)??)(?:encoder\.)?(?:stages\.0\.0|downsamplings\.0)\.")
"""A wrapper of any name, and how names begin in every network of ours; `imagenet.origin_of` knows other origins'."""

SAFE_GLOBALS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""All that a pickled state_dict needs; everything else in a pickle is refused before it is read."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name for people, its shape there, and how to read it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds. `origin` is `"keras"` or `"torch"`; `config` is a `.keras` file's configuration.

    For Keras `tensors` has a key per variable (`group/vars/0`) and `layers` a layer name per group. `beside` names the
    tensors of a torch checkpoint that are outside of the network, such as a loss's, or weights beside their average.
    """

    origin: str
    tensors: Mapping[str, Stored]
    layers: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    beside: tuple[str, ...] = ()


@contextmanager
def open_weights(path: str | Path) -> Iterator[WeightsFile]:
    """The tensors of a `.weights.h5`, `.keras`, `.safetensors` or torch file; readable until the context ends.

    The content decides, not the name. Raises `WeightsError` for everything else.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give the weights file in it, such as {TENSORS_NAME}")
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; check the path")
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        with path.open("rb") as stream, _open_hdf5(stream, path.stat().st_size, path) as found:
            yield found
    elif start.startswith(b"PK"):
        with _open_zip(path) as archive:
            if any(info.filename == "model.weights.h5" for info in archive.infolist()):
                with _open_keras(archive, path) as found:
                    yield found
            else:
                yield _read_torch(archive, path)
    elif start[8:9] == b"{":
        with _open_safetensors(path) as found:
            yield found
    elif start.startswith(b"\x80"):
        raise WeightsError(
            f"{path} is in torch's format from before version 1.6, which can't be read safely; "
            "open it with torch and save it again"
        )
    else:
        raise WeightsError(f"{path} is no weights file: give a .weights.h5, .keras, .safetensors or torch file")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a library raises over a damaged file becomes a `WeightsError`."""
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as error:
        raise WeightsError(f"{path} is damaged or not a weights file: {error}") from error


# --- Keras -----------------------------------------------------------------------------------------------------------


@contextmanager
def _open_keras(archive: zipfile.ZipFile, path: Path) -> Iterator[WeightsFile]:
    """The weights and the configuration in a `.keras` archive."""
    config = None
    if "config.json" in archive.namelist():
        with _reading(path):
            info = archive.getinfo("config.json")
            if info.file_size > MAX_JSON:
                raise WeightsError(f"{path}: config.json has {info.file_size} bytes; at most {MAX_JSON} are read")
            config = json.loads(_read_member(archive, info))
    with _reading(path):
        content = _read_member(archive, archive.getinfo("model.weights.h5"))
    with _open_hdf5(io.BytesIO(content), len(content), path, config) as found:
        yield found


@contextmanager
def _open_hdf5(stream: Any, size: int, path: Path, config: Any = None) -> Iterator[WeightsFile]:
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            f"{path} is a Keras file, and reading one needs h5py, which is missing; install it with: pip install h5py"
        ) from error
    with _reading(path):
        file = h5py.File(stream, "r")
    with file:
        with _reading(path):
            tensors: dict[str, Stored] = {}
            layers: dict[str, str] = {}

            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    _check_dataset(item, name, size, path)
                    tensors[name] = Stored(name, tuple(item.shape), lambda: _read_dataset(item, name, path))
                elif name.endswith("/vars") and isinstance(item.attrs.get("name"), str):
                    layers[name.removesuffix("/vars")] = item.attrs["name"]

            file.visititems(visit)  # follows no soft or external links
        if not tensors:
            raise WeightsError(f"{path} holds no tensors")
        yield WeightsFile("keras", tensors, layers, config if isinstance(config, dict) else None)


def _check_dataset(item: Any, name: str, size: int, path: Path) -> None:
    """Raise `WeightsError` unless the dataset's bytes all lie in the file, as Keras writes them."""
    if item.shape is None or item.dtype.kind not in "fiub":
        raise WeightsError(f"{path}: {name} is of type {item.dtype}; weights are numbers")
    declared = prod(item.shape) * item.dtype.itemsize
    if item.is_virtual or item.external or item.chunks is not None:
        raise WeightsError(f"{path}: {name} is compressed or stored elsewhere; save the weights with Keras itself")
    offset = item.id.get_offset()
    # Empty and compact datasets have no offset; a compact one is at most 64 KiB, within the header.
    if declared > size or (offset is not None and offset + declared > size):
        raise WeightsError(f"{path}: {name} declares {declared} bytes, and the file has {size}; it is cut off")


def _read_dataset(item: Any, name: str, path: Path) -> Tensor:
    with _reading(path):
        return torch.from_numpy(np.asarray(item[()], dtype=item.dtype.newbyteorder("=")))  # this machine's


# --- zip archives ----------------------------------------------------------------------------------------------------


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with _reading(path):
        archive = zipfile.ZipFile(path)
    with archive:
        size = path.stat().st_size
        for info in archive.infolist():
            parts = info.filename.replace("\\", "/").split("/")
            if info.filename.startswith("/") or ".." in parts:
                raise WeightsError(f"{path}: the member {info.filename!r} points outside the archive")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size or info.flag_bits & 1:
                raise WeightsError(
                    f"{path}: {info.filename} is compressed, encrypted or larger than the archive; Keras and torch "
                    "store their members as they are: save it again with the program that made it, or unpack what "
                    "is zipped by hand"
                )
        if sum(info.file_size for info in archive.infolist()) > size:
            raise WeightsError(f"{path}: its members overlap; the archive is damaged")
        yield archive


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as member:
        return member.read(info.file_size)


# --- torch -----------------------------------------------------------------------------------------------------------


def _read_torch(archive: zipfile.ZipFile, path: Path) -> WeightsFile:
    with _reading(path):
        pickles = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"{path} is a zip archive, but neither a .keras file nor torch's; unpack it")
        _check_pickle(_read_member(archive, pickles[0]), path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state, beside = _state_dict(content)
    if not state:
        raise WeightsError(
            f"{path} holds no tensors by name; save model.state_dict(), alone or under one of the keys "
            f"{', '.join(STATE_DICT_KEYS)}"
        )
    found = {name: Stored(name, tuple(t.shape), partial(state.__getitem__, name)) for name, t in state.items()}
    file = _of_torch(found)
    return replace(file, beside=(*file.beside, *beside))


def _check_pickle(content: bytes, path: Path) -> None:
    """Raise `WeightsError` where a pickle names anything beyond tensors and containers."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STACK_GLOBAL":  # which torch's restricted reader doesn't know
            raise WeightsError(
                f"{path} is written with pickle's protocol 4 or later, which can't be read safely; save it again with "
                "torch's own: torch.save(model.state_dict(), path)"
            )
        if opcode.name == "GLOBAL" and not SAFE_GLOBALS.fullmatch(str(argument)):
            raise WeightsError(
                f"{path} holds {argument!r} besides tensors, and only tensors are read; save the state_dict alone: "
                "torch.save(model.state_dict(), path)"
            )


def _state_dict(content: Any, depth: int = 3) -> tuple[dict[str, Tensor], list[str]]:
    """The mapping from names to tensors in a checkpoint, empty where there is none, and the names of those beside it.

    Checkpoints nest their state_dict once or twice.
    """
    if not isinstance(content, Mapping) or not depth:
        return {}, []
    nested = {key: _state_dict(content.get(key), depth - 1) for key in STATE_DICT_KEYS}
    held = {key: found for key, found in nested.items() if found[0]}
    if not held:  # only then: a checkpoint may keep its epoch or its best measure as a tensor, too
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, []
    chosen, *others = held
    state, beside = held[chosen]
    return state, [*beside, *(f"{key}.{name}" for key in others for name in held[key][0])]


@contextmanager
def _open_safetensors(path: Path) -> Iterator[WeightsFile]:
    from safetensors import safe_open

    with _reading(path):
        file = safe_open(path, framework="pt")
    with file:
        with _reading(path):
            found = {
                name: Stored(name, tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
                for name in file.keys()  # noqa: SIM118 it is no mapping
            }
        yield _of_torch(found)


def _of_torch(tensors: dict[str, Stored]) -> WeightsFile:
    """The network among `tensors`, without what wrappers put before its names, and what lies beside it."""
    tensors = _with_plain_encoder(tensors)
    around = {found[1] for name in tensors if (found := OURS.match(name))}
    # A network under a name that wrappers have is the one that is meant, and "ema." beside it its average.
    prefixes = ({prefix for prefix in around if WRAPPERS.fullmatch(prefix)} or around) - {""}
    wrapped: dict[str, dict[str, Stored]] = {}
    for name, stored in tensors.items():
        before = [prefix for prefix in prefixes if name.startswith(prefix)]
        prefix = max(before, key=len, default=WRAPPERS.match(name)[0])  # type: ignore[index]  # it matches nothing, too
        wrapped.setdefault(prefix, {})[name.removeprefix(prefix)] = stored
    networks = [prefix for prefix, names in wrapped.items() if len(wrapped) == 1 or _of_network(names)]
    if len(networks) != 1 or networks == [""]:
        return WeightsFile("torch", tensors, {})
    network = wrapped.pop(networks[0])
    return WeightsFile("torch", network, {}, beside=tuple(t.name for rest in wrapped.values() for t in rest.values()))


def _with_plain_encoder(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """`tensors` without what a wrapper of the encoder alone, such as `torch.compile`, puts within a network's names."""
    prefixes = {found[1] for name in tensors if (found := OURS.match(name))}
    within = [found for prefix in prefixes if (found := re.fullmatch(r"((?:.*\.)?encoder\.).+", prefix))]
    if len(within) != 1:
        return tensors
    wrapped, plain = within[0][0], within[0][1]
    decoder = f"{plain.removesuffix('encoder.')}aspp."
    renamed = {re.sub(f"^{re.escape(wrapped)}", plain, name): stored for name, stored in tensors.items()}
    whole = any(name.startswith(decoder) for name in tensors)  # else it may be an encoder by itself
    return renamed if whole and len(renamed) == len(tensors) else tensors


def _of_network(names: Iterable[str]) -> bool:
    return any(found[1] == "" for name in names if (found := OURS.match(name))) or origin_of(names) is not None
