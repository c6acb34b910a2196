import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_bundle, make_network, make_scan, make_spec
from safetensors.torch import load, save_file

import DeepLabSegLib
from DeepLabSegLib.bundle import read_bundle, read_network, save_bundle
from DeepLabSegLib.catalog import find_model, list_models
from DeepLabSegLib.errors import BundleError, InvalidInput, OutputError
from DeepLabSegLib.models import DeepLabV3Plus, make_encoder
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.segmenter import load_model


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_bundle_comes_back_as_it_was_saved(tmp_path, dims, name):
    bundle = make_bundle(dims, tile=(32,) * dims)
    network = make_network(bundle.network)
    saved = save_bundle(tmp_path / name, bundle, network, half=False)
    assert read_bundle(tmp_path / name) == saved
    again = read_network(tmp_path / name, saved)
    x = torch.randn(1, 1, *(20,) * dims)
    torch.testing.assert_close(again.state_dict(), network.state_dict(), atol=0, rtol=0)
    # Where tensors lie in memory decides how sums are rounded.
    torch.testing.assert_close(again(x), network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_folders_that_lead_to_a_bundle_are_made(tmp_path, name):
    bundle = make_bundle(2)
    saved = save_bundle(tmp_path / "own" / "models" / name, bundle, make_network(bundle.network))
    assert read_bundle(tmp_path / "own" / "models" / name) == saved
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        save_bundle(tmp_path / "file" / name, bundle, make_network(bundle.network))


def test_a_version_changes_with_all_that_decides_about_a_result_and_with_nothing_else():
    bundle = replace(make_bundle(3), sha256="0123456789")
    renamed = tuple(replace(label, name=label.name.upper()) for label in bundle.labels)
    for other in (
        {"sha256": "123456789"},
        {"input": replace(bundle.input, normalization=Normalization("none"))},
        {"network": replace(bundle.network, decoder_dilation_rates=(1, 2))},
        {"labels": renamed},
        {"one_piece": True},
    ):
        assert replace(bundle, **other).version != bundle.version, other
    recoloured = tuple(replace(label, color=(1, 2, 3)) for label in bundle.labels)
    told = replace(bundle, description="better told", limits="none", figures={"Dice": 0.5}, labels=recoloured)
    assert told.version == bundle.version
    assert replace(bundle, sha256="").version == "", "of a network in Python nothing is known"


def test_half_precision_halves_the_file_and_works_in_single(tmp_path, rng):
    bundle = make_bundle(2)
    save_bundle(tmp_path / "a", bundle, make_network(bundle.network), half=False)
    save_bundle(tmp_path / "b", bundle, make_network(bundle.network))
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in "ab"]
    assert sizes[1] < 0.51 * sizes[0]
    segmenter = load_model(tmp_path / "b", "cpu")
    assert {p.dtype for p in segmenter.network.parameters()} == {torch.float32}
    assert segmenter.segment(make_scan(rng)).array.any()


def test_weights_too_large_for_half_precision_stay_as_they_are(tmp_path):
    bundle = make_bundle(2)
    network = make_network(bundle.network)
    network.state_dict()["skip.norm.running_var"][0] = 1e6
    saved = save_bundle(tmp_path / "model", bundle, network)
    assert read_network(tmp_path / "model", saved).skip.norm.running_var[0] == 1e6


def edit(folder: Path, change) -> None:
    content = json.loads((folder / "model.json").read_text())
    change(content)
    (folder / "model.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("license"), "lacks license"),
        (lambda c: c.update(extra=1), "unknown keys extra"),
        (lambda c: c.update(format="deeplabseg-model-9"), "format is 'deeplabseg-model-9'"),
        (lambda c: c["network"].update(encoder_name="resnet19"), "unknown|resnet19"),
        (lambda c: c["network"].update(encoder_name=None), "named encoder"),
        (lambda c: c["network"].update(num_classes="3"), "num_classes is '3'"),
        (lambda c: c["network"].update(num_classes=True), "must be"),
        (lambda c: c["network"].update(num_classes=4), "needs 1 to 3"),
        (lambda c: c["network"].update(classifier_activation="glu"), "glu, which leaves half of the classes"),
        (lambda c: c["labels"].pop(), "needs 1 to 2"),
        (lambda c: c["labels"][0].update(color=[1, 2, 300]), "0 to 255"),
        (lambda c: c["labels"][0].update(color=[1, 2]), "needs 3"),
        (lambda c: c["labels"][0].update(color=[1, 2, -1]), "0 to 255"),
        (lambda c: c["labels"][0]["terminology"].pop("type"), r"labels\[0\].terminology lacks type"),
        (lambda c: c["input"].update(spacing=[1, 0, 1]), "above 0"),
        (lambda c: c["input"].update(mirror_axes=[2, 3]), "some of 0, 1 and 2"),
        (lambda c: c["input"].update(mirror_axes=[2, 1]), "in order"),
        (lambda c: c["input"].update(tile=[32, 0]), "at least 1"),
        (lambda c: c["input"].update(background=float("nan")), "finite voxel value"),
        (lambda c: [c["input"].update(background=0), c["network"].update(classifier_activation="linear")], "nothing"),
        (lambda c: c["input"].update(orientation="SAX"), "three letters"),
        (lambda c: c["input"].update(tile=[32]), "needs 2"),
        (lambda c: c["input"].update(channels=["T1", "T2"]), "2 channels"),
        (lambda c: c["input"]["normalization"].update(method="best"), "choose one of 'percentile'"),
        (lambda c: c["input"]["normalization"].update(mean=[0, 0], std=[1, 1]), "mean and std for 2 channels"),
        (lambda c: c["network"].update(decoder_channels=17), "shape"),
        (lambda c: c["network"].update(encoder_depth=4), "lacks encoder"),
        (lambda c: c.update(sha256="0" * 64), "copy the model again"),
        (lambda c: c["figures"].update(Dice=10**400), "too large"),
        (lambda c: c["figures"].update(Dice=True), "figures.Dice is True; it must be a number"),
        (lambda c: c["labels"][0].update(value=True), r"value is True; it must be an integer"),
    ],
)
def test_a_model_json_that_is_wrong_is_refused_by_the_place(bundle_folder, change, words):
    edit(bundle_folder, change)
    with pytest.raises(BundleError, match=words):
        load_model(bundle_folder, "cpu")


def test_a_model_json_may_be_edited_on_windows(bundle_folder):
    text, before = (bundle_folder / "model.json").read_text(encoding="utf-8"), read_bundle(bundle_folder)
    (bundle_folder / "model.json").write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert read_bundle(bundle_folder) == before
    for spoilt, encoding in [(text, "utf-16"), (text.replace('"labels"', '// mine\n"labels"'), "utf-8")]:
        (bundle_folder / "model.json").write_text(spoilt, encoding=encoding)
        with pytest.raises(BundleError, match=r"model\.json: it is no JSON in UTF-8 \(.*\); correct it"):
            read_bundle(bundle_folder)


def test_the_layer_of_a_label_follows_from_the_network(bundle_folder, scan):
    edit(bundle_folder, lambda content: [label.update(layer=7) for label in content["labels"]])
    segmenter = load_model(bundle_folder, "cpu")
    assert [segment.layer for segment in segmenter.segment(scan).segments] == [0, 0]
    assert [segment.layer for segment in make_bundle(2, activation="sigmoid").segments] == [0, 1, 2]


def test_a_damaged_json_a_list_and_a_huge_one_are_refused(bundle_folder):
    for text in ["{", "[]", "[" * 50_000, '"' + "x" * 2**21 + '"']:
        (bundle_folder / "model.json").write_text(text)
        with pytest.raises(BundleError, match=r"model\.json"):
            read_bundle(bundle_folder)


def test_damaged_tensors_are_refused(bundle_folder):
    tensors = bundle_folder / "model.safetensors"
    whole = tensors.read_bytes()
    for damaged in [b"", whole[:100], whole[:-10], b"\xff" * 8 + whole[8:]]:
        tensors.write_bytes(damaged)
        with pytest.raises(BundleError, match="copy the model again"):
            load_model(bundle_folder, "cpu")


def test_one_changed_bit_is_noticed(bundle_folder):
    tensors = bundle_folder / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1000] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(BundleError, match="sha256"):
        load_model(bundle_folder, "cpu")


def test_missing_surplus_and_misshapen_tensors_are_named(bundle_folder):
    tensors = bundle_folder / "model.safetensors"
    state = load(tensors.read_bytes())  # a mapped file can't be written anew on Windows
    for change, words in [
        (lambda s: s.pop("head.bias"), "lacks head.bias"),
        (lambda s: s.update(more=torch.zeros(1)), "has more"),
        (lambda s: s.update({"head.bias": torch.zeros(9)}), r"head.bias has shape \(9,\).*\(3,\)"),
    ]:
        changed = dict(state)
        change(changed)
        save_file(changed, tensors)
        with pytest.raises(BundleError, match=words):
            load_model(bundle_folder, "cpu")


def test_a_small_file_cannot_make_us_allocate_much(bundle_folder):
    edit(bundle_folder, lambda c: c["network"].update(decoder_channels=10**7))
    with pytest.raises(BundleError, match="has shape"):
        load_model(bundle_folder, "cpu")


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    for name, words in [
        ("empty", "lacks model.json"),
        ("bare.safetensors", "bare weights"),
        ("notes.txt", "no model bundle"),
        ("gone.safetensors", "does not exist"),
    ]:
        with pytest.raises(BundleError, match=words):
            read_bundle(tmp_path / name)


def test_an_existing_bundle_is_kept_unless_told_otherwise(bundle_folder):
    bundle = make_bundle(2)
    with pytest.raises(OutputError, match="exists"):
        save_bundle(bundle_folder, bundle, make_network(bundle.network))
    save_bundle(bundle_folder, bundle, make_network(bundle.network), overwrite=True)
    assert sorted(p.name for p in bundle_folder.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_bundle_that_cannot_be_written_whole_leaves_what_is_there(tmp_path, name):
    bundle = make_bundle(2)
    before = save_bundle(tmp_path / name, bundle, make_network(bundle.network))
    odd = replace(bundle, name="M\udcfcller")  # of a file whose name isn't UTF-8
    for path in (tmp_path / name, tmp_path / f"other-{name}"):
        with pytest.raises(OutputError, match=r"can't be written .*surrogates"):
            save_bundle(path, odd, make_network(bundle.network), overwrite=True)
    assert load_model(tmp_path / name, "cpu").bundle == before
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"model", "model.json", "model.safetensors"}


@pytest.mark.parametrize("dims", [2, 3])
def test_only_the_network_that_a_bundle_tells_of_is_saved(tmp_path, dims):
    bundle = make_bundle(dims)
    spec = replace(bundle.network, decoder_activation="gelu", decoder_dilation_rates=(1, 2))
    with pytest.raises(InvalidInput, match=r"decoder_dilation_rates is .* there and \(1, 2\) here; decoder_activation"):
        save_bundle(tmp_path / "model", bundle, make_network(spec))
    own = DeepLabV3Plus(encoder=make_encoder("resnet18", spec.input_shape), num_classes=3)
    with pytest.raises(InvalidInput, match="encoder_name is 'resnet18' there and None here"):
        save_bundle(tmp_path / "model", bundle, own)
    assert not list(tmp_path.iterdir())
    save_bundle(tmp_path / "model", bundle, make_network(replace(bundle.network, input_shape=(*(16,) * dims, 1))))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_whose_layers_were_exchanged_or_wrapped_is_not_saved(tmp_path, dims):
    bundle = make_bundle(dims)
    exchanged, wrapped = make_network(bundle.network), make_network(bundle.network)
    exchanged.head = make_network(replace(bundle.network, num_classes=5)).head
    wrapped.encoder = torch.nn.DataParallel(wrapped.encoder)
    with pytest.raises(InvalidInput, match=r"other layers .*head\.bias, head\.weight"):
        save_bundle(tmp_path / "model", bundle, exchanged)
    with pytest.raises(InvalidInput, match=r"encoder\.module\..*take wrappers"):
        save_bundle(tmp_path / "model", bundle, wrapped)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: replace(b, input=replace(b.input, spacing=(1, 1))), r"input\.spacing has 2 entries; it needs 3"),
        (lambda b: replace(b, input=replace(b.input, tile=(32.0, 32.0))), r"input\.tile\[0\] is 32\.0.* an integer"),
        (lambda b: replace(b, labels=(replace(b.labels[0], color=(0.5, 1, 1)), b.labels[1])), r"color\[0\] is 0\.5"),
        (lambda b: replace(b, license=None), "license is None; it must be a text"),
    ],
)
def test_a_bundle_that_could_not_be_read_is_not_saved(tmp_path, change, words):
    bundle = change(make_bundle(2))
    with pytest.raises(InvalidInput, match=words):
        save_bundle(tmp_path / "model", bundle, make_network(bundle.network))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: replace(b, labels=("Liver", "Tumour")), "label is 'Liver'; give a Segment"),
        (lambda b: replace(b, network=make_network(b.network)), "give a DeepLabSpec"),
        (lambda b: replace(b, input="zscore"), "input is 'zscore'; give a ModelInput"),
        (lambda b: replace(b.input, normalization="zscore"), "normalization is 'zscore'; give a Normalization"),
    ],
)
def test_what_is_of_another_kind_in_a_bundle_is_named_with_the_right_one(change, words):
    with pytest.raises(InvalidInput, match=words):
        change(make_bundle(2))


def test_a_bundles_numbers_may_be_numpys(tmp_path):
    bundle = make_bundle(2, tile=(32, 32))
    odd = replace(bundle, figures={"Dice": np.float32(0.5)}, input=replace(bundle.input, tile=(np.int64(32),) * 2))
    saved = save_bundle(tmp_path / "model", odd, make_network(bundle.network))
    assert saved == read_bundle(tmp_path / "model") == replace(bundle, figures={"Dice": 0.5}, sha256=saved.sha256)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_would_call_everything_background_is_not_saved(tmp_path, value):
    bundle = make_bundle(2)
    network = make_network(bundle.network)
    network.state_dict()["skip.norm.running_mean"][1] = value
    with pytest.raises(InvalidInput, match=r"skip\.norm\.running_mean holds infinite numbers or NaN"):
        save_bundle(tmp_path / "model", bundle, network)
    assert not list(tmp_path.iterdir())


def test_models_are_found_by_name_in_the_folders_that_are_searched(bundle_folder, monkeypatch, capsys):
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(bundle_folder.parent))
    assert "tiny" in list_models()
    assert "a small network with random weights" in capsys.readouterr().out
    assert find_model("tiny") == bundle_folder
    with pytest.raises(BundleError, match="there is no model 'tinny'; here are tiny"):
        find_model("tinny")


def test_the_shipped_models_are_whole():
    names = DeepLabSegLib.list_models()
    assert "head-mri-2d" in names
    for name in names:
        content = load_model(name, "cpu").bundle
        assert content.name == name
        assert content.license
        assert content.figures, f"{name} has no measured figures"
        assert all(label.terminology for label in content.labels)


def test_a_one_class_softmax_has_no_foreground():
    with pytest.raises(InvalidInput, match="use sigmoid"):
        make_bundle(2, classes=1, activation="softmax")
    assert make_spec(2, 1, "sigmoid").num_classes == 1


@pytest.mark.parametrize("field", ["num_classes", "decoder_channels", "projection_filters"])
@pytest.mark.parametrize("value", [2**31, 2**62, 10**30])
def test_a_small_file_cannot_ask_for_much_memory(bundle_folder, field, value):
    edit(bundle_folder, lambda content: content["network"].update({field: value}))
    with pytest.raises(BundleError):
        read_network(bundle_folder, read_bundle(bundle_folder))


def test_a_small_file_cannot_ask_for_endless_branches(bundle_folder):
    edit(bundle_folder, lambda content: content["network"].update(decoder_dilation_rates=[1] * 100_000))
    with pytest.raises(BundleError, match="100000 entries; at most 64 are read"):
        read_network(bundle_folder, read_bundle(bundle_folder))
