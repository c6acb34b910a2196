"""Clicks through the panel in Slicer's window, from nothing to a brain in 3D, and keeps a picture of every step.

    Slicer --python-script Testing/slicer/click_through.py FOLDER

It needs a window (on Linux without a screen: Xvfb), and ends with the exit code 0 where all is well.
"""

import sys
import time
import traceback
from pathlib import Path

import slicer


def wait_until(condition, timeout_s=600.0):
    """Let Slicer live until `condition()` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"after {timeout_s} s still not so; the panel says: {panel().statusLabel.text}")
        slicer.app.processEvents()
        time.sleep(0.002)


def panel():
    """The panel's widgets by name."""
    return slicer.modules.deeplabseg.widgetRepresentation().self().ui


def keep_picture(folder, name):
    """Save Slicer's whole window."""
    rest = time.monotonic() + 1  # for the views to draw
    wait_until(lambda: time.monotonic() > rest)
    slicer.util.mainWindow().grab().save(str(folder / f"{name}.png"))


def click_through(folder):
    """The way of a first-time user, a cancelled run, and another one with settings."""
    slicer.util.mainWindow().resize(1500, 940)
    slicer.util.selectModule("DeepLabSeg")
    ui = panel()
    ui.segmentButton.click()
    assert "no volume is chosen" in ui.statusLabel.text
    keep_picture(folder, "1-empty")

    ui.sampleButton.click()
    wait_until(lambda: ui.inputSelector.currentNode() is not None)
    keep_picture(folder, "2-volume")

    ui.segmentButton.click()
    wait_until(lambda: "Segmenting" in ui.statusLabel.text)
    keep_picture(folder, "3-running")
    wait_until(lambda: ui.segmentButton.text == "Segment")
    assert "is ready" in ui.statusLabel.text, ui.statusLabel.text
    assert ui.outputSelector.currentNode().GetName() == "HeadT1Colin27 segmentation"
    for _ in range(4):
        slicer.app.layoutManager().threeDWidget(0).threeDView().zoomIn()
    keep_picture(folder, "4-done")

    ui.runCollapsibleButton.collapsed = False
    ui.outputSelector.setCurrentNode(None)
    ui.mirrorCheckBox.click()
    ui.segmentButton.click()
    wait_until(lambda: "Segmenting" in ui.statusLabel.text)
    started = time.monotonic()
    ui.segmentButton.click()
    wait_until(lambda: ui.segmentButton.text == "Segment")
    assert "cancelled" in ui.statusLabel.text, ui.statusLabel.text
    assert time.monotonic() - started < 4
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1
    keep_picture(folder, "5-cancelled")

    ui.mirrorCheckBox.click()
    ui.runCollapsibleButton.collapsed = True
    ui.uncertaintyCheckBox.click()
    ui.segmentButton.click()
    wait_until(lambda: ui.segmentButton.text == "Segment")
    assert "is ready" in ui.statusLabel.text, ui.statusLabel.text
    keep_picture(folder, "6-uncertainty")


if __name__ == "__main__":
    pictures = Path(sys.argv[-1])
    pictures.mkdir(parents=True, exist_ok=True)
    try:
        click_through(pictures)
    except Exception:
        traceback.print_exc()
        slicer.util.exit(1)
    else:
        slicer.util.exit(0)
