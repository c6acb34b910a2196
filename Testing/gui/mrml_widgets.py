"""The MRML widgets that a panel names, on PySide6, with Slicer's properties, methods and signals."""

from __future__ import annotations

from typing import ClassVar

import slicer
import vtk
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSizePolicy, QWidget
from shiboken6 import isValid

SCENE_EVENTS = (
    slicer.vtkMRMLScene.NodeAddedEvent,
    slicer.vtkMRMLScene.NodeRemovedEvent,
    slicer.vtkMRMLScene.EndBatchProcessEvent,
)


class qMRMLWidget(QWidget):
    """A widget that knows the scene: the root of a module's panel."""

    mrmlSceneChanged = Signal(object)
    vtk_signals: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


def plain_property(kind: type | str, name: str, initial: object) -> Property:
    """A Qt property that a test reads back; a change updates the list of nodes."""

    def read(self):
        return self._values.get(name, initial)

    def write(self, value) -> None:
        self._values[name] = value
        self._update()

    return Property(kind, read, write)


class qMRMLNodeComboBox(QWidget):
    """Chooses a node of the scene, and follows the scene as nodes come, go and are renamed."""

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    vtk_signals: ClassVar = {
        f"{name}(vtkMRMLNode*)": f"{name}(PyObject)"
        for name in ("currentNodeChanged", "nodeActivated", "nodeAdded", "nodeAddedByUser")
    }

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._scene = None
        self._scene_observers: list[int] = []
        self._name_observers: dict[object, int] = {}
        self._requested = None  # chosen before there was a scene
        self._values: dict[str, object] = {}
        self._box = QComboBox(self)
        self._box.currentTextChanged.connect(self._emit_current)  # as in Slicer from 5.12 on
        self._box.activated.connect(lambda _: self.nodeActivated.emit(self.currentNode()))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setFocusProxy(self._box)
        self.setEnabled(False)  # until there is a scene

    nodeTypes = plain_property("QStringList", "nodeTypes", [])
    hideChildNodeTypes = plain_property("QStringList", "hideChildNodeTypes", [])
    showChildNodeTypes = plain_property(bool, "showChildNodeTypes", True)
    showHidden = plain_property(bool, "showHidden", False)
    noneEnabled = plain_property(bool, "noneEnabled", False)
    noneDisplay = plain_property(str, "noneDisplay", "None")
    addEnabled = plain_property(bool, "addEnabled", True)
    removeEnabled = plain_property(bool, "removeEnabled", True)
    editEnabled = plain_property(bool, "editEnabled", False)
    renameEnabled = plain_property(bool, "renameEnabled", False)
    selectNodeUponCreation = plain_property(bool, "selectNodeUponCreation", True)
    baseName = plain_property(str, "baseName", "")

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is self._scene:
            return
        self._stop_observing()
        self._scene = scene
        if scene:
            self._scene_observers = [scene.AddObserver(event, self._update) for event in SCENE_EVENTS]
            self._scene_observers.append(scene.AddObserver(scene.EndImportEvent, self._list_nodes))
        self._update()
        if self._requested is not None:
            self.setCurrentNode(self._requested)
        self._requested = None
        self.setEnabled(scene is not None)

    def _stop_observing(self) -> None:
        for tag in self._scene_observers:
            self._scene.RemoveObserver(tag)
        self._scene_observers = []
        for node, tag in self._name_observers.items():
            node.RemoveObserver(tag)
        self._name_observers = {}

    def currentNode(self):
        return self.nodeFromIndex(self._box.currentIndex() - self._none_count())

    def setCurrentNode(self, node) -> None:
        """Choose a node; a node that is not listed, and None, choose nothing."""
        if self._scene is None:
            self._requested = node
        index = self._box.findData(node.GetID()) if node else -1
        self._box.setCurrentIndex(max(index, self._none_count() - 1))

    def _current_id(self) -> str:
        return self._box.currentData() or ""

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if self._scene and node_id else None)

    currentNodeID = Property(str, _current_id, setCurrentNodeID, notify=currentNodeIDChanged)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self.nodeFromIndex(index))

    def nodeCount(self) -> int:
        return self._box.count() - self._none_count()

    def nodeFromIndex(self, index: int):
        node_id = self._box.itemData(index + self._none_count()) if index >= 0 else None
        return self._scene.GetNodeByID(node_id) if node_id and self._scene else None

    def addNode(self, node_type: str = ""):
        """A new node, as the user makes one from the list."""
        node_type = node_type or self.nodeTypes[0]
        name = self.baseName or self._scene.GetTagByClassName(node_type)
        node = self._scene.AddNewNodeByClass(node_type, self._scene.GenerateUniqueName(name))
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def _none_count(self) -> int:
        """1 where the list begins with None."""
        return int(self._box.count() > 0 and self._box.itemData(0) is None)

    def _emit_current(self, _text: str) -> None:
        node = self.currentNode()
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)
        self.currentNodeIDChanged.emit(self._current_id())

    def _update(self, *_: object) -> None:
        """Bring the list up to the scene, but while many nodes come or go."""
        if self._scene is None or not self._scene.IsBatchProcessing():
            self._list_nodes()

    def _list_nodes(self, *_: object) -> None:
        """List the nodes item by item, so that QComboBox keeps or moves the choice as in Slicer."""
        if not isValid(self._box):  # the widget is gone; Slicer's own stops observing then
            self._stop_observing()
            return
        if self.noneEnabled and not self._none_count():
            self._box.insertItem(0, self.noneDisplay)
        elif not self.noneEnabled and self._none_count():
            self._box.removeItem(0)
        if self.noneEnabled:
            self._box.setItemText(0, self.noneDisplay)
        wanted = {node.GetID(): node for node in self._listed_nodes()}
        for index in reversed(range(self._none_count(), self._box.count())):
            if self._box.itemData(index) not in wanted:
                self._box.removeItem(index)
        for index, (node_id, node) in enumerate(wanted.items(), self._none_count()):
            if self._box.findData(node_id) < 0:
                self._box.insertItem(index, node.GetName(), node_id)
                self.nodeAdded.emit(node)
            self._box.setItemText(index, node.GetName())
        self._observe_names(list(wanted.values()))

    def _observe_names(self, nodes: list) -> None:
        for node in self._name_observers.keys() - set(nodes):
            node.RemoveObserver(self._name_observers.pop(node))
        for node in set(nodes) - self._name_observers.keys():
            self._name_observers[node] = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._update)

    def _listed_nodes(self) -> list:
        nodes = self._scene.GetNodes() if self._scene else ()
        return [node for node in nodes if self._is_listed(node)]

    def _is_listed(self, node) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if not self.showChildNodeTypes:
            return node.GetClassName() in self.nodeTypes
        hidden = any(node.IsA(kind) for kind in self.hideChildNodeTypes)
        return not hidden and (not self.nodeTypes or any(node.IsA(kind) for kind in self.nodeTypes))


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Chooses several nodes."""

    checkedNodesChanged = Signal()

    def checkedNodes(self) -> list:
        items = range(self._none_count(), self._box.count())
        checked = [i for i in items if self._box.itemData(i, Qt.ItemDataRole.CheckStateRole) == Qt.CheckState.Checked]
        return [self.nodeFromIndex(index - self._none_count()) for index in checked]

    def setCheckState(self, node, state: int) -> None:
        index = self._box.findData(node.GetID())
        if index >= 0 and (node in self.checkedNodes()) != (Qt.CheckState(state) is Qt.CheckState.Checked):
            self._box.setItemData(index, Qt.CheckState(state), Qt.ItemDataRole.CheckStateRole)
            self.checkedNodesChanged.emit()
