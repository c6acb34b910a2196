"""Record what the unit tests compare with, where medicai is installed: `python Testing/parity/record.py`.

Writes to `Testing/unit/fixtures`: parameter counts of all encoders, activations of a few numbers, and networks as
layer names, shapes and the logits for seeded weights.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

os.environ["KERAS_BACKEND"] = "torch"
sys.path.append(str(Path(__file__).parents[1] / "unit"))

import keras
import medicai.models
import seeded
from keras import layers as keras_layers
from medicai.utils import get_act_layer
from reference import Case, ReferenceNetwork, described

from DeepLabSegLib.models import ENCODERS
from DeepLabSegLib.models.activations import ACTIVATIONS, DECODER_ACTIVATIONS

NETWORKS = (
    Case("resnet18", (41, 50), 3),
    Case("resnet18", (20, 24, 28), 1, 3),
    Case("resnet50_v2", (48, 40), 1, 4),
    Case("resnet50_vd", (41, 50), 1, 5),
    Case("resnext50", (32, 24), 1, 3),
    Case("seresnet18", (24, 20, 16), 1, 4),
    Case("densenet121", (41, 50), 1, 5),
    Case("densenet121", (32, 30, 34), 1, 3),
    Case("efficientnet_b0", (41, 50), 1, 5),
    Case("efficientnet_b0", (16, 20, 24), 1, 4),
    Case("efficientnet_v2_b0", (41, 50), 3, 5),
    Case("convnext_tiny", (50, 41), 3, 3),
    Case("convnext_v2_atto", (41, 50), 1, 4),
    Case("convnext_v2_atto", (32, 33, 36), 1, 3),
)
OPTIONS = {"decoder_channels": 16, "projection_filters": 8, "decoder_dilation_rates": [1, 2]}
NUMBERS = [-4.0, -1.5, -1.0, -0.5, -0.3, 0.0, 0.2, 0.5, 1.0, 2.5, 7.0]


def network(case: Case) -> dict:
    """A recording, as `seeded.recordings` returns it."""
    keras.utils.clear_session()
    arguments = {**case.arguments, **OPTIONS}
    model = ReferenceNetwork(encoder_name=case.name, **arguments)
    file = described(model)
    groups: dict[str, list] = {}
    for name, stored in file.tensors.items():
        groups.setdefault(name.partition("/vars/")[0], []).append(list(stored.shape))
    parents = {group: [] for group in file.layers if any(holder.startswith(f"{group}/") for holder in groups)}
    listed = [[group, file.layers[group], shapes] for group, shapes in sorted({**parents, **groups}.items())]
    path = Path("recording.weights.h5")
    try:
        # Keras reads the file back itself: it is laid out as Keras lays out its own.
        model.load_weights(seeded.write(path, listed, seeded.values(listed)))
    finally:
        path.unlink(missing_ok=True)
    with torch.no_grad():
        logits = model(seeded.image(list(case.shape)), training=False)
    logits = np.asarray(logits).transpose(0, -1, *range(1, logits.ndim - 1))
    kept = logits[:, :, ::5, ::5] if logits.ndim == 4 else logits[:, :, ::6, ::6, ::6]
    # Four digits, relative to the largest.
    scale = float(np.abs(kept).max())
    return {
        "arguments": {"encoder_name": case.name, **arguments},
        "groups": listed,
        "shape": list(logits.shape),
        "scale": scale,
        "logits": np.round(kept / scale, 6).tolist(),
    }


def small() -> dict:
    """A network small enough to be damaged thousands of times, over a backbone of its own arguments: its groups."""
    keras.utils.clear_session()
    shape, backbone = (32, 32, 1), {"depths": [1, 1, 1], "projection_dims": [4, 6, 8]}
    encoder = medicai.models.ConvNeXtBackboneV2(input_shape=shape, name="small", **backbone)
    options = {**OPTIONS, "encoder_depth": 3, "num_classes": 3}
    file = described(ReferenceNetwork(encoder=encoder, **options))
    groups: dict[str, list] = {group: [] for group in file.layers}
    for name, stored in file.tensors.items():
        groups[name.partition("/vars/")[0]].append(list(stored.shape))
    listed = [[group, file.layers[group], shapes] for group, shapes in sorted(groups.items())]
    return {"input_shape": shape, "backbone": backbone, "options": options, "groups": listed}


def counts() -> dict[str, list[int]]:
    """`{"resnet18": [2D, 3D]}`: numbers of whole networks for one channel and three classes."""
    found: dict[str, list[int]] = {}
    for name in ENCODERS:
        for dims in (2, 3):
            keras.utils.clear_session()
            case = Case(name, (64,) * dims, depth=4 if name.startswith("convnext") else 5)
            with keras.device("meta"):
                found.setdefault(name, []).append(ReferenceNetwork(encoder_name=name, **case.arguments).count_params())
    return found


def activations() -> dict[str, dict[str, list[float]]]:
    """Keras's values for `NUMBERS`, along channels, as a function and as the layer that decoders build."""
    x = torch.tensor([NUMBERS])
    return {
        "function": {name: keras_layers.Activation(name)(x)[0].tolist() for name in ACTIVATIONS if name != "glu"},
        "layer": {name: get_act_layer(name)(x)[0].tolist() for name in DECODER_ACTIVATIONS},
    }


def main() -> None:
    """Write the fixtures."""
    torch.set_num_threads(1)
    seeded.FIXTURES.mkdir(exist_ok=True)
    known = {"numbers": NUMBERS, "activations": activations(), "counts": counts()}
    (seeded.FIXTURES / "known.json").write_text(json.dumps(known, indent=1) + "\n")
    (seeded.FIXTURES / "small.json").write_text(json.dumps(small()) + "\n")
    content = json.dumps([network(case) for case in NETWORKS], separators=(",", ":"))
    seeded.RECORDED.write_bytes(gzip.compress(content.encode(), mtime=0))


if __name__ == "__main__":
    main()
