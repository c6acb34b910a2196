"""A scene as Slicer has it: Slicer's own, or one without its application."""

from __future__ import annotations

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")


def pytest_collection_modifyitems(items):
    for item in items:
        if "/mrml/" in str(item.path):
            item.add_marker("mrml")


@pytest.fixture
def scene():
    if hasattr(slicer, "app"):
        slicer.mrmlScene.Clear()
        yield slicer.mrmlScene
        slicer.mrmlScene.Clear()
        return
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    yield scene
    scene.Clear(True)
    del slicer.mrmlScene
