"""`slicer.app` and the main window, as far as a panel asks for them."""

from __future__ import annotations

import slicer
from PySide6.QtCore import Property, QCoreApplication, QEvent, QObject, QSettings, Qt, Signal
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import QApplication, QMainWindow


class ModuleManager(QObject):
    """What knows the loaded modules."""

    moduleAboutToBeUnloaded = Signal(str)

    def module(self, name: str):
        return getattr(slicer.modules, name.lower(), None)


class qSlicerApplication(QObject):
    """Slicer's application object, made anew for each test."""

    aboutToQuit = Signal()
    startupCompleted = Signal()
    paletteChanged = Signal(QPalette)
    renderPaused = Signal(bool)

    def __init__(self, folder: str):
        super().__init__()
        self._folder = folder
        self._testing = False
        self._modules = ModuleManager(self)
        self._logic = slicer.vtkMRMLApplicationLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self.main_window = QMainWindow(objectName="qSlicerMainWindow")
        QApplication.instance().paletteChanged.connect(self.paletteChanged)

    applicationName = Property(str, lambda self: "Slicer")
    temporaryPath = Property(str, lambda self: self._folder)
    doubleClickInterval = Property(
        int, lambda self: QApplication.doubleClickInterval(), lambda self, ms: QApplication.setDoubleClickInterval(ms)
    )

    def palette(self) -> QPalette:
        return QApplication.palette()

    def setPalette(self, palette: QPalette) -> None:
        QApplication.setPalette(palette)

    def processEvents(self) -> None:
        QCoreApplication.processEvents()
        # Outside a running event loop Qt keeps these back.
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)

    def testingEnabled(self) -> bool:
        return self._testing

    def setTestingEnabled(self, enabled: bool) -> None:
        """As if Slicer ran with `--testing`: no message box appears."""
        self._testing = enabled

    def userSettings(self) -> QSettings:
        return QSettings()

    settings = userSettings

    def applicationLogic(self):
        return self._logic

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def pauseRender(self) -> None:
        self.renderPaused.emit(True)

    def resumeRender(self) -> None:
        self.renderPaused.emit(False)

    def layoutManager(self) -> None:
        """Slicer without a main view has none either."""

    def topLevelWidgets(self) -> list:
        return [self.main_window]

    def setOverrideCursor(self, cursor: int) -> None:
        QApplication.setOverrideCursor(Qt.CursorShape(cursor))

    def restoreOverrideCursor(self) -> None:
        QApplication.restoreOverrideCursor()

    def translate(self, _context: str, text: str) -> str:
        return text
