"""`slicer.parameterNodeWrapper`: a class of typed fields over a vtkMRMLScriptedModuleNode, bound to widgets.

Values are kept in the node under the names that Slicer uses, so they survive saving and loading a scene. What Slicer
refuses is refused here: a type it can't keep, or a widget class it can't bind to the type.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Annotated, ClassVar, get_type_hints

import vtk
from parameter_types import Choice, Default, Field, Maximum, Minimum, WithinRange
from parameter_widgets import Connector, make_connector
from pythonqt import Wrapper
from slicer.util import NodeModify

PARAMETER_NAME = "SlicerParameterName"
"""The dynamic property by which a widget of a .ui file names its field."""

RESERVED = {
    *("allParameters", "default", "isCached", "dataType", "getValue", "setValue", "connectGui"),
    *(
        "connectParametersToGui",
        "disconnectGui",
        "StartModify",
        "EndModify",
        "AddObserver",
        "RemoveObserver",
        "Modified",
    ),
}


class ParameterNode:
    """What a wrapper class offers beside its fields."""

    allParameters: ClassVar[dict[str, Field]]

    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self._bindings: dict[int, tuple[dict, int]] = {}
        self._is_updating_widgets = False
        for field in self.allParameters.values():
            field.read(parameterNode)  # writes the default where there is no value

    def AddObserver(self, event, callback, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, was_modified: int) -> None:
        self.parameterNode.EndModify(was_modified)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def connectGui(self, ui) -> int:
        """Bind the widgets of `childWidgetVariables` that name a field; the tag is for `disconnectGui`."""
        widgets = [value for value in vars(ui).values() if isinstance(value, Wrapper)]
        return self.connectParametersToGui(
            {w.property(PARAMETER_NAME): w for w in widgets if w.property(PARAMETER_NAME)}
        )

    def connectParametersToGui(self, mapping: dict) -> int:
        """Bind a widget to each named field: it shows the value now, and each follows the other."""
        unknown = mapping.keys() - self.allParameters.keys()
        if unknown:
            raise ValueError(
                f"no parameter is named {', '.join(sorted(unknown))}; there are {', '.join(self.allParameters)}"
            )
        connectors = {name: make_connector(widget, self.allParameters[name].hint) for name, widget in mapping.items()}
        for name, connector in connectors.items():
            connector.write(getattr(self, name))
            connector.connect(self._taker(name, connector))
        tag = max(self._bindings, default=-1) + 1
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._update_widgets())
        self._bindings[tag] = (connectors, observer)
        return tag

    def disconnectGui(self, tag: int) -> None:
        connectors, observer = self._bindings.pop(tag, ({}, None))
        for connector in connectors.values():
            connector.disconnect()
        if observer is not None:
            self.RemoveObserver(observer)

    def _taker(self, name: str, connector: Connector) -> Callable[[], None]:
        def take() -> None:
            if not self._is_updating_widgets:
                with NodeModify(self.parameterNode):
                    setattr(self, name, connector.read())

        return take

    def _update_widgets(self) -> None:
        """Every change of the node writes every bound widget anew, as in Slicer."""
        if self._is_updating_widgets:
            return
        self._is_updating_widgets = True
        try:
            with NodeModify(self.parameterNode):
                for connectors, _ in self._bindings.values():
                    for name, connector in connectors.items():
                        connector.write(getattr(self, name))
        finally:
            self._is_updating_widgets = False


def parameterNodeWrapper(cls: type) -> type:
    """Class decorator: each annotated field is kept in the parameter node given to the constructor."""
    fields = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if hasattr(cls, name):
            hint = Annotated[hint, Default(getattr(cls, name))]
        fields[name] = Field(name, hint)
    reserved = (fields.keys() | vars(cls).keys()) & RESERVED
    if reserved:
        raise ValueError(f"Slicer's parameter node wrapper uses the names {', '.join(sorted(reserved))} itself")
    return type(cls.__name__, (cls, ParameterNode), {**fields, "allParameters": fields, "__module__": cls.__module__})


def make_module() -> types.ModuleType:
    """The module `slicer.parameterNodeWrapper`."""
    module = types.ModuleType("slicer.parameterNodeWrapper")
    offered = (parameterNodeWrapper, Choice, Default, Maximum, Minimum, WithinRange)
    vars(module).update({member.__name__: member for member in offered})
    return module
