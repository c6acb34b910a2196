import argparse
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import CLOSED, FULL, SAMPLE, itk, make_bundle, make_network, make_segmenter, make_spec, run, save_model

from DeepLabSegLib import files, load_model, read_image
from DeepLabSegLib.batch import Case
from DeepLabSegLib.bundle import save_bundle
from DeepLabSegLib.catalog import DEFAULT_MODEL
from DeepLabSegLib.commands.telling import ProgressBar
from DeepLabSegLib.errors import OutputError
from DeepLabSegLib.files import read_labels
from DeepLabSegLib.image import Image
from DeepLabSegLib.segmenter import Progress, SegmentOptions
from DeepLabSegLib.training import TrainOptions
from DeepLabSegLib.training.cases import TABLES
from DeepLabSegLib.training.spec import TrainingSpec


@pytest.fixture
def scan_path(tmp_path, scan):
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(itk(scan), path)
    return path


def test_segment_writes_what_the_library_gives(tmp_path, scan_path, bundle_folder, capsys):
    output = tmp_path / "result.seg.nrrd"
    assert run("segment", scan_path, "-o", output, "--model", bundle_folder, "--device", "cpu") == 0
    printed = capsys.readouterr()
    assert "Part 1" in printed.out
    assert printed.err == "", "no progress bar in a pipe"
    expected = load_model(bundle_folder, "cpu").segment(read_image(scan_path))
    np.testing.assert_array_equal(read_labels(output).array, expected.array)


def test_small_volumes_keep_their_digits():
    from DeepLabSegLib.commands.segmenting import _volume_table

    assert _volume_table({"Lesion": 0.0432, "Liver": 1500.04}).split() == [
        "structure", "ml", "Lesion", "0.043", "Liver", "1500.0"
    ]  # fmt: skip


def test_json_is_for_programs(tmp_path, scan_path, bundle_folder, capsys):
    output = tmp_path / "result.nii.gz"
    assert run("segment", scan_path, "-o", output, "--model", bundle_folder, "--json", "--tile", "24x24") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(output)
    assert set(report["volumes_ml"]) == {"Part 1", "Part 2"}
    assert run("segment", scan_path, "-o", output, "--model", bundle_folder, "--json") == 1
    assert "is kept" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("segment", "scan.nii.gz"), "required: -o/--output"),
        (("segment", "scan.nii.gz", "-o", "r.nrrd", "--tile", "96xa"), "argument --tile"),
        (("train", "scans", "-o", "liver", "--spacing", "0"), "such as 0x0x0"),
        (("encoders", "--tiel", "96x96"), "unrecognized arguments: --tiel"),
        (("segmnet", "scan.nii.gz"), "invalid choice: 'segmnet'"),
        ((), "required: COMMAND"),
    ],
)
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_wrong_arguments_exit_with_2_and_are_told_to_programs_too(capsys, arguments, words, json_too):
    with pytest.raises(SystemExit) as ended:
        run(*arguments, *json_too)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert words in json.loads(printed.out)["error"] if json_too else printed.out == ""


def test_help_says_the_exit_codes_and_which_tables_a_training_takes(capsys):
    for arguments, words in ((("--help",), ("Exit codes: 0", "130 after Ctrl-C")), (("train", "--help"), TABLES)):
        with pytest.raises(SystemExit, match="0"):
            run(*arguments)
        shown = " ".join(capsys.readouterr().out.split())
        assert all(word in shown for word in words)


def test_help_says_the_defaults(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")  # names are broken at their hyphens
    engine, training = SegmentOptions(), TrainingSpec()
    defaults = {
        "segment": (DEFAULT_MODEL, engine.overlap, engine.blending, engine.threshold),
        "batch": (DEFAULT_MODEL, ".seg.nrrd", engine.overlap, engine.blending, engine.threshold),
        "train": (training.steps, training.optimizer, training.seed, TrainOptions().folds, TrainOptions().license),
    }
    for command, values in defaults.items():
        with pytest.raises(SystemExit, match="0"):
            run(command, "--help")
        shown = " ".join(capsys.readouterr().out.split())
        assert [value for value in values if f"(default: {value})" not in shown] == []


@pytest.mark.skipif(sys.platform == "win32", reason="the home folder is another variable's")
def test_a_first_model_is_converted_into_a_home_without_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    torch.save(make_network(make_spec(2)).state_dict(), tmp_path / "trained.pth")
    target = tmp_path / "home" / ".deeplabseg" / "models" / "liver"
    assert run("convert", tmp_path / "trained.pth", "-o", target, "--labels", "Liver,Spleen") == 0
    capsys.readouterr()
    assert run("models", "--json") == 0
    assert "liver" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("segment", "gone.nii.gz", "-o", "r.nrrd"), "gone.nii.gz does not exist"),
        (("segment", "scan.nii.gz", "-o", "gone/r.nrrd"), "the folder gone does not exist"),
        (("segment", "scan.nii.gz", "-o", "r.txt"), "no known ending"),
        (("segment", "scan.nii.gz", "-o", "r.png", "--model", "nothing"), "12 slices; write a .nrrd"),
        (("segment", "scan.nii.gz", "-o", "r.nrrd", "--uncertainty", "u.mhd"), "u.mhd has no known ending"),
        (("segment", "scan.nii.gz", "-o", "./scan.nii.gz", "--overwrite"), "scan.nii.gz is an input"),
        (("segment", "scan.nii.gz", "-o", "r.nrrd", "--uncertainty", "./r.nrrd"), "r.nrrd is given for two outputs"),
        (("batch", ".", "-o", ".", "--suffix", ".nii.gz", "--model", "tiny", "--overwrite"), "scan.nii.gz is an input"),
        (("segment", "scan.nii.gz", "-o", "r.nrrd", "--model", "nothing"), "there is no model 'nothing'"),
        (("segment", "scan.nii.gz", "-o", "r.nrrd", "--model", "tiny", "--device", "cuda:9"), "isn't available"),
        (("segment", "scan.nii.gz", "-o", "r.nrrd", "--model", "tiny", "--overlap", "2"), "between 0 and 0.9"),
        (("segment", "scan.nii.gz", "-o", "a" * 300 + ".nii.gz", "--model", "tiny"), "a.nii.gz"),
        (("batch", ".", "-o", "scan.nii.gz", "--model", "tiny"), "scan.nii.gz is a file"),
        (("batch", ".", "-o", "scan.nii.gz/results", "--model", "tiny"), "results can't be made"),
        (("batch", ".", "-o", "results", "--model", "nothing"), "there is no model 'nothing'"),
        (("batch", ".", "-o", "results", "--model", "tiny", "--overlap", "2"), "between 0 and 0.9"),
        (("batch", ".", "-o", "new/results", "--model", "tiny", "--tile", "24x24x24"), "this model is 2D and needs 2"),
        (("batch", ".", "-o", "new/results", "--model", "tiny", "--suffix", ".txt"), "suffix is '.txt'"),
        (("demo", "-o", "scan.nii.gz"), "is a file"),
        (("demo", "-o", "gone/demo"), "make its parent first"),
        (("info", "nothing"), "there is no model"),
        (("evaluate", "a.nii", "b.nii", "--reference", "c.nii"), "2 predictions and 1 references"),
        (("evaluate", ".", "--reference", "gone"), "gone does not exist; check the path"),
        (("evaluate", "gone", "--reference", "b.nii"), "gone does not exist; check the path"),
        (("evaluate", "a.nii", "--reference", "b.nii"), "a.nii does not exist"),
        (("evaluate", "a.nii", "--reference", "b.nii", "--images", "c.nii"), "with -o FOLDER"),
        (("evaluate", "a.nii", "--reference", "b.nii", "--worst", "-1"), "--worst is -1"),
        (("evaluate", "a.nii", "--reference", "b.nii", "-o", "gone/deep"), "make its parent first"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    tmp_path, scan_path, bundle_folder, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(bundle_folder.parent))
    before = sorted(tmp_path.iterdir())
    assert run(*arguments) == 1
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_plain_label_map_of_what_may_overlap_is_refused_before_the_work(tmp_path, scan_path, monkeypatch, capsys):
    model = save_model(tmp_path / "model", make_segmenter(2, classes=2, activation="sigmoid"))
    monkeypatch.setattr("DeepLabSegLib.segmenter.Segmenter.segment", lambda *_: pytest.fail("segmented for nothing"))
    assert run("segment", scan_path, "-o", tmp_path / "r.nii.gz", "--model", model) == 1
    assert "can't hold segments that overlap; write a .seg.nrrd" in capsys.readouterr().err


def test_info_says_how_a_model_runs_on_a_device(bundle_folder, capsys):
    assert run("info", bundle_folder, "--device", "cpu", "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert runs["device"].startswith("cpu (CPU")
    assert runs["precision"] == "fp32"
    assert runs["form"].startswith("folded")
    assert run("info", bundle_folder) == 0
    assert "runs" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to all programs of a console")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_stopped_leaves_no_file_and_exits_with_130_or_143(tmp_path, sent, code):
    program = (
        "import signal, sys, DeepLabSegLib.cli as c; from DeepLabSegLib import segmenter as s; import time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background lacks\n"
        "s.run = lambda *a, **k: (print('running', flush=True), time.sleep(60))\n"
        f"sys.exit(c.main(['segment', {str(SAMPLE)!r}, '-o', 'r.seg.nrrd']))"
    )
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        time.sleep(0.2)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.strip() == "deeplabseg: interrupted; nothing was written"
    assert not list(tmp_path.iterdir())


def test_who_is_told_that_nothing_was_written_has_no_file(tmp_path, scan_path, bundle_folder, monkeypatch, capsys):
    monkeypatch.setattr("DeepLabSegLib.image.Labels.volumes_ml", interrupt)  # after the network's work
    assert run("segment", scan_path, "-o", tmp_path / "r.seg.nrrd", "--model", bundle_folder, "--device", "cpu") == 130
    assert capsys.readouterr().err == "deeplabseg: interrupted; nothing was written\n"
    assert not (tmp_path / "r.seg.nrrd").exists()


def test_only_of_processes_that_train_the_first_alone_reports(tmp_path, bundle_folder, monkeypatch, capsys):
    """MPI's starters, and scripts of batch systems, number processes too that each have scans of their own."""
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    arguments = ("batch", tmp_path, "-o", tmp_path / "out", "--model", bundle_folder, "--device", "cpu", "--json")
    assert run(*arguments) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == 1


def test_after_the_command_sigterm_is_what_it_was():
    before = signal.getsignal(signal.SIGTERM)
    run("encoders")
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_sees_to_sigterm_himself_goes_on_to_do_so(monkeypatch):
    def their_own(*_) -> None:
        pass

    held = []
    monkeypatch.setattr("DeepLabSegLib.cli._say", lambda _: held.append(signal.getsignal(signal.SIGTERM)))
    before = signal.signal(signal.SIGTERM, their_own)
    try:
        assert run("encoders") == 0
        assert held == [signal.getsignal(signal.SIGTERM)] == [their_own]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_runs_in_a_thread_too():
    with ThreadPoolExecutor() as threads:
        assert threads.submit(run, "encoders").result() == 0


def fail(*_, **__):
    raise OutputError("no room")


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stop", "code", "words"), [(interrupt, 130, "interrupted; "), (fail, 1, "no room; ")], ids=["Ctrl-C", "full disk"]
)
def test_who_is_stopped_says_what_was_written(
    tmp_path, scan_path, bundle_folder, monkeypatch, capsys, stop, code, words
):
    monkeypatch.chdir(tmp_path)
    model = ("--model", bundle_folder, "--device", "cpu")
    monkeypatch.setattr(files, "write_image", stop)
    assert run("segment", scan_path, "-o", "r.seg.nrrd", "--uncertainty", "u.nrrd", *model) == code
    assert capsys.readouterr().err == f"deeplabseg: {words}written until then: r.seg.nrrd\n"
    monkeypatch.setattr("DeepLabSegLib.overlay.render", stop)
    monkeypatch.setattr("DeepLabSegLib.catalog.sample_scan", lambda: scan_path)
    assert run("demo", *model) == code
    assert capsys.readouterr().err.endswith(f"{words}written until then: {Path('demo/scan.seg.nrrd')}\n")
    monkeypatch.setattr("DeepLabSegLib.comparison.draw_worst", stop)
    assert run("evaluate", "r.seg.nrrd", "--reference", "r.seg.nrrd", "-o", "compared") == code
    assert capsys.readouterr().err.endswith(
        f"{words}written until then: the tables in compared, and the pictures that were drawn\n"
    )


def test_ctrl_c_while_a_batch_renews_says_that_the_others_are_old(
    tmp_path, scan_path, bundle_folder, monkeypatch, capsys
):
    (tmp_path / "second.nii.gz").write_bytes(scan_path.read_bytes())
    arguments = ("batch", tmp_path, "-o", tmp_path / "results", "--model", bundle_folder, "--device", "cpu")
    assert run(*arguments) == 0
    monkeypatch.setattr("DeepLabSegLib.commands.telling.ProgressBar.of_case", interrupt)
    assert run(*arguments, "--overwrite") == 130
    assert "finished cases are new and the others as they were; the same command begins" in capsys.readouterr().err
    with (tmp_path / "results" / "report.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["scan", "second"]


def test_ctrl_c_keeps_what_a_batch_has_finished(tmp_path, scan_path, bundle_folder, monkeypatch, capsys):
    (tmp_path / "second.nii.gz").write_bytes(scan_path.read_bytes())
    write = files.write_labels

    def write_and_stop(*arguments, **options) -> None:
        if (tmp_path / "results" / "scan.seg.nrrd").exists():
            raise KeyboardInterrupt
        write(*arguments, **options)

    monkeypatch.setattr(files, "write_labels", write_and_stop)
    assert run("batch", tmp_path, "-o", tmp_path / "results", "--model", bundle_folder, "--device", "cpu") == 130
    assert capsys.readouterr().err.endswith("cases are kept, and the same command, without --overwrite, goes on\n")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"scan.seg.nrrd", "report.csv"}


@pytest.mark.skipif(not CLOSED.exists(), reason="needs a folder that takes no file, whoever asks")
def test_a_folder_that_takes_no_file_is_named_before_the_scan_is_read(tmp_path, capsys):
    assert run("segment", tmp_path / "scan.nii.gz", "-o", CLOSED / "result.nii.gz") == 1
    assert "the folder /proc can't be written to; choose another one" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder_where_the_shell_leaves_it(tmp_path, scan_path, bundle_folder, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert run("segment", "~/scan.nii.gz", "-o", "~/result.nii.gz", "--model", bundle_folder) == 0
    assert (tmp_path / "result.nii.gz").exists()


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_name_that_the_output_can_not_spell_is_printed_all_the_same(bundle_folder, json_too):
    card = bundle_folder / "model.json"
    card.write_text(card.read_text(encoding="utf-8").replace("tiny-2d", "Голова"), encoding="utf-8")
    code = "import sys; from DeepLabSegLib.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "info", str(bundle_folder), *json_too]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode("cp1252")
    assert rb"\u0413\u043e\u043b\u043e\u0432\u0430" in ended.stdout


def test_the_lists_name_models_and_encoders(capsys):
    assert run("models") == 0
    assert "head-mri-2d" in capsys.readouterr().out
    assert run("encoders", "--json") == 0
    catalogue = json.loads(capsys.readouterr().out)
    assert "seresnext50" in catalogue["senet"]


def test_info_shows_what_a_model_says_of_itself(capsys, bundle_folder):
    assert run("info", bundle_folder) == 0
    text = capsys.readouterr().out
    assert "1 Part 1, 2 Part 2" in text
    assert "resnet18" in text
    assert "spacing as acquired x as acquired x as acquired; values zscore; window the whole image" in text
    assert run("info", "head-mri") == 0
    text = capsys.readouterr().out
    assert "values percentile 0.5 to 99.5; window 144 x 144 x 144" in text
    for words in (r"limits +Adult heads", r"figure: Brain, Dice +0\.9", r"reproduce +deeplabseg train DATA"):
        assert re.search(f"^{words}", text, re.MULTILINE)
    assert run("info", bundle_folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 100_000


def test_evaluate_prints_a_row_per_label(tmp_path, scan_path, bundle_folder, capsys):
    outputs = [tmp_path / f"{n}.seg.nrrd" for n in range(2)]
    for output in outputs:
        assert run("segment", scan_path, "-o", output, "--model", bundle_folder) == 0
    capsys.readouterr()
    assert run("evaluate", *outputs, "--reference", *outputs, "--json") == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["Part 1"]["dice"] == {
        "n": 2, "left_out": 0, "mean": 1.0, "interval": [1.0, 1.0], "median": 1.0, "minimum": 1.0, "maximum": 1.0,
        "worst": "0"
    }  # fmt: skip
    assert summary["Part 1"]["hausdorff95_mm"]["mean"] == 0
    assert run("evaluate", *outputs, "--reference", *outputs) == 0
    assert "HD95" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error():
    command, pipe = [sys.executable, "-m", "DeepLabSegLib.cli", "encoders"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_an_error_that_nobody_reads_is_told_to_programs_all_the_same(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with which nothing is left for the end
    command, pipe = [sys.executable, "-m", "DeepLabSegLib.cli", "info", "gone", "--json"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        process.stderr.close()
        assert "there is no model" in json.loads(process.stdout.read())["error"]
    assert process.returncode == 1


@pytest.mark.skipif(not FULL.exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_report_that_cannot_be_printed_is_an_error_in_one_line(json_too):
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "DeepLabSegLib.cli", "encoders", *json_too]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "deeplabseg: all is done but the report can't be printed (No space left on device)\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files")
def test_a_table_that_the_disk_has_no_room_for_is_an_error_in_one_line(tmp_path, scan_path, bundle_folder):
    (tmp_path / "scans").mkdir()
    scan_path.rename(tmp_path / "scans" / "scan.nii.gz")
    arguments = ["batch", "scans", "-o", "results", "--model", str(bundle_folder), "--device", "cpu"]
    code = (
        "import resource, sys; from DeepLabSegLib.batch import report; from DeepLabSegLib.cli import main\n"
        "write = report.write_report\n"
        "def write_less(*a): resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); write(*a)\n"
        f"report.write_report = write_less; sys.exit(main({arguments!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("deeplabseg: results/report.csv can't be written (File too large); make room")
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["scan.seg.nrrd"]


def test_a_network_is_compiled_where_that_is_asked_for(tmp_path, scan_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    model = save_model(tmp_path / "model", make_segmenter(2))
    for name, more in (("a", ()), ("b", ("--compile",))):
        assert run("segment", scan_path, "-o", tmp_path / f"{name}.nrrd", "--model", model, *more) == 0
        assert len(compiled) == (1 if more else 0)
    assert (tmp_path / "a.nrrd").exists()
    assert (tmp_path / "b.nrrd").exists()


def test_channels_come_from_several_files_and_uncertainty_goes_to_one(tmp_path, scan_path, scan):
    other = tmp_path / "other.nii.gz"
    sitk.WriteImage(itk(Image(scan.array[..., ::2] * 2, replace(scan.geometry, spacing=(3.0, 1.5, 2.4),
                    shape=scan.array[0, ..., ::2].shape))), other)  # fmt: skip
    bundle = make_bundle(2, channels=2)
    save_bundle(tmp_path / "two", bundle, make_network(bundle.network))
    output, uncertainty = tmp_path / "result.seg.nrrd", tmp_path / "uncertainty.nii.gz"
    arguments = (
        "segment",
        scan_path,
        other,
        "-o",
        output,
        "--model",
        tmp_path / "two",
        "--mirror",
        "--precision",
        "fp32",
    )
    probabilities = tmp_path / "probabilities.nrrd"
    assert run(*arguments, "--uncertainty", uncertainty, "--probabilities", probabilities) == 0
    assert read_image(probabilities).channels == 3
    assert read_image(probabilities).geometry.is_close(scan.geometry)
    written = read_image(uncertainty)
    assert written.geometry.is_close(scan.geometry)
    assert 0 <= written.array.min() < written.array.max() <= 1
    assert run(*arguments, "--overwrite", "--uncertainty", tmp_path / "u.txt") == 1


def test_a_folder_is_segmented_with_a_table(tmp_path, scan_path, bundle_folder, capsys):
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    arguments = ("batch", tmp_path, "-o", tmp_path / "results", "--model", bundle_folder, "--device", "cpu")
    assert run(*arguments) == 1, "one failed"
    printed = capsys.readouterr().out
    assert "1 done, 0 kept, 1 failed" in printed
    assert "broken.nii.gz can't be read" in printed
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"scan.seg.nrrd", "report.csv"}
    assert run(*arguments, "--json") == 1
    assert json.loads(capsys.readouterr().out)["kept"] == 1
    (tmp_path / "broken.nii.gz").unlink()
    (tmp_path / "more").mkdir()
    scan_path.rename(tmp_path / "more" / "other.nii.gz")
    assert run(*arguments) == 1
    assert f"holds no scan; {tmp_path / 'more'} does" in capsys.readouterr().err
    (tmp_path / "scan.nii.gz").write_bytes((tmp_path / "more" / "other.nii.gz").read_bytes())
    assert run(*arguments) == 0
    assert f"scans in 1 of the subfolders are left out, such as those in {tmp_path / 'more'}" in capsys.readouterr().err


def test_results_in_a_subfolder_are_no_scans_that_are_left_out(tmp_path, scan_path, bundle_folder, capsys):
    results = tmp_path / "results"
    arguments = ("batch", tmp_path, "-o", results, "--suffix", ".nii.gz", "--model", bundle_folder, "--device", "cpu")
    assert run(*arguments) == 0
    (results / "report.csv").unlink()  # as where the run was killed before it wrote one
    assert run(*arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_log_has_a_line_for_each_case(tmp_path, scan_path, bundle_folder, capsys, json_too):
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    assert run("batch", tmp_path, "-o", tmp_path / "out", "--model", bundle_folder, "--device", "cpu", *json_too) == 1
    printed = capsys.readouterr()
    first, second = [line for line in (printed.err if json_too else printed.out).splitlines() if " of 2, " in line]
    assert first.startswith("deeplabseg: 1 of 2, broken failed: ")
    assert "can't be read" in first
    assert re.fullmatch(r"deeplabseg: 2 of 2, scan done: \d+\.\d s", second)
    if json_too:
        assert json.loads(printed.out)["done"] == 1


def test_a_case_has_one_line_of_the_log_however_many_its_name_and_its_error_have(capsys):
    with ProgressBar(argparse.Namespace(json=False)) as bar:
        bar.show("batch", 0, 1)
        bar.of_case(Case("two\nlines", "failed", message="CUDA error\nSee its manual"))
    assert capsys.readouterr().out == "deeplabseg: 1 of 1, two lines failed: CUDA error See its manual\n"


def test_a_name_that_is_no_text_stops_nothing_where_standard_error_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert run("encoders") == 0
    with sys.stderr, ProgressBar(argparse.Namespace(json=True)) as bar:
        bar.show("batch", 0, 1)
        bar.of_case(Case("caf\udce9", "done"))


def test_a_log_can_be_followed_through_a_pipe(monkeypatch):
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    with ProgressBar(argparse.Namespace(json=False)) as bar:
        bar.show("batch", 0, 2)
        bar.of_case(Case("head", "done", 1.5))
        assert pipe.getvalue().split() == b"deeplabseg: 1 of 2, head done: 1.5 s".split()


@pytest.mark.parametrize("closed", [("stderr",), ("stdout", "stderr")])
def test_a_batch_whose_streams_are_closed_does_its_work(
    tmp_path, scan_path, bundle_folder, monkeypatch, capsys, closed
):
    """As by `nohup deeplabseg batch ... >&- 2>&-`; what is for standard error doesn't go among the JSON."""
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    arguments = ("batch", tmp_path, "-o", tmp_path / "out", "--model", bundle_folder, "--device", "cpu", "--json")
    assert run(*arguments) == 0
    assert (tmp_path / "out" / "scan.seg.nrrd").exists()
    for name in closed:
        getattr(sys, name).close()
    if "stdout" not in closed:
        assert json.loads(capsys.readouterr().out)["done"] == 1


def test_a_log_that_nobody_reads_any_longer_stops_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with ProgressBar(argparse.Namespace(json=False)) as bar:
        bar.of_run(Progress("segment", 1, 2, "smaller windows, for want of memory"))
        bar.of_training("train", 1, 1, 0.5)


def test_who_runs_with_smaller_windows_is_told_and_sees_how_many_there_are(capsys):
    with ProgressBar(argparse.Namespace(json=False)) as bar:
        bar.of_run(Progress("segment", 1, 2))
        bar.of_run(Progress("segment", 0, 1, "smaller windows, for want of memory"))
        bar.of_run(Progress("segment", 1, 8))
        assert bar.bar.total == 8
    assert capsys.readouterr().err == "deeplabseg: note: smaller windows, for want of memory\n"


@pytest.mark.parametrize("json_too", [False, True])
def test_a_terminal_shows_a_bar_per_stage_but_none_beside_json(monkeypatch, json_too):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressBar(argparse.Namespace(json=json_too)) as bar:
        for stage in ("segment", "restore"):
            bar.show(stage, 1, 2)
    shown = sys.stderr.getvalue()
    assert [f"{stage}:" in shown for stage in ("segment", "restore")] == [not json_too] * 2


@pytest.mark.parametrize(("json_too", "lines"), [(False, 50), (True, 0)])
def test_the_log_of_a_training_has_fifty_lines(capsys, json_too, lines):
    with ProgressBar(argparse.Namespace(json=json_too)) as bar:
        for step in range(1, 201):
            bar.of_training("train", step, 200, 0.5)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert said[-1:] == ["deeplabseg: step 200 of 200, loss 0.500"] * (not json_too)


def test_results_that_are_older_than_their_scans_are_noted(tmp_path, scan_path, bundle_folder, capsys):
    arguments = ("batch", tmp_path, "-o", tmp_path / "out", "--model", bundle_folder, "--device", "cpu")
    assert run(*arguments) == 0
    assert run(*arguments) == 0
    assert capsys.readouterr().err == ""
    later = time.time() + 60
    os.utime(scan_path, (later, later))
    assert run(*arguments) == 0
    assert (
        "1 of the results that were there are older than their scans, such as scan.seg.nrrd" in capsys.readouterr().err
    )
