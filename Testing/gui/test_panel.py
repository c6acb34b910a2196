"""The real panel, driven by clicks on the stand-in for Slicer's window."""

from __future__ import annotations

import pytest


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of models that the panel lists; small ones with random weights."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(folder))
    return folder


def test_first(load_module, screenshot, models, qt_app):
    widget = load_module()
    widget.enter()
    screenshot(widget.parent, "empty")
