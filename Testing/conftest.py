"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_bundle, make_network, make_scan

from DeepLabSegLib.bundle import save_bundle
from DeepLabSegLib.image import Image


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
def bundle_folder(tmp_path: Path) -> Path:
    """A 2D softmax bundle on disk."""
    folder = tmp_path / "tiny"
    bundle = make_bundle(2)
    save_bundle(folder, bundle, make_network(bundle.network))
    return folder
