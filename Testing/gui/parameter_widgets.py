"""Which widget shows which type of parameter. As in Slicer the widget's class must be one of these exactly."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin

import slicer
from parameter_types import Choice, Maximum, Minimum, WithinRange, annotation, split
from pythonqt import Wrapper


class Connector:
    """Shows a value in one property of a widget, and says when the user changes it."""

    def __init__(self, widget: Wrapper, attribute: str, signal: str):
        self.widget, self.attribute, self.signal = widget, attribute, signal

    def connect(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        self.widget.connect(self.signal, changed)

    def disconnect(self) -> None:
        self.widget.disconnect(self.signal, self.changed)

    def read(self):
        return getattr(self.widget, self.attribute)

    def write(self, value) -> None:
        setattr(self.widget, self.attribute, value)


class TextConnector(Connector):
    """Leaves the cursor where it is while the user types."""

    def write(self, value: str) -> None:
        if value != self.read():
            super().write(value)


class PathConnector(Connector):
    def read(self) -> Path:
        return Path(super().read())

    def write(self, value: Path) -> None:
        super().write(str(value))


class NumberConnector(Connector):
    """Gives the widget the range of the annotations."""

    def __init__(self, widget: Wrapper, attribute: str, signal: str, hint: Any):
        super().__init__(widget, attribute, signal)
        bounds = annotation(hint, WithinRange)
        minimum, maximum = bounds or annotation(hint, Minimum), bounds or annotation(hint, Maximum)
        if "Slider" in type(widget).__name__ and not (minimum and maximum):
            raise RuntimeError(f"{widget} needs the range of its parameter: annotate it WithinRange")
        is_whole = type(widget).__name__ in ("QSpinBox", "QSlider")
        widget.minimum = minimum.minimum if minimum else (-(2**31) if is_whole else float("-inf"))
        widget.maximum = maximum.maximum if maximum else (2**31 - 1 if is_whole else float("inf"))


class ListedConnector(Connector):
    """Refills a combo box with the values allowed, each under its label."""

    def __init__(self, widget: Wrapper, labels: dict[Any, str]):
        super().__init__(widget, "currentIndex", "currentIndexChanged(int)")
        self.values = list(labels)
        index = widget.currentIndex
        widget.clear()
        for label in labels.values():
            widget.addItem(label)
        widget.currentIndex = max(index, 0)

    def read(self):
        return self.values[super().read()]

    def write(self, value) -> None:
        super().write(self.values.index(value))


class NodeConnector(Connector):
    """Gives the selector the node types of the hint."""

    def __init__(self, widget: Wrapper, node_types: list[str]):
        super().__init__(widget, "currentNodeID", "currentNodeChanged(vtkMRMLNode*)")
        widget.nodeTypes = node_types

    def read(self):
        return self.widget.currentNode()

    def write(self, value) -> None:
        self.widget.setCurrentNode(value)


def make_connector(widget: Wrapper, hint: Any) -> Connector:
    """The connector between a widget and a parameter of the type that `hint` names."""
    kind, name = split(hint)[0], type(widget).__name__
    if name == "qMRMLNodeComboBox":
        return NodeConnector(widget, node_types(kind) or refuse(widget, hint))
    if name in ("QComboBox", "ctkComboBox"):
        return ListedConnector(widget, labels(hint) or refuse(widget, hint))
    match name, kind:
        case ("QCheckBox", type() as t) if t is bool:
            return Connector(widget, "checked", "stateChanged(int)")
        case ("QPushButton", type() as t) if t is bool:
            widget.checkable = True
            return Connector(widget, "checked", "toggled(bool)")
        case ("QLineEdit", type() as t) if t is str:
            return TextConnector(widget, "text", "textChanged(QString)")
        case ("ctkPathLineEdit", type() as t) if t is Path:
            return PathConnector(widget, "currentPath", "currentPathChanged(QString)")
        case (("QSpinBox" | "QSlider"), type() as t) if t is int:
            return NumberConnector(widget, "value", "valueChanged(int)", hint)
        case (("QDoubleSpinBox" | "ctkSliderWidget"), type() as t) if t is float:
            return NumberConnector(widget, "value", "valueChanged(double)", hint)
    return refuse(widget, hint)


def refuse(widget: Wrapper, hint: Any) -> NoReturn:
    raise RuntimeError(f"Slicer binds no {type(widget).__name__} to a parameter of type {hint}")


def labels(hint: Any) -> dict[Any, str]:
    """What a combo box lists: the members of an enum, or the values of a Choice."""
    kind = split(hint)[0]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        label = getattr(kind, "label", lambda member: member.name)
        return {member: label(member) for member in kind}
    choice = annotation(hint, Choice)
    return {value: str(value) for value in choice.choices} if choice else {}


def node_types(kind: Any) -> list[str]:
    """The class names of a node type or of a union of them."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [
        member.__name__ for member in members if isinstance(member, type) and issubclass(member, slicer.vtkMRMLNode)
    ]
