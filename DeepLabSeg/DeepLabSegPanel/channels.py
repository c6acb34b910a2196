"""A selector for every further channel that the model takes."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import qt
import slicer
from slicer.i18n import tr as _

ROLE = "furtherChannel"
"""With its number and name, the role in which the parameter node refers to a volume."""


class ChannelSelectors:
    """Rows of a form, one per channel beyond those of the input volume."""

    def __init__(self, frame: Any, onChanged: Callable[[], None]) -> None:
        self._frame = frame
        self._layout = frame.layout()
        self._onChanged = onChanged
        self._selectors: list[Any] = []
        self._names: tuple[str, ...] | None = None
        self._node: Any = None

    @property
    def nodes(self) -> list[Any]:
        """The chosen volumes, None where none is."""
        return [selector.currentNode() for selector in self._selectors]

    def leaveOut(self, node: Any) -> None:
        """Choose nothing where `node` is chosen."""
        for selector in self._selectors:
            if selector.currentNode() is node:
                selector.setCurrentNode(None)

    def show(self, channels: Sequence[str], given: int, parameterNode: Any) -> None:
        """A row for each of `channels` but the first `given`, which the input volume has, as the node says."""
        names = tuple(channels[given:])
        self._node = parameterNode
        if names != self._names:
            self._names = names
            for selector in self._selectors:
                self._layout.removeRow(selector)
            self._selectors = [self._addRow(n, name) for n, name in enumerate(names)]
            self._frame.visible = bool(names)
        for number, (name, selector) in enumerate(zip(names, self._selectors, strict=True)):
            node = parameterNode.GetNodeReference(_role(number, name))  # a script or an opened scene may have chosen
            if selector.currentNode() is not node:
                selector.setCurrentNode(node)

    def _addRow(self, number: int, name: str) -> Any:
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.addEnabled = selector.removeEnabled = selector.renameEnabled = selector.editEnabled = False
        selector.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)  # a long name leaves the panel narrow
        selector.toolTip = _("The image that the model knows as {name}.").format(name=name)
        selector.objectName = f"channelSelector{number + 2}"
        selector.setMRMLScene(slicer.mrmlScene)
        for signal in ("currentNodeChanged(vtkMRMLNode*)", "nodeActivated(vtkMRMLNode*)"):  # the latter for namesakes
            selector.connect(signal, lambda node: self._onChosen(_role(number, name), node))
        self._layout.addRow(qt.QLabel(f"{name}:"), selector)
        return selector

    def _onChosen(self, role: str, node: Any) -> None:
        self._node.SetNodeReferenceID(role, node.GetID() if node else None)
        self._onChanged()


def _role(number: int, name: str) -> str:
    """With the name, since the next model's image of that number may be another. Scenes part roles by signs in it."""
    return f"{ROLE}{number}-{quote(name, safe='')}"
