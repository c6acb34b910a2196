"""The CTK widgets that a panel names, on PySide6, with CTK's properties, methods and signals.

PythonQt shows of them only properties, slots and signals; a setter that is no slot in CTK is therefore private here.
"""

from __future__ import annotations

import re

from PySide6.QtCore import Property, QEvent, QRect, QSettings, QSize, Qt, Signal
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QHBoxLayout,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionButton,
    QStyleOptionFrame,
    QTextBrowser,
    QToolButton,
    QWidget,
)


class ctkCollapsibleButton(QAbstractButton):
    """A titled section that opens and closes at a click on its title."""

    contentsCollapsed = Signal(bool)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._collapsed = False
        self._collapsed_height = 14  # of an empty frame below the title
        self._hidden_by_us: set[QWidget] = set()
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self.toggled.connect(lambda checked: self._set_collapsed(not checked))
        self.setContentsMargins(0, self._title_height(), 0, 0)

    def _is_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        if collapsed:
            self._hidden_by_us = {child for child in self._contents() if not child.isHidden()}
        for child in self._hidden_by_us:
            child.setVisible(not collapsed)
        self.setMaximumHeight(self._closed_height() if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, _is_collapsed, _set_collapsed, notify=contentsCollapsed)

    def _set_collapsed_height(self, height: int) -> None:
        self._collapsed_height = height

    collapsedHeight = Property(int, lambda self: self._collapsed_height, _set_collapsed_height)

    def _contents(self) -> list[QWidget]:
        return self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly)

    def _title_height(self) -> int:
        return self.fontMetrics().height() + 8

    def _closed_height(self) -> int:
        return self._title_height() + self._collapsed_height

    def childEvent(self, event) -> None:
        """A closed section also hides what is put into it later."""
        if self._collapsed and event.type() is QEvent.Type.ChildPolished and isinstance(event.child(), QWidget):
            self._hidden_by_us.add(event.child())
            event.child().hide()
        super().childEvent(event)

    def hitButton(self, position) -> bool:
        return position.y() <= self._title_height()

    def sizeHint(self) -> QSize:
        closed = QSize(self.fontMetrics().horizontalAdvance(self.text()) + 40, self._closed_height())
        if self._collapsed or self.layout() is None:
            return closed
        return self.layout().totalSizeHint().expandedTo(closed)

    def minimumSizeHint(self) -> QSize:
        if self._collapsed or self.layout() is None:
            return QSize(0, self._closed_height())
        return self.layout().totalMinimumSize()

    def paintEvent(self, _event) -> None:
        painter = QPainter(self)
        title = QStyleOptionButton()
        title.initFrom(self)
        title.rect = QRect(0, 0, self.width(), self._title_height())
        title.state |= QStyle.StateFlag.State_Raised
        self.style().drawControl(QStyle.ControlElement.CE_PushButtonBevel, title, painter, self)
        arrow = QStyleOptionButton(title)
        arrow.rect = QRect(6, (self._title_height() - 12) // 2, 12, 12)
        element = QStyle.PrimitiveElement
        kind = element.PE_IndicatorArrowRight if self._collapsed else element.PE_IndicatorArrowDown
        self.style().drawPrimitive(kind, arrow, painter, self)
        text = title.rect.adjusted(24, 0, -6, 0)
        self.style().drawItemText(
            painter, text, Qt.AlignmentFlag.AlignVCenter, self.palette(), self.isEnabled(), self.text()
        )
        if not self._collapsed:
            frame = QStyleOptionFrame()
            frame.initFrom(self)
            frame.rect = self.rect().adjusted(0, self._title_height(), 0, 0)
            self.style().drawPrimitive(element.PE_FrameGroupBox, frame, painter, self)


class ctkPathLineEdit(QWidget):
    """The path of a file or folder: typed, browsed for, or taken from the last ones under `settingKey`."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    Dirs, Files = 0x001, 0x002

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._name_filters: list[str] = []
        self._is_valid = False
        self._filters = self.Dirs | self.Files
        self._setting_key = ""
        self._box = QComboBox(self, editable=True)
        self._box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._box.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self._box.editTextChanged.connect(self._on_text)
        button = QToolButton(self, text="…")
        button.clicked.connect(self.browse)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        layout.addWidget(button)

    def _on_text(self, path: str) -> None:
        """CTK takes a path only where a filter with an ending fits it ("*" has none), and never an empty one."""
        endings = re.findall(r"\*(\.\w+)", " ".join(self._name_filters))
        before, self._is_valid = self._is_valid, bool(path) and (not endings or path.endswith(tuple(endings)))
        if self._is_valid:
            self.currentPathChanged.emit(path)
        if self._is_valid != before:
            self.validInputChanged.emit(self._is_valid)

    def _current_path(self) -> str:
        return self._box.currentText()

    def setCurrentPath(self, path: str) -> None:
        self._box.setEditText(path)

    currentPath = Property(str, _current_path, setCurrentPath, notify=currentPathChanged)

    def _read_name_filters(self) -> list[str]:
        return self._name_filters

    def _set_name_filters(self, name_filters: list[str]) -> None:
        self._name_filters = list(name_filters)

    nameFilters = Property("QStringList", _read_name_filters, _set_name_filters)

    def _read_filters(self) -> int:
        return self._filters

    def _set_filters(self, filters: int) -> None:
        self._filters = filters

    filters = Property(int, _read_filters, _set_filters)

    def _read_setting_key(self) -> str:
        return self._setting_key

    def _set_setting_key(self, setting_key: str) -> None:
        """The key under which the last paths are kept; those there are listed."""
        self._setting_key = setting_key
        path = self.currentPath
        self._box.blockSignals(True)
        self._box.clear()
        self._box.addItems(self._history())
        self._box.setEditText(path)
        self._box.blockSignals(False)

    settingKey = Property(str, _read_setting_key, _set_setting_key)

    def _history(self) -> list[str]:
        paths = QSettings().value(self._setting_key) or []
        return [paths] if isinstance(paths, str) else list(paths)

    def addCurrentPathToHistory(self) -> None:
        """Keep the path for the next time."""
        path = self.currentPath
        if path and self._setting_key:
            QSettings().setValue(self._setting_key, list(dict.fromkeys([path, *self._history()])))
            self._set_setting_key(self._setting_key)

    def browse(self) -> None:
        """Let the user choose in a dialog."""
        if self._filters & self.Files:
            path, _ = QFileDialog.getOpenFileName(self, "", self.currentPath, ";;".join(self._name_filters))
        else:
            path = QFileDialog.getExistingDirectory(self, "", self.currentPath)
        if path:
            self.setCurrentPath(path)


class ctkSliderWidget(QWidget):
    """A number on a slider with a spin box beside it."""

    valueChanged = Signal(float)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._slider = QSlider(Qt.Orientation.Horizontal, self)
        self._spin = QDoubleSpinBox(self)
        self._spin.valueChanged.connect(self._on_spin)
        self._slider.valueChanged.connect(self._on_slider)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._spin)
        self._show_range()

    def _on_spin(self, value: float) -> None:
        self._show_value()
        self.valueChanged.emit(value)

    def _on_slider(self, position: int) -> None:
        self._spin.setValue(self._spin.minimum() + position * self._spin.singleStep())

    def _show_range(self) -> None:
        self._slider.blockSignals(True)
        self._slider.setRange(0, round((self._spin.maximum() - self._spin.minimum()) / self._spin.singleStep()))
        self._slider.blockSignals(False)
        self._show_value()

    def _show_value(self) -> None:
        self._slider.blockSignals(True)
        self._slider.setValue(round((self._spin.value() - self._spin.minimum()) / self._spin.singleStep()))
        self._slider.blockSignals(False)

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)

    def _set_minimum(self, minimum: float) -> None:
        self._spin.setMinimum(minimum)
        self._show_range()

    def _set_maximum(self, maximum: float) -> None:
        self._spin.setMaximum(maximum)
        self._show_range()

    def _set_single_step(self, step: float) -> None:
        self._spin.setSingleStep(step)
        self._show_range()

    def setDecimals(self, decimals: int) -> None:
        self._spin.setDecimals(decimals)

    def _set_suffix(self, suffix: str) -> None:
        self._spin.setSuffix(suffix)

    value = Property(float, lambda self: self._spin.value(), setValue, notify=valueChanged)
    minimum = Property(float, lambda self: self._spin.minimum(), _set_minimum)
    maximum = Property(float, lambda self: self._spin.maximum(), _set_maximum)
    singleStep = Property(float, lambda self: self._spin.singleStep(), _set_single_step)
    decimals = Property(int, lambda self: self._spin.decimals(), setDecimals)
    suffix = Property(str, lambda self: self._spin.suffix(), _set_suffix)


class ctkFittedTextBrowser(QTextBrowser):
    """A text browser as high as its text."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
        self.textChanged.connect(self.updateGeometry)

    def sizeHint(self) -> QSize:
        document = self.document().clone()
        document.setTextWidth(self.viewport().width())
        return QSize(200, int(document.size().height()) + 2 * self.frameWidth())

    minimumSizeHint = sizeHint

    def resizeEvent(self, event) -> None:
        super().resizeEvent(event)
        self.updateGeometry()
