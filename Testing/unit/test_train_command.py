import csv
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import make_bundle

import DeepLabSegLib.training.lock
from DeepLabSegLib import load_model, read_image
from DeepLabSegLib.bundle import read_bundle, read_network, save_bundle
from DeepLabSegLib.catalog import find_model
from DeepLabSegLib.cli import main
from DeepLabSegLib.errors import InvalidInput, OutputError, WeightsError
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training import Overrides, TrainOptions, check_data, train_model
from DeepLabSegLib.training.augment import Augmentation
from DeepLabSegLib.training.cases import find_cases
from DeepLabSegLib.training.head_mri import STRUCTURES
from DeepLabSegLib.training.jobs import make_job
from DeepLabSegLib.training.lock import held
from DeepLabSegLib.training.options import quiet
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.recipes import RECIPES
from DeepLabSegLib.training.split import split

SHAPES = {2: (40, 48), 3: (24, 40, 48)}
FAST = ("--batch", "2", "--workers", "0", "--folds", "3", "--seed", "1")


def write_data(folder, dims, cases=6):
    """Bright boxes in noise, and where they are: pictures, or volumes with anisotropic voxels."""
    rng = np.random.default_rng(dims)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for n in range(cases):
        label = np.zeros(SHAPES[dims], np.uint8)
        corner = rng.integers(2, 8, dims)
        label[tuple(slice(c, c + 12) for c in corner)] = 1
        image = rng.normal(60, 10, label.shape) + 100 * label
        suffix = {2: ".png", 3: ".nii.gz"}[dims]
        for part, array in (("images", image), ("labels", label)):
            picture = sitk.GetImageFromArray(array.clip(0, 255).astype(np.uint8))
            if dims == 3:
                picture.SetSpacing((1.0, 1.0, 1.5))
            sitk.WriteImage(picture, folder / part / f"case{n}{suffix}")
    return folder


def add_balls(cases):
    """A second class, away from the boxes, in the labels of `cases`."""
    for case in cases:
        label = sitk.ReadImage(str(case.label))
        array = sitk.GetArrayFromImage(label)
        array[..., 30:36, 36:42] = 2
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(label)
        sitk.WriteImage(changed, case.label)


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def data(request, tmp_path):
    return write_data(tmp_path / "data", request.param)


def dims_of(data) -> int:
    return 2 if next((data / "images").iterdir()).suffix == ".png" else 3


def small(dims: int) -> Overrides:
    return Overrides(tile=(32,) * dims, spacing=(None, None, None), batch_size=2, names=("Box",))


def brief(dims: int, folds: int = 3, **more) -> TrainOptions:
    """Two steps, and the images are loaded in the same process."""
    return TrainOptions(overrides=small(dims), training={"steps": 2, "workers": 0}, folds=folds, **more)


def test_a_trained_model_is_a_bundle_that_segments(data, tmp_path):
    dims = dims_of(data)
    options = TrainOptions(
        overrides=small(dims),
        training={"steps": 40, "learning_rate": 5e-3, "average": 0.8, "validate_every": 20, "workers": 0},
        folds=3,
    )
    trained = train_model(data, tmp_path / "boxes", options)
    assert trained.scores["mean Dice"] == trained.scores["Dice of Box"] > 0.5
    bundle = read_bundle(tmp_path / "boxes")
    assert [label.name for label in bundle.labels] == ["Box"]
    assert bundle.figures["Dice of Box, held-out cases"] == pytest.approx(trained.scores["Dice of Box"], abs=1e-4)
    assert bundle.training_data == "4 cases of data"
    assert bundle.description == "Box; trained on 4 cases"
    image = read_image(next((data / "images").iterdir()))
    labels = load_model(tmp_path / "boxes").segment(image)
    assert labels.volumes_ml()["Box"] > 0
    beside = {path.name for path in (tmp_path / "boxes.training").iterdir()}
    assert beside == {"checkpoint.pt", "curves.csv", "curves.png", "data.txt", "lock", "prepared"}


def test_a_broken_pair_is_named_and_the_rest_is_trained_on(data, tmp_path, capsys):
    broken = next((data / "labels").glob("case3*"))
    broken.write_bytes(b"no image")
    (data / "images" / f"alone{''.join(broken.suffixes)}").write_bytes(b"no image either")
    assert main(["train", str(data), "--check"]) == 0
    text = capsys.readouterr().out
    assert "case3" in text
    assert "alone" in text
    assert "5 of " in text
    dims = "32x32" if broken.suffix == ".png" else "32x32x32"
    output = str(tmp_path / "boxes")
    assert main(["train", str(data), "-o", output, "--steps", "2", "--tile", dims, *FAST]) == 0
    said = "there are faults in alone, case3; "
    assert f"{said}{tmp_path / 'boxes.training' / 'data.txt'} says which" in capsys.readouterr().err
    assert "case3" in (tmp_path / "boxes.training/data.txt").read_text(encoding="utf-8")
    assert read_bundle(output).training_data == "3 cases of data"


def test_the_command_says_how_to_make_the_model_again_without_naming_this_machine(tmp_path, capsys):
    data = write_data(tmp_path / "data", 2)
    output = str(tmp_path / "boxes")
    weights = tmp_path / "begin"
    shutil.copytree(find_model("head-mri-2d"), weights)
    arguments = ["train", str(data), f"--output={output}", "--steps", "2", "--tile", "32x32", "--labels", "Box", *FAST]
    assert main([*arguments, "--weights", str(weights), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] in (1, 2)
    command = read_bundle(output).reproduce
    assert command.startswith("deeplabseg train DATA --output=boxes --steps 2 --tile 32x32")
    assert "--weights begin" in command
    assert str(tmp_path) not in command
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "kept"),
    [("scans/liver", "train DATA -o liver --labels liver"), ("liver", "train liver -o liver --labels liver")],
)
def test_the_command_keeps_a_label_that_is_called_like_the_data(data, kept, monkeypatch, capsys):
    def say(data, output, options, **_) -> None:
        raise InvalidInput(options.reproduce)

    monkeypatch.setattr("DeepLabSegLib.training.train_model", say)
    assert main(["train", data, "-o", "models/liver", "--labels", "liver"]) == 1
    assert capsys.readouterr().err == f"deeplabseg: deeplabseg {kept}\n"


def test_the_command_that_is_kept_can_be_run_as_it_stands(tmp_path, monkeypatch):
    data = write_data(tmp_path / "DATA", 2)
    arguments = ["train", str(data), f"-o{tmp_path / 'boxes'}", "--tile=32x32", "--spacing=0x0.8x0.8", "--steps", "2",
                 "--patient=-?(.+)", "--mirror-axes=", *FAST]  # fmt: skip
    assert main(arguments) == 0
    first = read_bundle(tmp_path / "boxes")
    assert first.reproduce is not None
    (tmp_path / "again").mkdir()
    data.rename(tmp_path / "again" / "DATA")
    monkeypatch.chdir(tmp_path / "again")
    assert main(shlex.split(first.reproduce)[1:]) == 0
    assert read_bundle("boxes") == first


@pytest.mark.parametrize("killed", [False, True])
def test_two_trainings_do_not_write_into_one_folder_and_a_killed_one_leaves_it_free(killed, tmp_path, capsys):
    data, output = write_data(tmp_path / "data", 2), tmp_path / "boxes"
    arguments = ["train", str(data), "-o", str(output), "--tile", "32x32", "--steps", "2", *FAST, "--folds", "0"]
    program = (
        "import pathlib, sys\nfrom DeepLabSegLib.training.lock import held\n"
        "with held(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    (tmp_path / "boxes.training").mkdir()
    command = [sys.executable, "-c", program, tmp_path / "boxes.training"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().split() == [b"held"]
        assert main(arguments) == 1
        said = f"another training is at work in {tmp_path / 'boxes.training'}; wait until it ends or stop it"
        assert said in capsys.readouterr().err
        assert not output.exists()
        assert [path.name for path in (tmp_path / "boxes.training").iterdir()] == ["lock"]
        if killed:
            other.kill()
    assert main(arguments) == 0


def keeps_others_out(folder) -> bool:
    """Whether another process can't lock what lies in `folder`."""
    program = "import fcntl, sys\nfcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", program, folder / "lock"], capture_output=True, check=False)
    return b"BlockingIOError" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no open file")
def test_a_lock_that_is_deleted_while_another_training_takes_it_is_taken_anew(tmp_path, monkeypatch):
    """As by one that failed, and tidies up at that moment; a deleted file would keep nobody out."""
    folder, real = tmp_path / "boxes.training", DeepLabSegLib.training.lock._lock

    def late(file: int) -> None:
        monkeypatch.setattr(DeepLabSegLib.training.lock, "_lock", real)
        with held(folder):
            pass
        assert not folder.exists()
        real(file)

    monkeypatch.setattr(DeepLabSegLib.training.lock, "_lock", late)
    with held(folder):
        assert keeps_others_out(folder)
    assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no open file")
def test_a_training_that_tidies_up_keeps_others_out_until_it_is_done(tmp_path, monkeypatch):
    folder, real, kept_out = tmp_path / "boxes.training", Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        kept_out.append(keeps_others_out(folder))
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with held(folder):
        pass
    assert kept_out == [True]


def test_training_begins_with_a_models_weights(tmp_path):
    data = write_data(tmp_path / "data", 2)
    options = brief(2, initial="head-mri-2d")
    assert "tensors from head-mri-2d" in train_model(data, tmp_path / "boxes", options).begun
    other = replace(options, overrides=replace(small(2), encoder="densenet121"))
    with pytest.raises(WeightsError, match="head-mri-2d shares no kernel with the encoder densenet121"):
        train_model(data, tmp_path / "others", other)


def test_what_is_kept_of_the_weights_begun_with_must_be_there(tmp_path):
    data = write_data(tmp_path / "data", 2)

    def options(initial):
        return replace(brief(2, initial=initial), training={"steps": 2, "workers": 0, "keep": 0.5})

    with pytest.raises(InvalidInput, match="begins with fresh weights"):
        train_model(data, tmp_path / "boxes", options(None))
    with pytest.raises(WeightsError, match=r"head-mri-2d has \d+ of the network's \d+ tensors"):
        train_model(data, tmp_path / "boxes", options("head-mri-2d"))
    train_model(data, tmp_path / "first", brief(2))
    assert train_model(data, tmp_path / "second", options(str(tmp_path / "first"))).step in (1, 2)


def test_nothing_is_trained_where_something_is_in_the_way(tmp_path):
    data = write_data(tmp_path / "data", 2)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        train_model(data, tmp_path / "there")
    with pytest.raises(InvalidInput, match="no recipe 'liver'; choose head-mri"):
        train_model(data, tmp_path / "boxes", TrainOptions(recipe="liver"))
    with pytest.raises(InvalidInput, match="a recipe decides overrides"):
        train_model(data, tmp_path / "boxes", TrainOptions(recipe="cardiac-lv", overrides=small(2)))
    with pytest.raises(InvalidInput, match="training has unknown fields speed"):
        train_model(data, tmp_path / "boxes", TrainOptions(training={"speed": 2}))
    with pytest.raises(InvalidInput, match=r"nothing is validated \(0 folds, or label maps alone\); leave it out"):
        train_model(data, tmp_path / "boxes", TrainOptions(recipe="head-mri", training={"patience": 2}))
    assert not (tmp_path / "boxes").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (".", "has no name for a model"),
        ("..", "has no name for a model"),
        ("file", "is a file, and such a model is a folder"),
        ("folder.safetensors", "is a folder, and such a model is a file"),
        ("model.pt", "is called like a file of another kind"),
    ],
)
def test_a_place_that_can_hold_no_model_is_said_before_the_data_are_read(output, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match=words):
        train_model(tmp_path / "no data", output, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.parametrize("check", [(), ("--check",)])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--weights", "nosuch"), "there is no model 'nosuch'"),
        (("--weights", "gone/model"), "gone"),
        (("--keep", "0.5"), "begins with fresh weights"),
        (("--steps", "0"), "steps is 0"),
        (("--patience", "3", "--folds", "0"), "patience is 3, but nothing is validated"),
        (("--precision", "fp8"), "precision"),
    ],
)
def test_an_option_that_does_not_fit_is_said_before_the_data_are_read(check, wrong, words, tmp_path, capsys):
    assert main(["train", str(tmp_path / "no data"), "-o", str(tmp_path / "boxes"), *wrong, *check]) == 1
    assert words in capsys.readouterr().err


def test_what_does_not_fit_the_data_is_said_by_the_check(tmp_path, capsys):
    data = write_data(tmp_path / "data", 2)
    for wrong, words in (
        (("--fold", "9"), "fold is 9; with 5 folds choose 0 to 4"),
        (("--encoder", "densenet121", "--weights", "head-mri-2d"), "shares no kernel"),
        (("--patient", "case"), "all 6 cases are of one patient, 'case'"),
        (("--spacing", "0x1e-9x1"), "at the spacing 1 x 1e-09 x 1 mm the median image has 1 x 400"),
        (("--labels", "Box,Ball"), "the labels have 1 class (1); give as many names, not 2"),
    ):
        assert main(["train", str(data), "--check", *wrong]) == 1
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folds", "words"),
    [("0", "no case is held out\n"), ("6", "1 case is held out: case"), ("3", "2 cases are held out: case")],
)
def test_the_check_says_how_many_cases_are_held_out(folds, words, tmp_path, capsys):
    patient = ("--patient", "case") if folds == "0" else ()  # one is enough to learn from all
    assert main(["train", str(write_data(tmp_path / "data", 2)), "--check", "--folds", folds, *patient]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["gone", "broken"])
def test_data_that_cannot_be_trained_on_leave_nothing_behind(wrong, tmp_path):
    data = write_data(tmp_path / "data", 2)
    for label in (data / "labels").iterdir():
        label.write_bytes(b"no image")
    with pytest.raises(InvalidInput):
        train_model(data if wrong == "broken" else tmp_path / "no data", tmp_path / "boxes")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


TENSORS, JSON = "model.safetensors", "model.json"


@pytest.mark.parametrize(
    ("there", "cut"),
    [((), ()), ((TENSORS,), ()), ((), (TENSORS,)), ((TENSORS,), (TENSORS,)), ((TENSORS,), (TENSORS, JSON))],
)
def test_a_bundle_that_was_being_written_when_all_was_cut_off_is_written_anew(there, cut, tmp_path):
    data, output = write_data(tmp_path / "data", 2), tmp_path / "boxes"
    options = brief(2)
    first = train_model(data, output, options)
    (output / JSON).unlink()
    (output / TENSORS).unlink()
    for name in cut:
        with replacing(output / name) as half:
            half.write_bytes(b"whole")
        (output / name).rename(half)
    for name in there:
        (output / name).write_bytes(b"half")
    assert train_model(data, output, options).step == first.step
    assert sorted(path.name for path in output.iterdir()) == [JSON, TENSORS]
    assert read_network(output, read_bundle(output))
    (output / "notes.txt").touch()
    (output / JSON).unlink()
    with pytest.raises(OutputError, match="exists"):
        train_model(data, output, options)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"folds": "3"}, "options.folds is '3'; it must be an integer"),
        ({"fold": 0.5}, "options.fold is 0.5; it must be an integer"),
        ({"training": {"steps": "2000"}}, "training.steps is '2000'; it must be an integer"),
        ({"training": {"steps": 20.5}}, "training.steps is 20.5; it must be an integer"),
        ({"training": {"precision": "fp32"}}, "training has a precision; give it beside the device"),
        ({"overrides": Overrides(names="Liver")}, "options.overrides.names is 'Liver'; it must be a list"),
        ({"overrides": Overrides(tile=32)}, "options.overrides.tile is 32; it must be a list"),
        ({"patient": 3}, "options.patient is 3; it must be a text"),
    ],
)
def test_an_option_of_another_type_is_named_before_the_data_are_read(wrong, words, tmp_path):
    for begin in (check_data, lambda data, options: train_model(data, tmp_path / "boxes", options)):
        with pytest.raises(InvalidInput, match=re.escape(words)):
            begin(tmp_path / "no data", TrainOptions(**wrong))


def test_options_may_have_numbers_of_numpy_and_paths(tmp_path):
    data, first = write_data(tmp_path / "data", 2), tmp_path / "first"
    chosen = Overrides(tile=np.array([32, 32]), batch_size=np.int64(2), spacing=(None, np.float32(1), np.float32(1)))
    options = TrainOptions(overrides=chosen, training={"steps": np.int64(2), "workers": 0}, folds=np.int64(3))
    train_model(data, first, options)
    trained = train_model(data, tmp_path / "second", replace(options, initial=first))
    assert "tensors from" in trained.begun
    assert read_bundle(tmp_path / "second").input.tile == (32, 32)


def test_a_case_that_cannot_be_validated_any_more_is_named(tmp_path):
    data = write_data(tmp_path / "data", 2)

    def spoil(stage: str, step: int, *_) -> None:
        if (stage, step) == ("train", 1):
            for path in (data / "images").iterdir():
                path.write_bytes(b"")

    options = brief(2, folds=6)
    with pytest.raises(InvalidInput, match=r"^case\d: .*case\d\.png is empty"):
        train_model(data, tmp_path / "boxes", options, on_progress=spoil)


def test_a_fold_in_which_no_label_holds_a_class_is_refused(tmp_path, capsys):
    data = write_data(tmp_path / "data", 2)
    assert main(["train", str(data), "--check", "--folds", "6", "--fold", "1"]) == 0
    cases = find_cases(data)[0]
    _, (held_out,) = split(cases, 6, 1)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPES[2], np.uint8)), held_out.label)
    arguments = ["train", str(data), "--check", "--allow-empty", "--folds", "6", "--fold"]
    assert main([*arguments, "1"]) == 1
    assert f"no case of fold 1 of 6 holds a class ({held_out.name})" in capsys.readouterr().err
    assert main([*arguments, "2"]) == 0


def test_a_held_out_case_may_be_empty_where_that_is_allowed(tmp_path):
    data = write_data(tmp_path / "data", 2)
    empty = split(find_cases(data)[0], 3)[1][0].label
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPES[2], np.uint8)), empty)
    assert "Dice of Box" in train_model(data, tmp_path / "boxes", brief(2, allow_empty=True)).scores


def job_of(data, folder, chosen, processes=1):
    options = TrainOptions(overrides=chosen, folds=3)
    return make_job(data, "boxes", folder, options, Processes(0, processes, torch.device("cpu")), quiet)


@pytest.mark.parametrize("balls", [0, 1])
def test_dice_of_a_class_is_a_mean_over_the_held_out_cases_that_have_it_less_what_is_found_in_the_others(
    balls, data, tmp_path
):
    learned, held_out = split(find_cases(data)[0], 3)
    add_balls([*learned, *held_out[:balls]])
    dims = dims_of(data)
    job = job_of(data, tmp_path, replace(small(dims), names=("Box", "Ball")))

    def scores(value):
        """Of a network that finds the class `value` everywhere."""
        with torch.no_grad():
            job.network.head.weight.zero_()
            job.network.head.bias.copy_(torch.eye(3)[value])
        return job.validate(job.network.eval())

    assert len(held_out) == 2
    if balls:
        voxels = np.array(SHAPES[dims])
        ball = 36 * np.prod(voxels[:-2])
        both = 2 * voxels.prod()  # the other case has none, and all that is found in it is wrong
        assert scores(2)["Dice of Ball"] == pytest.approx(2 * ball / (ball + both))
        (first, mean), *others = scores(2).items()
        assert (first, mean) == ("mean Dice", pytest.approx(np.mean([score for _, score in others])))
        assert job.bundle.limits is None
    else:
        assert scores(2) == scores(0) == {"mean Dice": 0, "Dice of Box": 0}
        assert job.bundle.limits == "No figure speaks of Ball: no held-out case had it."
    said = (tmp_path / "data.txt").read_text(encoding="utf-8")
    assert ("no held-out case has Ball, so that no figure will speak of it" in said) == (balls == 0)


def test_what_is_learned_is_changed_at_random_and_shared_evenly(data, tmp_path):
    dims = dims_of(data)
    job = job_of(data, tmp_path, replace(small(dims), batch_size=None), processes=5)
    assert len(job.pairs.cases) == 4
    assert job.pairs.augmentation == Augmentation()
    assert job.training.batch_size % 5 == 0
    assert job.training.every == dims - 1


def test_seed_licence_and_data_that_are_given_reach_images_and_model(tmp_path):
    options = brief(2, license="CC-BY-4.0", training_data="boxes of ours", reproduce="make boxes")
    options = replace(options, training=options.training | {"seed": 3})
    data, alone = write_data(tmp_path / "data", 2), Processes(0, 1, torch.device("cpu"))
    job = make_job(data, "boxes", tmp_path, options, alone, quiet)
    assert job.pairs.seed == job.training.seed == 3
    bundle = job.bundle
    assert (bundle.name, bundle.license, bundle.training_data) == ("boxes", "CC-BY-4.0", "boxes of ours")
    assert bundle.reproduce == "make boxes"


def test_a_model_of_many_classes_that_learned_from_one_case_describes_itself_in_a_line(tmp_path):
    data = write_data(tmp_path / "data", 2, cases=2)
    for path in (data / "labels").iterdir():
        array = np.zeros(SHAPES[2], np.uint8)
        array[:32, :32] = np.arange(1, 9).repeat(4)
        sitk.WriteImage(sitk.GetImageFromArray(array), path)
    options = replace(brief(2), overrides=replace(small(2), names=None))
    bundle = make_job(data, "stripes", tmp_path, options, Processes(0, 1, torch.device("cpu")), quiet).bundle
    assert bundle.description == "Label 1, Label 2, Label 3, Label 4, Label 5 and 3 more; trained on 1 case"
    assert bundle.training_data == "1 case of data"


@pytest.mark.parametrize("spacing", [None, (None, None, None)], ids=["planned", "as they are"])
def test_a_model_of_pictures_says_that_their_pixels_have_no_size_where_it_counts(spacing, data, tmp_path):
    limits = job_of(data, tmp_path, replace(small(dims_of(data)), spacing=spacing)).bundle.limits
    assert ("it counts as 1 mm" in (limits or "")) == (dims_of(data) == 2 and spacing is None)


def test_a_checkpoint_must_share_grid_window_values_and_labels(tmp_path):
    data = write_data(tmp_path / "data", 2)
    about = job_of(data, tmp_path, small(2)).about

    def differing(**changed):
        other = job_of(data, tmp_path, replace(small(2), **changed)).about
        return [name for name in about if about[name] != other[name]]

    assert differing() == []
    assert differing(tile=(32, 48)) == ["input"]
    assert differing(names=("Case",)) == ["labels"]
    assert differing(normalization=Normalization("zscore")) == ["input", "data", "held-out data"]
    label = next((data / "labels").glob(f"{job_of(data, tmp_path, small(2)).pairs.cases[0].name}.*"))
    os.utime(label, ns=(0, 0))
    assert differing() == ["data"]


def test_a_class_that_only_held_out_cases_have_is_refused(data, capsys):
    _, held_out = split(find_cases(data)[0], 3)
    add_balls(held_out)
    arguments = ["train", str(data), "--check", "--folds", "3", "--fold"]
    assert main([*arguments, "0"]) == 1
    said = capsys.readouterr().err
    assert "only cases of fold 0 of 3, which are held out, have Label 2, so that it could not be learned" in said
    assert main([*arguments, "1"]) == 0
    assert "no held-out case has Label 2" in capsys.readouterr().out


def test_a_checkpoint_of_other_data_or_another_grid_is_not_taken_up(tmp_path):
    data = write_data(tmp_path / "data", 2)
    first = brief(2)
    train_model(data, tmp_path / "boxes", first)
    finer = replace(first, overrides=replace(small(2), spacing=(None, 0.5, 0.5)))
    with pytest.raises(InvalidInput, match=r"belongs to a training with other settings \(input: spacing; data: "):
        train_model(data, tmp_path / "boxes", finer, overwrite=True)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(data / "labels/case0.png")))
    sitk.WriteImage(sitk.GetImageFromArray(np.roll(label, 3, axis=1)), data / "labels/case0.png")
    sitk.WriteImage(sitk.GetImageFromArray(np.roll(label, 5, axis=1)), data / "labels/case1.png")
    with pytest.raises(InvalidInput, match="belongs to a training with other settings"):
        train_model(data, tmp_path / "boxes", first, overwrite=True)


def test_a_training_goes_on_with_data_that_moved(data, tmp_path):
    options = brief(dims_of(data))
    first = train_model(data, tmp_path / "boxes", options)
    prepared = {path: path.stat().st_mtime_ns for path in (tmp_path / "boxes.training/prepared").iterdir()}
    data.rename(tmp_path / "elsewhere")
    again = train_model(tmp_path / "elsewhere", tmp_path / "boxes", options, overwrite=True)
    assert again.step == first.step
    assert prepared == {path: path.stat().st_mtime_ns for path in (tmp_path / "boxes.training/prepared").iterdir()}


def test_a_checkpoint_is_not_taken_up_when_the_weights_begun_with_have_changed(tmp_path):
    data, first, second = write_data(tmp_path / "data", 2), tmp_path / "first", tmp_path / "second"
    train_model(data, first, brief(2))
    options = brief(2, initial=str(first))
    train_model(data, second, options)
    bundle = read_bundle(first)
    network = read_network(first, bundle)
    network.head.bias.data += 1
    save_bundle(first, bundle, network, overwrite=True)
    with pytest.raises(InvalidInput, match=r"other settings \(weights .*first \(\w{8}\), now .*first \(\w{8}\)\)"):
        train_model(data, second, options, overwrite=True)


def test_a_checkpoint_is_not_taken_up_when_what_is_held_out_has_changed(tmp_path):
    data = write_data(tmp_path / "data", 2)
    options = brief(2, folds=6)
    train_model(data, tmp_path / "boxes", options)
    prepared = {path.name.split("-")[0] for path in (tmp_path / "boxes.training/prepared").iterdir()}
    (held_out,) = {f"case{n}" for n in range(6)} - prepared
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(data / f"labels/{held_out}.png")))
    sitk.WriteImage(sitk.GetImageFromArray(np.roll(label, 3, axis=1)), data / f"labels/{held_out}.png")
    with pytest.raises(InvalidInput, match=rf"other settings \(held-out data: {held_out}\)"):
        train_model(data, tmp_path / "boxes", options, overwrite=True)


@pytest.mark.parametrize(
    ("steps", "check", "words"),
    [
        (0, (), "the same command begins anew, since there is no checkpoint yet"),
        (2, (), "the same command goes on from the checkpoint"),
        (2, ("--check",), "nothing was written"),
    ],
)
def test_ctrl_c_says_what_is_left(steps, check, words, tmp_path, capsys, monkeypatch):
    data = write_data(tmp_path / "data", 2)
    arguments = ["train", str(data), "-o", str(tmp_path / "boxes"), "--tile", "32x32", *FAST, "--overwrite", "--steps"]
    if steps:
        assert main([*arguments, str(steps)]) == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("DeepLabSegLib.commands.telling.ProgressBar.of_training", interrupt)
    assert main([*arguments, "2", *check]) == 130
    assert capsys.readouterr().err.strip().endswith(f"interrupted; {words}")


def test_labels_without_a_voxel_are_faults_unless_they_are_allowed(tmp_path, capsys):
    data = write_data(tmp_path / "data", 2)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPES[2], np.uint8)), data / "labels/case0.png")
    assert main(["train", str(data), "--check"]) == 0
    assert "5 of 6 cases" in capsys.readouterr().out
    assert main(["train", str(data), "--check", "--allow-empty"]) == 0
    assert "6 of 6 cases" in capsys.readouterr().out


def test_the_axes_of_mirror_images_can_be_chosen(tmp_path, capsys):
    data = write_data(tmp_path / "data", 2)
    assert main(["train", str(data), "--check", "--mirror-axes", "i"]) == 0
    assert "mirrored along i\n" in capsys.readouterr().out
    for both in ("j,i", "ij", "j i"):
        assert main(["train", str(data), "--check", "--mirror-axes", both]) == 0
        assert "mirrored along j, i\n" in capsys.readouterr().out
    assert main(["train", str(data), "--check", "--mirror-axes", ""]) == 0
    assert "mirrored along no axis\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", str(data), "--check", "--mirror-axes", "left"])
    assert "'left' names no axes; write some of k,j,i" in capsys.readouterr().err


def test_the_help_says_what_becomes_of_names_that_segments_have(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "those that segments have give their order, others rename the labels in the order of their values" in said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes to signal")
def test_a_training_whose_whole_group_gets_sigterm_ends_in_words(tmp_path):
    """As `timeout` sends it; the processes that load images get it as well."""
    data = write_data(tmp_path / "data", 2)
    command = [sys.executable, "-m", "DeepLabSegLib.cli", "train", data, "-o", tmp_path / "boxes", "--workers", "2",
               "--device", "cpu", "--steps", "99999", "--tile", "32x32", "--labels", "Box", "--folds", "0"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (tmp_path / "boxes.training" / "data.txt").exists():
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted; the same command" in errors
    assert "Traceback" not in errors


def run_with_torchrun(processes, *arguments):
    command = [sys.executable, "-m", "DeepLabSegLib.cli", "train", *map(str, arguments), "--device", "cpu"]
    if processes > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def losses_of(processes, data, output):
    done = run_with_torchrun(processes, data, "-o", output, *FAST, "--steps", "6", "--batch", "4", "--tile", "32x32x32",
                             "--spacing", "0x0x0", "--validate-every", "6", "--precision", "fp32")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Grad strides" not in done.stderr
    assert done.stdout.count("weights of step") == 1, "the first process alone reports"
    with (output.parent / f"{output.name}.training/curves.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_train_as_one_does(tmp_path):
    data = write_data(tmp_path / "data", 3)
    one, two = (losses_of(n, data, tmp_path / f"model{n}") for n in (1, 2))
    # Batch normalisation sees half of a batch in each process, and the Dice of halves isn't the whole's.
    assert len(one) == len(two) == 6
    np.testing.assert_allclose(two, one, rtol=0.1)
    assert read_bundle(tmp_path / "model2").labels == read_bundle(tmp_path / "model1").labels


@pytest.mark.parametrize("wrong", [("--check",), ("-o", "boxes")])
def test_of_processes_that_end_for_one_reason_one_says_it(wrong, tmp_path, monkeypatch):
    data = write_data(tmp_path / "data", 2, cases=1)
    monkeypatch.chdir(tmp_path)
    done = run_with_torchrun(2, data, *wrong)
    assert done.returncode == 1
    assert done.stderr.count("deeplabseg: ") == 1, done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count("ChildFailedError:") == 1  # torchrun's own


def test_a_cross_validation_segments_each_case_with_the_model_that_did_not_learn_it(data, tmp_path, monkeypatch):
    """Model n calls everything its label if n is even, and nothing else; one case can't be trained on."""
    dims = dims_of(data)
    for path in (data / "labels").iterdir():
        label = sitk.ReadImage(str(path))
        sitk.WriteImage(label * (0 if "case3" in path.name else 255), path)
    bundle = make_bundle(dims, 2, orientation=None if dims == 2 else "SAR")
    network = DeepLabV3Plus.from_spec(bundle.network)
    models = [str(tmp_path / f"model{fold}") for fold in range(3)]
    for fold, path in enumerate(models):
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor([0.0, 1.0 - 2 * (fold % 2)]))
        save_bundle(path, bundle, network)
    script, table = Path(__file__).parents[1] / "evaluation" / "folds.py", tmp_path / "table.csv"
    monkeypatch.setattr(sys, "argv", ["folds.py", str(data), *models, "--seed", "1", "-o", str(table)])
    runpy.run_path(str(script), run_name="__main__")
    with table.open(encoding="utf-8", newline="") as file:
        found = {row["case"]: float(row["dice"]) > 0 for row in csv.DictReader(file)}
    good = [case for case in find_cases(data)[0] if case.name != "case3"]
    assert found == {case.name: fold % 2 == 0 for fold in range(3) for case in split(good, 3, fold, seed=1)[1]}


def write_head(folder):
    """A folder with a label map that has every structure."""
    folder.mkdir()
    head = np.full((40, 40, 40), 515, np.int16)
    head[8:32, 8:32, 8:32] = 24
    values = [value for structure in STRUCTURES for value in structure.sources if value != 24]
    head[12:28, 12:28, 12:28] = np.resize(values, (16, 16, 16))
    sitk.WriteImage(sitk.GetImageFromArray(head), folder / "head.nii.gz")
    (folder / "._head.nii.gz").write_bytes(b"of macOS, on a foreign disk")
    return folder


def test_heads_follow_recipe_and_seed_and_a_checkpoint_must_share_their_label_maps(tmp_path):
    data, alone = write_head(tmp_path / "maps"), Processes(0, 1, torch.device("cpu"))
    job = make_job(data, "heads", tmp_path, TrainOptions(recipe="head-mri-2d", training={"seed": 3}), alone, quiet)
    assert (job.pairs.spacing, job.pairs.seed) == ((0.8, 0.8), 3)
    assert job.pairs.spec.mirror_axes == RECIPES["head-mri-2d"].bundle.input.mirror_axes
    assert job.about["data"] == {"head.nii.gz": (data / "head.nii.gz").stat().st_size}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_its_model_from_a_few_steps(name, tmp_path):
    recipe = RECIPES[name]
    if recipe.heads is None:
        data = tmp_path / "data"
        for part in ("images", "labels"):
            (data / part).mkdir(parents=True)
        for n in range(4):
            label = np.zeros((40, 48), np.uint8)
            label[10 + n : 24, 10:30] = 255
            for part, array in (("images", label // 3 + 5 * n), ("labels", label)):
                sitk.WriteImage(sitk.GetImageFromArray(array), data / part / f"P-{n}-IM-0001.png")
    else:
        data = write_head(tmp_path / "maps")
    batch = 2 if recipe.heads is None else 1  # of large windows
    options = TrainOptions(
        recipe=name, training={"steps": 1, "batch_size": batch, "workers": 0}, folds=2, reproduce=f"make {name}"
    )
    trained = train_model(data, tmp_path / name, options)
    bundle = read_bundle(tmp_path / name)
    if recipe.heads is None:
        assert ", batch 2" in (tmp_path / f"{name}.training" / "data.txt").read_text()  # what is trained, not planned
    assert bundle.name == name
    assert bundle.labels == recipe.bundle.labels
    assert bundle.limits == recipe.bundle.limits
    assert bundle.reproduce == f"make {name}"
    assert trained.network.spec == bundle.network
