"""Damaged weights files end in an error made for people or in a right load: no crash, no hang, no gigabytes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import KINDS, WAYS, Files

from DeepLabSegLib.bundle import read_bundle, read_network
from DeepLabSegLib.errors import DeepLabSegError
from DeepLabSegLib.process import peak_bytes
from DeepLabSegLib.weights import detect, load_weights

pytest.importorskip("h5py", reason="needs h5py to write the files")

MAX_SECONDS = 10.0
MAX_GROWTH = 1 << 30


def outcome(files: Files, kind: str, way: str, path: Path) -> str:
    """What became of the file: "refused" or "loaded", after the load was found right."""
    try:
        if kind.startswith("bundle"):
            bundle = read_bundle(path)
            network = read_network(path, bundle)
            state = network.state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in files.bundle_state.items())
            return "loaded"
        with suppress(DeepLabSegError):
            detect(path)
        before = {name: tuple(tensor.shape) for name, tensor in files.network.state_dict().items()}
        report = load_weights(files.network, path)
    except DeepLabSegError:
        return "refused"
    state = files.network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == before
    assert report.loaded.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    assert not report.kept
    return "loaded"


def run(folder: Path, cases: int, seed: int) -> Counter[tuple[str, str, str]]:
    """Outcomes of `cases` damaged files, by kind and way."""
    files = Files(folder)
    for kind in KINDS:  # whole ones first: they load, and the libraries are in memory
        assert outcome(files, kind, "", files.damaged_by(kind, files.whole[kind])) == "loaded"
    start = peak_bytes()
    found: Counter[tuple[str, str, str]] = Counter()
    for n in range(cases):
        kind, way = KINDS[n % len(KINDS)], WAYS[n // len(KINDS) % len(WAYS)]
        path = files.damaged(kind, way, np.random.default_rng([seed, n]))
        clock = time.monotonic()
        found[kind, way, outcome(files, kind, way, path)] += 1
        assert time.monotonic() - clock < MAX_SECONDS, f"case {n}, {kind} {way}"
        assert peak_bytes() - start < MAX_GROWTH, f"case {n}, {kind} {way}"
    return found


def test_damaged_files_are_refused_or_load_right(tmp_path: Path) -> None:
    found = run(tmp_path, 100, seed=0)
    assert {way for _, way, what in found if what == "refused"} == set(WAYS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_thousands_of_damaged_files_are_refused_or_load_right(tmp_path: Path, seed: int) -> None:
    found = run(tmp_path, 600, seed)
    for kind in KINDS:
        assert sum(count for (its, _, what), count in found.items() if its == kind and what == "refused") >= 20
    sys.stdout.write("\n".join(f"{' | '.join(key)}: {count}" for key, count in sorted(found.items())) + "\n")
