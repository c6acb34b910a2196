"""Cases on the model's grid: as the network is fed with them, and made once."""

from __future__ import annotations

import pytest
import torch
from helpers import make_network
from training_data import ball, checked, prepared, write_pictures

from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.files import read_image, write_labels
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.segmenter import Segmenter
from DeepLabSegLib.tiling import Tiling
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, plan
from DeepLabSegLib.training.prepared import prepare


@pytest.mark.parametrize("dims", [2, 3])
def test_a_prepared_case_is_what_the_segmenter_feeds_its_network(dims, tmp_path, rng, monkeypatch):
    (case, *_), made = prepared(dims, tmp_path, rng)
    bundle = Bundle("t", "t", made.network, made.input, made.labels, "none", "none")
    segmenter = Segmenter(bundle, make_network(made.network), "cpu")
    fed: list[torch.Tensor] = []
    original = Segmenter._logits_of

    def listening(self, passage):
        return lambda x: fed.extend(x) or original(self, passage)(x)

    monkeypatch.setattr(Segmenter, "_logits_of", listening)
    path = next((tmp_path / "data" / "images").glob("a.*"))
    segmenter.segment(read_image(path))
    pair = Patches([case], made)[0]
    assert len(Tiling(case.shape, made.tile, 0.25).corners) == len(fed) == 1
    torch.testing.assert_close(pair[0], fed[0], atol=2e-3, rtol=0)


def test_prepared_cases_are_made_once_and_again_when_something_changed(tmp_path, rng):
    data = checked(write_pictures(tmp_path / "data", "ab", rng))
    made, folder = plan(data.fingerprint), tmp_path / "prepared"

    def stamps() -> list[int]:
        prepare(data.cases, made, folder)
        return [path.stat().st_ino for path in sorted(folder.glob("*.image.npy"))]

    first = stamps()
    assert stamps() == first
    write_labels(ball(Geometry((1, 60, 48))), data.cases[1].label, overwrite=True)
    second = stamps()
    assert second[0] == first[0]
    assert second[1] != first[1]
    made = plan(data.fingerprint, Overrides(spacing=(2.0, 2.0)))
    assert not set(stamps()) & set(second)
    assert prepare(data.cases, made, folder)[0].spacing == (1.0, 2.0, 2.0)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
