"""Weights files of every format, damaged by chance: cut, bits flipped, contents of another type."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import seeded
import torch
from helpers import make_bundle, make_network
from safetensors.numpy import save_file

from DeepLabSegLib.bundle import save_bundle
from DeepLabSegLib.catalog import JSON_NAME
from DeepLabSegLib.models import ConvNeXtBackboneV2, DeepLabV3Plus

KINDS = ("h5", "keras", "torch", "safetensors", "bundle file", "bundle folder")
WAYS = ("cut", "flipped anywhere", "flipped structure", "other types")
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    7,
    2**31,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "../x",
    [],
    [1],
    {},
    {"a": 1},
    [[[[]]]],
)
"""What takes a value's place in JSON."""


def small_network() -> DeepLabV3Plus:
    """The network of the recording `small`."""
    small = seeded.small()
    encoder = ConvNeXtBackboneV2(small["input_shape"], **small["backbone"])
    encoder.drop_unread((2, 3))
    return DeepLabV3Plus(encoder=encoder, **small["options"]).eval()


def make_half(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict after a stay in half precision, as a bundle stores it."""
    state = network.state_dict()
    return {name: t.half().float() if t.is_floating_point() else t for name, t in state.items()}


class Files:
    """Whole files of every kind in `folder`, and damaged ones made from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = seeded.small()["groups"]
        self.network = small_network()
        self.bundle = make_bundle(2)
        self.bundle = replace(self.bundle, network=replace(self.bundle.network, decoder_channels=8))
        self.bundle_network = make_network(self.bundle.network)
        self.whole_json = (self._bundle("bundle folder") / JSON_NAME).read_text()
        self.bundle_state = make_half(self.bundle_network)
        self.whole = {kind: self.written(kind, self.arrays(kind)) for kind in KINDS}
        self.structure = {kind: self._structure(kind) for kind in KINDS}

    def arrays(self, kind: str, seed: int = 0) -> dict[str, Any]:
        """What a file of `kind` holds: arrays by name, or a bundle's JSON."""
        if kind in ("h5", "keras"):
            return seeded.values(self.groups, seed)
        if kind == "bundle folder":
            return json.loads(self.whole_json)
        if kind == "bundle file":
            return {}
        return seeded.state([[name, list(t.shape)] for name, t in self.network.state_dict().items()], seed)

    def written(self, kind: str, content: dict[str, Any]) -> bytes:
        """The bytes of a file of `kind` (of a bundle's folder, its `model.json`)."""
        path = self.folder / "whole"
        path.unlink(missing_ok=True)
        match kind:
            case "h5":
                seeded.write(path, self.groups, content)
            case "keras":
                weights = seeded.write(self.folder / "weights", self.groups, content)
                seeded.write_archive(path, weights, {"decoder_dilation_rates": [1, 2]})
            case "torch":
                torch.save(
                    {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in content.items()}, path
                )
            case "safetensors":
                save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, path)
            case "bundle file":
                return (self._bundle(kind)).read_bytes()
            case _:
                return json.dumps(content).encode()
        return path.read_bytes()

    def _bundle(self, kind: str) -> Path:
        path = self.folder / ("model.safetensors" if kind == "bundle file" else "model")
        if not path.exists():
            save_bundle(path, self.bundle, self.bundle_network)
        return path

    def _structure(self, kind: str) -> np.ndarray:
        """Places of bytes that don't depend on the weights' values."""
        whole = np.frombuffer(self.whole[kind], "uint8")
        if kind.startswith("bundle"):
            return np.arange(min(len(whole), 20_000))
        other = np.frombuffer(self.written(kind, self.arrays(kind, seed=1)), "uint8")
        return np.flatnonzero(whole == other)

    def damaged(self, kind: str, way: str, rng: np.random.Generator) -> Path:
        """The path of a file of `kind`, damaged in `way`."""
        whole = self.whole[kind]
        if way == "cut":
            content = whole[: rng.integers(len(whole))]
        elif way == "other types":
            content = self._retyped(kind, rng)
        else:
            places = self.structure[kind] if way == "flipped structure" else np.arange(len(whole))
            changed = bytearray(whole)
            for place in rng.choice(places, rng.integers(1, 9)):
                changed[place] ^= 1 << int(rng.integers(8))
            content = bytes(changed)
        return self.damaged_by(kind, content)

    def damaged_by(self, kind: str, content: bytes) -> Path:
        """The path of a file of `kind` with this content."""
        if kind == "bundle folder":
            folder = self._bundle(kind)
            (folder / JSON_NAME).write_bytes(content)
            return folder
        path = self.folder / ("damaged.safetensors" if kind == "bundle file" else "damaged")
        path.write_bytes(content)
        return path

    def _retyped(self, kind: str, rng: np.random.Generator) -> bytes:
        if kind == "bundle file":
            return self._other_metadata(rng)
        content = self.arrays(kind)
        if kind == "bundle folder":
            replace_some(content, rng)
            return self.written(kind, content)
        for name in map(str, rng.choice(list(content), rng.integers(1, 4), replace=False)):
            others = OTHERS + (OBJECTS if kind == "torch" else ())
            other = others[rng.integers(len(others))](np.asarray(content[name]))
            if kind != "safetensors" or not hasattr(other, "dtype") or other.dtype.kind in "fiub":
                content[name] = other
        try:
            return self.written(kind, content)
        except (TypeError, ValueError):  # the format itself has no such thing
            return self.whole[kind]

    def _other_metadata(self, rng: np.random.Generator) -> bytes:
        """The single file with another header: sizes, types, places, or `model.json` within it."""
        whole = self.whole["bundle file"]
        size = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + size])
        if rng.random() < 0.5:
            inner = json.loads(header["__metadata__"][JSON_NAME])
            replace_some(inner, rng)
            header["__metadata__"][JSON_NAME] = json.dumps(inner)
        else:
            replace_some(header, rng)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]


def replace_some(content: Any, rng: np.random.Generator) -> None:
    """Another value at a random place of nested JSON."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        inner = content[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            content[key] = VALUES[rng.integers(len(VALUES))]
            return
        content = inner


OTHERS: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda a: a.astype("int8"),
    lambda a: a.astype("float16"),
    lambda a: a.astype("float64"),
    lambda a: a > 0,
    lambda a: a.astype("complex64"),
    lambda a: a.astype("S3"),
    lambda a: np.float32(1),
    lambda a: np.zeros((0, *a.shape[1:]), "float32"),
    lambda a: a.reshape(-1),
    lambda a: a[None],
    lambda a: np.zeros((*a.shape, 3), "float32"),
    lambda a: a.T,
)
OBJECTS: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda a: None,
    lambda a: "text",
    lambda a: [torch.ones(2)],
    lambda a: {"inner": torch.ones(2)},
    lambda a: torch.zeros(1).expand(1 << 20, 1 << 20),
    lambda a: torch.zeros(()).expand(a.shape),
    lambda a: torch.ones(3).to_sparse(),
    lambda a: torch.nn.Parameter(torch.ones(2)),
)
