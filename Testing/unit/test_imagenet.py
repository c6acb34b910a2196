"""ImageNet's encoders in torchvision's and timm's names: recorded names, shapes and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
import torch
from torch import nn
from torch.nn import functional as F

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.models import DeepLabV3Plus, make_encoder
from DeepLabSegLib.models.layers import SamePad
from DeepLabSegLib.weights import detect, inflate, load_weights
from DeepLabSegLib.weights.adapt import for_channels
from DeepLabSegLib.weights.detect import detect_in
from DeepLabSegLib.weights.files import Stored, WeightsFile
from DeepLabSegLib.weights.imagenet import CLASSIFIER
from DeepLabSegLib.weights.load import match

NETWORKS = seeded.imagenet()["networks"]
OURS = [row for row in NETWORKS if row["fits"]]
OTHERS = {row["name"]: row for row in NETWORKS if not row["fits"]}
MEASURED = [row for row in NETWORKS if "numbers" in row]


def label(row: dict[str, Any]) -> str:
    return f"{row['package']}-{row['name']}"


def row_of(package: str, name: str) -> dict[str, Any]:
    return next(row for row in NETWORKS if (row["package"], row["name"]) == (package, name))


def file_of(row: dict[str, Any], *, classifier: bool = True) -> WeightsFile:
    """Names and shapes without numbers."""
    heads = () if classifier else ("fc.", "classifier.", "head.")
    listed = [(name, shape) for name, shape in row["tensors"] if not name.startswith(heads or ("-",))]
    return WeightsFile("torch", {n: Stored(n, tuple(s), lambda: torch.empty(0)) for n, s in listed}, {})


def saved(row: dict[str, Any], folder: Path) -> Path:
    """A torch file with seeded numbers."""
    path = folder / "w.pth"
    torch.save({name: torch.from_numpy(value) for name, value in seeded.state(row["tensors"]).items()}, path)
    return path


def on_meta(name: str, channels: int = 3, depth: int = 5) -> nn.Module:
    with torch.device("meta"):
        return make_encoder(name, (None, None, channels), depth)


# --- names and shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", OURS, ids=label)
def test_every_tensor_of_a_known_network_has_its_place(row: dict[str, Any]) -> None:
    model = on_meta(row["ours"])
    file = file_of(row)
    found, report = match(file, model, "file")
    wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert found.keys() | {name for names in report.kept.values() for name in names} == wanted
    assert len(found) + sum(map(len, report.ignored.values())) == len(file.tensors)
    assert set(report.ignored) - {"counts of batches seen"} == {CLASSIFIER}
    assert all("normalisations of levels" in rule for rule in report.kept)


@pytest.mark.parametrize("row", MEASURED, ids=label)
def test_a_file_without_its_classifier_loads_too(row: dict[str, Any]) -> None:
    _, report = match(file_of(row, classifier=False), on_meta(row["ours"]), "file")
    assert set(report.ignored) <= {"counts of batches seen"}


@pytest.mark.parametrize("row", [row for row in MEASURED if row["package"] == "torchvision"], ids=label)
def test_later_stages_are_ignored_by_name_in_a_shallower_encoder(row: dict[str, Any]) -> None:
    _, report = match(file_of(row), on_meta(row["ours"], depth=3), "file")
    assert report.ignored["levels beyond encoder_depth"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seresnet50", "squeeze-and-excitation follows each block's last normalisation"),
        ("legacy_seresnet50", "squeeze-and-excitation follows each block's last normalisation"),
        ("seresnext50_32x4d", "squeeze-and-excitation follows each block's last normalisation"),
        ("resnet50c", "shortcuts convolve with a stride"),
        ("resnetv2_50d", "stem has several convolutions"),
        ("wide_resnet50_2", r"has shape \(128, 64, 1, 1\); stages.0.0.body.conv1.weight in the model has \(64, 64"),
        ("densenet161", r"has shape \(96, 3, 7, 7\)"),
        ("convnext_atto_ols", "'stem.2.weight' is no layer of it that an encoder here has"),
        ("efficientnet_lite0", "is missing in the file"),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused_with_the_difference(name: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        match(file_of(OTHERS[name]), on_meta(OTHERS[name]["ours"]), "file")


def test_another_familys_file_is_recognised() -> None:
    with pytest.raises(WeightsError, match="the file holds torchvision's or timm's resnet, and the model's encoder is"):
        match(file_of(row_of("torchvision", "resnet18")), on_meta("densenet121"), "file")


def test_torchvisions_older_densenet_names_are_read() -> None:
    row = row_of("torchvision", "densenet121")
    old = {
        **row,
        "tensors": [[n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."), s] for n, s in row["tensors"]],
    }
    assert old["tensors"] != row["tensors"]
    assert match(file_of(old), on_meta("densenet121"), "file")[0].keys() == (
        match(file_of(row), on_meta("densenet121"), "file")[0].keys()
    )


def test_a_3d_model_is_told_how_to_get_2d_weights() -> None:
    with torch.device("meta"):
        volume = make_encoder("resnet18", (None, None, None, 1))
    with pytest.raises(WeightsError, match=r"carry that over with weights\.inflate"):
        match(file_of(row_of("torchvision", "resnet18")), volume, "file")


@pytest.mark.parametrize("row", MEASURED, ids=label)
def test_an_imagenet_file_is_detected(row: dict[str, Any]) -> None:
    found = detect_in(file_of(row), "file")
    assert found.names == (row["ours"],)
    assert (found.dims, found.in_channels, found.num_classes) == (2, 3, None)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", MEASURED, ids=label)
def test_the_pyramid_equals_the_one_of_the_package_it_is_from(row: dict[str, Any], tmp_path: Path) -> None:
    model = make_encoder(row["ours"], (None, None, 3)).eval()
    load_weights(model, saved(row, tmp_path))
    with torch.no_grad():
        pyramid = model(torch.from_numpy(seeded.image([*row["numbers"]["size"], 3])).movedim(-1, 1))
    for level, (shape, largest, picked) in zip(pyramid, row["numbers"]["levels"], strict=True):
        assert list(level.shape) == shape
        flat = level.flatten()
        got = flat[torch.linspace(0, len(flat) - 1, len(picked)).long()] / largest
        torch.testing.assert_close(got, torch.tensor(picked), rtol=0, atol=1e-4)
        assert np.std(picked) > 1e-3


def test_a_networks_encoder_is_filled_and_its_decoder_kept(tmp_path: Path) -> None:
    model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(None, None, 1), encoder_depth=4)
    before = model.head.weight.clone()
    report = load_weights(model, saved(row_of("torchvision", "resnet18"), tmp_path))
    assert torch.equal(model.head.weight, before)
    assert list(report.kept) == ["the decoder: the file holds a backbone alone"]
    assert "the first layer's 3 colours, brought to 1 channels" in str(report)


def test_what_computes_otherwise_there_is_said(tmp_path: Path) -> None:
    model = make_encoder("densenet121", (None, None, 3), 3)
    report = load_weights(model, saved(row_of("torchvision", "densenet121"), tmp_path))
    assert "differs: strided layers pad as Keras's" in str(report)
    assert "gains rescaled for the constant 1e-05" in str(report)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_equal_channels_give_the_answer_of_a_grey_picture(channels: int) -> None:
    kernel, grey = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    expected = F.conv2d(grey.expand(-1, 3, -1, -1), kernel)
    got = F.conv2d(grey.expand(-1, channels, -1, -1), for_channels(kernel, channels))
    torch.testing.assert_close(got, expected)


def test_a_file_for_grey_pictures_is_found_in_its_package_names(tmp_path: Path) -> None:
    row = row_of("timm", "convnextv2_atto")
    assert detect(saved(row, tmp_path)).names == ("convnext_v2_atto",)


# --- 3D --------------------------------------------------------------------------------------------------------------


def without_borders(model: nn.Module) -> None:
    """Pad along depth by repeating the first and last slices, so that a stack of equal slices has no ends."""

    def repeat(before: int, after: int) -> Any:
        return lambda _, x: (F.pad(x[0], (0, 0, 0, 0, before, after), mode="replicate"),)

    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.padding[0]:
            module.register_forward_pre_hook(repeat(module.padding[0], module.padding[0]))
            module.padding = (0, *module.padding[1:])
        elif isinstance(module, SamePad):
            module.register_forward_hook(lambda _, x, y: edges_repeated(x[0], y))


def edges_repeated(x: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """`padded`, whose added slices along depth are those of the middle."""
    middle = padded.shape[2] // 2
    return padded[:, :, middle : middle + 1].expand_as(padded) if padded.shape[2] > x.shape[2] else padded


INFLATED = (
    "resnet18",
    "resnet50_vd",
    "seresnet18",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_b0",
    "convnext_tiny",
    "convnext_v2_atto",
)


@pytest.mark.parametrize("name", INFLATED)
def test_a_stack_of_equal_slices_gives_the_2d_answer(name: str) -> None:
    flat, volume = (make_encoder(name, (*(None,) * dims, 2)).eval().double() for dims in (2, 3))
    for module in flat.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
    report = inflate(flat, volume)
    assert report.loaded.keys() == volume.state_dict().keys()
    without_borders(volume)
    picture = torch.randn(1, 2, 40, 33, dtype=torch.float64)
    with torch.no_grad():
        expected = flat(picture)
        got = volume(picture.unsqueeze(2).expand(-1, -1, 32, -1, -1))
    for level, slices in zip(expected, got, strict=True):
        repeated = level.unsqueeze(2).expand_as(slices)
        torch.testing.assert_close(slices / level.abs().max(), repeated / level.abs().max(), rtol=0, atol=1e-5)


def test_slices_far_from_the_ends_give_the_2d_answer_as_they_are() -> None:
    flat, volume = (make_encoder("resnet18", (*(None,) * dims, 1), 3).eval() for dims in (2, 3))
    inflate(flat, volume)
    picture = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = flat(picture)
        got = volume(picture.unsqueeze(2).expand(-1, -1, 128, -1, -1))
    for level, slices in zip(expected, got, strict=True):
        torch.testing.assert_close(slices[:, :, slices.shape[2] // 2], level, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(slices[:, :, 0], level, rtol=1e-4, atol=1e-4)


def test_an_imagenet_file_reaches_a_whole_3d_network(tmp_path: Path) -> None:
    options = {"encoder_name": "convnext_v2_atto", "encoder_depth": 4, "decoder_channels": 8, "projection_filters": 8}
    flat = DeepLabV3Plus(input_shape=(None, None, 1), **options)
    volume = DeepLabV3Plus(input_shape=(None, None, None, 1), **options)
    load_weights(flat, saved(row_of("timm", "convnextv2_atto"), tmp_path))
    assert inflate(flat, volume).loaded.keys() == volume.state_dict().keys()
    kernel = volume.encoder.downsamplings[0].conv.weight
    torch.testing.assert_close(kernel.sum(2), flat.encoder.downsamplings[0].conv.weight)


def test_networks_that_differ_in_more_than_depth_are_refused() -> None:
    flat, volume = make_encoder("resnet18", (None, None, 1), 3), make_encoder("resnet18", (None, None, None, 2), 3)
    before = volume.stem.conv1.weight.clone()
    with pytest.raises(WeightsError, match=r"stem.conv1.weight has shape \(64, 1, 7, 7\) in 2D and \(64, 2, 7, 7, 7\)"):
        inflate(flat, volume)
    with pytest.raises(WeightsError, match="has no place in the 3D model"):
        inflate(make_encoder("resnet18", (None, None, 2)), volume)
    with pytest.raises(WeightsError, match=r"stages\.2\.0\S+ \(.*\) is missing in the 2D model"):
        inflate(flat, make_encoder("resnet18", (None, None, None, 1)))
    small = make_encoder("resnet18", (None, None, 2), 3)
    small.stem.conv1 = nn.Conv2d(2, 64, 1, bias=False)  # which torch would copy into any larger kernel
    with pytest.raises(WeightsError, match=r"stem\.conv1\.weight has shape \(64, 2, 1, 1\)"):
        inflate(small, volume)
    assert torch.equal(volume.stem.conv1.weight, before)
