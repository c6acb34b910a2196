"""Detection of the network a weights file belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import seeded
import torch

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.models import ENCODERS, DeepLabV3Plus, make_encoder
from DeepLabSegLib.weights import detect, load_weights
from DeepLabSegLib.weights.detect import Detection, detect_in
from DeepLabSegLib.weights.files import Stored, WeightsFile

SMALLEST = (
    "resnet18",
    "resnet50_v2",
    "resnet50_vd",
    "resnext50",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_b0",
    "convnext_tiny",
    "convnext_v2_atto",
    "seresnet18",
)


def shapes_of(model: torch.nn.Module, prefix: str = "") -> WeightsFile:
    """What a file of `model`'s state_dict would show, without its numbers."""
    tensors = {
        prefix + name: Stored(name, tuple(t.shape), lambda: torch.empty(0)) for name, t in model.state_dict().items()
    }
    return WeightsFile("torch", tensors, {})


def depths(name: str) -> tuple[int, ...]:
    return (3, 4) if ENCODERS[name] == "convnext" else (3, 4, 5)


def check(name: str, dims: int, depth: int) -> None:
    """The network is found; other names are offered only where they make the same network."""
    shape = (*(64,) * dims, 2)
    with torch.device("meta"):
        model = DeepLabV3Plus(encoder_name=name, input_shape=shape, encoder_depth=depth, num_classes=5)
    found = detect_in(shapes_of(model), name)
    assert name in found.names
    assert (found.dims, found.in_channels, found.num_classes) == (dims, 2, 5)
    assert found.encoder_depth == depth
    assert found.family == ENCODERS[name]
    own = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    for other in found.names:
        with torch.device("meta"):
            same = DeepLabV3Plus(encoder_name=other, input_shape=shape, encoder_depth=depth, num_classes=5)
        assert {key: tuple(t.shape) for key, t in same.state_dict().items()} == own
    assert found.sure or any("one network" in text for text in found.open)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", SMALLEST)
def test_a_network_is_found_from_its_names_and_shapes(name: str, dims: int) -> None:
    for depth in depths(name):
        check(name, dims, depth)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ENCODERS) - set(SMALLEST)))
def test_every_network_is_found_from_its_names_and_shapes(name: str) -> None:
    for dims in (2, 3):
        for depth in depths(name):
            check(name, dims, depth)


def of_recording(recording: dict[str, Any], within: str = "") -> Detection:
    groups = [(within + path, name, shapes) for path, name, shapes in recording["groups"]]
    tensors = {
        f"{path}/vars/{n}": Stored(path, tuple(shape), lambda: torch.empty(0))
        for path, _, shapes in groups
        for n, shape in enumerate(shapes)
    }
    return detect_in(WeightsFile("keras", tensors, {path: name for path, name, _ in groups}), "recording")


@pytest.mark.parametrize("recording", seeded.recordings(), ids=lambda r: r["arguments"]["encoder_name"])
def test_a_reference_network_is_found_whatever_its_depth(recording: dict[str, Any]) -> None:
    arguments = recording["arguments"]
    found = of_recording(recording)
    assert found.names == (arguments["encoder_name"],)
    assert found.sure
    assert found.encoder_depth == arguments["encoder_depth"]
    assert found.spec is not None
    for option in ("num_classes", "decoder_channels", "projection_filters"):
        assert getattr(found.spec, option) == arguments[option]
    assert found.spec.input_shape == (*(None,) * (len(arguments["input_shape"]) - 1), arguments["input_shape"][-1])
    assert len(found.spec.decoder_dilation_rates) == len(arguments["decoder_dilation_rates"])


def test_where_two_levels_have_equally_many_channels_the_layers_that_are_run_tell_the_depth() -> None:
    recording = seeded.recorded("densenet121")
    fifth = ("block2_trans", "block3_")
    groups = [(f"encoder/{path}" if name.startswith(fifth) else path, name, s) for path, name, s in recording["groups"]]
    assert (of_recording(recording).encoder_depth, of_recording({"groups": groups}).encoder_depth) == (5, 4)


@pytest.mark.parametrize("within", ["segmenter/", "layers/deep_lab_v3_plus/"])
@pytest.mark.parametrize("name", ["densenet121", "resnext50"])
def test_a_reference_network_is_found_within_a_model_of_ones_own(name: str, within: str) -> None:
    recording = seeded.recorded(name)
    assert of_recording(recording, within) == of_recording(recording)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("norm", ["batch", "layer", "unit", "group", "instance"])
def test_decoder_options_are_found_or_named_as_open(norm: str, separable: bool) -> None:
    options = {"decoder_normalization": norm, "decoder_aspp_separable": separable, "projection_filters": 32}
    with torch.device("meta"):
        model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(64, 64, 1), encoder_depth=3, **options)
    found = detect_in(shapes_of(model), "file")
    assert found.spec is not None
    assert found.spec.decoder_aspp_separable == separable
    assert found.spec.decoder_normalization == norm or any(norm in text for text in found.open)


def test_a_backbone_alone_is_found_and_says_so() -> None:
    for name in SMALLEST:
        with torch.device("meta"):
            encoder = make_encoder(name, (64, 64, 64, 1))
        found = detect_in(shapes_of(encoder), name)
        assert found.names == (name,)
        assert found.spec is None
        assert "backbone" in str(found)


def test_a_network_of_no_known_variant_is_named_by_its_family() -> None:
    from DeepLabSegLib.models import DenseNetBackbone

    with torch.device("meta"):
        encoder = DenseNetBackbone((64, 64, 1), blocks=[2, 3, 4], growth_rate=8)
        found = detect_in(shapes_of(DeepLabV3Plus(encoder=encoder, encoder_depth=4)), "file")
    assert (found.family, found.names, found.spec) == ("densenet", (), None)
    assert "no known variant of densenet, 2D, 1 channels in, DeepLabV3+, 1 classes" in str(found)


def test_a_detected_file_opens(tmp_path: Path) -> None:
    source = DeepLabV3Plus(encoder_name="convnext_v2_atto", input_shape=(64, 64, 1), encoder_depth=3, num_classes=2)
    torch.save({"state_dict": {f"module.{name}": t for name, t in source.state_dict().items()}}, tmp_path / "w.pt")
    spec = detect(tmp_path / "w.pt").spec
    assert spec is not None
    opened = DeepLabV3Plus.from_spec(spec)
    load_weights(opened, tmp_path / "w.pt")
    assert torch.equal(opened.head.weight, source.head.weight)


def test_a_keras_archive_closes_what_tensors_leave_open(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    groups = seeded.recorded("convnext_v2_atto")["groups"]
    weights = seeded.write(tmp_path / "w.h5", groups, seeded.values(groups))
    stated = {"decoder_dilation_rates": [1, 2], "classifier_activation": "softmax", "head_upsample": 8}
    seeded.write_archive(tmp_path / "m.keras", weights, stated)
    found = detect(tmp_path / "m.keras")
    assert found.spec is not None
    assert found.spec.decoder_dilation_rates == (1, 2)
    assert found.spec.classifier_activation == "softmax"
    assert found.spec.head_upsample == 8
    assert [text.split()[0] for text in found.open] == ["decoder_activation"]


def test_a_function_of_ones_own_in_a_configuration_leaves_its_argument_open() -> None:
    model = DeepLabV3Plus(encoder_name="convnext_v2_atto", input_shape=(64, 64, 1), encoder_depth=3)
    config = {"config": {"decoder_activation": "my_own", "classifier_activation": {"class_name": "Own"}}}
    found = detect_in(WeightsFile("torch", shapes_of(model).tensors, {}, config), "file")
    assert found.names == ("convnext_v2_atto",)
    assert {"decoder_activation", "classifier_activation"} <= {text.split()[0] for text in found.open}


def test_a_configuration_with_other_branches_than_the_tensors_is_not_believed() -> None:
    model = DeepLabV3Plus(encoder_name="convnext_v2_atto", input_shape=(64, 64, 1), encoder_depth=3)
    config = {"config": {"decoder_dilation_rates": [1] * 1_000_000}}
    found = detect_in(WeightsFile("torch", shapes_of(model).tensors, {}, config), "file")
    assert found.spec is not None
    assert len(found.spec.decoder_dilation_rates) == 3
    assert any("decoder_dilation_rates" in text for text in found.open)


@pytest.mark.parametrize("shape", [(64,), (64, 0, 7, 7), (64, 1, 7), (64, 2**62, 7, 7)])
def test_shapes_that_make_no_network_are_refused_or_fit_nothing(shape: tuple[int, ...]) -> None:
    file = shapes_of(make_encoder("resnet18", (32, 32, 1), 3))
    tensors = {**file.tensors, "stem.conv1.weight": Stored("stem.conv1.weight", shape, lambda: torch.empty(0))}
    with pytest.raises(WeightsError):
        detect_in(WeightsFile("torch", tensors, {}), "file")


def test_names_of_another_origin_are_refused() -> None:
    with pytest.raises(WeightsError, match="no network known here"):
        detect_in(shapes_of(torch.nn.Linear(2, 2)), "file")
