"""The state of a training on disk, which only the same training takes up again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.schema import to_json
from DeepLabSegLib.texts import some
from DeepLabSegLib.training.spec import TrainingSpec

__all__ = ["CHECKPOINT", "identity_of", "read_checkpoint", "write_checkpoint"]

CHECKPOINT = "checkpoint.pt"


def identity_of(network: DeepLabV3Plus, spec: TrainingSpec, about: Mapping[str, object]) -> dict[str, Any]:
    """What a checkpoint must share with the run that takes it up, as JSON has it; workers may differ."""
    settings = {name: value for name, value in to_json(spec).items() if name != "workers"}
    return json.loads(json.dumps({"network": to_json(network.spec), **settings, **about}))


def write_checkpoint(path: Path, identity: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write `content` in one move. Raises `OutputError` where that can't be, as on a full disk."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"identity": identity, **content}, file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes its place, which a power cut may follow
    except (OSError, RuntimeError) as error:  # torch's own, where the disk is full
        raise OutputError(f"{path} can't be written ({error}); make room, and the same command goes on") from None


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was written there, None where there is no file. Raises `InvalidInput` where it is damaged or another's."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content["identity"]
    except Exception as error:  # of any kind, as what the unpickler meets
        said = str(error).partition(". ")[0] or type(error).__name__
        raise InvalidInput(f"{path} is damaged ({said}); delete it to begin anew") from None
    if not isinstance(before, dict):
        raise InvalidInput(
            f"{path} was made by another version of this program; finish it with that one, or delete it to begin anew"
        )
    others = _differences(before, identity)
    if others:
        raise InvalidInput(
            f"{path} belongs to a training with other settings ({'; '.join(others)}); give those again, "
            "or delete its folder to begin anew"
        )
    return content


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what two identities don't share."""
    said = []
    for name in _unequal(before, now):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            said.append(f"{name}: {some(_unequal(old, new))}")
        elif isinstance(old, list) or isinstance(new, list):
            said.append(name)
        else:
            said.append(f"{name} {old}, now {new}")
    return said


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
