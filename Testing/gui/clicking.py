"""What a person does at the panel, and what is there then: nodes, files, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import slicer
import vtk
from event_loop import wait_until

UI = Path(__file__).resolve().parents[2] / "DeepLabSeg" / "Resources" / "UI" / "DeepLabSeg.ui"
SLOW = {"tile": "8x16x16", "overlap": 0.9}
"""Settings under which a run of a 3D model takes long enough to be disturbed."""


def select(combo, value) -> None:
    """As a person does: by choosing the entry."""
    index = combo.findData(value)
    assert index >= 0
    combo.setCurrentIndex(index)


def pick(selector, node) -> None:
    """As a person does who opens the selector's list; a test that sets the node is a script."""
    selector.setCurrentNode(node)
    selector.nodeActivated.emit(node)


def choose_file(widget, path) -> None:
    """As a person does who types it."""
    select(widget.ui.modelComboBox, "")
    widget.ui.weightsPathLineEdit.currentPath = str(path)


def is_idle(widget) -> bool:
    return widget.ui.segmentButton.text == "Segment"


def segment(widget, timeout_s: float = 60) -> str:
    """Click, wait for the end, and give what the panel says."""
    widget.ui.segmentButton.click()
    wait_until(lambda: is_idle(widget), timeout_s)
    return widget.ui.statusLabel.text


def start(widget, **settings) -> None:
    """Click, and wait until tiles are going through the network."""
    parameters = widget.logic.getParameterNode()
    for name, value in settings.items():
        setattr(parameters, name, value)
    widget.ui.segmentButton.click()
    wait_until(lambda: "Segmenting" in widget.ui.statusLabel.text, 60)


def draw(node, segment_id: str) -> None:
    """A segment as a person draws it."""
    segment = slicer.vtkSegment()
    drawn = slicer.vtkOrientedImageData()
    drawn.SetDimensions(2, 2, 2)
    drawn.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    segment.AddRepresentation("Binary labelmap", drawn)
    node.GetSegmentation().AddSegment(segment, segment_id)


def add_drawing():
    """A segmentation with a segment that a person has drawn."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    draw(node, "lesion")
    return node


def close_and_open_scene(folder: Path) -> None:
    """Save the scene, close it and open it again."""
    scene = slicer.mrmlScene
    scene.SetURL(str(folder / "scene.mrml"))
    scene.Commit()
    scene.Clear()
    scene.SetURL(str(folder / "scene.mrml"))
    scene.Import()


def segmentations() -> list:
    return list(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))


def leftovers() -> list[Path]:
    return list(Path(slicer.app.temporaryPath).glob("DeepLabSeg-*"))


def worker_pid(widget) -> int:
    return int(widget.panel.worker.processId)


def python_pid(widget) -> int:
    """The worker's Python, which in Slicer is the child of a launcher."""
    listed = subprocess.run(["pgrep", "-P", str(worker_pid(widget))], capture_output=True, text=True, check=False)
    return int(listed.stdout.strip() or worker_pid(widget))


def exists(pid: int) -> bool:
    if sys.platform == "win32":  # whose kill ends the process whatever the signal
        return f" {pid} " in subprocess.run(["tasklist"], capture_output=True, text=True, check=True).stdout
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
