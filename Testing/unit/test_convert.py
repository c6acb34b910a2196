import json
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import seeded
import SimpleITK as sitk
import torch
from helpers import itk, make_bundle, make_network, make_spec, run
from safetensors.torch import save_file

from DeepLabSegLib import SegmentOptions, read_image
from DeepLabSegLib.bundle import read_bundle, save_bundle
from DeepLabSegLib.errors import InvalidInput, OutputError, WeightsError
from DeepLabSegLib.export import EXPORTERS, export
from DeepLabSegLib.files import read_labels
from DeepLabSegLib.segmenter import load_model
from DeepLabSegLib.weights import convert

RATES = ("--dilation-rates", "2, 4")


@pytest.fixture(params=[2, 3])
def weights(request, tmp_path):
    """A torch checkpoint of a small softmax network, as a training script leaves it."""
    network = make_network(make_spec(request.param))
    path = tmp_path / "trained.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    return path, network


def test_bare_weights_become_a_bundle_that_segments_as_the_network_does(tmp_path, weights, scan):
    path, network = weights
    output = tmp_path / "model"
    assert run("convert", path, "-o", output, "--labels", "Liver, Spleen", "--normalization", "zscore", *RATES) == 0
    bundle = read_bundle(output)
    assert [label.name for label in bundle.labels] == ["Liver", "Spleen"]
    assert bundle.network.classifier_activation == "softmax"
    assert bundle.network.encoder_name == "resnet18"
    segmenter = load_model(output, "cpu")
    x = torch.randn(1, 1, *(24,) * bundle.network.dims)
    torch.testing.assert_close(segmenter.network.state_dict(), network.state_dict(), atol=0, rtol=0)
    # Where tensors lie in memory decides how sums are rounded.
    torch.testing.assert_close(segmenter.network(x), network(x), atol=1e-4, rtol=1e-4)
    assert segmenter.segment(scan).array.any()


def test_what_was_assumed_is_said(tmp_path, weights, capsys):
    path, _ = weights
    assert run("convert", path, "-o", tmp_path / "model", "--json") == 0
    assumed = " ".join(json.loads(capsys.readouterr().out)["assumed"])
    for doubt in ("decoder_dilation_rates", "classifier_activation", "without normalisation"):
        assert doubt in assumed
    with pytest.warns(UserWarning, match="decoder_dilation_rates"):
        load_model(path, "cpu")


def test_what_is_said_of_bare_weights_is_not_assumed(weights):
    path, network = weights
    with pytest.warns(UserWarning, match="doesn't tell") as notes:
        segmenter = load_model(path, "cpu", labels=("Liver", "Spleen"), network={"decoder_dilation_rates": (2, 4)})
    assert "decoder_dilation_rates" not in str(notes[0].message)
    assert [label.name for label in segmenter.bundle.labels] == ["Liver", "Spleen"]
    x = torch.randn(1, 1, *(24,) * segmenter.bundle.network.dims)
    torch.testing.assert_close(segmenter.network(x), network(x))


def test_bare_weights_of_one_name_have_a_version_each(tmp_path):
    versions = []
    for _ in range(2):
        torch.save(make_network(make_spec(2)).state_dict(), tmp_path / "weights.pt")
        with pytest.warns(UserWarning, match="doesn't tell"):
            versions.append(load_model(tmp_path / "weights.pt", "cpu").bundle.version)
    assert all(versions)
    assert versions[0] != versions[1]


def test_segment_opens_bare_weights_and_notes_what_it_assumes(tmp_path, weights, scan, capsys):
    path, _ = weights
    sitk.WriteImage(itk(scan), tmp_path / "scan.nii.gz")
    output = tmp_path / "result.seg.nrrd"
    assert run("segment", tmp_path / "scan.nii.gz", "-o", output, "--model", path) == 0
    assert "note: " in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = load_model(path, "cpu").segment(read_image(tmp_path / "scan.nii.gz"), SegmentOptions())
    np.testing.assert_array_equal(read_labels(output).layers, expected.layers)


def test_labels_may_come_from_a_file_with_colours_and_terminology(tmp_path, weights, capsys):
    path, _ = weights
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(["Liver", {"value": 2, "name": "Spleen", "color": [1, 2, 3]}]))
    assert run("convert", path, "-o", tmp_path / "model.safetensors", "--labels", labels, *RATES) == 0
    assert read_bundle(tmp_path / "model.safetensors").labels[1].color == (1, 2, 3)
    labels.write_text(json.dumps({"Spleen": 2, "Liver": 1}))
    assert run("convert", path, "-o", tmp_path / "other", "--labels", labels, *RATES) == 1
    assert "labels.json can't be read as labels: a list of labels is needed" in capsys.readouterr().err


def test_what_is_said_of_the_network_and_its_input_is_what_the_bundle_says(tmp_path, weights, capsys):
    path, network = weights
    dims = network.spec.dims
    assert run(
        "convert", path, "-o", tmp_path / "model", "--name", "liver 2", "--license", "CC0", *RATES, "--depth", "3",
        "--activation", "sigmoid", "--decoder-activation", "gelu", "--decoder-normalization", "batch",
        "--head-upsample", "2", "--normalization", "window:0:240", "--channels", "CT", "--orientation", "LPS",
        "--spacing", "2x0X1", "--tile", "X".join(["32"] * dims),
    ) == 0  # fmt: skip
    assert "assumed" not in capsys.readouterr().out
    bundle = read_bundle(tmp_path / "model")
    assert (bundle.name, bundle.license) == ("liver 2", "CC0")
    assert bundle.network == replace(
        network.spec, classifier_activation="sigmoid", decoder_activation="gelu", head_upsample=2
    )
    assert bundle.input == replace(
        bundle.input, channels=("CT",), orientation="LPS", spacing=(2, None, 1), tile=(32,) * dims
    )
    assert run("info", tmp_path / "model") == 0
    assert "values window 0 to 240" in capsys.readouterr().out
    assert run("convert", path, "-o", tmp_path / "model", "--overwrite") == 0
    assert "assumed, for want of knowledge: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--labels", "a,b,c,d"), "4 labels are given, and the network has 3 classes"),
        (("--labels", ""), "no name is given"),
        (("--labels", "a,b,"), "a name in 'a,b,' is empty"),
        (("--labels", "a,b,a"), "a stands twice"),
        (("--labels", "gone.json"), "can't be read as labels"),
        (("--labels", "gone.json"), "it does not exist; check the path"),
        (("--encoder", "resnet34"), "doesn't fit the model"),
        (("--depth", "4"), "doesn't fit the model"),
        (("--decoder-normalization", "layer"), "the model has no refine.norm.running_mean"),
        (("--normalization", "best"), "choose one of 'percentile'"),
        (("--normalization", "window:1"), "write for example"),
        (("--normalization", "zscore:1:2"), "zscore takes no bounds"),
        (("--tile", "32x32"), "say with --normalization"),
        (("--activation", "relu7"), "'relu'"),
    ],
)
def test_what_does_not_fit_the_weights_is_refused_and_nothing_is_written(tmp_path, weights, capsys, arguments, words):
    path, _ = weights
    assert run("convert", path, "-o", tmp_path / "model", *arguments) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("named", ["folder", "tensors", "model.json", "file"])
def test_a_bundle_is_converted_with_all_that_it_says_but_for_what_is_given(tmp_path, named):
    before = replace(
        make_bundle(2 + (named == "folder")), license="CC0", figures={"Dice": 0.9}, reproduce="deeplabseg train DATA"
    )
    network = make_network(before.network)
    source = tmp_path / ("first.safetensors" if named == "file" else "first")
    before = save_bundle(source, before, network, half=False)
    source /= {"tensors": "model.safetensors", "model.json": "model.json"}.get(named, "")
    assert run("convert", source, "-o", tmp_path / "copy.safetensors") == 0
    assert read_bundle(tmp_path / "copy.safetensors") == replace(before, name="copy")
    given = ("--labels", "Liver,Spleen", "--normalization", "zscore", "--training-data", "scans", "--half")
    assert run("convert", source, "-o", tmp_path / "other", *given) == 0
    other = read_bundle(tmp_path / "other")
    assert [label.name for label in other.labels] == ["Liver", "Spleen"]
    assert (other.license, other.training_data, other.figures, other.reproduce) == ("CC0", "scans", {}, None)
    assert other.network == before.network
    assert other.input.normalization.method == "zscore"
    assert other.input == replace(before.input, normalization=other.input.normalization)
    assert run("convert", source, "-o", tmp_path / "finer", "--spacing", "0x0.5x0.5") == 0
    assert read_bundle(tmp_path / "finer").input == replace(before.input, spacing=(None, 0.5, 0.5))
    halves = {name: t.half().float() for name, t in network.state_dict().items() if t.is_floating_point()}
    found = load_model(tmp_path / "other", "cpu").network.state_dict()
    torch.testing.assert_close({name: found[name] for name in halves}, halves, atol=0, rtol=0)


def test_bare_weights_may_have_the_name_that_a_bundles_have(tmp_path):
    save_file(make_network(make_spec(2)).state_dict(), tmp_path / "model.safetensors")
    assert run("convert", tmp_path / "model.safetensors", "-o", tmp_path / "model", "--labels", "a,b", *RATES) == 0
    assert run("info", tmp_path / "model.safetensors") == 0
    with pytest.warns(UserWarning, match="doesn't tell"):
        load_model(tmp_path / "model.safetensors", "cpu")


@pytest.mark.parametrize("name", ["liver 1.5mm.pth", "liver 1.5mm.weights.h5"])
def test_bare_weights_are_called_like_their_file(tmp_path, name):
    torch.save(make_network(make_spec(2)).state_dict(), tmp_path / name)
    assert convert(tmp_path / name)[0].name == "liver 1.5mm"


def test_what_the_network_says_of_its_classes_is_not_turned_round_by_the_labels(tmp_path):
    background = ["Background", "Liver", "Spleen"]
    softmax = make_bundle(2)
    save_bundle(tmp_path / "model", softmax, make_network(softmax.network))
    with pytest.raises(InvalidInput, match=r"a softmax network of 3 classes needs 1 to 2, .* class 0 being background"):
        convert(tmp_path / "model", labels=background)
    given = {"classifier_activation": "sigmoid"}
    assert convert(tmp_path / "model", labels=background, network=given)[0].overlapping


@pytest.mark.parametrize(
    ("stated", "labels", "said"),
    [
        ("softmax", "Background Liver Spleen", r"a softmax network of 3 classes needs 1 to 2"),
        ("sigmoid", "Liver Spleen", r"a sigmoid network of 3 classes needs 1 to 3"),
        ("linear", "Liver Spleen", "softmax"),
        ("linear", "Vessel Liver Spleen", "sigmoid"),
    ],
)
def test_labels_tell_softmax_from_sigmoid_only_where_a_keras_archive_does_not(tmp_path, stated, labels, said):
    pytest.importorskip("h5py", reason="needs h5py to write the file")
    groups = seeded.recorded("convnext_v2_atto")["groups"]
    weights = seeded.write(tmp_path / "w.h5", groups, seeded.values(groups))
    said_there = {"classifier_activation": stated, "decoder_dilation_rates": [1, 2], "head_upsample": None}
    seeded.write_archive(tmp_path / "m.keras", weights, said_there)
    if stated == "linear":
        with pytest.warns(UserWarning, match="classifier_activation 'linear'"):
            assert convert(tmp_path / "m.keras", labels=labels.split())[0].network.classifier_activation == said
    else:
        with pytest.raises(InvalidInput, match=said):
            convert(tmp_path / "m.keras", labels=labels.split())


def test_classes_without_names_are_counted_without_the_background(weights):
    labels = convert(weights[0], network={"classifier_activation": "softmax"})[0].labels
    assert [label.name for label in labels] == ["Class 1", "Class 2"]


def test_a_name_that_is_given_is_not_assumed(tmp_path):
    torch.save(make_network(replace(make_spec(2), encoder_name="resnet50")).state_dict(), tmp_path / "w.pth")
    open_without = " ".join(convert(tmp_path / "w.pth")[2])
    assert "encoder_name (resnet50 or resnet101: up to this depth they are one network)" in open_without
    bundle, _, assumed = convert(tmp_path / "w.pth", network={"encoder_name": "resnet101"})
    assert bundle.network.encoder_name == "resnet101"
    assert "encoder_name" not in " ".join(assumed)


@pytest.mark.parametrize("name", ["model.onnx", "model.weights.h5", "model.PT"])
def test_a_folder_is_not_called_like_a_file_of_another_kind(tmp_path, weights, capsys, name):
    assert run("convert", weights[0], "-o", tmp_path / name, *RATES) == 1
    assert "a bundle is a folder, or a file that ends in .safetensors" in capsys.readouterr().err
    assert not (tmp_path / name).exists()
    assert run("convert", weights[0], "-o", tmp_path / "model-1.5", *RATES) == 0


def test_an_existing_bundle_is_kept(tmp_path, weights, capsys):
    (tmp_path / "model").mkdir()
    assert run("convert", weights[0], "-o", tmp_path / "model") == 1
    assert "exists" in capsys.readouterr().err


def test_an_encoder_alone_makes_no_model(tmp_path):
    path = tmp_path / "encoder.pth"
    torch.save(make_network(make_spec(2)).encoder.state_dict(), path)
    with pytest.raises(WeightsError, match="encoder alone"):
        convert(path)
    with pytest.raises(InvalidInput, match="unknown fields heads"):
        convert(path, network={"heads": 3})


def test_info_shows_what_a_weights_file_tells_and_what_stays_open(weights, capsys):
    path, network = weights
    assert run("info", path) == 0
    text = capsys.readouterr().out
    assert f"resnet18, {network.spec.dims}D, 1 channels in, DeepLabV3+, 3 classes, depth 3" in text
    assert "open: decoder_activation" in text
    assert run("info", path, "--device", "cpu") == 0
    assert "runs: device: cpu (CPU" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.onnx", "model.pt"])
@pytest.mark.parametrize("dims", [2, 3])
def test_an_exported_network_gives_the_same_numbers(tmp_path, capsys, dims, name):
    bundle = make_bundle(dims, tile=(24,) * dims)
    save_bundle(tmp_path / "model", bundle, make_network(bundle.network))
    assert run("export", tmp_path / "model", "-o", tmp_path / name, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["difference"] < 1e-4
    assert report["size"] == [24] * dims
    assert {path.name for path in tmp_path.iterdir()} == {"model", name}, "one file holds all"


def test_without_what_onnx_needs_the_message_says_what_to_install(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("torch.onnx.export", lambda model, args, f, dynamo=False: None)
        with pytest.raises(OutputError, match=r"ONNX needs a newer torch than .*install it, or choose an ending \.ts"):
            export(make_network(make_bundle(2).network), tmp_path / "m.onnx", (24, 24))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OutputError, match=r"package onnxruntime, .*pip install onnxscript onnxruntime"):
        export(make_network(make_bundle(2).network), tmp_path / "m.onnx", (24, 24))


def test_an_export_leaves_the_network_as_it_was(tmp_path):
    network = make_network(make_bundle(2).network).train()
    with pytest.raises(InvalidInput, match=r"m\.pth has no known ending; choose one of \.onnx, \.pt, \.ts"):
        export(network, tmp_path / "m.pth", (24, 24))
    with pytest.raises(InvalidInput, match=r"size is \(24\.5, 24\); give one or more positive integers"):
        export(network, tmp_path / "m.ts", (24.5, 24))
    with pytest.raises(OutputError, match="no folder; make it first"):
        export(network, tmp_path / "none" / "m.ts", (24, 24))
    assert export(network.half(), str(tmp_path / "m.TS"), (24, 24)) < 1e-4
    assert network.training
    assert network.head.weight.dtype == torch.float16


def test_large_logits_may_differ_by_more_than_probabilities(tmp_path, monkeypatch):
    def rounded(network, example, path):
        assert not network.training, "what is written is for use"
        path.touch()
        return network(example) * (1 + 1e-5)

    monkeypatch.setitem(EXPORTERS, ".ts", rounded)
    network = make_network(replace(make_bundle(2).network, classifier_activation="linear")).train()
    with torch.no_grad():
        network.head.weight.mul_(1000)
    assert export(network, tmp_path / "m.ts", (24, 24)) > 1e-3
    (tmp_path / "m.ts").write_text("before")
    for wrong in (1.001, float("nan")):
        monkeypatch.setitem(EXPORTERS, ".ts", lambda *given, wrong=wrong: wrong * rounded(*given))
        with pytest.raises(OutputError, match=r"differs by .*, more than .*; it is not kept"):
            export(network, tmp_path / "m.ts", (24, 24))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.ts", "before")]


def test_an_export_that_cannot_be_made_leaves_no_file(tmp_path, bundle_folder, capsys):
    (bundle_folder / "kept.ts").touch()
    for arguments, words in [
        (("-o", bundle_folder / "kept.ts", "--size", "24x24"), "kept.ts exists and is kept"),
        (("-o", tmp_path / "m.onnx"), "give --size"),
        (("-o", tmp_path / "m.onnx", "--size", "24x24x24"), "needs 2 sizes"),
        (("-o", tmp_path / "m.tflite"), "no known ending"),
    ]:
        assert run("export", bundle_folder, *arguments) == 1
        assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [bundle_folder.name]
    assert (bundle_folder / "kept.ts").stat().st_size == 0
