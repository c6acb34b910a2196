"""What `slicer.util.loadUI` needs of Qt: a .ui file made into widgets, with Slicer's own among them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import ctk_widgets
import mrml_widgets
from PySide6.QtCore import QBuffer, QByteArray, QObject
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QWidget
from pythonqt import Wrapper, wrap

CUSTOM_WIDGETS: dict[str, type] = {
    name: value
    for module in (ctk_widgets, mrml_widgets)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, QWidget) and name.startswith(("ctk", "qMRML"))
}


class UiLoader:
    """`qt.QUiLoader`. What Qt would pass over in silence or with a line in the log is an error here."""

    def load(self, file: Wrapper) -> Wrapper:
        """The widget that the open file describes."""
        root = ET.fromstring(file.readAll().data())
        used = {widget.get("class", "") for widget in root.iter("widget")}
        unknown = {name for name in used if name.startswith(("ctk", "qMRML", "qSlicer"))} - CUSTOM_WIDGETS.keys()
        if unknown:
            raise ValueError(f"the stand-in has no {', '.join(sorted(unknown))}; add it to ctk_widgets or mrml_widgets")
        connections = list(root.iter("connection"))
        for section in root.findall("connections"):  # they name C++ types that PySide6 does not know
            root.remove(section)
        for element in root.iter("widget"):
            number_flags(element)
        buffer = QBuffer()
        buffer.setData(QByteArray(ET.tostring(root)))
        loader = QUiLoader()
        for widget_class in CUSTOM_WIDGETS.values():
            loader.registerCustomWidget(widget_class)
        widget = loader.load(buffer)
        if widget is None:
            raise ValueError(loader.errorString())
        for element in root.iter("widget"):
            check_properties(element, named(widget, element.get("name", "")))
        for connection in connections:
            connect(widget, connection)
        return wrap(widget)


def number_flags(element: ET.Element) -> None:
    """Flags of our custom widgets, such as `ctkPathLineEdit::Files`, as the number that their property holds."""
    widget_class = CUSTOM_WIDGETS.get(element.get("class", ""))
    for flags in element.findall("property/set") if widget_class else ():
        names = [flag.partition("::")[2] for flag in (flags.text or "").split("|")]
        if all(hasattr(widget_class, name) for name in names):
            flags.tag, flags.text = "number", str(sum(getattr(widget_class, name) for name in names))


def named(widget: QWidget, name: str) -> QObject:
    found = widget if widget.objectName() == name else widget.findChild(QObject, name)
    if found is None:
        raise ValueError(f"the .ui file names {name}, which it does not have")
    return found


def check_properties(element: ET.Element, widget: QObject) -> None:
    """Every property but a dynamic one (stdset="0") must be one that the class has."""
    for prop in element.findall("property"):
        name = prop.get("name", "")
        if prop.get("stdset") != "0" and widget.metaObject().indexOfProperty(name) < 0:
            raise ValueError(f"{element.get('class')} {element.get('name')} has no property {name}")


def connect(widget: QWidget, connection: ET.Element) -> None:
    sender, signal, receiver, slot = (connection.findtext(tag, "") for tag in ("sender", "signal", "receiver", "slot"))
    method = getattr(wrap(named(widget, receiver)), slot.partition("(")[0])
    takes_nothing = slot.endswith("()")
    wrap(named(widget, sender)).connect(signal, (lambda: method()) if takes_nothing else method)
