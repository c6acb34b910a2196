"""A Slicer to click in: the stand-in, which `slicer_window` puts in place for one test, or the real one around us.

The panel is open in it as `widget`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from helpers import make_segmenter, save_model

FOLDER = Path(__file__).parent

try:
    import slicer

    IS_REAL = hasattr(slicer, "app")
    if not IS_REAL:
        from PySide6 import QtWidgets  # noqa: F401 - needs libraries of the system, such as libEGL

    MISSING = ""
except ImportError as error:
    MISSING = str(error)

collect_ignore = [file.name for file in FOLDER.glob("*.py") if not file.name.startswith("test_")]
if not MISSING and IS_REAL:
    collect_ignore.append("test_standin.py")

MODULE = FOLDER.parents[1] / "DeepLabSeg" / "DeepLabSeg.py"


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("gui")


class SkippedModule(pytest.Module):
    """A file of tests that can't run here, skipped by name."""

    def collect(self):
        pytest.skip(f"needs slicer-core and PySide6: {MISSING}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return SkippedModule.from_parent(parent, path=module_path) if MISSING and FOLDER in module_path.parents else None


@pytest.fixture(scope="session")
def qt_app():
    """The application: Slicer's own, or one without a display that looks like it."""
    if IS_REAL:
        return slicer.app
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from appearance import make_application

    return make_application()


@pytest.fixture
def slicer_window(qt_app, tmp_path):
    """Slicer with a fresh scene. An error in a slot that the test has not taken fails the test."""
    if IS_REAL:
        from real_window import RealWindow as SlicerWindow
    else:
        from window import SlicerWindow

    window = SlicerWindow(tmp_path)
    window.take_errors()
    window.install()
    interval = slicer.app.doubleClickInterval
    slicer.app.doubleClickInterval = 0  # tests click twice as fast as no person does
    yield window
    slicer.app.doubleClickInterval = interval
    window.remove()
    errors = window.take_errors()
    if errors:
        raise errors[0]


@pytest.fixture
def load_module(slicer_window):
    """Loads a scripted module, DeepLabSeg unless told otherwise, and gives its widget after `setup()`."""
    return lambda file=MODULE: slicer_window.load_module(file)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of models that the panel lists: small ones with random weights."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(folder))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return folder


@pytest.fixture
def widget(load_module, models):
    """The module, open, with a 2D and a 3D model."""
    save_model(models / "tiny-2d", make_segmenter(2))
    save_model(models / "tiny-3d", make_segmenter(3))
    widget = load_module()
    widget.enter()
    widget.parent.resize(480, 1150)
    widget.parent.show()
    return widget


@pytest.fixture
def volume(slicer_window, scan):
    from mrml_scenes import add_volume

    return add_volume(slicer.mrmlScene, scan)


@pytest.fixture
def screenshot(qt_app, tmp_path, request):
    """Saves a widget's picture in $DEEPLABSEG_SCREENSHOTS, or else in the test's own folder; gives its path."""
    folder = Path(os.environ.get("DEEPLABSEG_SCREENSHOTS") or tmp_path)

    def save(widget, name: str = request.node.name) -> Path:
        path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        widget.show()
        qt_app.processEvents()
        widget.grab().save(str(path))
        return path

    return save


@pytest.fixture
def python_slicer(tmp_path, monkeypatch):
    """Puts a script in place of Slicer's Python: `python_slicer(program)`, which gets its arguments in `sys.argv`."""

    def put(program: str) -> None:
        launcher = tmp_path / "bin" / "PythonSlicer"
        launcher.parent.mkdir()
        launcher.write_text(f"#!{sys.executable}\n{program}\n")
        launcher.chmod(0o755)
        monkeypatch.setenv("PATH", f"{launcher.parent}{os.pathsep}{os.environ['PATH']}")

    return put
