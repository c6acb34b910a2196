"""Loading weights: medicai's, recorded; torch's, ours; and files that are damaged or mean harm."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
import torch
from helpers import make_segmenter, save_model
from safetensors.torch import save_file
from torch import nn

from DeepLabSegLib.catalog import tensors_file
from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.models import DeepLabV3Plus, EfficientNetBackbone, make_encoder
from DeepLabSegLib.weights import convert, detect, inflate, load_weights

SMALL = {"input_shape": (32, 32, 1), "decoder_channels": 16, "projection_filters": 8, "decoder_dilation_rates": (1, 2)}


def label(recording: dict[str, Any]) -> str:
    arguments = recording["arguments"]
    return f"{arguments['encoder_name']}-{len(arguments['input_shape']) - 1}D-P{arguments['encoder_depth']}"


def network(name: str = "efficientnet_b0", depth: int = 3, **options: Any) -> DeepLabV3Plus:
    return DeepLabV3Plus(encoder_name=name, encoder_depth=depth, **{**SMALL, **options}).eval()


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(torch.linspace(-1, 1, 1024).view(1, 1, 32, 32))


# --- medicai's files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", seeded.recordings(), ids=label)
def test_a_reference_network_gives_its_logits_here(recording: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    arrays = seeded.values(recording["groups"])
    path = seeded.write(tmp_path / "w.weights.h5", recording["groups"], arrays)
    model = DeepLabV3Plus(**recording["arguments"]).eval()
    report = load_weights(model, path)
    with torch.no_grad():
        got = model(torch.from_numpy(seeded.image(recording["arguments"]["input_shape"])).movedim(-1, 1))
    assert list(got.shape) == recording["shape"]
    kept = got[:, :, ::5, ::5] if got.ndim == 4 else got[:, :, ::6, ::6, ::6]
    expected = torch.tensor(recording["logits"])
    assert expected.std() > 1e-3
    torch.testing.assert_close(kept / recording["scale"], expected, rtol=0, atol=1e-4)
    accounted = len(report.loaded) + sum(map(len, report.ignored.values()))
    assert accounted == len(arrays)
    assert not report.kept


@pytest.fixture
def file(tmp_path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], Path]:
    """A small network of the reference: arguments, arrays by name, and where to write."""
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    recording = seeded.recorded("convnext_v2_atto")
    return recording, seeded.values(recording["groups"]), tmp_path / "w.weights.h5"


def test_a_keras_archive_loads_like_the_weights_in_it(file: tuple) -> None:
    recording, arrays, path = file
    seeded.write(path, recording["groups"], arrays)
    archive = seeded.write_archive(path.with_name("model.keras"), path)
    models = [DeepLabV3Plus(**recording["arguments"]) for _ in range(2)]
    for model, source in zip(models, (path, archive), strict=True):
        load_weights(model, source)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_network_within_a_keras_model_of_ones_own_loads_too(file: tuple) -> None:
    recording, arrays, path = file
    groups = [(f"segmenter/{group}", name, shapes) for group, name, shapes in recording["groups"]]
    seeded.write(path, groups, {f"segmenter/{name}": array for name, array in arrays.items()})
    report = load_weights(DeepLabV3Plus(**recording["arguments"]), path)
    assert len(report.loaded) == len(arrays)


@pytest.mark.parametrize("classifier", ["softmax", {"class_name": "Own"}])
def test_a_keras_archive_of_other_arguments_warns_of_those_that_no_tensor_tells(file: tuple, classifier: Any) -> None:
    recording, arrays, path = file
    seeded.write(path, recording["groups"], arrays)
    given = {**recording["arguments"], "decoder_activation": "silu"}
    same = {"decoder_activation": "swish", "decoder_normalization": "sync_batch", "classifier_activation": classifier}
    stated = {**given, **same, "decoder_dilation_rates": [5, 6]}
    archive = seeded.write_archive(path.with_name("model.keras"), path, stated)
    model = DeepLabV3Plus(**given)
    assert model.spec.classifier_activation == "linear"  # whose logits are those of any classifier
    with pytest.warns(UserWarning, match=r"decoder_dilation_rates \(5, 6\), and the model .*other numbers") as told:
        report = load_weights(model, archive)
    assert len(told) == len(report.differs) == 1
    load_weights(model.encoder, archive)  # which has no decoder, and warns of none


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_models_weights_over_other_arguments_than_its_json_says_warn_of_them(name: str, tmp_path: Path) -> None:
    saved = make_segmenter(2)
    tensors = tensors_file(save_model(tmp_path / name, saved))
    with pytest.warns(UserWarning, match=r"decoder_dilation_rates \(2, 4\), and the model \(1, 2\).*other numbers"):
        load_weights(DeepLabV3Plus.from_spec(replace(saved.network.spec, decoder_dilation_rates=(1, 2))), tensors)
    load_weights(DeepLabV3Plus.from_spec(replace(saved.network.spec, classifier_activation=None)), tensors)
    *_, changed, assumed = convert(tmp_path / name, network={"decoder_dilation_rates": (1, 2)})
    assert (changed.spec.decoder_dilation_rates, assumed) == ((1, 2), ())  # as was asked for


def test_a_backbones_file_fills_the_encoder_and_keeps_the_decoder(file: tuple) -> None:
    recording, arrays, path = file
    decoder = ("aspp", "decoder", "low_level", "pyramid", "conv2d")
    groups = [g for g in recording["groups"] if not g[1].startswith(decoder) and "atrous" not in g[0]]
    kept = {f"{g}/vars/{n}" for g, _, shapes in groups for n in range(len(shapes))}
    seeded.write(path, groups, {name: a for name, a in arrays.items() if name in kept})
    model = DeepLabV3Plus(**recording["arguments"])
    before = model.head.weight.clone()
    report = load_weights(model, path)
    assert torch.equal(model.head.weight, before)
    assert all(name.startswith("encoder.") for name in report.loaded)
    assert any("backbone alone" in rule for rule in report.kept)
    assert "backbone alone" in str(report)
    encoder = make_encoder("convnext_v2_atto", recording["arguments"]["input_shape"], 4)
    assert load_weights(encoder, path).loaded.keys() == {n.removeprefix("encoder.") for n in report.loaded}


def test_training_state_is_ignored_by_name(file: tuple) -> None:
    recording, arrays, path = file
    extra = {
        "optimizer/vars/0": np.int64(3),
        "loss_tracker/vars/0": np.zeros(2, "float32"),
        "layers/dropout/seed_generator/vars/0": np.zeros(2, "uint32"),
    }
    seeded.write(path, recording["groups"], {**arrays, **extra})
    report = load_weights(DeepLabV3Plus(**recording["arguments"]), path)
    assert report.ignored == {
        "the optimizer's state": ["optimizer/vars/0"],
        "metrics": ["loss_tracker/vars/0"],
        "states of random generators": ["layers/dropout/seed_generator/vars/0"],
    }


def test_the_normalisation_of_an_efficientnets_input_loads_without_its_count(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    recording = seeded.recorded("efficientnet_b0")
    groups = [*recording["groups"], ["layers/normalization", "normalization_1", [[1], [1], []]]]
    learned = {"0": np.full(1, 0.5, "float32"), "1": np.full(1, 2, "float32"), "2": np.int64(99)}
    arrays = {f"layers/normalization/vars/{n}": value for n, value in learned.items()}
    seeded.write(tmp_path / "w.h5", groups, seeded.values(recording["groups"]) | arrays)
    encoder = EfficientNetBackbone((41, 50, 1), width_coefficient=1.0, depth_coefficient=1.0, include_rescaling=True)
    report = load_weights(encoder, tmp_path / "w.h5")
    assert (encoder.rescale.mean, encoder.rescale.variance) == (0.5, 2)
    assert report.ignored["counts of samples seen"] == ["layers/normalization/vars/2"]


def test_of_two_networks_in_a_keras_file_none_is_chosen(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    groups = [(f"{of}/layers/conv2d", "conv1_conv", [[7, 7, 1, 64]]) for of in ("pupil", "teacher")]
    arrays = {f"{group}/vars/0": np.zeros((7, 7, 1, 64), "float32") for group, *_ in groups}
    seeded.write(tmp_path / "w.h5", groups, arrays)
    with pytest.raises(WeightsError, match="the file holds two networks"):
        load_weights(network("resnet18"), tmp_path / "w.h5")


def test_stages_beyond_the_depth_are_ignored_by_name(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    recording = seeded.recorded("resnext50")
    path = seeded.write(tmp_path / "w.h5", recording["groups"], seeded.values(recording["groups"]))
    report = load_weights(DeepLabV3Plus(**recording["arguments"]), path)
    assert list(report.ignored) == ["levels beyond encoder_depth"]
    assert all("encoder/layers/" in name for name in report.ignored["levels beyond encoder_depth"])


@pytest.mark.parametrize("channels", [40, 320], ids=["in the encoder", "of the level that the decoder reads"])
def test_a_missing_tensor_is_named_with_its_shape_and_nothing_is_loaded(file: tuple, channels: int) -> None:
    recording, arrays, path = file
    lost = [name for name, a in arrays.items() if a.shape == (channels,)][-1]
    seeded.write(path, recording["groups"], {name: a for name, a in arrays.items() if name != lost})
    model = DeepLabV3Plus(**recording["arguments"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"encoder\.\S+ \({channels}\) is missing"):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_shape_is_named_on_both_sides(file: tuple) -> None:
    recording, arrays, path = file
    seeded.write(path, recording["groups"], arrays)
    model = DeepLabV3Plus(**{**recording["arguments"], "num_classes": 7})
    with pytest.raises(WeightsError, match=r"has shape \(1, 1, 16, 3\); head.weight in the model has \(7, 16, 1, 1\)"):
        load_weights(model, path)


def test_another_familys_file_is_recognised(file: tuple) -> None:
    recording, arrays, path = file
    seeded.write(path, recording["groups"], arrays)
    with pytest.raises(WeightsError, match="the file holds a convnext, and the model's encoder is a resnet"):
        load_weights(network("resnet18"), path)


def test_an_unknown_layer_is_named(file: tuple) -> None:
    recording, arrays, path = file
    group = ["layers/dense_99", "my_own_layer", [[3]]]
    seeded.write(path, [*recording["groups"], group], {**arrays, "layers/dense_99/vars/0": np.zeros(3, "float32")})
    with pytest.raises(WeightsError, match="my_own_layer"):
        load_weights(DeepLabV3Plus(**recording["arguments"]), path)


def test_a_file_without_layer_names_says_how_to_get_them(file: tuple) -> None:
    _, arrays, path = file
    seeded.write(path, [], arrays)
    with pytest.raises(WeightsError, match="save it again"):
        load_weights(network("convnext_v2_atto"), path)


def test_without_h5py_the_message_says_what_to_install(file: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, arrays, path = file
    seeded.write(path, recording["groups"], arrays)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match="pip install h5py"):
        load_weights(network(), path)


def test_an_encoder_of_the_users_own_has_no_table(file: tuple) -> None:
    recording, arrays, path = file
    seeded.write(path, recording["groups"], arrays)

    class Own(nn.Module):
        channels, strides, input_shape = (4, 4, 4), (2, 4, 8), (32, 32, 1)

    with pytest.raises(WeightsError, match="Own"):
        load_weights(DeepLabV3Plus(encoder=Own(), encoder_depth=3), path)


# --- torch's files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "segmenter.", "ema.my_net."])
@pytest.mark.parametrize("kind", ["torch", "checkpoint", "safetensors"])
def test_a_state_dict_loads_under_any_wrapper(kind: str, prefix: str, dims: int, tmp_path: Path) -> None:
    shape = (*(32,) * dims, 1)
    torch.manual_seed(0)
    source, target = (network("convnext_v2_atto", input_shape=shape) for _ in range(2))
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "checkpoint" else state, path)
    report = load_weights(target, path)
    assert len(report.loaded) == sum(not name.endswith("num_batches_tracked") for name in state)
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("before", ["", "module.", "segmenter."])
@pytest.mark.parametrize("within", ["_orig_mod.", "module.", "my_backbone."])
@pytest.mark.parametrize("name", ["convnext_v2_atto", "resnet18"])
def test_a_network_whose_encoder_alone_was_wrapped_loads_whole(
    name: str, within: str, before: str, dims: int, tmp_path: Path
) -> None:
    source, target = (network(name, input_shape=(*(32,) * dims, 1)) for _ in range(2))
    state = {before + key.replace("encoder.", f"encoder.{within}", 1): t for key, t in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)
    found = detect(tmp_path / "w.pt")
    assert (found.names, found.num_classes) == ((name,), 1)


def test_a_network_over_a_users_own_encoder_around_one_of_ours_takes_its_own_weights(tmp_path: Path) -> None:
    class Own(nn.Module):
        channels, strides, input_shape = (64, 64, 128), (2, 4, 8), (32, 32, 1)

        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner = nn.Conv2d(1, 3, 1), make_encoder("resnet18", (32, 32, 3), 3)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return self.inner(self.before(x))

    source, target = (DeepLabV3Plus(encoder=Own(), encoder_depth=3, decoder_channels=16).eval() for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(output(target), output(source))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "best_metric": torch.tensor(0.9)},
        lambda state: {"epoch": torch.tensor(5), "model": state, "optimizer": {}},
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{name}": t for name, t in state.items()}},
        lambda state: {**{f"model.{name}": t for name, t in state.items()}, "criterion.weight": torch.ones(2)},
        lambda state: {"module.loss.w": torch.ones(2), **{f"module.model.{name}": t for name, t in state.items()}},
    ],
    ids=["best measure", "epoch", "averaged", "loss", "loss in a wrapper"],
)
@pytest.mark.parametrize("name", ["convnext_v2_atto", "resnet18"])
def test_a_checkpoint_may_hold_more_than_the_network(name: str, wrap: Any, tmp_path: Path) -> None:
    source, target = network(name), network(name)
    held = wrap(source.state_dict())
    torch.save(held, tmp_path / "w.pt")
    report = load_weights(target, tmp_path / "w.pt")
    assert torch.equal(output(target), output(source))
    beside = [key for key in held if "n_averaged" in key or "criterion" in key or "loss" in key]
    assert report.ignored.get("tensors beside the network, outside of its wrapper", []) == beside
    found = detect(tmp_path / "w.pt")
    assert found.names == (name,)


@pytest.mark.parametrize(
    "keys", [("model_state_dict",), ("net",), ("network_weights",), ("module",), ("model", "state_dict")], ids=".".join
)
def test_weights_lie_under_the_keys_of_many_training_scripts(keys: tuple[str, ...], tmp_path: Path) -> None:
    source, target = network("convnext_v2_atto"), network("convnext_v2_atto")
    held: Any = dict(source.named_parameters()) | dict(source.named_buffers())  # parameters, and no state_dict
    for key in reversed(keys):
        held = {"epoch": 3, key: held}
    torch.save(held, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(output(target), output(source))


@pytest.mark.parametrize(
    ("average", "plain"), [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "model")]
)
def test_of_weights_and_their_average_under_keys_the_average_is_taken_as_in_timm(
    average: str, plain: str, tmp_path: Path
) -> None:
    averaged, last, target = (network("convnext_v2_atto") for _ in range(3))
    ema = {f"module.{name}": t for name, t in averaged.state_dict().items()} | {"n_averaged": torch.tensor(3)}
    torch.save({plain: last.state_dict(), average: ema, "epoch": 3}, tmp_path / "w.pt")
    report = load_weights(target, tmp_path / "w.pt")
    assert torch.equal(output(target), output(averaged))
    beside = report.ignored["tensors beside the network, outside of its wrapper"]
    assert beside == ["n_averaged", *(f"{plain}.{name}" for name in last.state_dict())]
    torch.save({plain: last.state_dict(), average: {"module": ema, "updates": 3}}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(output(target), output(averaged))
    for empty in ({}, {"decay": 0.9}):
        torch.save({plain: last.state_dict(), average: empty}, tmp_path / "w.pt")
        load_weights(target, tmp_path / "w.pt")
        assert torch.equal(output(target), output(last))


def test_of_two_networks_in_a_checkpoint_none_is_chosen(tmp_path: Path) -> None:
    state = network("convnext_v2_atto").state_dict()
    torch.save({f"{prefix}.{name}": t for name, t in state.items() for prefix in ("model", "net")}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"(model|net)\.encoder\.\S+ \(.*\) has no place"):
        load_weights(network("convnext_v2_atto"), tmp_path / "w.pt")


@pytest.mark.parametrize("average", ["ema_model.", "ema.module."])
def test_of_a_network_and_its_average_the_network_is_taken(average: str, tmp_path: Path) -> None:
    source, target = network("resnet18"), network("resnet18")
    state = source.state_dict()
    held = {f"model.{name}": t for name, t in state.items()} | {f"{average}{name}": -t for name, t in state.items()}
    torch.save(held, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(output(target), output(source))


def test_what_does_not_fit_says_how_to_find_the_network_or_take_its_encoder(tmp_path: Path) -> None:
    source, target = network("resnet18", num_classes=5), network("resnet18", num_classes=2)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"head\.bias(.|\n)*weights\.detect.*load_weights\(model\.encoder, path\)"):
        load_weights(target, tmp_path / "w.pt")
    load_weights(target.encoder, tmp_path / "w.pt")
    assert torch.equal(target.encoder.stem[0].weight, source.encoder.stem[0].weight)
    with pytest.raises(WeightsError, match="is a folder; give the weights file in it"):
        load_weights(target, tmp_path)
    with pytest.raises(WeightsError, match="DataParallel; give the network inside"):
        load_weights(nn.DataParallel(target), tmp_path / "w.pt")


def test_a_pickle_of_a_later_protocol_is_called_that(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(WeightsError, match="protocol 4 or later"):
        load_weights(network(), tmp_path / "w.pt")


def test_a_deeper_encoders_state_dict_loads_into_a_shallower_one(tmp_path: Path) -> None:
    deep, shallow = make_encoder("densenet121", (32, 32, 1)), make_encoder("densenet121", (32, 32, 1), 3)
    torch.save(deep.state_dict(), tmp_path / "w.pt")
    report = load_weights(shallow, tmp_path / "w.pt")
    assert torch.equal(shallow.stages[1][0].conv1.weight, deep.stages[1][0].conv1.weight)
    assert set(report.ignored) == {"levels beyond encoder_depth", "counts of batches seen"}


def test_an_encoders_state_dict_fills_a_networks_encoder_and_keeps_its_decoder(tmp_path: Path) -> None:
    source, target = network("convnext_v2_atto"), network("convnext_v2_atto")
    state, head = source.encoder.state_dict(), target.head.weight.clone()
    torch.save(state, tmp_path / "w.pt")
    report = load_weights(target, tmp_path / "w.pt")
    assert list(report.kept) == ["the decoder: the file holds a backbone alone"]
    assert torch.equal(target.head.weight, head)
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.encoder.state_dict().items())
    torch.save({name: tensor for name, tensor in state.items() if name != "norms.1.weight"}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"encoder\.norms\.1\.weight \(80\) is missing"):
        load_weights(target, tmp_path / "w.pt")


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_a_whole_encoders_state_dict_loads_into_one_of_a_level_or_two(name: str, depth: int, tmp_path: Path) -> None:
    torch.save(make_encoder(name, (32, 32, 1)).state_dict(), tmp_path / "w.pt")
    shallow = make_encoder(name, (32, 32, 1), depth)
    wanted = {key for key in shallow.state_dict() if not key.endswith("num_batches_tracked")}
    assert load_weights(shallow, tmp_path / "w.pt").loaded.keys() == wanted


def test_a_named_networks_state_dict_loads_over_a_backbone_handed_in(tmp_path: Path) -> None:
    named = network("convnext_v2_atto")
    torch.save(named.state_dict(), tmp_path / "w.pt")
    options = {key: value for key, value in SMALL.items() if key != "input_shape"}
    handed = DeepLabV3Plus(encoder=make_encoder("convnext_v2_atto", (32, 32, 1)), encoder_depth=3, **options)
    with pytest.raises(WeightsError, match=r"encoder\.downsamplings\.3"):
        load_weights(handed, tmp_path / "w.pt")
    handed = DeepLabV3Plus(encoder=make_encoder("convnext_v2_atto", (32, 32, 1), 3), encoder_depth=3, **options).eval()
    report = load_weights(handed, tmp_path / "w.pt")
    assert report.kept == {
        "normalisations of levels that the decoder doesn't read": ["encoder.norms.0.weight", "encoder.norms.0.bias"]
    }
    assert torch.equal(output(handed), output(named))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_take_the_models(dtype: torch.dtype, tmp_path: Path) -> None:
    model, source = network(), network()
    torch.save({name: tensor.to(dtype) for name, tensor in source.state_dict().items()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, source.head.weight.to(dtype).float())


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_what_is_no_fraction_is_no_weight(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    model = network()
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    (torch.save if kind == "torch" else save_file)(state, tmp_path / "w")
    with pytest.raises(WeightsError, match=rf"is of type {dtype}; weights are floating-point"):
        load_weights(model, tmp_path / "w")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_loaded(value: float, tmp_path: Path) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    state["head.bias"] = state["head.bias"].double() + value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"head\.bias holds infinite numbers or NaN"):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with torch.device("meta"):
        empty = network()
    with pytest.raises(WeightsError, match="to_empty"):
        load_weights(empty, tmp_path / "w.pt")
    for flat, model in ((empty, network(input_shape=(32, 32, 32, 1))), (network(), empty)):
        with pytest.raises(WeightsError, match="to_empty"):
            inflate(flat, model)
    filled = empty.to_empty(device="cpu")
    assert load_weights(filled, tmp_path / "w.pt").loaded


# --- volumes in torchvision's names ----------------------------------------------------------------------------------


def in_torchvisions_names(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict of a resnet of ours, named as MedicalNet and MONAI name theirs."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        for pattern, theirs in (
            (r"stem\.conv1", "conv1"),
            (r"stem\.norm1", "bn1"),
            (r"stages\.(\d)\.(\d)\.body\.", lambda at: f"layer{int(at[1]) + 1}.{at[2]}."),
            (r"stages\.(\d)\.(\d)\.shortcut\.", lambda at: f"layer{int(at[1]) + 1}.{at[2]}.downsample."),
            (r"norm(\d)", r"bn\1"),
            (r"downsample\.conv", "downsample.0"),
            (r"downsample\.norm", "downsample.1"),
        ):
            name = re.sub(pattern, theirs, name)
        state[f"module.{name}"] = tensor
    return state


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_volumes_in_torchvisions_names_loads_into_a_3d_encoder(name: str, tmp_path: Path) -> None:
    source, target = (make_encoder(name, (32, 32, 32, 1)).eval() for _ in range(2))
    torch.save({"state_dict": in_torchvisions_names(source)}, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    x = torch.randn(1, 1, 32, 32, 32)
    assert torch.equal(target(x)[-1], source(x)[-1])
    assert "strides and dilations of their own" in str(report)
    found = detect(tmp_path / "w.pth")
    assert (found.names, found.dims) == ((name,), 3)
    assert "3D" in str(found)


def test_a_resnet_of_volumes_that_does_not_fit_is_called_one(tmp_path: Path) -> None:
    state = in_torchvisions_names(make_encoder("resnet18", (32, 32, 32, 1)))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds a 3D resnet, and the model is 2D"):
        load_weights(make_encoder("resnet18", (32, 32, 1)), tmp_path / "w.pth")
    torch.save({name: tensor for name, tensor in state.items() if "downsample" not in name}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"3D resnet of another origin(.|\n)*shortcut\.conv.* is missing"):
        load_weights(make_encoder("resnet18", (32, 32, 32, 1)), tmp_path / "w.pth")


# --- damage and harm -------------------------------------------------------------------------------------------------


class Harm:
    """A pickle of this runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_pickle_is_refused_and_never_runs(as_zip: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "w.pt"
    torch.save({"head": torch.ones(2), "x": Harm(target)}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(WeightsError, match=r"tensors are read|version 1\.6"):
        load_weights(network(), path)
    assert not target.exists()


def test_what_our_own_look_into_a_pickle_missed_torch_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("DeepLabSegLib.weights.files._check_pickle", lambda *_: None)
    target, path = tmp_path / "ran", tmp_path / "w.pt"
    torch.save({"head": torch.ones(2), "x": Harm(target)}, path)
    with pytest.raises(WeightsError):
        load_weights(network(), path)
    assert not target.exists()


@pytest.mark.parametrize("call", ["bytearray", "Tensor"])
def test_a_small_pickle_cannot_ask_for_much_memory(call: str, tmp_path: Path) -> None:
    code = {"bytearray": b"cbuiltins\nbytearray\n", "Tensor": b"ctorch\nTensor\n"}[call]
    content = b"\x80\x02" + code + b"(\x8a\x05" + (2**36).to_bytes(5, "little") + b"tR."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", content)
        archive.writestr("w/version", "3")
    with pytest.raises(WeightsError, match="tensors are read"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("member", "said"), [("../data.pkl", "outside"), ("/data.pkl", "outside"), ("a/../../data.pkl", "outside")]
)
def test_zip_members_outside_the_archive_are_refused(member: str, said: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(WeightsError, match=said):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("way", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_was_zipped_by_hand_is_to_be_unpacked(way: int, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.zip", "w", way) as archive:
        archive.write(tmp_path / "w.pt", "w.pt")
    with pytest.raises(WeightsError, match="unpack"):
        load_weights(network(), tmp_path / "w.zip")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 24))
    with pytest.raises(WeightsError, match="compressed"):
        load_weights(network(), tmp_path / "w.keras")


def test_a_declared_size_beyond_the_file_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py to write the file")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (1 << 20, 1 << 20), "float32")  # never written: takes no room
    with pytest.raises(WeightsError, match="declares 4398046511104 bytes"):
        load_weights(network(), tmp_path / "w.h5")


@pytest.mark.parametrize("shape", [(), (16,)])
def test_a_kernel_with_fewer_axes_than_any_has_is_refused_by_name(shape: tuple[int, ...], file: tuple) -> None:
    recording, arrays, path = file
    kernel = next(name for name, array in arrays.items() if array.ndim == 4)
    seeded.write(path, recording["groups"], arrays | {kernel: np.ones(shape, "float32")})
    with pytest.raises(WeightsError, match=rf"{re.escape(kernel)} .*has shape \({'16' if shape else ''}\); "):
        load_weights(DeepLabV3Plus(**recording["arguments"]), path)


@pytest.mark.parametrize("kind", ["chunks", "compression"])
def test_compressed_variables_are_refused(kind: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py to write the file")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        option = {"chunks": (1,)} if kind == "chunks" else {"compression": "gzip"}
        file.create_dataset("layers/conv2d/vars/0", data=np.zeros(4, "float32"), **option)
    with pytest.raises(WeightsError, match="compressed or stored elsewhere"):
        load_weights(network(), tmp_path / "w.h5")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"GIF89a", b"\x80\x02}.", b"\xff" * 99])
def test_what_is_no_weights_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError):
        load_weights(network(), tmp_path / "w")


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a file; check the path"):
        load_weights(network(), tmp_path / "none.pt")


def test_a_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="no tensors by name"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["torch", "safetensors", "keras"])
def test_cut_and_flipped_files_load_or_raise_a_weights_error(kind: str, file: tuple, tmp_path: Path) -> None:
    recording, arrays, path = file
    model = DeepLabV3Plus(**recording["arguments"])
    if kind == "keras":
        seeded.write(path, recording["groups"], arrays)
    elif kind == "torch":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for n in range(40):
        damaged = bytearray(whole)
        if n % 2:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for place in rng.integers(0, 4096 if n % 4 else len(whole), 8):
                damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            load_weights(model, path)
