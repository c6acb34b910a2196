"""The worker as the panel meets it: a process, JSON lines, files in a folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import weakref
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers import make_scan, make_segmenter, save_model

from DeepLabSegLib.image import Geometry
from DeepLabSegLib.region import Region
from DeepLabSegLib.segmenter import SegmentOptions
from DeepLabSegLib.session import ModelChoice, WarmModel


class Client:
    def __init__(self, *program: str) -> None:
        command = [sys.executable, *(program or ("-m", "DeepLabSegLib.worker"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ids = itertools.count(1)

    def send(self, do: str, **content) -> int:
        number = next(self.ids)
        self.process.stdin.write(json.dumps({"id": number, "do": do, **content}) + "\n")
        self.process.stdin.flush()
        return number

    def answers(self, number: int):
        """Everything that is answered to this request, the last being its result or error."""
        for line in self.process.stdout:
            answer = json.loads(line)
            assert answer["id"] == number
            yield answer
            if "progress" not in answer:
                return

    def ask(self, do: str, **content) -> dict:
        *_, last = self.answers(self.send(do, **content))
        return last

    def close(self) -> int:
        self.process.stdin.close()
        code = self.process.wait(10)
        self.process.stdout.close()
        return code


@pytest.fixture
def client():
    client = Client()
    yield client
    client.close()


def job(folder, *images, model="tiny", options=None, surfaces=False, **choice) -> dict:
    folder.mkdir()
    channels = []
    for n, image in enumerate(images):
        np.save(folder / f"{n}.npy", image.array[0] if image.channels == 1 else np.moveaxis(image.array, 0, -1))
        channels.append({"file": f"{n}.npy", "affine": image.geometry.affine.tolist()})
    return {
        "folder": str(folder),
        "channels": channels,
        "choice": {"model": str(model), "device": "cpu", **choice},
        "options": options or {},
        "surfaces": surfaces,
    }


@pytest.mark.parametrize("dims", [2, 3])
def test_it_gives_the_labels_of_the_library(client, tmp_path, scan, dims):
    segmenter = make_segmenter(dims)
    model = save_model(tmp_path / "tiny", segmenter)
    region = Region(tuple((scan.geometry.affine @ [6, 20, 18, 1])[:3]), (20.0, 30.0, 20.0))
    expected = segmenter.segment(scan, SegmentOptions(region=region, mirror=True, uncertainty=True, probabilities=True))
    options = {"region": asdict(region), "mirror": True, "uncertainty": True, "probabilities": True}
    request = job(tmp_path / "job", scan, model=model, options=options, surfaces=True)
    *progress, last = client.answers(client.send("segment", **request))
    result = last["result"]
    assert {step["progress"]["stage"] for step in progress} == {"load", "prepare", "segment", "restore", "surface"}
    np.testing.assert_array_equal(np.load(tmp_path / "job" / result["labels"]), expected.array)
    np.testing.assert_allclose(np.load(tmp_path / "job" / result["uncertainty"]), expected.uncertainty, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "job" / result["probabilities"]), expected.probabilities, atol=1e-3)
    assert result["volumes_ml"] == pytest.approx(expected.volumes_ml())
    assert [segment["name"] for segment in result["segments"]] == [s.name for s in expected.segments]
    assert result["seconds"] > 0
    assert result["peak_bytes"] > 1e7
    for name in result["surfaces"].values():
        assert (tmp_path / "job" / name).is_file()


def test_channels_on_other_grids_are_brought_together(client, tmp_path, rng):
    two = make_scan(rng, (12, 32, 30), channels=2)
    one, other = (type(two)(two.array[n : n + 1], two.geometry) for n in (0, 1))
    half = type(two)(other.array[..., ::2], Geometry((12, 32, 15), (3.0, 1.5, 2.4), two.geometry.origin))
    segmenter = make_segmenter(2, channels=2)
    model = save_model(tmp_path / "tiny", segmenter)
    assert "surfaces" not in client.ask("segment", **job(tmp_path / "a", one, half, model=model))["result"]
    client.ask("segment", **job(tmp_path / "of one file", two, model=model))
    np.testing.assert_array_equal(np.load(tmp_path / "of one file" / "labels.npy"), segmenter.segment(two).array)
    error = client.ask("segment", **job(tmp_path / "b", one, model=model))["error"]
    assert error["kind"] == "InvalidInput"
    assert "1 channels" in error["message"]


def test_the_second_run_finds_the_model_warm_and_one_by_other_choices_does_not(tmp_path, scan):
    program = (
        "import DeepLabSegLib.session as session, DeepLabSegLib.worker as worker\n"
        "load = session.load_model\n"
        "def load_once(*choice, **said):\n    session.load_model = None; return load(*choice, **said)\n"
        "session.load_model = load_once; worker.main()"
    )
    model = save_model(tmp_path / "tiny", make_segmenter(2))
    with closing(Client("-c", program)) as client:
        for name, precision in (("first", "auto"), ("second", "auto"), ("other", "fp32")):
            answer = client.ask("segment", **job(tmp_path / name, scan, model=model, precision=precision))
            assert ("result" in answer) == (name != "other"), answer


def test_a_model_that_changed_on_disk_is_read_again(client, tmp_path, scan):
    save_model(tmp_path / "tiny", make_segmenter(2))
    client.ask("segment", **job(tmp_path / "a", scan, model=tmp_path / "tiny"))
    other = make_segmenter(2, classes=5)
    save_model(tmp_path / "tiny", other, overwrite=True)
    client.ask("segment", **job(tmp_path / "b", scan, model=tmp_path / "tiny"))
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "labels.npy"), other.segment(scan).array)


def test_a_model_is_let_go_before_another_is_read(tmp_path, monkeypatch):
    model, warm = save_model(tmp_path / "tiny", make_segmenter(2)), WarmModel()
    former = weakref.ref(warm.get(ModelChoice(str(model), "cpu")))
    monkeypatch.setattr("DeepLabSegLib.session.load_model", lambda path, *choice: (former(), *choice))
    assert warm.get(ModelChoice(str(model), "cpu", "fp32")) == (None, "cpu", "fp32"), "for both there may be no room"


def answers_after_cancel(client: Client, number: int, stage: str):
    """What a request that is cancelled in `stage` is still answered."""
    answers = client.answers(number)
    for answer in answers:
        if answer["progress"]["stage"] == stage:
            break
    client.process.stdin.write(json.dumps({"id": number, "do": "cancel"}) + "\n")
    client.process.stdin.flush()
    return answers


def test_cancel_takes_effect_between_tiles_and_the_next_request_is_answered(client, tmp_path, scan):
    model = save_model(tmp_path / "tiny", make_segmenter(3))
    options = {"tile": [8, 16, 16], "overlap": 0.9}
    number = client.send("segment", **job(tmp_path / "a", scan, model=model, options=options))
    *_, last = answers_after_cancel(client, number, "segment")
    assert last["error"]["kind"] == "Cancelled"
    assert "result" in client.ask("segment", **job(tmp_path / "b", scan, model=model))


def test_cancel_takes_effect_between_surfaces(tmp_path, scan):
    client = Client(
        "-c",
        "import time, DeepLabSegLib.surface as surface, DeepLabSegLib.worker as worker\n"
        "surface.closed_surface = lambda *_: time.sleep(0.5); worker.main()",
    )
    model = save_model(tmp_path / "tiny", make_segmenter(3))
    number = client.send("segment", **job(tmp_path / "job", scan, model=model, surfaces=True))
    *_, last = answers_after_cancel(client, number, "surface")
    assert last["error"]["kind"] == "Cancelled"
    client.close()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"choice": {"model": "nothing"}}, "BundleError", "there is no model 'nothing'"),
        ({"choice": {"model": "head-mri-2d", "device": "cuda:9"}}, "InvalidInput", "isn't available"),
        ({"options": {"overlap": 3}}, "InvalidInput", "overlap is 3"),
        ({"options": {"speed": 3}}, "InvalidInput", "unknown keys speed"),
        ({"channels": [{"file": "gone.npy", "affine": np.eye(4).tolist()}]}, "FileNotFoundError", "gone.npy"),
    ],
)
def test_what_fails_is_said_and_the_worker_goes_on(client, tmp_path, scan, change, kind, words):
    error = client.ask("segment", **job(tmp_path / "job", scan, model="head-mri-2d") | change)["error"]
    assert error["kind"] == kind
    assert words in error["message"]
    assert "devices" in client.ask("hello")["result"]


def test_it_describes_models(client, tmp_path):
    model = save_model(tmp_path / "tiny", make_segmenter(2))
    described = client.ask("describe", choice={"model": str(model)})["result"]
    assert described["model"]["network"]["encoder_name"] == "resnet18"
    assert described["assumed"] == []


def test_it_describes_bare_weights_and_what_they_can_not_tell(client, tmp_path):
    import torch

    torch.save(make_segmenter(3).network.state_dict(), tmp_path / "weights.pth")
    choice = {"model": str(tmp_path / "weights.pth")}
    described = client.ask("describe", choice=choice)["result"]
    assert (described["model"]["network"]["encoder_name"], described["model"]["network"]["encoder_depth"]) == (
        "resnet18",
        3,
    )
    assert any("normalisation" in text for text in described["assumed"])
    said = {"labels": ["Liver", "Spleen"], "normalization": "window:-160:240", "spacing": [1.5, None, None]}
    said["orientation"] = "LPS"
    said["network"] = {"decoder_dilation_rates": [2, 4]}
    known = client.ask("describe", choice=choice | said)["result"]
    assert [label["name"] for label in known["model"]["labels"]] == ["Liver", "Spleen"]
    assert known["model"]["input"]["normalization"]["lower"] == -160
    assert [known["model"]["input"][name] for name in ("spacing", "orientation")] == [[1.5, None, None], "LPS"]
    assert len(known["assumed"]) < len(described["assumed"])
    wrong = client.ask("describe", choice=choice | {"labels": ["a", "b", "c", "d", "e"]})["error"]
    assert "5 labels are given" in wrong["message"]


def test_when_the_window_goes_the_worker_goes_and_its_files_with_it(tmp_path, scan):
    client = Client()
    model = save_model(tmp_path / "tiny", make_segmenter(3))
    client.ask("segment", **job(tmp_path / "former", scan, model="none"))
    number = client.send(
        "segment", **job(tmp_path / "job", scan, model=model, options={"tile": [8, 16, 16], "overlap": 0.9})
    )
    for answer in client.answers(number):
        if answer["progress"]["stage"] == "segment":
            break
    assert client.close() == 0
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("request_cut_off", ['{"id": 1, "do": "hel', "{"])
def test_when_the_window_goes_in_the_middle_of_a_request_the_worker_goes_too(request_cut_off):
    client = Client()
    client.process.stdin.write(request_cut_off)
    assert client.close() == 0


def test_where_the_window_goes_before_the_run_has_begun_its_files_go_too(tmp_path, scan):
    client = Client()
    client.send("segment", **job(tmp_path / "job", scan))
    assert client.close() == 0
    assert not (tmp_path / "job").exists()


def test_an_array_that_may_only_be_read_is_no_news(tmp_path, rng):
    client = Client("-W", "error::UserWarning", "-m", "DeepLabSegLib.worker")
    model = save_model(tmp_path / "tiny", make_segmenter(3))
    assert "result" in client.ask("segment", **job(tmp_path / "job", make_scan(rng, (12, 32, 30)), model=model))
    client.close()


@pytest.mark.parametrize("settings", [{}, {"uncertainty": True}, {"tile": [8, 8, 8]}, {"overlap": 3}])
def test_once_it_has_answered_the_files_can_be_deleted(client, tmp_path, scan, settings):
    model = save_model(tmp_path / "tiny", make_segmenter(2))  # a tile of three sizes is not for it
    client.ask("segment", **job(tmp_path / "job", scan, model=model, options=settings))
    held = Path(f"/proc/{client.process.pid}/maps")  # others than Windows delete what is mapped
    assert not held.exists() or str(tmp_path) not in held.read_text()
    shutil.rmtree(tmp_path / "job")


def test_an_error_without_words_is_told_by_its_kind():
    client = Client(
        "-c",
        "import DeepLabSegLib.worker as worker\n"
        "def hello(self, request): raise MemoryError\n"
        "worker.Worker._hello = hello; worker.main()",
    )
    assert client.ask("hello") == {"id": 1, "error": {"kind": "MemoryError", "message": "MemoryError"}}
    client.close()


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="Windows tells it otherwise")
def test_it_lets_programs_that_a_person_looks_at_go_first(client):
    client.ask("no such request")
    ours, its = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, client.process.pid))
    assert its > ours or ours == 19, "19 is the last"


def test_requests_are_read_by_the_worker_alone():
    client = Client(
        "-c",
        "import sys, DeepLabSegLib.worker as worker\n"
        "worker.Worker._hello = lambda self, request: sys.stdin.read(); worker.main()",
    )
    assert client.ask("hello") == {"id": 1, "result": ""}
    client.close()


def test_what_libraries_print_does_not_disturb_the_answers():
    client = Client(
        "-c",
        "import DeepLabSegLib.worker as worker\n"
        "def hello(self, request): print('a line of a library'); return 'well'\n"
        "worker.Worker._hello = hello; worker.main()",
    )
    assert client.ask("hello") == {"id": 1, "result": "well"}
    client.close()
