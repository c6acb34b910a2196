"""The worker process behind the panel: how it is started, kept warm and ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from clicking import SLOW, UI, exists, is_idle, leftovers, segment, segmentations, select, start, worker_pid
from event_loop import wait_until

from DeepLabSegLib.worker import ENVIRONMENT


def test_the_second_click_finds_the_model_warm(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.show3DCheckBox.checked = False
    segment(widget)
    pid, started = worker_pid(widget), time.monotonic()
    segment(widget)
    assert worker_pid(widget) == pid
    assert time.monotonic() - started < 5, "a fresh process would import torch and load the model again"


@pytest.mark.skipif(sys.platform != "linux", reason="a process tells its environment in /proc")
@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2"])
def test_the_worker_has_the_environment_that_it_wants_where_the_user_set_none(widget, volume, monkeypatch, own):
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    widget.panel.worker.stop()  # it was asked for the devices when the module opened
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    environment = Path(f"/proc/{worker_pid(widget)}/environ").read_text().split("\0")
    assert f"GLIBC_TUNABLES={own or ENVIRONMENT['GLIBC_TUNABLES']}" in environment
    assert "PYTHONUTF8=1" in environment
    assert f"PATH={os.environ['PATH']}" in environment, "the rest is Slicer's own"


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a script")
def test_the_worker_starts_behind_a_launcher_that_passes_ascii_alone_on(
    widget, volume, tmp_path, monkeypatch, python_slicer
):
    """As Slicer 5.10's does on Windows."""
    python_slicer(
        "import os, sys\nif not all(argument.isascii() for argument in sys.argv):\n    sys.exit(1)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    folder = tmp_path / "Zoë's 'Slicer'"
    folder.mkdir()
    (folder / "DeepLabSegLib").symlink_to(UI.parents[3] / "DeepLabSegLib")
    monkeypatch.setattr("DeepLabSegPanel.worker_process.LIBRARY", str(folder))
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "is ready" in segment(widget)


def test_the_worker_imports_nothing_of_the_folder_in_which_slicer_was_started(widget, volume, tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise ImportError('a script of the user')")
    monkeypatch.chdir(tmp_path)
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "is ready" in segment(widget)


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a script")
def test_words_that_were_cut_off_by_a_crash_are_logged_and_do_not_garble_answers_of_the_next_worker(
    widget, volume, tmp_path, python_slicer
):
    python_slicer(
        f"import os, sys\nif not os.path.exists({str(tmp_path / 'crashed')!r}):\n"
        f"    open({str(tmp_path / 'crashed')!r}, 'w')\n    sys.stdin.readline()\n"
        '    os.write(1, b\'{"id": 2, "prog\')\n    os.write(2, b"Fatal error \\xc3")\n    os._exit(1)\n'
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "ended unexpectedly (code 1)" in segment(widget)
    assert "Fatal error" in widget.ui.logTextEdit.plainText
    assert "is ready" in segment(widget)


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a script")
def test_after_an_error_within_torch_the_next_run_gets_a_process_of_its_own(widget, volume, tmp_path, python_slicer):
    """As after a graphics card was reset: whatever a process asks of it from then on fails."""
    python_slicer(
        f"import os, sys\nif os.path.exists({str(tmp_path / 'reset')!r}):\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        f"open({str(tmp_path / 'reset')!r}, 'w')\nsys.path.insert(0, {str(UI.parents[3])!r})\n"
        "import DeepLabSegLib.worker as worker\n"
        "def segment(self, request):\n    raise RuntimeError('CUDA error: unspecified launch failure')\n"
        "worker.Worker._segment = segment\nworker.main()"
    )
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "CUDA error: unspecified launch failure" in segment(widget)
    assert "is ready" in segment(widget)
    assert leftovers() == []


def test_unloading_ends_the_process(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    pid = worker_pid(widget)
    assert widget.ui.unloadButton.enabled
    widget.enter()  # which asks for the devices; the answer doesn't come any more
    widget.ui.unloadButton.click()
    assert not exists(pid)
    assert not widget.ui.unloadButton.enabled
    assert "is ready" in segment(widget)


def test_a_worker_that_is_killed_leaves_scene_and_panel_usable(widget, volume, screenshot):
    select(widget.ui.modelComboBox, "tiny-3d")
    start(widget, **SLOW)
    os.kill(worker_pid(widget), getattr(signal, "SIGKILL", signal.SIGTERM))
    wait_until(lambda: is_idle(widget), 10)
    assert "the background process ended unexpectedly" in widget.ui.statusLabel.text
    assert widget.ui.statusLabel.property("tone") == "bad"
    assert segmentations() == []
    assert leftovers() == []
    screenshot(widget.parent, "panel-error")
    widget.logic.getParameterNode().tile = ""
    assert "is ready" in segment(widget)


def test_without_a_program_to_run_the_panel_says_so_and_stays_usable(widget, volume, monkeypatch):
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.which", lambda _: "/nowhere/PythonSlicer")
        assert "/nowhere/PythonSlicer can't be started" in segment(widget)
    assert leftovers() == []
    assert "is ready" in segment(widget)
