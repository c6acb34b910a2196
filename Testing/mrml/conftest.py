"""A scene as Slicer has it, without Slicer's application."""

from __future__ import annotations

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")


def pytest_collection_modifyitems(items):
    for item in items:
        if "/mrml/" in str(item.path):
            item.add_marker("mrml")


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    yield scene
    scene.Clear(True)
    del slicer.mrmlScene
