"""Networks of the reference, recorded as layer names and shapes; their weights and inputs come from a seed.

A recording is small, and a `.weights.h5` made from it has what the reference would have written.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED = FIXTURES / "reference.json.gz"
IMAGENET = FIXTURES / "imagenet.json.gz"


def recordings() -> list[dict[str, Any]]:
    """Recorded networks: arguments, groups `[path, layer name, shapes]`, and the logits for `image`."""
    return json.loads(gzip.decompress(RECORDED.read_bytes()))


def recorded(name: str, dims: int = 2) -> dict[str, Any]:
    """The first recorded network with this encoder."""
    named = (r for r in recordings() if r["arguments"]["encoder_name"] == name)
    return next(r for r in named if len(r["arguments"]["input_shape"]) == dims + 1)


def values(groups: list, seed: int = 0) -> dict[str, np.ndarray]:
    """`{"group/vars/0": array}` for every variable, drawn from `seed`; variances are positive."""
    rng = np.random.RandomState(seed)  # its stream is frozen
    found = {}
    for path, _, shapes in groups:
        for n, shape in enumerate(shapes):
            if "batch_normalization" in path or "layer_normalization" in path:
                value = rng.uniform(0.6, 1.4, shape) if n in (0, 3) else 0.3 * rng.standard_normal(shape)
            elif len(shape) > 1 and "response" not in path:
                depthwise = shape[-1] == 1 or "depthwise" in path
                fan_in = np.prod(shape[:-2]) if depthwise else np.prod(shape[:-1])
                value = rng.standard_normal(shape) / np.sqrt(fan_in)
            else:
                value = 0.3 * rng.standard_normal(shape)
            found[f"{path}/vars/{n}"] = value.astype("float32")
    return found


def small() -> dict[str, Any]:
    """A small network over a backbone of its own arguments: `input_shape`, `backbone`, `options` and `groups`."""
    return json.loads((FIXTURES / "small.json").read_text())


def imagenet() -> dict[str, Any]:
    """`source`, the versions of torchvision and timm, and `networks` with their tensors `[name, shape]`."""
    return json.loads(gzip.decompress(IMAGENET.read_bytes()))


def state(tensors: list, seed: int = 0) -> dict[str, np.ndarray]:
    """A torch state_dict for `[[name, shape], ...]`, drawn from `seed`; variances are positive."""
    rng = np.random.RandomState(seed)  # its stream is frozen
    found = {}
    for name, shape in tensors:
        if name.endswith("num_batches_tracked"):
            found[name] = np.int64(0)
            continue
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            value = rng.uniform(0.6, 1.4, shape)
        elif name.endswith("weight"):
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            value = 0.3 * rng.standard_normal(shape)
        found[name] = value.astype("float32")
    return {name: np.asarray(value) for name, value in found.items()}


def image(shape: list[int]) -> np.ndarray:
    """`(2, *size, channels)` for `shape` `(*size, channels)`."""
    rng = np.random.RandomState(1)  # its stream is frozen
    return rng.standard_normal((2, *shape)).astype("float32")


def write(path: Path, groups: list, arrays: dict[str, np.ndarray]) -> Path:
    """The `.weights.h5` of `groups` (those of `arrays`), as Keras lays it out."""
    import h5py

    with h5py.File(path, "w") as file:
        for group, name, _ in groups:
            file.create_group(f"{group}/vars").attrs["name"] = name
        for key, array in arrays.items():
            file[key] = array
    return path


def write_archive(path: Path, weights: Path, stated: dict[str, Any] | None = None) -> Path:
    """The `.keras` file around the `.weights.h5` at `weights`, of a network with the arguments `stated`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({} if stated is None else {"config": stated}))
        archive.write(weights, "model.weights.h5")
    return path
