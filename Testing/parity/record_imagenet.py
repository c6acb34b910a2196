"""Record encoders of torchvision and timm, where both are installed: `python Testing/parity/record_imagenet.py`.

Writes `Testing/unit/fixtures/imagenet.json.gz`: names and shapes of every variant that has a counterpart here and of
some that haven't, and for one of each origin the pyramid for seeded weights.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "unit"))

import seeded

TORCHVISION = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    "resnext50_32x4d": "resnext50",
    "resnext101_32x8d": "resnext101",
    **{name: name for name in ("densenet121", "densenet169", "densenet201")},
    **{f"efficientnet_b{n}": f"efficientnet_b{n}" for n in range(8)},
    **{f"efficientnet_v2_{size}": f"efficientnet_v2_{size}" for size in "sml"},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
}
TIMM = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{f"resnetv2_{depth}": f"resnet{depth}_v2" for depth in (50, 101, 152)},
    "resnet50d": "resnet50_vd",
    "resnext50_32x4d": "resnext50",
    "resnext101_32x8d": "resnext101",
    **{name: name for name in ("densenet121", "densenet169", "densenet201")},
    **{f"efficientnet_b{n}": f"efficientnet_b{n}" for n in range(9)},
    "tf_efficientnet_l2": "efficientnet_l2",
    **{f"tf_efficientnetv2_b{n}": f"efficientnet_v2_b{n}" for n in range(4)},
    **{f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")},
    **{
        f"convnextv2_{size}": f"convnext_v2_{size}"
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge")
    },
}
OTHERS = {
    "seresnet50": "seresnet50",
    "legacy_seresnet50": "seresnet50",
    "seresnext50_32x4d": "seresnext50",
    "resnet50c": "resnet50_vd",
    "resnetv2_50d": "resnet50_v2",
    "wide_resnet50_2": "resnet50",
    "densenet161": "densenet121",
    "convnext_atto_ols": "convnext_v2_atto",
    "efficientnet_lite0": "efficientnet_b0",
}
"""timm's networks that are none of ours, and what each may be taken for."""

# The modules whose outputs are the levels; "<" takes a module's input.
NUMBERS = {
    ("torchvision", "resnet18"): ((40, 33), ("<maxpool", "layer1", "layer2", "layer3", "layer4")),
    ("timm", "resnet50d"): ((40, 33), ("<maxpool", "layer1", "layer2", "layer3", "layer4")),
    ("timm", "resnetv2_50"): ((40, 33), ("<stem.pool", "stages.0", "stages.1", "stages.2", "stages.3")),
    ("torchvision", "densenet121"): ((33, 65), ("<features.pool0", *(f"features.denseblock{n}" for n in (1, 2, 3, 4)))),
    ("torchvision", "efficientnet_b0"): ((33, 65), tuple(f"features.{n}" for n in (1, 2, 3, 5, 8))),
    ("torchvision", "efficientnet_v2_s"): ((33, 65), tuple(f"features.{n}" for n in (1, 2, 3, 5, 7))),
    ("timm", "tf_efficientnetv2_b0"): ((40, 33), ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")),
    ("torchvision", "convnext_tiny"): ((40, 33), tuple(f"features.{n}" for n in (1, 3, 5, 7))),
    ("timm", "convnextv2_atto"): ((40, 33), tuple(f"stages.{n}" for n in range(4))),
}


def make(package: str, name: str) -> torch.nn.Module:
    """The network with fresh weights."""
    return getattr(torchvision.models, name)(weights=None) if package == "torchvision" else timm.create_model(name)


def tensors(package: str, name: str) -> list:
    """`[[name, shape], ...]`."""
    with torch.device("meta"):
        return [[key, list(value.shape)] for key, value in make(package, name).state_dict().items()]


def levels(package: str, name: str, listed: list) -> dict:
    """Some numbers of every level, for seeded weights; ConvNeXt's are normalised as a fresh level is here."""
    size, places = NUMBERS[package, name]
    network = make(package, name).eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in seeded.state(listed).items()})
    found: dict[str, torch.Tensor] = {}
    modules = dict(network.named_modules())
    for place in places:
        if place.startswith("<"):
            modules[place[1:]].register_forward_pre_hook(lambda _, x, at=place: found.update({at: x[0].clone()}))
        else:
            modules[place].register_forward_hook(lambda _, x, y, at=place: found.update({at: y.clone()}))
    with torch.no_grad():
        network(torch.from_numpy(seeded.image([*size, 3])).movedim(-1, 1))
    pyramid = [found[place] for place in places]
    if name.startswith("convnext"):
        pyramid = [F.layer_norm(y.movedim(1, -1), y.shape[1:2], eps=1e-6).movedim(-1, 1) for y in pyramid]
    return {"size": list(size), "levels": [[list(y.shape), *some(y)] for y in pyramid]}


def some(level: torch.Tensor) -> tuple[float, list[float]]:
    """The largest number, and 24 numbers relative to it."""
    largest = level.abs().max().item()
    flat = level.flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, 24).long()]
    return largest, np.round((picked / largest).numpy().astype(float), 6).tolist()


def main() -> None:
    """Write the fixture."""
    torch.set_num_threads(1)
    networks = []
    pairs = [("torchvision", TORCHVISION), ("timm", TIMM), ("timm", OTHERS)]
    for package, table in pairs:
        for name, ours in table.items():
            listed = tensors(package, name)
            row = {"package": package, "name": name, "ours": ours, "fits": table is not OTHERS, "tensors": listed}
            if (package, name) in NUMBERS:
                row["numbers"] = levels(package, name, listed)
            networks.append(row)
            sys.stderr.write(f"{package} {name}\n")
    versions = {"torchvision": torchvision.__version__.partition("+")[0], "timm": timm.__version__}
    content = json.dumps({"source": versions, "networks": networks}, separators=(",", ":"))
    seeded.IMAGENET.write_bytes(gzip.compress(content.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
