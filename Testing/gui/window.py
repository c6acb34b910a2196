"""Puts `qt`, `ctk` and what slicer-core lacks of `slicer` in place for one test, and takes them out again."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import parameter_node
import pythonqt
import scripted_module
import slicer
from application import qSlicerApplication
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import QSettings
from ui_loader import CUSTOM_WIDGETS, UiLoader

RECORDED = (
    "setSliceViewerLayers",
    "resetSliceViews",
    "resetThreeDViews",
    "selectModule",
    "delayDisplay",
    "pip_install",
)
"""Functions of `slicer.util` that act on views, the window or the installation: here they are only written down."""

CONFIRMING = QtWidgets.QMessageBox.StandardButton.Yes | QtWidgets.QMessageBox.StandardButton.Ok


@dataclass
class Message:
    """A message box that was shown."""

    text: str
    options: dict[str, Any]

    @property
    def icon(self) -> int:
        """Such as `qt.QMessageBox.Critical`."""
        return self.options.get("icon", 0)


@dataclass
class LoadedModule:
    """A scripted module as `slicer.modules` holds it."""

    name: str
    path: str
    parent: Any
    widget: Any

    def widgetRepresentation(self) -> LoadedModule:
        return self

    def self(self):
        return self.widget


@dataclass
class SlicerWindow:
    """The Slicer that a test drives: what it was told, and what it answers."""

    folder: Path
    messages: list[Message] = field(default_factory=list)
    confirms: bool = True
    calls: list[tuple[str, tuple, dict[str, Any]]] = field(default_factory=list)
    _undo: ExitStack = field(default_factory=ExitStack)

    def install(self) -> None:
        """Make the stand-in importable, with a fresh scene."""
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(self.folder / "settings"))
        QtCore.QCoreApplication.setOrganizationName("Slicer")
        QtCore.QCoreApplication.setApplicationName(self.folder.name)  # Qt keeps settings in memory by this name
        own = types.SimpleNamespace(QUiLoader=UiLoader)
        self._put_module("qt", pythonqt.Binding("qt", own, QtCore, QtGui, QtWidgets))
        custom = types.SimpleNamespace(**CUSTOM_WIDGETS, ctkMessageBox=QtWidgets.QMessageBox)
        self._put_module("ctk", pythonqt.Binding("ctk", custom))
        i18n = types.ModuleType("slicer.i18n")
        i18n.tr, i18n.translate = lambda text: text, lambda _context, text: text
        self._put_module("slicer.i18n", i18n)
        self._put_module("slicer.ScriptedLoadableModule", scripted_module.make_module())
        self._put_module("slicer.parameterNodeWrapper", parameter_node.make_module())
        self._put(slicer, "mrmlScene", make_scene())
        self._put(slicer, "modules", types.SimpleNamespace())
        self._put(slicer, "app", pythonqt.wrap(qSlicerApplication(str(self.folder))))
        for name in ("qSlicerScriptedLoadableModule", "qSlicerScriptedLoadableModuleWidget"):
            self._put(slicer, name, LoadedModule)
        for name, widget_class in CUSTOM_WIDGETS.items():
            if name.startswith("qMRML"):
                self._put(slicer, name, pythonqt.wrapper_class(widget_class))
        self._put(slicer.util, "messageBox", self._show_message)
        self._put(slicer.util, "loadVolume", load_volume)
        for name in RECORDED:
            self._put(slicer.util, name, self._recorder(name))

    def remove(self) -> None:
        """Leave `sys.modules`, `sys.path` and `slicer` as they were."""
        with self._undo:
            for module in vars(slicer.modules).values():
                module.widget.cleanup()
                module.widget.parent.deleteLater()
            QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
            slicer.mrmlScene.Clear(True)

    def load_module(self, file: Path) -> Any:
        """The widget of a scripted module, loaded from its file as Slicer does and set up."""
        name = file.stem
        sys.path.insert(0, str(file.parent))
        self._undo.callback(lambda: str(file.parent) in sys.path and sys.path.remove(str(file.parent)))
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        self._put_module(name, module)
        spec.loader.exec_module(module)
        parent = types.SimpleNamespace(path=str(file), name=name, icon=None)
        getattr(module, name)(parent)
        panel = slicer.qMRMLWidget()
        panel.setLayout(sys.modules["qt"].QVBoxLayout())
        panel.setMRMLScene(slicer.mrmlScene)
        loaded = LoadedModule(name, str(file), parent, getattr(module, f"{name}Widget")(panel))
        setattr(slicer.modules, name.lower(), loaded)
        loaded.widget.setup()
        return loaded.widget

    def take_errors(self) -> list[Exception]:
        """What slots have raised since the last call; a test that expects an error takes it."""
        errors = list(pythonqt.slot_errors)
        pythonqt.slot_errors.clear()
        return errors

    def _put(self, owner: Any, name: str, value: Any) -> None:
        if hasattr(owner, name):
            self._undo.callback(setattr, owner, name, getattr(owner, name))
        else:
            self._undo.callback(delattr, owner, name)
        setattr(owner, name, value)

    def _put_module(self, name: str, module: types.ModuleType) -> None:
        if name in sys.modules:
            self._undo.callback(sys.modules.__setitem__, name, sys.modules[name])
        else:
            self._undo.callback(sys.modules.pop, name, None)
        sys.modules[name] = module
        if name.startswith("slicer."):
            self._put(slicer, name.removeprefix("slicer."), module)

    def _show_message(self, text: str, parent: Any = None, **options: Any) -> int:
        """`slicer.util.messageBox`: the button that `confirms` stands for."""
        self.messages.append(Message(text, options))
        buttons = QtWidgets.QMessageBox.StandardButton(options.get("standardButtons", 0))
        fitting = [button for button in buttons if bool(button & CONFIRMING) == self.confirms]
        return fitting[0].value if fitting else QtWidgets.QMessageBox.StandardButton.Ok.value

    def _recorder(self, name: str) -> Callable:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def load_volume(path: str, properties: dict[str, Any] | None = None):
    """`slicer.util.loadVolume` by the storage node that Slicer's own reader uses."""
    name = (properties or {}).get("name") or Path(path).name.partition(".")[0]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(path)
    if not storage.ReadData(node):
        slicer.mrmlScene.RemoveNode(node)
        raise RuntimeError(f"Failed to load {path}")
    return node


def make_scene():
    """A scene with the nodes that Slicer's own has from the start."""
    scene = slicer.vtkMRMLScene()
    scene.AddNewNodeByClass("vtkMRMLSubjectHierarchyNode")
    for node_class in ("vtkMRMLSelectionNode", "vtkMRMLInteractionNode"):
        node = scene.CreateNodeByClass(node_class)
        node.UnRegister(None)
        node.SetSingletonTag("Singleton")
        scene.AddNode(node)
    return scene
