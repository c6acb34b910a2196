import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_bundle, make_network

from DeepLabSegLib import catalog
from DeepLabSegLib.bundle import read_bundle, save_bundle
from DeepLabSegLib.cli import main
from DeepLabSegLib.errors import BundleError


def test_the_encoders_are_those_of_the_tables():
    from DeepLabSegLib.models.encoders import FAMILIES

    assert {family: tuple(rows) for family, (_, rows) in FAMILIES.items()} == catalog.ENCODERS
    assert sum(map(len, catalog.ENCODERS.values())) == 59


def test_models_are_listed_and_their_cards_read_without_torch():
    code = (
        "import sys; from DeepLabSegLib import catalog\n"
        "for path in catalog.installed_models().values(): print(catalog.read_card(path).name)\n"
        "sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert catalog.DEFAULT_MODEL in done.stdout.split()


@pytest.mark.parametrize("name", ["tiny", "tiny.safetensors"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_card_says_what_the_bundle_says(tmp_path, dims, name):
    bundle = make_bundle(dims, channels=2)
    save_bundle(tmp_path / name, bundle, make_network(bundle.network))
    card, bundle = catalog.read_card(tmp_path / name), read_bundle(tmp_path / name)
    assert (card.name, card.description, card.labels) == (bundle.name, bundle.description, bundle.labels)
    assert (card.network.encoder_name, card.network.dims) == (bundle.network.encoder_name, bundle.network.dims)
    assert card.input.channels == bundle.input.channels


@pytest.mark.parametrize("change", [{"network": 3}, {"labels": "all"}, {"name": None}, {"input": {"channels": 1}}])
def test_a_card_that_says_nonsense_is_refused_by_key(bundle_folder, change):
    content = json.loads((bundle_folder / "model.json").read_text(encoding="utf-8")) | change
    (bundle_folder / "model.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=next(iter(change)) if change != {"network": 3} else "3 stands where"):
        catalog.read_card(bundle_folder)


def test_one_damaged_model_hides_no_other(monkeypatch, bundle_folder, capsys):
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(bundle_folder.parent))
    for name, text in {"cut": "{", "empty": "", "odd": "\N{GREEK SMALL LETTER ALPHA}"}.items():
        (bundle_folder.parent / name).mkdir()
        (bundle_folder.parent / name / "model.json").write_text(text, encoding="utf-16")
        (bundle_folder.parent / name / "model.safetensors").touch()
    names = catalog.list_models()
    assert {bundle_folder.name, catalog.DEFAULT_MODEL} <= set(names)
    assert not {"cut", "empty", "odd"} & set(names)
    assert f"cut: {bundle_folder.parent / 'cut'}: model.json: " in capsys.readouterr().out
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["odd", "unreadable"] and "model.json" in line for line in lines)
    assert any(line.startswith(catalog.DEFAULT_MODEL) for line in lines)
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"cut", "empty", "odd"} == {model["name"] for model in listed if "error" in model}


def test_what_a_mac_leaves_beside_a_model_and_what_is_half_written_is_no_model(monkeypatch, bundle_folder):
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(bundle_folder.parent))
    for name in ("._liver.safetensors", ".0123abcd-liver.safetensors"):
        (bundle_folder.parent / name).write_bytes(bytes(99))
    assert not [name for name in catalog.installed_models() if "liver" in name]
    assert bundle_folder.name in catalog.installed_models()


def test_tensors_called_like_a_bundles_are_one_where_a_model_json_is_beside_them(bundle_folder):
    tensors = bundle_folder / "model.safetensors"
    assert catalog.is_bundle(tensors)
    assert catalog.is_bundle(bundle_folder / "model.json")
    (bundle_folder / "model.json").unlink()
    assert not catalog.is_bundle(tensors)
    assert catalog.is_bundle(bundle_folder)
    tensors.write_bytes(b"")
    assert catalog.is_bundle(tensors)


@pytest.mark.parametrize("chosen", ["", "model.json", "model.safetensors"])
@pytest.mark.parametrize("changed", ["model.json", "model.safetensors"])
def test_a_model_is_another_once_either_of_its_files_is(bundle_folder, chosen, changed):
    before = catalog.model_state(bundle_folder / chosen)
    assert catalog.model_state(bundle_folder / chosen) == before
    with (bundle_folder / changed).open("ab") as file:
        file.write(b"\n")
    assert catalog.model_state(bundle_folder / chosen) != before


def test_the_users_own_models_are_found_before_the_shipped_ones(tmp_path, monkeypatch, bundle_folder):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    own = catalog.user_models()
    own.mkdir(parents=True)
    bundle_folder.rename(own / catalog.DEFAULT_MODEL)
    assert catalog.installed_models()[catalog.DEFAULT_MODEL] == own / catalog.DEFAULT_MODEL


def test_a_name_that_a_model_in_the_working_folder_has_as_well_is_noted(monkeypatch, tmp_path, bundle_folder):
    name = bundle_folder.name
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(bundle_folder.parent))
    monkeypatch.chdir(bundle_folder.parent)
    assert catalog.find_model(name) == bundle_folder, "they are one"
    (tmp_path / "work" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert catalog.find_model(name) == bundle_folder, "a folder of that name is no model"
    shutil.copytree(bundle_folder, name, dirs_exist_ok=True)
    with pytest.warns(UserWarning, match=f"{name} is the model in .*, not that in this folder; for the latter write "):
        assert catalog.find_model(name) == bundle_folder
    assert catalog.find_model(f".{os.sep}{name}").samefile(name)


def nobody() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", [nobody, lambda: Path("/", "too long" * 100)], ids=["none", "closed"])
def test_without_a_home_the_shipped_models_are_there(monkeypatch, home, bundle_folder):
    monkeypatch.setattr("pathlib.Path.home", home)
    monkeypatch.setenv("DEEPLABSEG_MODELS", os.pathsep.join(["/" + "long" * 100, str(bundle_folder.parent)]))
    assert {catalog.DEFAULT_MODEL, bundle_folder.name} <= set(catalog.installed_models())
    assert catalog.find_model(str(bundle_folder)) == bundle_folder


def test_a_model_that_is_closed_to_us_hides_no_other(monkeypatch, bundle_folder):
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(bundle_folder.parent))
    (bundle_folder.parent / "closed").mkdir()
    look = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert bundle_folder.name in catalog.installed_models()


def test_a_model_that_was_trained_anew_is_another_though_its_files_are_as_large(bundle_folder):
    before = catalog.model_state(bundle_folder)
    tensors = bundle_folder / "model.safetensors"
    os.utime(tensors, ns=(0, tensors.stat().st_mtime_ns + 1_000_000_000))
    assert catalog.model_state(bundle_folder) != before
