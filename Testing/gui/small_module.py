"""The text of a small scripted module and its panel, which the tests of the stand-in write to a folder and load."""

from __future__ import annotations

from pathlib import Path

CODE = """
import enum
import pathlib
from typing import Annotated

import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Device(enum.Enum):
    CPU = "cpu"
    GPU = "cuda"

    def label(self):
        return {"cpu": "Processor", "cuda": "Graphics card"}[self.value]


@parameterNodeWrapper
class SmallParameterNode:
    scan: vtkMRMLScalarVolumeNode | None
    result: vtkMRMLSegmentationNode
    overlap: Annotated[float, WithinRange(0, 0.9)] = 0.25
    threads: Annotated[int, WithinRange(1, 16), Default(4)]
    smooth: bool = True
    title: str = "Result"
    weights: pathlib.Path
    device: Device = Device.GPU
    speed: Annotated[str, Choice(["fast", "exact"])] = "exact"
    names: list[str]
    pair: tuple[str, int] = ("a", 1)


class Small(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Small")
        parent.categories = ["Segmentation"]


class SmallWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self):
        super().setup()
        panel = slicer.util.loadUI(self.resourcePath("UI/Small.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = SmallLogic()
        self.changes = 0
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneClosed)
        self.parameters = SmallParameterNode(self.logic.getParameterNode())
        self.tag = self.parameters.connectGui(self.ui)
        self.addObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.onChange)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)

    def onChange(self, caller, event):
        self.changes += 1

    def onSceneClosed(self, caller, event):
        self.ui.messageLabel.text = "closed"

    def onApply(self):
        with slicer.util.tryWithErrorDisplay(_("It failed.")):
            if self.parameters.scan is None:
                raise ValueError("choose a scan")
        self.ui.messageLabel.text = f"{self.parameters.scan.GetName()} done"

    def cleanup(self):
        self.parameters.disconnectGui(self.tag)
        self.removeObservers()


class SmallLogic(ScriptedLoadableModuleLogic):
    pass


class SmallTest(ScriptedLoadableModuleTest):
    def test_nothing(self):
        self.delayDisplay("nothing")
"""


def row(number: int, label: str, widget_class: str, name: str, parameter: str = "", properties: str = "") -> str:
    bound = f"<property name='SlicerParameterName' stdset='0'><string>{parameter}</string></property>"
    return f"""
      <item row='{number}' column='0'><widget class='QLabel' name='label{number}'>
        <property name='text'><string>{label}</string></property></widget></item>
      <item row='{number}' column='1'><widget class='{widget_class}' name='{name}'>
        {properties}{bound if parameter else ""}</widget></item>"""


ROWS = (
    (
        "Scan:",
        "qMRMLNodeComboBox",
        "scanSelector",
        "scan",
        "<property name='noneEnabled'><bool>false</bool></property>",
    ),
    (
        *("Result:", "qMRMLNodeComboBox", "resultSelector", "result"),
        "<property name='noneEnabled'><bool>true</bool></property>"
        "<property name='noneDisplay'><string>Create new segmentation</string></property>",
    ),
    (
        "Overlap:",
        "ctkSliderWidget",
        "overlapSlider",
        "overlap",
        "<property name='singleStep'><double>0.05</double></property>",
    ),
    ("Threads:", "QSpinBox", "threadsBox", "threads"),
    ("Smooth:", "QCheckBox", "smoothBox", "smooth"),
    ("Title:", "QLineEdit", "titleEdit", "title"),
    (
        *("Weights:", "ctkPathLineEdit", "weightsEdit", "weights"),
        "<property name='filters'><set>ctkPathLineEdit::Files</set></property>",
    ),
    ("Device:", "QComboBox", "deviceBox", "device"),
    ("Speed:", "QComboBox", "speedBox", "speed"),
    ("Notes:", "ctkFittedTextBrowser", "notes", "", "<property name='plainText'><string>Two words</string></property>"),
)

SCENE_CONNECTIONS = "".join(
    f"""<connection><sender>Small</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
    <receiver>{receiver}</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>"""
    for receiver in ("scanSelector", "resultSelector")
)

PANEL = f"""<?xml version='1.0' encoding='UTF-8'?>
<ui version='4.0'><class>Small</class>
<widget class='qMRMLWidget' name='Small'>
  <layout class='QVBoxLayout' name='layout'>
    <item><widget class='ctkCollapsibleButton' name='inputsSection'>
      <property name='text'><string>Inputs</string></property>
      <layout class='QFormLayout' name='form'>{"".join(row(number, *cells) for number, cells in enumerate(ROWS))}
      </layout></widget></item>
    <item><widget class='ctkCollapsibleButton' name='moreSection'>
      <property name='text'><string>More</string></property>
      <property name='collapsed'><bool>true</bool></property>
      <layout class='QVBoxLayout' name='moreLayout'><item><widget class='QLabel' name='messageLabel'/></item></layout>
    </widget></item>
    <item><widget class='QPushButton' name='applyButton'>
      <property name='text'><string>Apply</string></property></widget></item>
    <item><spacer name='space'><property name='orientation'><enum>Qt::Vertical</enum></property></spacer></item>
  </layout>
</widget>
<connections>{SCENE_CONNECTIONS}</connections></ui>
"""


def write_module(folder: Path, panel: str = PANEL) -> Path:
    """The module's file in `folder`."""
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Resources" / "UI" / "Small.ui").write_text(panel)
    file = folder / "Small.py"
    file.write_text(CODE)
    return file
