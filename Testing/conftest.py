"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import OBLIQUE, SEGMENTS, make_bundle, make_network, make_scan

from DeepLabSegLib.bundle import save_bundle
from DeepLabSegLib.image import Geometry, Image, Labels

# What tests start has the library of this checkout as well, whichever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def scan(rng: np.random.Generator) -> Image:
    return make_scan(rng)


@pytest.fixture
def labels(rng: np.random.Generator) -> Labels:
    geometry = Geometry((5, 6, 7), (3.0, 1.5, 1.0), (10.0, -20.0, 30.0), OBLIQUE)
    return Labels(rng.integers(0, 3, (5, 6, 7)).astype(np.uint8), geometry, SEGMENTS)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A 2D softmax bundle on disk."""
    folder = tmp_path / "tiny"
    bundle = make_bundle(2)
    save_bundle(folder, bundle, make_network(bundle.network))
    return folder
