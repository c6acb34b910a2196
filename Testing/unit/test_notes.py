"""What files are warned of is told as a note, once and as soon as it is known, whatever the command."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import FULL, run


def write(path: Path, array: np.ndarray) -> None:
    """A NIfTI file whose sform lies 5 mm from its qform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 1, 2)
    struct.pack_into("<12f", content, 280, -1, 0, 0, 5, 0, -1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(content)


def notes(said: str) -> list[str]:
    """The files that notes are of; all else on standard error is a failure."""
    lines = said.splitlines()
    assert all(line.startswith("deeplabseg: note: ") for line in lines), said
    return [Path(line.removeprefix("deeplabseg: note: ").split(" says by its qform")[0]).name for line in lines]


@pytest.mark.parametrize("drawn", [False, True], ids=["table", "pictures"])
def test_evaluate_tells_of_each_file_once(tmp_path, capsys, drawn):
    array = np.zeros((6, 20, 24), np.uint8)
    array[2:4, 5:12, 6:14] = 1
    for shift, folder in enumerate(("ours", "theirs", "scans")):
        write(tmp_path / folder / "case.nii", np.roll(array, shift))
    more = ("-o", tmp_path / "out", "--images", tmp_path / "scans") if drawn else ()
    assert run("evaluate", tmp_path / "ours", "--reference", tmp_path / "theirs", *more) == 0
    assert notes(capsys.readouterr().err) == ["case.nii"] * (3 if drawn else 2)


@pytest.mark.skipif(not FULL.exists(), reason="needs the device that is always full")
def test_a_note_that_nobody_can_read_makes_no_case_fail(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with which nothing is left for the end
    for folder in ("ours", "theirs"):
        write(tmp_path / folder / "case.nii", np.ones((6, 20, 24), np.uint8))
    command = [sys.executable, "-m", "DeepLabSegLib.cli", "evaluate", "ours", "--reference", "theirs"]
    with FULL.open("w") as full:
        ended = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert ended.returncode == 0
    assert "1 compared, 0 failed" in ended.stdout


def test_train_tells_of_each_file_once(tmp_path, rng, capsys):
    for n in range(3):
        array = np.zeros((8, 20, 24), np.uint8)
        array[2:5, 5:12, 6 + n : 14 + n] = 1
        write(tmp_path / "images" / f"case{n}.nii", rng.integers(0, 90, array.shape, np.uint8) + 100 * array)
        write(tmp_path / "labels" / f"case{n}.nii", array)
    assert run("train", tmp_path, "--check") == 0
    assert sorted(notes(capsys.readouterr().err)) == ["case0.nii", "case0.nii", *(f"case{n}.nii" for n in (1, 1, 2, 2))]
